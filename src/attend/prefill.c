/*
 * prefill.c - exact attention of many queries: bound by arithmetic, so tiles of query rows meet tiles of keys (tile.h).
 *
 * Invariant: key tiles start at multiples of KNA_TILE_KEYS and are taken in order, so a row's result does not depend on its
 * neighbours.
 */
#include "tile.h"

enum { TILE_MOST = 192, TILE_LEAST = 24 };

typedef struct prefill_job {
    const kna__problem *problem;
    int64_t tile;   /* query rows per task */
    int64_t tiles;  /* tasks per KV head */
    char *scratch;
    size_t worker_bytes;
} prefill_job;

static void prefill_tile(void *argument, int64_t task, int worker)
{
    const prefill_job *job = argument;
    const kna__problem *p = job->problem;
    kna__cutter cutter = { job->scratch + (size_t)worker * job->worker_bytes, 0 };
    kna__tile tile;
    kna__tile_cut(&tile, p, job->tile, &cutter);
    int64_t kv_head = task / job->tiles, row = task % job->tiles * job->tile;
    int64_t rows = p->m * p->g - row < job->tile ? p->m * p->g - row : job->tile;
    int64_t lo, hi, unused;
    kna__visible(p, row / p->g, &lo, &unused);
    kna__visible(p, (row + rows - 1) / p->g, &unused, &hi);
    hi = (hi + KNA_TILE_KEYS - 1) / KNA_TILE_KEYS * KNA_TILE_KEYS; /* whole: grouping of sums must not depend on the rows */
    hi = hi < p->n ? hi : p->n;
    kna__tile_begin(&tile, kv_head, row, rows);
    for (int64_t first = lo / KNA_TILE_KEYS * KNA_TILE_KEYS; first < hi; first += KNA_TILE_KEYS) {
        kna__tile_keys(&tile, first, hi - first < KNA_TILE_KEYS ? hi - first : KNA_TILE_KEYS);
    }
    kna__tile_end(&tile);
}

/*
 * Large tiles share the widening of keys and values among more rows (192 against 96: a fifth faster), small ones keep all threads
 * busy. A row's result is the same in any tile, so this choice may look at the threads.
 */
static int64_t choose_tile(const kna__problem *p)
{
    int64_t rows = p->m * p->g, tile = TILE_MOST;
    while (tile > TILE_LEAST && (rows + tile - 1) / tile * p->h_kv < 6 * (int64_t)p->context->threads) {
        tile /= 2;
    }
    return tile;
}

int kna__attend_prefill(const kna__problem *p)
{
    prefill_job job = { p, choose_tile(p), 0, NULL, 0 };
    kna__cutter cutter = { NULL, 0 };
    kna__tile tile;
    job.tiles = (p->m * p->g + job.tile - 1) / job.tile;
    kna__tile_cut(&tile, p, job.tile, &cutter);
    job.worker_bytes = cutter.used;
    job.scratch = kna__scratch(p->context, kna__size_product(job.worker_bytes, (size_t)p->context->threads));
    if (!job.scratch) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch per thread", job.worker_bytes);
    }
    kna__parallel_for(p->context->threads, p->h_kv * job.tiles, prefill_tile, &job);
    return KNA_OK;
}
