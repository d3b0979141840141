/*
 * lm_score.c - logits to figures. Stage: last of the room; knows neither llama.cpp nor sessions.
 *
 * Invariant: sums run over tokens in order, in double, after subtracting the row's maximum; results repeat bit for bit.
 */
#include "lm_score.h"

#include <math.h>

static double row_max(const float *logits, int vocab)
{
    float max = logits[0];
    for (int i = 1; i < vocab; i++) {
        max = logits[i] > max ? logits[i] : max;
    }
    return (double)max;
}

static double log_sum(const float *logits, int vocab, double max)
{
    double sum = 0.0;
    for (int i = 0; i < vocab; i++) {
        sum += exp((double)logits[i] - max);
    }
    return max + log(sum);
}

double lm_nll(const float *logits, int vocab, int32_t token)
{
    return log_sum(logits, vocab, row_max(logits, vocab)) - (double)logits[token];
}

int32_t lm_top(const float *logits, int vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

void lm_mean_add(lm_mean *mean, double value)
{
    mean->count++;
    mean->sum += value;
    mean->sum_squares += value * value;
}

double lm_mean_value(const lm_mean *mean)
{
    return mean->count > 0 ? mean->sum / (double)mean->count : 0.0;
}

double lm_mean_error(const lm_mean *mean)
{
    if (mean->count < 2) {
        return 0.0;
    }
    double value = lm_mean_value(mean);
    double variance = mean->sum_squares / (double)mean->count - value * value;
    return variance > 0.0 ? sqrt(variance / (double)(mean->count - 1)) : 0.0;
}

/* KL = sum p (a - b) - lse(a) + lse(b): one pass for both sums. */
double lm_divergence(const float *reference, const float *logits, int vocab)
{
    double max_p = row_max(reference, vocab), max_q = row_max(logits, vocab);
    double sum_p = 0.0, sum_q = 0.0, sum_gap = 0.0;
    for (int i = 0; i < vocab; i++) {
        double a = (double)reference[i] - max_p, b = (double)logits[i] - max_q;
        double p = exp(a);
        sum_p += p;
        sum_q += exp(b);
        sum_gap += p > 0.0 ? p * (a - b) : 0.0;
    }
    double divergence = sum_gap / sum_p - log(sum_p) + log(sum_q);
    return divergence > 0.0 ? divergence : 0.0;
}

static void add_comparison(lm_score *score, const lm_row *row)
{
    lm_mean_add(&score->divergence, row->divergence);
    score->agree += row->agree;
}

static void compare(lm_row *row, const float *logits, const float *reference, int vocab)
{
    row->divergence = lm_divergence(reference, logits, vocab);
    row->agree = lm_top(logits, vocab) == lm_top(reference, vocab);
}

void lm_score_compare(lm_score *score, const float *logits, const float *reference, int vocab)
{
    lm_row row = { 0.0, 0.0, 0 };
    compare(&row, logits, reference, vocab);
    add_comparison(score, &row);
}

void lm_score_add(lm_score *score, const float *logits, const float *reference, int vocab, int32_t token)
{
    lm_row row = { lm_nll(logits, vocab, token), 0.0, 0 };
    if (reference) {
        compare(&row, logits, reference, vocab);
        add_comparison(score, &row);
    }
    if (score->rows && score->nll.count < score->room) {
        score->rows[score->nll.count] = row;
    }
    lm_mean_add(&score->nll, row.nll);
}

double lm_score_perplexity(const lm_score *score)
{
    return exp(lm_mean_value(&score->nll));
}

double lm_score_perplexity_error(const lm_score *score)
{
    return lm_score_perplexity(score) * lm_mean_error(&score->nll);
}

double lm_score_agreement(const lm_score *score)
{
    return score->divergence.count > 0 ? (double)score->agree / (double)score->divergence.count : 1.0;
}

int32_t lm_sample(const float *logits, int vocab, double temperature, double u)
{
    double max = row_max(logits, vocab), sum = 0.0;
    for (int i = 0; i < vocab; i++) {
        sum += exp(((double)logits[i] - max) / temperature);
    }
    double left = u * sum;
    int32_t last = 0;
    for (int32_t i = 0; i < vocab; i++) {
        double weight = exp(((double)logits[i] - max) / temperature);
        last = weight > 0.0 ? i : last;
        left -= weight;
        if (left < 0.0) {
            return i;
        }
    }
    return last; /* rounding used up the whole sum */
}

/* splitmix64's finaliser over a counter: enough for drawing tokens, prompts and resamples. */
uint64_t lm_bits(uint64_t seed, uint64_t step)
{
    uint64_t x = seed + (step + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

double lm_random(uint64_t seed, uint64_t step)
{
    return (double)(lm_bits(seed, step) >> 11) * 0x1.0p-53;
}
