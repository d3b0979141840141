/*
 * store_list.c - `kna store ls`, `rm` and `get`: documents by number, name or condition.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "npy.h"
#include "store.h"

typedef struct request {
    store_choice choice;
    const char *family, *out;
    int json;
} request;

#define AT(member) offsetof(request, member)

/* ------------------------------------------------------------------ ls */

static const cli_option ls_options[] = {
    { "tag", 0, CLI_TEXT, AT(choice.tag), 0, 0, NULL, "T", "only those with this tag" },
    { "uri-prefix", 0, CLI_TEXT, AT(choice.uri_prefix), 0, 0, NULL, "P", "only those whose uri begins with P" },
    { "filter", 0, CLI_TEXT, AT(choice.filter), 0, 0, NULL, "SQL", "only those it is true of" },
    { "limit", 0, CLI_INT, AT(choice.limit), 1, 1e15, NULL, "N", "the first N of them" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON" },
    { .name = NULL },
};

static const cli_usage ls_usage = {
    "store ls",
    "DIR [options]",
    "Documents in the order of their numbers. SQL is a condition on the columns id, uri,\n"
    "time (YYYY-MM-DD HH:MM:SS), time_us, tags, tokens and attributes (JSON):\n"
    "--filter \"tokens > 100 and tag('news') and json_extract(attributes, '$.year') = 1998\"\n",
};

static int rows_json(cJSON *document, const store_target *target, int64_t id, int families)
{
    cJSON *rows = cli_json_object(document, "rows");
    for (int i = 0; i < families; i++) {
        kna_family family;
        int64_t first = 0;
        int64_t count = 0;
        int status = kna_store_family(target->store, i, &family);
        if (status == KNA_OK) status = kna_store_extent(target->store, id, i, &first, &count);
        if (status != KNA_OK) return store_status(target, status);
        if (count == 0) continue;
        cJSON *one = cli_json_object(rows, family.name);
        cli_json_int(one, "first", first);
        cli_json_int(one, "rows", count);
    }
    return CLI_OK;
}

static int print_json(const store_target *target, const int64_t *ids, int64_t count, int families)
{
    cJSON *answer = cli_json_object(NULL, NULL);
    cJSON *list = cli_json_array(answer, "documents");
    int code = CLI_OK;
    for (int64_t i = 0; i < count && code == CLI_OK; i++) {
        kna_document document;
        const int status = kna_store_document(target->store, ids[i], &document);
        if (status != KNA_OK) code = store_status(target, status);
        if (status != KNA_OK) break;
        cJSON *one = cli_json_object(list, NULL);
        cli_json_int(one, "id", document.id);
        cli_json_int(one, "time_us", document.time_us);
        store_document_json(one, &document);
        code = rows_json(one, target, document.id, families);
    }
    if (code == CLI_OK) return cli_json_print(stdout, answer);
    cJSON_Delete(answer);
    return code;
}

/* A line to a document: what would break it, or a terminal, is shown as '?'. */
static void print_text(const char *text, char newline)
{
    for (const char *at = text; *at; at++) putchar(*at == '\n' ? newline : (unsigned char)*at < 32 || *at == 127 ? '?' : *at);
}

static int print_line(const store_target *target, int64_t id, int families)
{
    kna_document document;
    char time[STORE_TIME_TEXT];
    int64_t rows = 0;
    int status = kna_store_document(target->store, id, &document);
    for (int i = 0; i < families && status == KNA_OK; i++) {
        int64_t first = 0;
        int64_t count = 0;
        status = kna_store_extent(target->store, id, i, &first, &count);
        rows += count;
    }
    if (status != KNA_OK) return store_status(target, status);
    printf("%8" PRId64 "  %s%10" PRId64 "%10" PRId64 "  ", document.id, store_time(time, document.time_us), document.tokens, rows);
    print_text(document.uri[0] ? document.uri : "-", '?');
    if (document.tags[0]) printf("  [");
    print_text(document.tags, ' ');
    printf(document.tags[0] ? "]\n" : "\n");
    return CLI_OK;
}

static int list(const store_target *target, const request *r)
{
    kna_store_info info = { .size = sizeof info };
    int64_t *ids = NULL;
    int64_t count = 0;
    const int status = kna_store_info_get(target->store, &info);
    if (status != KNA_OK) return store_status(target, status);
    int code = store_choose(target, &r->choice, &ids, &count);
    if (code == CLI_OK && r->json) {
        code = print_json(target, ids, count, (int)info.families);
    } else if (code == CLI_OK) {
        if (count) printf("%8s  %-19s%10s%10s  %s\n", "id", "time (UTC)", "tokens", "rows", "uri [tags]");
        for (int64_t i = 0; i < count && code == CLI_OK; i++) code = print_line(target, ids[i], (int)info.families);
    }
    free(ids);
    return code;
}

int store_cmd_ls(int argc, char **argv)
{
    request r = { .json = 0 };
    store_target target = { .folder = NULL };
    const cli_group groups[] = { { "Which", ls_options, &r }, { NULL, NULL, NULL } };
    int rest = 0;
    int code = cli_parse(&ls_usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&ls_usage, argc, argv, rest, 1, 1, "DIR");
    if (code != CLI_GO_ON) return code;
    code = store_open(&target, argv[rest], 0);
    if (code == CLI_OK) code = list(&target, &r);
    store_close(&target);
    return code;
}

/* ------------------------------------------------------------------ rm */

static const cli_option rm_options[] = {
    { "filter", 0, CLI_TEXT, AT(choice.filter), 0, 0, NULL, "SQL", "those it is true of, as for ls" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON" },
    { .name = NULL },
};

static const cli_usage rm_usage = {
    "store rm",
    "DIR [ID|URI ...] [options]",
    "All of them, or, if one is not there, none. Digits alone are a number. The space is\n"
    "given back by 'kna store compact'.\n",
};

static int ascending(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a;
    const int64_t y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int by_words(const store_target *target, char **words, int count, int64_t **ids)
{
    int code = CLI_OK;
    *ids = malloc((size_t)count * sizeof **ids);
    if (!*ids) return cli_fail("out of memory");
    for (int i = 0; i < count && code == CLI_OK; i++) {
        kna_document document = { .id = 0 };
        code = store_find(target, words[i], &document);
        (*ids)[i] = document.id;
    }
    qsort(*ids, (size_t)count, sizeof **ids, ascending);
    return code;
}

static int remove_all(const store_target *target, const int64_t *ids, int64_t count, int json)
{
    int64_t removed = 0;
    int status = KNA_OK;
    for (int64_t i = 0; i < count && status == KNA_OK; i++) {
        if (i && ids[i] == ids[i - 1]) continue;
        status = kna_store_remove(target->store, ids[i]);
        removed++;
    }
    if (status == KNA_OK) status = kna_store_commit(target->store);
    if (status != KNA_OK) return store_status(target, status);
    if (!json) {
        printf("%" PRId64 " documents removed\n", removed);
        return CLI_OK;
    }
    cJSON *answer = cli_json_object(NULL, NULL);
    cli_json_int(answer, "removed", removed);
    return cli_json_print(stdout, answer);
}

int store_cmd_rm(int argc, char **argv)
{
    request r = { .json = 0 };
    store_target target = { .folder = NULL };
    const cli_group groups[] = { { "Which", rm_options, &r }, { NULL, NULL, NULL } };
    int rest = 0;
    int64_t *ids = NULL;
    int64_t count = 0;
    int code = cli_parse(&rm_usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&rm_usage, argc, argv, rest, 1, argc, "DIR");
    if (code == CLI_GO_ON && (argc - rest > 1) == (r.choice.filter != NULL))
        code = cli_refuse("store rm: either documents or --filter must be given, see 'kna store rm --help'");
    if (code != CLI_GO_ON) return code;
    code = store_open(&target, argv[rest], 1);
    if (code == CLI_OK && r.choice.filter) code = store_choose(&target, &r.choice, &ids, &count);
    if (code == CLI_OK && !r.choice.filter) {
        count = argc - rest - 1;
        code = by_words(&target, argv + rest + 1, (int)count, &ids);
    }
    if (code == CLI_OK) code = remove_all(&target, ids, count, r.json);
    free(ids);
    store_close(&target);
    return code;
}

/* ------------------------------------------------------------------ get */

static const cli_option get_options[] = {
    { "family", 0, CLI_TEXT, AT(family), 0, 0, NULL, "NAME", "whose rows (default: the only one)" },
    { "out", 0, CLI_TEXT, AT(out), 0, 0, NULL, "FILE", "(rows,dim): f16 as float16, bytes as uint8, all others as float32" },
    { .name = NULL },
};

static const cli_usage get_usage = { "store get", "DIR ID|URI --out rows.npy [options]", "Digits alone are a number.\n" };

static int get(const store_target *target, const request *r, const char *word)
{
    kna_document document;
    kna_store_rows rows;
    int family = 0;
    int code = store_family(target, r->family, &family);
    if (code == CLI_OK) code = store_find(target, word, &document);
    if (code != CLI_OK) return code;
    const int status = kna_store_rows_of(target->store, document.id, family, &rows);
    if (status != KNA_OK) return store_status(target, status);
    FILE *to = cli_output_open(r->out);
    if (!to) return CLI_FAILED;
    npy_write_head(to, store_npy_type(rows.rows.type), 2, (const int64_t[]){ rows.rows.rows, rows.rows.dim });
    code = store_rows_write(to, &rows.rows);
    return code == CLI_OK ? cli_output_commit() : code;
}

int store_cmd_get(int argc, char **argv)
{
    request r = { .json = 0 };
    store_target target = { .folder = NULL };
    const cli_group groups[] = { { "Rows", get_options, &r }, { NULL, NULL, NULL } };
    int rest = 0;
    int code = cli_parse(&get_usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&get_usage, argc, argv, rest, 2, 2, "DIR and ID or URI");
    if (code == CLI_GO_ON) code = cli_require(&get_usage, "out", r.out);
    if (code != CLI_GO_ON) return code;
    code = store_open(&target, argv[rest], 0);
    if (code == CLI_OK) code = get(&target, &r, argv[rest + 1]);
    store_close(&target);
    return code;
}
