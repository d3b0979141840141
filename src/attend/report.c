/* report.c - the rows' stats as a report has them. */
#include "report.h"

static void add_row(kna_report *report, const kna__row_stats *s, float *audits)
{
    report->keys_seen += (double)s->keys_seen;
    report->keys_full += (double)s->keys_full;
    report->rows_exact += s->exact;
    report->stale_rows += s->stale;
    report->keys_touched += s->read;
    report->tail_mass += (double)s->tail_mass;
    if (s->error_est >= 0) {
        report->error_est += (double)s->error_est;
        report->error_est_max = fmax(report->error_est_max, (double)s->error_est);
    }
    if (s->audit_error >= 0) {
        report->audit_mean += (double)s->audit_error;
        audits[report->audited++] = s->audit_error;
    }
}

/* Means over rows that saw a key; sums in row order, so that threads do not matter. */
void kna__report_rows(const kna__problem *p, const kna__row_stats *stats, float *audits, kna_report *report)
{
    int64_t seeing = 0, estimated = 0;
    report->error_est_max = -1;
    for (int64_t i = 0; i < p->m * p->h; i++) {
        add_row(report, &stats[i], audits);
        seeing += stats[i].keys_seen > 0;
        estimated += stats[i].error_est >= 0;
    }
    report->keys_touched = report->keys_seen > 0 ? report->keys_touched / report->keys_seen : 0;
    report->tail_mass = seeing ? report->tail_mass / (double)seeing : 0;
    report->error_est = estimated ? report->error_est / (double)estimated : -1;
    report->audit_mean = report->audited ? report->audit_mean / (double)report->audited : -1;
    report->audit_p95 = -1;
    if (report->audited) {
        size_t rank = (size_t)(report->audited / 20) + 1;
        report->audit_p95 = (double)kna__kth_largest(audits, (size_t)report->audited, rank);
    }
}
