/*
 * topk.c - the k largest scores by threshold: no heap, no sort of all scores.
 *
 * The k-th largest of the block maxima is a lower bound of the k-th largest score (k different blocks each hold a score at
 * least that large), so one vector pass keeps few candidates, and a quickselect among them gives the exact threshold.
 */
#include "kernel.h"

#include <math.h>

static void swap(float *a, float *b)
{
    float t = *a;
    *a = *b;
    *b = t;
}

/* Quickselect with the median of three as pivot and three-way partition, so that equal scores do not degenerate. */
float kna__kth_largest(float *x, size_t n, size_t k)
{
    size_t low = 0, high = n, want = k - 1;
    while (high - low > 1) {
        float a = x[low], b = x[low + (high - low) / 2], c = x[high - 1];
        float pivot = a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b);
        size_t larger = low, i = low, smaller = high;
        while (i < smaller) {
            if (x[i] > pivot) {
                swap(&x[i++], &x[larger++]);
            } else if (x[i] < pivot) {
                swap(&x[i], &x[--smaller]);
            } else {
                i++;
            }
        }
        if (want < larger) {
            high = larger;
        } else if (want < smaller) {
            return pivot;
        } else {
            low = smaller;
        }
    }
    return x[low];
}

/* Floats in order as integers: the ordering of the two's complement after turning the negative half round. */
static int64_t rank_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? -(int64_t)(bits & 0x7fffffffu) : (int64_t)bits;
}

static float value_of(int64_t rank)
{
    uint32_t bits = rank < 0 ? 0x80000000u | (uint32_t)-rank : (uint32_t)rank;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/*
 * A threshold that k to `most` of x reach, or the k-th largest itself where ties forbid that. Bisection over the floats, a
 * vector count each: no branch depends on the data, which made quickselect a quarter of a call.
 */
static float threshold_of(const kna__kernels *kernels, const float *x, size_t n, size_t k, size_t most)
{
    int64_t low = rank_of(-INFINITY), high = rank_of(kernels->max(x, n)); /* low is reached by k or more, above high none is */
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        size_t count = kernels->count(x, n, value_of(middle));
        if (count >= k) {
            low = middle;
            if (count <= most) {
                break;
            }
        } else {
            high = middle - 1;
        }
    }
    return value_of(low);
}

/* A lower bound of the k-th largest, from block maxima; -inf where there are too few blocks to tell. */
static float first_threshold(const kna__kernels *kernels, const float *x, size_t n, size_t k, float *block_max)
{
    size_t blocks = n / KNA_BLOCK;
    if (blocks < k) {
        return -INFINITY;
    }
    kernels->block_max(block_max, x, blocks);
    return threshold_of(kernels, block_max, blocks, k, k + k / 8);
}

void kna__topk(const kna__kernels *kernels, int32_t *ids, const float *x, size_t n, size_t k, int32_t *scratch_ids,
               float *scratch_max)
{
    float bound = first_threshold(kernels, x, n, k, scratch_max);
    size_t candidates = kernels->select(scratch_ids, x, n, bound, 0);
    float *values = scratch_max + n / KNA_BLOCK + 1;
    for (size_t i = 0; i < candidates; i++) {
        values[i] = x[scratch_ids[i]];
    }
    float threshold = threshold_of(kernels, values, candidates, k, k);
    size_t above = kernels->count(values, candidates, value_of(rank_of(threshold) + 1));
    size_t equal = k - above, count = 0; /* ties: the lowest indices fill what is left */
    for (size_t i = 0; i < candidates && count < k; i++) {
        ids[count] = scratch_ids[i];
        count += values[i] > threshold || (values[i] == threshold && equal && equal--);
    }
}
