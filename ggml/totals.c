/*
 * totals.c - sums of what attention calls reported, read back as means; the JSON report and the line at exit.
 *
 * Invariant: only sums are stored, each mean keeps its own weight, so that slots and layers can be added up. The exception
 * is audit_p95: percentiles do not add, so the 95th percentiles of the calls are counted in bins of 1/8 octave, weighted by
 * their audited rows, and the 95th percentile of that is given: exact for calls of one row, from above for all others.
 */
#define _GNU_SOURCE
#include "totals.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BINS            320
#define BINS_PER_OCTAVE 8
#define BIN_OF_ONE      240 /* bin of the value 1: covers 2^-30 to 2^10 */

struct sums {
    int64_t calls, calls_exact, rows, rows_exact, audited, rows_indexed, stale_events, stale_rows, fallbacks;
    double keys_seen, keys_full, time_s, index_s, audit_sum;
    double touched;           /* sum of keys_touched * keys_seen */
    double tail;              /* sum of tail_mass * rows */
    double error, error_rows; /* sum of error_est * rows over the calls that estimated it, and those rows */
    double error_max;
    size_t index_bytes, scratch_bytes;
};

struct slot {
    struct sums all;
    struct sums layers[KNNATTN_LAYERS + 1]; /* entry 0: no cache; entry i: layer i - 1 */
    double p95[BINS];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct slot *slots[KNNATTN_SLOTS]; /* made at first use, kept to the end of the process */

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void sums_add(struct sums *to, const struct sums *from)
{
    to->calls += from->calls;
    to->calls_exact += from->calls_exact;
    to->rows += from->rows;
    to->rows_exact += from->rows_exact;
    to->audited += from->audited;
    to->rows_indexed += from->rows_indexed;
    to->stale_events += from->stale_events;
    to->stale_rows += from->stale_rows;
    to->fallbacks += from->fallbacks;
    to->keys_seen += from->keys_seen;
    to->keys_full += from->keys_full;
    to->time_s += from->time_s;
    to->index_s += from->index_s;
    to->audit_sum += from->audit_sum;
    to->touched += from->touched;
    to->tail += from->tail;
    to->error += from->error;
    to->error_rows += from->error_rows;
    to->error_max = fmax(to->error_max, from->error_max);
    to->index_bytes = larger(to->index_bytes, from->index_bytes);
    to->scratch_bytes = larger(to->scratch_bytes, from->scratch_bytes);
}

static void add_call(struct sums *sums, const kna_report *report)
{
    double rows = (double)report->rows;

    sums->calls = 1;
    sums->rows = report->rows;
    sums->rows_exact = report->rows_exact;
    sums->audited = report->audited;
    sums->keys_seen = report->keys_seen;
    sums->keys_full = report->keys_full;
    sums->time_s += report->time_s;
    sums->index_s += report->build_s;
    sums->touched = report->keys_touched * report->keys_seen;
    sums->tail = report->tail_mass * rows;
    sums->scratch_bytes = report->scratch_bytes;
    if (report->audited > 0) {
        sums->audit_sum = report->audit_mean * (double)report->audited;
    }
    if (report->error_est >= 0.0) {
        sums->error = report->error_est * rows;
        sums->error_rows = rows;
        sums->error_max = report->error_est_max;
    }
}

static struct sums sums_of(const struct knnattn_done *done)
{
    struct sums sums = {
        .calls_exact = done->exact ? 1 : 0,
        .rows_indexed = done->rows_indexed,
        .stale_events = done->stale_events,
        .stale_rows = done->stale_rows,
        .fallbacks = done->fallback ? 1 : 0,
        .time_s = done->index_s,
        .index_s = done->index_s,
    };

    if (done->report != NULL) {
        add_call(&sums, done->report);
    }
    return sums;
}

static int bin_of(double value)
{
    double bin = value > 0.0 ? floor(log2(value) * BINS_PER_OCTAVE) + BIN_OF_ONE : 0.0;

    return (int)fmin(fmax(bin, 0.0), BINS - 1);
}

static double p95_of(const double bins[BINS], double total)
{
    double below = 0.0;

    for (int i = 0; i < BINS; i++) {
        below += bins[i];
        if (below >= 0.95 * total) {
            return i == 0 ? 0.0 : exp2((i + 1 - BIN_OF_ONE) / (double)BINS_PER_OCTAVE);
        }
    }
    return exp2((BINS - BIN_OF_ONE) / (double)BINS_PER_OCTAVE);
}

void knnattn_totals_add(const struct knnattn_done *done)
{
    struct sums sums = sums_of(done);
    int layer = done->layer < 0 ? 0 : done->layer < KNNATTN_LAYERS ? done->layer + 1 : KNNATTN_LAYERS;

    pthread_mutex_lock(&lock);
    struct slot *slot = slots[done->slot];
    if (slot == NULL) {
        slot = slots[done->slot] = calloc(1, sizeof(*slot));
    }
    if (slot != NULL) {
        sums.index_bytes = done->layer_bytes;
        sums_add(&slot->layers[layer], &sums);
        sums.index_bytes = done->index_bytes;
        sums_add(&slot->all, &sums);
        if (done->report != NULL && done->report->audited > 0) {
            slot->p95[bin_of(done->report->audit_p95)] += (double)done->report->audited;
        }
    }
    pthread_mutex_unlock(&lock);
}

static void report_of(struct knnattn_report *report, const struct sums *sums, const double p95[BINS])
{
    report->size = sizeof(*report);
    report->calls = sums->calls;
    report->calls_exact = sums->calls_exact;
    report->rows = sums->rows;
    report->rows_exact = sums->rows_exact;
    report->keys_seen = sums->keys_seen;
    report->keys_full = sums->keys_full;
    report->keys_touched = sums->keys_seen > 0.0 ? sums->touched / sums->keys_seen : 0.0;
    report->tail_mass = sums->rows > 0 ? sums->tail / (double)sums->rows : 0.0;
    report->error_est = sums->error_rows > 0.0 ? sums->error / sums->error_rows : -1.0;
    report->error_est_max = sums->error_rows > 0.0 ? sums->error_max : -1.0;
    report->audited = sums->audited;
    report->audit_mean = sums->audited > 0 ? sums->audit_sum / (double)sums->audited : -1.0;
    report->audit_p95 = sums->audited > 0 && p95 != NULL ? p95_of(p95, (double)sums->audited) : -1.0;
    report->time_s = sums->time_s;
    report->index_s = sums->index_s;
    report->rows_indexed = sums->rows_indexed;
    report->index_bytes = sums->index_bytes;
    report->scratch_bytes = sums->scratch_bytes;
    report->stale_events = sums->stale_events;
    report->stale_rows = sums->stale_rows;
    report->fallbacks = sums->fallbacks;
}

void knnattn_totals_get(int slot, struct knnattn_report *report)
{
    static const struct sums nothing;
    struct knnattn_report whole;
    size_t size = report->size < sizeof(whole) ? report->size : sizeof(whole);

    pthread_mutex_lock(&lock);
    const struct slot *from = slot >= 0 && slot < KNNATTN_SLOTS ? slots[slot] : NULL;
    report_of(&whole, from != NULL ? &from->all : &nothing, from != NULL ? from->p95 : NULL);
    pthread_mutex_unlock(&lock);
    whole.size = size;
    memcpy(report, &whole, size);
}

void knnattn_totals_reset(int slot)
{
    pthread_mutex_lock(&lock);
    if (slot >= 0 && slot < KNNATTN_SLOTS && slots[slot] != NULL) {
        memset(slots[slot], 0, sizeof(*slots[slot]));
    }
    pthread_mutex_unlock(&lock);
}

/* ---- the report file */

/* All slots in one, NULL when there is no memory for it. The caller frees it. */
static struct slot *everything(void)
{
    struct slot *sum = calloc(1, sizeof(*sum));

    pthread_mutex_lock(&lock);
    for (int i = 0; sum != NULL && i < KNNATTN_SLOTS; i++) {
        if (slots[i] == NULL) {
            continue;
        }
        sums_add(&sum->all, &slots[i]->all);
        for (int layer = 0; layer <= KNNATTN_LAYERS; layer++) {
            sums_add(&sum->layers[layer], &slots[i]->layers[layer]);
        }
        for (int bin = 0; bin < BINS; bin++) {
            sum->p95[bin] += slots[i]->p95[bin];
        }
    }
    pthread_mutex_unlock(&lock);
    return sum;
}

/* A figure that was not measured is null, never a number that looks like one. */
static void add_number(cJSON *object, const char *name, double value)
{
    if (value < 0.0) {
        cJSON_AddNullToObject(object, name);
    } else {
        cJSON_AddNumberToObject(object, name, value);
    }
}

static void add_sums(cJSON *object, const struct sums *sums, const double p95[BINS])
{
    struct knnattn_report report;

    report_of(&report, sums, p95);
    add_number(object, "calls", (double)report.calls);
    add_number(object, "calls_exact", (double)report.calls_exact);
    add_number(object, "rows", (double)report.rows);
    add_number(object, "rows_exact", (double)report.rows_exact);
    add_number(object, "keys_seen", report.keys_seen);
    add_number(object, "keys_full", report.keys_full);
    add_number(object, "keys_touched", report.keys_touched);
    add_number(object, "tail_mass", report.tail_mass);
    add_number(object, "error_est", report.error_est);
    add_number(object, "error_est_max", report.error_est_max);
    add_number(object, "audited", (double)report.audited);
    add_number(object, "audit_mean", report.audit_mean);
    if (p95 != NULL) {
        add_number(object, "audit_p95", report.audit_p95);
    }
    add_number(object, "time_s", report.time_s);
    add_number(object, "index_s", report.index_s);
    add_number(object, "rows_indexed", (double)report.rows_indexed);
    add_number(object, "index_bytes", (double)report.index_bytes);
    add_number(object, "scratch_bytes", (double)report.scratch_bytes);
    add_number(object, "stale_events", (double)report.stale_events);
    add_number(object, "stale_rows", (double)report.stale_rows);
    add_number(object, "fallbacks", (double)report.fallbacks);
}

static void add_settings(cJSON *object, const struct knnattn_settings *settings)
{
    cJSON_AddStringToObject(object, "method", knnattn_method_text(settings->method));
    add_number(object, "k", (double)settings->k);
    add_number(object, "eps", (double)settings->eps);
    add_number(object, "delta", (double)settings->delta);
    add_number(object, "sinks", (double)settings->sinks);
    add_number(object, "window", (double)settings->window);
    add_number(object, "exact_below", (double)settings->exact_below);
    add_number(object, "full_every", (double)settings->full_every);
    add_number(object, "index_kib", (double)settings->index_kib);
    add_number(object, "audit", (double)settings->audit);
    cJSON_AddStringToObject(object, "cpu", kna_cpu_name(settings->cpu));
    add_number(object, "threads", (double)settings->threads);
}

static void add_layers(cJSON *list, const struct slot *sum)
{
    for (int layer = 0; layer <= KNNATTN_LAYERS; layer++) {
        if (sum->layers[layer].calls == 0) {
            continue;
        }
        cJSON *entry = cJSON_CreateObject();
        if (layer == 0) {
            cJSON_AddNullToObject(entry, "layer");
        } else {
            cJSON_AddNumberToObject(entry, "layer", layer - 1);
        }
        add_sums(entry, &sum->layers[layer], NULL);
        cJSON_AddItemToArray(list, entry);
    }
}

/* The report as text, NULL when memory is short. The caller frees it. */
static char *report_text(const struct knnattn_settings *settings)
{
    struct slot *sum = everything();
    cJSON *root = cJSON_CreateObject();
    char *text = NULL;

    if (sum != NULL && root != NULL) {
        cJSON_AddStringToObject(root, "plugin", "knnattn");
        cJSON_AddStringToObject(root, "version", kna_version());
        add_settings(cJSON_AddObjectToObject(root, "settings"), settings);
        add_sums(root, &sum->all, sum->p95);
        add_layers(cJSON_AddArrayToObject(root, "layers"), sum);
        text = cJSON_Print(root);
    }
    cJSON_Delete(root);
    free(sum);
    return text;
}

static bool write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    if (file == NULL) {
        return false;
    }
    bool written = fputs(text, file) >= 0 && fputc('\n', file) != EOF && fflush(file) == 0 && fsync(fileno(file)) == 0;
    return fclose(file) == 0 && written;
}

void knnattn_totals_write(const struct knnattn_settings *settings)
{
    char path[KNNATTN_PATH_BYTES + 32];

    if (settings->report[0] == '\0') {
        return;
    }
    char *text = report_text(settings);
    snprintf(path, sizeof(path), "%s.%ld.tmp", settings->report, (long)getpid());
    if (text == NULL || !write_file(path, text) || rename(path, settings->report) != 0) {
        fprintf(stderr, "knnattn: the report could not be written to %s\n", settings->report);
        unlink(path);
    }
    cJSON_free(text);
}

void knnattn_totals_summary(const struct knnattn_settings *settings)
{
    struct slot *sum = everything();
    struct knnattn_report report;

    if (sum == NULL) {
        return;
    }
    report_of(&report, &sum->all, sum->p95);
    fprintf(stderr,
            "knnattn: %s, k %lld: %lld calls, %.1f %% of the keys read in full, %.1f %% of the bytes, tail mass %.3f, %.2f s, "
            "index %.1f MiB, %lld stale, %lld fallbacks\n",
            knnattn_method_text(settings->method), (long long)settings->k, (long long)report.calls,
            report.keys_seen > 0.0 ? 100.0 * report.keys_full / report.keys_seen : 0.0, 100.0 * report.keys_touched,
            report.tail_mass, report.time_s, (double)report.index_bytes / 1048576.0, (long long)report.stale_events,
            (long long)report.fallbacks);
    free(sum);
}
