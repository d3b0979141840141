/* choice.c - see choice.h. */
#include "choice.h"

#include "npy.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

static const char *const diverse_names[KNA_DIVERSE_COUNT + 1] = { "none", "mmr", "dpp", "quota", NULL };
static const char *const tail_names[KNA_TAIL_COUNT + 1] = { "drop", "mean", NULL };

#define AT(member) offsetof(choice, member)

const cli_option choice_options[] = {
    { "diverse", 0, CLI_CHOICE, AT(diverse), 0, 0, diverse_names, "KIND",
      "topk and those that sample: the K by mmr, dpp or quota, not the nearest; knn: clusters by quota (default none)" },
    { "pool", 0, CLI_INT, AT(pool), 1, KNA_MAX_ROWS, NULL, "N", "mmr, dpp: nearest keys to choose from, at least K (default 4 K)" },
    { "mmr-lambda", 0, CLI_REAL, AT(mmr_lambda), 1e-6, 1, NULL, "L", "mmr: how much nearness counts, the rest is unlikeness (default 0.7)" },
    { "dpp-theta", 0, CLI_REAL, AT(dpp_theta), 1e-6, 40, NULL, "T", "dpp: the same, as a power of e (default 4)" },
    { "quota", 0, CLI_REAL, AT(quota), 1e-6, 1, NULL, "B", "quota: a group's share of B K is its share of the keys (default 0.2)" },
    { "stratify", 0, CLI_FLAG, AT(stratify), 0, 0, NULL, NULL, "uniform: sample every group of keys by itself" },
    { "landmarks", 0, CLI_INT, AT(landmarks), 1, KNA_MAX_LANDMARKS, NULL, "N",
      "topk and those that sample: N keys that queries before look at most are in every head (default: none)" },
    { "tail", 0, CLI_CHOICE, AT(tail), 0, 0, tail_names, "KIND", "topk: drop the rest, or let its mean value stand for it (default drop)" },
    { .name = NULL },
};

int choice_wants_groups(const choice *c)
{
    return c->diverse == KNA_DIVERSE_QUOTA || c->stratify;
}

void choice_fill(kna_attend_options *to, const choice *from, const int32_t *of, int64_t count)
{
    to->diverse = from->diverse;
    to->pool = from->pool;
    to->mmr_lambda = (float)from->mmr_lambda;
    to->dpp_theta = (float)from->dpp_theta;
    to->quota = (float)from->quota;
    to->stratify = from->stratify;
    to->landmarks = from->landmarks;
    to->tail = from->tail;
    to->key_groups = of;
    to->key_group_count = of ? count : 0;
}

void choice_fill_for(kna_attend_options *to, int method, const choice *from, const int32_t *of, int64_t count)
{
    choice mine = *from;
    if (method != KNA_TOPK && (method < KNA_UNIFORM || method > KNA_MOM)) {
        if (method != KNA_KNN || mine.diverse != KNA_DIVERSE_QUOTA) mine.diverse = KNA_DIVERSE_NONE;
        mine.landmarks = 0;
    }
    if (method != KNA_UNIFORM) mine.stratify = 0;
    if (method != KNA_TOPK) mine.tail = KNA_TAIL_DROP;
    choice_fill(to, &mine, of, count);
}

int choice_is_any(const choice *c)
{
    return c->diverse || c->landmarks || c->stratify || c->tail;
}

int choice_read_labels(int32_t **of, int64_t *count, const char *path, int64_t n)
{
    static const npy_want want = { 1, 1, 0, "(n,)" };
    npy_array array = { .data = NULL };
    int code = npy_read(&array, path, &want);
    *count = 1;
    *of = NULL;
    if (code == CLI_OK && array.shape[0] != n)
        code = cli_refuse("%s: %" PRId64 " labels for %" PRId64 " keys", path, array.shape[0], n);
    if (code == CLI_OK && !(*of = calloc((size_t)n + 1, sizeof **of))) code = cli_fail("out of memory: groups of %" PRId64 " keys", n);
    for (int64_t i = 0; i < n && code == CLI_OK; i++) {
        const float label = ((const float *)array.data)[i];
        if (!(label >= 0 && label < KNA_MAX_KEY_GROUPS) || label != floorf(label))
            code = cli_refuse("%s: %g at position %" PRId64 " is none of 0, 1, .. %d", path, (double)label, i, KNA_MAX_KEY_GROUPS - 1);
        else
            (*of)[i] = (int32_t)label;
        if (code == CLI_OK && (*of)[i] >= *count) *count = (*of)[i] + 1;
    }
    npy_free(&array);
    return code;
}
