/* list_scan.c - a list of int8 codes against the queries that look into it: by 32 queries and 1,024 rows, while both are in the cache. */
#include "search.h"

static kna__look look_of(const kna__search_job *job, const kna__list_view *view, uint64_t list, uint64_t i)
{
    if (!job->looks.every) {
        return job->looks.looks[job->looks.first[list] + i];
    }
    const kna__query *q = &job->queries[i];
    bool is_shared = job->index->head.centers == 1;
    return (kna__look){ (uint32_t)i, is_shared ? q->base : (float)kna__base_of(job->metric, q, view->center, job->dim), q->slack };
}

static void gather(const kna__search_job *job, const kna__look *looks, size_t count, const kna__search_room *room)
{
    size_t bytes = (size_t)job->d4 * 4;
    for (size_t i = 0; i < count; i++) {
        const kna__query *q = &job->queries[looks[i].query];
        memcpy(room->codes + i * bytes, q->codes, bytes);
        room->steps[i] = q->step;
    }
}

static void scan_section(const kna__search_job *job, const kna__list_view *view, const kna__look *looks, size_t count, uint64_t at,
                         int worker)
{
    const kna__search_room *room = &job->rooms[worker];
    uint64_t blocks = view->blocks - at / KNA_BLOCK, most = KNA_SECTION_ROWS / KNA_BLOCK;
    blocks = blocks < most ? blocks : most;
    uint64_t rows = view->rows - at < blocks * KNA_BLOCK ? view->rows - at : blocks * KNA_BLOCK;
    job->kernels->scan(room->out, KNA_SECTION_ROWS, room->codes, (size_t)job->d4 * 4, room->steps, count,
                       view->codes + at * job->d4 * 4, view->steps + at, (size_t)blocks, (size_t)job->d4);
    for (size_t i = 0; i < count; i++) {
        float *out = room->out + i * KNA_SECTION_ROWS;
        if (job->metric == KNA_L2) {
            job->kernels->axpy(out, -1.0f, view->extra + at, (size_t)rows);
        }
        kna__sieve(job, view, &looks[i], at, rows, out, worker);
    }
}

void kna__scan_list(void *argument, int64_t place, int worker)
{
    kna__search_job *job = argument;
    kna__look looks[KNA_SECTION_QUERIES];
    kna__list_view view;
    uint64_t l = job->looks.every ? (uint64_t)place : job->looks.active[place];
    uint64_t all = job->looks.every ? job->count : job->looks.first[l + 1] - job->looks.first[l];
    if (!all || __atomic_load_n(&job->bad_list, __ATOMIC_RELAXED)) {
        return;
    }
    if (!kna__index_list(job->index, l, &view)) {
        __atomic_store_n(&job->bad_list, 1, __ATOMIC_RELAXED);
        return;
    }
    job->rooms[worker].scanned += all * view.rows;
    for (uint64_t from = 0; from < all; from += KNA_SECTION_QUERIES) {
        size_t count = all - from < KNA_SECTION_QUERIES ? (size_t)(all - from) : KNA_SECTION_QUERIES;
        for (size_t i = 0; i < count; i++) {
            looks[i] = look_of(job, &view, l, from + i);
        }
        gather(job, looks, count, &job->rooms[worker]);
        for (uint64_t at = 0; at < view.rows; at += KNA_SECTION_ROWS) {
            scan_section(job, &view, looks, count, at, worker);
        }
    }
}
