/*
 * heads_print.c - tables and JSON of `kna bench heads`. Means over all layers count each row alike.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "heads.h"

#define MIB 1048576.0

double heads_mean(const double *values, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += values[i];
    return sum / (double)count;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value that a twentieth of all lie above. */
double heads_p95(const double *values, int64_t count)
{
    double *sorted = malloc((size_t)count * sizeof *sorted);
    if (!sorted) return (double)NAN;
    memcpy(sorted, values, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, ascending);
    const double value = sorted[count - 1 - count / 20];
    free(sorted);
    return value;
}

/* Errors of a method with one k over all layers: as many values as rows times layers; NULL: out of memory. */
static double *gather(const heads_study *s, int method, int x)
{
    const int64_t rows = heads_count_rows(s);
    double *all = malloc((size_t)(rows * s->set->count) * sizeof *all);
    for (int i = 0; all && i < s->set->count; i++)
        memcpy(all + i * rows, s->results[i].cells[method][x].error, (size_t)rows * sizeof *all);
    return all;
}

static double worst_head(const heads_study *s, int method, int x, int *layer, int64_t *head)
{
    double worst = -1;
    for (int i = 0; i < s->set->count; i++) {
        for (int64_t h = 0; h < s->set->layers[0].q.heads; h++) {
            const double mean = heads_mean(s->results[i].cells[method][x].error + h * s->late, s->late);
            if (mean <= worst) continue;
            worst = mean;
            *layer = s->set->layers[i].number;
            *head = h;
        }
    }
    return worst;
}

static double touched_mean(const heads_study *s, int method, int x)
{
    double sum = 0;
    for (int i = 0; i < s->set->count; i++) sum += s->results[i].cells[method][x].touched;
    return sum / s->set->count;
}

static double share_above(const double *errors, int64_t count, double limit)
{
    int64_t above = 0;
    for (int64_t i = 0; i < count; i++) above += errors[i] > limit;
    return (double)above / (double)count;
}

/* ------------------------------------------------------------------ tail mass */

static void print_tails(const heads_study *s)
{
    const int64_t rows = heads_count_rows(s);
    printf("\nsoftmax, mean over rows: mass of %" PRId64 " first keys, of these and %" PRId64 " recent ones, and what is left outside these\n"
           "and the k nearest of the others\n\n%-7s %7s %7s",
           s->sinks, s->window, "layer", "first", "+recent");
    for (int i = HEADS_TAILS_K; i < HEADS_TAILS; i++) printf("  k=%-4" PRId64, heads_tail_k[i - HEADS_TAILS_K]);
    printf("\n");
    for (int layer = 0; layer <= s->set->count; layer++) {
        const int all = layer == s->set->count;
        if (all)
            printf("%-7s", "all");
        else
            printf("%-7d", s->set->layers[layer].number);
        for (int i = 0; i < HEADS_TAILS; i++) {
            double sum = 0;
            for (int x = 0; x < s->set->count; x++)
                if (all || x == layer) sum += heads_mean(s->results[x].tails + i * rows, rows);
            printf(" %7.3f", all ? sum / s->set->count : sum);
        }
        printf("\n");
    }
}

/* ------------------------------------------------------------------ errors */

static const char *const explained[HEADS_METHODS] = {
    "the operator: the k nearest keys, all others dropped",
    "oracle: first, recent and the k nearest keys, all others dropped",
    "oracle: keys in no cluster, recent ones and the k nearest of the rest; others by their clusters' means",
    "the operator, one query, each query head by itself: clusters of 6 k keys, by their codes",
    "the operator, one query: clusters of 12 k keys for the heads of a group, by their codes",
    "the operator, late queries together: clusters of 4 k keys for a tile, of 1.5 k for each row",
};

static void print_cell(const double *errors, int64_t count)
{
    char text[32];
    snprintf(text, sizeof text, "%.2f/%.1f", 100 * heads_mean(errors, count), 100 * heads_p95(errors, count));
    printf(" %13s", text);
}

static int print_all_layers(const heads_study *s, int method)
{
    printf("%-7s", "all");
    for (int x = 0; x < s->k.count; x++) {
        double *all = gather(s, method, x);
        if (!all) return cli_fail("out of memory: errors of all layers");
        print_cell(all, heads_count_rows(s) * s->set->count);
        free(all);
    }
    printf("\n%-7s", "worst");
    for (int x = 0; x < s->k.count; x++) {
        char text[32];
        int layer = 0;
        int64_t head = 0;
        const double worst = worst_head(s, method, x, &layer, &head);
        snprintf(text, sizeof text, "%d.%d %.1f", layer, (int)head, 100 * worst);
        printf(" %13s", text);
    }
    printf("\n%-7s", "read");
    for (int x = 0; x < s->k.count; x++) printf(" %12.1f%%", 100 * touched_mean(s, method, x));
    printf("\n");
    return CLI_OK;
}

static int print_errors(const heads_study *s, int method)
{
    printf("\n%s - %s\n%-7s", heads_names[method], explained[method], "layer");
    for (int x = 0; x < s->k.count; x++) {
        char text[32];
        snprintf(text, sizeof text, "k=%" PRId64, s->k.values[x]);
        printf(" %13s", text);
    }
    printf("\n");
    for (int i = 0; i < s->set->count; i++) {
        printf("%-7d", s->set->layers[i].number);
        for (int x = 0; x < s->k.count; x++) print_cell(s->results[i].cells[method][x].error, heads_count_rows(s));
        printf("\n");
    }
    return print_all_layers(s, method);
}

/* ------------------------------------------------------------------ estimates */

static void print_percent(int width, double value)
{
    if (value >= 0)
        printf(" %*.2f", width, 100 * value);
    else
        printf(" %*s", width, "-");
}

static void print_asked(const heads_study *s, int layer, const char *way, const char *setting, const heads_cell *cell, double eps)
{
    const int64_t rows = heads_count_rows(s);
    printf("%-7d %-7s %-10s", s->set->layers[layer].number, way, setting);
    print_percent(8, cell->estimated);
    print_percent(8, cell->estimated_max);
    print_percent(8, cell->audit_mean);
    print_percent(8, heads_mean(cell->error, rows));
    print_percent(8, cell->audit_p95);
    print_percent(8, heads_p95(cell->error, rows));
    print_percent(8, eps > 0 ? share_above(cell->error, rows, eps) : -1);
    print_percent(8, cell->touched);
    printf("\n");
}

static void print_estimates(const heads_study *s)
{
    printf("\nwhat knn says of its errors, %%: the distance between weights used and softmax it estimates, mean and largest; the error of\n"
           "%.0f %% of the rows, audited, beside that of all rows; rows whose error is above eps; bytes read\n"
           "%-7s %-7s %-10s %8s %8s %8s %8s %8s %8s %8s %8s\n",
           100 * s->audit, "layer", "way", "asked", "est", "est max", "audited", "mean", "aud p95", "p95", "above", "read");
    for (int i = 0; i < s->set->count; i++) {
        char setting[32];
        for (int x = 0; x < s->k.count; x++) {
            snprintf(setting, sizeof setting, "k %" PRId64, s->k.values[x]);
            print_asked(s, i, "prefill", setting, &s->results[i].cells[HEADS_PREFILL][x], 0);
        }
        for (int way = 0; way < HEADS_WAYS; way++) {
            for (int x = 0; x < HEADS_EPS; x++) {
                snprintf(setting, sizeof setting, "eps %g", heads_eps[x]);
                print_asked(s, i, way ? "prefill" : "decode", setting, &s->results[i].asked[way][x], heads_eps[x]);
            }
        }
    }
}

/* ------------------------------------------------------------------ times */

static const char *const time_names[HEADS_TIMES] = { "exact", "topk", "knn" };
static const char *const way_names[HEADS_WAYS] = { "decode", "prefill" };

static void print_time(const char *what, const char *who, int64_t k, const heads_time *time, const heads_time *exact)
{
    char number[32] = "-";
    if (k > 0) snprintf(number, sizeof number, "%" PRId64, k);
    printf("%-8s %-6s %6s %10.3f %10.3f %10.3f %7.2fx\n", what, who, number, 1e3 * time->median_s, 1e3 * time->low_s,
           1e3 * time->high_s, exact->median_s / time->median_s);
}

static void print_times(const heads_study *s)
{
    printf("\ntimes of one layer in ms, median, least and most of %" PRId64 " rounds taken in turn; exact over each\n"
           "decode: the last query; prefill: the %" PRId64 " late queries; text: all %" PRId64 " from nothing\n"
           "%-8s %-6s %6s %10s %10s %10s %8s\n",
           s->rounds, s->late, s->set->layers[0].q.rows, "", "method", "k", "ms", "least", "most", "speed");
    for (int way = 0; way < HEADS_WAYS; way++)
        for (int who = 0; who < HEADS_TIMES; who++)
            for (int x = 0; x < (who == HEADS_TIME_EXACT ? 1 : s->k.count); x++)
                print_time(way_names[way], time_names[who], who == HEADS_TIME_EXACT ? 0 : s->k.values[x], &s->times[way][who][x],
                           &s->times[way][HEADS_TIME_EXACT][0]);
    for (int who = 0; who < HEADS_TIMES; who++)
        print_time("text", time_names[who], who == HEADS_TIME_EXACT ? 0 : HEADS_USUAL_K, &s->text[who], &s->text[HEADS_TIME_EXACT]);
    printf("knn's clusters of the text: %.3f ms, %.1f %% of exact attention over it; index %.2f MiB\n", 1e3 * s->build_s,
           100 * s->build_s / s->text[HEADS_TIME_EXACT].median_s, (double)s->index_bytes / MIB);
}

int heads_print_tables(const heads_study *s)
{
    const heads_layer *l = &s->set->layers[0];
    int code = CLI_OK;
    printf("bench heads: %d layer%s, %" PRId64 " heads on %" PRId64 ", dim %" PRId64 ", %" PRId64 " tokens, late queries %" PRId64
           "..%" PRId64 "\n%s, %d thread%s\n",
           s->set->count, s->set->count == 1 ? "" : "s", l->q.heads, l->k.heads, l->q.dim, l->q.rows, l->q.rows - s->late,
           l->q.rows - 1, kna_cpu_name(kna_context_cpu(s->context)), kna_context_threads(s->context),
           kna_context_threads(s->context) == 1 ? "" : "s");
    print_tails(s);
    printf("\nerror |out - exact| / |exact| in %%, mean/95th percentile over rows; the worst head (layer.head) and its mean; what is read of\n"
           "what exact attention reads (oracles: the search is not counted)\n");
    for (int method = 0; method < HEADS_METHODS && code == CLI_OK; method++) code = print_errors(s, method);
    if (code == CLI_OK) print_estimates(s);
    if (code == CLI_OK && s->rounds > 0) print_times(s);
    return code;
}

/* ------------------------------------------------------------------ JSON */

static void add_tails(cJSON *layer, const heads_study *s, const heads_result *result)
{
    const int64_t rows = heads_count_rows(s);
    cJSON *mass = cli_json_object(layer, "mass");
    cli_json_real(mass, "first", heads_mean(result->tails + HEADS_SINKS_ONLY * rows, rows));
    cli_json_real(mass, "first_and_recent", heads_mean(result->tails + HEADS_SINKS_WINDOW * rows, rows));
    cJSON *tails = cli_json_array(layer, "tails");
    for (int i = HEADS_TAILS_K; i < HEADS_TAILS; i++) {
        cJSON *tail = cli_json_object(tails, NULL);
        cli_json_int(tail, "k", heads_tail_k[i - HEADS_TAILS_K]);
        cli_json_real(tail, "mass", heads_mean(result->tails + i * rows, rows));
    }
}

static void add_cell(cJSON *list, const heads_study *s, const heads_cell *cell, const char *method, const char *by, double value)
{
    const int64_t rows = heads_count_rows(s);
    cJSON *object = cli_json_object(list, NULL);
    cli_json_text(object, "method", method);
    cli_json_real(object, by, value);
    cli_json_real(object, "error_mean", heads_mean(cell->error, rows));
    cli_json_real(object, "error_p95", heads_p95(cell->error, rows));
    cli_json_real(object, "touched", cell->touched);
    cJSON *heads = cli_json_array(object, "head_errors");
    for (int64_t head = 0; head < s->set->layers[0].q.heads; head++)
        cJSON_AddItemToArray(heads, cJSON_CreateNumber(heads_mean(cell->error + head * s->late, s->late)));
    if (cell->audited == 0) return;
    cli_json_real(object, "estimated", cell->estimated >= 0 ? cell->estimated : (double)NAN);
    cli_json_real(object, "estimated_max", cell->estimated_max >= 0 ? cell->estimated_max : (double)NAN);
    cli_json_int(object, "audited", cell->audited);
    cli_json_real(object, "audit_mean", cell->audit_mean);
    cli_json_real(object, "audit_p95", cell->audit_p95 >= 0 ? cell->audit_p95 : (double)NAN);
}

static void add_layer(cJSON *layers, const heads_study *s, int at)
{
    const heads_result *result = &s->results[at];
    cJSON *layer = cli_json_object(layers, NULL);
    cli_json_int(layer, "layer", s->set->layers[at].number);
    add_tails(layer, s, result);
    cJSON *errors = cli_json_array(layer, "errors");
    for (int method = 0; method < HEADS_METHODS; method++)
        for (int x = 0; x < s->k.count; x++)
            add_cell(errors, s, &result->cells[method][x], heads_names[method], "k", (double)s->k.values[x]);
    cJSON *asked = cli_json_array(layer, "asked");
    for (int way = 0; way < HEADS_WAYS; way++)
        for (int x = 0; x < HEADS_EPS; x++) {
            const heads_cell *cell = &result->asked[way][x];
            add_cell(asked, s, cell, way ? "knn prefill" : "knn decode", "eps", heads_eps[x]);
            cli_json_real(cJSON_GetArrayItem(asked, way * HEADS_EPS + x), "above_eps",
                          share_above(cell->error, heads_count_rows(s), heads_eps[x]));
        }
}

static void add_time(cJSON *list, const char *what, const char *who, int64_t k, const heads_time *time, const heads_time *exact)
{
    cJSON *object = cli_json_object(list, NULL);
    cli_json_text(object, "what", what);
    cli_json_text(object, "method", who);
    if (k > 0) cli_json_int(object, "k", k);
    cli_json_real(object, "time_s", time->median_s);
    cli_json_real(object, "time_min_s", time->low_s);
    cli_json_real(object, "time_max_s", time->high_s);
    cli_json_real(object, "speed_over_exact", exact->median_s / time->median_s);
}

static void add_times(cJSON *root, const heads_study *s)
{
    cJSON *list = cli_json_array(root, "times");
    for (int way = 0; way < HEADS_WAYS; way++)
        for (int who = 0; who < HEADS_TIMES; who++)
            for (int x = 0; x < (who == HEADS_TIME_EXACT ? 1 : s->k.count); x++)
                add_time(list, way_names[way], time_names[who], who == HEADS_TIME_EXACT ? 0 : s->k.values[x], &s->times[way][who][x],
                         &s->times[way][HEADS_TIME_EXACT][0]);
    for (int who = 0; who < HEADS_TIMES; who++)
        add_time(list, "text", time_names[who], who == HEADS_TIME_EXACT ? 0 : HEADS_USUAL_K, &s->text[who], &s->text[HEADS_TIME_EXACT]);
    cli_json_real(root, "build_s", s->build_s);
    cli_json_int(root, "index_bytes", (int64_t)s->index_bytes);
}

int heads_print_json(const heads_study *s)
{
    const heads_layer *l = &s->set->layers[0];
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_text(root, "bench", "heads");
    cli_json_int(root, "h", l->q.heads);
    cli_json_int(root, "h_kv", l->k.heads);
    cli_json_int(root, "d", l->q.dim);
    cli_json_int(root, "dv", l->v.dim);
    cli_json_int(root, "n", l->q.rows);
    cli_json_int(root, "late", s->late);
    cli_json_int(root, "near_sinks", s->sinks);
    cli_json_int(root, "near_window", s->window);
    cli_json_text(root, "cpu", kna_cpu_name(kna_context_cpu(s->context)));
    cli_json_int(root, "threads", kna_context_threads(s->context));
    cJSON *layers = cli_json_array(root, "layers");
    for (int i = 0; i < s->set->count; i++) add_layer(layers, s, i);
    if (s->rounds > 0) add_times(root, s);
    return cli_json_print(stdout, root);
}
