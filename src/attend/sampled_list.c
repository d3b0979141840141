/*
 * sampled_list.c - rows as lists of keys and shares, for gradients (lists.h): what nearest_row.c and sampled_row.c would have made an
 * output of.
 */
#include "lists.h"
#include "sampled.h"

#include <math.h>

typedef struct row_list {
    int64_t row, room;
    int32_t *keys;
    float *shares;
} row_list;

static row_list list_of(const nearest_row *row)
{
    const kna__problem *p = row->job->problem;
    const kna__lists *lists = p->lists;
    int64_t at = row->head * p->m + row->query;
    return (row_list){ at, lists->first[at + 1] - lists->first[at], lists->keys + lists->first[at],
                       lists->shares + lists->first[at] };
}

static void finish(const nearest_row *row, const row_list *list, int64_t fixed, int64_t count)
{
    row->job->problem->lists->fixed[list->row] = fixed;
    row->job->problem->lists->count[list->row] = count;
}

/* The head, its weights of a softmax whose sum is `sum`. */
static void put_head(const nearest_row *row, const row_list *list, double sum)
{
    for (int64_t i = 0; i < row->listed; i++) {
        list->keys[i] = row->room.ids[i];
        list->shares[i] = (float)((double)row->room.exact[i] / sum);
    }
}

/* The head is all. */
static void put_softmax(const nearest_row *row, const row_list *list)
{
    const kna__problem *p = row->job->problem;
    kna__state state = kna__soften(p->kernels, row->room.exact, row->listed);
    put_head(row, list, state.sum + kna__sink_weight(p, row->head, state.max));
    finish(row, list, row->listed, row->listed);
    for (int64_t i = 0; p->lists->cells && i < row->listed; i++) {
        p->lists->cells->in[p->lists->first[list->row] + i] = -1;
    }
}

static void put_draws(nearest_row *row, const row_list *list)
{
    kna__sampler s = kna__sampler_of(row);
    kna__draw_keys(&s, list->room, list->keys);
    for (int64_t i = 0; i < list->room; i++) {
        list->shares[i] = 1 / (float)list->room;
    }
    finish(row, list, 0, list->room);
}

/* ---- the head as it is, draws from the tail alone */

/* The largest logit of the tail that the scan leaves possible. */
static double largest_of_tail(const kna__sampler *s)
{
    double most = -INFINITY;
    for (int64_t i = 0; i < s->rest; i++) {
        int32_t key = s->tail[i];
        most = fmax(most, (double)s->row->s[key] + (double)kna__scan_error(s->row, key));
    }
    return most;
}

/*
 * A key of the tail by its weight, exactly: drawn by the most that the scan leaves possible, accepted by how much of that is there.
 * sums: running ones of the bounds, relative to exp(most). *scanned: its weight by the scan over the true one.
 */
static int32_t draw_from_tail(kna__sampler *s, const double *sums, double *scanned)
{
    for (;;) {
        double x = kna__sampler_uniform(s) * sums[s->rest - 1], u = kna__sampler_uniform(s);
        int64_t low = 0, high = s->rest - 1;
        while (low < high) {
            int64_t middle = (low + high) / 2;
            low = sums[middle] > x ? low : middle + 1;
            high = sums[middle] > x ? middle : high;
        }
        int32_t key = s->tail[low];
        double by_scan = (double)s->row->s[key] - (double)s->shift, logit;
        float exact;
        kna__sampler_logits(s, &key, 1, &exact);
        logit = (double)exact;
        if (u < exp(logit - by_scan - (double)kna__scan_error(s->row, key))) {
            *scanned = exp(by_scan - logit);
            return key;
        }
    }
}

/*
 * What the tail weighs is known by the scan, to what int8 rounds away; the drawn keys, whose logits are known both ways, tell by how
 * much in the mean that is off, which leaves second order errors of a hundredth.
 */
static void put_tail(nearest_row *row, const row_list *list)
{
    kna__sampler s = kna__sampler_of(row);
    int64_t draws = row->job->problem->options.samples;
    double most = largest_of_tail(&s), bounds = 0, scan = 0, ratio = 0, one;
    for (int64_t i = 0; i < s.rest; i++) {
        double by_scan = (double)row->s[s.tail[i]];
        scan += exp(by_scan - most);
        bounds += exp(by_scan + (double)kna__scan_error(row, s.tail[i]) - most);
        s.sums[i] = bounds;
    }
    for (int64_t i = 0; i < draws; i++) {
        list->keys[row->listed + i] = draw_from_tail(&s, s.sums, &one);
        ratio += one / (double)draws;
    }
    double tail = scan * exp(most - (double)s.shift) / ratio, sum = s.head_sum + tail;
    put_head(row, list, sum);
    for (int64_t i = 0; i < draws; i++) {
        list->shares[row->listed + i] = (float)(tail / sum / (double)draws);
    }
    finish(row, list, row->listed, row->listed + draws);
}

/* ---- rows */

bool kna__list_has_room(const nearest_row *row)
{
    return list_of(row).room > 0;
}

void kna__list_row(nearest_row *row, bool is_all)
{
    const kna__problem *p = row->job->problem;
    row_list list = list_of(row);
    bool by_draws = p->options.method == KNA_GUMBEL || p->options.method == KNA_REJECTION;
    if (is_all) {
        kna__sampled_list_all(row);
    }
    if (!row->listed) {
        finish(row, &list, 0, 0);
    } else if (by_draws && p->options.chain != KNA_CHAIN_TAIL) {
        put_draws(row, &list);
    } else if (by_draws && !is_all) {
        put_tail(row, &list);
    } else {
        put_softmax(row, &list);
    }
}

/* Keys of the tail, each standing for `each`; returns the entry after them. */
static int64_t put_sample(const row_list *list, kna__sampler *s, int64_t at, const int32_t *keys, int64_t count, double each,
                          double sum)
{
    kna__sampler_logits(s, keys, count, s->logits);
    for (int64_t i = 0; i < count; i++) {
        list->keys[at + i] = keys[i];
        list->shares[at + i] = (float)(kna__weight(s->logits[i]) * each / sum);
    }
    return at + count;
}

void kna__list_sample(nearest_row *row, kna__sampler *s, double sum, const kna__moments *pilot, const kna__stratum *strata,
                      int64_t count)
{
    row_list list = list_of(row);
    put_head(row, &list, sum);
    int64_t at = put_sample(&list, s, row->listed, s->tail, pilot->count, 1, sum);
    for (int64_t i = 0; i < count; i++) {
        double each = strata[i].m.count ? (double)strata[i].rest / (double)strata[i].m.count : 0;
        at = put_sample(&list, s, at, strata[i].keys, strata[i].m.count, each, sum);
    }
    finish(row, &list, at, at);
}

/* ---- by cells */

void kna__list_key(const nearest_row *row, int32_t key, double weight)
{
    row_list list = list_of(row);
    const kna__lists *lists = row->job->problem->lists;
    int64_t at = lists->first[list.row] + row->listed + lists->count[list.row]++;
    lists->keys[at] = key;
    lists->cells->weights[at] = weight;
    lists->cells->in[at] = -1;
}

void kna__list_cell(const nearest_row *row, int64_t x, double weight)
{
    row_list list = list_of(row);
    kna__list_cells *cells = row->job->problem->lists->cells;
    int64_t at = row->job->problem->lists->first[list.row] + cells->count[list.row]++;
    cells->cell[at] = (int32_t)x;
    cells->rest[at] = row->room.cells.rest[x];
    cells->masses[at] = weight;
}

void kna__list_drop_keys(const nearest_row *row)
{
    row->job->problem->lists->count[list_of(row).row] = 0;
}

void kna__list_end(const nearest_row *row, double sum)
{
    row_list list = list_of(row);
    const kna__lists *lists = row->job->problem->lists;
    kna__list_cells *cells = lists->cells;
    int64_t first = lists->first[list.row], sampled = lists->count[list.row];
    int32_t *place =
        row->room.cells.first; /* where the tail's keys are is no longer asked: now, where a cell is among those listed */
    put_head(row, &list, sum);
    for (int64_t x = 0; x < row->room.cells.count; x++) {
        place[x] = -1;
    }
    for (int64_t i = 0; i < cells->count[list.row]; i++) {
        int32_t *cell = &cells->cell[first + i];
        place[*cell] = (int32_t)i;
        *cell = row->room.cells.cell[*cell];
    }
    for (int64_t i = 0; i < row->listed; i++) {
        int32_t x = row->room.cells.of[row->room.ids[i]];
        cells->in[first + i] = x >= 0 ? place[x] : -1;
    }
    for (int64_t i = row->listed; i < row->listed + sampled; i++) {
        list.shares[i] = (float)(cells->weights[first + i] / sum);
    }
    for (int64_t i = first; i < first + cells->count[list.row]; i++) {
        cells->shares[i] = (float)(cells->masses[i] / sum);
    }
    finish(row, &list, row->listed + sampled, row->listed + sampled);
}
