/* store_query.c - see store_query.h. */
#define _GNU_SOURCE
#include "store_query.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"

static const char *const metrics[KNA_METRIC_COUNT + 1] = { "ip", "cosine", "l2", NULL };

#define AT(member) offsetof(query_request, member)

const cli_option query_options[] = {
    { "family", 0, CLI_TEXT, AT(family), 0, 0, NULL, "NAME", "whose rows (default: the only one)" },
    { "metric", 0, CLI_CHOICE, AT(metric), 0, 0, metrics, "M", "ip (default), cosine or l2" },
    { "k", 'k', CLI_INT, AT(k), 1, 16777216, NULL, "N", "rows to find for each query (default 10)" },
    { "probes", 0, CLI_INT, AT(probes), 1, KNA_MAX_ROWS, NULL, "N", "clusters: look into so many (default: as --recall needs)" },
    { "recall", 0, CLI_REAL, AT(recall), 1e-6, 1, NULL, "R", "clusters: share of the true N aimed at (default 0.95)" },
    { "threads", 0, CLI_INT, AT(threads), 1, KNA_MAX_THREADS, NULL, "N", "threads (default: all processors)" },
    { .name = NULL },
};

const cli_option choice_of_options[] = {
    { "tag", 0, CLI_TEXT, AT(choice.tag), 0, 0, NULL, "T", "only documents with this tag" },
    { "uri-prefix", 0, CLI_TEXT, AT(choice.uri_prefix), 0, 0, NULL, "P", "only those whose uri begins with P" },
    { "filter", 0, CLI_TEXT, AT(choice.filter), 0, 0, NULL, "SQL", "only those it is true of, as for ls" },
    { .name = NULL },
};

/* ------------------------------------------------------------------ queries */

int queries_read(queries *q, const store_target *target, int family, const char *path)
{
    static const npy_want want = { 2, 2, 1, "(queries, dim)" };
    kna_family of;
    const int status = kna_store_family(target->store, family, &of);
    if (status != KNA_OK) return store_status(target, status);
    q->path = path;
    const int code = npy_read(&q->array, path, &want);
    if (code != CLI_OK) return code;
    if (q->array.shape[1] != of.dim)
        return cli_refuse("%s: queries of %" PRId64 " numbers; rows of family %s of %s have %" PRId64, path, q->array.shape[1], of.name,
                          target->folder, of.dim);
    q->rows = (kna_rows){ .data = q->array.data, .type = q->array.type, .heads = 1, .rows = q->array.shape[0], .dim = of.dim };
    return CLI_OK;
}

/* splitmix64: another one for each document. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int is_finite(const float *x, int64_t dim)
{
    for (int64_t i = 0; i < dim; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

/* Reservoir sampling: every row is as likely as any other, in one pass over the documents. Returns how many were kept. */
static int draw_numbers(const store_target *target, int family, int64_t count, uint64_t seed, int64_t *numbers, int64_t *kept)
{
    kna_document document = { .id = 0 };
    int64_t met = 0;
    int status;
    while ((status = kna_store_next(target->store, document.id, &document)) == KNA_OK) {
        int64_t first = 0;
        int64_t rows = 0;
        status = kna_store_extent(target->store, document.id, family, &first, &rows);
        if (status != KNA_OK) return store_status(target, status);
        for (int64_t i = 0; i < rows; i++, met++) {
            const int64_t at = met < count ? met : (int64_t)(next_random(&seed) % (uint64_t)(met + 1));
            if (at < count) numbers[at] = first + i;
        }
    }
    *kept = met < count ? met : count;
    return status == KNA_ENONE ? CLI_OK : store_status(target, status);
}

static int load_row(const store_target *target, int family, int64_t number, float *to, int *is_one)
{
    int64_t id = 0;
    int64_t place = 0;
    kna_store_rows rows;
    int status = kna_store_owner(target->store, family, number, &id, &place);
    if (status == KNA_OK) status = kna_store_rows_of(target->store, id, family, &rows);
    if (status != KNA_OK) return store_status(target, status);
    convert_load(to, &rows.rows, place);
    *is_one = is_finite(to, rows.rows.dim);
    return CLI_OK;
}

int queries_draw(queries *q, const store_target *target, int family, int64_t count, uint64_t seed)
{
    kna_family of;
    int64_t kept = 0;
    int64_t good = 0;
    const int status = kna_store_family(target->store, family, &of);
    if (status != KNA_OK) return store_status(target, status);
    if (of.type == KNA_BYTES) return cli_refuse("%s: family %s holds bytes, not numbers", target->folder, of.name);
    int64_t *numbers = malloc((size_t)count * sizeof *numbers);
    q->drawn = malloc((size_t)count * (size_t)of.dim * sizeof *q->drawn);
    int code = numbers && q->drawn ? draw_numbers(target, family, count, seed, numbers, &kept) : cli_fail("out of memory");
    for (int64_t i = 0; i < kept && code == CLI_OK; i++) {
        int is_one = 0;
        code = load_row(target, family, numbers[i], q->drawn + good * of.dim, &is_one);
        good += is_one;
    }
    free(numbers);
    q->rows = (kna_rows){ .data = q->drawn, .type = KNA_F32, .heads = 1, .rows = good, .dim = of.dim };
    return code;
}

void queries_free(queries *q)
{
    npy_free(&q->array);
    free(q->drawn);
}

/* ------------------------------------------------------------------ the search */

static int compare(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a;
    const int64_t y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int is_kept(void *user, const kna_document *document)
{
    const query_search *s = user;
    return s->count && bsearch(&document->id, s->ids, (size_t)s->count, sizeof *s->ids, compare);
}

int query_search_open(query_search *s, const store_target *target, const query_request *r, int family, int index)
{
    kna_search_options options = KNA_SEARCH_OPTIONS;
    const store_choice *choice = &r->choice;
    const int chooses = choice->tag || choice->uri_prefix || choice->filter;
    options.metric = r->metric;
    options.index = index;
    int status = kna_context_set_threads(target->context, (int)r->threads);
    if (status == KNA_OK) status = kna_search_open(target->context, &s->search, target->store, family, &options);
    if (status != KNA_OK) return store_status(target, status);
    if (!chooses) return CLI_OK;
    const int code = store_choose(target, choice, &s->ids, &s->count);
    if (code != CLI_OK) return code;
    status = kna_search_filter(s->search, is_kept, s);
    return status == KNA_OK ? CLI_OK : store_status(target, status);
}

void query_search_close(query_search *s)
{
    kna_search_close(s->search);
    free(s->ids);
}

/* What is wrong with a query is said of its file. */
static int explain(const store_target *target, const queries *q, int status)
{
    const char *message = kna_context_message(target->context);
    if (q->path && strncmp(message, "queries: ", 9) == 0) return cli_refuse("%s: %s", q->path, message + 9);
    return store_status(target, status);
}

int query_run(query_hits *to, const store_target *target, const query_search *s, const queries *q, const kna_search_how *how)
{
    const size_t m = (size_t)q->rows.rows;
    const size_t k = (size_t)how->k;
    to->hits = m && k > SIZE_MAX / sizeof *to->hits / m ? NULL : malloc(m * k * sizeof *to->hits + 1);
    to->counts = malloc(m * sizeof *to->counts + 1);
    if (!to->hits || !to->counts) return cli_fail("out of memory for %zu x %zu hits", m, k);
    to->report.size = sizeof to->report;
    const int status = kna_search_run(s->search, to->hits, to->counts, &q->rows, how, &to->report);
    return status == KNA_OK ? CLI_OK : explain(target, q, status);
}

void query_hits_free(query_hits *hits)
{
    free(hits->hits);
    free(hits->counts);
}

const char *query_index_text(char text[100], const kna_search_report *report)
{
    const char *name = kna_search_index_name(report->index);
    if (report->index != KNA_SEARCH_NONE || report->refused == KNA_OK)
        snprintf(text, 100, "%s", name);
    else
        snprintf(text, 100, "%s (%s)", name, report->refused == KNA_ENONE ? "there is no index" : kna_status_text(report->refused));
    return text;
}
