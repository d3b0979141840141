/*
 * lm_score.h - what a row of logits says: probability of a token, divergence between two rows, the token to take next.
 *
 * Pure arithmetic in double; no model. Rows hold `vocab` logits; a row may be shifted by any constant without changing a result.
 */
#ifndef KNA_LM_SCORE_H
#define KNA_LM_SCORE_H

#include <stdint.h>

/* lm_nll() - minus log of the softmax probability of `token`. */
double lm_nll(const float *logits, int vocab, int32_t token);

/* lm_top() - most likely token, the lowest of equals. */
int32_t lm_top(const float *logits, int vocab);

/* Mean of a quantity with its standard error. */
typedef struct lm_mean {
    int64_t count;
    double sum, sum_squares;
} lm_mean;

void lm_mean_add(lm_mean *mean, double value);
double lm_mean_value(const lm_mean *mean); /* 0 of nothing */
double lm_mean_error(const lm_mean *mean); /* standard error of the mean, 0 below two values */

/* What one row of known text says; divergence and agree only where there is a reference. */
typedef struct lm_row {
    double nll, divergence;
    int agree;
} lm_row;

/* Score of a run on known text: perplexity, and how far it is from a reference that read the same text. */
typedef struct lm_score {
    lm_mean nll;        /* of the tokens that came */
    lm_mean divergence; /* Kullback-Leibler divergence of this run from the reference, in nats */
    int64_t agree;      /* rows whose most likely token is the reference's */
    lm_row *rows;       /* the caller's: lm_score_add() also writes the row itself here, in order; NULL: nobody asks */
    int64_t room;       /* rows there; further ones are only summed up */
} lm_score;

/* lm_score_add() - one row. `reference` NULL: perplexity only. */
void lm_score_add(lm_score *score, const float *logits, const float *reference, int vocab, int32_t token);
/* lm_score_compare() - one row without a known next token. */
void lm_score_compare(lm_score *score, const float *logits, const float *reference, int vocab);

double lm_score_perplexity(const lm_score *score);
double lm_score_perplexity_error(const lm_score *score); /* standard error, to first order */
double lm_score_agreement(const lm_score *score);        /* share of rows compared; 1 of nothing */

/* lm_divergence() - sum over tokens of p log(p / q), p from `reference`, q from `logits`; never negative. */
double lm_divergence(const float *reference, const float *logits, int vocab);

/* lm_sample() - a token with probability softmax(logits / temperature), for a number u in [0,1). */
int32_t lm_sample(const float *logits, int vocab, double temperature, double u);

/* lm_bits() - 64 random bits for step `step` of the stream `seed`: counter-based, so that a run can be repeated from any step. The
 * bits of one stream may serve as seeds of others. lm_random() - the same as a number in [0,1). */
uint64_t lm_bits(uint64_t seed, uint64_t step);
double lm_random(uint64_t seed, uint64_t step);

#endif /* KNA_LM_SCORE_H */
