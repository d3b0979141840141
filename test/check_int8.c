/* check_int8.c - quantize, scan and scan_codes: the same bits on every level. */
#include "check.h"

#include <float.h>

/* ---- quantize: one row of d numbers; a row with NaN or infinity is refused before it gets here. */
static void make_quantize(job *j)
{
    int flavour = j->flavour;
    j->flavour = flavour == NOT_A_NUMBER ? NORMAL : flavour;
    check_fill_left(j, 1, j->d);
    j->flavour = flavour;
    if (flavour == LARGE && j->d) {
        j->left[test_below(j->d)] = test_below(2) ? FLT_MAX : -FLT_MAX;
    }
    if (flavour == INFINITE && j->d) { /* values half way between two codes, at the least and largest magnitudes that count */
        float unit = test_below(2) ? 0x1p-120f : 0x1p120f;
        for (size_t c = 0; c < j->d; c++) {
            j->left[c] = unit * ((float)test_below(254) + 0.5f - 127);
        }
        j->left[test_below(j->d)] = 127 * unit;
    }
    check_place_out(j, 1, j->d, 1);
}

static void expect_quantize(job *j)
{
    double most = 0;
    for (size_t c = 0; c < j->d; c++) {
        double size = fabs((double)j->left[c]);
        most = size > most ? size : most;
    }
    j->want_returned = most < 0x1p-120 ? 0 : (double)((float)most / 127.0f);
}

static void call_quantize(job *j)
{
    j->returned = (double)j->kernels->quantize(j->out, j->left, j->d);
}

/* Half a code away at most, plus the rounding of 127 / max, of its product, and of the scale. */
static void verify_quantize(job *j)
{
    const signed char *codes = j->out;
    for (size_t c = 0; c < j->d; c++) {
        double x = (double)j->left[c], bound = j->returned * (0.5 + 127 * 4 * CHECK_U);
        bound = j->returned > 0 ? bound : 0x1p-120;
        if (!EXPECT_THAT(fabs(x - j->returned * codes[c]) <= bound && codes[c] > -128, "%s: quantize: %.9g as %d * %.9g",
                         kna_cpu_name(j->kernels->cpu), x, codes[c], j->returned)) {
            return;
        }
    }
}

static double work_quantize(const job *j)
{
    return 5.0 * (double)j->d;
}

/* ---- scan: g queries in LEFT with their scales in MORE; n blocks in ROWS with the scales of their rows; d is d4. */
static int8_t *queries(const job *j)
{
    return (int8_t *)(void *)j->left;
}

static const uint8_t *packed(const job *j)
{
    return (const uint8_t *)j->rows.data;
}

static float *query_scales(const job *j)
{
    return (float *)(void *)j->ids;
}

/* Extremes often: sums then reach their largest. */
static uint8_t draw_byte(const job *j)
{
    static const uint8_t extremes[] = { 0, 255, 128, 1, 127, 129 };
    return j->flavour == LARGE         ? extremes[test_below(2)]
           : j->flavour == ZEROS       ? 128
           : j->flavour == CANCELLING  ? extremes[test_below(6)]
                                       : (uint8_t)test_random();
}

static float *make_scales(job *j, enum slot slot, size_t count)
{
    float *scales = check_place(slot, count * sizeof(float), sizeof(float), j->bench);
    for (size_t r = 0; r < count; r++) {
        scales[r] = test_below(16) ? fabsf(check_draw(j->flavour, r)) : 0.0f;
    }
    return scales;
}

/* g queries of d int8 numbers, and n rows of row_bytes bytes of which any is a code. */
static void make_codes(job *j, size_t d, size_t row_bytes)
{
    j->g = !j->bench && test_below(50) == 0 ? 30 + test_below(40) : j->g; /* now and then many query heads */
    j->ld_left = d + (j->bench ? 0 : test_below(5));
    size_t bytes = (j->g - 1) * j->ld_left + d;
    int8_t *q = check_place(LEFT, bytes, 1, j->bench);
    j->left = (float *)(void *)q;
    for (size_t i = 0; i < bytes; i++) {
        int code = draw_byte(j) - 128;
        q[i] = (int8_t)(code < -127 ? -127 : code); /* what quantize() makes; keys may be -128 too */
    }
    uint8_t *rows = check_place(ROWS, j->n * row_bytes, 1, j->bench);
    for (size_t i = 0; i < j->n * row_bytes; i++) {
        rows[i] = draw_byte(j);
    }
    j->rows = (kna__span){ (const char *)rows, row_bytes, NULL };
    j->ids = (int32_t *)(void *)make_scales(j, MORE, j->g);
}

static void make_scan(job *j)
{
    j->n = j->bench ? j->n : j->n % 40;
    make_codes(j, 4 * j->d, 4 * KNA_BLOCK * j->d);
    j->rows.scales = make_scales(j, SCALES, j->n * KNA_BLOCK);
    check_place_out(j, j->g, j->n * KNA_BLOCK, sizeof(float));
}

static double exact_product(const job *j, size_t i, size_t row)
{
    int64_t sum = 0;
    const uint8_t *block = packed(j) + row / KNA_BLOCK * j->rows.row_bytes;
    for (size_t c = 0; c < 4 * j->d; c++) {
        sum += (int64_t)queries(j)[i * j->ld_left + c] * ((int64_t)block[(c / 4 * KNA_BLOCK + row % KNA_BLOCK) * 4 + c % 4] - 128);
    }
    return (double)sum;
}

static void expect_scan(job *j)
{
    j->is_judged = true;
    for (size_t i = 0; i < j->g; i++) {
        for (size_t row = 0; row < j->n * KNA_BLOCK; row++) {
            float factor = query_scales(j)[i] * j->rows.scales[row];
            j->want[i * j->out_cols + row] = (double)(factor * (float)exact_product(j, i, row));
            j->bound[i * j->out_cols + row] = 0;
        }
    }
}

static void call_scan(job *j)
{
    j->kernels->scan(j->out, j->ldo, queries(j), j->ld_left, query_scales(j), j->g, packed(j), j->rows.scales, j->n, j->d);
}

static double work_scan(const job *j)
{
    return 2.0 * (double)j->g * 64.0 * (double)j->n * (double)j->d;
}

/* ---- scan_codes: likewise, but n quads of rows in ROWS; d is the number of chunks. */
static void make_scan_codes(job *j)
{
    j->n = j->bench ? j->n : j->n % 40;
    j->d = j->bench ? j->d : j->d % 9;
    make_codes(j, KNA_CODE_CHUNK * j->d, KNA_QUAD_BYTES * j->d);
    j->rows.scales = make_scales(j, SCALES, j->n * KNA_QUAD);
    check_place_out(j, j->g, j->n * KNA_QUAD, sizeof(float));
    for (size_t i = 0; i < j->g; i++) {
        for (size_t row = 0; row < j->out_cols; row++) {
            ((float *)j->out)[i * j->ldo + row] = check_draw(j->flavour == NOT_A_NUMBER ? NORMAL : j->flavour, row);
        }
    }
}

static double exact_code_product(const job *j, size_t i, size_t row)
{
    int64_t sum = 0;
    for (size_t c = 0; c < KNA_CODE_CHUNK * j->d; c++) {
        int code = kna__code_at(packed(j) + row / KNA_QUAD * j->rows.row_bytes, row % KNA_QUAD, c);
        sum += (int64_t)queries(j)[i * j->ld_left + c] * (2 * code - 15);
    }
    return (double)sum;
}

static void expect_scan_codes(job *j)
{
    j->is_judged = true;
    for (size_t i = 0; i < j->g; i++) {
        for (size_t row = 0; row < j->n * KNA_QUAD; row++) {
            float factor = query_scales(j)[i] * j->rows.scales[row], before = ((const float *)j->out)[i * j->ldo + row];
            j->want[i * j->out_cols + row] = (double)fmaf(factor, (float)exact_code_product(j, i, row), before);
            j->bound[i * j->out_cols + row] = 0;
        }
    }
}

static void call_scan_codes(job *j)
{
    j->kernels->scan_codes(j->out, j->ldo, queries(j), j->ld_left, query_scales(j), j->g, packed(j), j->rows.scales, j->n, j->d);
}

static double work_scan_codes(const job *j)
{
    return 2.0 * (double)j->g * KNA_QUAD * KNA_CODE_CHUNK * (double)j->n * (double)j->d;
}

#define ENTRY(name) #name, offsetof(kna__kernels, name), false, true
const check checks_int8[] = {
    { ENTRY(quantize), "d", make_quantize, expect_quantize, call_quantize, NULL, verify_quantize, work_quantize, "B",
      { { 1, 1, 64 }, { 1, 1, 128 } } },
    { ENTRY(scan), "gnd", make_scan, expect_scan, call_scan, NULL, NULL, work_scan, "OP",
      { { 1, 128, 16 }, { 3, 128, 16 }, { 4, 128, 32 }, { 8, 64, 16 } } },
    { ENTRY(scan_codes), "gnd", make_scan_codes, expect_scan_codes, call_scan_codes, NULL, NULL, work_scan_codes, "OP",
      { { 1, 64, 2 }, { 3, 5, 2 }, { 3, 64, 2 }, { 4, 64, 8 } } },
    { NULL, 0, false, false, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, { { 0 } } },
};
