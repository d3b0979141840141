/* half.h - f16 and bf16 to and from f32, in plain C: what the reference and the tails use. */
#ifndef KNA_HALF_H
#define KNA_HALF_H

#include <stdint.h>
#include <string.h>

static inline float kna__bits_to_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t kna__float_to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float kna__bf16_to_float(uint16_t b)
{
    return kna__bits_to_float((uint32_t)b << 16);
}

/* Exponents are rebased by one multiplication, which also normalises subnormals. */
static inline float kna__f16_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t rest = (uint32_t)(h & 0x7fffu) << 13;
    float magnitude = kna__bits_to_float(rest) * 0x1p112f;
    if (rest >= 0x0f800000u) { /* infinity, NaN */
        return kna__bits_to_float(sign | rest | 0x7f800000u);
    }
    return kna__bits_to_float(sign | kna__float_to_bits(magnitude));
}

/* Round to nearest even; overflow becomes infinity, NaN stays NaN. */
static inline uint16_t kna__float_to_f16(float x)
{
    uint32_t bits = kna__float_to_bits(x);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (magnitude >= 0x477ff000u) { /* >= 65520 rounds to infinity */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { /* subnormal: let the f32 adder round at the right place */
        float shifted = kna__bits_to_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (kna__float_to_bits(shifted) - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
    return (uint16_t)(sign | (rounded >> 13));
}

static inline uint16_t kna__float_to_bf16(float x)
{
    uint32_t bits = kna__float_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((bits >> 16) | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* ggml's q8_0: 32 numbers share an f16 scale. */
#define KNA_Q8_BLOCK 32
#define KNA_Q8_BYTES 34

#endif
