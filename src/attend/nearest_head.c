/*
 * nearest_head.c - which keys are the head of a row: the k nearest, or some of a pool of near ones that are not all alike, or some of
 * every group; and landmarks.
 *
 * Invariant: the head's keys ascend, their logits are those of find_nearest(), and no other key's logit is above row->bound. So the
 * same set gives the same bits however it was chosen.
 */
#include "nearest.h"

#include <float.h>
#include <math.h>

/* ---- the nearest of some keys */

/*
 * The bound is that of nearest_of() with half a step of the query's int8 in every column, times the key's largest number. A soft
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

/* Keys by their scores of the scan, whole blocks of them; keys[i] is that of s[i], or first + i where there are none. */
typedef struct scanned {
    const float *s;
    const int32_t *keys;
    int64_t first, count, seen;
} scanned;

static int32_t key_at(const scanned *of, int64_t place)
{
    return of->keys ? of->keys[place] : (int32_t)(of->first + place);
}

/* What a scanned logit may be off by is this times the largest step of the key's int8, and rounding. */
static float scan_slack(const nearest_row *row)
{
    const nearest_job *job = row->job;
    int64_t at = (row->kv_head * job->tile + (row->query - job->query)) * job->problem->g + row->head % job->problem->g;
    return 0.51f * row->q_l1 + 128.0f * job->q_lost[at];
}

float kna__scan_error(const nearest_row *row, int32_t key)
{
    float step = kna__index_scales(row->job->index, row->kv_head, 0)[key];
    return scan_slack(row) * step + 1e-5f * fabsf(row->s[key]);
}

/* Places of keys that could be among the k nearest, as keys, into room->found. Returns how many. */
static int64_t list_candidates(nearest_row *row, const scanned *of, int64_t k)
{
    const nearest_job *job = row->job;
    const kna__kernels *kernels = job->problem->kernels;
    nearest_room *room = &row->room;
    const float *scales = kna__index_scales(job->index, row->kv_head, 0);
    float beta = scan_slack(row), kth = INFINITY, sure = -INFINITY, floor_of = -FLT_MAX;
    if (k < of->seen) {
        kna__topk(kernels, room->found, of->s, (size_t)of->count, (size_t)k, room->found_scratch, room->topk_scratch);
        for (int64_t i = 0; i < k; i++) {
            kth = fminf(kth, of->s[room->found[i]]);
        }
        sure = kth - beta * job->scale_max - 1e-5f * fabsf(kth);
        floor_of = sure - beta * job->scale_max;
    }
    int64_t candidates = (int64_t)kernels->select(room->found, of->s, (size_t)of->count, floor_of, 0), kept = 0;
    for (int64_t i = 0; i < candidates; i++) {
        float s = of->s[room->found[i]];
        int32_t key = key_at(of, room->found[i]);
        if (s + beta * scales[key] + 1e-5f * fabsf(s) >= sure) {
            room->approx[kept] = s;
            room->found[kept++] = key;
        }
    }
    return kept;
}

/*
 * Exact top-k. An approximate logit is off by at most scale_j * beta: half a step of the key's int8 in every column, times |q|,
 * and its largest number, 127 steps, times what the query's two int8 parts lost; plus what f32 products lose (0.51 in place of
 * 0.5 covers that up to d = 1,024; soft cap only shrinks differences). The k-th largest approximation less its error is below
 * the true k-th logit, so only keys that could reach it are scored in full. Keys and logits, ascending by key.
 */
static void nearest_of(nearest_row *row, const scanned *of, int64_t k, int32_t *ids, float *exact)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    int64_t kept = list_candidates(row, of, k);
    p->kernels->dot_at[p->k.type](room->work, 0, row->q, 0, 1, kna__span_at(&p->k, row->kv_head, 0), room->found, (size_t)kept,
                                  (size_t)p->d);
    kna__logits_finish_at(p, row->head, row->query, room->found, room->work, kept);
    row->stale += count_stale(row, room->found, room->approx, room->work, kept);
    row->scored += kept;
    if (kept > k) {
        kna__topk(p->kernels, ids, room->work, (size_t)kept, (size_t)k, room->found_scratch, room->topk_scratch);
    }
    for (int64_t i = 0; i < k; i++) {
        int64_t at = kept > k ? ids[i] : i;
        exact[i] = room->work[at];
        ids[i] = room->found[at];
    }
}

/* The k nearest of all that is in row->s, as the row's list. */
static void find_nearest(nearest_row *row, int64_t k, int64_t seen)
{
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    nearest_of(row, &(scanned){ row->s + first, NULL, first, count, seen }, k, row->room.ids, row->room.exact);
    row->listed = k;
}

/* Of the row's list only what is taken stays; the largest logit that does not, or the least of all where all do, bounds the rest. */
static void keep_taken(nearest_row *row, const bool *taken)
{
    nearest_room *room = &row->room;
    float least = INFINITY, rejected = -INFINITY;
    int64_t kept = 0;
    for (int64_t i = 0; i < row->listed; i++) {
        least = fminf(least, room->exact[i]);
        if (!taken || taken[i]) {
            room->exact[kept] = room->exact[i];
            room->ids[kept++] = room->ids[i];
        } else {
            rejected = fmaxf(rejected, room->exact[i]);
        }
    }
    row->rejected = row->listed - kept;
    row->bound = rejected > -INFINITY ? rejected : least;
    row->listed = kept;
}

/* ---- keys that are in the head whatever the others are */

/* Marks keys by their logits; -inf: not marked. */
static void mark(nearest_row *row, const int32_t *ids, const float *exact, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        row->room.marked[ids[i]] = exact[i];
    }
}

static void clear_marks(nearest_row *row)
{
    if (row->room.marked) {
        kna__forbid(row->room.marked, row->first_block * KNA_BLOCK, row->end_block * KNA_BLOCK);
    }
}

/* What is marked is the row's list. */
static void list_marked(nearest_row *row)
{
    nearest_room *room = &row->room;
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    row->listed =
        (int64_t)row->job->problem->kernels->select(room->ids, room->marked + first, (size_t)count, -FLT_MAX, (int32_t)first);
    for (int64_t i = 0; i < row->listed; i++) {
        room->exact[i] = room->marked[room->ids[i]];
    }
}

/* Marks the landmarks that the row sees; they are no longer in row->s. Returns how many. */
static int64_t take_landmarks(nearest_row *row)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    const int32_t *landmarks;
    int64_t count = kna__landmarks_of(&row->job->landmarks, row->head, row->query, &landmarks), taken = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t key = landmarks[i];
        if (key >= row->lo && key < row->hi && row->s[key] > -INFINITY) {
            room->approx[taken] = row->s[key];
            room->found[taken++] = key;
            row->s[key] = -INFINITY;
        }
    }
    p->kernels->dot_at[p->k.type](room->work, 0, row->q, 0, 1, kna__span_at(&p->k, row->kv_head, 0), room->found, (size_t)taken,
                                  (size_t)p->d);
    kna__logits_finish_at(p, row->head, row->query, room->found, room->work, taken);
    row->stale += count_stale(row, room->found, room->approx, room->work, taken);
    row->scored += taken;
    mark(row, room->found, room->work, taken);
    return taken;
}

/* ---- diverse heads */

/* Of `count` keys of the row's list, k. */
static void take_of_pool(nearest_row *row, int64_t k)
{
    const kna__problem *p = row->job->problem;
    kna__pool pool = row->room.pool;
    pool.kernels = p->kernels;
    pool.count = row->listed;
    pool.d = p->d;
    pool.logits = row->room.exact;
    for (int64_t i = 0; i < pool.count; i++) {
        p->kernels->widen[p->k.type](pool.unit + i * p->d, (size_t)p->d, kna__span_at(&p->k, row->kv_head, row->room.ids[i]), 1,
                                     (size_t)p->d);
    }
    kna__pool_normalise(&pool);
    if (p->options.diverse == KNA_DIVERSE_MMR) {
        kna__pool_take_mmr(&pool, k, (double)p->options.mmr_lambda);
    } else {
        kna__pool_take_dpp(&pool, k, (double)p->options.dpp_theta);
    }
    keep_taken(row, pool.taken);
}

void kna__groups_sort(const kna__problem *p, nearest_groups *groups)
{
    const kna_attend_options *o = &p->options;
    memset(groups->first, 0, ((size_t)o->key_group_count + 1) * sizeof *groups->first);
    for (int64_t j = 0; j < p->n; j++) {
        groups->first[o->key_groups[j] + 1]++;
    }
    for (int64_t group = 0; group < o->key_group_count; group++) {
        groups->first[group + 1] += groups->first[group];
    }
    for (int64_t j = p->n - 1; j >= 0; j--) { /* ends move down to their beginnings */
        groups->keys[--groups->first[o->key_groups[j] + 1]] = (int32_t)j;
    }
    memmove(groups->first, groups->first + 1, (size_t)o->key_group_count * sizeof *groups->first);
    groups->first[o->key_group_count] = p->n;
}

/* The place of the first of a group's keys that is not below `key`. */
static int64_t group_place(const nearest_groups *groups, int64_t group, int64_t key)
{
    int64_t low = groups->first[group], high = groups->first[group + 1];
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (groups->keys[middle] < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Marks the nearest keys of a group up to its quota, landmarks included. Returns how many are new. */
static int64_t take_of_group(nearest_row *row, int64_t group)
{
    const kna_attend_options *o = &row->job->problem->options;
    const nearest_groups *groups = &row->job->groups;
    nearest_room *room = &row->room;
    int64_t from = group_place(groups, group, row->lo), to = group_place(groups, group, row->hi), held = 0;
    scanned of = { room->part, groups->keys + from, 0, (to - from + KNA_BLOCK - 1) / KNA_BLOCK * KNA_BLOCK, 0 };
    for (int64_t i = 0; i < to - from; i++) {
        room->part[i] = row->s[of.keys[i]];
        of.seen += room->part[i] > -INFINITY;
        held += room->marked[of.keys[i]] > -INFINITY;
    }
    kna__forbid(room->part, to - from, of.count);
    double share = (double)o->quota * (double)o->k_near * (double)(of.seen + held) / (double)row->seen;
    int64_t want = (int64_t)ceil(share - 1e-6) - held; /* 0.2 as a float is above 0.2 */
    want = want < of.seen ? want : of.seen;
    if (want <= 0) {
        return 0;
    }
    nearest_of(row, &of, want, room->ids, room->exact);
    mark(row, room->ids, room->exact, want);
    return want;
}

/* Groups first, then by logit: as many of the nearest as are not marked yet are looked through, so the largest one left is met. */
static void take_quotas(nearest_row *row, int64_t k, int64_t seen)
{
    nearest_room *room = &row->room;
    int64_t taken = 0, left, open = 0;
    for (int64_t group = 0; group < row->job->problem->options.key_group_count; group++) {
        taken += take_of_group(row, group);
    }
    left = k > taken ? k - taken : 0;
    find_nearest(row, k > taken ? k : taken + 1 < seen ? taken + 1 : seen, seen);
    bool *is_taken = room->pool.taken;
    for (int64_t i = 0; i < row->listed; i++) {
        is_taken[i] = room->marked[room->ids[i]] > -INFINITY;
        if (!is_taken[i]) {
            room->work[open++] = room->exact[i];
        }
    }
    float least = left && open ? kna__kth_largest(room->work, (size_t)open, (size_t)(left < open ? left : open)) : INFINITY;
    for (int64_t i = 0; i < row->listed; i++) { /* those above the last one wanted */
        if (!is_taken[i] && room->exact[i] > least) {
            is_taken[i] = true;
            left--;
        }
    }
    for (int64_t i = 0; i < row->listed && left > 0; i++) { /* of equal ones the first */
        if (!is_taken[i] && room->exact[i] == least) {
            is_taken[i] = true;
            left--;
        }
    }
    keep_taken(row, is_taken);
}

void kna__head_choose(nearest_row *row)
{
    const kna_attend_options *o = &row->job->problem->options;
    row->stale = 0;
    row->scored = 0;
    clear_marks(row);
    int64_t landmarks = o->landmarks ? take_landmarks(row) : 0, k = o->k_near - landmarks, seen = row->seen - landmarks;
    if (o->diverse == KNA_DIVERSE_QUOTA) {
        take_quotas(row, k, seen);
    } else if (o->diverse) {
        find_nearest(row, o->pool - landmarks < seen ? o->pool - landmarks : seen, seen);
        take_of_pool(row, k);
    } else {
        find_nearest(row, k, seen);
        keep_taken(row, NULL);
    }
    if (row->room.marked) {
        mark(row, row->room.ids, row->room.exact, row->listed);
        list_marked(row);
    }
}
