/*
 * backward_cells.c - gradients through the means of cells (lists.h): of a row that lets means of keys stand in its softmax, as stratified
 * samples do for cells that got none, and a control variate for all.
 *
 * A cell of c members, r of which are not in the row's head, stands with the logit <q, k'>, k' = (c mean - sum of those in the head) / r,
 * and v' likewise. With its share P and dS = P (<dout, v'> - Delta), each of the r members gets dS / r of q and P / r of dout. Here all c
 * get it, by way of the cell, and those of the head give it back: a cell costs a row as much as one key does, not as much as 16.
 *
 * What is held fixed: which keys are members, which are in the head, and how many keys a cell or a key of the sample stands for.
 */
#include "lists.h"

static size_t cells_of(const kna__list_cells *cells)
{
    return (size_t)KNA_STRATA_LEVELS * (size_t)cells->strata.cells;
}

void kna__list_cells_cut(kna__list_cells *cells, const kna__backward *b, int64_t rows, int64_t entries, kna__cutter *cutter)
{
    const kna__problem *p = &b->problem;
    size_t some = (size_t)entries, all = kna__size_product((size_t)p->h_kv, cells_of(cells));
    cells->count = kna__cut(cutter, (size_t)rows, sizeof *cells->count);
    cells->cell = kna__cut(cutter, some, sizeof *cells->cell);
    cells->rest = kna__cut(cutter, some, sizeof *cells->rest);
    cells->shares = kna__cut(cutter, some, sizeof *cells->shares);
    cells->slopes = kna__cut(cutter, some, sizeof *cells->slopes);
    cells->pulls = kna__cut(cutter, some, sizeof *cells->pulls);
    cells->masses = kna__cut(cutter, some, sizeof *cells->masses);
    cells->weights = kna__cut(cutter, some, sizeof *cells->weights);
    cells->in = kna__cut(cutter, some, sizeof *cells->in);
    cells->dk = b->dk.data ? kna__cut(cutter, kna__size_product(all, (size_t)p->d), sizeof(float)) : NULL;
    cells->dv = b->dv.data ? kna__cut(cutter, kna__size_product(all, (size_t)p->dv), sizeof(float)) : NULL;
}

/* Where the cells of a KV head begin, in arrays of all heads. */
static int64_t base_of(const kna__list_cells *cells, int64_t kv_head)
{
    return kv_head * (int64_t)cells_of(cells);
}

static kna__span means_of(const kna__list_cells *cells, const float *means, int64_t kv_head, int64_t dim)
{
    return (kna__span){ (const char *)(means + base_of(cells, kv_head) * dim), (size_t)dim * sizeof(float), NULL };
}

double kna__list_cells_delta(const kna__lists *lists, const kna__problem *p, int64_t kv_head, int64_t row, const float *dout,
                             const float *x)
{
    const kna__list_cells *c = lists->cells;
    int64_t at = lists->first[row], count = c->count[row];
    double delta = 0;
    p->kernels->dot_at[KNA_F32](c->slopes + at, 0, dout, 0, 1, means_of(c, c->strata.value, kv_head, p->dv), c->cell + at,
                                (size_t)count, (size_t)p->dv);
    for (int64_t i = at; i < at + count; i++) {
        c->masses[i] = (double)c->slopes[i] * c->strata.count[base_of(c, kv_head) + c->cell[i]];
    }
    for (int64_t i = 0; i < lists->count[row]; i++) {
        if (c->in[at + i] >= 0) {
            c->masses[at + c->in[at + i]] -= (double)x[i];
        }
    }
    for (int64_t i = at; i < at + count; i++) {
        c->masses[i] /= c->rest[i];
        delta += (double)c->shares[i] * c->masses[i];
    }
    return delta;
}

void kna__list_cells_tilt(const kna__lists *lists, const kna__problem *p, int64_t kv_head, int64_t row, double delta)
{
    const kna__list_cells *c = lists->cells;
    int64_t at = lists->first[row];
    (void)p;
    for (int64_t i = at; i < at + c->count[row]; i++) {
        double share = (double)c->shares[i] / c->rest[i], slope = share * (c->masses[i] - delta);
        c->shares[i] = (float)share;
        c->slopes[i] = (float)slope;
        c->pulls[i] = (float)(slope * c->strata.count[base_of(c, kv_head) + c->cell[i]]);
    }
    for (int64_t i = at; i < at + lists->count[row]; i++) {
        if (c->in[i] >= 0) {
            lists->shares[i] -= c->shares[at + c->in[i]];
            lists->slopes[i] -= c->slopes[at + c->in[i]];
        }
    }
}

void kna__list_cells_pull(const kna__lists *lists, const kna__problem *p, int64_t kv_head, int64_t row, float *dq)
{
    const kna__list_cells *c = lists->cells;
    int64_t at = lists->first[row];
    p->kernels->mix_at[KNA_F32](dq, 0, c->pulls + at, 0, 1, means_of(c, c->strata.key, kv_head, p->d), c->cell + at,
                                (size_t)c->count[row], (size_t)p->d);
}

void kna__list_cells_add(const kna__lists *lists, const kna__problem *p, int64_t kv_head, int64_t row, bool is_key, const float *x,
                         int64_t column, int64_t columns)
{
    const kna__list_cells *c = lists->cells;
    int64_t at = lists->first[row], dim = is_key ? p->d : p->dv;
    float *to = (is_key ? c->dk : c->dv) + base_of(c, kv_head) * dim + column;
    const float *weights = is_key ? c->slopes : c->shares;
    for (int64_t i = at; i < at + c->count[row]; i++) {
        p->kernels->axpy(to + c->cell[i] * dim, weights[i], x + column, (size_t)columns);
    }
}

/* ---- to the members */

typedef struct spreading {
    const kna__backward *b;
    const kna__list_cells *cells;
} spreading;

static void spread_cell(const spreading *job, int64_t kv_head, int32_t cell)
{
    const kna__backward *b = job->b;
    const kna__problem *p = &b->problem;
    const kna__list_cells *c = job->cells;
    int64_t at = base_of(c, kv_head) + cell;
    const int32_t *members = kna__strata_members(&c->strata, kv_head, cell);
    for (int32_t i = 0; i < c->strata.count[at]; i++) {
        if (c->dk) {
            p->kernels->axpy(kna__gradient_at(&b->dk, kv_head, members[i]), 1, c->dk + at * p->d, (size_t)p->d);
        }
        if (c->dv) {
            p->kernels->axpy(kna__gradient_at(&b->dv, kv_head, members[i]), 1, c->dv + at * p->dv, (size_t)p->dv);
        }
    }
}

/* A segment of one KV head at every level: no cell reaches beyond it. */
static void spread_task(void *argument, int64_t task, int worker)
{
    const spreading *job = argument;
    const kna__strata *s = &job->cells->strata;
    int64_t head = task % job->b->problem.h_kv, first = task / job->b->problem.h_kv * (KNA_SEGMENT / KNA_BLOCK);
    int64_t end = first + KNA_SEGMENT / KNA_BLOCK < s->cells ? first + KNA_SEGMENT / KNA_BLOCK : s->cells;
    (void)worker;
    for (int64_t level = 0; level < KNA_STRATA_LEVELS; level++) {
        for (int64_t cell = first; cell < end; cell++) {
            spread_cell(job, head, (int32_t)(level * s->cells + cell));
        }
    }
}

void kna__list_cells_spread(const kna__backward *b, const kna__list_cells *cells)
{
    spreading job = { b, cells };
    int64_t segments = (cells->strata.cells * KNA_BLOCK + KNA_SEGMENT - 1) / KNA_SEGMENT;
    kna__parallel_for(b->problem.context->threads, segments * b->problem.h_kv, spread_task, &job);
}
