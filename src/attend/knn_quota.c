/*
 * knn_quota.c - a share of the clusters looked into for every group of keys, whatever their scores: what an index owes to groups that
 * many queries care little about.
 *
 * A cluster belongs to the group that most of its members are of (the lower of two as large), a group of clusters likewise. The
 * promise is about clusters, not keys, and holds for every choice that is made: of groups to open, of the clusters that the heads of
 * a KV head or the rows of a tile share, and of those that a row of a tile looks into by itself.
 */
#include "knn.h"

#include <math.h>

static size_t labels_of(const knn_call *call, int level)
{
    const kna__clusters *c = &call->index->clusters;
    return kna__knn_has_quotas(call) ? (size_t)kna__level_at(c, level, call->problem->h_kv, 0) : 0;
}

void kna__knn_labels_cut(knn_call *call, kna__cutter *cutter)
{
    const kna__problem *p = call->problem;
    size_t tallies = kna__knn_has_quotas(call) ? (size_t)p->context->threads : 0;
    for (int level = 0; level < KNA_LEVELS; level++) {
        call->labels[level] = kna__cut(cutter, labels_of(call, level), sizeof(int32_t));
    }
    call->tally = kna__cut(cutter, kna__size_product(tallies, (size_t)p->options.key_group_count), sizeof(int32_t));
}

/* Adds to the tally, or takes away, the members of a cluster. */
static void count_members(const knn_call *call, int64_t kv_head, int64_t slot, int32_t step, int32_t *tally)
{
    int32_t ids[KNA_SEGMENT];
    int64_t count = kna__cluster_rows(&call->index->clusters, kv_head, slot, ids);
    for (int64_t i = 0; i < count; i++) {
        tally[call->problem->options.key_groups[ids[i]]] += step;
    }
}

/* The group of most members of slots first .. end - 1: every member's group is looked at, so that it takes no time by groups. */
static int32_t majority(const knn_call *call, int64_t kv_head, int64_t first, int64_t end, int32_t *tally)
{
    int32_t ids[KNA_SEGMENT], best = -1;
    for (int64_t slot = first; slot < end; slot++) {
        count_members(call, kv_head, slot, 1, tally);
    }
    for (int64_t slot = first; slot < end; slot++) {
        int64_t count = kna__cluster_rows(&call->index->clusters, kv_head, slot, ids);
        for (int64_t i = 0; i < count; i++) {
            int32_t group = call->problem->options.key_groups[ids[i]];
            bool is_better = best < 0 || tally[group] > tally[best] || (tally[group] == tally[best] && group < best);
            best = is_better ? group : best;
        }
    }
    for (int64_t slot = first; slot < end; slot++) {
        count_members(call, kv_head, slot, -1, tally);
    }
    return best;
}

/* A task: the pieces of a KV head. */
static void label_head(void *argument, int64_t kv_head, int worker)
{
    const knn_call *call = argument;
    const kna__clusters *c = &call->index->clusters;
    int32_t *tally = call->tally + worker * call->problem->options.key_group_count;
    for (int64_t piece = 0; piece < call->problem->n / KNA_PIECE; piece++) {
        if (c->state[piece] == KNA_PIECE_OPEN || kna__unit_row(c, piece) + kna__unit_rows(c, piece) > call->problem->n) {
            continue; /* in nobody's plan */
        }
        for (int64_t slot = piece * KNA_SLOTS; slot < (piece + 1) * KNA_SLOTS; slot++) {
            call->labels[KNA_CLUSTERS][kna__level_at(c, KNA_CLUSTERS, kv_head, slot)] =
                majority(call, kv_head, slot, slot + 1, tally);
        }
        for (int64_t group = piece * KNA_PIECE_GROUPS; group < (piece + 1) * KNA_PIECE_GROUPS; group++) {
            call->labels[KNA_GROUPS][kna__level_at(c, KNA_GROUPS, kv_head, group)] =
                majority(call, kv_head, group * KNA_GROUP_SLOTS, (group + 1) * KNA_GROUP_SLOTS, tally);
        }
    }
}

void kna__knn_label(knn_call *call)
{
    const kna__problem *p = call->problem;
    memset(call->tally, 0, (size_t)p->context->threads * (size_t)p->options.key_group_count * sizeof *call->tally);
    kna__parallel_for(p->context->threads, p->h_kv, label_head, call);
}

static bool is_candidate(const knn_choice *choice, int64_t number)
{
    return choice->score[number] > 0 && choice->score[number] < INFINITY;
}

/* Candidates by their labels: first[g] .. first[g + 1] - 1. Returns how many. */
static int64_t sort_by_group(const knn_call *call, const knn_list *list, int64_t kv_head, knn_choice *choice)
{
    int64_t groups = call->problem->options.key_group_count;
    const int32_t *labels = call->labels[list->level];
    memset(choice->first, 0, (size_t)(groups + 1) * sizeof *choice->first);
    for (int64_t i = 0, end, at; i < list->size; i = end) {
        end = kna__knn_stretch(call, list, kv_head, i, list->size, &at);
        for (int64_t x = i; x < end; x++) {
            choice->first[labels[at + x - i] + 1] += is_candidate(choice, x); /* one without members is none */
        }
    }
    for (int64_t group = 0; group < groups; group++) {
        choice->first[group + 1] += choice->first[group];
    }
    int64_t count = choice->first[groups];
    for (int64_t i = 0, end, at; i < list->size; i = end) {
        end = kna__knn_stretch(call, list, kv_head, i, list->size, &at);
        for (int64_t x = i; x < end; x++) {
            if (is_candidate(choice, x)) {
                choice->by_group[choice->first[labels[at + x - i]]++] = (int32_t)x;
            }
        }
    }
    memmove(choice->first + 1, choice->first, (size_t)groups * sizeof *choice->first); /* beginnings have moved to ends */
    choice->first[0] = 0;
    return count;
}

/* The largest `quota` scores of some numbers become infinite, of equal ones the first. */
static void raise_some(knn_choice *choice, const int32_t *numbers, int64_t count, int64_t quota)
{
    for (int64_t i = 0; i < count; i++) {
        choice->scratch[i] = choice->score[numbers[i]];
    }
    float least = kna__kth_largest(choice->scratch, (size_t)count, (size_t)quota);
    for (int64_t i = 0; i < count; i++) {
        quota -= choice->score[numbers[i]] > least;
    }
    for (int64_t i = 0; i < count; i++) {
        float score = choice->score[numbers[i]];
        if (score > least || (score == least && quota-- > 0)) {
            choice->score[numbers[i]] = INFINITY;
        }
    }
}

int64_t kna__knn_raise(const knn_call *call, const knn_list *list, int64_t kv_head, knn_choice *choice, int64_t want)
{
    int64_t raised = 0;
    if (!choice->by_group || want <= 0 || !list->size) {
        return 0;
    }
    double all = (double)sort_by_group(call, list, kv_head, choice), share = (double)call->problem->options.quota * (double)want;
    for (int64_t group = 0; group < call->problem->options.key_group_count; group++) {
        int64_t first = choice->first[group], count = choice->first[group + 1] - first;
        int64_t quota = count ? (int64_t)ceil(share * (double)count / all - 1e-6) : 0;
        quota = quota < count ? quota : count;
        if (quota > 0) {
            raise_some(choice, choice->by_group + first, count, quota);
            raised += quota;
        }
    }
    return raised;
}
