/*
 * sampled.c - keys drawn by the softmax of a row, exactly, most of its logits never being computed.
 *
 * Lazy Gumbel sampling (Mussmann, Levy and Ermon 2017): the key with the largest logit plus Gumbel noise is one drawn by softmax.
 * The head's maximum M is drawn at once, being Gumbel about log(head sum); a key of the tail can only win with noise above M -
 * bound, and how many have that is binomial. Rejection: head and a bound of the tail make an envelope; what falls between is drawn
 * again. Both are exact for any head as long as the bound is one; what the bound costs is keys looked at: tail a / (1 + a) per draw
 * for Gumbel, with a = exp(bound) / head sum. With a bound for each cell of keys the tail is thinned cell by cell, and the envelope
 * is a staircase; costs add up over the cells.
 */
#include "sampled.h"

#include <math.h>

double kna__sampler_uniform(kna__sampler *s)
{
    return kna__uniform(s->row->job->problem->options.seed, s->stream, s->counter++);
}

static int64_t below(kna__sampler *s, int64_t n)
{
    int64_t i = (int64_t)(kna__sampler_uniform(s) * (double)n);
    return i < n ? i : n - 1;
}

void kna__sampler_logits(kna__sampler *s, const int32_t *keys, int64_t count, float *logits)
{
    const nearest_row *row = s->row;
    const kna__problem *p = row->job->problem;
    p->kernels->dot_at[p->k.type](logits, 0, row->q, 0, 1, kna__span_at(&p->k, row->kv_head, 0), keys, (size_t)count, (size_t)p->d);
    kna__logits_finish_at(p, row->head, row->query, keys, logits, count);
    for (int64_t i = 0; i < count; i++) {
        logits[i] -= s->shift;
    }
    s->looked_at += count;
}

int64_t kna__draw_place(const double *sums, int64_t count, double x)
{
    int64_t low = 0, high = count - 1;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (sums[middle] > x) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* A key of the head by its weight; x in [0, head_sum). */
static int32_t head_key(const kna__sampler *s, double x)
{
    return s->head[kna__draw_place(s->sums, s->k, x)];
}

/* ---- bounds */

static double envelope(const kna__sampler *s)
{
    double sum = 0;
    for (int64_t x = 0; s->by_cell && x < s->cells->count; x++) {
        sum += s->cells->rest[x] * exp(s->cells->upper[x]);
        s->cells->sums[x] = sum;
    }
    return s->by_cell ? sum : s->rest ? (double)s->rest * exp(s->bound) : 0;
}

/* Keys of the tail that a draw looks at, in the mean: exact for Gumbel, an upper bound for rejection, as head_sum is one below. */
static double expected_looks(const kna__sampler *s, bool by_rejection)
{
    double sum = 0, a = exp(s->bound) / s->head_sum;
    if (by_rejection) {
        return s->envelope / s->head_sum;
    }
    for (int64_t x = 0; s->by_cell && x < s->cells->count; x++) {
        sum += s->cells->rest[x] / (1 + s->head_sum * exp(-s->cells->upper[x]));
    }
    return s->by_cell ? sum : (double)s->rest * a / (1 + a);
}

void kna__draw_prepare(kna__sampler *s, int64_t count)
{
    const kna_attend_options *o = &s->row->job->problem->options;
    s->envelope = envelope(s);
    bool is_loose = s->by_cell || o->gap > 0; /* bounds of an exact head are never far off: below n / (k + 1) a draw */
    if (!s->rest || !is_loose || (double)count * expected_looks(s, o->method == KNA_REJECTION) <= (double)s->rest) {
        return;
    }
    double sum = 0;
    s->tail_sums = s->sums + s->k;
    kna__sampler_logits(s, s->tail, s->rest, s->logits);
    for (int64_t i = 0; i < s->rest; i++) {
        sum += kna__weight(s->logits[i]);
        s->tail_sums[i] = sum;
    }
}

/* By weights that are all known; *level: their sum. */
static int32_t draw_known(kna__sampler *s, double *level)
{
    double tail = s->tail_sums[s->rest - 1], x = kna__sampler_uniform(s) * (s->head_sum + tail);
    *level = s->head_sum + tail;
    return x < s->head_sum ? head_key(s, x) : s->tail[kna__draw_place(s->tail_sums, s->rest, x - s->head_sum)];
}

/* ---- lazy Gumbel */

/* A maximum found so far. */
typedef struct contest {
    double head, best; /* the head's, and that of all */
    int32_t key;
} contest;

/* Every place of tail[first .. first + rest - 1] with probability `share`, by the distances between them. */
static int64_t thin(kna__sampler *s, double share, int64_t first, int64_t rest)
{
    double log_miss = log1p(-share);
    int64_t found = 0;
    for (double at = 0; rest; at++) {
        at += log_miss < 0 ? floor(log(kna__sampler_uniform(s)) / log_miss) : (double)rest;
        if (!(at < (double)rest)) {
            break;
        }
        s->found[found++] = s->tail[first + (int64_t)at];
    }
    return found;
}

/* Keys of the tail that may beat the head, no logit of which is above `bound`. */
static void compete(kna__sampler *s, contest *c, double bound, int64_t first, int64_t rest)
{
    double share = -expm1(-exp(bound - c->head));
    int64_t count = thin(s, share, first, rest);
    if (count) {
        kna__sampler_logits(s, s->found, count, s->logits);
    }
    for (int64_t i = 0; i < count; i++) {
        double noise = -log(-log1p(-share * kna__sampler_uniform(s))); /* given that it is above head - bound */
        if ((double)s->logits[i] + noise > c->best) {
            c->best = (double)s->logits[i] + noise;
            c->key = s->found[i];
        }
    }
}

int32_t kna__draw_gumbel(kna__sampler *s, double *level)
{
    if (s->tail_sums) {
        return draw_known(s, level);
    }
    contest c = { .head = log(s->head_sum) - log(-log(kna__sampler_uniform(s))) };
    c.best = c.head;
    c.key = head_key(s, kna__sampler_uniform(s) * s->head_sum);
    for (int64_t x = 0; s->by_cell && x < s->cells->count; x++) {
        if (s->cells->rest[x]) {
            compete(s, &c, s->cells->upper[x], s->cells->first[x], s->cells->rest[x]);
        }
    }
    if (!s->by_cell) {
        compete(s, &c, s->bound, 0, s->rest);
    }
    *level = c.best;
    return c.key;
}

/* ---- rejection */

/* A key of the tail by its bound, x in [0, envelope); *most: the weight at the bound. */
static int32_t bounded_key(kna__sampler *s, double x, double *most)
{
    int64_t first = 0, rest = s->rest;
    *most = exp(s->bound);
    if (s->by_cell) {
        int64_t cell = kna__draw_place(s->cells->sums, s->cells->count, x);
        first = s->cells->first[cell];
        rest = s->cells->rest[cell];
        *most = exp(s->cells->upper[cell]);
    }
    return s->tail[first + below(s, rest)];
}

int32_t kna__draw_by_rejection(kna__sampler *s, double *level)
{
    if (s->tail_sums) {
        return draw_known(s, level);
    }
    double all = s->head_sum + s->envelope, most;
    for (*level = 1;; (*level)++) {
        double x = kna__sampler_uniform(s) * all;
        if (x < s->head_sum || !s->rest) {
            return head_key(s, x < s->head_sum ? x : 0);
        }
        int32_t key = bounded_key(s, x - s->head_sum, &most);
        float logit;
        kna__sampler_logits(s, &key, 1, &logit);
        if (kna__sampler_uniform(s) * most < exp((double)logit)) {
            return key;
        }
    }
}

/* ---- without weights */

/* Fisher and Yates' shuffle, as far as it is wanted: samples of different sizes are nested. */
void kna__draw_tail(kna__sampler *s, int32_t *keys, int64_t n, int64_t *drawn, int64_t count)
{
    for (; *drawn < count; ++*drawn) {
        int64_t other = *drawn + below(s, n - *drawn);
        int32_t key = keys[other];
        keys[other] = keys[*drawn];
        keys[*drawn] = key;
    }
}
