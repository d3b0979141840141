/*
 * bootstrap.c - intervals of lm_bootstrap.c: against the normal theory they must agree with, their cover of the truth, and the cases
 * where nothing is known.
 */
#include "test.h"

#include "lm.h"
#include "lm_bootstrap.h"

#define UNITS 400

static void fill(lm_unit *units, int count, double mean, double spread)
{
    for (int i = 0; i < count; i++) {
        units[i].weight = 1.0;
        units[i].sum = mean + spread * test_normal();
    }
}

static lm_interval interval_of(const lm_unit *units, int count, uint64_t seed)
{
    lm_interval interval = { 0.0, 0.0, 0.0 };
    EXPECT_INT(lm_bootstrap(&interval, units, &count, 1, seed), LM_OK);
    return interval;
}

/* Of many equal units the interval is mean +- 1.96 standard errors; its ends come from 2,000 draws, hence within a tenth. */
static void normal_theory(void)
{
    lm_unit units[UNITS];
    fill(units, UNITS, 3.0, 0.5);
    double sum = 0.0, squares = 0.0;
    for (int i = 0; i < UNITS; i++) {
        sum += units[i].sum;
        squares += units[i].sum * units[i].sum;
    }
    double mean = sum / UNITS, half = 1.96 * sqrt((squares / UNITS - mean * mean) / UNITS);
    lm_interval interval = interval_of(units, UNITS, 7);
    EXPECT_NEAR(interval.value, mean, 1e-12);
    EXPECT_NEAR(interval.low, mean - half, 0.1 * 2.0 * half);
    EXPECT_NEAR(interval.high, mean + half, 0.1 * 2.0 * half);
}

/* 95 % of the intervals hold the truth: of 300 trials about 284; below 262 or with all 300 something is wrong. */
static void cover(void)
{
    enum { TRIALS = 300, FEW = 60 };
    lm_unit units[FEW];
    int held = 0;
    for (int t = 0; t < TRIALS; t++) {
        fill(units, FEW, -1.0, 2.0);
        lm_interval interval = interval_of(units, FEW, (uint64_t)t);
        held += interval.low <= -1.0 && -1.0 <= interval.high;
    }
    EXPECT_THAT(held >= 262 && held < 300, "%d of 300 intervals hold the truth", held);
}

/* Many strata of two units each: the interval is still mean +- 1.96 standard errors of a stratified mean, not 0.7 of that. */
static void small_strata(void)
{
    enum { STRATA = 300 };
    static lm_unit units[2 * STRATA];
    static int cut[STRATA];
    double mean = 0.0, variance = 0.0;
    fill(units, 2 * STRATA, 0.0, 1.0);
    for (int s = 0; s < STRATA; s++) {
        const double a = units[2 * s].sum, b = units[2 * s + 1].sum;
        cut[s] = 2;
        mean += (a + b) / (2 * STRATA);
        variance += (a - b) * (a - b) / 4.0 / STRATA / STRATA; /* s^2 / 2 of each stratum's mean */
    }
    lm_interval interval;
    double half = 1.96 * sqrt(variance);
    EXPECT_INT(lm_bootstrap(&interval, units, cut, STRATA, 5), LM_OK);
    EXPECT_NEAR(interval.value, mean, 1e-12);
    EXPECT_NEAR(interval.low, mean - half, 0.1 * 2.0 * half);
    EXPECT_NEAR(interval.high, mean + half, 0.1 * 2.0 * half);
}

/* A unit counts by its weight, and units that say the same leave no doubt. */
static void weights(void)
{
    const lm_unit units[3] = { { 2.0, 1.0 }, { 30.0, 10.0 }, { 4.0, 1.0 } };
    lm_interval interval = interval_of(units, 3, 1);
    EXPECT_NEAR(interval.value, 36.0 / 12.0, 1e-15);
    EXPECT(interval.low >= 2.0 && interval.low < 3.0 && interval.high > 3.0 && interval.high <= 4.0);
    const lm_unit equal[4] = { { 3.0, 2.0 }, { 1.5, 1.0 }, { 6.0, 4.0 }, { 1.5, 1.0 } };
    interval = interval_of(equal, 4, 1);
    EXPECT_NEAR(interval.value, 1.5, 1e-12);
    EXPECT_NEAR(interval.low, 1.5, 1e-12);
    EXPECT_NEAR(interval.high, 1.5, 1e-12);
}

/* Units alike within their stratum: drawn by stratum, the mean never moves; drawn from one pot, it does. */
static void strata(void)
{
    lm_unit units[12];
    const int cut[2] = { 4, 8 };
    lm_interval interval;
    for (int i = 0; i < 12; i++) units[i] = (lm_unit){ i < 4 ? 5.0 : -1.0, 1.0 };
    EXPECT_INT(lm_bootstrap(&interval, units, cut, 2, 3), LM_OK);
    EXPECT_NEAR(interval.value, 1.0, 1e-12);
    EXPECT_NEAR(interval.low, 1.0, 1e-12);
    EXPECT_NEAR(interval.high, 1.0, 1e-12);
    interval = interval_of(units, 12, 3);
    EXPECT(interval.low < 0.0 && interval.high > 2.0);
}

static void repeats(void)
{
    lm_unit units[20];
    fill(units, 20, 0.0, 1.0);
    lm_interval a = interval_of(units, 20, 11), b = interval_of(units, 20, 11), c = interval_of(units, 20, 12);
    EXPECT(memcmp(&a, &b, sizeof a) == 0);
    EXPECT(a.low != c.low && a.value == c.value);
}

static void nothing_known(void)
{
    const lm_unit units[3] = { { 1.0, 1.0 }, { 2.0, 1.0 }, { 6.0, 1.0 } };
    const int cut[2] = { 2, 1 };
    lm_interval interval = interval_of(units, 1, 0);
    EXPECT(interval.value == 1.0 && isnan(interval.low) && isnan(interval.high));
    EXPECT_INT(lm_bootstrap(&interval, units, cut, 2, 0), LM_OK);
    EXPECT(interval.value == 3.0 && isnan(interval.low) && isnan(interval.high));
    interval = interval_of(units, 0, 0);
    EXPECT(interval.value == 0.0 && isnan(interval.low));
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(normal_theory);
    TEST(cover);
    TEST(small_strata);
    TEST(weights);
    TEST(strata);
    TEST(repeats);
    TEST(nothing_known);
    return test_end();
}
