/* sampling.c - see sampling.h. */
#include "sampling.h"

int sampling_attend(random_case *c)
{
    int status = case_attend(c, context_best(), NULL);
    if (status != KNA_OK) printf("  %s\n", kna_context_message(context_best()));
    return status;
}

/* One head of n keys with logits of a deviation of about `spread`, at the same seed every time. */
void sampling_begin(random_case *c, shape s, double spread)
{
    uint64_t random = test_state.random;
    test_state.random = 20250101;
    case_begin(c, s);
    case_rows(c, &c->q, KNA_F32, LAYOUT_PACKED, spread);
    test_state.random = random;
}

void sampling_choose_head(random_case *c, int head)
{
    int32_t *groups = case_hold(c, (size_t)c->shape.n * sizeof *groups);
    for (int64_t j = 0; j < c->shape.n; j++) groups[j] = (int32_t)(j % 11 % 4);
    c->options.diverse = head < 4 ? head : KNA_DIVERSE_QUOTA;
    c->options.mmr_lambda = 0.4f;
    c->options.dpp_theta = 1;
    c->options.quota = 0.8f;
    c->options.key_groups = groups;
    c->options.key_group_count = 4;
    c->options.landmarks = head == 4 ? 7 : 0;
}

/* ---- draws */

/* The quantile of chi-square with n degrees that 1e-4 are above (Wilson and Hilferty). */
double sampling_chi_square_limit(double n)
{
    double root = 1 - 2 / (9 * n) + 3.719 * sqrt(2 / (9 * n));
    return n * root * root * root;
}

double sampling_chi_square(const int32_t *draws, int64_t count, const double *logits, double lse, int64_t n)
{
    double *times = calloc((size_t)n, sizeof *times), square = 0, rare = 0, rare_times = 0;
    int64_t cells = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!EXPECT_THAT(draws[i] >= 0 && draws[i] < n, "key %d", (int)draws[i])) break;
        times[draws[i]]++;
    }
    for (int64_t j = 0; j < n; j++) {
        double want = (double)count * exp(logits[j] - lse);
        if (want < 5) { /* together one cell */
            rare += want;
            rare_times += times[j];
            continue;
        }
        square += (times[j] - want) * (times[j] - want) / want;
        cells++;
    }
    if (rare >= 5) {
        square += (rare_times - rare) * (rare_times - rare) / rare;
        cells++;
    } else {
        EXPECT_THAT(rare_times <= rare + 6 * sqrt(rare) + 6, "%g draws of keys expected %g times", rare_times, rare);
    }
    free(times);
    return square / sampling_chi_square_limit((double)cells - 1);
}

void sampling_expect_softmax(const int32_t *draws, int64_t count, const double *logits, double lse, int64_t n)
{
    double square = sampling_chi_square(draws, count, logits, lse, n);
    EXPECT_THAT(square <= 1, "chi-square %g times its limit", square);
}

/* ---- a row */

sampling_row sampling_truth(const random_case *c, int64_t query)
{
    sampling_row t = { .scale = 0 };
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    double *logits = calloc((size_t)c->shape.n + 1, sizeof *logits);
    oracle_logits(o, 0, query, logits);
    t.lse = oracle_mix(o, 0, logits, t.out);
    for (int64_t j = 0; j < c->shape.n; j++) {
        for (int64_t i = 0; i < c->shape.dv; i++) {
            double v = o->v[j * c->shape.dv + i];
            t.scale += exp(logits[j] - t.lse) * v * v;
        }
    }
    t.scale = sqrt(t.scale);
    free(logits);
    oracle_free(o);
    return t;
}

double sampling_distance(const float *x, const double *y, int64_t n)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    return sqrt(square);
}

/* Share of rows farther from exact attention than their radius. */
double sampling_missed(random_case *c, int64_t seeds, double *radius_sum, double *error_sum)
{
    float *radius = case_hold(c, (size_t)(c->shape.h * c->shape.m) * sizeof *radius);
    int64_t over = 0;
    c->options.radius = radius;
    sampling_row *t = calloc((size_t)c->shape.m, sizeof *t);
    for (int64_t query = 0; query < c->shape.m; query++) t[query] = sampling_truth(c, query);
    for (int64_t seed = 0; seed < seeds; seed++) {
        c->options.seed = (uint64_t)seed;
        if (!EXPECT_INT(sampling_attend(c), KNA_OK)) break;
        for (int64_t query = 0; query < c->shape.m; query++) {
            double off = sampling_distance(case_out_row(c, 0, query), t[query].out, c->shape.dv);
            over += off > (double)radius[query] + 1e-6;
            *radius_sum += (double)radius[query] / (double)(seeds * c->shape.m);
            *error_sum += off / (double)(seeds * c->shape.m);
        }
    }
    free(t);
    return (double)over / (double)(seeds * c->shape.m);
}
