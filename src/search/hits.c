/* hits.c - answers: what belongs to a row that was found, and the best of several answers. */
#include "hits.h"

#include <math.h>

double kna__hits_lse(const kna_hit *hits, int64_t count, double temperature)
{
    double t = temperature > 0 ? temperature : 1, sum = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += exp(((double)hits[i].score - (double)hits[0].score) / t);
    }
    return count ? (double)hits[0].score / t + log(sum) : -INFINITY;
}

int kna__how_check(kna_context *context, const kna_search_how *how)
{
    if (how->size < sizeof *how) {
        return KNA_FAIL(context, KNA_EINVAL, "how: size %zu is below %zu: set it with KNA_SEARCH_HOW", how->size, sizeof *how);
    }
    if (how->k < 1 || how->k > KNA_MAX_HITS) {
        return KNA_FAIL(context, KNA_EINVAL, "k: %lld is outside 1..%d", (long long)how->k, KNA_MAX_HITS);
    }
    if (!(how->beta >= 0) || !(how->temperature >= 0) || !(how->recall >= 0 && how->recall <= 1) || how->probes < 0) {
        return KNA_FAIL(context, KNA_EINVAL, "beta %g, temperature %g and probes %lld must be at least 0, recall %g within 0..1",
                        how->beta, how->temperature, (long long)how->probes, how->recall);
    }
    return KNA_OK;
}

/* One query: the best of the heads of all parts, again and again. */
static int64_t merge_one(kna_hit *hits, const kna_hit *const *part_hits, const int64_t *const *part_counts, int64_t *next,
                         int parts, int64_t query, const kna_search_how *how)
{
    int64_t count = 0;
    memset(next, 0, (size_t)parts * sizeof *next);
    for (; count < how->k; count++) {
        const kna_hit *best = NULL;
        int from = 0;
        for (int p = 0; p < parts; p++) {
            const kna_hit *head = part_hits[p] + query * how->k + next[p];
            if (next[p] < part_counts[p][query] && (!best || head->score > best->score)) {
                best = head;
                from = p;
            }
        }
        if (!best || (how->beta > 0 && (double)best->score < (double)hits[0].score - how->beta && count)) {
            break;
        }
        hits[count] = *best;
        hits[count].source = from;
        next[from]++;
    }
    return count;
}

int kna_hits_merge(kna_context *context, kna_hit *hits, int64_t *counts, const kna_hit *const *part_hits,
                   const int64_t *const *part_counts, int parts, int64_t m, const kna_search_how *how)
{
    context->message[0] = 0;
    if (!hits || !counts || !how || parts < 0 || m < 0 || (parts && (!part_hits || !part_counts))) {
        return KNA_FAIL(context, KNA_EINVAL, "merge: %d parts of %lld queries, or a null pointer", parts, (long long)m);
    }
    KNA_TRY(kna__how_check(context, how));
    for (int p = 0; p < parts; p++) {
        for (int64_t i = 0; i < m; i++) {
            if (part_counts[p][i] < 0 || part_counts[p][i] > how->k) {
                return KNA_FAIL(context, KNA_EINVAL, "merge: part %d has %lld hits for query %lld, and k is %lld", p,
                                (long long)part_counts[p][i], (long long)i, (long long)how->k);
            }
        }
    }
    int64_t *next = (int64_t *)(void *)kna__scratch(context, ((size_t)parts + 1) * sizeof *next);
    if (!next) {
        return KNA_FAIL(context, KNA_ENOMEM, "merge: out of memory for %d parts", parts);
    }
    for (int64_t i = 0; i < m; i++) {
        counts[i] = merge_one(hits + i * how->k, part_hits, part_counts, next, parts, i, how);
        if (how->lse) {
            how->lse[i] = kna__hits_lse(hits + i * how->k, counts[i], how->temperature);
        }
    }
    return KNA_OK;
}
