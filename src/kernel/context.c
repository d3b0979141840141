/* context.c - contexts: made, asked, freed. */
#include "context.h"

static int check_options(const kna_context_options *options)
{
    static const kna_context_options none;
    if (options->size < sizeof *options) {
        return KNA_EINVAL;
    }
    const char *bytes = (const char *)options;
    for (size_t i = sizeof none; i < options->size; i++) {
        if (bytes[i]) {
            return KNA_EINVAL; /* a field of a newer version is set that this one does not know */
        }
    }
    if (options->threads < 0 || options->threads > KNA_MAX_THREADS || options->cpu < 0 || options->cpu >= KNA_CPU_COUNT) {
        return KNA_EINVAL;
    }
    if (!options->allocator.allocate != !options->allocator.release) {
        return KNA_EINVAL;
    }
    return kna_cpu_is_present(options->cpu) ? KNA_OK : KNA_ECPU;
}

int kna_context_new(kna_context **context, const kna_context_options *options)
{
    static const kna_context_options defaults = KNA_CONTEXT_OPTIONS;
    const kna_context_options *o = options ? options : &defaults;
    if (!context) {
        return KNA_EINVAL;
    }
    *context = NULL;
    KNA_TRY(check_options(o));
    kna__heap heap;
    kna__heap_init(&heap, &o->allocator);
    kna_context *fresh = kna__allocate(&heap, sizeof *fresh);
    if (!fresh) {
        return KNA_ENOMEM;
    }
    memset(fresh, 0, sizeof *fresh);
    fresh->heap = heap;
    fresh->kernels = kna__kernels_get(o->cpu);
    fresh->threads = o->threads ? o->threads : kna__processors();
    *context = fresh;
    return KNA_OK;
}

void kna_context_free(kna_context *context)
{
    if (!context) {
        return;
    }
    kna_context_trim(context);
    kna__heap heap = context->heap;
    kna__release(&heap, context, sizeof *context);
}

const char *kna_context_message(const kna_context *context)
{
    return context->message;
}

int kna_context_cpu(const kna_context *context)
{
    return context->kernels->cpu;
}

int kna_context_threads(const kna_context *context)
{
    return context->threads;
}

int kna_context_set_threads(kna_context *context, int threads)
{
    context->message[0] = 0;
    if (threads < 0 || threads > KNA_MAX_THREADS) {
        return KNA_FAIL(context, KNA_EINVAL, "threads: %d is outside 0..%d", threads, KNA_MAX_THREADS);
    }
    context->threads = threads ? threads : kna__processors();
    return KNA_OK;
}

void kna_context_memory(const kna_context *context, kna_memory *memory)
{
    memory->now_bytes = context->heap.now_bytes;
    memory->peak_bytes = context->heap.peak_bytes;
    memory->allocations = context->heap.allocations;
}

void kna_context_reset_peak(kna_context *context)
{
    context->heap.peak_bytes = context->heap.now_bytes;
}

void kna_context_trim(kna_context *context)
{
    kna__release(&context->heap, context->scratch, context->scratch_bytes);
    context->scratch = NULL;
    context->scratch_bytes = 0;
}

char *kna__scratch(kna_context *context, size_t bytes)
{
    if (bytes > context->scratch_used) {
        context->scratch_used = bytes;
    }
    if (context->scratch && bytes <= context->scratch_bytes) {
        return context->scratch;
    }
    kna_context_trim(context);
    /* A little more than asked, so that a context growing token by token does not reallocate at each. */
    size_t roomy = bytes > SIZE_MAX / 2 ? bytes : bytes + bytes / 4;
    context->scratch = kna__allocate(&context->heap, roomy);
    context->scratch_bytes = context->scratch ? roomy : 0;
    return context->scratch;
}

void *kna__cut(kna__cutter *cutter, size_t count, size_t bytes)
{
    size_t at = cutter->used, size = kna__size_product(count, bytes);
    size_t rounded = size > SIZE_MAX - KNA_ALIGNMENT ? SIZE_MAX : (size + KNA_ALIGNMENT - 1) / KNA_ALIGNMENT * KNA_ALIGNMENT;
    if (__builtin_add_overflow(at, rounded, &cutter->used)) {
        cutter->used = SIZE_MAX;
    }
    return cutter->base ? cutter->base + at : NULL;
}

int kna_quantize_i8(kna_context *context, int8_t *out, float *scales, const float *x, int64_t n, int64_t d)
{
    context->message[0] = 0;
    if (n < 0 || d < 1 || (n && (!out || !scales || !x))) {
        return KNA_FAIL(context, KNA_EINVAL, "quantize: n = %lld, d = %lld or a null pointer", (long long)n, (long long)d);
    }
    if (d > KNA_MAX_DIM || n > KNA_MAX_ROWS) {
        return KNA_FAIL(context, KNA_ELIMIT, "quantize: n = %lld or d = %lld is above %d, %d", (long long)n, (long long)d,
                        KNA_MAX_ROWS, KNA_MAX_DIM);
    }
    for (int64_t r = 0; r < n; r++) {
        int64_t at = kna__find_nonfinite(KNA_F32, (const char *)(x + r * d), 1.0f, d);
        if (at >= 0) {
            return KNA_FAIL(context, KNA_EVALUE, "quantize: NaN or infinity at row %lld, column %lld", (long long)r, (long long)at);
        }
        scales[r] = context->kernels->quantize(out + r * d, x + r * d, (size_t)d);
    }
    return KNA_OK;
}
