/* sampled_row.c - a row of attention from its head and a sample: as a mean of drawn values, or their median of means. */
#include "sampled.h"

#include <float.h>
#include <math.h>

/* ---- head and tail */

/* Weights of the head, in place of its logits, which go to room->approx. */
static void soften_head(nearest_row *row, kna__sampler *s)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    memcpy(room->approx, room->exact, (size_t)row->listed * sizeof *room->approx);
    kna__state state = kna__soften(p->kernels, room->exact, row->listed);
    s->shift = state.max;
    s->bound = (double)row->bound + (double)p->options.gap - (double)state.max;
    s->sink = kna__sink_weight(p, row->head, state.max);
    s->head_sum = 0;
    for (int64_t i = 0; i < row->listed; i++) {
        s->head_sum += (double)room->exact[i];
        s->sums[i] = s->head_sum;
    }
}

/* What the row sees and the head does not hold. The scan's logits of the head are lost. */
static void list_tail(nearest_row *row, kna__sampler *s)
{
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    for (int64_t i = 0; i < row->listed; i++) {
        row->s[row->room.ids[i]] = -INFINITY;
    }
    s->rest = (int64_t)row->job->problem->kernels->select(s->tail, row->s + first, (size_t)count, -FLT_MAX, (int32_t)first);
}

/* The same by cells; what they say of bounds, where that is asked for, is no more than what an exact head does. */
static void list_cells(nearest_row *row, kna__sampler *s)
{
    const kna_attend_options *o = &row->job->problem->options;
    const kna__cells *c = &row->room.cells;
    s->cells = c;
    s->by_cell = o->bounds == KNA_BOUNDS_CLUSTERS;
    s->rest = kna__cells_list_tail(row, s->tail);
    kna__cells_weigh(row, (double)s->shift, row->job->scan || (!s->by_cell && o->gap > 0) ? s->bound : INFINITY);
    if (s->by_cell) {
        s->bound = -INFINITY;
    }
    for (int64_t x = 0; s->by_cell && x < c->count; x++) {
        s->bound = fmax(s->bound, c->upper[x]);
    }
}

kna__sampler kna__sampler_of(nearest_row *row)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    kna__sampler s = { .row = row,
                       .head = room->ids,
                       .sums = room->sums,
                       .k = row->listed,
                       .tail = room->found,
                       .found = room->found_scratch,
                       .logits = room->work };
    s.stream = (uint64_t)row->head << 40 | (uint64_t)(row->query + p->shift + KNA_MAX_ROWS);
    soften_head(row, &s);
    if (row->job->stratified && row->listed < row->seen) {
        list_cells(row, &s);
    } else {
        list_tail(row, &s);
    }
    return s;
}

/* ---- draws */

static void mean_of(const nearest_row *row, const int32_t *keys, int64_t count, float *out)
{
    const kna__problem *p = row->job->problem;
    float *weights = row->room.approx;
    int64_t most = row->job->ld;
    memset(out, 0, (size_t)p->dv * sizeof *out);
    for (int64_t first = 0; first < count; first += most) {
        int64_t some = count - first < most ? count - first : most;
        for (int64_t i = 0; i < some; i++) {
            weights[i] = 1 / (float)count;
        }
        p->kernels->mix_at[p->v.type](out, 0, weights, 0, 1, kna__span_at(&p->v, row->kv_head, 0), keys + first, (size_t)some,
                                      (size_t)p->dv);
    }
}

/* Of means of equal groups, column by column. */
static void median_of_means(const nearest_row *row, const int32_t *keys, int64_t count, float *out)
{
    const kna__problem *p = row->job->problem;
    const nearest_room *room = &row->room;
    int64_t groups = p->options.groups < count ? p->options.groups : count;
    for (int64_t i = 0; i < groups; i++) {
        int64_t first = i * count / groups, end = (i + 1) * count / groups;
        mean_of(row, keys + first, end - first, room->groups + i * p->dv);
    }
    for (int64_t c = 0; c < p->dv; c++) {
        for (int64_t i = 0; i < groups; i++) {
            room->column[i] = room->groups[i * p->dv + c];
        }
        float upper = kna__kth_largest(room->column, (size_t)groups, (size_t)((groups + 1) / 2));
        for (int64_t i = 0; i < groups; i++) {
            room->column[i] = room->groups[i * p->dv + c];
        }
        out[c] = (upper + kna__kth_largest(room->column, (size_t)groups, (size_t)(groups / 2 + 1))) / 2;
    }
}

/*
 * Draws keys into room->drawn; returns the sum of the softmax that the draws tell: maxima are Gumbel about its logarithm, so
 * exp(-level) is exponential with that rate; and one try in so many is accepted as it is of the envelope. Both are unbiased.
 */
double kna__draw_keys(kna__sampler *s, int64_t count, int32_t *drawn)
{
    const kna__problem *p = s->row->job->problem;
    bool by_rejection = p->options.method == KNA_REJECTION;
    double levels = 0, level;
    kna__draw_prepare(s, count);
    for (int64_t i = 0; i < count; i++) {
        drawn[i] = by_rejection ? kna__draw_by_rejection(s, &level) : kna__draw_gumbel(s, &level);
        levels += by_rejection ? level : exp(-fmin(level, 300));
    }
    if (!s->rest || s->tail_sums) {
        return s->tail_sums ? level : s->head_sum;
    }
    double least = count > 1 ? (double)(count - 1) : 1;
    if (by_rejection) {
        return (s->head_sum + s->envelope) * least / (count > 1 ? levels - 1 : levels);
    }
    return least / levels;
}

static void keep_draws(const nearest_row *row, const int32_t *drawn)
{
    const kna__problem *p = row->job->problem;
    if (p->options.draws) {
        memcpy(p->options.draws + (row->head * p->m + row->query) * p->options.samples, drawn,
               (size_t)p->options.samples * sizeof *drawn);
    }
}

void kna__sampled_write(nearest_row *row, const kna__sampler *s, double sum, const double *out)
{
    const kna__problem *p = row->job->problem;
    kna__state state = { s->shift, sum - s->sink }; /* a sink's comes back when the row is written */
    if (state.sum > 1e30) {                         /* far above a head that was not found exactly: f32 must hold it */
        state.max = (float)((double)s->shift + log(state.sum));
        sum /= state.sum;
        state.sum = 1;
    }
    for (int64_t c = 0; c < p->dv; c++) {
        row->room.values[c] = (float)(out[c] * sum);
    }
    kna__state_write(p, row->head, row->query, state, row->room.values);
}

static void attend_by_draws(nearest_row *row, kna__row_stats *stats, kna__sampler *s)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    int64_t count = p->options.samples;
    double sum = kna__draw_keys(s, count, room->drawn), *out = room->doubles;
    keep_draws(row, room->drawn);
    if (p->options.method == KNA_MOM) {
        median_of_means(row, room->drawn, count, room->values);
    } else {
        mean_of(row, room->drawn, count, room->values);
    }
    stats->tail_mass = (float)fmax(0, 1 - s->head_sum / sum);
    for (int64_t c = 0; c < p->dv; c++) { /* a sink takes its part of what is a mean of the keys' values */
        out[c] = (double)room->values[c] * sum / (sum + s->sink);
    }
    kna__sampled_write(row, s, sum + s->sink, out);
}

/* ---- a row */

void kna__sampled_attend(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    kna__sampler s = kna__sampler_of(row);
    if (p->options.method == KNA_UNIFORM) {
        kna__sampled_tail(row, stats, &s);
    } else if (p->options.method >= KNA_STRATIFIED) {
        kna__strata_attend(row, stats, &s);
    } else {
        attend_by_draws(row, stats, &s);
    }
    row->scored += s.looked_at;
    stats->keys_full = (float)(row->listed + row->rejected + s.looked_at);
    stats->stale = row->stale;
}

void kna__sampled_list_all(nearest_row *row)
{
    const kna__problem *p = row->job->problem;
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    nearest_room *room = &row->room;
    if (!row->listed) { /* else landmarks and what is in no cell are no longer in row->s */
        row->listed = (int64_t)p->kernels->select(room->ids, row->s + first, (size_t)count, -FLT_MAX, (int32_t)first);
    }
    p->kernels->dot_at[p->k.type](room->exact, 0, row->q, 0, 1, kna__span_at(&p->k, row->kv_head, 0), room->ids,
                                  (size_t)row->listed, (size_t)p->d);
    kna__logits_finish_at(p, row->head, row->query, room->ids, room->exact, row->listed);
    row->bound = 0; /* of nothing */
}

void kna__sampled_exact(nearest_row *row)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    if (!p->options.draws) {
        return;
    }
    kna__sampled_list_all(row);
    if (!row->listed) {
        for (int64_t i = 0; i < p->options.samples; i++) {
            room->drawn[i] = -1;
        }
        keep_draws(row, room->drawn);
        return;
    }
    kna__sampler s = kna__sampler_of(row);
    kna__draw_keys(&s, p->options.samples, room->drawn);
    keep_draws(row, room->drawn);
}
