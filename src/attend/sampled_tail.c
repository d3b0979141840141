/*
 * sampled_tail.c - a row of attention from its head and a uniform sample of the tail with what it stands for; or a sample of each
 * group of keys that the tail holds, of sizes in proportion (theory of stratified sampling: Cochran 1977, chapter 5), which makes
 * every group's mass come out nearer to what it is.
 */
#include "sampled.h"

#include <math.h>

enum {
    PILOT_LEAST = 32,
    PILOT_SHARE = 50, /* one key of the tail in so many */
    STRATUM_LEAST = 4 /* keys looked at of a group: fewer say nothing of their variance */
};
#define WEIGHTLESS 1e-9 /* of what the head weighs: below what f32 outputs can tell */

typedef struct uniform_row {
    nearest_row *row;
    kna__sampler *s;
    kna__moments pilot;
    kna__stratum *strata;
    int64_t strata_count;
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

double kna__row_value(const nearest_row *row, int32_t key, float *value)
{
    const kna__problem *p = row->job->problem;
    p->kernels->widen[p->v.type](value, (size_t)p->dv, kna__span_at(&p->v, row->kv_head, key), 1, (size_t)p->dv);
    return (double)kna__square(p->kernels, value, p->dv);
}

double kna__head_values(const nearest_row *row, double *known)
{
    int64_t dv = row->job->problem->dv;
    double known_vv = 0;
    float value[KNA_MAX_DIM];
    memset(known, 0, (size_t)dv * sizeof *known);
    for (int64_t i = 0; i < row->listed; i++) {
        double w = (double)row->room.exact[i];
        known_vv += w * kna__row_value(row, row->room.ids[i], value);
        for (int64_t c = 0; c < dv; c++) {
            known[c] += w * (double)value[c];
        }
    }
    return known_vv;
}

/* ---- strata */

/* The tail by groups; returns how many there are. Keys of a group stay in order. */
static int64_t divide_tail(const uniform_row *u)
{
    const kna_attend_options *o = &u->row->job->problem->options;
    kna__sampler *s = u->s;
    int64_t at = 0, count = o->stratify ? o->key_group_count : 1;
    for (int64_t i = 0; i < count; i++) {
        u->strata[i].rest = o->stratify ? 0 : s->rest;
        u->strata[i].drawn = 0;
    }
    for (int64_t i = 0; o->stratify && i < s->rest; i++) {
        u->strata[o->key_groups[s->tail[i]]].rest++;
    }
    for (int64_t i = 0; i < count; at += u->strata[i++].rest) {
        u->strata[i].keys = s->tail + at;
    }
    if (o->stratify) {
        memcpy(s->found, s->tail, (size_t)s->rest * sizeof *s->found);
    }
    for (int64_t i = 0; o->stratify && i < s->rest; i++) { /* `drawn` counts, for once, what has been put in its place */
        kna__stratum *stratum = &u->strata[o->key_groups[s->found[i]]];
        stratum->keys[stratum->drawn++] = s->found[i];
    }
    for (int64_t i = 0; i < count; i++) {
        u->strata[i].drawn = 0;
    }
    return count;
}

/* How many of a stratum are to be looked at when it is so many of all: in proportion, but a few of each. */
static int64_t allot(const uniform_row *u, int64_t stratum, int64_t before, int64_t all, int64_t of)
{
    int64_t rest = u->strata[stratum].rest;
    int64_t part = of ? all * (before + rest) / of - all * before / of : 0; /* below 2^62 */
    if (u->strata_count > 1 && part < STRATUM_LEAST) {
        part = STRATUM_LEAST;
    }
    return all >= of || part > rest ? rest : part;
}

/* Looks at the next keys of a stratum. */
static void extend(uniform_row *u, kna__stratum *stratum, kna__moments *m, int64_t count)
{
    kna__sampler *s = u->s;
    int64_t dv = u->row->job->problem->dv, first = stratum->drawn;
    kna__draw_tail(s, stratum->keys, stratum->rest, &stratum->drawn, first + count);
    kna__sampler_logits(s, stratum->keys + first, count, s->logits);
    for (int64_t i = 0; i < count; i++) {
        double w = kna__weight(s->logits[i]), vv = kna__row_value(u->row, stratum->keys[first + i], u->value);
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

/* Until of every stratum as many have been looked at as is its part of `all`. Returns how many that are now. */
static int64_t extend_all(uniform_row *u, int64_t all, int64_t of)
{
    int64_t before = 0, count = 0;
    for (int64_t i = 0; i < u->strata_count; i++) {
        kna__stratum *stratum = &u->strata[i];
        int64_t more = allot(u, i, before, all, of) - stratum->m.count;
        if (more > 0) {
            extend(u, stratum, &stratum->m, more);
        }
        before += stratum->rest;
        count += stratum->m.count;
    }
    return count;
}

/* ---- estimates */

/* How many keys one of a sample stands for. */
static double factor_of(const kna__moments *m, int64_t rest)
{
    return m->count ? (double)rest / (double)m->count : 0;
}

static void begin_estimate(uniform_row *u)
{
    u->sum = u->head;
    memcpy(u->out, u->known, (size_t)u->row->job->problem->dv * sizeof *u->out);
}

static void add_estimate(uniform_row *u, const kna__moments *m, int64_t rest)
{
    double factor = factor_of(m, rest);
    u->sum += factor * m->w;
    for (int64_t c = 0; c < u->row->job->problem->dv; c++) {
        u->out[c] += factor * m->wv[c];
    }
}

static void end_estimate(uniform_row *u)
{
    for (int64_t c = 0; c < u->row->job->problem->dv; c++) {
        u->out[c] /= u->sum;
    }
}

static void estimate(uniform_row *u)
{
    begin_estimate(u);
    for (int64_t i = 0; i < u->strata_count; i++) {
        add_estimate(u, &u->strata[i].m, u->strata[i].rest);
    }
    end_estimate(u);
}

/* Root mean square of |v| under the softmax: what a radius is compared with. */
static double values_scale(const uniform_row *u)
{
    double square = u->known_vv;
    for (int64_t i = 0; i < u->strata_count; i++) {
        square += factor_of(&u->strata[i].m, u->strata[i].rest) * u->strata[i].m.wvv;
    }
    return sqrt(square / u->sum);
}

/* A pilot is known exactly from now on, and its estimate is the centre. There is one stratum, which it is no longer part of. */
static void take_pilot(uniform_row *u, int64_t size)
{
    int64_t dv = u->row->job->problem->dv;
    kna__stratum *stratum = &u->strata[0];
    extend(u, stratum, &u->pilot, size);
    begin_estimate(u);
    add_estimate(u, &u->pilot, stratum->rest);
    end_estimate(u);
    memcpy(u->centre, u->out, (size_t)dv * sizeof *u->centre);
    u->head += u->pilot.w;
    u->known_vv += u->pilot.wvv;
    for (int64_t c = 0; c < dv; c++) {
        u->known[c] += u->pilot.wv[c];
    }
    stratum->keys += size;
    stratum->rest -= size;
    stratum->drawn = 0;
}

double kna__radius_trivial(const nearest_row *row, const double *out, double radius)
{
    double square = 0;
    for (int64_t c = 0; c < row->job->problem->dv; c++) {
        square += out[c] * out[c];
    }
    return fmin(radius, sqrt(square) + row->v_most);
}

/* Of one stratum, by a certificate that is no matter of variances alone. */
static double certify(const uniform_row *u, double delta)
{
    const kna__stratum *first = &u->strata[0];
    kna__estimate e = { u->out, u->sum, u->row->job->problem->dv, first->rest };
    kna__known known = { u->head, exp(u->s->bound), u->row->v_most, u->centre };
    switch (u->row->job->problem->options.certificate) {
    case KNA_CERTIFICATE_FINITE:
        return kna__radius_finite(&e, &first->m, delta, &known);
    case KNA_CERTIFICATE_BERNSTEIN:
        return kna__radius_bernstein(&e, &first->m, delta, &known);
    }
    return first->rest == first->m.count ? 0 : kna__cells_radius(u->row, u->out, u->head, u->known, 0, 0);
}

/*
 * A sample in which nothing weighs has no variance, and says nothing. What is known then is the bound: keys not looked at may weigh so
 * much, and be as far from the output as values are. So a radius asked for is not met until the bound or the last key says so.
 */
static bool weighs_nothing(const uniform_row *u)
{
    double tail = 0;
    for (int64_t i = 0; i < u->strata_count; i++) {
        tail += factor_of(&u->strata[i].m, u->strata[i].rest) * u->strata[i].m.w;
    }
    return tail <= WEIGHTLESS * u->head;
}

static double radius_by_bound(const uniform_row *u)
{
    double left = 0;
    for (int64_t i = 0; i < u->strata_count; i++) {
        left += (double)(u->strata[i].rest - u->strata[i].m.count);
    }
    double most = left * exp(u->s->bound), scale = values_scale(u);
    return isfinite(most) ? most / (u->sum + most) * 2 * scale : 2 * scale;
}

static void measure(uniform_row *u, double delta)
{
    const kna__problem *p = u->row->job->problem;
    double variance = 0;
    if (p->options.certificate != KNA_CERTIFICATE_ASYMPTOTIC) {
        u->radius = kna__radius_trivial(u->row, u->out, certify(u, delta));
        return;
    }
    for (int64_t i = 0; i < u->strata_count; i++) {
        variance += kna__variance_of_sample(u->out, p->dv, u->strata[i].rest, &u->strata[i].m);
    }
    u->radius = variance > 0 ? kna__radius_of_variance(variance, u->sum, delta) : 0;
    if (weighs_nothing(u)) {
        u->radius = fmax(u->radius, radius_by_bound(u));
    }
}

/*
 * Samples as many as asked for; or, where an error is asked for, twice as many each time until the radius is below it, the i-th
 * look with delta / (i (i + 1)), which adds up to delta.
 */
static void sample_enough(uniform_row *u, int64_t first)
{
    const kna_attend_options *o = &u->row->job->problem->options;
    int64_t rest = 0, count;
    for (int64_t i = 0; i < u->strata_count; i++) {
        rest += u->strata[i].rest;
    }
    int64_t want = first < rest ? first : rest;
    double delta = o->delta > 0 ? (double)o->delta : 0.05;
    for (int look = 1;; look++) {
        count = extend_all(u, want, rest);
        estimate(u);
        measure(u, o->eps > 0 ? delta / (look * (look + 1.0)) : delta);
        if (o->eps == 0 || count >= rest || u->radius <= (double)o->eps * values_scale(u)) {
            return;
        }
        want = 2 * want < rest && o->certificate != KNA_CERTIFICATE_DETERMINISTIC ? 2 * want : rest;
    }
}

static int64_t pilot_size(const kna__sampler *s)
{
    int64_t size = s->rest / PILOT_SHARE > PILOT_LEAST ? s->rest / PILOT_SHARE : PILOT_LEAST;
    return size < s->rest ? size : s->rest;
}

void kna__sampled_tail(nearest_row *row, kna__row_stats *stats, kna__sampler *s)
{
    const kna__problem *p = row->job->problem;
    double *at = row->room.doubles, sink = s->sink; /* a key of the head whose value is zero */
    float value[KNA_MAX_DIM];
    uniform_row u = { .row = row,
                      .s = s,
                      .strata = row->room.strata,
                      .head = s->head_sum + sink,
                      .known = at,
                      .out = at + p->dv,
                      .centre = at + 2 * p->dv,
                      .value = value };
    clear_moments(&u.pilot, at + 3 * p->dv, p->dv);
    u.strata_count = divide_tail(&u);
    for (int64_t i = 0; i < u.strata_count; i++) {
        clear_moments(&u.strata[i].m, at + (5 + 2 * i) * p->dv, p->dv);
    }
    u.known_vv = kna__head_values(row, u.known);
    int64_t pilot = pilot_size(s);
    if (p->options.certificate == KNA_CERTIFICATE_FINITE || p->options.certificate == KNA_CERTIFICATE_BERNSTEIN) {
        take_pilot(&u, pilot);
    }
    sample_enough(&u, p->options.eps > 0 ? pilot : p->options.samples);
    if (p->lists) {
        kna__list_sample(row, s, u.sum, &u.pilot, u.strata, u.strata_count);
        return;
    }
    stats->tail_mass = (float)fmax(0, 1 - (s->head_sum + sink) / u.sum);
    stats->radius = (float)u.radius;
    stats->exact = s->looked_at == s->rest;
    kna__sampled_write(row, s, u.sum, u.out);
}
