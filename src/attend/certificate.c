/* certificate.c - see certificate.h. */
#include "certificate.h"

#include <math.h>
#include <stdbool.h>

double kna__normal_quantile(double q)
{
    static const double a[] = { -3.969683028665376e+01, 2.209460984245205e+02,  -2.759285104469687e+02,
                                1.383577518672690e+02,  -3.066479806614716e+01, 2.506628277459239e+00 };
    static const double b[] = { -5.447609879822406e+01, 1.615858368580409e+02, -1.556989798598866e+02, 6.680131188771972e+01,
                                -1.328068155288572e+01 };
    static const double c[] = { -7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e+00,
                                -2.549732539343734e+00, 4.374664141464968e+00,  2.938163982698783e+00 };
    static const double d[] = { 7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00, 3.754408661907416e+00 };
    double tail = q < 0.5 ? q : 1 - q, x, side = q < 0.5 ? 1 : -1;
    if (tail < 0.02425) {
        double t = sqrt(-2 * log(tail));
        x = side * (((((c[0] * t + c[1]) * t + c[2]) * t + c[3]) * t + c[4]) * t + c[5]) /
            ((((d[0] * t + d[1]) * t + d[2]) * t + d[3]) * t + 1);
    } else {
        double t = q - 0.5, r = t * t;
        x = (((((a[0] * r + a[1]) * r + a[2]) * r + a[3]) * r + a[4]) * r + a[5]) * t /
            (((((b[0] * r + b[1]) * r + b[2]) * r + b[3]) * r + b[4]) * r + 1);
    }
    double off = (erfc(-x / sqrt(2)) / 2 - q) * sqrt(2 * acos(-1)) * exp(x * x / 2);
    return x - off / (1 + x * off / 2);
}

static double entropy(double p, double q)
{
    double left = p > 0 ? p * log(p / q) : 0, right = p < 1 ? (1 - p) * log((1 - p) / (1 - q)) : 0;
    return left + right;
}

double kna__entropy_above(double mean, double c)
{
    double low = mean < 0 ? 0 : mean > 1 ? 1 : mean, high = 1;
    double p = low;
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        if (entropy(p, middle) <= c) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return high;
}

double kna__entropy_below(double mean, double c)
{
    return 1 - kna__entropy_above(1 - mean, c);
}

/* sum over the sample of |w (v - at)|^2 */
static double square_about(const kna__moments *m, const double *at, int64_t dv)
{
    double cross = 0, norm = 0;
    for (int64_t i = 0; i < dv; i++) {
        cross += at[i] * m->wwv[i];
        norm += at[i] * at[i];
    }
    return fmax(0, m->wwvv - 2 * cross + norm * m->ww);
}

double kna__variance_of_sample(const double *out, int64_t dv, int64_t all, const kna__moments *m)
{
    double s = (double)m->count, rest = (double)all, square = square_about(m, out, dv), mean = 0;
    if (m->count == all || m->count < 2) {
        return m->count == all ? 0 : INFINITY;
    }
    for (int64_t i = 0; i < dv; i++) {
        double r = m->wv[i] - out[i] * m->w;
        mean += r * r / s;
    }
    double trace = fmax(0, square - mean) / (s - 1);
    return rest * rest * fmax(0, 1 - s / rest) * trace / s;
}

double kna__radius_of_variance(double variance, double denominator, double delta)
{
    return kna__normal_quantile(1 - delta / 2) / denominator * sqrt(variance);
}

double kna__radius_asymptotic(const kna__estimate *e, const kna__moments *m, double delta)
{
    return kna__radius_of_variance(kna__variance_of_sample(e->out, e->dv, e->rest, m), e->denominator, delta);
}

/* How far the sum of the weights may be from its estimate, by Chernoff: exp(-t) a side. */
static double chernoff(const kna__estimate *e, const kna__moments *m, double most, double t)
{
    double s = (double)m->count, share = m->w / s / most;
    double above = kna__entropy_above(share, t / s) - share, below = share - kna__entropy_below(share, t / s);
    return (double)e->rest * most * fmax(above, below);
}

/*
 * By Bardenet and Maillard (2015), Theorem 4.3: 5 exp(-t) a side, for the variance with 1 / s, and left = 1 - (s - 1) / N up to half of
 * the N terms, (1 - s / N)(1 + 1 / s) beyond; kappa = 7/3 + 3/sqrt(2).
 */
static double bernstein_serfling(const kna__estimate *e, const kna__moments *m, double most, double t)
{
    double s = (double)m->count, rest = (double)e->rest, mean = m->w / s, variance = fmax(0, m->ww / s - mean * mean);
    double left = 2 * s <= rest ? 1 - (s - 1) / rest : (1 - s / rest) * (1 + 1 / s);
    return rest * (sqrt(2 * variance * left * t / s) + (7.0 / 3 + 3 / sqrt(2)) * most * t / s);
}

/* Of the numerator's vector, by Pinelis: 2 exp(-t). `sampled`: the number of terms whose mean is bounded. */
static double pinelis(const kna__estimate *e, const kna__moments *m, const kna__known *known, double t, double variance_t,
                      double sampled)
{
    double s = (double)m->count, norm = 0;
    for (int64_t i = 0; i < e->dv; i++) {
        norm += known->centre[i] * known->centre[i];
    }
    double reach = known->most * (known->v_most + sqrt(norm)); /* no |w (v - centre)| is above */
    double square = square_about(m, known->centre, e->dv) / s / (reach * reach);
    double variance = reach * reach * kna__entropy_above(square, variance_t / s);
    double jump = 2 * reach * t * 2 / 3;
    return (double)e->rest * (jump + sqrt(jump * jump + 8 * sampled * variance * t)) / (2 * s);
}

static double distance(const double *x, const double *y, int64_t n)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++) {
        square += (x[i] - y[i]) * (x[i] - y[i]);
    }
    return sqrt(square);
}

/* Nothing is left out, or nothing is known. */
static bool is_plain(const kna__estimate *e, const kna__moments *m, const kna__known *known, double *radius)
{
    *radius = m->count == e->rest || known->most <= 0 ? 0 : INFINITY;
    return *radius == 0 || !m->count || !isfinite(known->most);
}

static double radius_of(const kna__estimate *e, const kna__known *known, double numerator_off, double denominator_off)
{
    double apart = distance(e->out, known->centre, e->dv);
    return (numerator_off + apart * denominator_off) / fmax(known->head, e->denominator - denominator_off);
}

double kna__radius_finite(const kna__estimate *e, const kna__moments *m, double delta, const kna__known *known)
{
    double radius;
    if (is_plain(e, m, known, &radius)) {
        return radius;
    }
    return radius_of(e, known, pinelis(e, m, known, log(6 / delta), log(3 / delta), (double)m->count),
                     chernoff(e, m, known->most, log(6 / delta)));
}

double kna__radius_bernstein(const kna__estimate *e, const kna__moments *m, double delta, const kna__known *known)
{
    double radius, s = (double)m->count, left = (double)e->rest - s;
    if (is_plain(e, m, known, &radius)) {
        return radius;
    }
    double denominator_off =
        fmin(chernoff(e, m, known->most, log(12 / delta)), bernstein_serfling(e, m, known->most, log(5 * 12 / delta)));
    return radius_of(e, known, pinelis(e, m, known, log(6 / delta), log(3 / delta), left < s ? left : s), denominator_off);
}
