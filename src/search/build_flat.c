/* build_flat.c - a flat index: all rows in lists, in the order of their numbers, about their common mean. */
#include "search.h"

enum { MOST_ROWS = 4096, LIST_BYTES = 1 << 20, MEAN_ROWS = 4096 };

static uint64_t rows_of_list(uint64_t dim)
{
    uint64_t rows = LIST_BYTES / dim / KNA_BLOCK * KNA_BLOCK;
    return rows > MOST_ROWS ? MOST_ROWS : rows < KNA_BLOCK ? KNA_BLOCK : rows;
}

/* The mean of some rows, evenly spread: how good it is changes how tight bounds are, and nothing else. */
static int find_mean(const kna__rows *rows, const uint32_t *ids, uint64_t count, int metric, float *center, float *row,
                     double *sums)
{
    uint64_t every = count / MEAN_ROWS + 1, used = 0;
    memset(sums, 0, (size_t)rows->dim * sizeof *sums);
    for (uint64_t i = 0; i < count; i += every) {
        if (kna__rows_read(rows, ids[i], row) != KNA_OK) {
            return kna__rows_damaged(rows, kna__rows_run(rows, ids[i]));
        }
        double square = 0;
        for (uint64_t c = 0; c < rows->dim; c++) {
            square += (double)row[c] * (double)row[c];
        }
        if (square > 0 && square < 1e36) {
            double factor = metric == KNA_COSINE ? 1 / __builtin_sqrt(square) : 1;
            used++;
            for (uint64_t c = 0; c < rows->dim; c++) {
                sums[c] += factor * (double)row[c];
            }
        }
    }
    for (uint64_t c = 0; c < rows->dim; c++) {
        center[c] = used ? (float)(sums[c] / (double)used) : 0;
    }
    return KNA_OK;
}

static int write_lists(kna__index_writer *w, const uint32_t *ids, uint64_t count, uint64_t each)
{
    for (uint64_t at = 0; at < count; at += each) {
        KNA_TRY(kna__index_put_list(w, ids + at, count - at < each ? count - at : each));
    }
    return kna__index_finish(w);
}

static int build(const kna__rows *rows, int metric, const uint32_t *ids, uint64_t count, float *center, float *row, double *sums)
{
    uint64_t each = rows_of_list(rows->dim);
    kna__index_writer writer;
    KNA_TRY(find_mean(rows, ids, count, metric, center, row, sums));
    kna__index_head head = { .family = (uint32_t)rows->family,
                             .kind = KNA_SEARCH_FLAT,
                             .metric = (uint32_t)metric,
                             .covered = rows->seen,
                             .lists = (count + each - 1) / each,
                             .centers = 1 };
    int status = kna__index_begin(&writer, rows, &head, center);
    status = status == KNA_OK ? write_lists(&writer, ids, count, each) : status;
    kna__index_abandon(&writer);
    return status;
}

int kna__build_flat(const kna__rows *rows, int metric, const uint32_t *ids, uint64_t count)
{
    kna_context *context = rows->store->context;
    size_t room = (size_t)rows->dim * (sizeof(double) + 2 * sizeof(float));
    double *sums = kna__allocate(&context->heap, room);
    if (!sums) {
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory");
    }
    float *center = (float *)(void *)(sums + rows->dim);
    int status = build(rows, metric, ids, count, center, center + rows->dim, sums);
    kna__release(&context->heap, sums, room);
    return status;
}
