/*
 * knn_level.c - how large k must be, for each KV head, that rows are rarely farther than eps from exact attention.
 *
 * No bound known beforehand is of use on real heads, but a few rows drawn at random and computed exactly tell how often the error
 * is too large, and k follows that as in adaptive conformal inference (Gibbs & Candes 2021): a row that is off raises the level,
 * log2 k, by 1 - aim, one that is not lowers it by aim. So of T rows drawn of a KV head at most
 *
 *     aim T + level now - level at the start
 *
 * are off, whatever the rows: that is what the level has moved by (at its lower end it moves less). It cannot run away, for above
 * log2 n every key is read and no row is off. Rows not drawn are off as often, up to chance.
 *
 * The aim is three quarters of delta. With delta itself chance alone puts every other KV head above it: of some 500 rows drawn, a share
 * of 0.05 is known to a fifth of itself.
 *
 * Rows that read every key are not off, and lower the level like others, and how many clusters are worth a look goes by the level, too:
 * or it would never come down to where they need not. A low start (k = 48) was tried: it reads little less, and what it learns is paid for
 * by rows that are off.
 *
 * A block is computed with the levels that earlier ones have left, so k never comes from later queries; blocks are short where
 * levels are in use. Computing a block again with a larger k when too many of its rows are off was tried: its rows then hang on
 * each other, and drawn rows that decide whether a result stays say too little of its errors (0.4 to 0.7 of what is off in a flat
 * layer).
 */
#include "knn.h"

#include <math.h>

#define LEAST_LEVEL 4.0f                /* k = 16 */
#define AIM         0.75                /* of delta */
#define SHARE_MANY  (1.0 / 96)          /* of the rows of a block; auditing them costs 5 % at 8,192 keys */
#define SHARE_FEW   (1.0 / 64)          /* of the rows decoded, each of which takes as long as an exact one */
#define STREAM      ((uint64_t)1 << 32) /* of random numbers; below are those of audits */

bool kna__knn_has_levels(const kna__problem *p)
{
    return p->options.delta > 0;
}

kna__draw kna__knn_draw(const kna__problem *p, const kna_index *index)
{
    double share = p->m * p->g <= KNA_DECODE_ROWS ? SHARE_FEW : SHARE_MANY;
    return (kna__draw){ kna__knn_has_levels(p) ? share : 0, STREAM + index->draws };
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
    call->k_most = call->k ? 0 : p->options.k_near;
    for (int64_t head = 0; head < p->h_kv && call->k; head++) {
        double level = level_of(p, index, head);
        call->k[head] = level >= log2((double)p->n) ? p->n : (int64_t)ceil(exp2(level));
        call->k_most = call->k[head] > call->k_most ? call->k[head] : call->k_most;
    }
}

/* By the block's rows that were drawn; those that read every key are not off, and lower it too, or it would never come down to where they need not. */
void kna__knn_move_levels(const knn_call *call, kna_index *index)
{
    const kna__problem *p = call->problem;
    for (int64_t row = call->query * p->h; row < (call->query + call->queries) * p->h; row++) {
        const kna__row_stats *stats = &call->stats[row];
        int64_t kv_head = row % p->h / p->g;
        if (stats->drawn) {
            double moved = (stats->audit_error > p->options.eps) - AIM * (double)p->options.delta;
            index->level[kv_head] = fmaxf((float)(level_of(p, index, kv_head) + moved), LEAST_LEVEL);
        }
    }
}
