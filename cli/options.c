/*
 * options.c - command line options by table: getopt_long finds them, this file validates the values and prints --help.
 *
 * Invariant: a value is stored only after it has been found to be within the limits of its table row.
 */
#define _GNU_SOURCE
#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HELP_COLUMN 26
#define FIRST_LONG  256 /* getopt's number of the first table row; above every letter */

/* ------------------------------------------------------------------ values */

static int read_integer(const char *text, int64_t *value)
{
    char *end = NULL;
    if (isspace((unsigned char)text[0])) return 0;
    errno = 0;
    const long long number = strtoll(text, &end, 10);
    *value = number;
    return errno == 0 && end != text && *end == '\0';
}

static int refuse_integer(const cli_option *option, const char *text)
{
    return cli_refuse("--%s: '%s' is not an integer in %.0f..%.0f", option->name, text, option->low, option->high);
}

static int set_int(const cli_option *option, const char *text, int64_t *value)
{
    int64_t number = 0;
    if (!read_integer(text, &number)) return refuse_integer(option, text);
    if ((double)number < option->low || (double)number > option->high) return refuse_integer(option, text);
    *value = number;
    return CLI_GO_ON;
}

static int set_real(const cli_option *option, const char *text, double *value)
{
    char *end = NULL;
    const double number = strtod(text, &end);
    const int is_number = end != text && *end == '\0' && !isspace((unsigned char)text[0]) && isfinite(number);
    if (!is_number || number < option->low || number > option->high)
        return cli_refuse("--%s: '%s' is not a number in %g..%g", option->name, text, option->low, option->high);
    *value = number;
    return CLI_GO_ON;
}

static int set_seed(const cli_option *option, const char *text, uint64_t *value)
{
    char *end = NULL;
    errno = 0;
    const unsigned long long number = strtoull(text, &end, strncmp(text, "0x", 2) == 0 ? 16 : 10);
    if (!isdigit((unsigned char)text[0]) || errno != 0 || *end != '\0')
        return cli_refuse("--%s: '%s' is not an integer in 0..%" PRIu64, option->name, text, UINT64_MAX);
    *value = number;
    return CLI_GO_ON;
}

static void join(char *to, size_t size, const char *const *words)
{
    to[0] = '\0';
    for (size_t i = 0, used = 0; words[i] && used + 1 < size; i++)
        used += (size_t)snprintf(to + used, size - used, "%s%s", i ? ", " : "", words[i]);
}

static int set_choice(const cli_option *option, const char *text, int *value)
{
    char all[512];
    for (int i = 0; option->choices[i]; i++) {
        if (strcmp(text, option->choices[i]) != 0) continue;
        *value = i;
        return CLI_GO_ON;
    }
    join(all, sizeof all, option->choices);
    return cli_refuse("--%s: '%s' is none of %s", option->name, text, all);
}

static int set_list(const cli_option *option, const char *text, cli_list *list)
{
    cli_list found = { 0, { 0 } };
    for (const char *at = text;; at++) {
        char item[32];
        const size_t length = strcspn(at, ",");
        if (found.count == CLI_LIST_MAX) return cli_refuse("--%s: '%s' has more than %d numbers", option->name, text, CLI_LIST_MAX);
        snprintf(item, sizeof item, "%.*s", length < sizeof item ? (int)length : (int)sizeof item - 1, at);
        const int code = set_int(option, item, &found.values[found.count++]);
        if (code != CLI_GO_ON) return code;
        at += length;
        if (*at == '\0') break;
    }
    *list = found;
    return CLI_GO_ON;
}

static int set_text(const cli_option *option, const char *text, const char **value)
{
    if (text[0] == '\0') return cli_refuse("--%s: the value is empty", option->name);
    *value = text;
    return CLI_GO_ON;
}

static int set_texts(const cli_option *option, const char *text, cli_texts *texts)
{
    if (texts->count == CLI_TEXTS_MAX) return cli_refuse("--%s: more than %d are given", option->name, CLI_TEXTS_MAX);
    const int code = set_text(option, text, &texts->values[texts->count]);
    texts->count += code == CLI_GO_ON;
    return code;
}

static int set_value(const cli_option *option, void *values, const char *text)
{
    void *value = (char *)values + option->offset;
    switch (option->kind) {
    case CLI_FLAG:
        *(int *)value = 1;
        return CLI_GO_ON;
    case CLI_INT:
        return set_int(option, text, value);
    case CLI_REAL:
        return set_real(option, text, value);
    case CLI_TEXT:
        return set_text(option, text, value);
    case CLI_CHOICE:
        return set_choice(option, text, value);
    case CLI_SEED:
        return set_seed(option, text, value);
    case CLI_LIST:
        return set_list(option, text, value);
    case CLI_TEXTS:
        return set_texts(option, text, value);
    }
    return CLI_REFUSED;
}

/* ------------------------------------------------------------------ help */

static void print_option(const cli_option *option)
{
    char left[96];
    char letter[8] = "";
    if (option->letter) snprintf(letter, sizeof letter, "-%c, ", option->letter);
    snprintf(left, sizeof left, "  %s--%s%s%s", letter, option->name, option->kind == CLI_FLAG ? "" : " ",
             option->kind == CLI_FLAG ? "" : option->argument);
    if (strlen(left) + 2 > HELP_COLUMN)
        printf("%s\n%*s%s\n", left, HELP_COLUMN, "", option->help);
    else
        printf("%-*s%s\n", HELP_COLUMN, left, option->help);
}

static int print_help(const cli_usage *usage, const cli_group *groups)
{
    printf("usage: kna %s %s\n", usage->name, usage->synopsis);
    if (usage->text) printf("\n%s", usage->text);
    for (const cli_group *group = groups; group->options; group++) {
        if (group->title) printf("\n%s:\n", group->title);
        for (const cli_option *option = group->options; option->name; option++) print_option(option);
    }
    printf("\n%-*s%s\n", HELP_COLUMN, "  -h, --help", "this text");
    return CLI_OK;
}

/* ------------------------------------------------------------------ getopt */

/* All rows of all groups, flat, as getopt wants them. */
typedef struct table {
    int count;
    const cli_option **options;
    void **values;
    struct option *longs;
    char *letters;
} table;

static void table_free(table *t)
{
    free(t->options);
    free(t->values);
    free(t->longs);
    free(t->letters);
}

static void table_add(table *t, const cli_option *option, void *values, size_t *letters)
{
    const int has_value = option->kind != CLI_FLAG;
    t->options[t->count] = option;
    t->values[t->count] = values;
    t->longs[t->count] = (struct option){ option->name, has_value ? required_argument : no_argument, NULL, FIRST_LONG + t->count };
    t->count++;
    if (!option->letter) return;
    t->letters[(*letters)++] = option->letter;
    if (has_value) t->letters[(*letters)++] = ':';
}

static int table_new(table *t, const cli_group *groups)
{
    size_t rows = 0;
    size_t letters = 0;
    for (const cli_group *group = groups; group->options; group++)
        for (const cli_option *option = group->options; option->name; option++) rows++;
    t->options = calloc(rows + 1, sizeof *t->options);
    t->values = calloc(rows + 1, sizeof *t->values);
    t->longs = calloc(rows + 2, sizeof *t->longs);
    t->letters = calloc(2 * rows + 3, 1);
    if (!t->options || !t->values || !t->longs || !t->letters) return cli_fail("out of memory");
    t->letters[letters++] = ':'; /* makes getopt tell a missing value from an unknown option */
    t->letters[letters++] = 'h';
    for (const cli_group *group = groups; group->options; group++)
        for (const cli_option *option = group->options; option->name; option++) table_add(t, option, group->values, &letters);
    t->longs[t->count] = (struct option){ "help", no_argument, NULL, 'h' };
    return CLI_GO_ON;
}

/* The row of getopt's number, or -1. */
static int table_find(const table *t, int number)
{
    if (number >= FIRST_LONG && number < FIRST_LONG + t->count) return number - FIRST_LONG;
    for (int i = 0; i < t->count; i++)
        if (t->options[i]->letter && t->options[i]->letter == number) return i;
    return -1;
}

static int refuse_option(const cli_usage *usage, const table *t, char **argv, int why)
{
    const int row = table_find(t, optopt);
    if (row >= 0 && why == ':')
        return cli_refuse("--%s: a value is missing (%s)", t->options[row]->name, t->options[row]->argument);
    if (row >= 0 || optopt == 'h') return cli_refuse("--%s: takes no value", row >= 0 ? t->options[row]->name : "help");
    if (optopt) return cli_refuse("unknown option '-%c', see 'kna %s --help'", optopt, usage->name);
    return cli_refuse("unknown or ambiguous option '%s', see 'kna %s --help'", argv[optind - 1], usage->name);
}

static int parse(const cli_usage *usage, const cli_group *groups, const table *t, int argc, char **argv)
{
    optind = 0; /* glibc: start afresh */
    opterr = 0;
    for (;;) {
        const int found = getopt_long(argc, argv, t->letters, t->longs, NULL);
        if (found == -1) return CLI_GO_ON;
        if (found == '?' || found == ':') return refuse_option(usage, t, argv, found);
        const int row = table_find(t, found);
        if (row < 0) return print_help(usage, groups);
        const int code = set_value(t->options[row], t->values[row], optarg);
        if (code != CLI_GO_ON) return code;
    }
}

int cli_parse(const cli_usage *usage, const cli_group *groups, int argc, char **argv, int *rest)
{
    table t = { 0, NULL, NULL, NULL, NULL };
    int code = table_new(&t, groups);
    if (code == CLI_GO_ON) code = parse(usage, groups, &t, argc, argv);
    table_free(&t);
    if (code != CLI_GO_ON) return code;
    if (rest)
        *rest = optind;
    else if (optind < argc)
        return cli_refuse("unexpected '%s', see 'kna %s --help'", argv[optind], usage->name);
    return CLI_GO_ON;
}

int cli_require(const cli_usage *usage, const char *name, const char *value)
{
    return value ? CLI_GO_ON : cli_refuse("option --%s is missing, see 'kna %s --help'", name, usage->name);
}
