/*
 * landmarks.c - keys that are in every head: those with the largest column mass, the softmax that the queries of a head have given
 * them (the "heavy hitters" of Zhang et al. 2023, H2O, found here from a sample of the queries and kept beside, not instead of, what
 * each query finds for itself).
 *
 * Invariant: where queries have an order, a set comes from earlier queries of the call alone: masses add up from block to block, and
 * a block's set is made before its own queries are looked at.
 */
#include "nearest.h"

#include <math.h>

enum {
    BLOCK = 64, /* queries that share a set */
    SAMPLE = 16 /* one query in so many is looked at */
};

static int64_t padded(const kna__problem *p)
{
    return (p->n + KNA_BLOCK - 1) / KNA_BLOCK * KNA_BLOCK;
}

void kna__landmarks_cut(nearest_landmarks *l, const kna__problem *p, kna__cutter *cutter)
{
    const kna_attend_options *o = &p->options;
    l->count = o->landmarks;
    l->has_order = o->causal || o->window > 0 || p->mask.data;
    l->blocks = l->has_order ? (p->m + BLOCK - 1) / BLOCK : 1;
    size_t sets = l->count ? kna__size_product((size_t)p->h, (size_t)l->blocks) : 0;
    size_t n = l->count ? (size_t)p->context->threads * (size_t)padded(p) : 0, threads = l->count ? (size_t)p->context->threads : 0;
    l->keys = kna__cut(cutter, kna__size_product(sets, (size_t)l->count), sizeof(int32_t));
    l->found = kna__cut(cutter, sets, sizeof(int32_t));
    l->rooms = kna__cut(cutter, n, sizeof(float));
    l->mass = kna__cut(cutter, n, sizeof(float));
    l->ids = kna__cut(cutter, 2 * n, sizeof(int32_t));
    l->scratch = kna__cut(cutter, 2 * n + threads, sizeof(float));
}

int64_t kna__landmarks_of(const nearest_landmarks *l, int64_t head, int64_t query, const int32_t **keys)
{
    int64_t set = head * l->blocks + (l->has_order ? query / BLOCK : 0);
    *keys = l->keys + set * l->count;
    return l->found[set];
}

/* Adds a query's softmax to the masses; s: room for n. Rows that it does not see may hold anything. */
static void add_query(const nearest_job *job, int64_t head, int64_t query, float *s, float *mass)
{
    const kna__problem *p = job->problem;
    float q[KNA_MAX_DIM];
    int64_t lo, hi;
    kna__visible(p, query, &lo, &hi);
    kna__queries_read(p, q, head / p->g, query * p->g + head % p->g, 1);
    p->kernels->dot[p->k.type](s, (size_t)p->n, q, (size_t)p->d, 1, kna__span_at(&p->k, head / p->g, lo), (size_t)(hi - lo),
                               (size_t)p->d);
    kna__logits_finish(p, head, query, lo, s, hi - lo);
    for (int64_t j = lo; j < hi; j++) {
        bool is_seen = kna__index_has(job->index, j) && s[j - lo] > -INFINITY;
        s[j - lo] = is_seen ? s[j - lo] : -INFINITY;
    }
    kna__state state = kna__soften(p->kernels, s, hi - lo);
    if (state.sum > 0) {
        p->kernels->axpy(mass + lo, (float)(1 / state.sum), s, (size_t)(hi - lo));
    }
}

/* The keys with the largest masses, as a set; keys without any are none. */
static void make_set(const nearest_job *job, int64_t head, int64_t set, const float *mass, int worker)
{
    const nearest_landmarks *l = &job->landmarks;
    const kna__problem *p = job->problem;
    int64_t n = padded(p), at = head * l->blocks + set, found = 0;
    int32_t *ids = l->ids + 2 * n * worker, *keys = l->keys + at * l->count;
    kna__topk(p->kernels, ids, mass, (size_t)n, (size_t)l->count, ids + n, l->scratch + (2 * n + 1) * worker);
    for (int64_t i = 0; i < l->count; i++) {
        if (mass[ids[i]] > 0) {
            keys[found++] = ids[i];
        }
    }
    l->found[at] = (int32_t)found;
}

static void find_of_head(void *argument, int64_t head, int worker)
{
    const nearest_job *job = argument;
    const nearest_landmarks *l = &job->landmarks;
    const kna__problem *p = job->problem;
    int64_t n = padded(p);
    float *s = l->rooms + n * worker, *mass = l->mass + n * worker;
    memset(mass, 0, (size_t)n * sizeof *mass);
    for (int64_t query = 0; query < p->m; query++) {
        if (l->has_order && query % BLOCK == 0) {
            make_set(job, head, query / BLOCK, mass, worker);
        }
        if (query % SAMPLE == SAMPLE / 2) {
            add_query(job, head, query, s, mass);
        }
    }
    if (!l->has_order) {
        make_set(job, head, 0, mass, worker);
    }
}

void kna__landmarks_find(nearest_job *job)
{
    kna__parallel_for(job->problem->context->threads, job->problem->h, find_of_head, job);
}
