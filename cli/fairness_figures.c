/*
 * fairness_figures.c - from sums over rows to the figures of fairness.h.
 */
#include "fairness.h"

#include <math.h>

static const double least_mass = 1e-4; /* of a group whose ratio says something */

/* The largest of known errors over the least; unknown where some group is read exactly, or only one has queries. */
static double spread(const double *errors, int groups)
{
    double least = INFINITY, most = 0;
    int known = 0;
    for (int i = 0; i < groups; i++) {
        if (isnan(errors[i])) continue;
        known++;
        least = fmin(least, errors[i]);
        most = fmax(most, errors[i]);
    }
    return known > 1 && least > 0 ? most / least : NAN;
}

/* The least ratio over the largest; unknown where fewer than two groups have one. */
static double impact(fair_figures *f, int groups)
{
    int known = 0;
    f->least = f->most = -1;
    for (int i = 0; i < groups; i++) {
        if (isnan(f->ratio[i])) continue;
        known++;
        if (f->least < 0 || f->ratio[i] < f->ratio[f->least]) f->least = i;
        if (f->most < 0 || f->ratio[i] > f->ratio[f->most]) f->most = i;
    }
    return known > 1 && f->ratio[f->most] > 0 ? f->ratio[f->least] / f->ratio[f->most] : NAN;
}

void fair_figures_of(fair_figures *f, const fair_layer_sums *sums, int method, int groups)
{
    const fair_sums *full = &sums->full, *m = &sums->method[method];
    *f = (fair_figures){ .gap = 0 };
    for (int i = 0; i < groups; i++) {
        const double mass = full->mass[i] / full->rows;
        const int is_counted = mass >= least_mass;
        f->mass[i] = m->mass[i] / m->rows;
        f->ratio[i] = is_counted ? f->mass[i] / mass : NAN;
        f->recall[i] = is_counted && m->has_head ? m->head[i] / full->mass[i] : NAN;
        f->error[i] = m->queries[i] > 0 ? m->error[i] / m->queries[i] : NAN;
        f->gap = fmax(f->gap, fabs(f->mass[i] - mass));
        f->variation += fabs(f->mass[i] - mass) / 2;
    }
    f->impact = impact(f, groups);
    f->error_ratio = spread(f->error, groups);
}

int fair_passes(const fair_figures *f)
{
    return isnan(f->impact) ? -1 : f->impact >= 0.8;
}
