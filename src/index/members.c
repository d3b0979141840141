/*
 * members.c - which rows the clusters of an index hold, for those who study it: nothing in attention reads this.
 */
#include "index.h"

int kna_index_clusters(kna_context *context, int32_t *cluster, float *spread, const kna_index *index, int64_t head, int64_t rows)
{
    int32_t ids[KNA_SEGMENT];
    context->message[0] = 0;
    if (!index || index->method != KNA_KNN || head < 0 || head >= index->heads || rows < 0 || rows > KNA_MAX_ROWS) {
        return KNA_FAIL(context, KNA_EINVAL, "index: head %lld, %lld rows: outside an index of clusters", (long long)head,
                        (long long)rows);
    }
    const kna__clusters *c = &index->clusters;
    for (int64_t row = 0; row < rows; row++) {
        cluster[row] = -1;
        spread[row] = 0;
    }
    for (int64_t slot = 0; slot < c->capacity * KNA_SLOTS && slot / KNA_SLOTS * KNA_PIECE < rows; slot++) {
        int64_t at = kna__cluster_slot(c, head, slot);
        if (c->state[slot / KNA_SLOTS] == KNA_PIECE_OPEN || c->always[at]) {
            continue;
        }
        int64_t count = kna__cluster_rows(c, head, slot, ids);
        for (int64_t i = 0; i < count; i++) {
            if (ids[i] < rows) {
                cluster[ids[i]] = (int32_t)slot;
                spread[ids[i]] = c->level[KNA_CLUSTERS].spread[at];
            }
        }
    }
    return KNA_OK;
}
