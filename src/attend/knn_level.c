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
 * log2 n every key is read and no row is off. Rows not drawn are off as often, up to chance. So that a whole block does not pay for a
 * start that was too low, one of whose drawn rows more than 2 delta and one are off is computed again with twice the k; only what is
 * left in the end is counted.
 */
#include "knn.h"

#include <math.h>

enum { DRAWS = 1 /* streams of random numbers from 1 << 32 on; below are those of audits */ };

#define LEAST_LEVEL 4.0f /* k = 16 */
#define SHARE_MANY \
    (1.0 / 96.0) /* of the rows of a block: 16 per KV head with three query heads each, which costs 5 % at 8,192 keys */
#define SHARE_FEW (1.0 / 64.0) /* of the rows decoded, each of which takes as long as an exact one */

bool kna__knn_has_levels(const kna__problem *p)
{
    return p->options.delta > 0;
}

kna__draw kna__knn_draw(const kna__problem *p, const kna_index *index)
{
    double share = p->m * p->g <= KNA_DECODE_ROWS ? SHARE_FEW : SHARE_MANY;
    return (kna__draw){ kna__knn_has_levels(p) ? share : 0, ((uint64_t)DRAWS << 32) + index->draws };
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

bool kna__knn_judge(const knn_call *call, kna_index *index)
{
    const kna__problem *p = call->problem;
    bool again = false;
    for (int64_t head = 0; head < p->h_kv; head++) {
        if (fails(call, index, head)) {
            index->level[head] = (float)level_of(p, index, head) + 1;
            again = true;
        }
    }
    for (int64_t head = 0; head < p->h_kv && !again; head++) {
        draws d = draws_of(call, head);
        double moved = level_of(p, index, head) + (double)d.off - (double)p->options.delta * (double)d.drawn;
        index->level[head] = fmaxf((float)moved, LEAST_LEVEL);
    }
    return again;
}
