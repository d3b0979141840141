/* kernel_neon.c - arm64 Advanced SIMD, ARMv8.0: the float template on 4 lanes, int8 by widening products. */
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "half.h"
#include "kernel.h"

#if defined(__aarch64__)

#define V_NAME(x) x##_neon
#define V_W 4
#define V_DOT_G 4
#define V_MR 6
#define V_NV 4
typedef float32x4_t vf;

#define v_load(p) vld1q_f32(p)
#define v_store(p, x) vst1q_f32(p, x)
#define v_set1(a) vdupq_n_f32(a)
#define v_zero() vdupq_n_f32(0)
#define v_add(a, b) vaddq_f32(a, b)
#define v_sub(a, b) vsubq_f32(a, b)
#define v_mul(a, b) vmulq_f32(a, b)
#define v_div(a, b) vdivq_f32(a, b)
#define v_max(a, b) vmaxq_f32(a, b)
#define v_min(a, b) vminq_f32(a, b)
#define v_fma(a, b, c) vfmaq_f32(c, a, b)
#define v_round(x) vrndnq_f32(x)
#define v_sum(x) vaddvq_f32(x)
#define v_hmax(x) vmaxvq_f32(x)

static inline vf v_loadn(const float *p, size_t n)
{
    float buffer[4] = { 0 };
    memcpy(buffer, p, n * sizeof(float));
    return vld1q_f32(buffer);
}

static inline void v_storen(float *p, vf x, size_t n)
{
    float buffer[4];
    vst1q_f32(buffer, x);
    memcpy(p, buffer, n * sizeof(float));
}

static inline vf v_copysign(vf x, vf y)
{
    return vbslq_f32(vdupq_n_u32(0x80000000u), y, x);
}

static inline vf v_pow2(vf n)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}

static inline vf v_zero_below(vf x, vf y, float limit)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), vcltq_f32(y, vdupq_n_f32(limit))));
}

static inline void v_sum4(float *out, vf a, vf b, vf c, vf d)
{
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

static inline void v_max4(float *out, vf a, vf b, vf c, vf d)
{
    vst1q_f32(out, vpmaxq_f32(vpmaxq_f32(a, b), vpmaxq_f32(c, d)));
}

/* ---- loads of the row types; the partial ones copy into a zeroed buffer first. */
static inline vf vt_f32_load(const char *row, size_t c)
{
    return vld1q_f32((const float *)(const void *)row + c);
}

static inline vf vt_f32_loadn(const char *row, size_t c, size_t n)
{
    return v_loadn((const float *)(const void *)row + c, n);
}

static inline uint16x4_t four_halves(const char *row, size_t c)
{
    return vld1_u16((const uint16_t *)(const void *)row + c);
}

static inline uint16x4_t some_halves(const char *row, size_t c, size_t n)
{
    uint16_t buffer[4] = { 0 };
    memcpy(buffer, row + 2 * c, 2 * n);
    return vld1_u16(buffer);
}

static inline vf vt_f16_load(const char *row, size_t c)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(four_halves(row, c)));
}

static inline vf vt_f16_loadn(const char *row, size_t c, size_t n)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(some_halves(row, c, n)));
}

static inline vf vt_bf16_load(const char *row, size_t c)
{
    return vreinterpretq_f32_u32(vshll_n_u16(four_halves(row, c), 16));
}

static inline vf vt_bf16_loadn(const char *row, size_t c, size_t n)
{
    return vreinterpretq_f32_u32(vshll_n_u16(some_halves(row, c, n), 16));
}

static inline vf vt_i8_loadn(const char *row, size_t c, size_t n)
{
    int32_t four = 0;
    memcpy(&four, row + c, n);
    int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}

static inline vf vt_i8_load(const char *row, size_t c)
{
    return vt_i8_loadn(row, c, 4);
}

static inline vf vt_q8_0_load(const char *row, size_t c)
{
    const char *block = row + c / KNA_Q8_BLOCK * KNA_Q8_BYTES;
    uint16_t scale;
    memcpy(&scale, block, sizeof scale);
    float32x4_t factor = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(scale)));
    return vmulq_f32(factor, vt_i8_load(block + 2, c % KNA_Q8_BLOCK));
}

/* q8_0 rows are whole blocks of 32: there is no tail. */
static inline vf vt_q8_0_loadn(const char *row, size_t c, size_t n)
{
    (void)n;
    return vt_q8_0_load(row, c);
}

#include "kernel_tmpl.h"

/* 4 x 4 in registers; edges one by one. */
static void transpose4(float *out, size_t ldo, const float *x, size_t ldx)
{
    float32x4_t a = vld1q_f32(x), b = vld1q_f32(x + ldx), c = vld1q_f32(x + 2 * ldx), d = vld1q_f32(x + 3 * ldx);
    float32x4_t ac_low = vzip1q_f32(a, c), ac_high = vzip2q_f32(a, c);
    float32x4_t bd_low = vzip1q_f32(b, d), bd_high = vzip2q_f32(b, d);
    vst1q_f32(out, vzip1q_f32(ac_low, bd_low));
    vst1q_f32(out + ldo, vzip2q_f32(ac_low, bd_low));
    vst1q_f32(out + 2 * ldo, vzip1q_f32(ac_high, bd_high));
    vst1q_f32(out + 3 * ldo, vzip2q_f32(ac_high, bd_high));
}

static void transpose_neon(float *out, size_t ldo, const float *x, size_t ldx, size_t n, size_t d)
{
    for (size_t r = 0; r < n; r += 4) {
        for (size_t c = 0; c < d; c += 4) {
            if (r + 4 <= n && c + 4 <= d) {
                transpose4(out + c * ldo + r, ldo, x + r * ldx + c, ldx);
                continue;
            }
            for (size_t i = r; i < n && i < r + 4; i++) {
                for (size_t j = c; j < d && j < c + 4; j++) {
                    out[j * ldo + i] = x[i * ldx + j];
                }
            }
        }
    }
}

/* Few scores pass a threshold: 16 at a time are only looked at one by one when one of them does. */
static size_t select_neon(int32_t *ids, const float *x, size_t n, float threshold, int32_t base)
{
    vf limit = v_set1(threshold);
    size_t count = 0;
    for (size_t i = 0; i < n; i += KNA_BLOCK) {
        size_t end = n - i < KNA_BLOCK ? n : i + KNA_BLOCK;
        if (end == i + KNA_BLOCK) {
            uint32x4_t low = vorrq_u32(vcgeq_f32(v_load(x + i), limit), vcgeq_f32(v_load(x + i + 4), limit));
            uint32x4_t high = vorrq_u32(vcgeq_f32(v_load(x + i + 8), limit), vcgeq_f32(v_load(x + i + 12), limit));
            if (vmaxvq_u32(vorrq_u32(low, high)) == 0) {
                continue;
            }
        }
        for (size_t r = i; r < end; r++) {
            if (x[r] >= threshold) {
                ids[count++] = base + (int32_t)r;
            }
        }
    }
    return count;
}

/* A lane that reaches the threshold is all ones, which is -1: counts are subtracted. */
static size_t count_neon(const float *x, size_t n, float threshold)
{
    vf limit = v_set1(threshold);
    uint32x4_t lanes = vdupq_n_u32(0);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        lanes = vsubq_u32(lanes, vcgeq_f32(v_load(x + i), limit));
    }
    size_t count = vaddvq_u32(lanes);
    for (; i < n; i++) {
        count += x[i] >= threshold;
    }
    return count;
}

static inline int16x4_t quantize4(vf x, vf inverse)
{
    return vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(x, inverse)));
}

static float quantize_neon(int8_t *out, const float *x, size_t d)
{
    vf most = v_zero();
    for (size_t c = 0; c < d; c += 4) {
        most = vmaxq_f32(most, vabsq_f32(c + 4 <= d ? v_load(x + c) : v_loadn(x + c, d - c)));
    }
    float largest = v_hmax(most);
    if (!(largest >= 0x1p-120f)) {
        memset(out, 0, d);
        return 0;
    }
    vf inverse = v_set1(127.0f / largest);
    size_t c = 0;
    for (; c + 8 <= d; c += 8) {
        vst1_s8(out + c, vqmovn_s16(vcombine_s16(quantize4(v_load(x + c), inverse), quantize4(v_load(x + c + 4), inverse))));
    }
    for (; c < d; c += 4) {
        size_t count = d - c < 4 ? d - c : 4;
        int16x4_t some = quantize4(v_loadn(x + c, count), inverse);
        int8_t bytes[8];
        vst1_s8(bytes, vqmovn_s16(vcombine_s16(some, some)));
        memcpy(out + c, bytes, count);
    }
    return largest / 127.0f;
}

/*
 * One block against one query. 16-bit products of pairs are added into 32 bits: a vector then holds two partial sums for each of
 * 2 rows, and a pairwise add joins them once, at the end. A lone product of two int8 always fits 16 bits.
 */
static inline void scan_block(float *out, const int8_t *q, float q_scale, const uint8_t *block, const float *scales, size_t d4)
{
    int32x4_t low[4], high[4];
    V_UNROLL
    for (size_t x = 0; x < 4; x++) {
        low[x] = high[x] = vdupq_n_s32(0);
    }
    for (size_t c = 0; c < d4; c++) {
        int32_t four;
        memcpy(&four, q + 4 * c, sizeof four);
        int8x8_t y = vreinterpret_s8_s32(vdup_n_s32(four));
        const uint8_t *at = block + c * 4 * KNA_BLOCK;
        V_UNROLL
        for (size_t x = 0; x < 4; x++) {
            int8x16_t key = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + 16 * x), vdupq_n_u8(0x80)));
            low[x] = vpadalq_s16(low[x], vmull_s8(vget_low_s8(key), y));
            high[x] = vpadalq_s16(high[x], vmull_s8(vget_high_s8(key), y));
        }
    }
    V_UNROLL
    for (size_t x = 0; x < 4; x++) {
        float32x4_t sum = vcvtq_f32_s32(vpaddq_s32(low[x], high[x]));
        v_store(out + 4 * x, v_mul(v_mul(v_set1(q_scale), v_load(scales + 4 * x)), sum));
    }
}

static void scan_neon(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *q_scale, size_t g, const uint8_t *packed,
                      const float *scales, size_t blocks, size_t d4)
{
    for (size_t b = 0; b < blocks; b++) {
        for (size_t i = 0; i < g; i++) {
            scan_block(out + i * ldo + b * KNA_BLOCK, q + i * ldq, q_scale[i], packed + b * d4 * 4 * KNA_BLOCK,
                       scales + b * KNA_BLOCK, d4);
        }
    }
}

/* ---- codes of four bits */

/* One chunk of a row: four products fit 16 bits, as 4 * 15 * 127 does. */
static inline int32x4_t add_codes(int32x4_t sum, const uint8_t *codes, const int8_t *q)
{
    uint8x16_t both = vld1q_u8(codes);
    int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
    int8x16_t first = vld1q_s8(q), second = vld1q_s8(q + 16);
    int16x8_t products = vmull_s8(vget_low_s8(low), vget_low_s8(first));
    products = vmlal_s8(products, vget_high_s8(low), vget_high_s8(first));
    products = vmlal_s8(products, vget_low_s8(high), vget_low_s8(second));
    products = vmlal_s8(products, vget_high_s8(high), vget_high_s8(second));
    return vpadalq_s16(sum, products);
}

static inline int32x4_t scan_quad(const int8_t *q, const uint8_t *quad, size_t chunks)
{
    int32x4_t sum[KNA_QUAD] = { vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0) };
    for (size_t c = 0; c < chunks; c++) {
        for (size_t r = 0; r < KNA_QUAD; r++) {
            sum[r] = add_codes(sum[r], quad + c * KNA_QUAD_BYTES + 16 * r, q + c * KNA_CODE_CHUNK);
        }
    }
    return vpaddq_s32(vpaddq_s32(sum[0], sum[1]), vpaddq_s32(sum[2], sum[3]));
}

static void scan_codes_neon(float *out, size_t ldo, const int8_t *q, size_t ldq, const float *scale, size_t g, const uint8_t *codes,
                            const float *step, size_t quads, size_t chunks)
{
    for (size_t i = 0; i < g; i++) {
        int32_t excess = 0;
        for (size_t c = 0; c < chunks * KNA_CODE_CHUNK; c++) {
            excess += 15 * q[i * ldq + c];
        }
        for (size_t b = 0; b < quads; b++) {
            float *at = out + i * ldo + b * KNA_QUAD;
            int32x4_t sum = scan_quad(q + i * ldq, codes + b * chunks * KNA_QUAD_BYTES, chunks);
            float32x4_t sums = vcvtq_f32_s32(vsubq_s32(vaddq_s32(sum, sum), vdupq_n_s32(excess)));
            vst1q_f32(at, vfmaq_f32(vld1q_f32(at), vmulq_n_f32(vld1q_f32(step + b * KNA_QUAD), scale[i]), sums));
        }
    }
}

bool kna__kernels_neon(kna__kernels *table)
{
    V_FILL(table)
    table->transpose = transpose_neon;
    table->select = select_neon;
    table->count = count_neon;
    table->quantize = quantize_neon;
    table->scan = scan_neon;
    table->scan_codes = scan_codes_neon;
    return true;
}

#else

bool kna__kernels_neon(kna__kernels *table)
{
    (void)table;
    return false;
}

#endif
