/*
 * backward_chain.c - gradients from keys drawn by the softmax, one step of a random walk from a query to a key: which queries take
 * how many steps (chain.h), and the walk of Haris 2024 (arXiv 2411.04013). What steps add is backward_list.c's to say.
 *
 * joint: one chain per query head for all columns and all three gradients. A query takes pairs of steps in proportion to
 * |dout_i| (1 + |q_i|), a bound of what it can do to dv and dk; by systematic sampling, so that each gets the whole number above or
 * below its due. Pairs, because two draws of a row tell the covariance that dq and dk are made of without knowing Delta, which a
 * walk of single steps would need, exactly. What a query adds is weighed by pairs taken over pairs due: unbiased.
 *
 * signed: the walk itself, for dv. Of each column y of dout by itself, t times: a query i with probability |y_i| / Y, Y = sum |y|,
 * a key l by the softmax of row i, and sign(y_i) Y / t is added to dv_l. (The paper's code makes y positive by adding a constant
 * and takes its walk back by a second one; a sign needs one walk, and is tens of times nearer.) Mean squared error: (Y^2 - |dv|^2) / t.
 */
#include "chain.h"
#include "sampled.h"

#include <math.h>

void kna__chain_cut(kna__chain_plan *plan, kna__cutter *cutter)
{
    const kna__problem *p = &plan->b->problem;
    int chain = p->options.chain;
    bool is_joint = chain == KNA_CHAIN_JOINT, is_signed = chain == KNA_CHAIN_SIGNED;
    size_t rows = kna__size_product((size_t)p->h, (size_t)p->m), dv = (size_t)p->dv;
    plan->running = kna__cut(cutter, kna__size_product((size_t)p->context->threads, (size_t)p->m), sizeof(double));
    plan->draws = kna__cut(cutter, is_joint || is_signed ? rows : 0, sizeof(int64_t));
    plan->weight = kna__cut(cutter, is_joint ? rows : 0, sizeof(float));
    plan->steps = kna__cut(cutter, is_signed ? kna__size_product(rows, dv) : 0, sizeof(int32_t));
    plan->sums = kna__cut(cutter, is_signed ? (size_t)p->h * dv : 0, sizeof(double));
}

static void read_row(const kna_rows *rows, const kna__problem *p, int64_t head, int64_t query, float *x)
{
    p->kernels->widen[rows->type](x, (size_t)rows->dim, kna__span_at(rows, head, query), 1, (size_t)rows->dim);
}

static uint64_t stream_of(int64_t head, int64_t column)
{
    return UINT64_C(1) << 62 | (uint64_t)head << 40 | (uint64_t)column;
}

/* ---- joint */

static double importance(const kna__chain_plan *plan, int64_t head, int64_t query)
{
    const kna__problem *p = &plan->b->problem;
    float dout[KNA_MAX_DIM], q[KNA_MAX_DIM];
    read_row(&plan->b->dout, p, head, query, dout);
    read_row(&p->q, p, head, query, q);
    return sqrt((double)kna__square(p->kernels, dout, p->dv)) * (1 + sqrt((double)kna__square(p->kernels, q, p->d)));
}

/* Every place k + u of a ruler of `pairs` marks is a pair of the query that it falls to. */
static void draw_joint(void *argument, int64_t head, int worker)
{
    const kna__chain_plan *plan = argument;
    const kna__problem *p = &plan->b->problem;
    double *running = plan->running + worker * p->m, sum = 0, u = kna__uniform(p->options.seed, stream_of(head, 0), 0);
    int64_t pairs = p->options.samples * p->m / 2, before = 0;
    for (int64_t query = 0; query < p->m; query++) {
        sum += importance(plan, head, query);
        running[query] = sum;
    }
    for (int64_t query = 0; query < p->m; query++) {
        double from = query ? running[query - 1] : 0, due = sum > 0 ? (double)pairs * ((running[query] - from) / sum) : 0;
        int64_t until = sum > 0 ? (int64_t)floor((double)pairs * (running[query] / sum) + u) : 0;
        plan->draws[head * p->m + query] = 2 * (until - before);
        plan->weight[head * p->m + query] = due > 0 ? (float)((double)(until - before) / due) : 0;
        before = until;
    }
}

/* ---- signed */

static void draw_signed(void *argument, int64_t task, int worker)
{
    const kna__chain_plan *plan = argument;
    const kna__problem *p = &plan->b->problem;
    int64_t head = task / p->dv, column = task % p->dv, steps = p->options.samples * p->m;
    double *running = plan->running + worker * p->m, sum = 0;
    int32_t *to = plan->steps + head * p->m * p->dv + column;
    float dout[KNA_MAX_DIM];
    for (int64_t query = 0; query < p->m; query++) {
        read_row(&plan->b->dout, p, head, query, dout);
        sum += fabs((double)dout[column]);
        running[query] = sum;
        to[query * p->dv] = 0;
    }
    plan->sums[task] = sum;
    for (int64_t step = 0; sum > 0 && step < steps; step++) {
        double x = sum * kna__uniform(p->options.seed, stream_of(head, column), (uint64_t)step);
        to[kna__draw_place(running, p->m, x) * p->dv]++;
    }
}

static void add_columns(void *argument, int64_t row, int worker)
{
    const kna__chain_plan *plan = argument;
    int64_t dv = plan->b->problem.dv;
    (void)worker;
    plan->draws[row] = 0;
    for (int64_t column = 0; column < dv; column++) {
        plan->draws[row] += plan->steps[row * dv + column];
    }
}

typedef struct signed_job {
    const kna__chain_plan *plan;
    const kna__lists *lists;
    kna__lists_block block;
} signed_job;

/* The draws of a row are its columns' in turn. */
static void add_signed_row(const signed_job *job, int64_t head, int64_t query)
{
    const kna__chain_plan *plan = job->plan;
    const kna__problem *p = &plan->b->problem;
    int64_t row = (head - job->block.kv_head * p->g) * job->block.queries + query - job->block.query,
            entry = job->lists->first[row];
    double steps = (double)p->options.samples * (double)p->m;
    float dout[KNA_MAX_DIM];
    if (!job->lists->count[row]) { /* it sees nothing */
        return;
    }
    read_row(&plan->b->dout, p, head, query, dout);
    for (int64_t column = 0; column < p->dv; column++) {
        float each = (float)copysign(plan->sums[head * p->dv + column] / steps, (double)dout[column]);
        for (int32_t i = 0; i < plan->steps[(head * p->m + query) * p->dv + column]; i++) {
            kna__gradient_at(&plan->b->dv, head / p->g, job->lists->keys[entry++])[column] += each;
        }
    }
}

static void add_signed(void *argument, int64_t task, int worker)
{
    const signed_job *job = argument;
    int64_t g = job->plan->b->problem.g, kv_head = job->block.kv_head + task;
    (void)worker;
    for (int64_t query = job->block.query; query < job->block.query + job->block.queries; query++) {
        for (int64_t head = kv_head * g; head < (kv_head + 1) * g; head++) {
            add_signed_row(job, head, query);
        }
    }
}

void kna__chain_add_signed(const kna__chain_plan *plan, const kna__lists *lists, kna__lists_block block)
{
    signed_job job = { plan, lists, block };
    if (plan->b->dv.data) {
        kna__parallel_for(plan->b->problem.context->threads, block.kv_heads, add_signed, &job);
    }
}

/* ---- both */

void kna__chain_draw(kna__chain_plan *plan)
{
    const kna__problem *p = &plan->b->problem;
    int threads = p->context->threads;
    if (p->options.chain == KNA_CHAIN_JOINT) {
        kna__parallel_for(threads, p->h, draw_joint, plan);
    } else if (p->options.chain == KNA_CHAIN_SIGNED) {
        kna__parallel_for(threads, p->h * p->dv, draw_signed, plan);
        kna__parallel_for(threads, p->h * p->m, add_columns, plan);
    }
}
