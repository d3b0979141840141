/* store_index.c - `kna store index`: make an index of a family's rows, or remove it. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdlib.h>

#include "store_query.h"

typedef struct request {
    const char *family;
    int kind, metric; /* places in the tables below */
    int drop, json;
    int64_t lists, threads;
    const char *queries;
} request;

static const char *const kinds[] = { "flat", "clusters", NULL };
static const int kind_of[] = { KNA_SEARCH_FLAT, KNA_SEARCH_CLUSTERS };
static const char *const metrics[KNA_METRIC_COUNT + 1] = { "ip", "cosine", "l2", NULL };

#define AT(member) offsetof(request, member)

static const cli_option options[] = {
    { "family", 0, CLI_TEXT, AT(family), 0, 0, NULL, "NAME", "of whose rows (default: the only one)" },
    { "kind", 0, CLI_CHOICE, AT(kind), 0, 0, kinds, "KIND", "flat (default): nothing is missed; clusters: less is looked at" },
    { "metric", 0, CLI_CHOICE, AT(metric), 0, 0, metrics, "M", "that it is for: ip (default), cosine or l2" },
    { "lists", 0, CLI_INT, AT(lists), 1, KNA_MAX_ROWS, NULL, "N", "clusters: so many (default: about 4 sqrt(rows))" },
    { "queries", 0, CLI_TEXT, AT(queries), 0, 0, NULL, "FILE", "clusters: .npy of queries like those to come" },
    { "drop", 0, CLI_FLAG, AT(drop), 0, 0, NULL, NULL, "remove it" },
    { "threads", 0, CLI_INT, AT(threads), 1, KNA_MAX_THREADS, NULL, "N", "threads (default: all processors)" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON" },
    { .name = NULL },
};

static const cli_usage usage = {
    "store index",
    "DIR [options]",
    "A file in DIR that makes 'kna store search' faster. Rows added later are searched without\n"
    "it until it is made again; if it is lost or damaged nothing but time is.\n",
};

static int print_info(const request *r, const kna_store_index_info *info)
{
    if (!r->json) {
        printf("%s index for %s: %" PRId64 " rows in %" PRId64 " lists, %" PRId64 " bytes\n", kinds[r->kind], metrics[r->metric], info->rows,
               info->lists, info->bytes);
        if (info->kind == KNA_SEARCH_CLUSTERS && info->lists)
            printf("a recall of 0.95 takes %" PRId64 " lists, measured with %s\n", info->probes, r->queries ? r->queries : "rows as queries");
        return CLI_OK;
    }
    cJSON *answer = cli_json_object(NULL, NULL);
    cli_json_text(answer, "kind", kinds[r->kind]);
    cli_json_text(answer, "metric", metrics[r->metric]);
    cli_json_int(answer, "transaction", info->transaction);
    cli_json_int(answer, "covered", info->covered);
    cli_json_int(answer, "rows", info->rows);
    cli_json_int(answer, "lists", info->lists);
    cli_json_int(answer, "bytes", info->bytes);
    if (info->kind == KNA_SEARCH_CLUSTERS) cli_json_int(answer, "probes", info->probes);
    return cli_json_print(stdout, answer);
}

static int make(const store_target *target, const request *r, int family)
{
    kna_store_index_options o = KNA_STORE_INDEX_OPTIONS;
    kna_store_index_info info = { .size = sizeof info };
    o.kind = kind_of[r->kind];
    o.metric = r->metric;
    o.lists = r->lists;
    queries sample = { .path = NULL };
    if (r->queries) {
        const int code = queries_read(&sample, target, family, r->queries);
        if (code != CLI_OK) return code;
        o.queries = &sample.rows;
    }
    cli_progress_start("index");
    int status = kna_store_index(target->store, family, &o);
    cli_progress_end();
    queries_free(&sample);
    if (status == KNA_OK) status = kna_store_index_get(target->store, family, o.kind, &info);
    return status == KNA_OK ? print_info(r, &info) : store_status(target, status);
}

static int drop(const store_target *target, const request *r, int family)
{
    const int status = kna_store_index_drop(target->store, family, kind_of[r->kind]);
    if (status != KNA_OK) return store_status(target, status);
    if (!r->json) return CLI_OK;
    cJSON *answer = cli_json_object(NULL, NULL);
    cli_json_text(answer, "dropped", kinds[r->kind]);
    return cli_json_print(stdout, answer);
}

int store_cmd_index(int argc, char **argv)
{
    request r = { .family = NULL };
    store_target target = { .folder = NULL };
    const cli_group groups[] = { { "Index", options, &r }, { NULL, NULL, NULL } };
    int rest = 0;
    int family = 0;
    int code = cli_parse(&usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&usage, argc, argv, rest, 1, 1, "DIR");
    if (code != CLI_GO_ON) return code;
    code = store_open(&target, argv[rest], 1);
    if (code == CLI_OK) code = store_family(&target, r.family, &family);
    if (code == CLI_OK && kna_context_set_threads(target.context, (int)r.threads) != KNA_OK) code = store_status(&target, KNA_EINVAL);
    if (code == CLI_OK) code = r.drop ? drop(&target, &r, family) : make(&target, &r, family);
    store_close(&target);
    return code;
}
