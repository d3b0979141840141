/* check_vector.c - the kernels on one vector: max, exp_sum, scale, axpy, lift, tilt, softcap, add_f16, select, count, block_max, block_sum, spread,
 * part_sum. */
#include "check.h"

static float *out_of(const job *j)
{
    return j->out;
}

static void expect_cell(job *j, size_t i, double want, double bound)
{
    j->is_judged = true;
    j->want[i] = want;
    j->bound[i] = bound;
}

/* A score: a number of the flavour, or -infinity where that is what is tested. No zeros of two signs: max may take either. */
static float draw_score(const job *j, size_t i)
{
    float x = check_draw(j->flavour, i);
    return j->flavour == INFINITE && test_below(3) == 0 ? -INFINITY : x == 0 ? 0.0f : x;
}

static void make_scores(job *j, size_t count)
{
    check_place_left(j, 1, count);
    for (size_t i = 0; i < count; i++) {
        j->left[i] = draw_score(j, i);
    }
    if (j->flavour == INFINITE && test_below(6) == 0) {
        for (size_t i = 0; i < count; i++) {
            j->left[i] = -INFINITY;
        }
    }
}

static double work_read(const job *j)
{
    return 4.0 * (double)j->n;
}

static double work_update(const job *j)
{
    return 8.0 * (double)j->n;
}

/* ---- max */
static void make_max(job *j)
{
    make_scores(j, j->n);
    check_place_out(j, 0, 0, sizeof(float));
}

static double largest(const float *x, size_t n)
{
    double most = -(double)INFINITY;
    for (size_t i = 0; i < n; i++) {
        most = (double)x[i] > most ? (double)x[i] : most;
    }
    return most;
}

static void expect_max(job *j)
{
    j->want_returned = largest(j->left, j->n);
}

static void call_max(job *j)
{
    j->returned = (double)j->kernels->max(j->left, j->n);
}

/* ---- exp_sum: arguments over the whole range, at its lower end, and close to 0. */
static float draw_exponent(const job *j)
{
    double x = test_normal();
    switch (j->flavour) {
    case LOGNORMAL:
        return (float)-exp(2 * x);
    case CANCELLING: /* where the result leaves the normal numbers */
        return (float)(-87.33654 + 0.5 * x);
    case LARGE:
        return (float)(80 * (2 * test_uniform() - 1));
    case INFINITE:
        return test_below(3) ? (float)(3 * x) : -INFINITY;
    case NORMAL:
    case NOT_A_NUMBER:
        return (float)(3 * x);
    default:
        return check_draw(j->flavour, 0);
    }
}

static void make_exp_sum(job *j)
{
    check_place_out(j, 1, j->n, sizeof(float));
    j->a = j->bench ? 2 : (float)(test_normal() * (test_below(2) ? 1 : 1000));
    for (size_t i = 0; i < j->n; i++) {
        float t = draw_exponent(j);
        out_of(j)[i] = t + j->a;
    }
    if (j->flavour == LARGE && j->n) {
        out_of(j)[test_below(j->n)] = j->a + 88; /* the largest argument promised; the sum stays finite */
    }
    if (j->flavour == NOT_A_NUMBER && j->n) {
        out_of(j)[test_below(j->n)] = NAN;
    }
}

static void expect_exp_sum(job *j)
{
    for (size_t i = 0; i < j->n; i++) {
        double t = (double)out_of(j)[i] - (double)j->a, e = exp(t);
        if (t < -88) {
            expect_cell(j, i, 0, 0);
        } else if (e < 0x1p-125) {
            expect_cell(j, i, e / 2, e / 2 + (2 + fabs(t)) * CHECK_U * e); /* flushed to 0 or not */
        } else {
            expect_cell(j, i, e, (2 + fabs(t)) * CHECK_U * e);
        }
    }
}

static void call_exp_sum(job *j)
{
    j->returned = (double)j->kernels->exp_sum(j->out, j->a, j->n);
    double sum = 0;
    for (size_t i = 0; i < j->n && !j->bench; i++) {
        sum += (double)out_of(j)[i];
    }
    j->want_returned = sum; /* of the values written */
    j->bound_returned = ((double)j->n + 8) * CHECK_U * sum;
}

/* ---- scale: one rounding, the same bits everywhere. */
static void make_update(job *j)
{
    check_fill_left(j, 1, j->n);
    check_poke_nan(j, 1, j->n);
    check_place_out(j, 1, j->n, sizeof(float));
    for (size_t i = 0; i < j->n; i++) {
        out_of(j)[i] = check_draw(j->flavour, i);
    }
    j->a = j->bench ? -1 : check_draw(j->flavour, 0);
}

static void expect_scale(job *j)
{
    for (size_t i = 0; i < j->n; i++) {
        expect_cell(j, i, (double)(j->a * out_of(j)[i]), 0);
    }
}

static void call_scale(job *j)
{
    j->kernels->scale(j->out, j->a, j->n);
}

/* ---- axpy */
static void expect_axpy(job *j)
{
    for (size_t i = 0; i < j->n; i++) {
        double exact = (double)out_of(j)[i] + (double)j->a * (double)j->left[i];
        expect_cell(j, i, exact, CHECK_U * (1 + 0x1p-20) * fabs(exact) + CHECK_ETA);
    }
}

static void call_axpy(job *j)
{
    j->kernels->axpy(j->out, j->a, j->left, j->n);
}

/* ---- lift */
static void expect_lift(job *j)
{
    for (size_t i = 0; i < j->n; i++) {
        double by = (double)(j->left[i] - j->a), exact = (double)out_of(j)[i] > by ? (double)out_of(j)[i] : by;
        expect_cell(j, i, exact, 0);
    }
}

static void call_lift(job *j)
{
    j->kernels->lift(j->out, j->left, j->a, j->n);
}

/* ---- tilt */
static void expect_tilt(job *j)
{
    for (size_t i = 0; i < j->n; i++) {
        float off = out_of(j)[i] - j->a;
        expect_cell(j, i, (double)(j->left[i] * off), 0);
    }
}

static void call_tilt(job *j)
{
    j->kernels->tilt(j->out, j->left, j->a, j->n);
}

/* ---- softcap */
static void make_softcap(job *j)
{
    static const float caps[] = { 30, 50, 1, 0.01f, 1000 };
    make_update(j);
    j->a = j->bench ? 30 : caps[test_below(sizeof caps / sizeof caps[0])];
    for (size_t i = 0; i < j->n; i++) {
        out_of(j)[i] *= j->flavour == NORMAL ? 3 * j->a : 1;
        if (j->flavour == INFINITE && test_below(4) == 0) {
            out_of(j)[i] = test_below(2) ? INFINITY : -INFINITY;
        }
        if (j->flavour == NOT_A_NUMBER && test_below(4) == 0) {
            out_of(j)[i] = NAN;
        }
    }
}

static void expect_softcap(job *j)
{
    for (size_t i = 0; i < j->n; i++) {
        expect_cell(j, i, (double)j->a * tanh((double)out_of(j)[i] / (double)j->a), 6 * CHECK_U * (double)j->a);
    }
}

static void call_softcap(job *j)
{
    j->kernels->softcap(j->out, j->a, j->n);
}

/* ---- add_f16 */
static const uint16_t *mask_of(const job *j)
{
    return (const uint16_t *)(const void *)j->rows.data;
}

static void make_add_f16(job *j)
{
    make_update(j);
    j->a = j->bench ? 1 : (float)exp(-test_uniform());
    uint16_t *mask = check_place(ROWS, 2 * j->n, 2, j->bench);
    j->rows.data = (const char *)mask;
    for (size_t i = 0; i < j->n; i++) {
        uint16_t denormal = (uint16_t)(test_random() & 0x83ff);
        mask[i] = j->flavour == DENORMAL ? denormal : kna__float_to_f16(fminf(fmaxf(check_draw(j->flavour, i), -65504), 65504));
        if (j->flavour == INFINITE && test_below(3) == 0) {
            mask[i] = 0xfc00;
        }
        if (j->flavour == NOT_A_NUMBER && test_below(9) == 0) {
            mask[i] = 0x7e00;
        }
    }
}

static void expect_add_f16(job *j)
{
    for (size_t i = 0; i < j->n; i++) {
        double exact = (double)out_of(j)[i] + (double)j->a * check_f16(mask_of(j)[i]);
        expect_cell(j, i, exact, CHECK_U * (1 + 0x1p-20) * fabs(exact) + CHECK_ETA);
    }
}

static void call_add_f16(job *j)
{
    j->kernels->add_f16(j->out, j->a, mask_of(j), j->n);
}

static double work_add_f16(const job *j)
{
    return 10.0 * (double)j->n;
}

/* ---- select: the threshold is often one of the values, so that equality counts. */
static void make_select(job *j)
{
    make_scores(j, j->n);
    if (j->flavour == NOT_A_NUMBER) {
        for (size_t i = 0; i < j->n; i += 3) {
            j->left[i] = NAN; /* never selected */
        }
    }
    check_place_out(j, 1, j->n, sizeof(int32_t));
    const float thresholds[] = { j->n ? j->left[test_below(j->n)] : 0, -INFINITY, INFINITY, 0, 1.5f };
    j->a = j->bench ? 2 : thresholds[test_below(2) ? 0 : test_below(5)];
    j->base = (int32_t)test_below(1000000000);
}

static void expect_nothing(job *j)
{
    (void)j;
}

static void call_select(job *j)
{
    size_t count = j->kernels->select(j->out, j->left, j->n, j->a, j->base);
    j->returned = j->want_returned = (double)count;
}

static void verify_select(job *j)
{
    size_t count = 0;
    const int32_t *ids = j->out;
    for (size_t i = 0; i < j->n; i++) {
        if (j->left[i] >= j->a) {
            EXPECT_THAT((double)count < j->returned && ids[count] == j->base + (int32_t)i, "%s: select: id %zu of n %zu",
                        kna_cpu_name(j->kernels->cpu), count, j->n);
            count++;
        }
    }
    EXPECT_INT(j->returned, count);
}

/* ---- count: as many as select */
static void make_count(job *j)
{
    make_select(j);
    check_place_out(j, 0, 0, sizeof(float));
}

static void expect_count(job *j)
{
    for (size_t i = 0; i < j->n; i++) {
        j->want_returned += j->left[i] >= j->a;
    }
}

static void call_count(job *j)
{
    j->returned = (double)j->kernels->count(j->left, j->n, j->a);
}

/* ---- blocks of 16: n is how many */
static void make_blocks(job *j)
{
    make_scores(j, j->n * KNA_BLOCK);
    check_place_out(j, 1, j->n, sizeof(float));
}

static void make_finite_blocks(job *j)
{
    int flavour = j->flavour;
    j->flavour = flavour == INFINITE ? NORMAL : flavour;
    make_blocks(j);
    j->flavour = flavour;
    check_poke_nan(j, 1, j->n * KNA_BLOCK);
}

static void expect_block_max(job *j)
{
    for (size_t b = 0; b < j->n; b++) {
        expect_cell(j, b, largest(j->left + b * KNA_BLOCK, KNA_BLOCK), 0);
    }
}

static void call_block_max(job *j)
{
    j->kernels->block_max(j->out, j->left, j->n);
}

static void expect_block_sum(job *j)
{
    for (size_t b = 0; b < j->n; b++) {
        double sum = 0, size = 0;
        for (size_t i = 0; i < KNA_BLOCK; i++) {
            sum += (double)j->left[b * KNA_BLOCK + i];
            size += fabs((double)j->left[b * KNA_BLOCK + i]);
        }
        expect_cell(j, b, sum, KNA_BLOCK * CHECK_U * size);
    }
}

static void call_block_sum(job *j)
{
    j->kernels->block_sum(j->out, j->left, j->n);
}

static void pieces_block_sum(job *j)
{
    for (size_t b = 0; b < j->n; b++) {
        j->kernels->block_sum(out_of(j) + b, j->left + b * KNA_BLOCK, 1);
    }
}

/* ---- spread, part_sum: n parts of up to 40 numbers, some apart and some side by side; where they start and how long they are in MORE. */
static int32_t *make_parts(job *j, size_t *length)
{
    j->n = j->bench ? j->n : j->n % 60;
    int32_t *parts = check_place(MORE, 2 * j->n * sizeof(int32_t), sizeof(int32_t), j->bench);
    *length = 0;
    for (size_t i = 0; i < j->n; i++) {
        *length += j->bench || test_below(2) ? 0 : test_below(4);
        parts[i] = (int32_t)*length;
        parts[j->n + i] = j->bench ? 18 : (int32_t)test_below(41);
        *length += (size_t)parts[j->n + i];
    }
    return j->ids = parts;
}

static void make_spread(job *j)
{
    size_t length;
    make_parts(j, &length);
    check_fill_left(j, 1, j->n);
    check_poke_nan(j, 1, j->n);
    check_place_out(j, 1, length, sizeof(float));
    for (size_t i = 0; i < length; i++) {
        out_of(j)[i] = (float)i;
    }
}

static void expect_spread(job *j)
{
    for (size_t i = 0; i < j->out_cols; i++) {
        expect_cell(j, i, (double)out_of(j)[i], 0);
    }
    for (size_t i = 0; i < j->n; i++) {
        for (int32_t r = 0; r < j->ids[j->n + i]; r++) {
            expect_cell(j, (size_t)(j->ids[i] + r), (double)j->left[i], 0);
        }
    }
}

static void call_spread(job *j)
{
    j->kernels->spread(j->out, j->left, j->ids, j->ids + j->n, j->n);
}

static void make_part_sum(job *j)
{
    size_t length;
    int flavour = j->flavour;
    make_parts(j, &length);
    j->flavour = flavour == INFINITE ? NORMAL : flavour;
    check_fill_left(j, 1, length);
    j->flavour = flavour;
    check_poke_nan(j, 1, length);
    check_place_out(j, 1, j->n, sizeof(float));
}

static void expect_part_sum(job *j)
{
    for (size_t i = 0; i < j->n; i++) {
        double sum = 0, size = 0;
        for (int32_t r = 0; r < j->ids[j->n + i]; r++) {
            sum += (double)j->left[j->ids[i] + r];
            size += fabs((double)j->left[j->ids[i] + r]);
        }
        expect_cell(j, i, sum, j->ids[j->n + i] * CHECK_U * size);
    }
}

static void call_part_sum(job *j)
{
    j->kernels->part_sum(j->out, j->left, j->ids, j->ids + j->n, j->n);
}

static double work_parts(const job *j)
{
    return 4.0 * 19 * (double)j->n;
}

static double work_blocks(const job *j)
{
    return 4.0 * (KNA_BLOCK + 1) * (double)j->n;
}

#define ENTRY(name) #name, offsetof(kna__kernels, name), false
const check checks_vector[] = {
    { ENTRY(max), false, "n", make_max, expect_max, call_max, NULL, NULL, work_read, "B", { { 1, 64, 0 }, { 1, 4096, 0 } } },
    { ENTRY(exp_sum), false, "n", make_exp_sum, expect_exp_sum, call_exp_sum, NULL, NULL, work_update, "B",
      { { 1, 64, 0 }, { 1, 4096, 0 } } },
    { ENTRY(scale), true, "n", make_update, expect_scale, call_scale, NULL, NULL, work_update, "B",
      { { 1, 64, 0 }, { 1, 4096, 0 } } },
    { ENTRY(axpy), false, "n", make_update, expect_axpy, call_axpy, NULL, NULL, work_update, "B",
      { { 1, 64, 0 }, { 1, 4096, 0 } } },
    { ENTRY(lift), false, "n", make_update, expect_lift, call_lift, NULL, NULL, work_update, "B",
      { { 1, 64, 0 }, { 1, 4096, 0 } } },
    { ENTRY(tilt), false, "n", make_update, expect_tilt, call_tilt, NULL, NULL, work_update, "B",
      { { 1, 64, 0 }, { 1, 4096, 0 } } },
    { ENTRY(softcap), false, "n", make_softcap, expect_softcap, call_softcap, NULL, NULL, work_update, "B", { { 1, 4096, 0 } } },
    { ENTRY(add_f16), false, "n", make_add_f16, expect_add_f16, call_add_f16, NULL, NULL, work_add_f16, "B", { { 1, 4096, 0 } } },
    { ENTRY(select), true, "n", make_select, expect_nothing, call_select, NULL, verify_select, work_read, "B",
      { { 1, 64, 0 }, { 1, 8192, 0 } } },
    { ENTRY(count), true, "n", make_count, expect_count, call_count, NULL, NULL, work_read, "B", { { 1, 64, 0 }, { 1, 8192, 0 } } },
    { ENTRY(block_max), true, "n", make_blocks, expect_block_max, call_block_max, NULL, NULL, work_blocks, "B", { { 1, 512, 0 } } },
    { ENTRY(block_sum), false, "n", make_finite_blocks, expect_block_sum, call_block_sum, pieces_block_sum, NULL, work_blocks, "B",
      { { 1, 512, 0 } } },
    { ENTRY(spread), true, "n", make_spread, expect_spread, call_spread, NULL, NULL, work_parts, "B", { { 1, 16, 0 } } },
    { ENTRY(part_sum), false, "n", make_part_sum, expect_part_sum, call_part_sum, NULL, NULL, work_parts, "B", { { 1, 16, 0 } } },
    { NULL, 0, false, false, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, { { 0 } } },
};
