/* kernel_avx2.c - AVX2 + FMA + F16C: the float template on 8 lanes, int8 by widening to 16 bits. */
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "half.h"
#include "kernel.h"

#if defined(__x86_64__)

/* Targets are set here, per function, and not by compiler flags: any build of src/ then holds every level. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt")
#endif

#define V_NAME(x) x##_avx2
#define V_W 8
#define V_DOT_G 3
#define V_MR 6
#define V_NV 2
typedef __m256 vf;

#define v_load(p) _mm256_loadu_ps(p)
#define v_store(p, x) _mm256_storeu_ps(p, x)
#define v_set1(a) _mm256_set1_ps(a)
#define v_zero() _mm256_setzero_ps()
#define v_add(a, b) _mm256_add_ps(a, b)
#define v_sub(a, b) _mm256_sub_ps(a, b)
#define v_mul(a, b) _mm256_mul_ps(a, b)
#define v_div(a, b) _mm256_div_ps(a, b)
#define v_max(a, b) _mm256_max_ps(a, b)
#define v_min(a, b) _mm256_min_ps(a, b)
#define v_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define v_round(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

static inline __m256i first_lanes(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf v_loadn(const float *p, size_t n)
{
    return _mm256_maskload_ps(p, first_lanes(n));
}

static inline void v_storen(float *p, vf x, size_t n)
{
    _mm256_maskstore_ps(p, first_lanes(n), x);
}

static inline vf v_copysign(vf x, vf y)
{
    vf sign = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(sign, x), _mm256_and_ps(sign, y));
}

static inline vf v_pow2(vf n)
{
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

static inline vf v_zero_below(vf x, vf y, float limit)
{
    return _mm256_andnot_ps(_mm256_cmp_ps(y, _mm256_set1_ps(limit), _CMP_LT_OQ), x);
}

static inline __m128 halves_sum(vf x)
{
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}

static inline float v_sum(vf x)
{
    __m128 s = halves_sum(x);
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline float v_hmax(vf x)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

static inline void v_sum4(float *out, vf a, vf b, vf c, vf d)
{
    vf ab = _mm256_hadd_ps(a, b), cd = _mm256_hadd_ps(c, d);
    _mm_storeu_ps(out, halves_sum(_mm256_hadd_ps(ab, cd)));
}

static inline void v_max4(float *out, vf a, vf b, vf c, vf d)
{
    vf ab = v_max(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vf cd = v_max(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    vf abcd = v_max(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

/* ---- loads of the row types; the partial ones copy into a zeroed buffer first. */
static inline vf vt_f32_load(const char *row, size_t c)
{
    return _mm256_loadu_ps((const float *)(const void *)row + c);
}

static inline vf vt_f32_loadn(const char *row, size_t c, size_t n)
{
    return v_loadn((const float *)(const void *)row + c, n);
}

static inline __m128i eight_halves(const char *row, size_t c)
{
    return _mm_loadu_si128((const __m128i *)(const void *)(row + 2 * c));
}

static inline __m128i some_halves(const char *row, size_t c, size_t n)
{
    uint16_t buffer[8] = { 0 };
    memcpy(buffer, row + 2 * c, 2 * n);
    return _mm_loadu_si128((const __m128i *)(const void *)buffer);
}

static inline vf vt_f16_load(const char *row, size_t c)
{
    return _mm256_cvtph_ps(eight_halves(row, c));
}

static inline vf vt_f16_loadn(const char *row, size_t c, size_t n)
{
    return _mm256_cvtph_ps(some_halves(row, c, n));
}

static inline vf widen_bf16(__m128i x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

static inline vf vt_bf16_load(const char *row, size_t c)
{
    return widen_bf16(eight_halves(row, c));
}

static inline vf vt_bf16_loadn(const char *row, size_t c, size_t n)
{
    return widen_bf16(some_halves(row, c, n));
}

static inline vf vt_i8_load(const char *row, size_t c)
{
    __m128i x = _mm_loadl_epi64((const __m128i *)(const void *)(row + c));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
}

static inline vf vt_i8_loadn(const char *row, size_t c, size_t n)
{
    char buffer[8] = { 0 };
    memcpy(buffer, row + c, n);
    return vt_i8_load(buffer, 0);
}

static inline vf vt_q8_0_load(const char *row, size_t c)
{
    const char *block = row + c / KNA_Q8_BLOCK * KNA_Q8_BYTES;
    uint16_t scale;
    memcpy(&scale, block, sizeof scale);
    return v_mul(v_set1(_cvtsh_ss(scale)), vt_i8_load(block + 2, c % KNA_Q8_BLOCK));
}

/* q8_0 rows are whole blocks of 32: there is no tail. */
static inline vf vt_q8_0_loadn(const char *row, size_t c, size_t n)
{
    (void)n;
    return vt_q8_0_load(row, c);
}

#include "kernel_tmpl.h"

/* 8 x 8 in registers; edges one by one. */
static void transpose8(float *out, size_t ldo, const float *x, size_t ldx)
{
    __m256 r[8], t[8];
    V_UNROLL
    for (size_t i = 0; i < 8; i++) {
        r[i] = _mm256_loadu_ps(x + i * ldx);
    }
    V_UNROLL
    for (size_t i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    V_UNROLL
    for (size_t i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    V_UNROLL
    for (size_t i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * ldo, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * ldo, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

static void transpose_avx2(float *out, size_t ldo, const float *x, size_t ldx, size_t n, size_t d)
{
    for (size_t r = 0; r < n; r += 8) {
        for (size_t c = 0; c < d; c += 8) {
            if (r + 8 <= n && c + 8 <= d) {
                transpose8(out + c * ldo + r, ldo, x + r * ldx + c, ldx);
                continue;
            }
            for (size_t i = r; i < n && i < r + 8; i++) {
                for (size_t j = c; j < d && j < c + 8; j++) {
                    out[j * ldo + i] = x[i * ldx + j];
                }
            }
        }
    }
}

/* Few scores pass a threshold, so a mask per vector is enough: its set bits are walked one by one. */
static size_t select_avx2(int32_t *ids, const float *x, size_t n, float threshold, int32_t base)
{
    vf limit = v_set1(threshold);
    size_t count = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
        unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(v_load(x + i), limit, _CMP_GE_OQ));
        for (; mask; mask &= mask - 1) {
            ids[count++] = base + (int32_t)i + __builtin_ctz(mask);
        }
    }
    for (; i < n; i++) {
        if (x[i] >= threshold) {
            ids[count++] = base + (int32_t)i;
        }
    }
    return count;
}

static size_t count_avx2(const float *x, size_t n, float threshold)
{
    vf limit = v_set1(threshold);
    size_t count = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
        count += (unsigned)__builtin_popcount((unsigned)_mm256_movemask_ps(_mm256_cmp_ps(v_load(x + i), limit, _CMP_GE_OQ)));
    }
    for (; i < n; i++) {
        count += x[i] >= threshold;
    }
    return count;
}

static float quantize_avx2(int8_t *out, const float *x, size_t d)
{
    vf sign = _mm256_set1_ps(-0.0f), most = v_zero();
    for (size_t c = 0; c < d; c += 8) {
        most = v_max(most, _mm256_andnot_ps(sign, c + 8 <= d ? v_load(x + c) : v_loadn(x + c, d - c)));
    }
    float largest = v_hmax(most);
    if (!(largest >= 0x1p-120f)) {
        memset(out, 0, d);
        return 0;
    }
    vf inverse = v_set1(127.0f / largest);
    for (size_t c = 0; c < d; c += 8) {
        size_t count = c + 8 <= d ? 8 : d - c;
        __m256i y = _mm256_cvtps_epi32(v_mul(count == 8 ? v_load(x + c) : v_loadn(x + c, count), inverse));
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
        __m128i bytes = _mm_packs_epi16(words, words);
        if (count == 8) {
            _mm_storel_epi64((__m128i *)(void *)(out + c), bytes);
        } else {
            memcpy(out + c, &bytes, count);
        }
    }
    return largest / 127.0f;
}

/*
 * One block against up to four queries. vpmaddubsw wants one operand unsigned: <q,key> = <q with the signs of key, |key|>. Its
 * pairs fit 16 bits because |q| <= 127 and |key| <= 128. Four columns of a row end in one lane, so nothing is summed across lanes.
 */
static inline __attribute__((always_inline)) void scan_tile(float *out, size_t ldo, const int8_t *q, size_t ldq,
                                                            const float *q_scale, size_t g, const uint8_t *block,
                                                            const float *scales, size_t d4)
{
    __m256i sum[4][2];
    __m256i ones = _mm256_set1_epi16(1), offset = _mm256_set1_epi8(-128);
    V_UNROLL
    for (size_t i = 0; i < g; i++) {
        sum[i][0] = sum[i][1] = _mm256_setzero_si256();
    }
    for (size_t c = 0; c < d4; c++) {
        const __m256i *at = (const __m256i *)(const void *)(block + c * 4 * KNA_BLOCK);
        V_UNROLL
        for (size_t x = 0; x < 2; x++) {
            __m256i key = _mm256_xor_si256(_mm256_loadu_si256(at + x), offset);
            __m256i size = _mm256_abs_epi8(key);
            V_UNROLL
            for (size_t i = 0; i < g; i++) {
                int32_t four;
                memcpy(&four, q + i * ldq + 4 * c, sizeof four);
                __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(_mm256_set1_epi32(four), key));
                sum[i][x] = _mm256_add_epi32(sum[i][x], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    V_UNROLL
    for (size_t i = 0; i < g; i++) {
        V_UNROLL
        for (size_t x = 0; x < 2; x++) {
            vf factor = v_mul(v_set1(q_scale[i]), v_load(scales + 8 * x));
            v_store(out + i * ldo + 8 * x, v_mul(factor, _mm256_cvtepi32_ps(sum[i][x])));
        }
    }
}

static void scan_avx2(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *q_scale, size_t g, const uint8_t *packed,
                      const float *scales, size_t blocks, size_t d4)
{
    for (size_t b = 0; b < blocks; b++) {
        const uint8_t *block = packed + b * d4 * 4 * KNA_BLOCK;
        const float *s = scales + b * KNA_BLOCK;
        float *o = out + b * KNA_BLOCK;
        size_t i = 0;
        prefetch_avx2((const char *)block + 2 * V_AHEAD, d4 * 4 * KNA_BLOCK);
        for (; i + 4 <= g; i += 4) {
            scan_tile(o + i * ldo, ldo, q + i * ldq, ldq, q_scale + i, 4, block, s, d4);
        }
        if (g - i == 3) {
            scan_tile(o + i * ldo, ldo, q + i * ldq, ldq, q_scale + i, 3, block, s, d4);
        } else if (g - i == 2) {
            scan_tile(o + i * ldo, ldo, q + i * ldq, ldq, q_scale + i, 2, block, s, d4);
        } else if (g - i == 1) {
            scan_tile(o + i * ldo, ldo, q + i * ldq, ldq, q_scale + i, 1, block, s, d4);
        }
    }
}

/* ---- codes of four bits */

/* Two rows to a vector, 16 columns of each; pairs fit 16 bits, as 2 * 15 * 127 does, and so do those of low and high halves added up. */
static inline __m256i code_rows(const int8_t *q, const uint8_t *codes, size_t chunks)
{
    __m256i sum = _mm256_setzero_si256(), nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (size_t c = 0; c < chunks; c++) {
        __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)(codes + c * KNA_QUAD_BYTES));
        __m256i low = _mm256_and_si256(both, nibble), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
        const __m128i *at = (const __m128i *)(const void *)(q + c * KNA_CODE_CHUNK);
        __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, _mm256_broadcastsi128_si256(_mm_loadu_si128(at))),
                                         _mm256_maddubs_epi16(high, _mm256_broadcastsi128_si256(_mm_loadu_si128(at + 1))));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    return sum;
}

static int32_t sum_of(const int8_t *q, size_t d)
{
    int32_t sum = 0;
    for (size_t c = 0; c < d; c++) {
        sum += q[c];
    }
    return sum;
}

static void scan_codes_avx2(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *scale, size_t g,
                            const uint8_t *codes, const float *step, size_t quads, size_t chunks)
{
    for (size_t i = 0; i < g; i++) {
        const int8_t *query = q + i * ldq;
        __m128i excess = _mm_set1_epi32(15 * sum_of(query, chunks * KNA_CODE_CHUNK));
        for (size_t b = 0; b < quads; b++) {
            const uint8_t *quad = codes + b * chunks * KNA_QUAD_BYTES;
            __m256i halves = _mm256_hadd_epi32(code_rows(query, quad, chunks), code_rows(query, quad + KNA_QUAD_BYTES / 2, chunks));
            /* 0 0 2 2 | 1 1 3 3 */
            halves = _mm256_hadd_epi32(halves, halves);
            __m128i rows = _mm_unpacklo_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
            __m128 sums = _mm_cvtepi32_ps(_mm_sub_epi32(_mm_add_epi32(rows, rows), excess));
            float *at = out + i * ldo + b * KNA_QUAD;
            __m128 factor = _mm_mul_ps(_mm_set1_ps(scale[i]), _mm_loadu_ps(step + b * KNA_QUAD));
            _mm_storeu_ps(at, _mm_fmadd_ps(factor, sums, _mm_loadu_ps(at)));
        }
    }
}

bool kna__kernels_avx2(kna__kernels *table)
{
    V_FILL(table)
    table->transpose = transpose_avx2;
    table->select = select_avx2;
    table->count = count_avx2;
    table->quantize = quantize_avx2;
    table->scan = scan_avx2;
    table->scan_codes = scan_codes_avx2;
    return true;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

bool kna__kernels_avx2(kna__kernels *table)
{
    (void)table;
    return false;
}

#endif
