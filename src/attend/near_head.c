/*
 * near_head.c - which keys of a row are read in full: blocks seen in part, sinks, the recent window, and the k nearest.
 *
 * "Recent" and "first" count the keys the query sees, in cache order, so that both mean the same under a mask, where the
 * position of a query is not known.
 */
#include "near.h"

#include <math.h>

static void forbid(float *s, int64_t from, int64_t to)
{
    for (int64_t j = from; j < to; j++) {
        s[j] = -INFINITY;
    }
}

/* -inf for what is not seen within the blocks first_block .. end_block - 1. */
static void cut_edges(near_row *row)
{
    const uint16_t *present = row->job->index->present;
    forbid(row->s, row->first_block * KNA_BLOCK, row->lo);
    forbid(row->s, row->hi, row->end_block * KNA_BLOCK);
    for (int64_t b = row->first_block; b < row->end_block; b++) {
        for (unsigned absent = (unsigned)(uint16_t)~present[b]; absent; absent &= absent - 1) {
            row->s[b * KNA_BLOCK + __builtin_ctz(absent)] = -INFINITY;
        }
    }
}

/*
 * A block's sum after `change` was added to it. Where that was large (a finite mask of -10^9, say), what is left of the sum
 * is mostly rounding: it is added up anew.
 */
static void change_tail(near_row *row, int64_t block, float change)
{
    row->room.tail_sum[block] += change;
    if (fabsf(change) > 64) {
        float sum = 0;
        for (int64_t j = block * KNA_BLOCK; j < (block + 1) * KNA_BLOCK; j++) {
            sum += row->s[j] > -INFINITY ? row->s[j] : 0;
        }
        row->room.tail_sum[block] = sum;
    }
}

/* Put key j on the exact list and out of the tail. */
static void list_key(near_row *row, int64_t j)
{
    int64_t b = j / KNA_BLOCK;
    float logit = row->s[j];
    row->room.ids[row->listed] = (int32_t)j;
    row->room.approx[row->listed++] = logit;
    row->s[j] = -INFINITY;
    if (row->room.tail_count[b] > 0) {
        row->room.tail_count[b] -= 1;
        row->untaken--;
        change_tail(row, b, -logit);
    }
}

static void list_part_block(near_row *row, int64_t block)
{
    for (int64_t j = block * KNA_BLOCK; j < (block + 1) * KNA_BLOCK; j++) {
        if (row->s[j] > -INFINITY) {
            list_key(row, j);
            row->seen++;
        }
    }
}

/*
 * Sort the blocks: unseen, whole (its 16 logits are all finite, so their sum is) or seen in part. Parts are listed later, when
 * sinks and window have been counted, because they count too.
 */
static void sort_blocks(near_row *row)
{
    const kna__kernels *kernels = row->job->problem->kernels;
    near_room *room = &row->room;
    int64_t first = row->first_block, blocks = row->end_block - first;
    kernels->block_sum(room->tail_sum + first, row->s + first * KNA_BLOCK, (size_t)blocks);
    row->whole = 0;
    for (int64_t b = first; b < row->end_block; b++) {
        bool is_whole = room->tail_sum[b] > -INFINITY;
        room->tail_count[b] = is_whole ? KNA_BLOCK : 0;
        row->whole += is_whole;
    }
    row->untaken = row->whole * KNA_BLOCK;
}

/* The first `sinks` keys seen. Keys of blocks seen in part count, but are left for list_parts(). */
static void list_first(near_row *row, int64_t sinks)
{
    for (int64_t j = row->lo; j < row->hi && sinks > 0; j++) {
        if (row->s[j] > -INFINITY) {
            sinks--;
            if (row->room.tail_count[j / KNA_BLOCK] > 0) {
                list_key(row, j);
            }
        }
    }
}

/* The last `window` keys seen. A sink met again counts as seen: its logit was set aside, so it is skipped without harm. */
static void list_last(near_row *row, int64_t window)
{
    for (int64_t j = row->hi - 1; j >= row->lo && window > 0; j--) {
        if (row->s[j] > -INFINITY) {
            window--;
            if (row->room.tail_count[j / KNA_BLOCK] > 0) {
                list_key(row, j);
            }
        }
    }
}

static void list_parts(near_row *row)
{
    row->seen = row->whole * KNA_BLOCK;
    for (int64_t b = row->first_block; b < row->end_block; b++) {
        if (!(row->room.tail_sum[b] > -INFINITY)) {
            list_part_block(row, b);
        }
    }
}

void kna__near_see(near_row *row)
{
    const kna__problem *p = row->job->problem;
    row->first_block = row->lo / KNA_BLOCK;
    row->end_block = (row->hi + KNA_BLOCK - 1) / KNA_BLOCK;
    row->listed = 0;
    row->q_l1 = 0;
    for (int64_t c = 0; c < p->d; c++) {
        row->q_l1 += fabsf(row->q[c]);
    }
    if (!kna__logits_plain(p)) {
        kna__logits_finish(p, row->head, row->query, row->lo, row->s + row->lo, row->hi - row->lo);
    }
    cut_edges(row);
    sort_blocks(row);
    if (p->options.method == KNA_KNN) {
        list_first(row, p->options.near_sinks);
        list_last(row, p->options.near_window);
    }
    list_parts(row);
}

void kna__near_take(near_row *row, int64_t k)
{
    const kna__kernels *kernels = row->job->problem->kernels;
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    kna__topk(kernels, row->room.found, row->s + first, (size_t)count, (size_t)k, row->room.found_scratch, row->room.topk_scratch);
    for (int64_t i = 0; i < k; i++) {
        list_key(row, first + row->room.found[i]);
    }
}

void kna__near_untake(near_row *row, int64_t to)
{
    while (row->listed > to) {
        row->listed--;
        int64_t j = row->room.ids[row->listed], b = j / KNA_BLOCK;
        row->s[j] = row->room.approx[row->listed];
        row->room.tail_count[b] += 1;
        row->untaken++;
        change_tail(row, b, row->s[j]);
    }
}

/*
 * Exact top-k. An approximate logit is off by at most scale_j * beta: half a step of the key's int8 in every column, times |q|,
 * and its largest number, 127 steps, times what the query's two int8 parts lost; plus what f32 products lose (0.51 in place of
 * 0.5 covers that up to d = 1,024; soft cap only shrinks differences). The k-th largest approximation less its error is below
 * the true k-th logit, so only keys that could reach it are scored in full.
 */
void kna__near_topk(near_row *row, int64_t k)
{
    const near_job *job = row->job;
    const kna__problem *p = job->problem;
    near_room *room = &row->room;
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
    p->kernels->dot_at[p->k.type](room->work, row->q, kna__span_at(&p->k, row->kv_head, 0), room->found, (size_t)kept, (size_t)p->d);
    kna__logits_finish_at(p, row->head, row->query, room->found, room->work, kept);
    for (int64_t i = 0; i < kept; i++) {
        room->approx[i] = row->s[room->found[i]];
    }
    row->stale = kna__near_stale(row, room->found, room->approx, room->work, kept);
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
    row->untaken = row->seen - k;
}
