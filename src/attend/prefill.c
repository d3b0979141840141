/*
 * prefill.c - exact attention of many queries: bound by arithmetic, so keys and values are widened to f32 once per tile of
 * query rows and both products run as register-tiled matrix products, with an online softmax between them (Dao et al. 2022).
 *
 * Invariant: key tiles start at multiples of KEYS and are taken in order, so a row's result does not depend on its neighbours.
 */
#include "problem.h"

#include <math.h>

enum {
    TILE_MOST = 192,
    TILE_LEAST = 24,
    KEYS = 64 /* keys per tile: key panel, value panel and half the scores stay in a 32 KiB first-level cache at d = 64 */
};

typedef struct prefill_job {
    const kna__problem *problem;
    int64_t tile;   /* query rows per task */
    int64_t tiles;  /* tasks per KV head */
    char *scratch;
    size_t worker_bytes;
} prefill_job;

/* A worker's room. */
typedef struct prefill_room {
    float *q;      /* (tile, d) */
    float *rows;   /* (KEYS, max(d, dv)) keys before transposing, then values */
    float *kt;     /* (d, KEYS) */
    float *s;      /* (tile, KEYS) */
    float *out;    /* (tile, dv) */
    kna__state *state;
} prefill_room;

static prefill_room cut_room(const prefill_job *job, char *base, size_t *bytes)
{
    const kna__problem *p = job->problem;
    kna__cutter cutter = { base, 0 };
    prefill_room room;
    size_t tile = (size_t)job->tile, d = (size_t)p->d, dv = (size_t)p->dv;
    room.q = kna__cut(&cutter, tile * d, sizeof(float));
    room.rows = kna__cut(&cutter, KEYS * (d > dv ? d : dv), sizeof(float));
    room.kt = kna__cut(&cutter, KEYS * d, sizeof(float));
    room.s = kna__cut(&cutter, tile * KEYS, sizeof(float));
    room.out = kna__cut(&cutter, tile * dv, sizeof(float));
    room.state = kna__cut(&cutter, tile, sizeof(kna__state));
    *bytes = cutter.used;
    return room;
}

/* What a tile of rows may do with a tile of keys. */
enum { TILE_FORBIDDEN, TILE_MIXED };

static int tile_kind(const kna__problem *p, int64_t kv_head, int64_t row, int64_t rows, int64_t first, int64_t count)
{
    if (!p->mask.data) {
        return TILE_MIXED;
    }
    int64_t step = p->mask.heads == 1 ? p->g : 1;
    for (int64_t r = row; r < row + rows; r += step) {
        if (!kna__mask_forbids(p, kv_head * p->g + r % p->g, r / p->g, first, count)) {
            return TILE_MIXED;
        }
    }
    return TILE_FORBIDDEN;
}

/* Logits of one row; -inf outside what its query sees. Returns their maximum. */
static float finish_row(const kna__problem *p, int64_t kv_head, int64_t row, int64_t first, int64_t count, float *s)
{
    int64_t query = row / p->g, lo, hi;
    if (!kna__logits_plain(p)) {
        kna__logits_finish(p, kv_head * p->g + row % p->g, query, first, s, count);
    }
    kna__visible(p, query, &lo, &hi);
    for (int64_t j = 0; j < count && j < lo - first; j++) {
        s[j] = -INFINITY;
    }
    for (int64_t j = hi > first ? hi - first : 0; j < count; j++) {
        s[j] = -INFINITY;
    }
    return p->kernels->max(s, (size_t)count);
}

/* Online softmax of one row: shrink what is there if the maximum grew, turn logits into weights. */
static void soften_row(const kna__problem *p, prefill_room *room, int64_t r, float max, int64_t count)
{
    kna__state *state = &room->state[r];
    float *s = room->s + r * KEYS;
    if (max == -INFINITY) {
        memset(s, 0, (size_t)count * sizeof *s);
        return;
    }
    if (max > state->max) {
        float shrink = state->max == -INFINITY ? 0.0f : expf(state->max - max);
        p->kernels->scale(room->out + r * p->dv, shrink, (size_t)p->dv);
        state->sum *= (double)shrink;
        state->max = max;
    }
    state->sum += (double)p->kernels->exp_sum(s, state->max, (size_t)count);
}

static void attend_tile(const kna__problem *p, prefill_room *room, int64_t kv_head, int64_t row, int64_t rows, int64_t first,
                        int64_t count)
{
    const kna__kernels *kernels = p->kernels;
    size_t d = (size_t)p->d, dv = (size_t)p->dv, keys = (size_t)count;
    kernels->widen[p->k.type](room->rows, d, kna__span_at(&p->k, kv_head, first), keys, d);
    kernels->transpose(room->kt, KEYS, room->rows, d, keys, d);
    kernels->gemm(room->s, KEYS, room->q, d, room->kt, KEYS, (size_t)rows, keys, d, false);
    for (int64_t r = 0; r < rows; r++) {
        soften_row(p, room, r, finish_row(p, kv_head, row + r, first, count, room->s + r * KEYS), count);
    }
    kernels->widen[p->v.type](room->rows, dv, kna__span_at(&p->v, kv_head, first), keys, dv);
    kernels->gemm(room->out, dv, room->s, KEYS, room->rows, dv, (size_t)rows, dv, keys, true);
}

static void prefill_tile(void *argument, int64_t task, int worker)
{
    const prefill_job *job = argument;
    const kna__problem *p = job->problem;
    size_t bytes;
    prefill_room room = cut_room(job, job->scratch + (size_t)worker * job->worker_bytes, &bytes);
    int64_t kv_head = task / job->tiles, row = task % job->tiles * job->tile;
    int64_t rows = p->m * p->g - row < job->tile ? p->m * p->g - row : job->tile;
    int64_t lo, hi, unused;
    kna__visible(p, row / p->g, &lo, &unused);
    kna__visible(p, (row + rows - 1) / p->g, &unused, &hi);
    hi = (hi + KEYS - 1) / KEYS * KEYS; /* whole key tiles: how a sum is grouped must not depend on the tile of rows */
    hi = hi < p->n ? hi : p->n;
    kna__queries_read(p, room.q, kv_head, row, rows);
    memset(room.out, 0, (size_t)(rows * p->dv) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        room.state[r] = (kna__state){ -INFINITY, 0 };
    }
    for (int64_t first = lo / KEYS * KEYS; first < hi; first += KEYS) {
        int64_t count = hi - first < KEYS ? hi - first : KEYS;
        if (tile_kind(p, kv_head, row, rows, first, count) != TILE_FORBIDDEN) {
            attend_tile(p, &room, kv_head, row, rows, first, count);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        kna__state_write(p, kv_head * p->g + (row + r) % p->g, (row + r) / p->g, room.state[r], room.out + r * p->dv);
    }
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
    job.tiles = (p->m * p->g + job.tile - 1) / job.tile;
    cut_room(&job, NULL, &job.worker_bytes);
    job.scratch = kna__scratch(p->context, kna__size_product(job.worker_bytes, (size_t)p->context->threads));
    if (!job.scratch) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch per thread", job.worker_bytes);
    }
    kna__parallel_for(p->context->threads, p->h_kv * job.tiles, prefill_tile, &job);
    return KNA_OK;
}
