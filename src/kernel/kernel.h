/*
 * kernel.h - arithmetic on blocks of rows, one table of functions per CPU level.
 *
 * Numerics contract (u = 2^-24, eta = 2^-149 the smallest f32; products and sums in f32 unless said, none overflowing; "ref"
 * accumulates in double, in row or column order). test/check holds every level to it:
 *   dot     |out - exact| <= (d + 4) * u * sum_c |q_c * x_c| + (d + 1) * eta, x the row as its type says it
 *           (i8: eta times the scale if that is above 1, for the scale is applied to the sum)
 *   mix     |acc - exact| <= (n + 2) * u * (|acc_0| + sum_r |w_r * x_r|) + n * eta, rows added in order for each column
 *           (i8: 129 * n * eta, for the scale is applied to the weight)
 *   gemm    as dot, over the inner length, with |c_0| in the sum when accumulating
 *   exp     x - shift <= 88, rounded once: relative error <= (2 + |x - shift|) * u where the result is >= 2^-125; below that
 *           it may be 0, and is where x - shift < -88, also for -inf; the sum is that of the values written, (n + 8) * u relative
 *   tanh    absolute error <= cap * 6u
 *   scale, axpy, add_f16, lift: one rounding; tilt: two; block_sum: 16u * sum |x|;
 *   part_sum: count * u * sum |x|
 *   widen, transpose, select, count, block_max, quantize, scan, scan_codes, spread: the same bits on every level
 * Cutting the work differently (queries and rows of dot and mix, rows and columns of gemm) gives the same bits, and so do dot_at
 * and mix_at row by row (for mix, the reference excepted: it rounds once per call).
 * A NaN operand makes the results that use it NaN; select and count take none; max, block_max and quantize must not be given any.
 * No kernel reads or writes outside the rows it is given: every tail is handled by masks or copies, never by padding.
 *
 * Levels are filled narrowest to widest, each overriding what it does better; a level may leave entries as they are.
 */
#ifndef KNA_KERNEL_H
#define KNA_KERNEL_H

#include "../base/base.h"

/* The index keeps keys in blocks of this many rows, interleaved for scan(); see pack below. */
#define KNA_BLOCK 16

/* Rows of one head: n is given apart. scales: per row, KNA_I8 only. */
typedef struct kna__span {
    const char *data;
    size_t row_bytes;    /* stride */
    const float *scales;
} kna__span;

typedef struct kna__kernels {
    int cpu;

    /* out[i*ldo + r] = <q_i, row_r>; q_i = q + i*ldq; i < g, r < n. */
    void (*dot[KNA_TYPE_COUNT])(float *out, size_t ldo, const float *q, size_t ldq, size_t g, kna__span rows, size_t n, size_t d);
    /* out[i*ldo + r] = <q_i, row_ids[r]>. */
    void (*dot_at[KNA_TYPE_COUNT])(float *out, size_t ldo, const float *q, size_t ldq, size_t g, kna__span rows, const int32_t *ids,
                                   size_t n, size_t d);
    /* acc_i[c] += sum_r w[i*ldw + r] * row_r[c]; acc_i = acc + i*lda. */
    void (*mix[KNA_TYPE_COUNT])(float *acc, size_t lda, const float *w, size_t ldw, size_t g, kna__span rows, size_t n, size_t d);
    /* acc_i[c] += sum_r w[i*ldw + r] * row_ids[r][c]. */
    void (*mix_at[KNA_TYPE_COUNT])(float *acc, size_t lda, const float *w, size_t ldw, size_t g, kna__span rows, const int32_t *ids,
                                   size_t n, size_t d);
    /* out[r*ldo + c] = row_r[c] */
    void (*widen[KNA_TYPE_COUNT])(float *out, size_t ldo, kna__span rows, size_t n, size_t d);

    /* c[i*ldc + j] (+)= sum_k a[i*lda + k] * b[k*ldb + j]; i < m, j < n, k < inner. */
    void (*gemm)(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t m, size_t n, size_t inner,
                 bool accumulate);
    /* out[c*ldo + r] = x[r*ldx + c]; r < n, c < d. */
    void (*transpose)(float *out, size_t ldo, const float *x, size_t ldx, size_t n, size_t d);

    float (*max)(const float *x, size_t n);                /* -inf for n = 0 */
    float (*exp_sum)(float *x, float shift, size_t n);     /* x := exp(x - shift), returns the sum; shift finite */
    void (*scale)(float *x, float a, size_t n);            /* x := a * x */
    void (*axpy)(float *y, float a, const float *x, size_t n); /* y := y + a * x */
    void (*lift)(float *y, const float *x, float a, size_t n); /* y := max(y, x - a) */
    void (*tilt)(float *y, const float *x, float a, size_t n); /* y := x * (y - a) */
    void (*softcap)(float *x, float cap, size_t n);        /* x := cap * tanh(x / cap) */
    void (*add_f16)(float *x, float a, const uint16_t *mask, size_t n); /* x := x + a * mask */

    /* Indices r with x[r] >= threshold, ascending, offset by `base`; returns how many. ids has room for n. */
    size_t (*select)(int32_t *ids, const float *x, size_t n, float threshold, int32_t base);
    /* How many x[r] >= threshold. */
    size_t (*count)(const float *x, size_t n, float threshold);
    /* out[b] = max of x[16b .. 16b+15]; b < blocks. */
    void (*block_max)(float *out, const float *x, size_t blocks);
    /* out[b] = sum of x[16b .. 16b+15]. */
    void (*block_sum)(float *out, const float *x, size_t blocks);

    /* Parts of a vector: out[first[i] .. first[i] + count[i] - 1] = x[i], i < n. */
    void (*spread)(float *out, const float *x, const int32_t *first, const int32_t *count, size_t n);
    /* out[i] = sum of x[first[i] .. first[i] + count[i] - 1]. */
    void (*part_sum)(float *out, const float *x, const int32_t *first, const int32_t *count, size_t n);

    /* int8 with one scale: nearest even of x * (127 / max|x|); returns the scale max|x| / 127. */
    float (*quantize)(int8_t *out, const float *x, size_t d);
    /*
     * Scores of g int8 queries against packed blocks: out[i*ldo + 16b + r] = (q_scale[i] * scales[16b + r]) * <q_i, key>.
     * Packing: block b is d4 groups (d4 = ceil(d/4)) of 16 rows of 4 numbers, each number + 128 as a byte:
     * byte[((b*d4 + c/4)*16 + r)*4 + c%4]. q_i has 4*d4 numbers in -127..127, zero padded; ldq its stride in bytes.
     */
    void (*scan)(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *q_scale, size_t g, const uint8_t *packed,
                 const float *scales, size_t blocks, size_t d4);
    /*
     * Products of g int8 queries with rows of 4-bit codes 0..15, which stand for code - 7.5:
     * out[i*ldo + 4b + r] += (scale[i] * step[4b + r]) * (2 <q_i, codes> - 15 sum(q_i)), the bracket exact, product and sum rounded once.
     * q_i has 32*chunks numbers in -127..127, zero padded.
     * Packing: a quad b is four rows, cut into chunks of 32 columns: byte[((b*chunks + c)*4 + r)*16 + i] holds column 32c + i
     * in its low half and column 32c + 16 + i in its high half.
     */
    void (*scan_codes)(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *scale, size_t g, const uint8_t *codes,
                       const float *step, size_t quads, size_t chunks);
} kna__kernels;

enum { KNA_QUAD = 4, KNA_CODE_CHUNK = 32, KNA_QUAD_BYTES = 64 /* of a chunk */ };

/* |x|^2. */
static inline float kna__square(const kna__kernels *kernels, const float *x, int64_t n)
{
    kna__span row = { (const char *)x, 0, NULL };
    float square;
    kernels->dot[KNA_F32](&square, 1, x, 0, 1, row, 1, (size_t)n);
    return square;
}

/* cpu.c - the table of a level (never NULL for a level that is present). */
const kna__kernels *kna__kernels_get(int cpu);

/* One filler per level; each only overrides. A build without the instruction set leaves the table alone and returns false. */
bool kna__kernels_ref(kna__kernels *table);
bool kna__kernels_avx2(kna__kernels *table);
bool kna__kernels_avx512(kna__kernels *table);
bool kna__kernels_avx512vnni(kna__kernels *table);
bool kna__kernels_neon(kna__kernels *table);

/* types.c */
size_t kna__row_bytes(int type, int64_t d);
/* First number of a row that is NaN or infinite, or -1. */
int64_t kna__find_nonfinite(int type, const char *row, float scale, int64_t d);

/* pack.c - put row r (0..15) of a block in its place; d4 groups. */
void kna__pack_row(uint8_t *block, size_t r, const int8_t *row, size_t d, size_t d4);
/* All 16 rows at once, a transpose of words: rows (16, d4) words of four int8, zero padded; clobbered. 7 times faster. */
void kna__pack_block(const kna__kernels *kernels, uint8_t *block, uint32_t *rows, size_t d4);
void kna__unpack_row(int8_t *row, const uint8_t *block, size_t r, size_t d);

/* codes.c - put row r (0..3) of a quad in its place: codes 0..15, zero padded to 32 * chunks columns; and get one back. */
void kna__pack_codes(uint8_t *quad, size_t r, const uint8_t *row, size_t chunks);
uint8_t kna__code_at(const uint8_t *quad, size_t r, size_t column);

/*
 * topk.c - the k largest of x[0..n), ties by lower index; n > k >= 1. NaN-free; -inf allowed.
 * Out: ids ascending, exactly k. Scratch: n int32; n/16 + 1 + n floats.
 */
void kna__topk(const kna__kernels *kernels, int32_t *ids, const float *x, size_t n, size_t k, int32_t *scratch_ids,
               float *scratch_max);
/* The value of the k-th largest of x (k >= 1), reordering x. */
float kna__kth_largest(float *x, size_t n, size_t k);

#endif
