/*
 * store_add.c - `kna store add` and `kna store import`: documents go in, in transactions of --batch.
 *
 * Invariant: whatever can be refused is refused before the first document is written.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "convert.h"
#include "store_source.h"

/* ------------------------------------------------------------------ what both do */

/* Documents on their way in. */
typedef struct batch {
    store_target *to;
    int64_t size, waiting, kept, rows, all;
    int replace;
} batch;

static int commit(batch *b)
{
    const int status = b->waiting ? kna_store_commit(b->to->store) : KNA_OK;
    if (status != KNA_OK) return store_status(b->to, status);
    b->kept += b->waiting;
    b->waiting = 0;
    return CLI_OK;
}

static int put(batch *b, kna_document *document, const kna_store_rows *rows, int count)
{
    const int status = kna_store_add(b->to->store, document, rows, count, b->replace);
    if (status != KNA_OK) return store_status(b->to, status);
    for (int i = 0; i < count; i++) b->rows += rows[i].rows.rows;
    cli_progress_share((double)(b->kept + ++b->waiting) / (double)b->all);
    return b->waiting == b->size ? commit(b) : CLI_OK;
}

/* Answers what was done, or what was before it could not be. */
static int finish(batch *b, int code, int json)
{
    if (code == CLI_OK) code = commit(b);
    cli_progress_end();
    if (code != CLI_OK && b->kept) cli_warn("%s: the first %" PRId64 " documents of %" PRId64 " are kept", b->to->folder, b->kept, b->all);
    if (code != CLI_OK) return code;
    if (!json) {
        printf("%" PRId64 " documents, %" PRId64 " rows\n", b->kept, b->rows);
        return CLI_OK;
    }
    cJSON *answer = cli_json_object(NULL, NULL);
    cli_json_int(answer, "documents", b->kept);
    cli_json_int(answer, "rows", b->rows);
    return cli_json_print(stdout, answer);
}

static int is_taken(const store_target *target, const char *uri, int64_t *id)
{
    kna_document document;
    if (!uri || !uri[0] || kna_store_find(target->store, uri, &document) != KNA_OK) return 0;
    *id = document.id;
    return 1;
}

/* ------------------------------------------------------------------ add */

typedef struct request {
    const char *family, *meta, *uri, *from, *filter;
    int replace, json;
    int64_t batch;
} request;

#define AT(member) offsetof(request, member)
#define BATCH_MOST 1000000

static const cli_option add_options[] = {
    { "meta", 0, CLI_TEXT, AT(meta), 0, 0, NULL, "FILE", "sidecar, JSON lines: line i is document i (default: all rows are one)" },
    { "family", 0, CLI_TEXT, AT(family), 0, 0, NULL, "NAME", "that the rows of a .npy are of (default: the only one)" },
    { "uri", 0, CLI_TEXT, AT(uri), 0, 0, NULL, "U", "without --meta: the document's name (default: the file's)" },
    { "replace", 0, CLI_FLAG, AT(replace), 0, 0, NULL, NULL, "documents of the same uri are removed, in the same transaction" },
    { "batch", 0, CLI_INT, AT(batch), 1, BATCH_MOST, NULL, "N", "commit after every N documents (default 1000)" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON" },
    { .name = NULL },
};

static const cli_usage add_usage = {
    "store add",
    "DIR x.npy|x.npz [options]",
    "Rows (rows,dim) in float32 or float16, converted to the type of their family. The\n"
    "members of a .npz are called as families. A line of the sidecar is an object of\n"
    "uri, rows (default 1; or an object of family and number), tags, attributes,\n"
    "tokens, time, hash, each of which may be missing; rows are dealt out in order and\n"
    "must come out even. Whatever is wrong is found before anything is written.\n",
};

static int by_uri(const void *a, const void *b)
{
    const store_line *x = *(const store_line *const *)a;
    const store_line *y = *(const store_line *const *)b;
    const int order = strcmp(x->uri, y->uri);
    return order ? order : (x->number > y->number) - (x->number < y->number);
}

static int check_uris(const store_target *target, const store_sidecar *sidecar, int replace)
{
    int64_t count = 0;
    int64_t id = 0;
    int code = CLI_OK;
    store_line **named = malloc((size_t)(sidecar->count + 1) * sizeof(store_line *));
    if (!named) return cli_fail("%s: out of memory", sidecar->path);
    for (int64_t i = 0; i < sidecar->count; i++)
        if (sidecar->lines[i].uri && sidecar->lines[i].uri[0]) named[count++] = &sidecar->lines[i];
    for (int64_t i = 0; i < count && code == CLI_OK && !replace; i++)
        if (is_taken(target, named[i]->uri, &id))
            code = cli_refuse("%s: line %" PRId64 ": %s has a document '%.200s' already, number %" PRId64 " (--replace takes its place)",
                              sidecar->path, named[i]->number, target->folder, named[i]->uri, id);
    qsort(named, (size_t)count, sizeof(store_line *), by_uri);
    for (int64_t i = 1; i < count && code == CLI_OK; i++)
        if (strcmp(named[i - 1]->uri, named[i]->uri) == 0)
            code = cli_refuse("%s: line %" PRId64 ": the uri '%.200s' is line %" PRId64 "'s", sidecar->path, named[i]->number, named[i]->uri,
                              named[i - 1]->number);
    free(named);
    return code;
}

/* Each source's rows are dealt out to the last. */
static int check_counts(const store_sidecar *sidecar, const store_sources *sources)
{
    for (int s = 0; s < sources->count; s++) {
        const int64_t have = sources->items[s].array.shape[0];
        int64_t used = 0;
        for (int64_t i = 0; i < sidecar->count; i++) {
            const store_line *line = &sidecar->lines[i];
            if (line->rows[s] > have - used)
                return cli_refuse("%s: line %" PRId64 ": %" PRId64 " rows from row %" PRId64 " on; %s has %" PRId64, sidecar->path,
                                  line->number, line->rows[s], used, sources->items[s].label, have);
            used += line->rows[s];
        }
        if (used != have)
            return cli_refuse("%s: %" PRId64 " lines have %" PRId64 " rows; %s has %" PRId64, sidecar->path, sidecar->count, used,
                              sources->items[s].label, have);
    }
    return CLI_OK;
}

/* Without a sidecar: one line that has all rows. */
static int one_line(store_sidecar *sidecar, const store_target *target, const store_sources *sources, const char *uri, int replace)
{
    int64_t id = 0;
    if (!store_is_text(uri)) return cli_refuse("--uri: not one line of UTF-8");
    if (!replace && is_taken(target, uri, &id))
        return cli_refuse("%s: there is a document '%.200s' already, number %" PRId64 " (--replace takes its place)", target->folder, uri, id);
    sidecar->lines = calloc(1, sizeof *sidecar->lines);
    if (!sidecar->lines) return cli_fail("out of memory");
    sidecar->count = 1;
    sidecar->lines[0].uri = strdup(uri);
    sidecar->lines[0].rows = malloc((size_t)sources->count * sizeof(int64_t));
    if (!sidecar->lines[0].uri || !sidecar->lines[0].rows) return cli_fail("out of memory");
    for (int s = 0; s < sources->count; s++) sidecar->lines[0].rows[s] = sources->items[s].array.shape[0];
    return CLI_OK;
}

static int read_sidecar(store_sidecar *sidecar, const request *r, const store_target *target, const store_sources *sources, const char *path)
{
    const char **names = malloc((size_t)sources->count * sizeof *names);
    if (!r->meta) {
        const char *slash = strrchr(path, '/');
        free(names);
        return one_line(sidecar, target, sources, r->uri ? r->uri : slash ? slash + 1 : path, r->replace);
    }
    if (!names) return cli_fail("out of memory");
    for (int s = 0; s < sources->count; s++) names[s] = sources->items[s].name;
    int code = store_sidecar_read(sidecar, r->meta, names, sources->count);
    free(names);
    if (code == CLI_OK) code = check_counts(sidecar, sources);
    return code == CLI_OK ? check_uris(target, sidecar, r->replace) : code;
}

/* The next `count` rows of a source, as its family has them. */
static int next_rows(const store_target *target, store_source *source, int64_t count, kna_store_rows *rows, converted *owned)
{
    const int64_t d = source->of.dim;
    const char *data = (const char *)source->array.data + (size_t)source->next * kna_type_row_bytes(source->array.type, d);
    const kna_rows as_given = { data, source->array.type, 1, count, d, 0, 0, NULL };
    source->next += count;
    *rows = (kna_store_rows){ source->family, 0, as_given };
    if (source->array.type == source->of.type) return CLI_OK;
    const int code = convert_rows(target->context, owned, &as_given, source->of.type, source->label);
    rows->rows = owned->rows;
    return code;
}

static int add_document(batch *b, store_sources *sources, const store_line *line)
{
    kna_store_rows *rows = calloc((size_t)sources->count, sizeof *rows);
    converted *owned = calloc((size_t)sources->count, sizeof *owned);
    kna_document document = { .uri = line->uri, .tags = line->tags, .attributes = line->attributes, .time_us = line->time_us, .tokens = line->tokens };
    memcpy(document.hash, line->hash, sizeof document.hash);
    int code = rows && owned ? CLI_OK : cli_fail("out of memory");
    for (int s = 0; s < sources->count && code == CLI_OK; s++)
        code = next_rows(b->to, &sources->items[s], line->rows[s], &rows[s], &owned[s]);
    if (code == CLI_OK) code = put(b, &document, rows, sources->count);
    for (int s = 0; owned && s < sources->count; s++) converted_free(&owned[s]);
    free(owned);
    free(rows);
    return code;
}

static int add_all(const request *r, store_target *target, const char *path)
{
    store_sources sources = { .items = NULL };
    store_sidecar sidecar = { .path = NULL };
    cli_progress_start("store add");
    int code = store_sources_read(&sources, target, path, r->family);
    if (code == CLI_OK) code = read_sidecar(&sidecar, r, target, &sources, path);
    if (code == CLI_OK) {
        batch b = { .to = target, .size = r->batch, .all = sidecar.count, .replace = r->replace };
        for (int64_t i = 0; i < sidecar.count && code == CLI_OK; i++) code = add_document(&b, &sources, &sidecar.lines[i]);
        code = finish(&b, code, r->json);
    }
    store_sidecar_free(&sidecar);
    store_sources_free(&sources);
    return code;
}

int store_cmd_add(int argc, char **argv)
{
    request r = { .batch = 1000 };
    store_target target = { .folder = NULL };
    const cli_group groups[] = { { "Documents", add_options, &r }, { NULL, NULL, NULL } };
    int rest = 0;
    int code = cli_parse(&add_usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&add_usage, argc, argv, rest, 2, 2, "DIR and a .npy or .npz");
    if (code == CLI_GO_ON && r.meta && r.uri) code = cli_refuse("--uri: the lines of --meta have theirs");
    if (code != CLI_GO_ON) return code;
    code = store_open(&target, argv[rest], 1);
    if (code == CLI_OK) code = add_all(&r, &target, argv[rest + 1]);
    store_close(&target);
    return code;
}

/* ------------------------------------------------------------------ import */

static const cli_option import_options[] = {
    { "from", 0, CLI_TEXT, AT(from), 0, 0, NULL, "OTHER", "the store whose documents are copied" },
    { "filter", 0, CLI_TEXT, AT(filter), 0, 0, NULL, "SQL", "only those it is true of" },
    { "replace", 0, CLI_FLAG, AT(replace), 0, 0, NULL, NULL, "documents of the same uri are removed, in the same transaction" },
    { "batch", 0, CLI_INT, AT(batch), 1, BATCH_MOST, NULL, "N", "commit after every N documents (default 1000)" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON" },
    { .name = NULL },
};

static const cli_usage import_usage = {
    "store import",
    "DIR --from OTHER [options]",
    "Copies documents with their rows, bit by bit, and gives them new numbers. DIR must\n"
    "have the families of OTHER, of the same types and dimensions.\n",
};

/* map[i]: the number in `to` of family i of `from`. */
static int match_families(const store_target *to, const store_target *from, int **map, int *count)
{
    kna_store_info info = { .size = sizeof info };
    const char *models[2] = { kna_store_note_text(to->store, "model"), kna_store_note_text(from->store, "model") };
    if (models[0] && models[1] && strcmp(models[0], models[1]) != 0)
        return cli_refuse("%s: of model '%.200s'; %s is of '%.200s'", from->folder, models[1], to->folder, models[0]);
    int status = kna_store_info_get(from->store, &info);
    if (status != KNA_OK) return store_status(from, status);
    *count = (int)info.families;
    *map = malloc((size_t)(*count + 1) * sizeof **map);
    if (!*map) return cli_fail("out of memory");
    for (int i = 0; i < *count; i++) {
        kna_family a;
        kna_family b = { .name = NULL };
        status = kna_store_family(from->store, i, &a);
        if (status != KNA_OK) return store_status(from, status);
        const int at = (*map)[i] = kna_store_family_named(to->store, a.name);
        if (at < 0) return cli_refuse("%s: has no family '%s' as %s has", to->folder, a.name, from->folder);
        status = kna_store_family(to->store, at, &b);
        if (status != KNA_OK) return store_status(to, status);
        if (a.type != b.type || a.dim != b.dim)
            return cli_refuse("%s: family '%s' is %s of %" PRId64 "; in %s it is %s of %" PRId64, to->folder, a.name, store_type_name(b.type),
                              b.dim, from->folder, store_type_name(a.type), a.dim);
    }
    return CLI_OK;
}

static int check_names(const store_target *to, const store_target *from, const int64_t *ids, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        kna_document document;
        int64_t id = 0;
        const int status = kna_store_document(from->store, ids[i], &document);
        if (status != KNA_OK) return store_status(from, status);
        if (is_taken(to, document.uri, &id))
            return cli_refuse("%s: there is a document '%.200s' already, number %" PRId64 " (--replace takes its place)", to->folder,
                              document.uri, id);
    }
    return CLI_OK;
}

static int copy_document(batch *b, const store_target *from, int64_t id, const int *map, int families)
{
    kna_document document;
    int status = kna_store_document(from->store, id, &document);
    kna_store_rows *rows = calloc((size_t)families + 1, sizeof *rows);
    if (!rows) return cli_fail("out of memory");
    for (int i = 0; i < families && status == KNA_OK; i++) {
        status = kna_store_rows_of(from->store, id, i, &rows[i]);
        rows[i].family = map[i];
    }
    document.id = 0;
    const int code = status == KNA_OK ? put(b, &document, rows, families) : store_status(from, status);
    free(rows);
    return code;
}

static int refuse_same(const char *a, const char *b)
{
    struct stat x;
    struct stat y;
    if (stat(a, &x) != 0 || stat(b, &y) != 0 || x.st_dev != y.st_dev || x.st_ino != y.st_ino) return CLI_OK;
    return cli_refuse("--from: %s is the same store", b);
}

static int import_all(const request *r, store_target *to, const store_target *from)
{
    int *map = NULL;
    int families = 0;
    int64_t *ids = NULL;
    int64_t count = 0;
    const store_choice choice = { .filter = r->filter };
    int code = refuse_same(to->folder, from->folder);
    if (code == CLI_OK) code = match_families(to, from, &map, &families);
    if (code == CLI_OK) code = store_choose(from, &choice, &ids, &count);
    if (code == CLI_OK && !r->replace) code = check_names(to, from, ids, count);
    if (code == CLI_OK) {
        batch b = { .to = to, .size = r->batch, .all = count, .replace = r->replace };
        cli_progress_start("store import");
        for (int64_t i = 0; i < count && code == CLI_OK; i++) code = copy_document(&b, from, ids[i], map, families);
        code = finish(&b, code, r->json);
    }
    free(ids);
    free(map);
    return code;
}

int store_cmd_import(int argc, char **argv)
{
    request r = { .batch = 1000 };
    store_target to = { .folder = NULL };
    store_target from = { .folder = NULL };
    const cli_group groups[] = { { "Documents", import_options, &r }, { NULL, NULL, NULL } };
    int rest = 0;
    int code = cli_parse(&import_usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&import_usage, argc, argv, rest, 1, 1, "DIR");
    if (code == CLI_GO_ON) code = cli_require(&import_usage, "from", r.from);
    if (code != CLI_GO_ON) return code;
    code = store_open(&to, argv[rest], 1);
    if (code == CLI_OK) code = store_open(&from, r.from, 0);
    if (code == CLI_OK) code = import_all(&r, &to, &from);
    store_close(&from);
    store_close(&to);
    return code;
}
