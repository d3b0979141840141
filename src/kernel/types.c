/* types.c - what the number types are: names, sizes, and whether a row is finite. */
#include "kernel.h"
#include "half.h"

const char *kna_type_name(int type)
{
    static const char *const names[KNA_TYPE_COUNT] = { "f32", "f16", "bf16", "i8", "q8_0" };
    return type >= 0 && type < KNA_TYPE_COUNT ? names[type] : NULL;
}

size_t kna__row_bytes(int type, int64_t d)
{
    switch (type) {
    case KNA_F32:
        return (size_t)d * 4;
    case KNA_F16:
    case KNA_BF16:
        return (size_t)d * 2;
    case KNA_I8:
        return (size_t)d;
    case KNA_Q8_0:
        return d % KNA_Q8_BLOCK ? 0 : (size_t)(d / KNA_Q8_BLOCK) * KNA_Q8_BYTES;
    default:
        return 0;
    }
}

size_t kna_type_row_bytes(int type, int64_t d)
{
    return d < 0 || d > KNA_MAX_DIM ? 0 : kna__row_bytes(type, d);
}

static int64_t nonfinite_half(const char *row, uint16_t exponent, int64_t count, int64_t step, int64_t unit)
{
    for (int64_t c = 0; c < count; c++) {
        uint16_t h;
        memcpy(&h, row + c * step, sizeof h);
        if ((h & exponent) == exponent) {
            return c * unit;
        }
    }
    return -1;
}

static int64_t nonfinite_f32(const char *row, int64_t d)
{
    for (int64_t c = 0; c < d; c++) {
        uint32_t bits;
        memcpy(&bits, row + 4 * c, sizeof bits);
        if ((bits & 0x7f800000u) == 0x7f800000u) {
            return c;
        }
    }
    return -1;
}

int64_t kna__find_nonfinite(int type, const char *row, float scale, int64_t d)
{
    switch (type) {
    case KNA_F32:
        return nonfinite_f32(row, d);
    case KNA_F16:
        return nonfinite_half(row, 0x7c00, d, 2, 1);
    case KNA_BF16:
        return nonfinite_half(row, 0x7f80, d, 2, 1);
    case KNA_I8:
        return nonfinite_f32((const char *)&scale, d ? 1 : 0);
    case KNA_Q8_0:
        return nonfinite_half(row, 0x7c00, d / KNA_Q8_BLOCK, KNA_Q8_BYTES, KNA_Q8_BLOCK);
    default:
        return -1;
    }
}
