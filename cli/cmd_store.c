/*
 * cmd_store.c - `kna store WORD`: which word, and what the words share.
 *
 * Invariant: a message about a store begins with its folder.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "convert.h"
#include "store.h"

/* ------------------------------------------------------------------ stores */

int store_status(const store_target *target, int status)
{
    const char *message = target->context ? kna_context_message(target->context) : "";
    if (message[0] == '\0') message = kna_status_text(status);
    const int failed = status == KNA_ENOMEM || status == KNA_EIO || status == KNA_EBUSY || status == KNA_EDAMAGED;
    int (*say)(const char *, ...) CLI_PRINTF(1, 2) = failed ? cli_fail : cli_refuse;
    if (strncmp(message, "store: ", 7) == 0) message += 7; /* the folder says which */
    if (strncmp(message, target->folder, strlen(target->folder)) == 0) return say("%s", message);
    return say("%s: %s", target->folder, message);
}

int store_open(store_target *target, const char *folder, int write)
{
    kna_store_options options = KNA_STORE_OPTIONS;
    const cli_machine machine = CLI_MACHINE;
    *target = (store_target){ .folder = folder };
    options.write = write;
    int code = cli_context(&target->context, &machine);
    if (code != CLI_OK) return code;
    const int status = kna_store_open(target->context, &target->store, folder, &options);
    if (status == KNA_OK) return CLI_OK;
    code = store_status(target, status);
    store_close(target);
    return status == KNA_ENONE ? CLI_FAILED : code; /* a folder that is not there cannot be read */
}

void store_close(store_target *target)
{
    kna_store_close(target->store);
    kna_context_free(target->context);
    target->store = NULL;
    target->context = NULL;
}

int store_operands(const cli_usage *usage, int argc, char **argv, int rest, int least, int most, const char *words)
{
    if (argc - rest < least) return cli_refuse("%s: %s must be given, see 'kna %s --help'", usage->name, words, usage->name);
    if (argc - rest > most) return cli_refuse("unexpected '%s', see 'kna %s --help'", argv[rest + most], usage->name);
    for (int i = rest; i < argc; i++)
        if (argv[i][0] == '\0') return cli_refuse("%s: an operand is empty; %s must be given", usage->name, words);
    return CLI_GO_ON;
}

const char *store_type_name(int type)
{
    const char *name = kna_type_name(type);
    return type == KNA_I8 ? "int8" : type == KNA_BYTES ? "bytes" : name ? name : "unknown";
}

int store_family(const store_target *target, const char *name, int *family)
{
    kna_store_info info = { .size = sizeof info };
    int status = kna_store_info_get(target->store, &info);
    if (status != KNA_OK) return store_status(target, status);
    *family = name ? kna_store_family_named(target->store, name) : 0;
    if (*family < 0) return cli_refuse("--family: %s has no family '%s', see 'kna store stat'", target->folder, name);
    if (!name && info.families != 1)
        return cli_refuse("option --family is missing: %s has %" PRId64 ", see 'kna store stat'", target->folder, info.families);
    return CLI_OK;
}

/* ------------------------------------------------------------------ documents */

int store_find(const store_target *target, const char *word, kna_document *document)
{
    int status;
    if (word[strspn(word, "0123456789")] == '\0') {
        errno = 0;
        const long long id = strtoll(word, NULL, 10);
        if (errno) return cli_refuse("%s: there is no document %s", target->folder, word);
        status = kna_store_document(target->store, id, document);
    } else {
        status = kna_store_find(target->store, word, document);
    }
    return status == KNA_OK ? CLI_OK : store_status(target, status);
}

const char *store_time(char text[STORE_TIME_TEXT], int64_t time_us)
{
    const time_t seconds = (time_t)(time_us / 1000000 - (time_us % 1000000 < 0));
    struct tm parts;
    if (!gmtime_r(&seconds, &parts) || strftime(text, STORE_TIME_TEXT, "%Y-%m-%d %H:%M:%S", &parts) == 0) text[0] = '\0';
    return text;
}

static void tags_json(cJSON *object, const char *tags)
{
    cJSON *array = cli_json_array(object, "tags");
    for (const char *at = tags; *at;) {
        const size_t length = strcspn(at, "\n");
        char *tag = strndup(at, length);
        cli_json_text(tag ? array : NULL, NULL, tag); /* without memory: noticed when it is printed */
        free(tag);
        at += length + (at[length] != '\0');
    }
}

/* A library's user may keep what is no JSON; it is shown as a text then. */
static void attributes_json(cJSON *object, const char *attributes)
{
    errno = 0;
    cJSON *parsed = attributes[0] ? cJSON_ParseWithOpts(attributes, NULL, 1) : NULL;
    cJSON_Delete(parsed);
    if (!parsed && errno == ENOMEM)
        cli_json_text(NULL, NULL, NULL); /* noticed when it is printed */
    else if (parsed && !strchr(attributes, '\n'))
        cli_json_raw(object, "attributes", attributes);
    else
        cli_json_text(object, "attributes", attributes[0] ? attributes : NULL);
}

void store_document_json(cJSON *object, const kna_document *document)
{
    static const unsigned char zeros[32];
    char hash[65];
    cli_json_text(object, "uri", document->uri[0] ? document->uri : NULL);
    tags_json(object, document->tags);
    attributes_json(object, document->attributes);
    cli_json_int(object, "tokens", document->tokens);
    for (int i = 0; i < 32; i++) snprintf(hash + 2 * i, 3, "%02x", document->hash[i]);
    cli_json_text(object, "hash", memcmp(document->hash, zeros, sizeof zeros) ? hash : NULL);
}

/* ------------------------------------------------------------------ which documents */

static int has_tag(const char *tags, const char *tag)
{
    const size_t length = strlen(tag);
    for (const char *at = tags; *at;) {
        const size_t here = strcspn(at, "\n");
        if (here == length && memcmp(at, tag, length) == 0) return 1;
        at += here + (at[here] != '\0');
    }
    return 0;
}

static int is_chosen(const store_choice *choice, store_filter *filter, const kna_document *document, int *chosen)
{
    *chosen = 0;
    if (choice->tag && !has_tag(document->tags, choice->tag)) return CLI_OK;
    if (choice->uri_prefix && strncmp(document->uri, choice->uri_prefix, strlen(choice->uri_prefix)) != 0) return CLI_OK;
    return store_filter_keeps(filter, document, chosen);
}

static int keep(int64_t **ids, int64_t *count, int64_t *room, int64_t id)
{
    if (*count == *room) {
        *room = *room ? 2 * *room : 256;
        int64_t *grown = realloc(*ids, (size_t)*room * sizeof **ids);
        if (!grown) return cli_fail("out of memory");
        *ids = grown;
    }
    (*ids)[(*count)++] = id;
    return CLI_OK;
}

int store_choose(const store_target *target, const store_choice *choice, int64_t **ids, int64_t *count)
{
    store_filter *filter = NULL;
    kna_document document = { .id = 0 };
    int64_t room = 0;
    *ids = NULL;
    *count = 0;
    int status = KNA_OK;
    int code = store_filter_new(&filter, choice->filter);
    while (code == CLI_OK && (choice->limit == 0 || *count < choice->limit)) {
        int chosen = 0;
        status = kna_store_next(target->store, document.id, &document);
        if (status != KNA_OK) break;
        code = is_chosen(choice, filter, &document, &chosen);
        if (code == CLI_OK && chosen) code = keep(ids, count, &room, document.id);
    }
    if (status != KNA_OK && status != KNA_ENONE) code = store_status(target, status);
    store_filter_free(filter);
    if (code == CLI_OK) return CLI_OK;
    free(*ids);
    *ids = NULL;
    return code;
}

/* ------------------------------------------------------------------ rows out */

int store_npy_type(int type)
{
    return type == KNA_F16 || type == KNA_BYTES ? type : KNA_F32;
}

int store_rows_write(FILE *to, const kna_rows *rows)
{
    if (rows->type == KNA_F32 || rows->type == KNA_F16 || rows->type == KNA_BYTES) {
        const size_t number = rows->type == KNA_F32 ? 4 : rows->type == KNA_F16 ? 2 : 1;
        if (rows->rows) fwrite(rows->data, number, (size_t)(rows->rows * rows->dim), to);
        return CLI_OK;
    }
    float *x = malloc((size_t)rows->dim * sizeof *x);
    if (!x) return cli_fail("out of memory");
    for (int64_t row = 0; row < rows->rows; row++) {
        convert_load(x, rows, row);
        fwrite(x, sizeof *x, (size_t)rows->dim, to);
    }
    free(x);
    return CLI_OK;
}

/* ------------------------------------------------------------------ which word */

static const cli_command words[] = {
    { "create", "a new store in a folder of its own", store_cmd_create },
    { "add", "rows of a .npy or .npz, as one document or, with a sidecar, as many", store_cmd_add },
    { "ls", "which documents there are", store_cmd_ls },
    { "rm", "remove documents", store_cmd_rm },
    { "get", "a document's rows, as .npy", store_cmd_get },
    { "stat", "what a store holds", store_cmd_stat },
    { "verify", "is everything as it was written?", store_cmd_verify },
    { "repair", "keep what is sound of a damaged store", store_cmd_repair },
    { "compact", "give back the space of removed documents", store_cmd_compact },
    { "export", "rows and sidecar of many documents, or .safetensors", store_cmd_export },
    { "import", "the documents of another store", store_cmd_import },
    { "bench", "how fast its rows are searched, and what share of the nearest is found", store_cmd_bench },
    { "search", "the rows nearest to queries", store_cmd_search },
    { "index", "make searching a family's rows faster", store_cmd_index },
    { "recall", "how much of what is nearest does an index find?", store_cmd_recall },
    { NULL, NULL, NULL },
};

static int print_help(void)
{
    printf("usage: kna store WORD DIR [options]\n\nWords:\n");
    for (const cli_command *word = words; word->name; word++) printf("  %-10s%s\n", word->name, word->summary);
    printf("\n'kna store WORD --help' lists the options.\n");
    return CLI_OK;
}

int kna_cmd_store(int argc, char **argv)
{
    if (argc < 2) return cli_refuse("store: create, add, ls, search or another word must follow, see 'kna store --help'");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return print_help();
    for (const cli_command *word = words; word->name; word++)
        if (strcmp(argv[1], word->name) == 0) return word->run(argc - 1, argv + 1);
    return cli_refuse("store: '%s' is no word of it, see 'kna store --help'", argv[1]);
}
