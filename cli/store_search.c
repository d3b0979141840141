/* store_search.c - `kna store search` and `recall`: the nearest rows, and how many of the true ones an index finds. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "store_query.h"

/* ------------------------------------------------------------------ search */

typedef struct request {
    query_request query;
    double beta, temperature;
    int exact, no_index, json;
    const char *out, *scores;
    int64_t samples;
    uint64_t seed;
} request;

#define AT(member) offsetof(request, member)

static const cli_option search_options[] = {
    { "beta", 0, CLI_REAL, AT(beta), 1e-30, 1e30, NULL, "X", "only rows whose score is at most X below the best" },
    { "exact", 0, CLI_FLAG, AT(exact), 0, 0, NULL, NULL, "the true nearest, also with an index of clusters" },
    { "no-index", 0, CLI_FLAG, AT(no_index), 0, 0, NULL, NULL, "look at the rows themselves" },
    { "temperature", 0, CLI_REAL, AT(temperature), 1e-30, 1e30, NULL, "T", "of lse, in JSON: log of the sum of exp(score / T) (default 1)" },
    { "out", 0, CLI_TEXT, AT(out), 0, 0, NULL, "FILE", "numbers of the rows, (queries,N) int64; -1: no more were found" },
    { "scores", 0, CLI_TEXT, AT(scores), 0, 0, NULL, "FILE", "their scores, (queries,N) float32; NaN: no more" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON" },
    { .name = NULL },
};

static const cli_usage search_usage = {
    "store search",
    "DIR queries.npy [options]",
    "The rows of a family that are nearest to each query (a row of the .npy), best first: score,\n"
    "document, which of its rows, and uri. More is nearer; of l2 it is minus the square.\n"
    "The index of 'kna store index' saves time; rows it does not cover are looked at too.\n",
};

/* Complete, and not yet there: cli_output_commit() is still to come. */
static int write_arrays(const request *r, const queries *q, const query_hits *found)
{
    const int64_t k = r->query.k;
    const int64_t shape[2] = { q->rows.rows, k };
    FILE *rows = r->out ? cli_output_open(r->out) : NULL;
    if (r->out && !rows) return CLI_FAILED;
    if (rows) npy_write_head_i64(rows, 2, shape);
    for (int64_t i = 0; rows && i < shape[0] * k; i++) {
        const int64_t row = i % k < found->counts[i / k] ? found->hits[i].row : -1;
        fwrite(&row, sizeof row, 1, rows);
    }
    if (rows && cli_output_finish() != CLI_OK) return CLI_FAILED;
    FILE *scores = r->scores ? cli_output_open(r->scores) : NULL;
    if (r->scores && !scores) return CLI_FAILED;
    if (scores) npy_write_head(scores, KNA_F32, 2, shape);
    for (int64_t i = 0; scores && i < shape[0] * k; i++) {
        const float score = i % k < found->counts[i / k] ? found->hits[i].score : NAN;
        fwrite(&score, sizeof score, 1, scores);
    }
    return scores ? cli_output_finish() : CLI_OK;
}

static void report_json(cJSON *answer, const kna_search_report *report)
{
    cli_json_text(answer, "index", kna_search_index_name(report->index));
    cli_json_text(answer, "refused", report->refused == KNA_OK ? NULL : kna_status_name(report->refused));
    cli_json_int(answer, "rows", report->rows);
    cli_json_int(answer, "covered", report->covered);
    cli_json_int(answer, "lists", report->lists);
    cli_json_int(answer, "lists_seen", report->lists_seen);
    cli_json_int(answer, "scanned", report->scanned);
    cli_json_int(answer, "rescored", report->rescored);
    cli_json_real(answer, "seconds", report->seconds);
}

static int hits_json(cJSON *list, const store_target *target, const kna_hit *hits, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        kna_document document;
        const int status = kna_store_document(target->store, hits[i].document, &document);
        if (status != KNA_OK) return store_status(target, status);
        cJSON *hit = cli_json_object(list, NULL);
        cli_json_real(hit, "score", (double)hits[i].score);
        cli_json_int(hit, "row", hits[i].row);
        cli_json_int(hit, "document", hits[i].document);
        cli_json_int(hit, "place", hits[i].place);
        cli_json_text(hit, "uri", document.uri[0] ? document.uri : NULL);
    }
    return CLI_OK;
}

static int print_json(const request *r, const store_target *target, const queries *q, const query_hits *found, const double *lse)
{
    cJSON *answer = cli_json_object(NULL, NULL);
    report_json(answer, &found->report);
    cJSON *all = cli_json_array(answer, "queries");
    int code = CLI_OK;
    for (int64_t i = 0; i < q->rows.rows && code == CLI_OK; i++) {
        cJSON *one = cli_json_object(all, NULL);
        cli_json_real(one, "lse", lse[i]);
        code = hits_json(cli_json_array(one, "hits"), target, found->hits + i * r->query.k, found->counts[i]);
    }
    if (code == CLI_OK) return cli_json_print(stdout, answer);
    cJSON_Delete(answer);
    return code;
}

static int print_hits(const request *r, const store_target *target, const queries *q, const query_hits *found)
{
    char index[100];
    if (q->rows.rows) printf("%8s%15s%10s%10s  %s\n", "query", "score", "document", "place", "uri");
    for (int64_t i = 0; i < q->rows.rows * r->query.k; i++) {
        const kna_hit *hit = &found->hits[i];
        kna_document document;
        if (i % r->query.k >= found->counts[i / r->query.k]) continue;
        const int status = kna_store_document(target->store, hit->document, &document);
        if (status != KNA_OK) return store_status(target, status);
        printf("%8" PRId64 "%15.7g%10" PRId64 "%10" PRId64 "  ", i / r->query.k, (double)hit->score, hit->document, hit->place);
        for (const char *at = document.uri[0] ? document.uri : "-"; *at; at++) putchar((unsigned char)*at < 32 || *at == 127 ? '?' : *at);
        putchar('\n');
    }
    printf("%" PRId64 " rows, %" PRId64 " of them by index %s\n", found->report.rows, found->report.covered,
           query_index_text(index, &found->report));
    return CLI_OK;
}

static int search(const store_target *target, const request *r, const char *path)
{
    queries q = { .path = NULL };
    query_search s = { .search = NULL };
    query_hits found = { .hits = NULL };
    kna_search_how how = KNA_SEARCH_HOW;
    double *lse = NULL;
    int family = 0;
    int code = store_family(target, r->query.family, &family);
    if (code == CLI_OK) code = queries_read(&q, target, family, path);
    if (code == CLI_OK && !(lse = malloc((size_t)q.rows.rows * sizeof *lse + 1))) code = cli_fail("out of memory");
    if (code == CLI_OK) code = query_search_open(&s, target, &r->query, family, r->no_index ? KNA_SEARCH_NONE : KNA_SEARCH_AUTO);
    how.k = r->query.k;
    how.beta = r->beta;
    how.probes = r->query.probes;
    how.recall = r->query.recall;
    how.exact = r->exact;
    how.temperature = r->temperature;
    how.lse = lse;
    if (code == CLI_OK) code = query_run(&found, target, &s, &q, &how);
    if (code == CLI_OK) code = write_arrays(r, &q, &found);
    if (code == CLI_OK && r->json) code = print_json(r, target, &q, &found, lse);
    else if (code == CLI_OK && !r->out && !r->scores) code = print_hits(r, target, &q, &found);
    if (code == CLI_OK && (r->out || r->scores)) code = cli_output_commit();
    query_hits_free(&found);
    query_search_close(&s);
    queries_free(&q);
    free(lse);
    return code;
}

int store_cmd_search(int argc, char **argv)
{
    request r = { .query = { .k = 10 } };
    store_target target = { .folder = NULL };
    const cli_group groups[] = { { "Rows", query_options, &r.query },
                                 { NULL, search_options, &r },
                                 { "Of which documents", choice_of_options, &r.query },
                                 { NULL, NULL, NULL } };
    int rest = 0;
    int code = cli_parse(&search_usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&search_usage, argc, argv, rest, 2, 2, "DIR and queries.npy");
    if (code != CLI_GO_ON) return code;
    code = store_open(&target, argv[rest], 0);
    if (code == CLI_OK) code = search(&target, &r, argv[rest + 1]);
    store_close(&target);
    return code;
}

/* ------------------------------------------------------------------ recall */

static const cli_option recall_options[] = {
    { "samples", 0, CLI_INT, AT(samples), 1, 1000000, NULL, "M", "without queries.npy: rows of the store as queries (default 100)" },
    { "seed", 0, CLI_SEED, AT(seed), 0, 0, NULL, "S", "which rows" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON" },
    { .name = NULL },
};

static const cli_usage recall_usage = {
    "store recall",
    "DIR [queries.npy] [options]",
    "How many of the N nearest rows, found by looking at every row, the index finds too: the mean\n"
    "over the queries, and limits that hold it with a confidence of 95 %. Rows of the store are\n"
    "easier to find than what will be asked: give queries where there are any.\n",
};

/* The share of what should be found; a row that scores as much as the last of these is as good. */
static double recall_of(const kna_hit *hits, int64_t count, const kna_hit *truth, int64_t wanted)
{
    int64_t found = 0;
    for (int64_t i = 0; i < count && wanted; i++) found += hits[i].score >= truth[wanted - 1].score;
    return wanted ? (double)(found < wanted ? found : wanted) / (double)wanted : 1;
}

/* Wilson's interval of a share among m; recalls of queries lie within 0..1, so they vary no more than what is 0 or 1. */
static void interval(double mean, int64_t m, double *low, double *high)
{
    const double z = 1.959963984540054;
    const double n = (double)m;
    const double middle = (mean + z * z / (2 * n)) / (1 + z * z / n);
    const double half = z / (1 + z * z / n) * sqrt(mean * (1 - mean) / n + z * z / (4 * n * n));
    *low = fmax(0, middle - half);
    *high = fmin(1, middle + half);
}

static int print_recall(const request *r, const query_hits *by_index, const query_hits *truth, int64_t m)
{
    char index[100];
    double sum = 0;
    double low = 0;
    double high = 0;
    for (int64_t i = 0; i < m; i++) {
        const int64_t at = i * r->query.k;
        sum += recall_of(by_index->hits + at, by_index->counts[i], truth->hits + at, truth->counts[i]);
    }
    const double mean = sum / (double)m;
    interval(mean, m, &low, &high);
    if (!r->json) {
        printf("recall@%" PRId64 " %.4f (%.4f to %.4f), %" PRId64 " queries, index %s\n", r->query.k, mean, low, high, m,
               query_index_text(index, &by_index->report));
        printf("%.3g s by index, %.3g s by all rows\n", by_index->report.seconds, truth->report.seconds);
        return CLI_OK;
    }
    cJSON *answer = cli_json_object(NULL, NULL);
    cli_json_int(answer, "k", r->query.k);
    cli_json_int(answer, "queries", m);
    cli_json_real(answer, "recall", mean);
    cli_json_real(answer, "low", low);
    cli_json_real(answer, "high", high);
    cli_json_real(answer, "seconds_rows", truth->report.seconds);
    report_json(answer, &by_index->report);
    return cli_json_print(stdout, answer);
}

static int recall(const store_target *target, const request *r, const char *path)
{
    queries q = { .path = NULL };
    query_search by_index = { .search = NULL };
    query_search by_rows = { .search = NULL };
    query_hits found = { .hits = NULL };
    query_hits truth = { .hits = NULL };
    kna_search_how how = KNA_SEARCH_HOW;
    int family = 0;
    int code = store_family(target, r->query.family, &family);
    if (code == CLI_OK && path) code = queries_read(&q, target, family, path);
    if (code == CLI_OK && !path) code = queries_draw(&q, target, family, r->samples ? r->samples : 100, r->seed);
    if (code == CLI_OK && q.rows.rows == 0) code = cli_refuse("%s: no queries", path ? path : target->folder);
    if (code == CLI_OK) code = query_search_open(&by_index, target, &r->query, family, KNA_SEARCH_AUTO);
    if (code == CLI_OK) code = query_search_open(&by_rows, target, &r->query, family, KNA_SEARCH_NONE);
    how.k = r->query.k;
    how.probes = r->query.probes;
    how.recall = r->query.recall;
    if (code == CLI_OK) code = query_run(&found, target, &by_index, &q, &how);
    if (code == CLI_OK) code = query_run(&truth, target, &by_rows, &q, &how);
    if (code == CLI_OK) code = print_recall(r, &found, &truth, q.rows.rows);
    query_hits_free(&found);
    query_hits_free(&truth);
    query_search_close(&by_index);
    query_search_close(&by_rows);
    queries_free(&q);
    return code;
}

int store_cmd_recall(int argc, char **argv)
{
    request r = { .query = { .k = 10 } };
    store_target target = { .folder = NULL };
    const cli_group groups[] = { { "Rows", query_options, &r.query },
                                 { NULL, recall_options, &r },
                                 { "Of which documents", choice_of_options, &r.query },
                                 { NULL, NULL, NULL } };
    int rest = 0;
    int code = cli_parse(&recall_usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&recall_usage, argc, argv, rest, 1, 2, "DIR");
    if (code == CLI_GO_ON && argc - rest == 2 && r.samples)
        code = cli_refuse("store recall: either queries.npy or --samples, see 'kna store recall --help'");
    if (code != CLI_GO_ON) return code;
    code = store_open(&target, argv[rest], 0);
    if (code == CLI_OK) code = recall(&target, &r, argc - rest == 2 ? argv[rest + 1] : NULL);
    store_close(&target);
    return code;
}
