/* check_input.c - the numbers operands are filled with, and rows of every type made of them. */
#include "check.h"

double check_f16(uint16_t h)
{
    static double table[1 << 16];
    if (table[1] == 0) {
        for (unsigned i = 0; i < 1u << 16; i++) {
            int exponent = (int)(i >> 10 & 31), fraction = (int)(i & 1023);
            double magnitude = exponent == 31  ? (fraction ? (double)NAN : (double)INFINITY)
                               : exponent == 0 ? ldexp(fraction, -24)
                                               : ldexp(1024 + fraction, exponent - 25);
            table[i] = i >> 15 ? -magnitude : magnitude;
        }
    }
    return table[h];
}

/* From a table: most of the time would else go into logarithms. */
static double quick_normal(void)
{
    enum { COUNT = 1 << 16 };
    static double table[COUNT];
    if (table[COUNT - 1] == 0) {
        uint64_t kept = test_state.random; /* what is drawn next must not depend on who comes first */
        for (size_t i = 0; i < COUNT; i++) {
            table[i] = test_normal();
        }
        test_state.random = kept;
    }
    return table[test_below(COUNT)];
}

/* `parity` alternates along sums: row + column. */
float check_draw(int flavour, size_t parity)
{
    double x = quick_normal();
    switch (flavour) {
    case LOGNORMAL:
        return (float)copysign(exp(4 * quick_normal()), x);
    case CANCELLING:
        return (float)((parity & 1 ? -1 : 1) * (1 + 0x1p-12 * x));
    case DENORMAL:
        return (float)(x * (test_below(2) ? 0x1p-75 : 0x1p-140));
    case ZEROS:
        return test_below(2) ? 0.0f : -0.0f;
    case LARGE:
        return (float)(x * 0x1p57);
    default:
        return (float)x;
    }
}

void check_fill_left(job *j, size_t rows, size_t cols)
{
    check_place_left(j, rows, cols);
    for (size_t i = 0; i < rows; i++) {
        for (size_t c = 0; c < cols; c++) {
            j->left[i * j->ld_left + c] = check_draw(j->flavour, 0);
        }
    }
}

void check_poke_nan(job *j, size_t left_rows, size_t left_cols)
{
    if (j->flavour == NOT_A_NUMBER && left_rows && left_cols) {
        j->left[test_below(left_rows) * j->ld_left + test_below(left_cols)] = NAN;
    }
}

/* ---- rows */
static float limited(float x, float limit)
{
    return x > limit ? limit : x < -limit ? -limit : x;
}

/* One number in 64 is -128, which nearest rounding of x / max never gives but the type allows. */
static void encode_i8(char *out, const float *x, size_t d, float scale)
{
    for (size_t c = 0; c < d; c++) {
        long code = scale > 0 ? lrintf(limited(x[c] / scale, 127)) : 0;
        out[c] = (char)(test_below(64) ? code : -128);
    }
}

static float largest(const float *x, size_t d)
{
    float most = 0;
    for (size_t c = 0; c < d; c++) {
        most = fmaxf(most, fabsf(x[c]));
    }
    return most;
}

static void encode_q8_0(char *row, const float *x, size_t d, int flavour)
{
    for (size_t c = 0; c < d; c += KNA_Q8_BLOCK, row += KNA_Q8_BYTES) {
        uint16_t scale = kna__float_to_f16(limited(largest(x + c, KNA_Q8_BLOCK) / 127, 65504));
        scale = flavour == DENORMAL ? (uint16_t)(1 + test_below(8)) : scale;
        memcpy(row, &scale, sizeof scale);
        encode_i8(row + 2, x + c, KNA_Q8_BLOCK, (float)check_f16(scale));
    }
}

static void encode(int type, int flavour, char *row, float *scale, const float *x, size_t d)
{
    for (size_t c = 0; c < d && (type == KNA_F16 || type == KNA_BF16); c++) {
        uint16_t h = type == KNA_BF16 ? kna__float_to_bf16(x[c]) : kna__float_to_f16(limited(x[c], 65504));
        h = type == KNA_F16 && flavour == DENORMAL ? (uint16_t)(test_random() & 0x83ff) : h;
        memcpy(row + 2 * c, &h, sizeof h);
    }
    if (type == KNA_F32) {
        memcpy(row, x, d * sizeof(float));
    } else if (type == KNA_I8) {
        *scale = largest(x, d) / 127;
        encode_i8(row, x, d, *scale);
    } else if (type == KNA_Q8_0) {
        encode_q8_0(row, x, d, flavour);
    }
}

static double decode(int type, const char *row, float scale, size_t c)
{
    float f;
    uint16_t h;
    switch (type) {
    case KNA_F32:
        memcpy(&f, row + 4 * c, sizeof f);
        return (double)f;
    case KNA_F16:
        memcpy(&h, row + 2 * c, sizeof h);
        return check_f16(h);
    case KNA_BF16: {
        memcpy(&h, row + 2 * c, sizeof h);
        uint32_t bits = (uint32_t)h << 16;
        memcpy(&f, &bits, sizeof f);
        return (double)f;
    }
    case KNA_I8:
        return (double)scale * (double)(signed char)row[c];
    default:
        row += c / KNA_Q8_BLOCK * KNA_Q8_BYTES;
        memcpy(&h, row, sizeof h);
        return check_f16(h) * (double)(signed char)row[2 + c % KNA_Q8_BLOCK];
    }
}

static void decode_rows(job *j, const float *scales)
{
    for (size_t r = 0; r < j->row_count; r++) {
        for (size_t c = 0; c < j->d; c++) {
            const char *row = j->rows.data + r * j->rows.row_bytes;
            j->numbers[r * j->d + c] = decode(j->type, row, scales ? scales[r] : 1.0f, c);
        }
    }
}

/* A NaN in a row: in the number itself, or in the scale of an int8 type. */
static void poke_row(job *j, char *rows, float *scales)
{
    size_t r = test_below(j->row_count), c = test_below(j->d);
    char *row = rows + r * j->rows.row_bytes;
    switch (j->type) {
    case KNA_F32:
        memcpy(row + 4 * c, &(float){ NAN }, 4);
        break;
    case KNA_F16:
        memcpy(row + 2 * c, &(uint16_t){ 0x7e00 }, 2);
        break;
    case KNA_BF16:
        memcpy(row + 2 * c, &(uint16_t){ 0x7fc0 }, 2);
        break;
    case KNA_I8:
        scales[r] = NAN;
        break;
    default:
        memcpy(row + c / KNA_Q8_BLOCK * KNA_Q8_BYTES, &(uint16_t){ 0x7e00 }, 2);
        break;
    }
}

void check_make_rows(job *j, size_t count)
{
    static const size_t pads[] = { 0, 0, 1, 5, 16 };
    float x[KNA_MAX_DIM];
    size_t bytes = kna__row_bytes(j->type, (int64_t)j->d), unit = j->type == KNA_F32 ? 4 : j->type == KNA_I8 ? 1 : 2;
    size_t stride = bytes + (j->bench ? 0 : unit * pads[test_below(sizeof pads / sizeof pads[0])]);
    char *rows = check_place(ROWS, count ? (count - 1) * stride + bytes : 0, unit, j->bench);
    float *scales = j->type == KNA_I8 ? check_place(SCALES, count * sizeof(float), sizeof(float), j->bench) : NULL;
    j->rows = (kna__span){ rows, stride, scales };
    j->row_count = count;
    for (size_t r = 0; r < count; r++) {
        for (size_t c = 0; c < j->d; c++) {
            x[c] = check_draw(j->flavour, r + c);
        }
        encode(j->type, j->flavour, rows + r * stride, scales ? scales + r : NULL, x, j->d);
    }
    if (j->flavour == NOT_A_NUMBER && count && j->d && test_below(2)) {
        poke_row(j, rows, scales);
    }
    decode_rows(j, scales);
}

void check_make_ids(job *j)
{
    j->ids = check_place(MORE, j->n * sizeof(int32_t), sizeof(int32_t), j->bench);
    bool *is_read = calloc(j->row_count + 1, sizeof *is_read);
    for (size_t i = 0; is_read && i < j->n; i++) {
        j->ids[i] = (int32_t)test_below(j->row_count);
        is_read[j->ids[i]] = true;
    }
    for (size_t r = 0; is_read && r < j->row_count; r++) {
        if (!is_read[r]) {
            memset((char *)(uintptr_t)j->rows.data + r * j->rows.row_bytes, 0xff, kna__row_bytes(j->type, (int64_t)j->d));
            if (j->rows.scales) {
                memset((float *)(uintptr_t)(j->rows.scales + r), 0xff, sizeof(float));
            }
        }
    }
    free(is_read);
}
