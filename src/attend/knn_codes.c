/*
 * knn_codes.c - the logits of a cluster's members without going to the cache: the logit of its mean, and what the 4-bit codes of
 * the members say of the difference. Good to about a tenth: which keys matter is known then, and only those are read. 2 bytes of a
 * key in the cache are half a byte here, and the members of a cluster lie side by side.
 */
#include "knn.h"

#include <math.h>

/*
 * A code is off by at most 0.53 steps, so a logit is by q times numbers of that size, at random: 12 times the deviation, step |q| /
 * sqrt 12, never comes to pass. What the query's own rounding adds is less than a thirtieth of that.
 */
#define MOST_STEPS 3.5f

void kna__knn_codes_cut(knn_codes *codes, const knn_call *call, int64_t rows, kna__cutter *cutter)
{
    codes->ld = kna__code_chunks(call->problem->d) * KNA_CODE_CHUNK;
    codes->rows = rows;
    codes->q = kna__cut(cutter, (size_t)rows * codes->ld, sizeof(int8_t));
    codes->scale = kna__cut(cutter, (size_t)rows, sizeof(float));
}

void kna__knn_codes_begin(knn_codes *codes, const knn_call *call, const float *q)
{
    size_t d = (size_t)call->problem->d;
    for (int64_t r = 0; r < codes->rows; r++) {
        int8_t *row = codes->q + (size_t)r * codes->ld;
        codes->scale[r] = call->problem->kernels->quantize(row, q + (size_t)r * d, d);
        memset(row + d, 0, codes->ld - d);
    }
}

void kna__knn_codes_add(const knn_codes *codes, const knn_call *call, int64_t place, int64_t places, const float *step,
                        float *logits, int64_t ldl)
{
    size_t chunks = kna__code_chunks(call->problem->d);
    call->problem->kernels->scan_codes(logits, (size_t)ldl, codes->q, codes->ld, codes->scale, (size_t)codes->rows,
                                       call->index->clusters.code + (size_t)(place / KNA_QUAD) * chunks * KNA_QUAD_BYTES, step,
                                       (size_t)(places / KNA_QUAD), chunks);
}

void kna__knn_codes_expect(const knn_call *call, int64_t place, int64_t places)
{
    size_t quad = kna__code_chunks(call->problem->d) * KNA_QUAD_BYTES;
    const uint8_t *at = call->index->clusters.code + (size_t)(place / KNA_QUAD) * quad,
                  *end = at + (size_t)(places / KNA_QUAD) * quad;
    for (; at < end; at += KNA_QUAD_BYTES) {
        __builtin_prefetch(at);
    }
}

float kna__knn_codes_bound(const knn_call *call, int64_t at, float q_norm)
{
    const kna__clusters *c = &call->index->clusters;
    return q_norm * (MOST_STEPS * c->step[at] + (c->norm[at] + 1) * 0x1p-9f);
}
