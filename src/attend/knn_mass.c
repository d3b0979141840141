/*
 * knn_mass.c - what clusters weigh: count * exp(mean logit) * (1 + |q|^2 spread / 2).
 */
#include "knn.h"

#include <math.h>

enum { SUMS = 64 /* blocks added up at a time */ };

int64_t kna__knn_dead(const knn_call *call, const knn_list *list, int64_t at, int64_t count, int32_t *dead)
{
    const kna__clusters *c = &call->index->clusters;
    const kna__level *level = kna__knn_level(call, list);
    int64_t found = 0;
    for (int64_t x = 0; x < count; x++) {
        dead[found] = (int32_t)x; /* without a branch: found never passes x */
        found += !level->count[at + x] || kna__level_always(c, list->level, at + x);
    }
    return found;
}

double kna__knn_sum(const kna__kernels *kernels, const float *z, int64_t count)
{
    float some[SUMS];
    double sum = 0;
    int64_t whole = count / KNA_BLOCK * KNA_BLOCK;
    for (int64_t first = 0; first < whole; first += SUMS * KNA_BLOCK) {
        int64_t blocks = (whole - first) / KNA_BLOCK < SUMS ? (whole - first) / KNA_BLOCK : SUMS;
        kernels->block_sum(some, z + first, (size_t)blocks);
        for (int64_t i = 0; i < blocks; i++) {
            sum += (double)some[i];
        }
    }
    for (int64_t i = whole; i < count; i++) {
        sum += (double)z[i];
    }
    return sum;
}

double kna__knn_mass(const knn_call *call, const knn_list *list, int64_t kv_head, float *z, float shift, float half_square)
{
    const kna__level *level = kna__knn_level(call, list);
    if (shift == -INFINITY) {
        memset(z, 0, (size_t)list->size * sizeof *z);
        return 0;
    }
    call->problem->kernels->exp_sum(z, shift, (size_t)list->size);
    for (int64_t i = 0, end, at; i < list->size; i = end) {
        end = kna__knn_stretch(call, list, kv_head, i, list->size, &at);
        const uint16_t *count = level->count + at;
        const float *spread = level->spread + at;
        for (int64_t x = 0; x < end - i; x++) {
            z[i + x] *= (float)count[x] * (1 + half_square * spread[x]);
        }
    }
    return kna__knn_sum(call->problem->kernels, z, list->size);
}
