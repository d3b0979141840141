/*
 * sampled.c - keys drawn by the softmax of a row, exactly, most of its logits never being computed.
 *
 * Lazy Gumbel sampling (Mussmann, Levy and Ermon 2017): the key with the largest logit plus Gumbel noise is one drawn by softmax.
 * The head's maximum M is drawn at once, being Gumbel about log(head sum); a key of the tail can only win with noise above M -
 * bound, and how many have that is binomial. Rejection: head and a bound of the tail make an envelope; what falls between is drawn
 * again. Both are exact for any head as long as the bound is one; what the bound costs is keys looked at: tail a / (1 + a) per draw
 * for Gumbel, with a = exp(bound) / head sum.
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

/* A key of the head by its weight; x in [0, head_sum). */
static int32_t head_key(const kna__sampler *s, double x)
{
    int64_t low = 0, high = s->k - 1;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (s->sums[middle] > x) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return s->head[low];
}

/* Every place of the tail with probability `share`, by the distances between them. */
static int64_t thin(kna__sampler *s, double share)
{
    double log_miss = log1p(-share);
    int64_t found = 0;
    for (double at = 0; s->rest; at++) {
        at += log_miss < 0 ? floor(log(kna__sampler_uniform(s)) / log_miss) : (double)s->rest;
        if (!(at < (double)s->rest)) {
            break;
        }
        s->found[found++] = s->tail[(int64_t)at];
    }
    return found;
}

int32_t kna__draw_gumbel(kna__sampler *s, double *level)
{
    double best = log(s->head_sum) - log(-log(kna__sampler_uniform(s)));
    int32_t key = head_key(s, kna__sampler_uniform(s) * s->head_sum);
    double share = -expm1(-exp(s->bound - best));
    int64_t count = thin(s, share);
    kna__sampler_logits(s, s->found, count, s->logits);
    for (int64_t i = 0; i < count; i++) {
        double noise = -log(-log1p(-share * kna__sampler_uniform(s))); /* given that it is above best - bound */
        if ((double)s->logits[i] + noise > best) {
            best = (double)s->logits[i] + noise;
            key = s->found[i];
        }
    }
    *level = best;
    return key;
}

int32_t kna__draw_by_rejection(kna__sampler *s, double *level)
{
    double most = exp(s->bound), all = s->head_sum + (double)s->rest * most;
    for (*level = 1;; (*level)++) {
        double x = kna__sampler_uniform(s) * all;
        if (x < s->head_sum || !s->rest) {
            return head_key(s, x < s->head_sum ? x : 0);
        }
        int32_t key = s->tail[below(s, s->rest)];
        float logit;
        kna__sampler_logits(s, &key, 1, &logit);
        if (kna__sampler_uniform(s) * most < exp((double)logit)) {
            return key;
        }
    }
}

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
