/*
 * backward_list.c - gradients of rows that are lists of keys (lists.h).
 *
 * With p the shares of a row's fixed entries, t what they leave, drawn in s equal parts, x_l = <dout, v_l>, A = sum of p x over the
 * fixed ones and x' the mean of x over the drawn ones:
 *   dS_l = p_l (x_l - A - t x')                             of a fixed entry
 *   dS_l = t / s (x_l - A - t (s x' - x_l) / (s - 1))       of a drawn one: the others stand for the mean of the rest
 * Delta is in the brackets: A + t x', known from the list itself. Where nothing is drawn this is the exact gradient of what the list
 * says, its keys and what each stands for held fixed. A draw left out of its own mean makes the covariance of a sample unbiased.
 * Either way the dS of a row add up to 0 and its shares to 1 (less a sink's).
 *
 * Invariant: an element of dk or dv is added to by one task, row after row, so the result does not depend on the threads.
 */
#include "backward_tile.h"
#include "lists.h"

enum {
    SLICE = 32, /* columns of a gradient per task: two cache lines of a scattered row */
    PIECE = 256
};

typedef struct list_job {
    const kna__backward *b;
    kna__lists *lists;
    kna__lists_block block;
    int64_t dk_slices, dv_slices;
} list_job;

void kna__lists_cut(kna__lists *lists, int64_t rows, int64_t entries, kna__cutter *cutter)
{
    lists->first = kna__cut(cutter, (size_t)rows + 1, sizeof(int64_t));
    lists->count = kna__cut(cutter, (size_t)rows, sizeof(int64_t));
    lists->fixed = kna__cut(cutter, (size_t)rows, sizeof(int64_t));
    lists->weight = kna__cut(cutter, (size_t)rows, sizeof(float));
    lists->keys = kna__cut(cutter, (size_t)entries, sizeof(int32_t));
    lists->shares = kna__cut(cutter, (size_t)entries, sizeof(float));
    lists->slopes = kna__cut(cutter, (size_t)entries, sizeof(float));
    lists->cells = NULL;
}

static void read_dout(const kna__backward *b, int64_t head, int64_t query, float *dout)
{
    const kna__problem *p = &b->problem;
    p->kernels->widen[b->dout.type](dout, (size_t)p->dv, kna__span_at(&b->dout, head, query), 1, (size_t)p->dv);
}

/* x to dS, in place; `known` is what is added to Delta beside these entries. Returns Delta. */
static double tilt(float *x, const float *shares, int64_t fixed, int64_t count, double known)
{
    double left = 0, sum = 0, others = (double)(count - fixed - 1);
    for (int64_t i = 0; i < fixed; i++) {
        known += (double)shares[i] * (double)x[i];
    }
    for (int64_t i = fixed; i < count; i++) {
        left += (double)shares[i];
        sum += (double)x[i];
    }
    double delta = count > fixed ? known + left * sum / (double)(count - fixed) : known;
    for (int64_t i = 0; i < count; i++) {
        double mine = i < fixed || others < 1 ? delta : known + left * (sum - (double)x[i]) / others;
        x[i] = (float)((double)shares[i] * ((double)x[i] - mine));
    }
    return delta;
}

/* A soft cap's slope at every key. */
static void uncap(const list_job *job, int64_t kv_head, const float *q, const int32_t *keys, float *slopes, int64_t count)
{
    const kna__problem *p = &job->b->problem;
    float raw[PIECE];
    for (int64_t i = 0; p->options.softcap > 0 && i < count; i += PIECE) {
        int64_t some = count - i < PIECE ? count - i : PIECE;
        p->kernels->dot_at[p->k.type](raw, 0, q, 0, 1, kna__span_at(&p->k, kv_head, 0), keys + i, (size_t)some, (size_t)p->d);
        kna__backward_uncap(p, slopes + i, raw, some);
    }
}

/* Slopes of a row, and its dq. */
static void differentiate_row(void *argument, int64_t row, int worker)
{
    const list_job *job = argument;
    const kna__problem *p = &job->b->problem;
    int64_t head = job->block.kv_head * p->g + row / job->block.queries, query = job->block.query + row % job->block.queries;
    int64_t first = job->lists->first[row], count = job->lists->count[row], kv_head = head / p->g;
    const int32_t *keys = job->lists->keys + first;
    float *shares = job->lists->shares + first, *slopes = job->lists->slopes + first, q[KNA_MAX_DIM], dout[KNA_MAX_DIM];
    float *dq = kna__gradient_at(&job->b->dq, head, query);
    const kna__list_cells *cells = job->lists->cells;
    (void)worker;
    if (!count) {
        return;
    }
    read_dout(job->b, head, query, dout);
    kna__queries_read(p, q, kv_head, query * p->g + head % p->g, 1);
    p->kernels->dot_at[p->v.type](slopes, 0, dout, 0, 1, kna__span_at(&p->v, kv_head, 0), keys, (size_t)count, (size_t)p->dv);
    double by_cells = cells ? kna__list_cells_delta(job->lists, p, kv_head, row, dout, slopes) : 0;
    double delta = tilt(slopes, shares, job->lists->fixed[row], count, by_cells);
    if (cells) {
        kna__list_cells_tilt(job->lists, p, kv_head, row, delta);
    }
    uncap(job, kv_head, q, keys, slopes, count);
    p->kernels->scale(shares, job->lists->weight[row], (size_t)count);
    p->kernels->scale(slopes, job->lists->weight[row], (size_t)count);
    if (dq) {
        p->kernels->mix_at[p->k.type](dq, 0, slopes, 0, 1, kna__span_at(&p->k, kv_head, 0), keys, (size_t)count, (size_t)p->d);
        if (cells) {
            kna__list_cells_pull(job->lists, p, kv_head, row, dq);
        }
        p->kernels->scale(dq, p->scale, (size_t)p->d);
    }
}

/* What a row adds to columns column .. column + columns - 1 of dk (is_key) or dv. */
static void add_row(const list_job *job, int64_t head, int64_t query, bool is_key, int64_t column, int64_t columns)
{
    const kna__backward *b = job->b;
    const kna__problem *p = &b->problem;
    int64_t row = (head - job->block.kv_head * p->g) * job->block.queries + query - job->block.query;
    int64_t first = job->lists->first[row], end = first + job->lists->count[row], kv_head = head / p->g;
    const kna_out_rows *to = is_key ? &b->dk : &b->dv;
    const float *weights = is_key ? job->lists->slopes : job->lists->shares;
    float x[KNA_MAX_DIM];
    if (first == end) {
        return;
    }
    if (is_key) {
        kna__queries_read(p, x, kv_head, query * p->g + head % p->g, 1);
    } else {
        read_dout(b, head, query, x);
    }
    for (int64_t i = first; i < end; i++) {
        float *at = kna__gradient_at(to, kv_head, job->lists->keys[i]);
        p->kernels->axpy(at + column, weights[i], x + column, (size_t)columns);
    }
    if (job->lists->cells) {
        kna__list_cells_add(job->lists, p, kv_head, row, is_key, x, column, columns);
    }
}

/* All rows' part in some columns of dk or dv of a KV head. */
static void add_slice(void *argument, int64_t task, int worker)
{
    const list_job *job = argument;
    const kna__problem *p = &job->b->problem;
    int64_t slices = job->dk_slices + job->dv_slices, kv_head = job->block.kv_head + task / slices, slice = task % slices;
    bool is_key = slice < job->dk_slices;
    int64_t column = SLICE * (is_key ? slice : slice - job->dk_slices), dim = is_key ? p->d : p->dv;
    int64_t columns = dim - column < SLICE ? dim - column : SLICE;
    (void)worker;
    for (int64_t query = job->block.query; query < job->block.query + job->block.queries; query++) {
        for (int64_t head = kv_head * p->g; head < (kv_head + 1) * p->g; head++) {
            add_row(job, head, query, is_key, column, columns);
        }
    }
}

void kna__lists_differentiate(const kna__backward *b, kna__lists *lists, kna__lists_block block)
{
    const kna__problem *p = &b->problem;
    list_job job = { b, lists, block, b->dk.data ? (p->d + SLICE - 1) / SLICE : 0, b->dv.data ? (p->dv + SLICE - 1) / SLICE : 0 };
    kna__parallel_for(p->context->threads, block.kv_heads * p->g * block.queries, differentiate_row, &job);
    kna__parallel_for(p->context->threads, block.kv_heads * (job.dk_slices + job.dv_slices), add_slice, &job);
}
