/* check_dense.c - gemm and transpose. A job's g, n, d are gemm's m, n, inner. */
#include "check.h"

static void fill_rows(job *j, float *x, size_t rows, size_t cols, size_t ld)
{
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < cols; c++) {
            x[r * ld + c] = check_draw(j->flavour, r + c);
        }
    }
}

static float *make_matrix(job *j, size_t rows, size_t cols)
{
    size_t ld = cols + (j->bench ? 0 : test_below(5)), count = rows ? (rows - 1) * ld + cols : 0;
    float *x = check_place(ROWS, count * sizeof(float), sizeof(float), j->bench);
    j->rows = (kna__span){ (const char *)x, ld * sizeof(float), NULL };
    fill_rows(j, x, rows, cols, ld);
    return x;
}

static const float *matrix(const job *j)
{
    return (const float *)(const void *)j->rows.data;
}

static size_t matrix_ld(const job *j)
{
    return j->rows.row_bytes / sizeof(float);
}

/* ---- gemm: a in LEFT, b in ROWS */
static void make_gemm(job *j)
{
    float *b = make_matrix(j, j->d, j->n);
    check_fill_left(j, j->g, j->d);
    if (test_below(2)) {
        check_poke_nan(j, j->g, j->d);
    } else if (j->flavour == NOT_A_NUMBER && j->d && j->n) {
        b[test_below(j->d) * matrix_ld(j) + test_below(j->n)] = NAN;
    }
    j->accumulate = !j->bench && test_below(2);
    check_place_out(j, j->g, j->n, sizeof(float));
    if (j->accumulate) {
        fill_rows(j, j->out, j->g, j->n, j->ldo);
    }
}

static void expect_gemm_cell(job *j, size_t i, size_t c)
{
    double sum = j->accumulate ? (double)((float *)j->out)[i * j->ldo + c] : 0, size = fabs(sum), d = (double)j->d;
    for (size_t k = 0; k < j->d; k++) {
        double product = (double)j->left[i * j->ld_left + k] * (double)matrix(j)[k * matrix_ld(j) + c];
        sum += product;
        size += fabs(product);
    }
    j->want[i * j->out_cols + c] = sum;
    j->bound[i * j->out_cols + c] = (d + 4) * CHECK_U * size + d * CHECK_ETA;
}

static void expect_gemm(job *j)
{
    j->is_judged = true;
    for (size_t i = 0; i < j->g; i++) {
        for (size_t c = 0; c < j->n; c++) {
            expect_gemm_cell(j, i, c);
        }
    }
}

static void call_gemm(job *j)
{
    j->kernels->gemm(j->out, j->ldo, j->left, j->ld_left, matrix(j), matrix_ld(j), j->g, j->n, j->d, j->accumulate);
}

/* Row by row, the columns in two parts. */
static void pieces_gemm(job *j)
{
    size_t first = j->n / 3;
    for (size_t i = 0; i < j->g; i++) {
        float *c = (float *)j->out + i * j->ldo;
        const float *a = j->left + i * j->ld_left;
        j->kernels->gemm(c, j->ldo, a, j->ld_left, matrix(j), matrix_ld(j), 1, first, j->d, j->accumulate);
        j->kernels->gemm(c + first, j->ldo, a, j->ld_left, matrix(j) + first, matrix_ld(j), 1, j->n - first, j->d, j->accumulate);
    }
}

static double work_gemm(const job *j)
{
    return 2.0 * (double)j->g * (double)j->n * (double)j->d;
}

/* ---- transpose: n rows of d to d rows of n */
static void make_transpose(job *j)
{
    make_matrix(j, j->n, j->d);
    check_place_out(j, j->d, j->n, sizeof(float));
}

static void expect_transpose(job *j)
{
    j->is_judged = true;
    for (size_t c = 0; c < j->d; c++) {
        for (size_t r = 0; r < j->n; r++) {
            j->want[c * j->n + r] = (double)matrix(j)[r * matrix_ld(j) + c];
            j->bound[c * j->n + r] = 0;
        }
    }
}

static void call_transpose(job *j)
{
    j->kernels->transpose(j->out, j->ldo, matrix(j), matrix_ld(j), j->n, j->d);
}

static double work_transpose(const job *j)
{
    return 8.0 * (double)j->n * (double)j->d;
}

const check checks_dense[] = {
    { "gemm", offsetof(kna__kernels, gemm), false, false, "gnd", make_gemm, expect_gemm, call_gemm, pieces_gemm, NULL, work_gemm,
      "FLOP", { { 32, 64, 64 }, { 64, 256, 64 }, { 64, 64, 256 }, { 7, 67, 128 } } },
    { "transpose", offsetof(kna__kernels, transpose), false, true, "nd", make_transpose, expect_transpose, call_transpose, NULL,
      NULL, work_transpose, "B", { { 1, 64, 64 }, { 1, 256, 128 } } },
    { NULL, 0, false, false, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, { { 0 } } },
};
