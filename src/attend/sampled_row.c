/*
 * sampled_row.c - a row of attention from its head and a sample: as a mean of drawn values, their median of means, or the head
 * itself and a uniform sample of the tail with what it stands for.
 */
#include "sampled.h"

#include <float.h>
#include <math.h>

/* ---- head and tail */

/* Weights of the head, in place of its logits; returns its state. */
static kna__state soften_head(nearest_row *row, kna__sampler *s)
{
    const kna__problem *p = row->job->problem;
    nearest_room *room = &row->room;
    float least = INFINITY;
    for (int64_t i = 0; i < row->listed; i++) {
        least = fminf(least, room->exact[i]);
    }
    kna__state state = kna__soften(p->kernels, room->exact, row->listed);
    s->shift = state.max;
    s->bound = (double)least - (double)state.max;
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

/* ---- a uniform sample of the tail */

enum { PILOT_LEAST = 32, PILOT_SHARE = 50 /* one key of the tail in so many */ };

typedef struct uniform_row {
    nearest_row *row;
    kna__sampler *s;
    kna__moments pilot, sample;
    int64_t drawn;
    double head;     /* softmax sum known exactly: of the head and a sink, and with a finite certificate of the pilot */
    double *known;   /* (dv) its weighted values */
    double known_vv; /* its weighted |v|^2 */
    double *out;     /* (dv) */
    double *centre;  /* (dv) */
    double sum;      /* of all of the softmax, as estimated */
    double radius;
    float *value; /* dv */
} uniform_row;

static void clear_moments(kna__moments *m, double *room, int64_t dv)
{
    *m = (kna__moments){ .wv = room, .wwv = room + dv };
    memset(room, 0, (size_t)(2 * dv) * sizeof *room);
}

static double widen_value(const uniform_row *u, int32_t key)
{
    const kna__problem *p = u->row->job->problem;
    p->kernels->widen[p->v.type](u->value, (size_t)p->dv, kna__span_at(&p->v, u->row->kv_head, key), 1, (size_t)p->dv);
    return (double)kna__square(p->kernels, u->value, p->dv);
}

/* What is known of the softmax: the head. */
static void know_head(uniform_row *u)
{
    int64_t dv = u->row->job->problem->dv;
    u->known_vv = 0;
    memset(u->known, 0, (size_t)dv * sizeof *u->known);
    for (int64_t i = 0; i < u->row->listed; i++) {
        double w = (double)u->row->room.exact[i], vv = widen_value(u, u->row->room.ids[i]);
        u->known_vv += w * vv;
        for (int64_t c = 0; c < dv; c++) {
            u->known[c] += w * (double)u->value[c];
        }
    }
}

/* Looks at the next keys of the shuffled tail. */
static void extend(uniform_row *u, kna__moments *m, int64_t count)
{
    kna__sampler *s = u->s;
    int64_t dv = u->row->job->problem->dv, first = u->drawn;
    kna__draw_tail(s, &u->drawn, first + count);
    kna__sampler_logits(s, s->tail + first, count, s->logits);
    for (int64_t i = 0; i < count; i++) {
        double w = exp((double)s->logits[i]), vv = widen_value(u, s->tail[first + i]);
        m->w += w;
        m->ww += w * w;
        m->wvv += w * vv;
        m->wwvv += w * w * vv;
        for (int64_t c = 0; c < dv; c++) {
            m->wv[c] += w * (double)u->value[c];
            m->wwv[c] += w * w * (double)u->value[c];
        }
    }
    m->count += count;
}

/* The estimate by a sample that stands for `rest` keys. */
static void estimate(uniform_row *u, const kna__moments *m, int64_t rest)
{
    double factor = m->count ? (double)rest / (double)m->count : 0;
    u->sum = u->head + factor * m->w;
    for (int64_t c = 0; c < u->row->job->problem->dv; c++) {
        u->out[c] = (u->known[c] + factor * m->wv[c]) / u->sum;
    }
}

/* Root mean square of |v| under the softmax: what a radius is compared with. */
static double values_scale(const uniform_row *u, const kna__moments *m, int64_t rest)
{
    double factor = m->count ? (double)rest / (double)m->count : 0;
    return sqrt((u->known_vv + factor * m->wvv) / u->sum);
}

/* The pilot is known exactly from now on, and its estimate is the centre. */
static void know_pilot(uniform_row *u)
{
    int64_t dv = u->row->job->problem->dv;
    memcpy(u->centre, u->out, (size_t)dv * sizeof *u->centre);
    u->head += u->pilot.w;
    u->known_vv += u->pilot.wvv;
    for (int64_t c = 0; c < dv; c++) {
        u->known[c] += u->pilot.wv[c];
    }
}

static void measure(uniform_row *u, const kna__moments *m, int64_t rest, double delta)
{
    const nearest_job *job = u->row->job;
    kna__estimate e = { u->out, u->sum, job->problem->dv, rest };
    u->radius = rest == m->count ? 0
                : job->problem->options.certificate == KNA_CERTIFICATE_FINITE
                    ? kna__radius_finite(&e, m, delta, u->head, exp(u->s->bound), job->v_most[u->row->kv_head], u->centre)
                    : kna__radius_asymptotic(&e, m, delta);
}

/*
 * Samples as many as asked for; or, where an error is asked for, twice as many each time until the radius is below it, the i-th
 * look with delta / (i (i + 1)), which adds up to delta.
 */
static void sample_enough(uniform_row *u, int64_t first)
{
    const kna_attend_options *o = &u->row->job->problem->options;
    kna__moments *m = &u->sample;
    int64_t rest = u->s->rest - (u->drawn - m->count), want = first < rest ? first : rest;
    double delta = o->delta > 0 ? (double)o->delta : 0.05;
    for (int look = 1;; look++) {
        extend(u, m, want - m->count);
        estimate(u, m, rest);
        measure(u, m, rest, o->eps > 0 ? delta / (look * (look + 1.0)) : delta);
        if (o->eps == 0 || m->count >= rest || u->radius <= (double)o->eps * values_scale(u, m, rest)) {
            return;
        }
        want = 2 * m->count < rest ? 2 * m->count : rest;
    }
}

static int64_t pilot_size(const kna__sampler *s)
{
    int64_t size = s->rest / PILOT_SHARE > PILOT_LEAST ? s->rest / PILOT_SHARE : PILOT_LEAST;
    return size < s->rest ? size : s->rest;
}

static void attend_by_tail(nearest_row *row, kna__row_stats *stats, kna__sampler *s, kna__state state)
{
    const kna__problem *p = row->job->problem;
    double *at = row->room.doubles, sink = kna__sink_weight(p, row->head, state.max); /* a key of the head whose value is zero */
    float value[KNA_MAX_DIM];
    uniform_row u = {
        .row = row, .s = s, .head = s->head_sum + sink, .known = at, .out = at + p->dv, .centre = at + 2 * p->dv, .value = value
    };
    clear_moments(&u.pilot, at + 3 * p->dv, p->dv);
    clear_moments(&u.sample, at + 5 * p->dv, p->dv);
    know_head(&u);
    int64_t pilot = pilot_size(s);
    if (p->options.certificate == KNA_CERTIFICATE_FINITE) {
        extend(&u, &u.pilot, pilot);
        estimate(&u, &u.pilot, s->rest);
        know_pilot(&u);
    }
    sample_enough(&u, p->options.eps > 0 ? pilot : p->options.samples);
    stats->tail_mass = (float)fmax(0, 1 - (s->head_sum + sink) / u.sum);
    stats->radius = (float)u.radius;
    stats->exact = s->looked_at == s->rest;
    state.sum = u.sum - sink; /* it comes back when the row is written */
    for (int64_t c = 0; c < p->dv; c++) {
        row->room.values[c] = (float)(u.out[c] * u.sum);
    }
    kna__state_write(p, row->head, row->query, state, row->room.values);
}

/* ---- a row */

void kna__sampled_attend(nearest_row *row, kna__row_stats *stats)
{
    const kna__problem *p = row->job->problem;
    kna__state state;
    kna__sampler s = sampler_of(row, &state);
    if (p->options.method == KNA_UNIFORM) {
        attend_by_tail(row, stats, &s, state);
    } else {
        attend_by_draws(row, stats, &s, state);
    }
    row->scored += s.looked_at;
    stats->keys_full = (float)(row->listed + s.looked_at);
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
    kna__sampler s = sampler_of(row, &state);
    draw_keys(&s, p->options.samples, room->drawn);
    keep_draws(row, room->drawn);
}
