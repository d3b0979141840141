/*
 * store_sidecar.c - JSON lines that say which documents the rows of an array are: line i is document i.
 *
 * Invariant: a line is taken whole or refused by its number; what it holds is text that a store may keep.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "store.h"

#define INTEGER_MOST 9007199254740992.0 /* 2^53: JSON's numbers are doubles here */
#define TEXT_MOST    (1 << 26)

/* Where one is, for messages. */
typedef struct place {
    const store_sidecar *sidecar;
    store_line *line;
    const char *const *names;
    int families;
} place;

static int refuse_line(const place *at, const char *format, ...) CLI_PRINTF(2, 3);
static int refuse_line(const place *at, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return cli_refuse("%s: line %" PRId64 ": %s", at->sidecar->path, at->line->number, text);
}

static int no_memory(const place *at)
{
    return cli_fail("%s: line %" PRId64 ": out of memory", at->sidecar->path, at->line->number);
}

/* ------------------------------------------------------------------ text */

/* Bytes of the UTF-8 character at `at`, 0 where there is none: not cut off, not longer than it need be, no surrogate. */
static int character(const unsigned char *at)
{
    if (at[0] < 0x80) return 1;
    const int bytes = at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : 2;
    if (at[0] < 0xc2 || at[0] > 0xf4) return 0;
    for (int i = 1; i < bytes; i++)
        if ((at[i] & 0xc0) != 0x80) return 0;
    if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f)) return 0;
    return (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f) ? 0 : bytes;
}

static int is_utf8(const char *text)
{
    for (const unsigned char *at = (const unsigned char *)text; *at;) {
        const int bytes = character(at);
        if (!bytes) return 0;
        at += bytes;
    }
    return 1;
}

int store_is_text(const char *text)
{
    return is_utf8(text) && !strpbrk(text, "\n\r");
}

/* A text ends at its first NUL; one spelled in JSON would cut it short unnoticed. */
static int spells_nul(const char *json)
{
    for (const char *at = strchr(json, '\\'); at; at = strchr(at + 2, '\\')) {
        if (strncmp(at + 1, "u0000", 5) == 0) return 1;
        if (at[1] == '\0') return 0;
    }
    return 0;
}

/* ------------------------------------------------------------------ values */

static int integer(const place *at, const cJSON *item, double low, double high, int64_t *value)
{
    const double x = cJSON_IsNumber(item) ? item->valuedouble : (double)NAN;
    if (!(x >= low && x <= high) || x != floor(x)) return refuse_line(at, "%s is not an integer in %.0f..%.0f", item->string, low, high);
    *value = (int64_t)x;
    return CLI_OK;
}

static int text(const place *at, const cJSON *item, char **value)
{
    if (cJSON_IsNull(item)) return CLI_OK;
    if (!cJSON_IsString(item)) return refuse_line(at, "%s is not a text", item->string);
    if (!store_is_text(item->valuestring)) return refuse_line(at, "%s: line breaks are not permitted in it", item->string);
    *value = strdup(item->valuestring);
    return *value ? CLI_OK : no_memory(at);
}

static int tags(const place *at, const cJSON *item)
{
    size_t bytes = 1;
    if (!cJSON_IsArray(item)) return refuse_line(at, "tags is not an array of texts");
    for (const cJSON *tag = item->child; tag; tag = tag->next) {
        if (!cJSON_IsString(tag) || tag->valuestring[0] == '\0') return refuse_line(at, "tags: one is empty or no text");
        if (!store_is_text(tag->valuestring)) return refuse_line(at, "tags: line breaks are not permitted in them");
        bytes += strlen(tag->valuestring) + 1;
    }
    char *to = at->line->tags = calloc(bytes, 1);
    if (!to) return no_memory(at);
    for (const cJSON *tag = item->child; tag; tag = tag->next) to += sprintf(to, "%s%s", tag == item->child ? "" : "\n", tag->valuestring);
    return CLI_OK;
}

/* Integers that a double cannot hold would be changed unnoticed. */
static int has_large_integer(const cJSON *item)
{
    for (const cJSON *child = item->child; child; child = child->next)
        if ((cJSON_IsNumber(child) && fabs(child->valuedouble) > INTEGER_MOST) || has_large_integer(child)) return 1;
    return 0;
}

static int attributes(const place *at, const cJSON *item)
{
    if (cJSON_IsNull(item)) return CLI_OK;
    if (!cJSON_IsObject(item)) return refuse_line(at, "attributes is not an object");
    if (has_large_integer(item)) return refuse_line(at, "attributes: a number above 2^53; write it as a text");
    char *printed = cJSON_PrintUnformatted(item);
    at->line->attributes = printed ? strdup(printed) : NULL;
    cJSON_free(printed);
    return at->line->attributes ? CLI_OK : no_memory(at);
}

/* Microseconds since 1970, or a date and a time as `kna store ls` writes them. */
static int when(const place *at, const cJSON *item)
{
    if (!cJSON_IsString(item)) return integer(at, item, -INTEGER_MOST, INTEGER_MOST, &at->line->time_us);
    struct tm parts = { 0 };
    char *end = strptime(item->valuestring, "%Y-%m-%d", &parts);
    if (end && (*end == 'T' || *end == ' ')) end = strptime(end + 1, "%H:%M:%S", &parts);
    if (end && *end == 'Z') end++;
    const int64_t seconds = end && *end == '\0' ? (int64_t)timegm(&parts) : 0;
    char back[STORE_TIME_TEXT]; /* 31 February has become March */
    store_time(back, seconds * 1000000);
    if (!end || *end || strncmp(back, item->valuestring, 10) != 0)
        return refuse_line(at, "time '%s' is neither microseconds since 1970 nor YYYY-MM-DD HH:MM:SS (UTC)", item->valuestring);
    at->line->time_us = seconds * 1000000;
    return CLI_OK;
}

static int hash(const place *at, const cJSON *item)
{
    if (cJSON_IsNull(item)) return CLI_OK;
    const char *hex = cJSON_IsString(item) ? item->valuestring : "";
    if (strlen(hex) != 64 || strspn(hex, "0123456789abcdefABCDEF") != 64) return refuse_line(at, "hash is not of 64 hexadecimal digits");
    for (int i = 0; i < 32; i++) {
        const char two[3] = { hex[2 * i], hex[2 * i + 1], '\0' };
        at->line->hash[i] = (unsigned char)strtoul(two, NULL, 16);
    }
    return CLI_OK;
}

/* A number is of every family; an object has one for each. */
static int rows(const place *at, const cJSON *item)
{
    if (!cJSON_IsObject(item)) {
        const int code = integer(at, item, 0, KNA_MAX_ROWS, &at->line->rows[0]);
        for (int i = 1; i < at->families; i++) at->line->rows[i] = at->line->rows[0];
        return code;
    }
    int code = CLI_OK;
    for (int i = 0; i < at->families; i++) at->line->rows[i] = 0;
    for (const cJSON *one = item->child; one && code == CLI_OK; one = one->next) {
        int i = 0;
        while (i < at->families && strcmp(at->names[i], one->string) != 0) i++;
        if (i == at->families) return refuse_line(at, "rows: the array has no family '%s'", one->string);
        code = integer(at, one, 0, KNA_MAX_ROWS, &at->line->rows[i]);
    }
    return code;
}

/* ------------------------------------------------------------------ lines */

static int take(const place *at, const cJSON *item)
{
    const char *name = item->string;
    if (strcmp(name, "uri") == 0) return text(at, item, &at->line->uri);
    if (strcmp(name, "rows") == 0) return rows(at, item);
    if (strcmp(name, "tags") == 0) return tags(at, item);
    if (strcmp(name, "attributes") == 0) return attributes(at, item);
    if (strcmp(name, "tokens") == 0) return integer(at, item, 0, INTEGER_MOST, &at->line->tokens);
    if (strcmp(name, "time") == 0) return when(at, item);
    if (strcmp(name, "hash") == 0) return hash(at, item);
    return refuse_line(at, "'%s' is none of uri, rows, tags, attributes, tokens, time, hash", name);
}

static int take_all(const place *at, const cJSON *object)
{
    int code = CLI_OK;
    at->line->rows = malloc((size_t)at->families * sizeof *at->line->rows);
    if (!at->line->rows) return no_memory(at);
    for (int i = 0; i < at->families; i++) at->line->rows[i] = 1;
    for (const cJSON *item = object->child; item && code == CLI_OK; item = item->next) {
        for (const cJSON *before = object->child; before != item; before = before->next)
            if (strcmp(before->string, item->string) == 0) return refuse_line(at, "'%s' is there twice", item->string);
        code = take(at, item);
    }
    return code;
}

static int parse(const place *at, const char *json, size_t bytes)
{
    const char *end = NULL;
    if (strlen(json) != bytes || spells_nul(json)) return refuse_line(at, "a NUL in it");
    if (bytes > TEXT_MOST) return refuse_line(at, "%zu bytes; at most %d", bytes, TEXT_MOST);
    if (!is_utf8(json)) return refuse_line(at, "not UTF-8");
    errno = 0;
    cJSON *object = cJSON_ParseWithOpts(json, &end, 1);
    if (!object && errno == ENOMEM) return no_memory(at);
    if (!object) return refuse_line(at, "not JSON from byte %td on", end ? end - json : (ptrdiff_t)0);
    const int code = cJSON_IsObject(object) ? take_all(at, object) : refuse_line(at, "not a JSON object");
    cJSON_Delete(object);
    return code;
}

static int next_line(store_sidecar *sidecar, place *at)
{
    if (sidecar->count == sidecar->room) {
        sidecar->room = sidecar->room ? 2 * sidecar->room : 64;
        store_line *grown = realloc(sidecar->lines, (size_t)sidecar->room * sizeof *grown);
        if (!grown) return cli_fail("%s: out of memory", sidecar->path);
        sidecar->lines = grown;
    }
    at->line = &sidecar->lines[sidecar->count++];
    *at->line = (store_line){ .number = sidecar->count };
    return CLI_OK;
}

int store_sidecar_read(store_sidecar *sidecar, const char *path, const char *const *names, int families)
{
    char *json = NULL;
    size_t room = 0;
    int code = CLI_OK;
    place at = { sidecar, NULL, names, families };
    *sidecar = (store_sidecar){ .path = path };
    FILE *file = fopen(path, "rb");
    if (!file) return cli_fail("%s: cannot read: %s", path, strerror(errno));
    errno = 0;
    for (ssize_t bytes; code == CLI_OK && (bytes = getline(&json, &room, file)) >= 0;) {
        while (bytes > 0 && strchr("\n\r", json[bytes - 1]) && json[bytes - 1]) json[--bytes] = '\0';
        code = next_line(sidecar, &at);
        if (code == CLI_OK) code = parse(&at, json, (size_t)bytes);
    }
    if (code == CLI_OK && !feof(file)) code = cli_fail("%s: cannot read: %s", path, strerror(errno ? errno : EIO));
    free(json);
    fclose(file);
    if (code != CLI_OK) store_sidecar_free(sidecar);
    return code;
}

void store_sidecar_free(store_sidecar *sidecar)
{
    for (int64_t i = 0; i < sidecar->count; i++) {
        store_line *line = &sidecar->lines[i];
        free(line->uri);
        free(line->tags);
        free(line->attributes);
        free(line->rows);
    }
    free(sidecar->lines);
    *sidecar = (store_sidecar){ .path = NULL };
}
