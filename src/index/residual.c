/*
 * residual.c - members as 4-bit codes of what they are beside their cluster's mean, one step for all numbers of a cluster. On real heads
 * (8,192 keys) logits are then off by 0.07 to 0.12, root mean square over the softmax, where the means themselves are off by 1 and more;
 * a step of each row's own or of each column's own leaves 0.04 to 0.08, and the same error of the output.
 */
#include "clusters.h"
#include "index.h"

#include <math.h>

/* An int8 code -127..127 as one of 0..15: 16384 / 254 * 15 and rounding to nearest. */
static uint8_t coarse(int8_t code)
{
    return (uint8_t)(((code + 127) * 967 + 8192) >> 14);
}

/* The numbers of all members less the mean, one after the other; whether they are finite. */
static bool subtract(const kna__kernels *kernels, float *residual, const float *k, const uint16_t *member, int64_t n,
                     int64_t origin, const float *mean, int64_t d)
{
    for (int64_t i = 0; i < n; i++) {
        memcpy(residual + i * d, k + (member[i] - origin) * d, (size_t)d * sizeof *residual);
        kernels->axpy(residual + i * d, -1.0f, mean, (size_t)d);
    }
    return isfinite(kna__square(kernels, residual, n * d));
}

static void pack(uint8_t *quads, int64_t row, const int8_t *codes, int64_t d)
{
    uint8_t padded[(KNA_MAX_DIM + KNA_CODE_CHUNK - 1) / KNA_CODE_CHUNK * KNA_CODE_CHUNK];
    size_t chunks = kna__code_chunks(d);
    for (int64_t c = 0; c < d; c++) {
        padded[c] = coarse(codes[c]);
    }
    memset(padded + d, 0, chunks * KNA_CODE_CHUNK - (size_t)d);
    kna__pack_codes(quads + (size_t)(row / KNA_QUAD) * chunks * KNA_QUAD_BYTES, (size_t)(row % KNA_QUAD), padded, chunks);
}

void kna__clusters_encode(kna_index *index, const kna__kernels *kernels, int64_t head, int64_t slot, int64_t slots, const float *k,
                          int64_t origin, float *residual, int8_t *codes)
{
    kna__clusters *c = &index->clusters;
    int64_t d = index->d, unit = slot / KNA_SLOTS * KNA_PIECE, first_row = head * c->capacity * KNA_PIECE + unit;
    float mean[KNA_MAX_DIM];
    for (int64_t at = kna__cluster_slot(c, head, slot), end = at + slots; at < end; at++) {
        int64_t n = c->level[KNA_CLUSTERS].count[at], row = first_row + c->first[at];
        c->step[at] = 0;
        kna__span key = { (const char *)(c->level[KNA_CLUSTERS].key + at * d), 0, NULL };
        kernels->widen[KNA_F16](mean, (size_t)d, key, 1, (size_t)d);
        if (!subtract(kernels, residual, k, c->member + row, n, origin, mean, d)) {
            c->always[at] = 1;
            continue;
        }
        c->step[at] = kernels->quantize(codes, residual, (size_t)(n * d)) * (127 / 7.5f);
        for (int64_t i = 0; i < n; i++) {
            pack(c->code, row + i, codes + i * d, d);
        }
    }
}
