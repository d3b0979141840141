/*
 * convert.c - number types, one row at a time through float32.
 *
 * Invariant: a converted row holds no NaN and no infinity; a number a type cannot hold is refused by name and place.
 */
#include "convert.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

#define Q8_0_NUMBERS 32
#define Q8_0_BYTES   34

static uint32_t float_bits(float x)
{
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float bits_float(uint32_t bits)
{
    float x = 0;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float half_to_float(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 31;
    const uint32_t fraction = half & 1023;
    if (exponent == 31) return bits_float(sign | 0x7f800000 | fraction << 13);
    if (exponent > 0) return bits_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float tiny = ldexpf((float)fraction, -24);
    return sign ? -tiny : tiny;
}

/* Adding a power of two to |x| makes the addition itself round to the last bit a half can hold, ties to even. */
static uint16_t float_to_half(float x)
{
    const uint32_t sign = (float_bits(x) >> 16) & 0x8000;
    const float size = fabsf(x);
    if (!(size < 65520.0f)) return (uint16_t)(sign | (isnan(x) ? 0x7e00 : 0x7c00));
    const int exponent = size < 6.103515625e-05f ? -14 : ilogbf(size);
    const float shift = ldexpf(1.5f, exponent + 13);
    const float rounded = (size + shift) - shift;
    const uint32_t steps = (uint32_t)ldexpf(rounded, 10 - exponent); /* below 2048 + 1; its top bit adds 1 to the exponent */
    return (uint16_t)(sign | (((uint32_t)(exponent + 14) << 10) + steps));
}

static uint16_t float_to_bf16(float x)
{
    const uint32_t bits = float_bits(x);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static void load_q8_0(float *to, const uint8_t *from)
{
    uint16_t half = 0;
    memcpy(&half, from, sizeof half);
    for (int i = 0; i < Q8_0_NUMBERS; i++) to[i] = half_to_float(half) * (float)(int8_t)from[2 + i];
}

void convert_load(float *to, const kna_rows *rows, int64_t row)
{
    const int64_t d = rows->dim;
    const char *from = (const char *)rows->data + (size_t)row * kna_type_row_bytes(rows->type, d);
    const uint16_t *halves = (const uint16_t *)(const void *)from;
    switch (rows->type) {
    case KNA_F32:
        memcpy(to, from, (size_t)d * sizeof *to);
        break;
    case KNA_F16:
        for (int64_t i = 0; i < d; i++) to[i] = half_to_float(halves[i]);
        break;
    case KNA_BF16:
        for (int64_t i = 0; i < d; i++) to[i] = bits_float((uint32_t)halves[i] << 16);
        break;
    case KNA_I8:
        for (int64_t i = 0; i < d; i++) to[i] = rows->scales[row] * (float)(int8_t)from[i];
        break;
    case KNA_Q8_0:
        for (int64_t i = 0; i < d / Q8_0_NUMBERS; i++) load_q8_0(to + i * Q8_0_NUMBERS, (const uint8_t *)from + i * Q8_0_BYTES);
        break;
    default:
        break;
    }
}

static void store_q8_0(uint8_t *to, const float *x)
{
    float largest = 0;
    for (int i = 0; i < Q8_0_NUMBERS; i++) largest = fmaxf(largest, fabsf(x[i]));
    const float scale = largest / 127.0f;
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    const uint16_t half = float_to_half(scale);
    memcpy(to, &half, sizeof half);
    for (int i = 0; i < Q8_0_NUMBERS; i++) to[2 + i] = (uint8_t)(int8_t)lrintf(x[i] * inverse);
}

static void store_row(void *to, const float *x, int type, int64_t d)
{
    switch (type) {
    case KNA_F32:
        memcpy(to, x, (size_t)d * sizeof *x);
        break;
    case KNA_F16:
        for (int64_t i = 0; i < d; i++) ((uint16_t *)to)[i] = float_to_half(x[i]);
        break;
    case KNA_BF16:
        for (int64_t i = 0; i < d; i++) ((uint16_t *)to)[i] = float_to_bf16(x[i]);
        break;
    case KNA_Q8_0:
        for (int64_t i = 0; i < d / Q8_0_NUMBERS; i++) store_q8_0((uint8_t *)to + i * Q8_0_BYTES, x + i * Q8_0_NUMBERS);
        break;
    default:
        break;
    }
}

/* The largest size a type can hold, as far as its rounding goes. */
static float type_limit(int type)
{
    if (type == KNA_F16) return 65519.99f;
    if (type == KNA_BF16) return 3.3895313892515355e38f;
    if (type == KNA_Q8_0) return 65504.0f * 127.0f;
    return 3.402823466e38f;
}

static int check_row(const float *x, const kna_rows *from, int64_t row, int type, const char *name)
{
    const float limit = type_limit(type);
    for (int64_t i = 0; i < from->dim; i++) {
        if (fabsf(x[i]) <= limit) continue;
        const char *what = isnan(x[i]) ? "NaN" : isinf(x[i]) ? "infinity" : "a number too large for ";
        return cli_refuse("%s: %s%s at head %" PRId64 ", row %" PRId64 ", column %" PRId64, name, what,
                          isfinite(x[i]) ? kna_type_name(type) : "", row / from->rows, row % from->rows, i);
    }
    return CLI_OK;
}

static int convert_row(kna_context *context, converted *to, float *x, const kna_rows *from, int64_t row, const char *name)
{
    const int type = to->rows.type;
    void *out = (char *)to->data + (size_t)row * kna_type_row_bytes(type, from->dim);
    convert_load(x, from, row);
    const int code = check_row(x, from, row, type, name);
    if (code != CLI_OK) return code;
    if (type != KNA_I8) {
        store_row(out, x, type, from->dim);
        return CLI_OK;
    }
    const int status = kna_quantize_i8(context, out, to->scales + row, x, 1, from->dim);
    return status == KNA_OK ? CLI_OK : cli_status(context, status);
}

int convert_rows(kna_context *context, converted *to, const kna_rows *from, int type, const char *name)
{
    const size_t rows = (size_t)(from->heads * from->rows);
    const size_t row_bytes = kna_type_row_bytes(type, from->dim);
    int code = CLI_OK;
    memset(to, 0, sizeof *to);
    if (row_bytes == 0)
        return cli_refuse("%s: %s needs a dimension that is a multiple of %d, not %" PRId64, name, kna_type_name(type), Q8_0_NUMBERS,
                          from->dim);
    float *x = malloc((size_t)from->dim * sizeof *x);
    to->data = malloc(rows * row_bytes + 1);
    to->scales = type == KNA_I8 ? malloc((rows + 1) * sizeof *to->scales) : NULL;
    to->rows = (kna_rows){ to->data, type, from->heads, from->rows, from->dim, 0, 0, to->scales };
    if (!x || !to->data || (type == KNA_I8 && !to->scales)) code = cli_fail("%s: out of memory", name);
    for (size_t row = 0; row < rows && code == CLI_OK; row++) code = convert_row(context, to, x, from, (int64_t)row, name);
    free(x);
    if (code != CLI_OK) converted_free(to);
    return code;
}

void converted_free(converted *rows)
{
    free(rows->data);
    free(rows->scales);
    memset(rows, 0, sizeof *rows);
}
