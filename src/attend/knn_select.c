/*
 * knn_select.c - masses of clusters, and which clusters are read in full.
 *
 * A cluster read in full instead of by its means takes away the error its means made: about its share of the softmax, times how
 * far its members' values stray, times how far their logits do. The clusters where this product, summed over the rows that
 * share the choice, is largest are read. On real heads that leaves 5 to 8 % less error than choosing by the share alone.
 */
#include "knn.h"

#include <math.h>

/* Even a cluster of equal logits errs a little: its mean is rounded, and the variance is one number for all directions. */
#define LEAST_SPREAD 0.1f

/* A row that chooses alone reads k keys; rows that choose together read more. */
enum { SHARED_BY_GROUP = 2, SHARED_BY_TILE = 4 };

/* Of |q| |mean key|: f16 rounds each number of the mean by at most 2^-11 of it, f32 sums by less. */
#define STALE_LIMIT 0x1p-9f

/* Sums of 16 that are added up at a time; slots come in whole pieces, so in whole blocks. */
enum { SUMS = 64 };
_Static_assert(KNA_SLOTS % KNA_BLOCK == 0, "a piece's clusters are whole blocks");

void kna__knn_choice_cut(knn_choice *choice, int64_t slots, kna__cutter *cutter)
{
    size_t n = (size_t)slots;
    choice->chosen = kna__cut(cutter, n, sizeof(int32_t));
    choice->share = kna__cut(cutter, n, sizeof(float));
    choice->stray = kna__cut(cutter, n, sizeof(float));
    choice->score = kna__cut(cutter, n, sizeof(float));
    choice->scratch_ids = kna__cut(cutter, n, sizeof(int32_t));
    choice->scratch = kna__cut(cutter, n / KNA_BLOCK + 1 + n, sizeof(float));
    choice->count = 0;
}

int64_t kna__knn_dead(const knn_call *call, const knn_plan *plan, int64_t kv_head, int64_t i, int64_t end, int32_t *dead)
{
    const kna__clusters *c = &call->index->clusters;
    int64_t at = kna__knn_at(call, plan, kv_head, i), count = 0;
    for (int64_t x = 0; x < (end - i) * KNA_SLOTS; x++) {
        dead[count] = (int32_t)x; /* without a branch: count never passes x */
        count += !c->count[at + x] || c->always[at + x];
    }
    return count;
}

double kna__knn_sum(const kna__kernels *kernels, const float *z, int64_t slots)
{
    float some[SUMS];
    double sum = 0;
    for (int64_t first = 0; first < slots; first += SUMS * KNA_BLOCK) {
        int64_t blocks = (slots - first) / KNA_BLOCK < SUMS ? (slots - first) / KNA_BLOCK : SUMS;
        kernels->block_sum(some, z + first, (size_t)blocks);
        for (int64_t i = 0; i < blocks; i++) {
            sum += (double)some[i];
        }
    }
    return sum;
}

double kna__knn_mass(const knn_call *call, const knn_plan *plan, int64_t kv_head, float *z, float shift, float half_square)
{
    const kna__kernels *kernels = call->problem->kernels;
    const kna__clusters *c = &call->index->clusters;
    if (shift == -INFINITY) {
        memset(z, 0, (size_t)plan->slots * sizeof *z);
        return 0;
    }
    kernels->exp_sum(z, shift, (size_t)plan->slots);
    for (int64_t i = 0, end; i < plan->piece_count; i = end) {
        end = kna__knn_run(plan, i, plan->piece_count);
        int64_t at = kna__knn_at(call, plan, kv_head, i), n = (end - i) * KNA_SLOTS;
        const uint16_t *count = c->count + at;
        const float *spread = c->spread + at;
        float *w = z + i * KNA_SLOTS;
        for (int64_t x = 0; x < n; x++) {
            w[x] *= (float)count[x] * (1 + half_square * spread[x]);
        }
    }
    return kna__knn_sum(kernels, z, plan->slots);
}

int64_t kna__knn_most_keys(const knn_call *call, int64_t clusters)
{
    int64_t most = clusters * KNA_SEGMENT;
    return most < call->problem->n ? most : call->problem->n;
}

/* Score of every cluster of the plan; infinite where it must be read. Returns how many those are. */
static int64_t score_clusters(const knn_call *call, const knn_plan *plan, int64_t kv_head, knn_choice *choice, float mean_square)
{
    const kna__clusters *c = &call->index->clusters;
    int64_t always = 0;
    for (int64_t i = 0, end; i < plan->piece_count; i = end) {
        end = kna__knn_run(plan, i, plan->piece_count);
        int64_t at = kna__knn_at(call, plan, kv_head, i), n = (end - i) * KNA_SLOTS;
        float *score = choice->score + i * KNA_SLOTS, *stray = choice->stray + i * KNA_SLOTS;
        const float *share = choice->share + i * KNA_SLOTS;
        for (int64_t x = 0; x < n; x++) {
            stray[x] = c->deviation[at + x] * sqrtf(mean_square * c->spread[at + x] + LEAST_SPREAD);
            score[x] = share[x] * stray[x];
        }
        for (int64_t x = 0; x < n; x++) {
            if (c->always[at + x]) {
                score[x] = INFINITY;
                always++;
            }
        }
    }
    return always;
}

static void take(const knn_call *call, const knn_plan *plan, knn_choice *choice, int64_t want)
{
    choice->count = want < plan->slots ? want : plan->slots;
    if (choice->count < plan->slots) {
        kna__topk(call->problem->kernels, choice->chosen, choice->score, (size_t)plan->slots, (size_t)want, choice->scratch_ids,
                  choice->scratch);
        return;
    }
    for (int64_t i = 0; i < plan->slots; i++) {
        choice->chosen[i] = (int32_t)i;
    }
}

/*
 * Mean over the rows of the total variation distance between weights used and softmax. Within a cluster whose logits are normal
 * with variance s^2, softmax is log-normal and lies erf(s / sqrt 8) from uniform weights.
 */
static float error_left(const knn_call *call, const knn_plan *plan, int64_t kv_head, const knn_choice *choice, float mean_square,
                        int64_t rows)
{
    const kna__clusters *c = &call->index->clusters;
    double sum = 0;
    for (int64_t i = 0, next = 0; i < plan->slots; i++) {
        if (next < choice->count && choice->chosen[next] == i) {
            next++;
            continue;
        }
        double spread = (double)c->spread[kna__cluster_slot(c, kv_head, kna__knn_slot(plan, i))];
        sum += (double)choice->share[i] * erf(sqrt((double)mean_square * spread / 8));
    }
    return (float)(sum / (double)rows);
}

static int64_t shared_clusters(const knn_call *call, int64_t rows)
{
    int64_t shared = rows == 1 ? 1 : rows <= call->problem->g ? SHARED_BY_GROUP : SHARED_BY_TILE;
    return (call->problem->options.k_near * shared + KNA_MEMBERS - 1) / KNA_MEMBERS;
}

int64_t kna__knn_own(const knn_call *call)
{
    return (call->problem->options.k_near + KNA_MEMBERS - 1) / KNA_MEMBERS;
}

int64_t kna__knn_budget(const knn_call *call, int64_t rows)
{
    return shared_clusters(call, rows) + (rows <= call->problem->g ? 0 : kna__knn_own(call));
}

void kna__knn_choose(const knn_call *call, const knn_plan *plan, int64_t kv_head, knn_choice *choice, float mean_square,
                     int64_t rows)
{
    const kna_attend_options *o = &call->problem->options;
    int64_t want = shared_clusters(call, rows);
    choice->error = -1;
    want += score_clusters(call, plan, kv_head, choice, mean_square);
    take(call, plan, choice, want);
    if (o->eps > 0 || o->audit > 0) {
        choice->error = error_left(call, plan, kv_head, choice, mean_square, rows);
    }
    while (o->eps > 0 && choice->error > o->eps && choice->count < plan->slots) {
        want *= 2;
        take(call, plan, choice, want);
        choice->error = error_left(call, plan, kv_head, choice, mean_square, rows);
    }
}

/*
 * The mean of the members' logits is the logit of their mean, up to the rounding of that mean to f16: where it is not, a key has
 * been written without a word.
 */
int32_t kna__knn_stale(const knn_call *call, const knn_plan *plan, int64_t kv_head, const int32_t *chosen, int64_t count,
                       const float *q, float q_norm, const float *logits)
{
    const kna__problem *p = call->problem;
    const kna__clusters *c = &call->index->clusters;
    int32_t stale = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t at = kna__cluster_slot(c, kv_head, kna__knn_slot(plan, chosen[i]));
        float mean = 0, sum = 0;
        kna__span key = { (const char *)(c->key + at * p->d), 0, NULL };
        p->kernels->dot[KNA_F16](&mean, 1, q, 0, 1, key, 1, (size_t)p->d);
        for (int64_t x = 0; x < c->count[at]; x++) {
            sum += logits[x];
        }
        logits += c->count[at];
        float off = c->count[at] ? fabsf(sum / (float)c->count[at] - mean) : 0;
        stale += !c->always[at] && off > q_norm * (c->norm[at] + 1) * STALE_LIMIT;
    }
    return stale;
}
