/*
 * knn_level.c - how large k must be, for each KV head, that rows are rarely farther than eps from exact attention.
 *
 * No bound known beforehand is of use on real heads, but a few rows drawn at random and computed exactly tell how often the error is too
 * large, and k follows that as in adaptive conformal inference (Gibbs & Candes 2021): a row that is off raises the level, log2 k, by
 * 1 - delta, one that is not lowers it by delta. So of T rows drawn of a KV head at most
 *
 *     delta T + level now - level at the start
 *
 * are off, whatever the rows: that is what the level has moved by (at its lower end it moves less). It cannot run away, for above
 * log2 n every key is read and no row is off. Rows not drawn are off as often, up to chance.
 *
 * So that a whole block does not pay for a start that was too low, it is checked first by rows of its own: if more than 2 delta and one
 * of those of some KV head are off, it is computed again with twice the k. These rows count for nothing else: a result that stays
 * because they are not off is off elsewhere more often than they say (measured: 1.4 to 2.2 times in a flat layer).
 */
#include "knn.h"

#include <math.h>

#define LEAST_LEVEL 4.0f /* k = 16 */
#define SHARE_MANY \
    (1.0 / 96) /* of the rows of a block: 16 per KV head with three query heads each, which costs 5 % at 8,192 keys */
#define SHARE_CHECK (1.0 / 192)         /* the same, of those that a block is checked by */
#define SHARE_FEW   (1.0 / 64)          /* of the rows decoded, each of which takes as long as an exact one */
#define MEASURED    ((uint64_t)1 << 32) /* streams of random numbers; below are those of audits */
#define CHECKED     ((uint64_t)2 << 32)
#define ATTEMPTS    64 /* more than there are octaves of k */

bool kna__knn_has_levels(const kna__problem *p)
{
    return p->options.delta > 0;
}

static bool is_few(const kna__problem *p)
{
    return p->m * p->g <= KNA_DECODE_ROWS;
}

kna__draw kna__knn_draw(const kna__problem *p, const kna_index *index)
{
    double share = is_few(p) ? SHARE_FEW : SHARE_MANY;
    return (kna__draw){ kna__knn_has_levels(p) ? share : 0, MEASURED + index->draws };
}

static double top_of(const kna__problem *p)
{
    return log2((double)p->n);
}

static double level_of(const kna__problem *p, const kna_index *index, int64_t kv_head)
{
    return index->level[kv_head] > 0 ? (double)index->level[kv_head] : log2((double)p->options.k_near);
}

/* What the levels say now. */
void kna__knn_set_levels(knn_call *call)
{
    const kna__problem *p = call->problem;
    const kna_index *index = call->index;
    call->k_most = p->options.k_near;
    for (int64_t head = 0; head < p->h_kv && call->k; head++) {
        double level = level_of(p, index, head);
        call->k[head] = level >= top_of(p) ? p->n : (int64_t)ceil(exp2(level));
        call->k_most = call->k[head] > call->k_most ? call->k[head] : call->k_most;
    }
}

typedef struct draws {
    int64_t drawn, off;
} draws;

/* The block's rows of a KV head that were drawn and did not read every key anyway. */
static draws draws_of(const knn_call *call, int64_t kv_head)
{
    const kna__problem *p = call->problem;
    draws d = { 0, 0 };
    for (int64_t row = call->query * p->h; row < (call->query + call->queries) * p->h; row++) {
        const kna__row_stats *stats = &call->stats[row];
        bool counts = row % p->h / p->g == kv_head && stats->drawn && !stats->exact;
        d.drawn += counts;
        d.off += counts && stats->audit_error > p->options.eps;
    }
    return d;
}

/* A head that reads every key cannot do better. */
static bool fails(const knn_call *call, const kna_index *index, int64_t kv_head)
{
    const kna__problem *p = call->problem;
    draws d = draws_of(call, kv_head);
    return (double)d.off > 2 * (double)p->options.delta * (double)d.drawn + 1 && level_of(p, index, kv_head) < top_of(p);
}

/* What was drawn for the check is forgotten: rows that decided whether a result stays say too little of its errors. */
static void forget_draws(const knn_call *call)
{
    const kna__problem *p = call->problem;
    for (int64_t row = call->query * p->h; row < (call->query + call->queries) * p->h; row++) {
        kna__row_stats *stats = &call->stats[row];
        stats->audit_error = stats->drawn ? -1 : stats->audit_error;
        stats->drawn = false;
    }
}

bool kna__knn_check(const knn_call *call, kna_index *index, int attempt)
{
    const kna__problem *p = call->problem;
    bool again = false;
    if (!kna__knn_has_levels(p) || is_few(p)) {
        return false;
    }
    kna__audit_rows(p, index, call->stats, call->query, call->queries,
                    (kna__draw){ SHARE_CHECK, CHECKED + ATTEMPTS * index->draws + (uint64_t)attempt });
    for (int64_t head = 0; head < p->h_kv; head++) {
        if (fails(call, index, head)) {
            index->level[head] = (float)level_of(p, index, head) + 1;
            again = true;
        }
    }
    forget_draws(call);
    return again;
}

void kna__knn_move_levels(const knn_call *call, kna_index *index)
{
    const kna__problem *p = call->problem;
    for (int64_t head = 0; head < p->h_kv && kna__knn_has_levels(p); head++) {
        draws d = draws_of(call, head);
        double moved = level_of(p, index, head) + (double)d.off - (double)p->options.delta * (double)d.drawn;
        index->level[head] = fmaxf((float)moved, LEAST_LEVEL);
    }
}
