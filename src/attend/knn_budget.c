/*
 * knn_budget.c - how many clusters are looked into for k keys.
 *
 * Clusters that hold k keys are a row's own in a tile, twice as many those of the heads of a query together (one choice instead of
 * three, and codes and values read once: at 32,768 keys less time and less error than k of each row's own), 4 k keys are shared by
 * the tile, 2 k by the heads of a group. But where only
 * codes are read of most keys, more clusters cost little and are what is short: real heads spread their attention. Six times as
 * many for a group: 4,608 keys by their codes at k = 384, of which some 300 are read themselves. (Questions about needles in 7,900
 * tokens, mean log probability of the right tokens: three times -0.91, four -0.78, six -0.62, all -0.63, exact -0.54.) Half as many
 * again for a query of a tile, which takes as long as reading k keys did.
 *
 * Two groups are opened for each cluster that 2 k keys fill: one in 16 of their clusters. On real heads (32,768 keys, k = 256,
 * decode) that errs by 4.7 % where looking at all clusters errs by 4.2 %; one group for each cluster, 5.4 %.
 *
 * That was before codes. With six times as many clusters to choose, what is open holds only two and a half times what is wanted, and that
 * shows: layers 3 and 20, 32,768 tokens, k = 384, 3.1 % by groups and 1.7 % by all clusters. Looking at all of them takes as long as groups
 * do up to 65,536 keys (0.37 and 0.37 ms at 32,768, the least of 9 at 65,536 0.30 and 0.30), so groups come in above that, in decoding.
 */
#include "knn.h"

enum { SHARED_BY_GROUP = 2, SHARED_BY_TILE = 4, CODED = 6 /* by a group */, OWN_BY_HEADS = 2 };
enum { OPEN_GROUPS = 2 /* per cluster read */, OPEN_LEAST = 32 };
enum { DEEP = 2, DEEP_BY_CODES = 6 }; /* groups there must be for each that is opened */

int64_t kna__knn_k(const knn_call *call, int64_t kv_head)
{
    return call->k ? call->k[kv_head] : call->problem->options.k_near;
}

static int64_t clusters_of(int64_t keys)
{
    return (keys + KNA_MEMBERS - 1) / KNA_MEMBERS;
}

static int64_t shared(int64_t k, const knn_call *call, int64_t rows)
{
    return clusters_of(k * (rows == 1 ? 1 : rows <= call->problem->g ? SHARED_BY_GROUP : SHARED_BY_TILE));
}

int64_t kna__knn_shared(int64_t k, const knn_call *call, int64_t rows)
{
    bool by_codes = rows <= call->problem->g && kna__knn_by_codes(call);
    return (by_codes ? CODED : 1) * shared(k, call, rows);
}

int64_t kna__knn_own(int64_t k, const knn_call *call)
{
    return (kna__knn_by_codes(call) ? clusters_of(k) * 3 / 2 : clusters_of(k)) * (call->problem->g > 1 ? OWN_BY_HEADS : 1);
}

int64_t kna__knn_own_most(const knn_call *call)
{
    return kna__knn_own(call->k_most, call) + (kna__knn_has_quotas(call) ? call->problem->options.key_group_count : 0);
}

/* All that one of `rows` rows reads. */
static int64_t budget(int64_t k, const knn_call *call, int64_t rows)
{
    return shared(k, call, rows) + (rows <= call->problem->g ? 0 : clusters_of(k));
}

/*
 * Where reading everything stops being cheaper, measured at k = 384 (bench prefill of 512 queries, building not counted): a tile
 * takes 1.2 times as long as exact attention at 4,096 keys, as long at 5,120 and 6,144, 0.7 times as long at 8,192.
 */
int64_t kna__knn_least(const knn_call *call, int64_t rows)
{
    return (rows <= call->problem->g ? 2 : 3) * budget(call->k ? call->k_most : call->problem->options.k_near, call, rows);
}

int64_t kna__knn_open(int64_t k, const knn_call *call, int64_t rows)
{
    int64_t open = OPEN_GROUPS * budget(k, call, rows);
    return open > OPEN_LEAST ? open : OPEN_LEAST;
}

/* Groups are a detour unless most of them stay closed. */
bool kna__knn_is_deep(int64_t k, const knn_call *call, const knn_plan *plan, int64_t rows)
{
    bool by_codes = rows <= call->problem->g && kna__knn_by_codes(call);
    return plan->groups.size >= (by_codes ? DEEP_BY_CODES : DEEP) * kna__knn_open(k, call, rows);
}

int64_t kna__knn_most_keys(const knn_call *call, int64_t clusters)
{
    int64_t most = clusters * KNA_SEGMENT;
    return most < call->problem->n ? most : call->problem->n;
}
