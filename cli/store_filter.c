/*
 * store_filter.c - a condition in SQL on a document: SQLite evaluates it, one document at a time.
 *
 * The condition stands in SELECT (..) FROM (SELECT ?1 AS id, ..), whose values are bound to the document's; no table is filled, and tag() knows
 * whose tags it is asked for. Invariant: nothing but looking at these values passes the authorizer: no pragma, no file, no table.
 */
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "store.h"

struct store_filter {
    sqlite3 *base;
    sqlite3_stmt *condition;
    const char *tags; /* of the document being looked at */
};

static int may(void *user, int action, const char *a, const char *b, const char *c, const char *d)
{
    (void)user, (void)a, (void)c, (void)d;
    if (action == SQLITE_SELECT || action == SQLITE_READ) return SQLITE_OK;
    return action == SQLITE_FUNCTION && b && sqlite3_stricmp(b, "load_extension") != 0 ? SQLITE_OK : SQLITE_DENY;
}

/* tag('x'): is it one of the document's? */
static void tag(sqlite3_context *call, int count, sqlite3_value **values)
{
    const store_filter *filter = sqlite3_user_data(call);
    const char *wanted = (const char *)sqlite3_value_text(values[0]);
    const size_t length = wanted ? strlen(wanted) : 0;
    int found = 0;
    (void)count;
    for (const char *at = filter->tags; *at && wanted && !found;) {
        const size_t here = strcspn(at, "\n");
        found = here == length && memcmp(at, wanted, length) == 0;
        at += here + (at[here] != '\0');
    }
    sqlite3_result_int(call, found);
}

static int refuse(const store_filter *filter, const char *text)
{
    const char *why = filter->base ? sqlite3_errmsg(filter->base) : "out of memory";
    if (!filter->base || sqlite3_errcode(filter->base) == SQLITE_NOMEM) return cli_fail("--filter: out of memory");
    return cli_refuse("--filter: %s: %s (columns: id, uri, time, time_us, tags, tokens, attributes; function: tag)", text, why);
}

static int prepare(store_filter *filter, const char *text)
{
    static const char before[] = "SELECT (";
    static const char after[] = "\n) FROM (SELECT ?1 AS id, ?2 AS uri, ?3 AS time, ?4 AS time_us, ?5 AS tags, ?6 AS tokens, ?7 AS attributes)";
    const char *rest = NULL;
    const size_t bytes = sizeof before + sizeof after + strlen(text);
    char *sql = malloc(bytes);
    if (!sql) return cli_fail("--filter: out of memory");
    snprintf(sql, bytes, "%s%s%s", before, text, after);
    const int status = sqlite3_prepare_v2(filter->base, sql, -1, &filter->condition, &rest);
    const int more = status == SQLITE_OK && rest && *rest;
    free(sql);
    if (more) return cli_refuse("--filter: %s: more than one statement", text);
    if (status != SQLITE_OK) return refuse(filter, text);
    if (sqlite3_column_count(filter->condition) != 1 || sqlite3_bind_parameter_count(filter->condition) != 7)
        return cli_refuse("--filter: %s: not one condition", text);
    return CLI_OK;
}

int store_filter_new(store_filter **filter, const char *text)
{
    *filter = NULL;
    if (!text) return CLI_OK;
    store_filter *f = calloc(1, sizeof *f);
    if (!f) return cli_fail("--filter: out of memory");
    f->tags = "";
    int code = CLI_OK;
    if (sqlite3_open_v2(":memory:", &f->base, SQLITE_OPEN_READWRITE | SQLITE_OPEN_MEMORY, NULL) != SQLITE_OK ||
        sqlite3_create_function(f->base, "tag", 1, SQLITE_UTF8, f, tag, NULL, NULL) != SQLITE_OK ||
        sqlite3_db_config(f->base, SQLITE_DBCONFIG_DQS_DML, 0, NULL) != SQLITE_OK || /* "tokns" is a mistake, not a text */
        sqlite3_set_authorizer(f->base, may, NULL) != SQLITE_OK)
        code = refuse(f, text);
    if (code == CLI_OK) code = prepare(f, text);
    if (code == CLI_OK)
        *filter = f;
    else
        store_filter_free(f);
    return code;
}

static int bind(store_filter *filter, const kna_document *document)
{
    char time[STORE_TIME_TEXT];
    sqlite3_stmt *s = filter->condition;
    int status = sqlite3_bind_int64(s, 1, document->id);
    store_time(time, document->time_us);
    if (status == SQLITE_OK) status = sqlite3_bind_text(s, 2, document->uri, -1, SQLITE_STATIC);
    if (status == SQLITE_OK) status = sqlite3_bind_text(s, 3, time, -1, SQLITE_TRANSIENT);
    if (status == SQLITE_OK) status = sqlite3_bind_int64(s, 4, document->time_us);
    if (status == SQLITE_OK) status = sqlite3_bind_text(s, 5, document->tags, -1, SQLITE_STATIC);
    if (status == SQLITE_OK) status = sqlite3_bind_int64(s, 6, document->tokens);
    if (status == SQLITE_OK && document->attributes[0]) return sqlite3_bind_text(s, 7, document->attributes, -1, SQLITE_STATIC);
    return status == SQLITE_OK ? sqlite3_bind_null(s, 7) : status;
}

int store_filter_keeps(store_filter *filter, const kna_document *document, int *keeps)
{
    char number[64];
    *keeps = 1;
    if (!filter) return CLI_OK;
    filter->tags = document->tags;
    int status = bind(filter, document);
    if (status == SQLITE_OK) status = sqlite3_step(filter->condition);
    /* True as after WHERE: NULL and 0 are not, '1x' is. */
    *keeps = status == SQLITE_ROW && sqlite3_column_double(filter->condition, 0) != 0;
    if (status == SQLITE_ROW || status == SQLITE_DONE) {
        sqlite3_reset(filter->condition);
        return CLI_OK;
    }
    snprintf(number, sizeof number, "document %lld", (long long)document->id);
    const int code = refuse(filter, number);
    sqlite3_reset(filter->condition);
    return code;
}

void store_filter_free(store_filter *filter)
{
    if (!filter) return;
    sqlite3_finalize(filter->condition);
    sqlite3_close(filter->base);
    free(filter);
}
