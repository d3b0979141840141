/* finite.c - NaN and infinity in an operand are an error that says where, not a NaN somewhere in the output. */
#include "problem.h"

#include <math.h>

typedef struct finite_job {
    const kna_rows *rows;
    int64_t chunks;      /* tasks per head */
    int64_t *first_bad;  /* per task: column + dim * row, or -1 */
} finite_job;

enum { ROWS_PER_TASK = 1024 };

static void find_bad(void *argument, int64_t task, int worker)
{
    const finite_job *job = argument;
    (void)worker;
    int64_t head = task / job->chunks, first = task % job->chunks * ROWS_PER_TASK;
    int64_t end = first + ROWS_PER_TASK < job->rows->rows ? first + ROWS_PER_TASK : job->rows->rows;
    job->first_bad[task] = -1;
    for (int64_t row = first; row < end; row++) {
        kna__span span = kna__span_at(job->rows, head, row);
        int64_t at = kna__find_nonfinite(job->rows->type, span.data, span.scales ? span.scales[0] : 1.0f, job->rows->dim);
        if (at >= 0) {
            job->first_bad[task] = row * job->rows->dim + at;
            return;
        }
    }
}

int kna__rows_finite(kna_context *context, const kna_rows *rows, const char *name)
{
    int64_t chunks = (rows->rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, tasks = chunks * rows->heads;
    finite_job job = { rows, chunks, (int64_t *)(void *)kna__scratch(context, kna__size_product((size_t)tasks, sizeof(int64_t))) };
    if (!job.first_bad) {
        return KNA_FAIL(context, KNA_ENOMEM, "out of memory");
    }
    kna__parallel_for(tasks > 4 ? context->threads : 1, tasks, find_bad, &job);
    for (int64_t task = 0; task < tasks; task++) {
        if (job.first_bad[task] >= 0) {
            return KNA_FAIL(context, KNA_EVALUE, "%s: NaN or infinity at head %lld, row %lld, column %lld", name,
                            (long long)(task / chunks), (long long)(job.first_bad[task] / rows->dim),
                            (long long)(job.first_bad[task] % rows->dim));
        }
    }
    return KNA_OK;
}

static float mask_value(const kna_mask *mask, int64_t head, int64_t row, int64_t column)
{
    const char *at = (const char *)mask->data + head * mask->head_stride_bytes + row * mask->row_stride_bytes;
    if (mask->type == KNA_F32) {
        float x;
        memcpy(&x, at + 4 * column, sizeof x);
        return x;
    }
    uint16_t half;
    memcpy(&half, at + 2 * column, sizeof half);
    bool bad = (half & 0x7c00) == 0x7c00 && half != 0xfc00;
    return bad ? NAN : half == 0xfc00 ? -INFINITY : 0.0f;
}

/* A mask may hold -infinity, which forbids a pair, but neither NaN nor +infinity. */
static int check_mask(const kna__problem *p)
{
    for (int64_t head = 0; p->mask.data && head < p->mask.heads; head++) {
        for (int64_t row = 0; row < p->m; row++) {
            for (int64_t column = 0; column < p->n; column++) {
                float x = mask_value(&p->mask, head, row, column);
                if (isnan(x) || x == INFINITY) {
                    return KNA_FAIL(p->context, KNA_EVALUE, "mask: NaN or +infinity at head %lld, row %lld, column %lld",
                                    (long long)head, (long long)row, (long long)column);
                }
            }
        }
    }
    return KNA_OK;
}

int kna__problem_finite(const kna__problem *p)
{
    KNA_TRY(kna__rows_finite(p->context, &p->q, "queries"));
    KNA_TRY(kna__rows_finite(p->context, &p->k, "keys"));
    KNA_TRY(kna__rows_finite(p->context, &p->v, "values"));
    return check_mask(p);
}
