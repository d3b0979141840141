/*
 * nearest_row.c - one row: which keys it sees, the k nearest of them, their softmax. The rest is dropped; its mass is known from
 * the scan all the same.
 */
#include "sampled.h"

#include <math.h>

/* -inf for what is not seen within the blocks first_block .. end_block - 1. */
static void cut_edges(nearest_row *row)
{
    const uint16_t *present = row->job->index->present;
    kna__forbid(row->s, row->first_block * KNA_BLOCK, row->lo);
    kna__forbid(row->s, row->hi, row->end_block * KNA_BLOCK);
    for (int64_t b = row->first_block; b < row->end_block; b++) {
        for (unsigned absent = (unsigned)(uint16_t)~present[b]; absent; absent &= absent - 1) {
            row->s[b * KNA_BLOCK + __builtin_ctz(absent)] = -INFINITY;
        }
    }
}

/* Finishes the logits of what the row sees; -inf for the rest. */
static void see(nearest_row *row)
{
    const kna__problem *p = row->job->problem;
    row->first_block = row->lo / KNA_BLOCK;
    row->end_block = (row->hi + KNA_BLOCK - 1) / KNA_BLOCK;
    row->listed = 0;
    row->seen = 0;
    row->q_l1 = 0;
    for (int64_t c = 0; c < p->d; c++) {
        row->q_l1 += fabsf(row->q[c]);
    }
    kna__logits_finish(p, row->head, row->query, row->lo, row->s + row->lo, row->hi - row->lo);
    cut_edges(row);
    for (int64_t j = row->lo; j < row->hi; j++) {
        row->seen += row->s[j] > -INFINITY;
    }
}

/*
 * The bound is that of find_nearest() with half a step of the query's int8 in every column, times the key's largest number. A soft
 * cap only shrinks differences: fewer are found.
 */
static int32_t count_stale(const nearest_row *row, const int32_t *ids, const float *approx, const float *exact, int64_t count)
{
    const nearest_job *job = row->job;
    const kna__problem *p = job->problem;
    const float *scales = kna__index_scales(job->index, row->kv_head, 0);
    int64_t at = (row->kv_head * job->tile + (row->query - job->query)) * p->g + row->head % p->g;
    float lost = job->q_scale[at] * 0.5f * (float)p->d * 127.0f, beta = 0.51f * row->q_l1 + lost;
    int32_t stale = 0;
    for (int64_t i = 0; i < count; i++) {
        float bound = beta * scales[ids[i]] + 1e-5f * fabsf(exact[i]) + 1e-6f * p->options.softcap;
        stale += !(fabsf(exact[i] - approx[i]) <= bound);
    }
    return stale;
}

/*
 * Exact top-k. An approximate logit is off by at most scale_j * beta: half a step of the key's int8 in every column, times |q|,
 * and its largest number, 127 steps, times what the query's two int8 parts lost; plus what f32 products lose (0.51 in place of
 * 0.5 covers that up to d = 1,024; soft cap only shrinks differences). The k-th largest approximation less its error is below
 * the true k-th logit, so only keys that could reach it are scored in full.
 */
static void find_nearest(nearest_row *row, int64_t k)
{
    const nearest_job *job = row->job;
    const kna__problem *p = job->problem;
    nearest_room *room = &row->room;
    const float *scales = kna__index_scales(job->index, row->kv_head, 0);
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    int64_t q_at = (row->kv_head * job->tile + (row->query - job->query)) * p->g + row->head % p->g;
    float beta = 0.51f * row->q_l1 + 128.0f * job->q_lost[q_at], kth = INFINITY;
    kna__topk(p->kernels, room->found, row->s + first, (size_t)count, (size_t)k, room->found_scratch, room->topk_scratch);
    for (int64_t i = 0; i < k; i++) {
        kth = fminf(kth, row->s[first + room->found[i]]);
    }
    float sure = kth - beta * job->scale_max - 1e-5f * fabsf(kth);
    int64_t candidates = (int64_t)p->kernels->select(room->found, row->s + first, (size_t)count, sure - beta * job->scale_max, 0);
    int64_t kept = 0;
    for (int64_t i = 0; i < candidates; i++) {
        int64_t j = first + room->found[i];
        if (row->s[j] + beta * scales[j] + 1e-5f * fabsf(row->s[j]) >= sure) {
            room->found[kept++] = (int32_t)j;
        }
    }
    p->kernels->dot_at[p->k.type](room->work, 0, row->q, 0, 1, kna__span_at(&p->k, row->kv_head, 0), room->found, (size_t)kept,
                                  (size_t)p->d);
    kna__logits_finish_at(p, row->head, row->query, room->found, room->work, kept);
    for (int64_t i = 0; i < kept; i++) {
        room->approx[i] = row->s[room->found[i]];
    }
    row->stale = count_stale(row, room->found, room->approx, room->work, kept);
    row->scored = kept;
    if (kept > k) {
        kna__topk(p->kernels, room->ids, room->work, (size_t)kept, (size_t)k, room->found_scratch, room->topk_scratch);
    }
    for (int64_t i = 0; i < k; i++) {
        int64_t at = kept > k ? room->ids[i] : i;
        room->exact[i] = room->work[at];
        room->ids[i] = room->found[at];
    }
    row->listed = k;
}

/* Bytes read: keys scored, values mixed, the scan; in those of one key and its value. */
static double bytes_read(const nearest_row *row, int64_t keys, int64_t values)
{
    const nearest_job *job = row->job;
    const kna__problem *p = job->problem;
    double key = (double)kna__row_bytes(p->k.type, p->d), value = (double)kna__row_bytes(p->v.type, p->dv);
    double scan = (double)((row->end_block - row->first_block) * KNA_BLOCK) * (double)(job->index->d4 * 4 + sizeof(float));
    return row->seen ? ((double)keys * key + (double)values * value + scan) / (key + value) : 0;
}

static void attend_exact(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    stats->exact = true;
    stats->keys_full = (float)row->seen;
    stats->read = bytes_read(row, row->seen, row->seen);
    stats->audit_error = kna__is_audited(p, row->head, row->query) ? 0 : -1;
    kna__state state = kna__exact_row(p, row->job->index, row->head, row->query, row->q, row->room.values);
    kna__state_write(p, row->head, row->query, state, row->room.values);
}

/* The tail is dropped; its mass is known from the scan all the same. */
static void attend_topk(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    kna__state state = kna__soften(p->kernels, room->exact, row->listed);
    memcpy(room->work, row->s + first, (size_t)count * sizeof(float));
    double all = (double)p->kernels->exp_sum(room->work, state.max, (size_t)count);
    double scanned = 0; /* what the scan took the listed keys for: their true weights replace it */
    for (int64_t i = 0; i < row->listed; i++) {
        scanned += (double)room->work[room->ids[i] - first];
    }
    double tail = fmax(0, all - scanned);
    stats->tail_mass = (float)(tail / (tail + state.sum + kna__sink_weight(p, row->head, state.max)));
    stats->stale = row->stale;
    memset(room->values, 0, (size_t)p->dv * sizeof(float));
    p->kernels->mix_at[p->v.type](room->values, 0, room->exact, 0, 1, kna__span_at(&p->v, row->kv_head, 0), room->ids,
                                  (size_t)row->listed, (size_t)p->dv);
    kna__state_write(p, row->head, row->query, state, room->values);
}

void kna__nearest_attend(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    memset(stats, 0, sizeof *stats);
    stats->error_est = stats->audit_error = stats->radius = -1;
    see(row);
    stats->keys_seen = (float)row->seen;
    if (row->seen <= p->options.k_near) {
        attend_exact(row, stats);
        kna__sampled_exact(row);
        return;
    }
    find_nearest(row, p->options.k_near);
    if (p->options.method == KNA_TOPK) {
        attend_topk(row, stats);
        stats->keys_full = (float)row->listed;
    } else {
        kna__sampled_attend(row, stats);
    }
    if (p->options.radius) {
        p->options.radius[row->head * p->m + row->query] = stats->radius;
    }
    stats->read = bytes_read(row, row->scored, row->listed);
}
