/*
 * kernel_ref.c - the scalar reference: double accumulation in a fixed order, no vectors.
 *
 * It is the oracle every other level is tested against and the fallback of a machine without any of them. It must stay
 * obviously right, so nothing here is fast.
 */
#include "half.h"
#include "kernel.h"

#include <math.h>

static double element(int type, const char *row, float scale, size_t c)
{
    float f;
    uint16_t h;
    switch (type) {
    case KNA_F32:
        memcpy(&f, row + 4 * c, sizeof f);
        return (double)f;
    case KNA_F16:
        memcpy(&h, row + 2 * c, sizeof h);
        return (double)kna__f16_to_float(h);
    case KNA_BF16:
        memcpy(&h, row + 2 * c, sizeof h);
        return (double)kna__bf16_to_float(h);
    case KNA_I8:
        return (double)scale * (double)(signed char)row[c];
    default: {
        const char *block = row + c / KNA_Q8_BLOCK * KNA_Q8_BYTES;
        memcpy(&h, block, sizeof h);
        return (double)kna__f16_to_float(h) * (double)(signed char)block[2 + c % KNA_Q8_BLOCK];
    }
    }
}

static double dot_row(int type, const float *q, kna__span rows, size_t r, size_t d)
{
    const char *row = rows.data + r * rows.row_bytes;
    float scale = rows.scales ? rows.scales[r] : 1.0f;
    double sum = 0;
    for (size_t c = 0; c < d; c++) {
        sum += (double)q[c] * element(type, row, scale, c);
    }
    return sum;
}

/* ids NULL: rows 0 .. n - 1. */
static void dot_any(int type, float *out, size_t ldo, const float *q, size_t ldq, size_t g, kna__span rows, const int32_t *ids,
                    size_t n, size_t d)
{
    for (size_t i = 0; i < g; i++) {
        for (size_t r = 0; r < n; r++) {
            out[i * ldo + r] = (float)dot_row(type, q + i * ldq, rows, ids ? (size_t)ids[r] : r, d);
        }
    }
}

static void mix_column(int type, float *acc, const float *w, kna__span rows, const int32_t *ids, size_t n, size_t c)
{
    double sum = (double)*acc;
    for (size_t r = 0; r < n; r++) {
        size_t at = ids ? (size_t)ids[r] : r;
        float scale = rows.scales ? rows.scales[at] : 1.0f;
        sum += (double)w[r] * element(type, rows.data + at * rows.row_bytes, scale, c);
    }
    *acc = (float)sum;
}

static void mix_any(int type, float *acc, size_t lda, const float *w, size_t ldw, size_t g, kna__span rows, const int32_t *ids,
                    size_t n, size_t d)
{
    for (size_t i = 0; i < g; i++) {
        for (size_t c = 0; c < d; c++) {
            mix_column(type, acc + i * lda + c, w + i * ldw, rows, ids, n, c);
        }
    }
}

static void widen_any(int type, float *out, size_t ldo, kna__span rows, size_t n, size_t d)
{
    for (size_t r = 0; r < n; r++) {
        for (size_t c = 0; c < d; c++) {
            out[r * ldo + c] = (float)element(type, rows.data + r * rows.row_bytes, rows.scales ? rows.scales[r] : 1.0f, c);
        }
    }
}

/* One set of entry points per type. */
#define REF_TYPE(name, type)                                                                                                  \
    static void dot_##name##_ref(float *out, size_t ldo, const float *q, size_t ldq, size_t g, kna__span rows, size_t n,      \
                                 size_t d)                                                                                    \
    {                                                                                                                         \
        dot_any(type, out, ldo, q, ldq, g, rows, NULL, n, d);                                                                 \
    }                                                                                                                         \
    static void dot_at_##name##_ref(float *out, size_t ldo, const float *q, size_t ldq, size_t g, kna__span rows,             \
                                    const int32_t *ids, size_t n, size_t d)                                                   \
    {                                                                                                                         \
        dot_any(type, out, ldo, q, ldq, g, rows, ids, n, d);                                                                  \
    }                                                                                                                         \
    static void mix_##name##_ref(float *acc, size_t lda, const float *w, size_t ldw, size_t g, kna__span rows, size_t n,      \
                                 size_t d)                                                                                    \
    {                                                                                                                         \
        mix_any(type, acc, lda, w, ldw, g, rows, NULL, n, d);                                                                 \
    }                                                                                                                         \
    static void mix_at_##name##_ref(float *acc, size_t lda, const float *w, size_t ldw, size_t g, kna__span rows,             \
                                    const int32_t *ids, size_t n, size_t d)                                                   \
    {                                                                                                                         \
        mix_any(type, acc, lda, w, ldw, g, rows, ids, n, d);                                                                  \
    }                                                                                                                         \
    static void widen_##name##_ref(float *out, size_t ldo, kna__span rows, size_t n, size_t d)                                \
    {                                                                                                                         \
        widen_any(type, out, ldo, rows, n, d);                                                                                \
    }

REF_TYPE(f32, KNA_F32)
REF_TYPE(f16, KNA_F16)
REF_TYPE(bf16, KNA_BF16)
REF_TYPE(i8, KNA_I8)
REF_TYPE(q8_0, KNA_Q8_0)

static void gemm_ref(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t m, size_t n,
                     size_t inner, bool accumulate)
{
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = accumulate ? (double)c[i * ldc + j] : 0.0;
            for (size_t k = 0; k < inner; k++) {
                sum += (double)a[i * lda + k] * (double)b[k * ldb + j];
            }
            c[i * ldc + j] = (float)sum;
        }
    }
}

static void transpose_ref(float *out, size_t ldo, const float *x, size_t ldx, size_t n, size_t d)
{
    for (size_t r = 0; r < n; r++) {
        for (size_t c = 0; c < d; c++) {
            out[c * ldo + r] = x[r * ldx + c];
        }
    }
}

static float max_ref(const float *x, size_t n)
{
    float best = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        best = x[i] > best ? x[i] : best;
    }
    return best;
}

static float exp_sum_ref(float *x, float shift, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double e = exp((double)x[i] - (double)shift);
        x[i] = e < 0x1p-126 ? 0.0f : (float)e;
        sum += (double)x[i];
    }
    return (float)sum;
}

static void scale_ref(float *x, float a, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = a * x[i];
    }
}

static void axpy_ref(float *y, float a, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        y[i] = (float)((double)y[i] + (double)a * (double)x[i]);
    }
}

static void lift_ref(float *y, const float *x, float a, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float by = x[i] - a;
        y[i] = y[i] > by ? y[i] : by;
    }
}

static void tilt_ref(float *y, const float *x, float a, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        y[i] = x[i] * (y[i] - a);
    }
}

static void softcap_ref(float *x, float cap, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)((double)cap * tanh((double)x[i] / (double)cap));
    }
}

static void add_f16_ref(float *x, float a, const uint16_t *mask, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)((double)x[i] + (double)a * (double)kna__f16_to_float(mask[i]));
    }
}

static size_t select_ref(int32_t *ids, const float *x, size_t n, float threshold, int32_t base)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (x[i] >= threshold) {
            ids[count++] = base + (int32_t)i;
        }
    }
    return count;
}

static size_t count_ref(const float *x, size_t n, float threshold)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        count += x[i] >= threshold;
    }
    return count;
}

static void block_max_ref(float *out, const float *x, size_t blocks)
{
    for (size_t b = 0; b < blocks; b++) {
        out[b] = max_ref(x + b * KNA_BLOCK, KNA_BLOCK);
    }
}

static void block_sum_ref(float *out, const float *x, size_t blocks)
{
    for (size_t b = 0; b < blocks; b++) {
        double sum = 0;
        for (size_t r = 0; r < KNA_BLOCK; r++) {
            sum += (double)x[b * KNA_BLOCK + r];
        }
        out[b] = (float)sum;
    }
}

static void spread_ref(float *out, const float *x, const int32_t *first, const int32_t *count, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        for (int32_t r = 0; r < count[i]; r++) {
            out[first[i] + r] = x[i];
        }
    }
}

static void part_sum_ref(float *out, const float *x, const int32_t *first, const int32_t *count, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (int32_t r = 0; r < count[i]; r++) {
            sum += (double)x[first[i] + r];
        }
        out[i] = (float)sum;
    }
}

static float quantize_ref(int8_t *out, const float *x, size_t d)
{
    float largest = 0;
    for (size_t c = 0; c < d; c++) {
        largest = fmaxf(largest, fabsf(x[c]));
    }
    /* Below 2^-120 the reciprocal would overflow: such a row counts as zero. */
    if (!(largest >= 0x1p-120f)) {
        memset(out, 0, d);
        return 0;
    }
    float inverse = 127.0f / largest;
    for (size_t c = 0; c < d; c++) {
        out[c] = (int8_t)lrintf(x[c] * inverse);
    }
    return largest / 127.0f;
}

static void scan_ref(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *q_scale, size_t g, const uint8_t *packed,
                     const float *scales, size_t blocks, size_t d4)
{
    for (size_t i = 0; i < g; i++) {
        for (size_t row = 0; row < blocks * KNA_BLOCK; row++) {
            const uint8_t *block = packed + row / KNA_BLOCK * d4 * 4 * KNA_BLOCK;
            int32_t sum = 0;
            for (size_t c = 0; c < 4 * d4; c++) {
                sum += q[i * ldq + c] * ((int32_t)block[(c / 4 * KNA_BLOCK + row % KNA_BLOCK) * 4 + c % 4] - 128);
            }
            out[i * ldo + row] = (q_scale[i] * scales[row]) * (float)sum;
        }
    }
}

static void scan_codes_ref(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *scale, size_t g, const uint8_t *codes,
                           const float *step, size_t quads, size_t chunks)
{
    for (size_t i = 0; i < g; i++) {
        for (size_t row = 0; row < quads * KNA_QUAD; row++) {
            const uint8_t *quad = codes + row / KNA_QUAD * chunks * KNA_QUAD_BYTES;
            int32_t sum = 0;
            for (size_t c = 0; c < chunks * KNA_CODE_CHUNK; c++) {
                sum += q[i * ldq + c] * (2 * kna__code_at(quad, row % KNA_QUAD, c) - 15);
            }
            out[i * ldo + row] = fmaf(scale[i] * step[row], (float)sum, out[i * ldo + row]);
        }
    }
}

bool kna__kernels_ref(kna__kernels *table)
{
#define REF_FILL(name, type)                    \
    table->dot[type] = dot_##name##_ref;        \
    table->dot_at[type] = dot_at_##name##_ref;  \
    table->mix[type] = mix_##name##_ref;        \
    table->mix_at[type] = mix_at_##name##_ref;  \
    table->widen[type] = widen_##name##_ref;
    REF_FILL(f32, KNA_F32)
    REF_FILL(f16, KNA_F16)
    REF_FILL(bf16, KNA_BF16)
    REF_FILL(i8, KNA_I8)
    REF_FILL(q8_0, KNA_Q8_0)
    table->gemm = gemm_ref;
    table->transpose = transpose_ref;
    table->max = max_ref;
    table->exp_sum = exp_sum_ref;
    table->scale = scale_ref;
    table->axpy = axpy_ref;
    table->lift = lift_ref;
    table->tilt = tilt_ref;
    table->softcap = softcap_ref;
    table->add_f16 = add_f16_ref;
    table->select = select_ref;
    table->count = count_ref;
    table->block_max = block_max_ref;
    table->block_sum = block_sum_ref;
    table->spread = spread_ref;
    table->part_sum = part_sum_ref;
    table->quantize = quantize_ref;
    table->scan = scan_ref;
    table->scan_codes = scan_codes_ref;
    return true;
}
