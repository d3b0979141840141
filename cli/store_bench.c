/*
 * store_bench.c - `kna store bench`: how fast a family is searched, and how much of the true answer is found, setting by setting.
 *
 * The store is opened once. In a round each setting in turn answers all queries in one call, then some of them one by one. Recall is the share
 * of the true nearest that were found; a row that scores as the last true one does is one of them.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "npy.h"
#include "store_query.h"

#define SINGLES_LEAST 16   /* single queries timed at a setting in a round, whatever they take */
#define SINGLES_MOST  8192 /* and at most */

typedef struct request {
    const char *family, *hits, *sample;
    cli_list probes;
    int metric, index, build, json, no_recall;
    int64_t k, rounds, threads;
    double single_s;
} request;

#define AT(member) offsetof(request, member)

static const char *const metric_names[] = { "ip", "cosine", "l2", NULL };
static const char *const index_names[] = { "auto", "none", "flat", "clusters", NULL };

static const cli_option options[] = {
    { "family", 0, CLI_TEXT, AT(family), 0, 0, NULL, "NAME", "whose rows (default: the only one)" },
    { "metric", 0, CLI_CHOICE, AT(metric), 0, 0, metric_names, "NAME", "ip, cosine or l2 (default ip)" },
    { "index", 0, CLI_CHOICE, AT(index), 0, 0, index_names, "NAME", "auto, none, flat or clusters (default auto: the best there is)" },
    { "build", 0, CLI_FLAG, AT(build), 0, 0, NULL, NULL, "first make that index (flat unless --index says) anew, and time it" },
    { "sample", 0, CLI_TEXT, AT(sample), 0, 0, NULL, "FILE", "--build of clusters: .npy of queries like these, but others" },
    { "k", 'k', CLI_INT, AT(k), 1, 1 << 24, NULL, "K", "nearest rows of a query (default 10)" },
    { "probes", 0, CLI_LIST, AT(probes), 0, KNA_MAX_ROWS, NULL, "P,P,..", "clusters looked into, a setting each; 0: by the index's own choice (default 0)" },
    { "rounds", 0, CLI_INT, AT(rounds), 1, 1000, NULL, "N", "rounds; times are medians (default 3)" },
    { "single-s", 0, CLI_REAL, AT(single_s), 0, 3600, NULL, "S", "seconds of single queries at a setting and round, 16 queries at least (default 0.5)" },
    { "threads", 0, CLI_INT, AT(threads), 1, KNA_MAX_THREADS, NULL, "N", "threads (default: all processors)" },
    { "no-recall", 0, CLI_FLAG, AT(no_recall), 0, 0, NULL, NULL, "do not look for the true nearest, which takes longer than all else" },
    { "hits", 0, CLI_TEXT, AT(hits), 0, 0, NULL, "FILE", ".npy of the rows found, (settings,m,k), int64; -1 where fewer were" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "as JSON" },
    { .name = NULL },
};

static const cli_usage usage = {
    "store bench",
    "DIR QUERIES.npy [options]",
    "Queries are (m,dim). Every setting answers all of them in one call, then one by one,\n"
    "in turns; of an index without clusters there is one setting.\n",
};

/* What a setting did: hits and how many of the last batch, seconds of each round. */
typedef struct setting {
    int64_t probes;
    double recall, *batch_s, *single_s;
    kna_search_report report;
    kna_hit *hits;
    int64_t *counts;
} setting;

typedef struct bench {
    const request *r;
    store_target target;
    kna_search *search;
    npy_array queries;
    kna_rows rows;
    setting settings[CLI_LIST_MAX];
    int count;
    double build_s, open_s;
} bench;

/* ------------------------------------------------------------------ searches */

static int run(const bench *b, const setting *s, int64_t first, int64_t count, int exact, kna_search_report *report)
{
    kna_search_how how = KNA_SEARCH_HOW;
    kna_rows some = b->rows;
    some.data = (const char *)b->rows.data + (size_t)first * kna_type_row_bytes(some.type, some.dim);
    some.rows = count;
    how.k = b->r->k;
    how.probes = s->probes;
    how.exact = exact;
    const int status = kna_search_run(b->search, s->hits + first * b->r->k, s->counts + first, &some, &how, report);
    return status == KNA_OK ? CLI_OK : store_status(&b->target, status);
}

static int time_batch(const bench *b, setting *s, int64_t round)
{
    s->report = (kna_search_report){ .size = sizeof s->report };
    const double start_s = cli_now_s();
    const int code = run(b, s, 0, b->rows.rows, 0, &s->report);
    s->batch_s[round] = cli_now_s() - start_s;
    return code;
}

static int time_singles(const bench *b, const setting *s, int64_t round)
{
    static double times[SINGLES_MOST];
    const double until_s = cli_now_s() + b->r->single_s;
    int code = CLI_OK;
    int count = 0;
    for (double now_s = cli_now_s(); count < SINGLES_MOST && (count < SINGLES_LEAST || now_s < until_s) && code == CLI_OK; count++) {
        code = run(b, s, count % b->rows.rows, 1, 0, NULL);
        const double end_s = cli_now_s();
        times[count] = end_s - now_s;
        now_s = end_s;
    }
    s->single_s[round] = cli_median(times, count);
    return code;
}

static int time_all(bench *b)
{
    int code = CLI_OK;
    cli_progress_start("searching");
    for (int64_t round = 0; round < b->r->rounds && code == CLI_OK; round++) {
        for (int i = 0; i < b->count && code == CLI_OK; i++) {
            setting *s = &b->settings[(i + round) % b->count];
            code = time_batch(b, s, round);
            if (code == CLI_OK) code = time_singles(b, s, round);
            cli_progress_share((double)(round * b->count + i + 1) / (double)(b->r->rounds * b->count));
        }
    }
    cli_progress_end();
    return code;
}

/* ------------------------------------------------------------------ recall */

/* Of one query: hits among the true ones, by row or, of equal scores, by score. */
static int64_t found(const kna_hit *hits, int64_t count, const kna_hit *truth, int64_t true_count)
{
    int64_t right = 0;
    for (int64_t i = 0; i < count; i++) right += true_count > 0 && hits[i].score >= truth[true_count - 1].score;
    return right < true_count ? right : true_count;
}

static void compare(const bench *b, setting *s, const setting *truth)
{
    int64_t right = 0;
    int64_t all = 0;
    for (int64_t i = 0; i < b->rows.rows; i++) {
        right += found(s->hits + i * b->r->k, s->counts[i], truth->hits + i * b->r->k, truth->counts[i]);
        all += truth->counts[i];
    }
    s->recall = all > 0 ? (double)right / (double)all : 1.0;
}

static int make_setting(setting *s, int64_t m, int64_t k, int64_t rounds)
{
    s->hits = malloc((size_t)(m * k) * sizeof *s->hits);
    s->counts = calloc((size_t)m, sizeof *s->counts);
    s->batch_s = calloc((size_t)rounds, sizeof *s->batch_s);
    s->single_s = calloc((size_t)rounds, sizeof *s->single_s);
    s->recall = NAN;
    return s->hits && s->counts && s->batch_s && s->single_s ? CLI_OK : cli_fail("out of memory: %" PRId64 " hits", m * k);
}

static void free_setting(setting *s)
{
    free(s->hits);
    free(s->counts);
    free(s->batch_s);
    free(s->single_s);
}

static int find_recall(bench *b)
{
    setting truth = { .probes = 0 };
    int code = b->r->no_recall ? CLI_OK : make_setting(&truth, b->rows.rows, b->r->k, 1);
    if (code == CLI_OK && !b->r->no_recall) {
        cli_progress_start("looking for the true nearest");
        code = run(b, &truth, 0, b->rows.rows, 1, NULL);
        cli_progress_end();
        for (int i = 0; i < b->count && code == CLI_OK; i++) compare(b, &b->settings[i], &truth);
    }
    free_setting(&truth);
    return code;
}

/* ------------------------------------------------------------------ answer */

static const char *index_name(const kna_search_report *report)
{
    return report->index >= 0 && report->index < 4 ? index_names[report->index] : "unknown";
}

static void rounds_json(cJSON *object, const char *name, const double *values, int64_t count)
{
    cJSON *array = cli_json_array(object, name);
    for (int64_t i = 0; i < count; i++) cli_json_real(array, NULL, values[i]);
}

static void setting_json(cJSON *list, const bench *b, const setting *s, double batch_s, double single_s)
{
    cJSON *one = cli_json_object(list, NULL);
    cli_json_text(one, "index", index_name(&s->report));
    if (s->report.refused != KNA_OK) cli_json_text(one, "refused", kna_status_name(s->report.refused));
    cli_json_int(one, "probes", s->probes);
    cli_json_real(one, "recall", s->recall);
    cli_json_real(one, "batch_qps", (double)b->rows.rows / batch_s);
    cli_json_real(one, "single_qps", 1.0 / single_s);
    rounds_json(one, "batch_s", s->batch_s, b->r->rounds);
    rounds_json(one, "single_s", s->single_s, b->r->rounds);
    cli_json_int(one, "rows", s->report.rows);
    cli_json_int(one, "covered", s->report.covered);
    cli_json_int(one, "lists", s->report.lists);
    cli_json_int(one, "lists_seen", s->report.lists_seen);
    cli_json_int(one, "scanned", s->report.scanned);
    cli_json_int(one, "rescored", s->report.rescored);
}

static void print_setting(const bench *b, const setting *s, double batch_s, double single_s)
{
    char recall[24] = "-";
    if (!isnan(s->recall)) snprintf(recall, sizeof recall, "%.4f", s->recall);
    printf("%-9s %8" PRId64 " %8s %14.1f %14.1f %10.1f\n", index_name(&s->report), s->probes, recall, (double)b->rows.rows / batch_s,
           1.0 / single_s, (double)s->report.scanned / (double)b->rows.rows);
}

/* Medians are taken of copies: the answer has the rounds in their order. */
static double median_of(const double *values, int64_t count)
{
    double copy[1000];
    memcpy(copy, values, (size_t)count * sizeof *copy);
    return cli_median(copy, (int)count);
}

static int print(const bench *b)
{
    cJSON *root = b->r->json ? cli_json_object(NULL, NULL) : NULL;
    if (root) {
        cli_json_int(root, "queries", b->rows.rows);
        cli_json_int(root, "dim", b->rows.dim);
        cli_json_int(root, "k", b->r->k);
        cli_json_text(root, "metric", metric_names[b->r->metric]);
        cli_json_int(root, "threads", kna_context_threads(b->target.context));
        if (b->r->build) cli_json_real(root, "build_s", b->build_s);
        cli_json_real(root, "open_s", b->open_s);
    } else {
        if (b->r->build) printf("built in %.3f s\n", b->build_s);
        printf("%-9s %8s %8s %14s %14s %10s\n", "index", "probes", "recall", "batch q/s", "single q/s", "rows each");
    }
    cJSON *list = root ? cli_json_array(root, "settings") : NULL;
    for (int i = 0; i < b->count; i++) {
        const setting *s = &b->settings[i];
        const double batch_s = median_of(s->batch_s, b->r->rounds);
        const double single_s = median_of(s->single_s, b->r->rounds);
        if (root) setting_json(list, b, s, batch_s, single_s);
        else print_setting(b, s, batch_s, single_s);
    }
    return root ? cli_json_print(stdout, root) : CLI_OK;
}

static int write_hits(const bench *b)
{
    const int64_t m = b->rows.rows;
    const int64_t k = b->r->k;
    FILE *to = cli_output_open(b->r->hits);
    if (!to) return CLI_FAILED;
    npy_write_head_i64(to, 3, (const int64_t[]){ b->count, m, k });
    for (int64_t i = 0; i < b->count * m * k; i++) {
        const setting *s = &b->settings[i / (m * k)];
        const int64_t at = i % (m * k);
        const int64_t row = at % k < s->counts[at / k] ? s->hits[at].row : -1;
        fwrite(&row, sizeof row, 1, to);
    }
    return cli_output_commit();
}

/* ------------------------------------------------------------------ command */

static int read_queries(bench *b, const char *path, int family)
{
    const npy_want want = { 2, 2, 1, "(m,dim)" };
    kna_family of;
    const int code = npy_read(&b->queries, path, &want);
    if (code != CLI_OK) return code;
    const int status = kna_store_family(b->target.store, family, &of);
    if (status != KNA_OK) return store_status(&b->target, status);
    b->rows = (kna_rows){ b->queries.data, b->queries.type, 1, b->queries.shape[0], b->queries.shape[1], 0, 0, NULL };
    if (b->rows.rows < 1) return cli_refuse("%s: it holds no query", path);
    if (b->rows.rows * b->r->k > KNA_MAX_ROWS)
        return cli_refuse("%s: %" PRId64 " queries by -k %" PRId64 ": at most %d hits", path, b->rows.rows, b->r->k, KNA_MAX_ROWS);
    if (b->rows.dim != of.dim) return cli_refuse("%s: queries of %" PRId64 " numbers; the family's rows have %" PRId64, path, b->rows.dim, (int64_t)of.dim);
    return CLI_OK;
}

static int open_search(bench *b, int family)
{
    kna_search_options how = KNA_SEARCH_OPTIONS;
    how.metric = b->r->metric;
    how.index = b->r->index;
    const double start_s = cli_now_s();
    const int status = kna_search_open(b->target.context, &b->search, b->target.store, family, &how);
    b->open_s = cli_now_s() - start_s;
    return status == KNA_OK ? CLI_OK : store_status(&b->target, status);
}

static int build_index(bench *b, int family)
{
    kna_store_index_options how = KNA_STORE_INDEX_OPTIONS;
    if (b->r->index == KNA_SEARCH_NONE) return cli_refuse("--build: --index none is no index to build");
    how.kind = b->r->index;
    how.metric = b->r->metric;
    queries sample = { .path = NULL };
    if (b->r->sample) {
        const int code = queries_read(&sample, &b->target, family, b->r->sample);
        if (code != CLI_OK) return code;
        how.queries = &sample.rows;
    }
    cli_progress_start("building the index");
    const double start_s = cli_now_s();
    const int status = kna_store_index(b->target.store, family, &how);
    b->build_s = cli_now_s() - start_s;
    cli_progress_end();
    queries_free(&sample);
    return status == KNA_OK ? CLI_OK : store_status(&b->target, status);
}

/* One query, which maps the index and says what it is; then a setting for each number of clusters, or one. */
static int choose_settings(bench *b)
{
    setting first = { .probes = 0, .report = { .size = sizeof first.report } };
    int code = make_setting(&first, 1, b->r->k, 1);
    if (code == CLI_OK) code = run(b, &first, 0, 1, 0, &first.report);
    free_setting(&first);
    b->count = code == CLI_OK ? (first.report.index == KNA_SEARCH_CLUSTERS ? b->r->probes.count : 1) : 0;
    for (int i = 0; i < b->count && code == CLI_OK; i++) {
        b->settings[i].probes = first.report.index == KNA_SEARCH_CLUSTERS ? b->r->probes.values[i] : 0;
        code = make_setting(&b->settings[i], b->rows.rows, b->r->k, b->r->rounds);
    }
    return code;
}

static int measure(bench *b, const char *path)
{
    int family = 0;
    if (b->r->threads && kna_context_set_threads(b->target.context, (int)b->r->threads) != KNA_OK) return cli_status(b->target.context, KNA_EINVAL);
    int code = store_family(&b->target, b->r->family, &family);
    if (code == CLI_OK) code = read_queries(b, path, family);
    if (code == CLI_OK && b->r->build) code = build_index(b, family);
    if (code == CLI_OK) code = open_search(b, family);
    if (code == CLI_OK) code = choose_settings(b);
    if (code == CLI_OK) code = time_all(b);
    if (code == CLI_OK) code = find_recall(b);
    if (code == CLI_OK && b->r->hits) code = write_hits(b);
    return code == CLI_OK ? print(b) : code;
}

int store_cmd_bench(int argc, char **argv)
{
    static bench b;
    request r = { .probes = { 1, { 0 } }, .k = 10, .rounds = 3, .single_s = 0.5 };
    const cli_group groups[] = { { "How", options, &r }, { NULL, NULL, NULL } };
    int rest = 0;
    int code = cli_parse(&usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&usage, argc, argv, rest, 2, 2, "DIR and QUERIES.npy");
    if (code != CLI_GO_ON) return code;
    b.r = &r;
    code = store_open(&b.target, argv[rest], r.build);
    if (code != CLI_OK) return code;
    code = measure(&b, argv[rest + 1]);
    for (int i = 0; i < b.count; i++) free_setting(&b.settings[i]);
    kna_search_close(b.search);
    npy_free(&b.queries);
    store_close(&b.target);
    return code;
}
