/* kernel_avx512.c - AVX-512 F/BW/DQ/VL: the float template on 16 lanes with masked tails; VNNI for the int8 scan. */
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "half.h"
#include "kernel.h"

#if defined(__x86_64__)

/* Targets are set here, per function, and not by compiler flags: any build of src/ then holds every level. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define V_NAME(x) x##_avx512
#define V_W 16
#define V_DOT_G 4
#define V_MR 6
#define V_NV 4
typedef __m512 vf;

#define v_load(p) _mm512_loadu_ps(p)
#define v_store(p, x) _mm512_storeu_ps(p, x)
#define v_set1(a) _mm512_set1_ps(a)
#define v_zero() _mm512_setzero_ps()
#define v_add(a, b) _mm512_add_ps(a, b)
#define v_sub(a, b) _mm512_sub_ps(a, b)
#define v_mul(a, b) _mm512_mul_ps(a, b)
#define v_div(a, b) _mm512_div_ps(a, b)
#define v_max(a, b) _mm512_max_ps(a, b)
#define v_min(a, b) _mm512_min_ps(a, b)
#define v_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define v_round(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define v_pow2(n) _mm512_scalef_ps(_mm512_set1_ps(1.0f), n)
#define v_sum(x) _mm512_reduce_add_ps(x)
#define v_hmax(x) _mm512_reduce_max_ps(x)

static inline __mmask16 first_lanes(size_t n)
{
    return (__mmask16)((1u << n) - 1);
}

static inline vf v_loadn(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
}

static inline void v_storen(float *p, vf x, size_t n)
{
    _mm512_mask_storeu_ps(p, first_lanes(n), x);
}

static inline vf v_copysign(vf x, vf y)
{
    vf sign = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(sign, x), _mm512_and_ps(sign, y));
}

static inline vf v_zero_below(vf x, vf y, float limit)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_set1_ps(limit), _CMP_NLT_UQ), x);
}

/* Lanes of four vectors joined side by side: in pairs, in fours, then 512 to 256 to 128 bits. */
#define V_JOIN4(name, join, join256, join128)                                                              \
    static inline void name(float *out, vf a, vf b, vf c, vf d)                                            \
    {                                                                                                      \
        vf ab = join(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));                                  \
        vf cd = join(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));                                  \
        vf all = join(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));                   \
        __m256 half = join256(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));                \
        _mm_storeu_ps(out, join128(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));         \
    }
V_JOIN4(v_sum4, _mm512_add_ps, _mm256_add_ps, _mm_add_ps)
V_JOIN4(v_max4, _mm512_max_ps, _mm256_max_ps, _mm_max_ps)

/* ---- loads of the row types; masks cut the tails. */
static inline vf vt_f32_load(const char *row, size_t c)
{
    return _mm512_loadu_ps((const float *)(const void *)row + c);
}

static inline vf vt_f32_loadn(const char *row, size_t c, size_t n)
{
    return v_loadn((const float *)(const void *)row + c, n);
}

static inline __m256i some_halves(const char *row, size_t c, size_t n)
{
    return _mm256_maskz_loadu_epi16(first_lanes(n), row + 2 * c);
}

static inline vf vt_f16_load(const char *row, size_t c)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * c)));
}

static inline vf vt_f16_loadn(const char *row, size_t c, size_t n)
{
    return _mm512_cvtph_ps(some_halves(row, c, n));
}

static inline vf widen_bf16(__m256i x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

static inline vf vt_bf16_load(const char *row, size_t c)
{
    return widen_bf16(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * c)));
}

static inline vf vt_bf16_loadn(const char *row, size_t c, size_t n)
{
    return widen_bf16(some_halves(row, c, n));
}

static inline vf widen_i8(__m128i x)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x));
}

static inline vf vt_i8_load(const char *row, size_t c)
{
    return widen_i8(_mm_loadu_si128((const __m128i *)(const void *)(row + c)));
}

static inline vf vt_i8_loadn(const char *row, size_t c, size_t n)
{
    return widen_i8(_mm_maskz_loadu_epi8(first_lanes(n), row + c));
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

static size_t select_avx512(int32_t *ids, const float *x, size_t n, float threshold, int32_t base)
{
    vf limit = v_set1(threshold);
    size_t count = 0;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 live = n - i >= 16 ? (__mmask16)0xffff : first_lanes(n - i);
        unsigned mask = _mm512_mask_cmp_ps_mask(live, _mm512_maskz_loadu_ps(live, x + i), limit, _CMP_GE_OQ);
        for (; mask; mask &= mask - 1) {
            ids[count++] = base + (int32_t)i + __builtin_ctz(mask);
        }
    }
    return count;
}

static size_t count_avx512(const float *x, size_t n, float threshold)
{
    vf limit = v_set1(threshold);
    size_t count = 0;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 live = n - i >= 16 ? (__mmask16)0xffff : first_lanes(n - i);
        unsigned mask = _mm512_mask_cmp_ps_mask(live, _mm512_maskz_loadu_ps(live, x + i), limit, _CMP_GE_OQ);
        count += (unsigned)__builtin_popcount(mask);
    }
    return count;
}

bool kna__kernels_avx512(kna__kernels *table)
{
    V_FILL(table)
    table->select = select_avx512;
    table->count = count_avx512;
    return true;
}

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

/*
 * vpdpbusd adds four unsigned * signed products to each of 16 lanes: lane r is row r, nothing is summed across lanes. Two
 * blocks and up to four queries at a time hide its latency of 5. Keys are offset by 128, which adds 128 * sum(q): `excess`.
 */
static inline __attribute__((always_inline)) void scan_tile(float *out, size_t ldo, const int8_t *q, size_t ldq,
                                                            const float *q_scale, const int32_t *excess, size_t g,
                                                            const uint8_t *block, const float *scales, size_t tile, size_t d4)
{
    __m512i sum[4][2];
    V_UNROLL
    for (size_t i = 0; i < g; i++) {
        sum[i][0] = sum[i][1] = _mm512_set1_epi32(-excess[i]);
    }
    for (size_t c = 0; c < d4; c++) {
        __m512i key[2];
        V_UNROLL
        for (size_t b = 0; b < tile; b++) {
            key[b] = _mm512_loadu_si512(block + (b * d4 + c) * 4 * KNA_BLOCK);
        }
        V_UNROLL
        for (size_t i = 0; i < g; i++) {
            int32_t four;
            memcpy(&four, q + i * ldq + 4 * c, sizeof four);
            __m512i y = _mm512_set1_epi32(four);
            V_UNROLL
            for (size_t b = 0; b < tile; b++) {
                sum[i][b] = _mm512_dpbusd_epi32(sum[i][b], key[b], y);
            }
        }
    }
    V_UNROLL
    for (size_t i = 0; i < g; i++) {
        V_UNROLL
        for (size_t b = 0; b < tile; b++) {
            __m512 factor = _mm512_mul_ps(_mm512_set1_ps(q_scale[i]), _mm512_loadu_ps(scales + b * KNA_BLOCK));
            _mm512_storeu_ps(out + i * ldo + b * KNA_BLOCK, _mm512_mul_ps(factor, _mm512_cvtepi32_ps(sum[i][b])));
        }
    }
}

static inline __attribute__((always_inline)) void scan_queries(float *out, size_t ldo, const int8_t *q, size_t ldq,
                                                               const float *q_scale, const int32_t *excess, size_t g,
                                                               const uint8_t *block, const float *scales, size_t tile, size_t d4)
{
    switch (g) {
    case 1:
        scan_tile(out, ldo, q, ldq, q_scale, excess, 1, block, scales, tile, d4);
        break;
    case 2:
        scan_tile(out, ldo, q, ldq, q_scale, excess, 2, block, scales, tile, d4);
        break;
    case 3:
        scan_tile(out, ldo, q, ldq, q_scale, excess, 3, block, scales, tile, d4);
        break;
    default:
        scan_tile(out, ldo, q, ldq, q_scale, excess, 4, block, scales, tile, d4);
        break;
    }
}

/* The sums of up to SCAN_G queries fit on the stack; keys are read once for that many. */
#define SCAN_G 32

/* times * the sum of each query's numbers */
static void sums_of(int32_t *sums, const int8_t *q, size_t ldq, size_t g, size_t d, int32_t times)
{
    for (size_t i = 0; i < g; i++) {
        int32_t sum = 0;
        for (size_t c = 0; c < d; c++) {
            sum += q[i * ldq + c];
        }
        sums[i] = times * sum;
    }
}

static void scan_group(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *q_scale, size_t g, const uint8_t *packed,
                       const float *scales, size_t blocks, size_t d4)
{
    int32_t excess[SCAN_G];
    sums_of(excess, q, ldq, g, 4 * d4, 128);
    for (size_t b = 0; b < blocks; b += 2) {
        const uint8_t *block = packed + b * d4 * 4 * KNA_BLOCK;
        prefetch_avx512((const char *)block + 2 * V_AHEAD, 2 * d4 * 4 * KNA_BLOCK);
        for (size_t i = 0; i < g; i += 4) {
            size_t some = g - i < 4 ? g - i : 4;
            float *o = out + i * ldo + b * KNA_BLOCK;
            if (blocks - b >= 2) {
                scan_queries(o, ldo, q + i * ldq, ldq, q_scale + i, excess + i, some, block, scales + b * KNA_BLOCK, 2, d4);
            } else {
                scan_queries(o, ldo, q + i * ldq, ldq, q_scale + i, excess + i, some, block, scales + b * KNA_BLOCK, 1, d4);
            }
        }
    }
}

static void scan_avx512vnni(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *q_scale, size_t g,
                            const uint8_t *packed, const float *scales, size_t blocks, size_t d4)
{
    for (size_t i = 0; i < g; i += SCAN_G) {
        size_t some = g - i < SCAN_G ? g - i : SCAN_G;
        scan_group(out + i * ldo, ldo, q + i * ldq, ldq, q_scale + i, some, packed, scales, blocks, d4);
    }
}

/* ---- codes of four bits */

/*
 * A vector holds 16 columns of four rows, four columns of a row to a lane; so a query's columns are the same 16 bytes four times. Up
 * to four quads at a time, of which the four lanes of each row are summed by transposing.
 */
static inline __attribute__((always_inline)) __m512 sum_quads(const __m512i *sum, __m512i excess)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i low = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[0], sum[1]), _mm512_unpackhi_epi32(sum[0], sum[1]));
    __m512i high = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[2], sum[3]), _mm512_unpackhi_epi32(sum[2], sum[3]));
    __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    all = _mm512_sub_epi32(_mm512_add_epi32(all, all), excess);
    return _mm512_cvtepi32_ps(_mm512_permutexvar_epi32(order, all));
}

static inline __attribute__((always_inline)) void code_tile(float *out, size_t ldo, const int8_t *q, size_t ldq,
                                                            const float *scale, const int32_t *excess, size_t g,
                                                            const uint8_t *codes, const float *step, size_t quads, size_t chunks)
{
    const __mmask16 some = (__mmask16)((1U << (KNA_QUAD * quads)) - 1);
    __m512i sum[4][4], nibble = _mm512_set1_epi8(15);
    V_UNROLL
    for (size_t i = 0; i < g; i++) {
        V_UNROLL
        for (size_t b = 0; b < 4; b++) {
            sum[i][b] = _mm512_setzero_si512();
        }
    }
    for (size_t c = 0; c < chunks; c++) {
        V_UNROLL
        for (size_t b = 0; b < quads; b++) {
            __m512i both = _mm512_loadu_si512(codes + (b * chunks + c) * KNA_QUAD_BYTES);
            __m512i low = _mm512_and_si512(both, nibble), high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
            V_UNROLL
            for (size_t i = 0; i < g; i++) {
                const int8_t *at = q + i * ldq + c * KNA_CODE_CHUNK;
                __m512i first = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)at));
                __m512i second = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)(at + 16)));
                sum[i][b] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum[i][b], low, first), high, second);
            }
        }
    }
    V_UNROLL
    for (size_t i = 0; i < g; i++) {
        __m512 factor = _mm512_mul_ps(_mm512_set1_ps(scale[i]), _mm512_maskz_loadu_ps(some, step));
        __m512 sums = sum_quads(sum[i], _mm512_set1_epi32(excess[i]));
        _mm512_mask_storeu_ps(out + i * ldo, some, _mm512_fmadd_ps(factor, sums, _mm512_maskz_loadu_ps(some, out + i * ldo)));
    }
}

static inline __attribute__((always_inline)) void code_quads(float *out, size_t ldo, const int8_t *q, size_t ldq,
                                                             const float *scale, const int32_t *excess, size_t g,
                                                             const uint8_t *codes, const float *step, size_t quads, size_t chunks)
{
    for (; quads >= 4; quads -= 4, codes += 4 * chunks * KNA_QUAD_BYTES, step += 4 * KNA_QUAD, out += 4 * KNA_QUAD) {
        code_tile(out, ldo, q, ldq, scale, excess, g, codes, step, 4, chunks);
    }
    if (quads == 3) {
        code_tile(out, ldo, q, ldq, scale, excess, g, codes, step, 3, chunks);
    } else if (quads == 2) {
        code_tile(out, ldo, q, ldq, scale, excess, g, codes, step, 2, chunks);
    } else if (quads == 1) {
        code_tile(out, ldo, q, ldq, scale, excess, g, codes, step, 1, chunks);
    }
}

static void scan_codes_avx512vnni(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *scale, size_t g,
                                  const uint8_t *codes, const float *step, size_t quads, size_t chunks)
{
    for (size_t i = 0; i < g; i += 4, out += 4 * ldo, q += 4 * ldq, scale += 4) {
        int32_t excess[4];
        size_t some = g - i < 4 ? g - i : 4;
        sums_of(excess, q, ldq, some, chunks * KNA_CODE_CHUNK, 15);
        if (some == 4) {
            code_quads(out, ldo, q, ldq, scale, excess, 4, codes, step, quads, chunks);
        } else if (some == 3) {
            code_quads(out, ldo, q, ldq, scale, excess, 3, codes, step, quads, chunks);
        } else if (some == 2) {
            code_quads(out, ldo, q, ldq, scale, excess, 2, codes, step, quads, chunks);
        } else {
            code_quads(out, ldo, q, ldq, scale, excess, 1, codes, step, quads, chunks);
        }
    }
}

bool kna__kernels_avx512vnni(kna__kernels *table)
{
    table->scan = scan_avx512vnni;
    table->scan_codes = scan_codes_avx512vnni;
    return true;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

bool kna__kernels_avx512(kna__kernels *table)
{
    (void)table;
    return false;
}

bool kna__kernels_avx512vnni(kna__kernels *table)
{
    (void)table;
    return false;
}

#endif
