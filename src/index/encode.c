/* encode.c - rows of the cache into the index, and the check that they still say the same. */
#include "../kernel/half.h"
#include "index.h"

enum { TASK_BLOCKS = 16 };

typedef struct encode_job {
    kna_index *index;
    const kna__kernels *kernels;
    const kna_rows *k;
    int64_t first, end, first_block, blocks;
} encode_job;

/* 0 * x sums to 0 unless some x is NaN or infinite: a vector's way to look for them. */
static bool is_finite(const kna__kernels *kernels, const float *x, int64_t d)
{
    static const float zeros[KNA_MAX_DIM];
    kna__span row = { (const char *)x, 0, NULL };
    float sum;
    kernels->dot[KNA_F32](&sum, 1, zeros, 0, 1, row, 1, (size_t)d);
    return sum == 0;
}

/* A row as f32; one that holds NaN or infinity counts as zero, so that garbage in an unused cell poisons nothing. */
static void read_row(const kna__kernels *kernels, float *x, const kna_rows *rows, int64_t head, int64_t row)
{
    kernels->widen[rows->type](x, (size_t)rows->dim, kna__row_span(rows, head, row), 1, (size_t)rows->dim);
    if (!is_finite(kernels, x, rows->dim)) {
        memset(x, 0, (size_t)rows->dim * sizeof *x);
    }
}

static float encode_key(const kna__kernels *kernels, int8_t *out, const kna_rows *k, int64_t head, int64_t row)
{
    float x[KNA_MAX_DIM];
    read_row(kernels, x, k, head, row);
    return kernels->quantize(out, x, (size_t)k->dim);
}

static void encode_whole_keys(const encode_job *job, uint8_t *packed, float *scales, int64_t head, int64_t first)
{
    uint32_t rows[KNA_BLOCK * KNA_MAX_DIM / 4];
    size_t d4 = job->index->d4;
    for (int64_t r = 0; r < KNA_BLOCK; r++) {
        uint32_t *row = rows + (size_t)r * d4;
        row[d4 - 1] = 0;
        scales[r] = encode_key(job->kernels, (int8_t *)row, job->k, head, first + r);
    }
    kna__pack_block(job->kernels, packed, rows, d4);
}

static void encode_some_keys(const encode_job *job, uint8_t *packed, float *scales, int64_t head, int64_t first)
{
    int8_t key[KNA_MAX_DIM];
    for (int64_t r = 0; r < KNA_BLOCK; r++) {
        if (first + r >= job->first && first + r < job->end) {
            scales[r] = encode_key(job->kernels, key, job->k, head, first + r);
            kna__pack_row(packed, (size_t)r, key, (size_t)job->index->d, job->index->d4);
        }
    }
}

static void encode_block(const encode_job *job, int64_t head, int64_t block)
{
    kna_index *index = job->index;
    uint8_t *packed = index->packed + (size_t)(head * index->capacity + block) * index->d4 * 4 * KNA_BLOCK;
    float *scales = index->scales + (head * index->capacity + block) * KNA_BLOCK;
    int64_t first = block * KNA_BLOCK;
    if (first >= job->first && first + KNA_BLOCK <= job->end) {
        encode_whole_keys(job, packed, scales, head, first);
    } else {
        encode_some_keys(job, packed, scales, head, first);
    }
}

/* A task: a few blocks of all heads, whose rows lie side by side in llama.cpp's caches. */
static void encode_task(void *argument, int64_t task, int worker)
{
    const encode_job *job = argument;
    (void)worker;
    int64_t last = job->first_block + job->blocks, first = job->first_block + task * TASK_BLOCKS;
    int64_t end = first + TASK_BLOCKS < last ? first + TASK_BLOCKS : last;
    for (int64_t block = first; block < end; block++) {
        for (int64_t head = 0; head < job->index->heads; head++) {
            encode_block(job, head, block);
        }
    }
}

static int check_view(kna_context *context, const kna_rows *rows, const char *name)
{
    if (rows->rows < 0 || rows->head_stride_bytes < 0 || rows->row_stride_bytes < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "index: %s: rows and strides must not be negative", name);
    }
    if (!kna__row_bytes(rows->type, rows->dim)) {
        const char *type = kna_type_name(rows->type);
        return KNA_FAIL(context, KNA_ETYPE, "index: %s: type %s has no rows of %lld numbers", name, type ? type : "unknown",
                        (long long)rows->dim);
    }
    if (rows->rows && (!rows->data || (rows->type == KNA_I8) != (rows->scales != NULL))) {
        return KNA_FAIL(context, KNA_EINVAL, "index: %s: %s", name,
                        rows->data ? "scales go with type i8 and only with it" : "null data");
    }
    return KNA_OK;
}

int kna__index_check(kna_context *context, const kna_index *index, const kna_rows *k, const kna_rows *v)
{
    if (!index || !k || !v) {
        return KNA_FAIL(context, KNA_EINVAL, "index: index, keys and values must not be null");
    }
    if (k->heads != index->heads || k->dim != index->d || v->heads != index->heads || v->dim != index->dv || v->rows < k->rows) {
        return KNA_FAIL(context, KNA_ESHAPE, "index: keys (%lld,%lld,%lld), values (%lld,%lld,%lld); the index has %lld heads, d = "
                        "%lld, dv = %lld", (long long)k->heads, (long long)k->rows, (long long)k->dim, (long long)v->heads,
                        (long long)v->rows, (long long)v->dim, (long long)index->heads, (long long)index->d,
                        (long long)index->dv);
    }
    KNA_TRY(check_view(context, k, "keys"));
    return check_view(context, v, "values");
}

int kna_index_update(kna_context *context, kna_index *index, const kna_rows *k, const kna_rows *v, int64_t first, int64_t count)
{
    context->message[0] = 0;
    KNA_TRY(kna__index_check(context, index, k, v));
    if (k->rows > KNA_MAX_ROWS) {
        return KNA_FAIL(context, KNA_ELIMIT, "index: %lld rows are above the limit %d", (long long)k->rows, KNA_MAX_ROWS);
    }
    if (first < 0 || count < 0 || first > k->rows - count) {
        return KNA_FAIL(context, KNA_EINVAL, "index: rows %lld + %lld are outside the %lld given", (long long)first,
                        (long long)count, (long long)k->rows);
    }
    if (!count) {
        return KNA_OK;
    }
    KNA_TRY(kna__index_reserve(context, index, first + count));
    for (int64_t row = first; row < first + count; row++) {
        index->present_rows += !kna__index_has(index, row);
        index->present[row / KNA_BLOCK] |= (uint16_t)(1u << row % KNA_BLOCK);
    }
    index->rows = index->rows > first + count ? index->rows : first + count;
    if (index->method == KNA_KNN) {
        kna__clusters_touch(index, first, count);
        return KNA_OK;
    }
    encode_job job = { index, context->kernels, k, first, first + count, first / KNA_BLOCK, 0 };
    job.blocks = (first + count - 1) / KNA_BLOCK - job.first_block + 1;
    int threads = count * index->heads < 64 ? 1 : context->threads; /* a few rows cost less than waking a thread */
    kna__parallel_for(threads, (job.blocks + TASK_BLOCKS - 1) / TASK_BLOCKS, encode_task, &job);
    return KNA_OK;
}

static bool row_is_stale(const kna__kernels *kernels, const kna_index *index, const kna_rows *k, int64_t head, int64_t row)
{
    int8_t now[KNA_MAX_DIM], then[KNA_MAX_DIM];
    float scale = encode_key(kernels, now, k, head, row);
    kna__unpack_row(then, kna__index_packed(index, head, row / KNA_BLOCK), (size_t)(row % KNA_BLOCK), (size_t)index->d);
    float scale_then = kna__index_scales(index, head, row / KNA_BLOCK)[row % KNA_BLOCK];
    return memcmp(now, then, (size_t)index->d) || memcmp(&scale, &scale_then, sizeof scale);
}

/* The first of the first n rows that is present, from `row` on, round the end; -1: none is. */
static int64_t present_from(const kna_index *index, int64_t row, int64_t n)
{
    int64_t at = kna__index_next(index, row, n, true);
    if (at == n) {
        at = kna__index_next(index, 0, row, true);
        return at < row ? at : -1;
    }
    return at;
}

int kna_index_audit(kna_context *context, int64_t *stale, const kna_index *index, const kna_rows *k, const kna_rows *v,
                    int64_t samples, uint64_t seed)
{
    context->message[0] = 0;
    if (!stale) {
        return KNA_FAIL(context, KNA_EINVAL, "index: stale must not be null");
    }
    *stale = 0;
    KNA_TRY(kna__index_check(context, index, k, v));
    if (samples < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "index: samples = %lld must not be negative", (long long)samples);
    }
    int64_t rows = k->rows < index->rows ? k->rows : index->rows;
    for (int64_t i = 0; i < samples && rows; i++) {
        int64_t row = present_from(index, (int64_t)(kna__random(seed, 0, (uint64_t)i) % (uint64_t)rows), rows);
        int64_t head = (int64_t)(kna__random(seed, 1, (uint64_t)i) % (uint64_t)index->heads);
        if (row < 0) {
            break;
        }
        *stale += index->method == KNA_KNN ? kna__cluster_is_stale(context->kernels, index, k, v, head, row / KNA_MEMBERS)
                                           : row_is_stale(context->kernels, index, k, head, row);
    }
    return KNA_OK;
}
