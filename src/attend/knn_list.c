/* knn_list.c - clusters of one level, numbered; side by side in the index as far as possible, so that loops over them are long. */
#include "knn.h"

void kna__knn_list_cut(knn_list *list, int level, int64_t runs, kna__cutter *cutter)
{
    list->level = level;
    list->runs = kna__cut(cutter, (size_t)runs, sizeof *list->runs);
}

void kna__knn_list_clear(knn_list *list)
{
    list->run_count = list->size = 0;
}

void kna__knn_list_add(knn_list *list, int64_t first, int64_t end)
{
    knn_run *last = list->run_count ? &list->runs[list->run_count - 1] : NULL;
    if (last && last->end == first) {
        last->end = end;
    } else {
        list->runs[list->run_count++] = (knn_run){ first, end, list->size };
    }
    list->size += end - first;
}

static const knn_run *run_of(const knn_list *list, int64_t number)
{
    int64_t low = 0, high = list->run_count; /* the run is one of low .. high - 1 */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (list->runs[middle].at <= number) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return &list->runs[low];
}

int64_t kna__knn_slot(const knn_list *list, int64_t number)
{
    const knn_run *run = run_of(list, number);
    return run->first + number - run->at;
}

int64_t kna__knn_stretch(const knn_call *call, const knn_list *list, int64_t kv_head, int64_t from, int64_t to, int64_t *at)
{
    const knn_run *run = run_of(list, from);
    int64_t end = run->at + run->end - run->first;
    *at = kna__level_at(&call->index->clusters, list->level, kv_head, run->first + from - run->at);
    return end < to ? end : to;
}
