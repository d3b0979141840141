/*
 * sampled_strata.c - estimates that go by cells of keys alike, whose mean keys say about what they weigh: e = N exp(logit of the mean
 * key) for a cell of N keys outside the head.
 *
 * stratified  samples are dealt out to cells by e, without replacement within each; one that gets none stands by its mean key and
 *             mean value.
 * centroid    importance sampling: a cell by e, a key of it evenly; the key's weight over its chance. The relative variance of the
 *             tail's sum is that of exp(logit - logit of the mean), at most sinh(h)^2 for logits within h of their cells' (Bhatia and
 *             Davis), however many keys there are.
 * control     control variate: what the mean keys say of the tail, and a uniform sample of what the keys have more than that.
 *
 * The last two are unbiased for both sums of the softmax, and so is the first where every cell is sampled; outputs are ratios.
 */
#include "sampled.h"

#include <math.h>

typedef struct strata_row {
    nearest_row *row;
    kna__sampler *s;
    kna__cells *cells;
    double head;   /* softmax sum of the head and a sink */
    double *known; /* (dv) its weighted values */
    double tail;   /* the estimate of the tail's sum, */
    double *num;   /* (dv) of its weighted values */
    double *mean;  /* (dv) */
    kna__moments m;
    int64_t rest;    /* what the moments stand for; 0: they tell no radius */
    double by_means; /* weight of what stands by means alone */
} strata_row;

static int64_t dv_of(const strata_row *r)
{
    return r->row->job->problem->dv;
}

/* A row whose gradients are wanted is a list: no values are needed. */
static bool is_list(const strata_row *r)
{
    return r->row->job->problem->lists != NULL;
}

/* listed: what of it is the cell's in a list, where its keys take some of it. */
static void add_mean(strata_row *r, int64_t cell, double weight, double listed)
{
    r->tail += weight;
    if (is_list(r)) {
        kna__list_cell(r->row, cell, listed);
        return;
    }
    kna__cells_mean_value(r->row, cell, r->mean);
    for (int64_t c = 0; c < dv_of(r); c++) {
        r->num[c] += weight * r->mean[c];
    }
}

/* A term of the estimate: a key's weight and weighted value, less `control` of the mean's; `factor` of it. */
static void add_key(strata_row *r, int32_t key, double w, double control, double factor)
{
    float value[KNA_MAX_DIM];
    double ww = (w - control) * (w - control), wwvv = 0;
    if (is_list(r)) {
        r->tail += factor * (w - control);
        kna__list_key(r->row, key, factor * w);
        return;
    }
    kna__row_value(r->row, key, value);
    r->m.count++;
    r->m.w += w - control;
    r->m.ww += ww;
    r->tail += factor * (w - control);
    for (int64_t c = 0; c < dv_of(r); c++) {
        double term = w * (double)value[c] - (control > 0 ? control * r->mean[c] : 0);
        r->num[c] += factor * term;
        r->m.wv[c] += term;
        r->m.wwv[c] += (w - control) * term;
        wwvv += term * term;
    }
    r->m.wwvv += wwvv;
}

/* ---- stratified */

/* Cells by their masses, the heaviest first; of equal ones the first. Heapsort: the C library's may allocate. */
static bool is_before(const kna__cells *c, int32_t a, int32_t b)
{
    return c->mass[a] > c->mass[b] || (!(c->mass[a] < c->mass[b]) && a < b);
}

static void sift(const kna__cells *c, int32_t *order, int64_t at, int64_t count)
{
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        child += child + 1 < count && is_before(c, order[child], order[child + 1]);
        if (!is_before(c, order[at], order[child])) {
            return;
        }
        int32_t last = order[at];
        order[at] = order[child];
        order[child] = last;
    }
}

static int64_t sort_cells(const kna__cells *c, int32_t *order)
{
    int64_t count = 0;
    for (int64_t x = 0; x < c->count; x++) {
        order[count] = (int32_t)x;
        count += c->rest[x] > 0;
    }
    for (int64_t at = count / 2; at-- > 0;) {
        sift(c, order, at, count);
    }
    for (int64_t end = count - 1; end > 0; end--) {
        int32_t last = order[0];
        order[0] = order[end];
        order[end] = last;
        sift(c, order, 0, end);
    }
    return count;
}

/*
 * In proportion to what is left of mass and samples, the heaviest cells first: at least one, never more keys than the cell has, nor
 * so many that none is left for a cell where there is one for each.
 */
static void deal(kna__cells *c, const int32_t *order, int64_t count, int64_t samples)
{
    double mass = 0;
    memset(c->share, 0, (size_t)c->count * sizeof *c->share);
    for (int64_t i = count; i-- > 0;) { /* light ones first: what is left of the sum is right to the end */
        mass += c->mass[order[i]];
        c->sums[i] = mass;
    }
    for (int64_t i = 0; i < count && samples > 0; i++) {
        int32_t x = order[i];
        int64_t after = samples >= count - i ? samples - (count - i - 1) : samples;
        int64_t share = c->sums[i] > 0 ? llround((double)samples * c->mass[x] / c->sums[i]) : 1;
        share = share < 1 ? 1 : share < after ? share : after;
        c->share[x] = (int32_t)(share < c->rest[x] ? share : c->rest[x]);
        samples -= c->share[x];
    }
    for (int64_t i = 0; i < count && samples > 0; i++) {
        int64_t room = c->rest[order[i]] - c->share[order[i]], more = samples < room ? samples : room;
        c->share[order[i]] += (int32_t)more;
        samples -= more;
    }
}

static void sample_cell(strata_row *r, int64_t x)
{
    kna__sampler *s = r->s;
    int64_t first = r->cells->first[x], share = r->cells->share[x], drawn = 0;
    double factor = (double)r->cells->rest[x] / (double)share;
    kna__draw_tail(s, s->tail + first, r->cells->rest[x], &drawn, share);
    kna__sampler_logits(s, s->tail + first, share, s->logits);
    for (int64_t i = 0; i < share; i++) {
        add_key(r, s->tail[first + i], kna__weight(s->logits[i]), 0, factor);
    }
}

static void stratified(strata_row *r, int64_t samples)
{
    int32_t *order = r->s->found;
    int64_t count = sort_cells(r->cells, order);
    deal(r->cells, order, count, samples);
    for (int64_t i = 0; i < count; i++) {
        if (r->cells->share[order[i]]) {
            sample_cell(r, order[i]);
        } else {
            add_mean(r, order[i], r->cells->mass[order[i]], r->cells->mass[order[i]]);
            r->by_means += r->cells->mass[order[i]];
        }
    }
}

/* ---- centroid */

/* A cell's chance is no less than exp(-600) of the largest, however little its mean key says it weighs. */
static double chances(kna__cells *c)
{
    double most = -INFINITY, sum = 0;
    for (int64_t x = 0; x < c->count; x++) {
        most = fmax(most, c->mean[x]);
    }
    for (int64_t x = 0; x < c->count; x++) {
        sum += c->rest[x] * exp(fmax(c->mean[x] - most, -600));
        c->sums[x] = sum;
    }
    return sum;
}

static void centroid(strata_row *r, int64_t samples)
{
    kna__sampler *s = r->s;
    kna__cells *c = r->cells;
    double all = chances(c);
    r->rest = INT64_C(1) << 40; /* drawn with replacement, as of a tail without end */
    for (int64_t done = 0, some; done < samples; done += some) {
        some = samples - done < r->row->job->ld ? samples - done : r->row->job->ld;
        for (int64_t i = 0; i < some; i++) {
            int64_t x = kna__draw_place(c->sums, c->count, kna__sampler_uniform(s) * all);
            int64_t place = (int64_t)(kna__sampler_uniform(s) * c->rest[x]);
            s->found[i] = s->tail[c->first[x] + (place < c->rest[x] ? place : c->rest[x] - 1)];
        }
        kna__sampler_logits(s, s->found, some, s->logits);
        for (int64_t i = 0; i < some; i++) {
            int32_t x = c->of[s->found[i]];
            double chance = (c->sums[x] - (x ? c->sums[x - 1] : 0)) / all;
            double g = kna__weight(s->logits[i]) * c->rest[x] / chance;
            add_key(r, s->found[i], g / (double)r->rest, 0, (double)r->rest / (double)samples);
        }
    }
}

/* ---- control variate */

static void control(strata_row *r, int64_t samples)
{
    kna__sampler *s = r->s;
    kna__cells *c = r->cells;
    int64_t drawn = 0, count = samples < s->rest ? samples : s->rest;
    r->rest = s->rest;
    memcpy(c->sums, c->mass, (size_t)c->count * sizeof *c->sums); /* less what the sample takes back of each */
    kna__draw_tail(s, s->tail, s->rest, &drawn, count);
    kna__sampler_logits(s, s->tail, count, s->logits);
    for (int64_t i = 0; i < count; i++) {
        int32_t key = s->tail[i], x = c->of[key];
        double lift = c->lift ? (double)c->lift[key] : 0, by_mean = exp(c->mean[x] + lift),
               factor = (double)s->rest / (double)count;
        if (!is_list(r)) {
            kna__cells_mean_value(r->row, x, r->mean);
        }
        add_key(r, key, kna__weight(s->logits[i]), by_mean, factor);
        c->sums[x] -= factor * by_mean;
    }
    double mass = 0;
    for (int64_t x = 0; x < c->count; x++) {
        mass += c->mass[x];
    }
    if (r->tail + mass <= 0) { /* a sum that cannot be: the means alone */
        r->tail = 0;
        r->by_means = mass;
        memset(r->num, 0, (size_t)dv_of(r) * sizeof *r->num);
        memcpy(c->sums, c->mass, (size_t)c->count * sizeof *c->sums);
        if (is_list(r)) {
            kna__list_drop_keys(r->row);
        }
    }
    for (int64_t x = 0; x < c->count; x++) {
        if (c->rest[x]) {
            add_mean(r, x, c->mass[x], c->sums[x]);
        }
    }
}

/* ---- a row */

static double radius_of(const strata_row *r, double sum, const double *out)
{
    const kna_attend_options *o = &r->row->job->problem->options;
    kna__estimate e = { out, sum, dv_of(r), r->rest };
    if (r->s->looked_at == r->s->rest && o->method != KNA_CENTROID) {
        return 0;
    }
    if (o->certificate == KNA_CERTIFICATE_DETERMINISTIC) {
        return kna__radius_trivial(r->row, out, kna__cells_radius(r->row, out, r->head, r->known, 0, 0));
    }
    return r->rest ? kna__radius_asymptotic(&e, &r->m, o->delta > 0 ? (double)o->delta : 0.05) : -1;
}

void kna__strata_attend(nearest_row *row, kna__row_stats *stats, kna__sampler *s)
{
    const kna__problem *p = row->job->problem;
    double *at = row->room.doubles;
    strata_row r = { .row = row, .s = s, .cells = &row->room.cells, .head = s->head_sum + s->sink, .known = at, .num = at + p->dv };
    r.mean = at + 2 * p->dv;
    r.m = (kna__moments){ .wv = at + 3 * p->dv, .wwv = at + 4 * p->dv };
    memset(r.num, 0, (size_t)(4 * p->dv) * sizeof *at);
    if (!p->lists) {
        kna__head_values(row, r.known);
    }
    switch (p->options.method) {
    case KNA_STRATIFIED:
        stratified(&r, p->options.samples);
        break;
    case KNA_CENTROID:
        centroid(&r, p->options.samples);
        break;
    default:
        control(&r, p->options.samples);
    }
    double sum = r.head + r.tail, *out = at + 5 * p->dv;
    if (p->lists) {
        kna__list_end(row, sum);
        return;
    }
    for (int64_t c = 0; c < p->dv; c++) {
        out[c] = (r.known[c] + r.num[c]) / sum;
    }
    stats->radius = (float)radius_of(&r, sum, out);
    stats->exact = s->looked_at == s->rest && p->options.method != KNA_CENTROID;
    stats->tail_mass = (float)(r.tail / sum);
    stats->by_means = (float)(r.by_means / sum);
    kna__sampled_write(row, s, sum, out);
}
