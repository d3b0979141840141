/* check_rows.c - the kernels that read rows of any type: dot, dot_at, mix, mix_at, widen. */
#include "check.h"

#define ENTRY(name) #name, offsetof(kna__kernels, name)

static float *out_of(const job *j)
{
    return j->out;
}

/* How an int8 scale, applied after sums of unscaled products, magnifies what underflow lost in them. */
static double scale_of(const job *j, size_t row)
{
    double scale = j->rows.scales ? fabs((double)j->rows.scales[row]) : 1;
    return scale > 1 ? scale : 1;
}

/* ---- dot */
static void make_dot(job *j)
{
    check_make_rows(j, j->n);
    check_fill_left(j, j->g, j->d);
    check_poke_nan(j, j->g, j->d);
    check_place_out(j, j->g, j->n, sizeof(float));
}

static void expect_dot_cell(job *j, size_t i, size_t r, size_t row)
{
    double sum = 0, size = 0;
    for (size_t c = 0; c < j->d; c++) {
        double product = (double)j->left[i * j->ld_left + c] * j->numbers[row * j->d + c];
        sum += product;
        size += fabs(product);
    }
    double d = (double)j->d;
    j->want[i * j->out_cols + r] = sum;
    j->bound[i * j->out_cols + r] = (d + 4) * CHECK_U * size + (d + 1) * CHECK_ETA * scale_of(j, row);
}

static void expect_dot(job *j)
{
    j->is_judged = true;
    for (size_t i = 0; i < j->g; i++) {
        for (size_t r = 0; r < j->n; r++) {
            expect_dot_cell(j, i, r, r);
        }
    }
}

static void call_dot(job *j)
{
    j->kernels->dot[j->type](j->out, j->ldo, j->left, j->ld_left, j->g, j->rows, j->n, j->d);
}

static kna__span from_row(const job *j, size_t r)
{
    kna__span span = { j->rows.data + r * j->rows.row_bytes, j->rows.row_bytes, j->rows.scales ? j->rows.scales + r : NULL };
    return span;
}

static void pieces_dot(job *j)
{
    for (size_t i = 0; i < j->g; i++) {
        for (size_t r = 0; r < j->n; r++) {
            float *out = out_of(j) + i * j->ldo + r;
            j->kernels->dot[j->type](out, 1, j->left + i * j->ld_left, j->ld_left, 1, from_row(j, r), 1, j->d);
        }
    }
}

static double work_dot(const job *j)
{
    return 2.0 * (double)j->g * (double)j->n * (double)j->d;
}

/* ---- dot_at: also the bits of dot, so that rescored neighbours equal a full pass. */
static void make_dot_at(job *j)
{
    check_make_rows(j, j->bench ? 8 * j->n : j->n + test_below(9));
    check_make_ids(j);
    check_fill_left(j, j->g, j->d);
    check_poke_nan(j, j->g, j->d);
    check_place_out(j, j->g, j->n, sizeof(float));
}

static void expect_dot_at(job *j)
{
    j->is_judged = true;
    for (size_t i = 0; i < j->g; i++) {
        for (size_t r = 0; r < j->n; r++) {
            expect_dot_cell(j, i, r, (size_t)j->ids[r]);
        }
    }
}

static void call_dot_at(job *j)
{
    j->kernels->dot_at[j->type](j->out, j->ldo, j->left, j->ld_left, j->g, j->rows, j->ids, j->n, j->d);
}

static void pieces_dot_at(job *j)
{
    for (size_t i = 0; i < j->g; i++) {
        for (size_t r = 0; r < j->n; r++) {
            float *out = out_of(j) + i * j->ldo + r;
            j->kernels->dot[j->type](out, 1, j->left + i * j->ld_left, 0, 1, from_row(j, (size_t)j->ids[r]), 1, j->d);
        }
    }
}

/* ---- mix */
static void fill_out(job *j)
{
    for (size_t i = 0; i < j->out_rows; i++) {
        for (size_t c = 0; c < j->out_cols; c++) {
            out_of(j)[i * j->ldo + c] = check_draw(j->flavour, i);
        }
    }
}

static void make_mix(job *j)
{
    check_make_rows(j, j->n);
    check_fill_left(j, j->g, j->n);
    check_poke_nan(j, j->g, j->n);
    check_place_out(j, j->g, j->d, sizeof(float));
    fill_out(j);
}

static void expect_mix_cell(job *j, size_t i, size_t c, const int32_t *ids)
{
    double n = (double)j->n, sum = (double)out_of(j)[i * j->ldo + c], size = fabs(sum);
    for (size_t r = 0; r < j->n; r++) {
        double product = (double)j->left[i * j->ld_left + r] * j->numbers[(ids ? (size_t)ids[r] : r) * j->d + c];
        sum += product;
        size += fabs(product);
    }
    j->want[i * j->out_cols + c] = sum;
    j->bound[i * j->out_cols + c] = (n + 2) * CHECK_U * size + n * CHECK_ETA * (j->rows.scales ? 129 : 1);
}

static void expect_mix(job *j)
{
    j->is_judged = true;
    for (size_t i = 0; i < j->g; i++) {
        for (size_t c = 0; c < j->d; c++) {
            expect_mix_cell(j, i, c, NULL);
        }
    }
}

static void call_mix(job *j)
{
    j->kernels->mix[j->type](j->out, j->ldo, j->left, j->ld_left, j->g, j->rows, j->n, j->d);
}

/* One query at a time, and its rows in two parts. */
static void pieces_mix(job *j)
{
    size_t first = j->n / 3;
    for (size_t i = 0; i < j->g; i++) {
        float *acc = out_of(j) + i * j->ldo;
        const float *w = j->left + i * j->ld_left;
        j->kernels->mix[j->type](acc, j->ldo, w, 0, 1, j->rows, first, j->d);
        if (first < j->n) {
            j->kernels->mix[j->type](acc, j->ldo, w + first, 0, 1, from_row(j, first), j->n - first, j->d);
        }
    }
}

static void make_mix_at(job *j)
{
    check_make_rows(j, j->bench ? 8 * j->n : j->n + test_below(9));
    check_make_ids(j);
    check_fill_left(j, j->g, j->n);
    check_poke_nan(j, j->g, j->n);
    check_place_out(j, j->g, j->d, sizeof(float));
    fill_out(j);
}

static void expect_mix_at(job *j)
{
    j->is_judged = true;
    for (size_t i = 0; i < j->g; i++) {
        for (size_t c = 0; c < j->d; c++) {
            expect_mix_cell(j, i, c, j->ids);
        }
    }
}

static void call_mix_at(job *j)
{
    j->kernels->mix_at[j->type](j->out, j->ldo, j->left, j->ld_left, j->g, j->rows, j->ids, j->n, j->d);
}

static void pieces_mix_at(job *j)
{
    for (size_t i = 0; i < j->g; i++) {
        for (size_t r = 0; r < j->n; r++) {
            float *acc = out_of(j) + i * j->ldo;
            j->kernels->mix[j->type](acc, 0, j->left + i * j->ld_left + r, 0, 1, from_row(j, (size_t)j->ids[r]), 1, j->d);
        }
    }
}

/* ---- widen: every number as its type says it; int8 rounds once. */
static void make_widen(job *j)
{
    check_make_rows(j, j->n);
    check_place_out(j, j->n, j->d, sizeof(float));
}

static void expect_widen(job *j)
{
    j->is_judged = true;
    for (size_t i = 0; i < j->n * j->d; i++) {
        j->want[i] = (double)(float)j->numbers[i];
        j->bound[i] = 0;
    }
}

static void call_widen(job *j)
{
    j->kernels->widen[j->type](j->out, j->ldo, j->rows, j->n, j->d);
}

static double work_widen(const job *j)
{
    return (double)j->n * ((double)kna__row_bytes(j->type, (int64_t)j->d) + 4.0 * (double)j->d);
}

const check checks_rows[] = {
    { ENTRY(dot), true, false, "gnd", make_dot, expect_dot, call_dot, pieces_dot, NULL, work_dot, "FLOP",
      { { 1, 256, 64 }, { 3, 256, 64 }, { 4, 256, 128 }, { 8, 32, 64 } } },
    { ENTRY(dot_at), true, false, "gnd", make_dot_at, expect_dot_at, call_dot_at, pieces_dot_at, NULL, work_dot, "FLOP",
      { { 1, 128, 64 }, { 3, 128, 64 }, { 1, 128, 128 } } },
    { ENTRY(mix), true, false, "gnd", make_mix, expect_mix, call_mix, pieces_mix, NULL, work_dot, "FLOP",
      { { 1, 256, 64 }, { 3, 256, 64 }, { 4, 256, 128 }, { 8, 32, 64 } } },
    { ENTRY(mix_at), true, false, "gnd", make_mix_at, expect_mix_at, call_mix_at, pieces_mix_at, NULL, work_dot, "FLOP",
      { { 1, 128, 64 }, { 3, 128, 64 }, { 1, 128, 128 } } },
    { ENTRY(widen), true, true, "nd", make_widen, expect_widen, call_widen, NULL, NULL, work_widen, "B",
      { { 1, 256, 64 }, { 1, 64, 128 } } },
    { NULL, 0, false, false, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, { { 0 } } },
};
