/* unit_context.c - contexts: options, CPU levels, threads, messages, the memory account; and quantisation, which needs only one. */
#include "test.h"

#include "oracle.h"

static const kna_context_options defaults = KNA_CONTEXT_OPTIONS;

static void *counted_allocate(void *user, size_t bytes)
{
    *(size_t *)user += bytes;
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static void counted_release(void *user, void *memory, size_t bytes)
{
    *(size_t *)user -= bytes;
    free(memory);
}

/* ---- options */
static void refused_options(void)
{
    kna_context *context;
    EXPECT_INT(kna_context_new(NULL, NULL), KNA_EINVAL);
    static const int bad_threads[] = { -1, KNA_MAX_THREADS + 1, INT32_MIN, INT32_MAX };
    for (int i = 0; i < 4; i++) {
        kna_context_options o = defaults;
        o.threads = bad_threads[i];
        context = (kna_context *)(uintptr_t)64;
        EXPECT_INT(kna_context_new(&context, &o), KNA_EINVAL);
        EXPECT(context == NULL);
    }
    static const int bad_cpus[] = { -1, KNA_CPU_COUNT, INT32_MAX };
    for (int i = 0; i < 3; i++) {
        kna_context_options o = defaults;
        o.cpu = bad_cpus[i];
        EXPECT_INT(kna_context_new(&context, &o), KNA_EINVAL);
    }
    size_t held = 0;
    kna_context_options half = defaults;
    half.allocator = (kna_allocator){ counted_allocate, NULL, &held };
    EXPECT_INT(kna_context_new(&context, &half), KNA_EINVAL);
    half.allocator = (kna_allocator){ NULL, counted_release, &held };
    EXPECT_INT(kna_context_new(&context, &half), KNA_EINVAL);
}

static void option_sizes(void)
{
    kna_context *context;
    struct {
        kna_context_options options;
        char more[16];
    } newer = { .options = defaults };
    memset(newer.more, 0, sizeof newer.more);
    for (size_t size = 0; size < sizeof(kna_context_options); size++) {
        kna_context_options o = defaults;
        o.size = size;
        EXPECT_INT(kna_context_new(&context, &o), KNA_EINVAL);
    }
    newer.options.size = sizeof newer;
    EXPECT_INT(kna_context_new(&context, &newer.options), KNA_OK);
    kna_context_free(context);
    newer.more[15] = 1;
    EXPECT_INT(kna_context_new(&context, &newer.options), KNA_EINVAL);
    EXPECT(context == NULL);
    kna_context_free(NULL);
}

/* ---- CPU levels */
static void cpu_levels(void)
{
    static const char *const names[KNA_CPU_COUNT] = { "best", "ref", "avx2", "avx512", "avx512vnni", "neon" };
    kna_context *context;
    EXPECT(kna_cpu_name(-1) == NULL && kna_cpu_name(KNA_CPU_COUNT) == NULL);
    EXPECT_INT(kna_cpu_is_present(-1), 0);
    EXPECT_INT(kna_cpu_is_present(KNA_CPU_COUNT), 0);
    EXPECT_INT(kna_cpu_is_present(KNA_CPU_BEST), 1);
    EXPECT_INT(kna_cpu_is_present(KNA_CPU_REF), 1);
    for (int cpu = 0; cpu < KNA_CPU_COUNT; cpu++) {
        kna_context_options o = defaults;
        o.cpu = cpu;
        EXPECT_TEXT(kna_cpu_name(cpu), names[cpu]);
        EXPECT_INT(kna_context_new(&context, &o), kna_cpu_is_present(cpu) ? KNA_OK : KNA_ECPU);
        EXPECT((context != NULL) == kna_cpu_is_present(cpu));
        if (!context) continue;
        if (cpu != KNA_CPU_BEST) EXPECT_INT(kna_context_cpu(context), cpu);
        EXPECT(kna_context_cpu(context) != KNA_CPU_BEST && kna_cpu_is_present(kna_context_cpu(context)));
        kna_context_free(context);
    }
    EXPECT(!(kna_cpu_is_present(KNA_CPU_NEON) && kna_cpu_is_present(KNA_CPU_AVX2)));
}

/* ---- threads and messages */
static void threads(void)
{
    kna_context *context;
    kna_context_options o = defaults;
    o.threads = 3;
    EXPECT_INT(kna_context_new(&context, &o), KNA_OK);
    EXPECT_INT(kna_context_threads(context), 3);
    EXPECT_INT(kna_context_set_threads(context, KNA_MAX_THREADS), KNA_OK);
    EXPECT_INT(kna_context_threads(context), KNA_MAX_THREADS);
    EXPECT_INT(kna_context_set_threads(context, -1), KNA_EINVAL);
    EXPECT(strstr(kna_context_message(context), "threads: -1") != NULL);
    EXPECT_INT(kna_context_set_threads(context, KNA_MAX_THREADS + 1), KNA_EINVAL);
    EXPECT(strstr(kna_context_message(context), "1024") != NULL);
    EXPECT_INT(kna_context_threads(context), KNA_MAX_THREADS); /* as before */
    EXPECT_INT(kna_context_set_threads(context, 0), KNA_OK);
    EXPECT_TEXT(kna_context_message(context), "");
    EXPECT(kna_context_threads(context) >= 1 && kna_context_threads(context) <= KNA_MAX_THREADS);
    kna_context_free(context);
    EXPECT_INT(kna_context_new(&context, NULL), KNA_OK);
    EXPECT_TEXT(kna_context_message(context), "");
    EXPECT(kna_context_threads(context) >= 1);
    kna_context_free(context);
}

/* ---- memory */
static int attend(kna_context *context, int64_t n)
{
    float *x = calloc((size_t)n * 8, sizeof *x), out[8];
    kna_rows q = { x, KNA_F32, 1, 1, 8, 0, 0, NULL }, k = q;
    kna_out_rows to = { out, 0, 0 };
    k.rows = n;
    int status = kna_attend(context, &to, NULL, NULL, &q, &k, &k, NULL);
    free(x);
    return status;
}

static void memory(void)
{
    size_t held = 0;
    kna_context *context;
    kna_memory m;
    kna_context_options o = defaults;
    o.allocator = (kna_allocator){ counted_allocate, counted_release, &held };
    EXPECT_INT(kna_context_new(&context, &o), KNA_OK);
    kna_context_memory(context, &m);
    size_t bare = held;
    EXPECT(m.now_bytes == held && m.peak_bytes == held && held > 0 && held < 2000);
    EXPECT_INT(m.allocations, 1);
    EXPECT_INT(attend(context, 10000), KNA_OK);
    kna_context_memory(context, &m);
    EXPECT(m.now_bytes == held && held > bare && m.peak_bytes >= held);
    uint64_t allocations = m.allocations;
    EXPECT_INT(attend(context, 9000), KNA_OK); /* the scratch is kept */
    kna_context_memory(context, &m);
    EXPECT_INT(m.allocations, allocations);
    size_t peak = m.peak_bytes;
    kna_context_trim(context);
    kna_context_memory(context, &m);
    EXPECT(m.now_bytes == bare && held == bare && m.peak_bytes == peak);
    kna_context_reset_peak(context);
    kna_context_memory(context, &m);
    EXPECT_INT(m.peak_bytes, bare);
    EXPECT_INT(attend(context, 10), KNA_OK); /* and allocated again */
    kna_context_memory(context, &m);
    EXPECT(m.allocations > allocations && m.peak_bytes > bare && m.peak_bytes < peak);
    kna_context_free(context);
    EXPECT_INT(held, 0);
}

/* ---- rows and their types */
static void types(void)
{
    static const char *const names[KNA_TYPE_COUNT] = { "f32", "f16", "bf16", "i8", "q8_0" };
    static const size_t bytes[KNA_TYPE_COUNT] = { 256, 128, 128, 64, 68 };
    for (int type = 0; type < KNA_TYPE_COUNT; type++) {
        EXPECT_TEXT(kna_type_name(type), names[type]);
        EXPECT_INT(kna_type_row_bytes(type, 64), bytes[type]);
        EXPECT_INT(kna_type_row_bytes(type, -1), 0);
        EXPECT_INT(kna_type_row_bytes(type, KNA_MAX_DIM + 1), 0);
        EXPECT_INT(kna_type_row_bytes(type, 33), type == KNA_Q8_0 ? 0 : bytes[type] / 64 * 33);
    }
    EXPECT(kna_type_name(-1) == NULL && kna_type_name(KNA_TYPE_COUNT) == NULL);
    EXPECT_INT(kna_type_row_bytes(KNA_TYPE_COUNT, 8), 0);
}

/* ---- int8 rows */
static void quantize_refuses(void)
{
    kna_context *context;
    int8_t out[8];
    float scales[2], x[8] = { 0 };
    EXPECT_INT(kna_context_new(&context, NULL), KNA_OK);
    EXPECT_INT(kna_quantize_i8(context, out, scales, x, -1, 4), KNA_EINVAL);
    EXPECT(strstr(kna_context_message(context), "n = -1") != NULL);
    EXPECT_INT(kna_quantize_i8(context, out, scales, x, 2, 0), KNA_EINVAL);
    EXPECT_INT(kna_quantize_i8(context, NULL, scales, x, 2, 4), KNA_EINVAL);
    EXPECT_INT(kna_quantize_i8(context, out, NULL, x, 2, 4), KNA_EINVAL);
    EXPECT_INT(kna_quantize_i8(context, out, scales, NULL, 2, 4), KNA_EINVAL);
    EXPECT_INT(kna_quantize_i8(context, NULL, NULL, NULL, 0, 4), KNA_OK);
    EXPECT_INT(kna_quantize_i8(context, out, scales, x, 1, KNA_MAX_DIM + 1), KNA_ELIMIT);
    EXPECT_INT(kna_quantize_i8(context, out, scales, x, (int64_t)KNA_MAX_ROWS + 1, 4), KNA_ELIMIT);
    x[7] = INFINITY;
    EXPECT_INT(kna_quantize_i8(context, out, scales, x, 2, 4), KNA_EVALUE);
    EXPECT(strstr(kna_context_message(context), "row 1, column 3") != NULL);
    x[7] = NAN;
    EXPECT_INT(kna_quantize_i8(context, out, scales, x, 2, 4), KNA_EVALUE);
    kna_context_free(context);
}

static void quantize_row(kna_context *context, const float *x, int64_t d)
{
    int8_t out[300];
    float scale;
    double most = 0;
    EXPECT_INT(kna_quantize_i8(context, out, &scale, x, 1, d), KNA_OK);
    for (int64_t c = 0; c < d; c++) most = fmax(most, fabs((double)x[c]));
    EXPECT_NEAR(scale, most / 127, 0x1p-23 * most / 127);
    for (int64_t c = 0; c < d; c++) {
        double off = fabs((double)x[c] - (double)scale * out[c]), bound = (double)scale * (0.5 + 127 * 0x1p-22);
        if (!EXPECT_THAT(off <= bound && out[c] >= -127, "x = %g as %d * %g", (double)x[c], out[c], (double)scale)) break;
    }
}

static void quantize_error(void)
{
    for (int cpu = KNA_CPU_REF; cpu < KNA_CPU_COUNT; cpu++) {
        kna_context *context;
        kna_context_options o = defaults;
        o.cpu = cpu;
        if (kna_context_new(&context, &o) != KNA_OK) continue;
        for (int i = 0; i < 300; i++) {
            float x[300];
            int64_t d = 1 + (int64_t)test_below(300);
            double size = exp(20 * (test_uniform() - 0.5));
            for (int64_t c = 0; c < d; c++) x[c] = test_below(10) ? (float)(size * test_normal()) : 0.0f;
            quantize_row(context, x, d);
        }
        float zeros[5] = { 0 }, scale = 7;
        int8_t out[5] = { 1, 1, 1, 1, 1 };
        EXPECT_INT(kna_quantize_i8(context, out, &scale, zeros, 1, 5), KNA_OK);
        EXPECT(scale == 0 && out[0] == 0 && out[4] == 0);
        kna_context_free(context);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(refused_options);
    TEST(option_sizes);
    TEST(cpu_levels);
    TEST(threads);
    TEST(memory);
    TEST(types);
    TEST(quantize_refuses);
    TEST(quantize_error);
    return test_end();
}
