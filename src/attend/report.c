/* report.c - the rows' stats as a report has them. */
#include "report.h"

void kna__report_passed(kna_report *report, int64_t audited, float eps)
{
    double error = audited ? 0 : -1;
    report->audited = audited;
    report->audit_mean = report->audit_mean_off = report->audit_p95 = report->audit_p95_low = report->audit_p95_high = error;
    report->audit_over = eps > 0 ? error : -1;
}

static void add_row(kna_report *report, const kna__row_stats *s, float *audits)
{
    report->keys_seen += (double)s->keys_seen;
    report->keys_full += (double)s->keys_full;
    report->rows_exact += s->exact;
    report->stale_rows += s->stale;
    report->keys_touched += s->read;
    report->tail_mass += (double)s->tail_mass;
    report->by_means += (double)s->by_means;
    report->radius = s->radius < 0 ? report->radius : fmax(report->radius, 0) + (double)s->radius;
    report->radius_max = fmax(report->radius_max, (double)s->radius);
    if (s->error_est >= 0) {
        report->error_est += (double)s->error_est;
        report->error_est_max = fmax(report->error_est_max, (double)s->error_est);
    }
    if (s->audit_error >= 0) {
        report->audit_mean += (double)s->audit_error;
        report->audit_mean_off += (double)s->audit_error * (double)s->audit_error; /* until the end: the sum of squares */
        audits[report->audited++] = s->audit_error;
    }
}

/* The value that so many of the audited errors reach or exceed; negative: so few rows do not tell. */
static double reached_by(float *audits, int64_t audited, double rows)
{
    return rows < 1 ? -1 : (double)kna__kth_largest(audits, (size_t)audited, (size_t)fmin(rows, (double)audited));
}

/*
 * Confidence of 95 %: of the mean by the normal distribution, of the 95th percentile by ranks, as the number of rows beyond it is
 * binomial.
 */
static void add_confidence(kna_report *report, float *audits, float eps)
{
    double count = (double)report->audited, mean = report->audit_mean / count, square = report->audit_mean_off / count;
    double spread = 1.96 * sqrt(count * 0.05 * 0.95);
    int64_t over = 0;
    for (int64_t i = 0; i < report->audited; i++) {
        over += audits[i] > eps;
    }
    report->audit_over = eps > 0 ? (double)over / count : -1;
    report->audit_mean = mean;
    report->audit_mean_off = report->audited > 1 ? 1.96 * sqrt(fmax(square - mean * mean, 0) / (count - 1)) : -1;
    report->audit_p95 = reached_by(audits, report->audited, floor(count / 20) + 1);
    report->audit_p95_low = reached_by(audits, report->audited, ceil(count * 0.05 + spread) + 1);
    report->audit_p95_high = reached_by(audits, report->audited, floor(count * 0.05 - spread));
}

/* Means over rows that saw a key; sums in row order, so that threads do not matter. */
void kna__report_rows(const kna__problem *p, const kna__row_stats *stats, float *audits, kna_report *report)
{
    int64_t seeing = 0, estimated = 0, certified = 0;
    report->error_est_max = report->radius = report->radius_max = -1;
    for (int64_t i = 0; i < p->m * p->h; i++) {
        add_row(report, &stats[i], audits);
        seeing += stats[i].keys_seen > 0;
        estimated += stats[i].error_est >= 0;
        certified += stats[i].radius >= 0;
    }
    report->keys_touched = report->keys_seen > 0 ? report->keys_touched / report->keys_seen : 0;
    report->tail_mass = seeing ? report->tail_mass / (double)seeing : 0;
    report->by_means = seeing ? report->by_means / (double)seeing : 0;
    report->certificate = p->options.certificate;
    report->radius = certified ? report->radius / (double)certified : -1;
    report->error_est = estimated ? report->error_est / (double)estimated : -1;
    if (report->audited) {
        add_confidence(report, audits, p->options.eps);
    } else {
        kna__report_passed(report, 0, p->options.eps);
    }
}
