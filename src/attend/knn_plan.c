/*
 * knn_plan.c - which rows a few queries read in full, and whose clusters they may use.
 *
 * Clusters are used where every one of the queries sees all members, with nothing added to their logits (a mask of zeros): so
 * no query learns of a key it may not see, whatever causality, windows and masks are made of. All else that some query sees is
 * read in full. So are the first keys where these are not the first rows of all (KNA_FIRST_ROWS), and the recent ones.
 */
#include "knn.h"

int64_t kna__knn_most_ranges(const knn_call *call)
{
    return call->problem->n / KNA_PIECE + call->gaps + 3;
}

void kna__knn_plan_cut(knn_plan *plan, const knn_call *call, kna__cutter *cutter)
{
    kna__knn_list_cut(&plan->clusters, KNA_CLUSTERS, call->problem->n / KNA_PIECE + 1, cutter);
    kna__knn_list_cut(&plan->groups, KNA_GROUPS, call->problem->n / KNA_PIECE + 1, cutter);
    plan->ranges = kna__cut(cutter, (size_t)kna__knn_most_ranges(call), sizeof *plan->ranges);
}

/* Masks that differ: head x of the queries has mask x % heads, so no more than h of them are in use. */
static int64_t masks(const kna__problem *p)
{
    return !p->mask.data ? 0 : p->mask.heads < p->h ? p->mask.heads : p->h;
}

/* Whether no head may see any of the rows. */
static bool all_forbid(const kna__problem *p, int64_t query, int64_t first, int64_t count)
{
    for (int64_t head = 0; head < masks(p); head++) {
        if (!kna__mask_forbids(p, head, query, first, count)) {
            return false;
        }
    }
    return p->mask.data != NULL;
}

bool kna__knn_sees(const kna__problem *p, int64_t query, int64_t first, int64_t count)
{
    int64_t lo, hi;
    kna__visible(p, query, &lo, &hi);
    if (first < lo || first + count > hi || (p->options.slopes && !p->mask.data)) {
        return false; /* slopes without a mask add to every logit */
    }
    for (int64_t head = 0; head < masks(p); head++) {
        if (!kna__mask_is_zero(p, head, query, first, count)) {
            return false;
        }
    }
    return true;
}

static bool sees_some(const kna__problem *p, int64_t query, int64_t first, int64_t count)
{
    int64_t lo, hi;
    kna__visible(p, query, &lo, &hi);
    int64_t from = first > lo ? first : lo, to = first + count < hi ? first + count : hi;
    return from < to && !all_forbid(p, query, from, to - from);
}

int64_t kna__knn_recent(const kna__problem *p, int64_t query)
{
    int64_t lo, hi;
    kna__visible(p, query, &lo, &hi);
    while (hi > lo && all_forbid(p, query, hi - 1, 1)) {
        int64_t step = hi - lo < KNA_PIECE ? 1 : KNA_PIECE;
        hi -= all_forbid(p, query, hi - step, step) ? step : 1;
    }
    return hi - p->options.near_window;
}

/* The first row a query sees; n: none. */
static int64_t first_seen(const kna__problem *p, int64_t query)
{
    int64_t lo, hi;
    kna__visible(p, query, &lo, &hi);
    while (lo < hi && all_forbid(p, query, lo, 1)) {
        int64_t step = hi - lo < KNA_PIECE ? 1 : KNA_PIECE;
        lo += all_forbid(p, query, lo, step) ? step : 1;
    }
    return lo < hi ? lo : p->n;
}

static bool all_see(const kna__problem *p, int64_t query, int64_t queries, int64_t first, int64_t count)
{
    for (int64_t i = query; i < query + queries; i++) {
        if (!kna__knn_sees(p, i, first, count)) {
            return false;
        }
    }
    return true;
}

static bool any_sees(const kna__problem *p, int64_t query, int64_t queries, int64_t first, int64_t count)
{
    for (int64_t i = query + queries - 1; i >= query; i--) {
        if (sees_some(p, i, first, count)) {
            return true;
        }
    }
    return false;
}

static void add_range(knn_plan *plan, int64_t first, int64_t end)
{
    if (plan->range_count && plan->ranges[plan->range_count - 1].end == first) {
        plan->ranges[plan->range_count - 1].end = end;
    } else {
        plan->ranges[plan->range_count++] = (knn_range){ first, end };
    }
}

/* The rows of first .. end - 1 that are present. */
static void add_present(knn_plan *plan, const kna_index *index, int64_t first, int64_t end)
{
    for (int64_t row = first; (row = kna__index_next(index, row, end, true)) < end;) {
        int64_t stop = kna__index_next(index, row, end, false);
        add_range(plan, row, stop);
        row = stop;
    }
}

typedef struct border {
    int64_t sinks_first, sinks_end; /* rows to be read in full because they are the first seen */
    int64_t recent;                 /* rows from here on are recent */
} border;

static border border_of(const kna__problem *p, int64_t query)
{
    border b = { 0, 0, kna__knn_recent(p, query) };
    int64_t first = first_seen(p, query), sinks = p->options.near_sinks;
    if (sinks > 0 && first < p->n && first + sinks > KNA_FIRST_ROWS) {
        b.sinks_first = first;
        b.sinks_end = first + sinks;
    }
    return b;
}

static bool may_use(const knn_call *call, const border *b, int64_t query, int64_t queries, int64_t piece)
{
    const kna__clusters *c = &call->index->clusters;
    if (piece >= c->capacity || c->state[piece] == KNA_PIECE_OPEN) {
        return false;
    }
    int64_t unit = kna__unit_row(c, piece), end = unit + kna__unit_rows(c, piece), first = unit ? unit : KNA_FIRST_ROWS;
    return end <= b->recent && (end <= b->sinks_first || unit >= b->sinks_end) &&
           all_see(call->problem, query, queries, first, end - first);
}

static void make_plan(const knn_call *call, knn_plan *plan, int64_t query, int64_t queries, bool use_clusters)
{
    const kna__problem *p = call->problem;
    const kna__clusters *c = &call->index->clusters;
    border b = border_of(p, query);
    plan->range_count = 0;
    kna__knn_list_clear(&plan->clusters);
    kna__knn_list_clear(&plan->groups);
    for (int64_t piece = 0; piece * KNA_PIECE < p->n;) {
        int64_t row = piece * KNA_PIECE, pieces = 1;
        if (use_clusters && may_use(call, &b, query, queries, piece)) {
            pieces = kna__unit_rows(c, piece) / KNA_PIECE;
            kna__knn_list_add(&plan->clusters, piece * KNA_SLOTS, (piece + pieces) * KNA_SLOTS);
            kna__knn_list_add(&plan->groups, piece * KNA_PIECE_GROUPS, (piece + pieces) * KNA_PIECE_GROUPS);
            if (row == 0 && any_sees(p, query, queries, 0, KNA_FIRST_ROWS)) {
                add_present(plan, call->index, 0, KNA_FIRST_ROWS);
            }
        } else {
            int64_t end = row + KNA_PIECE < p->n ? row + KNA_PIECE : p->n;
            if (any_sees(p, query, queries, row, end - row)) {
                add_present(plan, call->index, row, end);
            }
        }
        piece += pieces;
    }
}

/* Where most of the clusters would be read in full, reading all rows in order costs less and errs not at all. */
void kna__knn_plan(const knn_call *call, knn_plan *plan, int64_t query, int64_t queries)
{
    make_plan(call, plan, query, queries, true);
    if (plan->clusters.size && plan->clusters.size < kna__knn_least(call, queries * call->problem->g)) {
        make_plan(call, plan, query, queries, false);
    }
}

/* Keys and values, and the means of clusters with what is kept beside them; in bytes of one key and its value. */
static double bytes_read(const kna__problem *p, double full, const knn_read *read)
{
    double key = (double)kna__row_bytes(p->k.type, p->d), value = (double)kna__row_bytes(p->v.type, p->dv);
    double key_mean = (double)p->d * 2 + 3 * sizeof(float) + 2 * sizeof(uint16_t), value_mean = (double)p->dv * 2;
    double code = (double)p->d / 2;
    double beside =
        read->codes * code + read->keys * key + read->values * value + read->key_means * key_mean + read->value_means * value_mean;
    return full + beside / (key + value);
}

kna__row_stats *kna__knn_count(const knn_call *call, const knn_plan *plan, int64_t head, int64_t query, const knn_read *read)
{
    const kna__problem *p = call->problem;
    kna__row_stats *stats = &call->stats[query * p->h + head];
    int64_t lo, hi, full = 0, clustered = plan->clusters.size * KNA_MEMBERS;
    kna__visible(p, query, &lo, &hi);
    for (int64_t i = 0; i < plan->range_count; i++) {
        int64_t from = plan->ranges[i].first > lo ? plan->ranges[i].first : lo;
        int64_t to = plan->ranges[i].end < hi ? plan->ranges[i].end : hi;
        full += from < to ? kna__mask_allows(p, head, query, from, to) : 0;
    }
    if (plan->clusters.size && plan->clusters.runs[0].first == 0) {
        clustered -= KNA_FIRST_ROWS;
    }
    memset(stats, 0, sizeof *stats);
    stats->keys_seen = (float)(full + clustered);
    stats->keys_full = (float)((double)full + read->keys);
    stats->read = bytes_read(p, (double)full, read);
    stats->exact = plan->clusters.size == 0;
    stats->error_est = stats->audit_error = stats->radius = -1;
    return stats;
}
