/*
 * store.h - what the words of `kna store` share: an open store whose errors name it, documents as text and JSON, and which ones are meant.
 */
#ifndef KNA_CLI_STORE_H
#define KNA_CLI_STORE_H

#include "cli.h"

/* ------------------------------------------------------------------ stores */

typedef struct store_target {
    const char *folder;
    kna_context *context;
    kna_store *store;
} store_target;

/* store_open() - CLI_OK or an exit code, having printed why; then nothing is held. Give back with store_close(); zeros are fine. */
int store_open(store_target *target, const char *folder, int write);
void store_close(store_target *target);

/* store_status() - as cli_status(), the message beginning with the folder. What is wrong with the files is CLI_FAILED. */
int store_status(const store_target *target, int status);

/* store_operands() - the folder, first of `least` to `most` operands at argv[rest]. CLI_GO_ON or CLI_REFUSED. `words`: what they are called. */
int store_operands(const cli_usage *usage, int argc, char **argv, int rest, int least, int most, const char *words);

/* store_type_name() - "f32", "f16", "bf16", "int8", "q8_0", "bytes". */
const char *store_type_name(int type);

/* store_family() - the number of the family; name NULL: of the only one. CLI_OK or CLI_REFUSED. */
int store_family(const store_target *target, const char *name, int *family);

/* ------------------------------------------------------------------ documents */

/* store_find() - a document by its number, if the word is digits alone, else by its uri. */
int store_find(const store_target *target, const char *word, kna_document *document);

/* store_time() - "2026-01-31 12:00:00" (UTC). */
#define STORE_TIME_TEXT 40
const char *store_time(char text[STORE_TIME_TEXT], int64_t time_us);

/* store_document_json() - uri, tags (an array), attributes (as they are; null: none), tokens, and the hash if there is one. */
void store_document_json(cJSON *object, const kna_document *document);

/* store_is_text() - is it UTF-8, without characters that end a line? */
int store_is_text(const char *text);

/* A line of a sidecar, as a document; texts are owned. rows[i]: of source i. */
typedef struct store_line {
    int64_t number; /* of the line, from 1 on; 0: there is no sidecar */
    char *uri, *tags, *attributes;
    unsigned char hash[32];
    int64_t time_us, tokens;
    int64_t *rows;
} store_line;

typedef struct store_sidecar {
    const char *path;
    store_line *lines;
    int64_t count, room;
} store_sidecar;

/* store_sidecar_read() - every line is checked. names: of the families that rows are dealt out of, `families` of them. */
int store_sidecar_read(store_sidecar *sidecar, const char *path, const char *const *names, int families);
void store_sidecar_free(store_sidecar *sidecar);

/* ------------------------------------------------------------------ which documents */

/* A condition in SQL on one document at a time. */
typedef struct store_filter store_filter;
int store_filter_new(store_filter **filter, const char *text); /* CLI_OK or an exit code; text NULL: no filter, which keeps all */
int store_filter_keeps(store_filter *filter, const kna_document *document, int *keeps);
void store_filter_free(store_filter *filter);

/* What is asked for; NULL and 0: no condition. */
typedef struct store_choice {
    const char *filter, *tag, *uri_prefix;
    int64_t limit;
} store_choice;

/* store_choose() - the numbers of the documents meant, ascending; owned by the caller. */
int store_choose(const store_target *target, const store_choice *choice, int64_t **ids, int64_t *count);

/* ------------------------------------------------------------------ rows out */

/* store_npy_type() - what rows of a type are in a .npy: themselves (f32, f16, bytes), else KNA_F32. */
int store_npy_type(int type);

/* store_rows_write() - rows as numbers of that type, without a header. Errors of the stream stay in it. CLI_OK or CLI_FAILED (memory). */
int store_rows_write(FILE *to, const kna_rows *rows);

/* ------------------------------------------------------------------ the words */

int store_cmd_create(int argc, char **argv);
int store_cmd_add(int argc, char **argv);
int store_cmd_ls(int argc, char **argv);
int store_cmd_rm(int argc, char **argv);
int store_cmd_get(int argc, char **argv);
int store_cmd_stat(int argc, char **argv);
int store_cmd_verify(int argc, char **argv);
int store_cmd_repair(int argc, char **argv);
int store_cmd_compact(int argc, char **argv);
int store_cmd_export(int argc, char **argv);
int store_cmd_import(int argc, char **argv);
int store_cmd_bench(int argc, char **argv);
int store_cmd_search(int argc, char **argv);
int store_cmd_index(int argc, char **argv);
int store_cmd_recall(int argc, char **argv);

#endif /* KNA_CLI_STORE_H */
