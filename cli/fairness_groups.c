/*
 * fairness_groups.c - keys in groups: by document, by position, by how frequent their token is, or by labels on a file.
 */
#include "fairness.h"
#include "npy.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const fair_by_names[] = { "document", "position", "frequency", NULL };

void fair_name(char *to, size_t size, const char *name)
{
    size_t length = strlen(name);
    if (length >= size)
        for (length = size - 1; length > 0 && ((unsigned char)name[length] & 0xc0) == 0x80; length--) continue;
    memcpy(to, name, length);
    to[length] = '\0';
}

static void by_document(fair_groups *g, const fair_set *set)
{
    for (int64_t i = 0; i < g->n; i++) {
        g->of[i] = set->documents[i];
        fair_name(g->names[g->of[i]], FAIR_NAME, set->names[g->of[i]]);
    }
}

static void by_position(fair_groups *g, int64_t buckets)
{
    for (int64_t i = 0; i < g->n; i++) g->of[i] = (int32_t)(i * buckets / g->n);
    for (int64_t i = 0, first = 0; i < g->n; i++) {
        if (i + 1 < g->n && g->of[i + 1] == g->of[i]) continue;
        snprintf(g->names[g->of[i]], FAIR_NAME, "%" PRId64 "-%" PRId64, first, i);
        first = i + 1;
    }
}

/* ------------------------------------------------------------------ by frequency */

typedef struct place {
    int32_t token;
    int64_t at, count;
} place;

static int by_token(const void *a, const void *b)
{
    const int32_t x = ((const place *)a)->token, y = ((const place *)b)->token;
    return (x > y) - (x < y);
}

static int by_count(const void *a, const void *b)
{
    const int64_t x = ((const place *)a)->count, y = ((const place *)b)->count;
    return (x < y) - (x > y);
}

/* Thirds of the text, the most frequent tokens first. Tokens that come equally often stay together, where the middle of them falls. */
static int by_frequency(fair_groups *g, const fair_set *set)
{
    static const char *const names[] = { "frequent", "middle", "rare" };
    place *places = calloc((size_t)g->n + 1, sizeof *places);
    if (!places) return cli_fail("out of memory: %" PRId64 " tokens", g->n);
    for (int64_t i = 0; i < g->n; i++) places[i] = (place){ set->tokens[i], i, 0 };
    qsort(places, (size_t)g->n, sizeof *places, by_token);
    for (int64_t first = 0, next = 0; first < g->n; first = next) {
        while (next < g->n && places[next].token == places[first].token) next++;
        for (int64_t i = first; i < next; i++) places[i].count = next - first;
    }
    qsort(places, (size_t)g->n, sizeof *places, by_count);
    for (int64_t first = 0, next = 0; first < g->n; first = next) {
        while (next < g->n && places[next].count == places[first].count) next++;
        for (int64_t i = first; i < next; i++) g->of[places[i].at] = (int32_t)(3 * (first + next - 1) / (2 * g->n));
    }
    for (int i = 0; i < 3; i++) snprintf(g->names[i], FAIR_NAME, "%s", names[i]);
    free(places);
    return CLI_OK;
}

/* ------------------------------------------------------------------ by labels */

static int by_labels(fair_groups *g, const char *path)
{
    static const npy_want want = { 1, 1, 0, "(n,)" };
    npy_array array = { .data = NULL };
    int code = npy_read(&array, path, &want);
    if (code == CLI_OK && array.shape[0] != g->n)
        code = cli_refuse("%s: %" PRId64 " labels for %" PRId64 " keys", path, array.shape[0], g->n);
    for (int64_t i = 0; i < g->n && code == CLI_OK; i++) {
        const float label = ((const float *)array.data)[i];
        if (!(label >= 0 && label < FAIR_GROUPS) || label != floorf(label))
            code = cli_refuse("%s: %g at position %" PRId64 " is none of 0, 1, .. %d", path, (double)label, i, FAIR_GROUPS - 1);
        else
            g->of[i] = (int32_t)label;
    }
    for (int i = 0; i < FAIR_GROUPS; i++) snprintf(g->names[i], FAIR_NAME, "%d", i);
    npy_free(&array);
    return code;
}

/* ------------------------------------------------------------------ groups */

static int count(fair_groups *g)
{
    int filled = 0;
    for (int64_t i = 0; i < g->n; i++) {
        g->keys[g->of[i]]++;
        if (g->of[i] >= g->count) g->count = g->of[i] + 1;
    }
    for (int i = 0; i < g->count; i++) filled += g->keys[i] > 0;
    return filled < 2 ? cli_refuse("fairness: one group: there is nothing to compare") : CLI_OK;
}

int fair_groups_find(fair_groups *g, const fair_set *set, int by, const char *labels, int64_t buckets)
{
    if ((by == FAIR_BY_DOCUMENT || by == FAIR_BY_FREQUENCY) && !set->tokens)
        return cli_refuse("--by %s: operands on files have no tokens; take -m and -f, or --labels", fair_by_names[by]);
    *g = (fair_groups){ .by = by, .n = set->n };
    g->of = calloc((size_t)g->n + 1, sizeof *g->of);
    if (!g->of) return cli_fail("out of memory: groups of %" PRId64 " keys", g->n);
    int code = CLI_OK;
    if (by == FAIR_BY_DOCUMENT) by_document(g, set);
    if (by == FAIR_BY_POSITION) by_position(g, buckets);
    if (by == FAIR_BY_FREQUENCY) code = by_frequency(g, set);
    if (by == FAIR_BY_LABELS) code = by_labels(g, labels);
    return code == CLI_OK ? count(g) : code;
}

void fair_groups_free(fair_groups *g)
{
    free(g->of);
}
