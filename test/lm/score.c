/*
 * score.c - the arithmetic of lm_score.c against formulas written down a second time, over probabilities instead of logits.
 */
#include "test.h"

#include "lm_score.h"

#define VOCAB 257

static void random_row(float *logits, double spread, double shift)
{
    for (int i = 0; i < VOCAB; i++) logits[i] = (float)(shift + spread * (2.0 * test_uniform() - 1.0));
}

static void softmax(long double *p, const float *logits)
{
    long double sum = 0.0L;
    for (int i = 0; i < VOCAB; i++) sum += p[i] = expl((long double)logits[i]);
    for (int i = 0; i < VOCAB; i++) p[i] /= sum;
}

static void probabilities(void)
{
    float row[VOCAB], other[VOCAB];
    long double p[VOCAB], q[VOCAB];
    for (int round = 0; round < 50; round++) {
        long double divergence = 0.0L;
        random_row(row, 0.1 + round, round % 7);
        random_row(other, 0.1 + round, -3.0);
        softmax(p, row);
        softmax(q, other);
        for (int i = 0; i < VOCAB; i++) divergence += p[i] * logl(p[i] / q[i]);
        EXPECT_NEAR(lm_nll(row, VOCAB, round), (double)-logl(p[round]), 1e-12 * (1.0 + 2.0 * round));
        EXPECT_NEAR(lm_divergence(row, other, VOCAB), (double)divergence, 1e-12 * (1.0 + 2.0 * round));
    }
}

/* Logits far beyond what exp() can take, and equal rows. */
static void extremes(void)
{
    float row[VOCAB], other[VOCAB];
    random_row(row, 5.0, 0.0);
    for (int i = 0; i < VOCAB; i++) other[i] = row[i] + 1e4f;
    EXPECT_NEAR(lm_nll(other, VOCAB, 3), lm_nll(row, VOCAB, 3), 2e-3);
    EXPECT(lm_divergence(row, row, VOCAB) == 0.0);
    EXPECT(lm_divergence(row, other, VOCAB) >= 0.0 && lm_divergence(row, other, VOCAB) < 1e-6);
    for (int i = 0; i < VOCAB; i++) row[i] = i == 7 ? 0.0f : -1e30f;
    EXPECT(lm_nll(row, VOCAB, 7) == 0.0);
    row[9] = -INFINITY;
    EXPECT(lm_divergence(row, other, VOCAB) > 0.0 && isfinite(lm_divergence(row, other, VOCAB)));
}

static void means(void)
{
    lm_mean mean = { 0, 0.0, 0.0 };
    EXPECT(lm_mean_value(&mean) == 0.0 && lm_mean_error(&mean) == 0.0);
    const double values[4] = { 1.0, 2.0, 4.0, 7.0 }; /* mean 3.5, sum of squared deviations 21 */
    for (int i = 0; i < 4; i++) lm_mean_add(&mean, values[i]);
    EXPECT_NEAR(lm_mean_value(&mean), 3.5, 1e-15);
    EXPECT_NEAR(lm_mean_error(&mean), sqrt(21.0 / 4.0 / 3.0), 1e-15);
}

static void scores(void)
{
    lm_score score;
    lm_row rows[3] = { { 0.0, 0.0, 0 }, { 0.0, 0.0, 0 }, { -1.0, -1.0, -1 } };
    float flat[VOCAB], row[VOCAB];
    memset(&score, 0, sizeof score);
    score.rows = rows;
    score.room = 2;
    EXPECT(lm_score_agreement(&score) == 1.0);
    for (int i = 0; i < VOCAB; i++) flat[i] = 0.25f;
    random_row(row, 3.0, 0.0);
    row[100] = 9.0f;
    lm_score_add(&score, flat, row, VOCAB, 5); /* most likely: 0 against 100 */
    lm_score_add(&score, flat, flat, VOCAB, 6);
    lm_score_add(&score, flat, NULL, VOCAB, 7); /* not compared */
    EXPECT_NEAR(lm_score_perplexity(&score), (double)VOCAB, 1e-9);
    EXPECT_NEAR(lm_score_perplexity_error(&score), 0.0, 1e-4);
    EXPECT(score.nll.count == 3 && score.divergence.count == 2);
    EXPECT_NEAR(lm_score_agreement(&score), 0.5, 0.0);
    EXPECT_NEAR(rows[0].nll + rows[1].nll, 2.0 * log((double)VOCAB), 1e-9);
    EXPECT(rows[0].divergence == lm_divergence(row, flat, VOCAB) && rows[1].divergence == 0.0);
    EXPECT(rows[0].agree == 0 && rows[1].agree == 1);
    EXPECT(rows[2].nll == -1.0); /* no room for the third */
}

/* Frequencies of drawn tokens within five standard deviations of their probability. */
static void sampling(void)
{
    enum { DRAWS = 20000, FEW = 5 };
    const float logits[FEW] = { 0.0f, 1.0f, -INFINITY, 2.0f, 0.5f };
    const double temperature = 1.7;
    double weights[FEW], sum = 0.0;
    int counts[FEW] = { 0 };
    for (int i = 0; i < FEW; i++) sum += weights[i] = exp((double)logits[i] / temperature);
    for (uint64_t i = 0; i < DRAWS; i++) counts[lm_sample(logits, FEW, temperature, lm_random(test_state.seed, i))]++;
    for (int i = 0; i < FEW; i++) {
        double p = weights[i] / sum;
        EXPECT_NEAR(counts[i], DRAWS * p, 5.0 * sqrt(DRAWS * p * (1.0 - p)));
    }
    EXPECT(lm_sample(logits, FEW, temperature, 0.0) == 0 && lm_sample(logits, FEW, temperature, 1.0) == 4);
    EXPECT(lm_sample(logits, FEW, 1e-9, 0.5) == 3);
    EXPECT(lm_top(logits, FEW) == 3);
    const float equals[3] = { 1.0f, 1.0f, 1.0f };
    EXPECT(lm_top(equals, 3) == 0);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(probabilities);
    TEST(extremes);
    TEST(means);
    TEST(scores);
    TEST(sampling);
    return test_end();
}
