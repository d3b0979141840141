/*
 * store_manage.c - `kna store create`, `stat`, `verify`, `repair` and `compact`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store.h"

/* ------------------------------------------------------------------ create */

typedef struct creation {
    int64_t dim; /* 0: not given */
    int type;    /* place in type_names, -1: not given */
    cli_texts families;
    const char *model;
} creation;

static const char *const type_names[] = { "f32", "f16", "int8", NULL };
static const int types[] = { KNA_F32, KNA_F16, KNA_I8 };

static const cli_option create_options[] = {
    { "dim", 0, CLI_INT, offsetof(creation, dim), 1, KNA_MAX_STORED_DIM, NULL, "D", "numbers in a row" },
    { "type", 0, CLI_CHOICE, offsetof(creation, type), 0, 0, type_names, "TYPE", "f32, f16 or int8 (a scale per row)" },
    { "family", 0, CLI_TEXTS, offsetof(creation, families), 0, 0, NULL, "NAME[:TYPE:DIM]",
      "rows alike, --type and --dim unless it has its own; may be given several times (default rows)" },
    { "model", 0, CLI_TEXT, offsetof(creation, model), 0, 0, NULL, "TEXT", "what made the rows; kept with the store" },
    { .name = NULL },
};

static const cli_usage create_usage = {
    "store create",
    "DIR --dim D --type f32|f16|int8 [options]",
    "DIR must not exist, or be empty. A store may have several families of rows, such as\n"
    "--family keys:f16:64 --family hidden:int8:576.\n",
};

/* "NAME" or "NAME:TYPE:DIM"; the name is cut off in place. */
static int parse_family(kna_family *family, char *text, const creation *c)
{
    const char *given = text;
    char *dim = strrchr(text, ':');
    if (!dim) {
        if (c->dim == 0 || c->type < 0) return cli_refuse("option --%s is missing: family '%s' has none", c->dim ? "type" : "dim", text);
        *family = (kna_family){ text, types[c->type], c->dim };
        return CLI_OK;
    }
    char *type = memrchr(text, ':', (size_t)(dim - text));
    int i = 0;
    char *end = NULL;
    if (!type) return cli_refuse("--family: '%s' is neither NAME nor NAME:TYPE:DIM", given);
    while (type_names[i] && (strlen(type_names[i]) != (size_t)(dim - type - 1) || strncmp(type_names[i], type + 1, strlen(type_names[i])) != 0)) i++;
    if (!type_names[i]) return cli_refuse("--family: '%s': the type is none of f32, f16, int8", given);
    errno = 0;
    const long long number = strtoll(dim + 1, &end, 10);
    if (errno || end == dim + 1 || *end || number < 1 || number > KNA_MAX_STORED_DIM)
        return cli_refuse("--family: '%s': the dimension is not an integer in 1..%d", given, KNA_MAX_STORED_DIM);
    *type = '\0';
    *family = (kna_family){ text, types[i], number };
    return CLI_OK;
}

static int create(const creation *c, const char *folder, char *texts[CLI_TEXTS_MAX], int count)
{
    kna_family families[CLI_TEXTS_MAX];
    store_target target = { .folder = folder };
    kna_store_options options = KNA_STORE_OPTIONS;
    const cli_machine machine = CLI_MACHINE;
    int uses_common = 0;
    int code = CLI_OK;
    for (int i = 0; i < count && code == CLI_OK; i++) {
        uses_common |= !strchr(texts[i], ':');
        if (!store_is_text(texts[i])) return cli_refuse("--family: a name is not one line of UTF-8");
        code = parse_family(&families[i], texts[i], c);
    }
    if (code == CLI_OK && !uses_common && (c->dim || c->type >= 0))
        code = cli_refuse("--%s: every --family has its own", c->dim ? "dim" : "type");
    if (code == CLI_OK && c->model && !store_is_text(c->model)) code = cli_refuse("--model: not one line of UTF-8");
    if (code == CLI_OK) code = cli_context(&target.context, &machine);
    if (code != CLI_OK) return code;
    options.model = c->model;
    const int was_there = access(folder, F_OK) == 0;
    const int status = kna_store_create(target.context, folder, families, count, &options);
    if (status != KNA_OK) code = store_status(&target, status);
    if (status != KNA_OK && !was_there) rmdir(folder); /* empty, if it was made at all */
    kna_context_free(target.context);
    return code;
}

int store_cmd_create(int argc, char **argv)
{
    creation c = { .type = -1 };
    char *texts[CLI_TEXTS_MAX] = { NULL };
    const cli_group groups[] = { { "Families", create_options, &c }, { NULL, NULL, NULL } };
    int rest = 0;
    int code = cli_parse(&create_usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&create_usage, argc, argv, rest, 1, 1, "DIR");
    if (code != CLI_GO_ON) return code;
    if (c.families.count == 0) c.families = (cli_texts){ 1, { "rows" } };
    for (int i = 0; i < c.families.count && code == CLI_GO_ON; i++) {
        texts[i] = strdup(c.families.values[i]);
        if (!texts[i]) code = cli_fail("out of memory");
    }
    if (code == CLI_GO_ON) code = create(&c, argv[rest], texts, c.families.count);
    for (int i = 0; i < c.families.count; i++) free(texts[i]);
    return code;
}

/* ------------------------------------------------------------------ the words that take a folder alone */

typedef struct request {
    int deep, json;
    double share;
} request;

static const cli_option json_options[] = {
    { "json", 0, CLI_FLAG, offsetof(request, json), 0, 0, NULL, NULL, "print JSON" },
    { .name = NULL },
};

static int parse(const cli_usage *usage, const cli_option *options, request *r, int argc, char **argv, const char **folder)
{
    const cli_group groups[] = { { "Options", options ? options : json_options, r }, { NULL, options ? json_options : NULL, r }, { NULL, NULL, NULL } };
    int rest = 0;
    int code = cli_parse(usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(usage, argc, argv, rest, 1, 1, "DIR");
    if (code == CLI_GO_ON) *folder = argv[rest];
    return code;
}

/* ------------------------------------------------------------------ stat */

static const cli_usage stat_usage = { "store stat", "DIR [options]", "What is in it, and how much of the files is of removed documents.\n" };

/* Rows of documents there are; the numbers given so far are kna_store_family_rows(). */
static int count_rows(const store_target *target, int family, int64_t *rows)
{
    kna_document document = { .id = 0 };
    int status;
    *rows = 0;
    while ((status = kna_store_next(target->store, document.id, &document)) == KNA_OK) {
        int64_t first = 0;
        int64_t here = 0;
        status = kna_store_extent(target->store, document.id, family, &first, &here);
        if (status != KNA_OK) break;
        *rows += here;
    }
    return status == KNA_ENONE ? CLI_OK : store_status(target, status);
}

static void uuid_text(char text[37], const unsigned char uuid[16])
{
    for (int i = 0, at = 0; i < 16; i++) at += snprintf(text + at, (size_t)(37 - at), i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", uuid[i]);
}

static void stat_head(cJSON *answer, const store_target *target, const kna_store_info *info, int json)
{
    char uuid[37];
    const char *model = kna_store_note_text(target->store, "model");
    uuid_text(uuid, info->uuid);
    if (!json) {
        printf("uuid          %s\n", uuid);
        if (model) printf("model         %s\n", model);
        printf("documents     %" PRId64 ", and %" PRId64 " removed\n", info->documents, info->removed);
        printf("transactions  %" PRId64 "\n", info->transaction);
        printf("bytes         %" PRId64 " of rows, %" PRId64 " of removed ones, %" PRId64 " of the log\n", info->bytes, info->dead_bytes,
               info->log_bytes);
        printf("segments      %" PRId64 "\n\n%-20s%8s%8s%14s%14s\n", info->segments, "family", "type", "dim", "rows", "next row");
        return;
    }
    cli_json_text(answer, "uuid", uuid);
    cli_json_text(answer, "model", model);
    cli_json_int(answer, "documents", info->documents);
    cli_json_int(answer, "removed", info->removed);
    cli_json_int(answer, "transaction", info->transaction);
    cli_json_int(answer, "bytes", info->bytes);
    cli_json_int(answer, "dead_bytes", info->dead_bytes);
    cli_json_int(answer, "log_bytes", info->log_bytes);
    cli_json_int(answer, "segments", info->segments);
}

static int stat_family(cJSON *families, const store_target *target, int i, int json)
{
    kna_family family;
    int64_t rows = 0;
    const int status = kna_store_family(target->store, i, &family);
    if (status != KNA_OK) return store_status(target, status);
    const int code = count_rows(target, i, &rows);
    if (code != CLI_OK) return code;
    const int64_t next = kna_store_family_rows(target->store, i);
    if (!json) {
        printf("%-20s%8s%8" PRId64 "%14" PRId64 "%14" PRId64 "\n", family.name, store_type_name(family.type), family.dim, rows, next);
        return CLI_OK;
    }
    cJSON *one = cli_json_object(families, NULL);
    cli_json_text(one, "name", family.name);
    cli_json_text(one, "type", store_type_name(family.type));
    cli_json_int(one, "dim", family.dim);
    cli_json_int(one, "rows", rows);
    cli_json_int(one, "next_row", next);
    return CLI_OK;
}

static int print_stat(const store_target *target, int json)
{
    kna_store_info info = { .size = sizeof info };
    const int status = kna_store_info_get(target->store, &info);
    if (status != KNA_OK) return store_status(target, status);
    cJSON *answer = json ? cli_json_object(NULL, NULL) : NULL;
    stat_head(answer, target, &info, json);
    cJSON *families = json ? cli_json_array(answer, "families") : NULL;
    int code = CLI_OK;
    for (int i = 0; i < info.families && code == CLI_OK; i++) code = stat_family(families, target, i, json);
    if (json && code == CLI_OK) return cli_json_print(stdout, answer);
    cJSON_Delete(answer);
    return code;
}

int store_cmd_stat(int argc, char **argv)
{
    request r = { .json = 0 };
    store_target target = { .folder = NULL };
    const char *folder = NULL;
    int code = parse(&stat_usage, NULL, &r, argc, argv, &folder);
    if (code != CLI_GO_ON) return code;
    code = store_open(&target, folder, 0);
    if (code == CLI_OK) code = print_stat(&target, r.json);
    store_close(&target);
    return code;
}

/* ------------------------------------------------------------------ verify */

static const cli_option verify_options[] = {
    { "deep", 0, CLI_FLAG, offsetof(request, deep), 0, 0, NULL, NULL, "the rows of all documents as well, removed ones too, and indexes" },
    { .name = NULL },
};

static const cli_usage verify_usage = {
    "store verify",
    "DIR [options]",
    "Compares manifest and log with their checks. Exit code 1 where something is not as\n"
    "it was written.\n",
};

/* Each damaged document is told as it is found. */
typedef struct findings {
    const store_target *target;
    cJSON *list; /* NULL: no JSON */
} findings;

static void tell(void *user, int64_t id, const char *what)
{
    const findings *f = user;
    cli_warn("%s: %s", f->target->folder, what);
    if (!f->list) return;
    cJSON *one = cli_json_object(f->list, NULL);
    cli_json_int(one, "id", id);
    cli_json_text(one, "what", what);
}

/* Whether an index there is can be used. One that cannot costs time and no answer, and is made anew by kna store index. */
static int is_sound_index(const store_target *target, int family, int kind, cJSON *list)
{
    kna_store_index_info info = { .size = sizeof info };
    kna_family of = { .name = "" };
    (void)!kna_store_family(target->store, family, &of);
    const int status = kna_store_index_get(target->store, family, kind, &info);
    const char *what = kna_context_message(target->context);
    if (status == KNA_ENONE || status == KNA_ESTALE) return 1; /* none; or of a commit that came meanwhile */
    if (status != KNA_OK) cli_warn("%s: %s (make it anew: kna store index)", target->folder, what);
    if (!list) return status == KNA_OK;
    cJSON *one = cli_json_object(list, NULL);
    cli_json_text(one, "family", of.name);
    cli_json_text(one, "kind", kna_search_index_name(kind));
    cli_json_bool(one, "sound", status == KNA_OK);
    cli_json_text(one, "what", status == KNA_OK ? "" : what);
    return status == KNA_OK;
}

static int are_sound_indexes(const store_target *target, cJSON *list)
{
    int sound = 1;
    kna_family of;
    for (int f = 0; kna_store_family(target->store, f, &of) == KNA_OK; f++) {
        sound &= is_sound_index(target, f, KNA_SEARCH_FLAT, list);
        sound &= is_sound_index(target, f, KNA_SEARCH_CLUSTERS, list);
    }
    return sound;
}

static int verify(const store_target *target, const request *r)
{
    int64_t damaged = 0;
    cJSON *answer = r->json ? cli_json_object(NULL, NULL) : NULL;
    findings f = { target, r->json ? cli_json_array(answer, "damaged") : NULL };
    cli_progress_start("store verify");
    const int status = kna_store_verify(target->store, r->deep ? &damaged : NULL, tell, &f);
    cli_progress_end();
    int code = status == KNA_OK ? CLI_OK : store_status(target, status);
    const int sound = !r->deep || are_sound_indexes(target, r->json ? cli_json_array(answer, "indexes") : NULL);
    if (code == CLI_OK && !sound) code = CLI_FAILED;
    cli_json_bool(answer, "deep", r->deep);
    cli_json_bool(answer, "sound", code == CLI_OK);
    if (r->json && (status == KNA_OK || status == KNA_EDAMAGED)) {
        const int printed = cli_json_print(stdout, answer);
        return code == CLI_OK ? printed : code;
    }
    cJSON_Delete(answer);
    if (code == CLI_OK) printf("%s\n", r->deep ? "sound: manifest, log, rows and indexes" : "sound: manifest and log (rows: --deep)");
    return code;
}

int store_cmd_verify(int argc, char **argv)
{
    request r = { .deep = 0 };
    store_target target = { .folder = NULL };
    const char *folder = NULL;
    int code = parse(&verify_usage, verify_options, &r, argc, argv, &folder);
    if (code != CLI_GO_ON) return code;
    code = store_open(&target, folder, 0);
    if (code == CLI_OK) code = verify(&target, &r);
    store_close(&target);
    return code;
}

/* ------------------------------------------------------------------ repair, compact */

static const cli_usage repair_usage = {
    "store repair",
    "DIR [options]",
    "Of a store that does not open, or has damaged documents: keeps what is sound, drops\n"
    "what is not, and says how many documents.\n",
};

int store_cmd_repair(int argc, char **argv)
{
    request r = { .json = 0 };
    store_target target = { .context = NULL };
    const cli_machine machine = CLI_MACHINE;
    int64_t kept = 0;
    int64_t lost = 0;
    int code = parse(&repair_usage, NULL, &r, argc, argv, &target.folder);
    if (code != CLI_GO_ON) return code;
    code = cli_context(&target.context, &machine);
    if (code != CLI_OK) return code;
    cli_progress_start("store repair");
    const int status = kna_store_repair(target.context, target.folder, &kept, &lost);
    cli_progress_end();
    if (status != KNA_OK) code = store_status(&target, status);
    kna_context_free(target.context);
    if (code != CLI_OK) return status == KNA_ENONE ? CLI_FAILED : code;
    if (!r.json) {
        printf("%" PRId64 " documents kept, %" PRId64 " lost\n", kept, lost);
        return CLI_OK;
    }
    cJSON *answer = cli_json_object(NULL, NULL);
    cli_json_int(answer, "kept", kept);
    cli_json_int(answer, "lost", lost);
    return cli_json_print(stdout, answer);
}

static const cli_option compact_options[] = {
    { "share", 0, CLI_REAL, offsetof(request, share), 0, 1, NULL, "S",
      "files of rows are written anew of which at least so much is of removed documents (default 0.5; 0: all)" },
    { .name = NULL },
};

static const cli_usage compact_usage = { "store compact", "DIR [options]", "Writes the log and files of rows anew without removed documents. Numbers stay.\n" };

/* Bytes of all files of the store. What cannot be looked at counts nothing: it is told, not reckoned with. */
static int64_t folder_bytes(const char *folder)
{
    int64_t bytes = 0;
    struct stat status;
    DIR *all = opendir(folder);
    for (const struct dirent *entry = all ? readdir(all) : NULL; entry; entry = readdir(all))
        if (fstatat(dirfd(all), entry->d_name, &status, 0) == 0 && S_ISREG(status.st_mode)) bytes += status.st_size;
    if (all) closedir(all);
    return bytes;
}

static int compact(const store_target *target, const request *r)
{
    const int64_t before = folder_bytes(target->folder);
    cli_progress_start("store compact");
    const int status = kna_store_compact(target->store, r->share);
    cli_progress_end();
    if (status != KNA_OK) return store_status(target, status);
    const int64_t after = folder_bytes(target->folder);
    if (!r->json) {
        printf("%" PRId64 " bytes, before %" PRId64 "\n", after, before);
        return CLI_OK;
    }
    cJSON *answer = cli_json_object(NULL, NULL);
    cli_json_int(answer, "bytes_before", before);
    cli_json_int(answer, "bytes", after);
    return cli_json_print(stdout, answer);
}

int store_cmd_compact(int argc, char **argv)
{
    request r = { .share = 0.5 };
    store_target target = { .folder = NULL };
    const char *folder = NULL;
    int code = parse(&compact_usage, compact_options, &r, argc, argv, &folder);
    if (code != CLI_GO_ON) return code;
    code = store_open(&target, folder, 1);
    if (code == CLI_OK) code = compact(&target, &r);
    store_close(&target);
    return code;
}
