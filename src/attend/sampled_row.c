/* sampled_row.c - a row of attention from its head and a sample: as a mean of drawn values, or their median of means. */
#include "sampled.h"

#include <float.h>
#include <math.h>

/* ---- head and tail */

/* Weights of the head, in place of its logits; returns its state. */
static kna__state soften_head(nearest_row *row, kna__sampler *s)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    kna__state state = kna__soften(p->kernels, room->exact, row->listed);
    s->shift = state.max;
    s->bound = (double)row->bound - (double)state.max;
    s->head_sum = 0;
    for (int64_t i = 0; i < row->listed; i++) {
        s->head_sum += (double)room->exact[i];
        s->sums[i] = s->head_sum;
    }
    state.sum = s->head_sum;
    return state;
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

static kna__sampler sampler_of(nearest_row *row, kna__state *state)
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
    *state = soften_head(row, &s);
    list_tail(row, &s);
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
static double draw_keys(kna__sampler *s, int64_t count, int32_t *drawn)
{
    const kna__problem *p = s->row->job->problem;
    bool by_rejection = p->options.method == KNA_REJECTION;
    double levels = 0, level;
    for (int64_t i = 0; i < count; i++) {
        drawn[i] = by_rejection ? kna__draw_by_rejection(s, &level) : kna__draw_gumbel(s, &level);
        levels += by_rejection ? level : exp(-level);
    }
    if (!s->rest) {
        return s->head_sum;
    }
    double least = count > 1 ? (double)(count - 1) : 1;
    if (by_rejection) {
        double all = s->head_sum + (double)s->rest * exp(s->bound);
        return all * least / (count > 1 ? levels - 1 : levels);
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

static void attend_by_draws(nearest_row *row, kna__row_stats *stats, kna__sampler *s, kna__state state)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    int64_t count = p->options.samples;
    state.sum = draw_keys(s, count, room->drawn);
    keep_draws(row, room->drawn);
    if (p->options.method == KNA_MOM) {
        median_of_means(row, room->drawn, count, room->values);
    } else {
        mean_of(row, room->drawn, count, room->values);
    }
    stats->tail_mass = (float)fmax(0, 1 - s->head_sum / state.sum);
    p->kernels->scale(room->values, (float)state.sum, (size_t)p->dv);
    kna__state_write(p, row->head, row->query, state, room->values);
}

/* ---- a row */

void kna__sampled_attend(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    kna__state state;
    kna__sampler s = sampler_of(row, &state);
    if (p->options.method == KNA_UNIFORM) {
        kna__sampled_tail(row, stats, &s, state);
    } else {
        attend_by_draws(row, stats, &s, state);
    }
    row->scored += s.looked_at;
    stats->keys_full = (float)(row->listed + row->rejected + s.looked_at);
    stats->stale = row->stale;
}

void kna__sampled_exact(nearest_row *row)
{
    const kna__problem *p = row->job->problem;
    int64_t first = row->first_block * KNA_BLOCK, count = (row->end_block - row->first_block) * KNA_BLOCK;
    nearest_room *room = &row->room;
    kna__state state;
    if (!p->options.draws) {
        return;
    }
    row->listed = (int64_t)p->kernels->select(room->ids, row->s + first, (size_t)count, -FLT_MAX, (int32_t)first);
    if (!row->listed) {
        for (int64_t i = 0; i < p->options.samples; i++) {
            room->drawn[i] = -1;
        }
        keep_draws(row, room->drawn);
        return;
    }
    p->kernels->dot_at[p->k.type](room->exact, 0, row->q, 0, 1, kna__span_at(&p->k, row->kv_head, 0), room->ids,
                                  (size_t)row->listed, (size_t)p->d);
    kna__logits_finish_at(p, row->head, row->query, room->ids, room->exact, row->listed);
    row->bound = 0; /* of nothing */
    kna__sampler s = sampler_of(row, &state);
    draw_keys(&s, p->options.samples, room->drawn);
    keep_draws(row, room->drawn);
}
