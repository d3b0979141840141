/*
 * settings.c - the table of settings, read from variables KNNATTN_NAME or from "name=value,..." (what they mean: knnattn.h).
 *
 * Invariant: one table serves both ways in, so that a setting cannot be known to one and unknown to the other by accident.
 */
#define _GNU_SOURCE
#include "settings.h"

#include "kna.h"
#include "knnattn.h"

#include <ctype.h>
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PREFIX     "KNNATTN_"
#define NAME_BYTES 32
#define INDEX_KIB_MOST (INT64_C(1) << 40)

enum { IN_ENVIRONMENT = 1, IN_TEXT = 2, IN_BOTH = 3 };

struct setting {
    const char *name;
    bool (*parse)(struct knnattn_settings *settings, const char *value);
    void (*permit)(char *text, size_t bytes);
    int places;
};

static const char *const method_names[] = { "off", "exact", "topk", "knn" };

const char *knnattn_method_text(enum knnattn_method method)
{
    return method_names[method];
}

/* ---- values */

static bool parse_whole(const char *value, int64_t low, int64_t high, int64_t *number)
{
    char *end = NULL;

    errno = 0;
    long long parsed = strtoll(value, &end, 10);
    if (end == value || *end != '\0' || errno != 0 || parsed < low || parsed > high) {
        return false;
    }
    *number = parsed;
    return true;
}

/* The program may have chosen a locale with a decimal comma; settings are written with a point. */
static bool parse_share(const char *value, float *share)
{
    char *end = NULL;
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);

    if (plain == (locale_t)0) {
        return false;
    }
    double parsed = strtod_l(value, &end, plain);
    freelocale(plain);
    if (end == value || *end != '\0' || !(parsed >= 0.0 && parsed <= 1.0)) {
        return false;
    }
    *share = (float)parsed;
    return true;
}

static bool parse_int(const char *value, int high, int *number)
{
    int64_t parsed = 0;

    if (!parse_whole(value, 0, high, &parsed)) {
        return false;
    }
    *number = (int)parsed;
    return true;
}

static bool parse_method(struct knnattn_settings *settings, const char *value)
{
    for (size_t i = 0; i < sizeof(method_names) / sizeof(method_names[0]); i++) {
        if (strcmp(value, method_names[i]) == 0) {
            settings->method = (enum knnattn_method)i;
            return true;
        }
    }
    return false;
}

static bool parse_cpu(struct knnattn_settings *settings, const char *value)
{
    for (int cpu = 0; cpu < KNA_CPU_COUNT; cpu++) {
        if (kna_cpu_is_present(cpu) && strcmp(value, kna_cpu_name(cpu)) == 0) {
            settings->cpu = cpu;
            return true;
        }
    }
    return false;
}

/* A file that cannot be written is found now and not after hours of work. The temporary name is the one the report uses. */
static bool parse_report(struct knnattn_settings *settings, const char *value)
{
    char path[KNNATTN_PATH_BYTES + NAME_BYTES];

    if (value[0] == '\0' || strlen(value) >= sizeof(settings->report)) {
        return false;
    }
    snprintf(path, sizeof(path), "%s.%ld.tmp", value, (long)getpid());
    FILE *file = fopen(path, "w");
    if (file == NULL) {
        return false;
    }
    fclose(file);
    unlink(path);
    snprintf(settings->report, sizeof(settings->report), "%s", value);
    return true;
}

static bool parse_k(struct knnattn_settings *settings, const char *value)
{
    return parse_whole(value, 1, KNA_MAX_ROWS, &settings->k);
}

/* An error of 1, or all rows above it: that asks for nothing. */
static bool parse_part(const char *value, float *part)
{
    return parse_share(value, part) && *part < 1.0f;
}

static bool parse_eps(struct knnattn_settings *settings, const char *value)
{
    return parse_part(value, &settings->eps);
}

static bool parse_delta(struct knnattn_settings *settings, const char *value)
{
    return parse_part(value, &settings->delta);
}

static bool parse_sinks(struct knnattn_settings *settings, const char *value)
{
    return parse_whole(value, 0, KNA_MAX_ROWS, &settings->sinks);
}

static bool parse_window(struct knnattn_settings *settings, const char *value)
{
    return parse_whole(value, 0, KNA_MAX_ROWS, &settings->window);
}

static bool parse_exact_below(struct knnattn_settings *settings, const char *value)
{
    return parse_whole(value, 0, KNA_MAX_ROWS, &settings->exact_below);
}

static bool parse_full_every(struct knnattn_settings *settings, const char *value)
{
    return parse_whole(value, 1, KNA_MAX_ROWS, &settings->full_every);
}

static bool parse_index_kib(struct knnattn_settings *settings, const char *value)
{
    return parse_whole(value, 0, INDEX_KIB_MOST, &settings->index_kib);
}

static bool parse_audit(struct knnattn_settings *settings, const char *value)
{
    return parse_share(value, &settings->audit);
}

static bool parse_threads(struct knnattn_settings *settings, const char *value)
{
    return parse_int(value, KNA_MAX_THREADS, &settings->threads);
}

static bool parse_slot(struct knnattn_settings *settings, const char *value)
{
    return parse_int(value, KNNATTN_SLOTS - 1, &settings->slot);
}

static bool parse_summary(struct knnattn_settings *settings, const char *value)
{
    return parse_int(value, 1, &settings->summary);
}

/* ---- what is permitted, in words */

static void append(char *text, size_t bytes, const char *separator, const char *word)
{
    size_t length = strlen(text);

    snprintf(text + length, bytes - length, "%s%s", length > 0 ? separator : "", word);
}

static void permit_method(char *text, size_t bytes)
{
    for (size_t i = 0; i < sizeof(method_names) / sizeof(method_names[0]); i++) {
        append(text, bytes, ", ", method_names[i]);
    }
}

static void permit_cpu(char *text, size_t bytes)
{
    for (int cpu = 0; cpu < KNA_CPU_COUNT; cpu++) {
        if (kna_cpu_is_present(cpu)) {
            append(text, bytes, ", ", kna_cpu_name(cpu));
        }
    }
    append(text, bytes, "", " (what this machine and this build have)");
}

static void permit_k(char *text, size_t bytes)
{
    snprintf(text, bytes, "a whole number from 1 to %d", KNA_MAX_ROWS);
}

static void permit_rows(char *text, size_t bytes)
{
    snprintf(text, bytes, "a whole number from 0 to %d", KNA_MAX_ROWS);
}

static void permit_kib(char *text, size_t bytes)
{
    snprintf(text, bytes, "a whole number from 0 (no limit) to %lld", (long long)INDEX_KIB_MOST);
}

static void permit_threads(char *text, size_t bytes)
{
    snprintf(text, bytes, "a whole number from 0 (as many as the program uses) to %d", KNA_MAX_THREADS);
}

static void permit_slot(char *text, size_t bytes)
{
    snprintf(text, bytes, "a whole number from 0 to %d", KNNATTN_SLOTS - 1);
}

static void permit_share(char *text, size_t bytes)
{
    snprintf(text, bytes, "a number from 0 to 1");
}

static void permit_part(char *text, size_t bytes)
{
    snprintf(text, bytes, "a number from 0 to below 1");
}

static void permit_flag(char *text, size_t bytes)
{
    snprintf(text, bytes, "0 or 1");
}

static void permit_report(char *text, size_t bytes)
{
    snprintf(text, bytes, "a file that can be written");
}

static const struct setting settings_table[] = {
    { "method", parse_method, permit_method, IN_BOTH },
    { "k", parse_k, permit_k, IN_BOTH },
    { "eps", parse_eps, permit_part, IN_BOTH },
    { "delta", parse_delta, permit_part, IN_BOTH },
    { "sinks", parse_sinks, permit_rows, IN_BOTH },
    { "window", parse_window, permit_rows, IN_BOTH },
    { "exact_below", parse_exact_below, permit_rows, IN_BOTH },
    { "full_every", parse_full_every, permit_k, IN_BOTH },
    { "index_kib", parse_index_kib, permit_kib, IN_BOTH },
    { "audit", parse_audit, permit_share, IN_BOTH },
    { "cpu", parse_cpu, permit_cpu, IN_BOTH },
    { "threads", parse_threads, permit_threads, IN_BOTH },
    { "report", parse_report, permit_report, IN_ENVIRONMENT },
    { "summary", parse_summary, permit_flag, IN_ENVIRONMENT },
    { "slot", parse_slot, permit_slot, IN_TEXT },
};
#define SETTINGS (sizeof(settings_table) / sizeof(settings_table[0]))

/* ---- ways in */

/* The name as the user writes it there: KNNATTN_K in the environment, k in a text. */
static void shown_name(char shown[NAME_BYTES], const char *name, int place)
{
    snprintf(shown, NAME_BYTES, "%s%s", place == IN_ENVIRONMENT ? PREFIX : "", name);
    for (char *c = shown; place == IN_ENVIRONMENT && *c != '\0'; c++) {
        *c = (char)toupper((unsigned char)*c);
    }
}

static bool refuse_name(const char *name, int place, char message[KNNATTN_MESSAGE_BYTES])
{
    char known[KNNATTN_MESSAGE_BYTES] = "";

    for (size_t i = 0; i < SETTINGS; i++) {
        char shown[NAME_BYTES];
        if (settings_table[i].places & place) {
            shown_name(shown, settings_table[i].name, place);
            append(known, sizeof(known), ", ", shown);
        }
    }
    snprintf(message, KNNATTN_MESSAGE_BYTES, "%.64s: no such setting; there are %.400s", name, known);
    return false;
}

static bool apply(struct knnattn_settings *settings, const char *name, const char *value, int place,
                  char message[KNNATTN_MESSAGE_BYTES])
{
    for (size_t i = 0; i < SETTINGS; i++) {
        const struct setting *setting = &settings_table[i];
        char shown[NAME_BYTES];
        shown_name(shown, setting->name, place);
        if (!(setting->places & place) || strcmp(shown, name) != 0) {
            continue;
        }
        if (setting->parse(settings, value)) {
            return true;
        }
        char permitted[256] = "";
        setting->permit(permitted, sizeof(permitted));
        snprintf(message, KNNATTN_MESSAGE_BYTES, "%s=%.200s: must be %s%s", name, value, strchr(permitted, ',') ? "one of " : "",
                 permitted);
        return false;
    }
    return refuse_name(name, place, message);
}

static bool fits_together(const struct knnattn_settings *settings, char message[KNNATTN_MESSAGE_BYTES])
{
    if (settings->delta > 0.0f && !(settings->eps > 0.0f)) {
        snprintf(message, KNNATTN_MESSAGE_BYTES, "delta=%g: the share of rows above eps, and eps is 0", (double)settings->delta);
        return false;
    }
    return true;
}

bool knnattn_settings_from_environment(struct knnattn_settings *settings, char message[KNNATTN_MESSAGE_BYTES])
{
    *settings = (struct knnattn_settings){ .method = KNNATTN_KNN, .k = 384, .sinks = 4, .window = 64, .exact_below = 1024 };
    for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
        const char *equals = strchr(*entry, '=');
        char name[4 * NAME_BYTES];
        if (strncmp(*entry, PREFIX, strlen(PREFIX)) != 0 || equals == NULL) {
            continue;
        }
        snprintf(name, sizeof(name), "%.*s", (int)(equals - *entry), *entry);
        if (!apply(settings, name, equals + 1, IN_ENVIRONMENT, message)) {
            return false;
        }
    }
    return fits_together(settings, message);
}

/* Copies the text up to the next `stop` and returns what follows it, NULL at the end or when it does not fit. */
static const char *cut(char *word, size_t bytes, const char *text, char stop)
{
    const char *end = strchr(text, stop);
    size_t length = end != NULL ? (size_t)(end - text) : strlen(text);

    if (length >= bytes) {
        length = bytes - 1;
        end = NULL;
    }
    memcpy(word, text, length);
    word[length] = '\0';
    return end != NULL ? end + 1 : NULL;
}

bool knnattn_settings_from_text(struct knnattn_settings *settings, const char *text, char message[KNNATTN_MESSAGE_BYTES])
{
    struct knnattn_settings changed = *settings;

    for (const char *rest = text; rest != NULL && *rest != '\0';) {
        char item[256];
        char name[4 * NAME_BYTES];
        rest = cut(item, sizeof(item), rest, ',');
        const char *value = cut(name, sizeof(name), item, '=');
        if (value == NULL) {
            snprintf(message, KNNATTN_MESSAGE_BYTES, "%.64s: name=value is expected", item);
            return false;
        }
        if (!apply(&changed, name, value, IN_TEXT, message)) {
            return false;
        }
    }
    if (!fits_together(&changed, message)) {
        return false;
    }
    *settings = changed;
    return true;
}
