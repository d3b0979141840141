/*
 * backward_exact.c - exact gradients: bound by arithmetic, so tiles of rows meet tiles of keys in matrix products (backward.h has the
 * formulas). Logits are computed anew, as in FlashAttention: reading back n^2 of them would take longer.
 *
 * A block of query rows is worked on at a time, by all KV heads. A task is one chunk of a KV head's keys: it alone adds to their dK and
 * dV, in place, and has a part of the block's dQ to itself, which are added up afterwards.
 *
 * Invariant: chunks and tiles are cut by counts of rows and keys, and sums go over rows, keys and chunks in order, so the result does not
 * depend on the threads.
 */
#include "backward.h"

enum {
    TILE_ROWS = 192,
    TILE_KEYS = 128,
    BLOCK_ROWS = 4 * TILE_ROWS,
    CHUNKS = 16, /* of a KV head's keys, at most: each has a part of dQ */
    CHUNK_LEAST = 512,
    TASKS = 8 /* per thread that a step should have: KV heads are taken together until it has */
};

typedef struct exact_job {
    const kna__backward *b;
    int64_t head, heads;       /* KV heads being worked on */
    int64_t row, rows;         /* the block */
    int64_t chunk, chunks;     /* keys per chunk; how many */
    kna__backward_rows *block; /* (heads) */
    float *parts;              /* (heads, chunks, BLOCK_ROWS, d) of dQ */
    bool *used;                /* (heads, chunks) */
    char *rooms;
    size_t room_bytes;
} exact_job;

/* A worker's room. */
typedef struct exact_room {
    float *k, *kt, *v, *vt; /* (TILE_KEYS, d), (d, TILE_KEYS), and of values */
    float *weights, *slopes, *turned;
    float *raw; /* products before the soft cap */
} exact_room;

static exact_room cut_room(const exact_job *job, char *base, size_t *bytes)
{
    const kna__problem *p = &job->b->problem;
    kna__cutter cutter = { base, 0 };
    size_t keys = TILE_KEYS, pairs = (size_t)TILE_ROWS * TILE_KEYS;
    exact_room room;
    room.k = kna__cut(&cutter, keys * (size_t)p->d, sizeof(float));
    room.kt = kna__cut(&cutter, keys * (size_t)p->d, sizeof(float));
    room.v = kna__cut(&cutter, keys * (size_t)p->dv, sizeof(float));
    room.vt = kna__cut(&cutter, keys * (size_t)p->dv, sizeof(float));
    room.weights = kna__cut(&cutter, pairs, sizeof(float));
    room.slopes = kna__cut(&cutter, pairs, sizeof(float));
    room.turned = kna__cut(&cutter, pairs, sizeof(float));
    room.raw = kna__cut(&cutter, p->options.softcap > 0 ? pairs : 0, sizeof(float));
    *bytes = cutter.used;
    return room;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t tiles_of(const exact_job *job)
{
    return (job->rows + TILE_ROWS - 1) / TILE_ROWS;
}

static float *part_of(const exact_job *job, int64_t head, int64_t chunk)
{
    return job->parts + (head * job->chunks + chunk) * BLOCK_ROWS * job->b->problem.d;
}

/* The rows of a block from `row` on. */
static kna__backward_rows rows_from(const kna__problem *p, const kna__backward_rows *rows, int64_t row)
{
    return (kna__backward_rows){ rows->q + row * p->d, rows->dout + row * p->dv, rows->delta + row, rows->lse + row };
}

/* ---- a tile of rows and a tile of keys */

typedef struct exact_pair {
    int64_t kv_head;
    int64_t row, rows;    /* of the KV head */
    int64_t first, count; /* keys */
    kna__backward_rows at;
} exact_pair;

/* Rows .. to query heads and queries. */
static int64_t head_of(const kna__problem *p, const exact_pair *pair, int64_t r)
{
    return pair->kv_head * p->g + (pair->row + r) % p->g;
}

static int64_t query_of(const kna__problem *p, const exact_pair *pair, int64_t r)
{
    return (pair->row + r) / p->g;
}

static bool is_seen(const kna__problem *p, const exact_pair *pair)
{
    int64_t lo, hi, unused;
    kna__visible(p, query_of(p, pair, 0), &lo, &unused);
    kna__visible(p, query_of(p, pair, pair->rows - 1), &unused, &hi);
    return pair->first < hi && pair->first + pair->count > lo &&
           !kna__mask_forbids_rows(p, pair->kv_head, pair->row, pair->rows, pair->first, pair->count);
}

/* What every key weighs, by the logits anew and the lse of the forward call. */
static void weigh(const kna__problem *p, const exact_pair *pair, const exact_room *room)
{
    size_t d = (size_t)p->d, keys = (size_t)pair->count;
    p->kernels->gemm(room->weights, TILE_KEYS, pair->at.q, d, room->kt, TILE_KEYS, (size_t)pair->rows, keys, d, false);
    if (p->options.softcap > 0) {
        memcpy(room->raw, room->weights, (size_t)(pair->rows * TILE_KEYS) * sizeof *room->raw);
    }
    for (int64_t r = 0; r < pair->rows; r++) {
        float *w = room->weights + r * TILE_KEYS;
        kna__logits_seen(p, head_of(p, pair, r), query_of(p, pair, r), pair->first, w, pair->count);
        if (pair->at.lse[r] == -INFINITY) {
            memset(w, 0, keys * sizeof *w); /* a row that sees nothing */
        } else {
            p->kernels->exp_sum(w, pair->at.lse[r], keys);
        }
    }
}

/* dS before the soft cap is tanh's slope there times dS. */
static void uncap(const kna__problem *p, float *slopes, float *raw, int64_t count)
{
    float cap = p->options.softcap;
    p->kernels->softcap(raw, cap, (size_t)count);
    for (int64_t j = 0; j < count; j++) {
        float share = raw[j] / cap;
        slopes[j] *= 1 - share * share;
    }
}

/* dS. */
static void slope(const kna__problem *p, const exact_pair *pair, const exact_room *room)
{
    size_t dv = (size_t)p->dv, keys = (size_t)pair->count;
    p->kernels->gemm(room->slopes, TILE_KEYS, pair->at.dout, dv, room->vt, TILE_KEYS, (size_t)pair->rows, keys, dv, false);
    for (int64_t r = 0; r < pair->rows; r++) {
        float *slopes = room->slopes + r * TILE_KEYS;
        p->kernels->tilt(slopes, room->weights + r * TILE_KEYS, pair->at.delta[r], keys);
        if (p->options.softcap > 0) {
            uncap(p, slopes, room->raw + r * TILE_KEYS, pair->count);
        }
    }
}

/* rows of `to`, from the first key's on, += x' y; x (rows, keys), y (rows, dim). */
static void add_turned(const kna__problem *p, const exact_pair *pair, const exact_room *room, const kna_out_rows *to,
                       const float *x, const float *y, int64_t dim)
{
    float *at = kna__gradient_at(to, pair->kv_head, pair->first);
    if (!at) {
        return;
    }
    p->kernels->transpose(room->turned, TILE_ROWS, x, TILE_KEYS, (size_t)pair->rows, (size_t)pair->count);
    p->kernels->gemm(at, (size_t)to->row_stride_bytes / sizeof(float), room->turned, TILE_ROWS, y, (size_t)dim, (size_t)pair->count,
                     (size_t)dim, (size_t)pair->rows, true);
}

static void differentiate(const kna__backward *b, const exact_pair *pair, const exact_room *room, float *part)
{
    const kna__problem *p = &b->problem;
    weigh(p, pair, room);
    add_turned(p, pair, room, &b->dv, room->weights, pair->at.dout, p->dv);
    if (!b->dq.data && !b->dk.data) {
        return;
    }
    slope(p, pair, room);
    add_turned(p, pair, room, &b->dk, room->slopes, pair->at.q, p->d);
    if (b->dq.data) {
        p->kernels->gemm(part, (size_t)p->d, room->slopes, TILE_KEYS, room->k, (size_t)p->d, (size_t)pair->rows, (size_t)p->d,
                         (size_t)pair->count, true);
    }
}

/* ---- a block of rows */

static void read_tile(void *argument, int64_t task, int worker)
{
    const exact_job *job = argument;
    const kna__problem *p = &job->b->problem;
    int64_t head = task % job->heads, row = task / job->heads * TILE_ROWS;
    kna__backward_rows rows = rows_from(p, &job->block[head], row);
    (void)worker;
    kna__backward_rows_read(job->b, &rows, job->head + head, job->row + row, smaller(TILE_ROWS, job->rows - row));
}

static void read_keys(const kna__problem *p, int64_t kv_head, int64_t first, int64_t count, const exact_room *room)
{
    size_t d = (size_t)p->d, dv = (size_t)p->dv, keys = (size_t)count;
    p->kernels->widen[p->k.type](room->k, d, kna__span_at(&p->k, kv_head, first), keys, d);
    p->kernels->transpose(room->kt, TILE_KEYS, room->k, d, keys, d);
    p->kernels->widen[p->v.type](room->v, dv, kna__span_at(&p->v, kv_head, first), keys, dv);
    p->kernels->transpose(room->vt, TILE_KEYS, room->v, dv, keys, dv);
}

/* The block with a tile of keys; returns whether any of its rows sees any of them. */
static bool meet_keys(const exact_job *job, int64_t head, int64_t first, int64_t count, const exact_room *room, float *part)
{
    const kna__problem *p = &job->b->problem;
    bool is_read = false;
    for (int64_t row = 0; row < job->rows; row += TILE_ROWS) {
        exact_pair pair = { job->head + head,
                            job->row + row,
                            smaller(TILE_ROWS, job->rows - row),
                            first,
                            count,
                            rows_from(p, &job->block[head], row) };
        if (!is_seen(p, &pair)) {
            continue;
        }
        if (!is_read) {
            read_keys(p, pair.kv_head, first, count, room);
            is_read = true;
        }
        differentiate(job->b, &pair, room, part + row * p->d);
    }
    return is_read;
}

/* Chunks of recent keys first, of which most is seen: a short one at the end keeps nobody waiting. */
static void meet_chunk(void *argument, int64_t task, int worker)
{
    const exact_job *job = argument;
    const kna__problem *p = &job->b->problem;
    int64_t head = task % job->heads, chunk = job->chunks - 1 - task / job->heads, end = smaller((chunk + 1) * job->chunk, p->n);
    size_t unused;
    exact_room room = cut_room(job, job->rooms + (size_t)worker * job->room_bytes, &unused);
    float *part = part_of(job, head, chunk);
    bool *used = &job->used[head * job->chunks + chunk];
    memset(part, 0, (size_t)(job->rows * p->d) * sizeof *part);
    *used = false;
    for (int64_t first = chunk * job->chunk; first < end; first += TILE_KEYS) {
        *used |= meet_keys(job, head, first, smaller(TILE_KEYS, end - first), &room, part);
    }
}

/* dQ of a tile: its parts, times the scale. */
static void join_tile(void *argument, int64_t task, int worker)
{
    const exact_job *job = argument;
    const kna__problem *p = &job->b->problem;
    int64_t head = task % job->heads, row = task / job->heads * TILE_ROWS, end = smaller(row + TILE_ROWS, job->rows);
    (void)worker;
    for (; row < end; row++) {
        int64_t query = (job->row + row) / p->g, query_head = (job->head + head) * p->g + (job->row + row) % p->g;
        float *dq = kna__gradient_at(&job->b->dq, query_head, query);
        for (int64_t chunk = 0; chunk < job->chunks; chunk++) {
            if (job->used[head * job->chunks + chunk]) {
                p->kernels->axpy(dq, p->scale, part_of(job, head, chunk) + row * p->d, (size_t)p->d);
            }
        }
    }
}

static int64_t count_tiles(void *argument)
{
    const exact_job *job = argument;
    return job->heads * tiles_of(job);
}

static int64_t count_chunks(void *argument)
{
    const exact_job *job = argument;
    return job->heads * job->chunks;
}

static int64_t count_joins(void *argument)
{
    const exact_job *job = argument;
    return job->b->dq.data ? count_tiles(argument) : 0;
}

/* ---- all */

static size_t cut_job(exact_job *job, int64_t heads, char *base)
{
    const kna__problem *p = &job->b->problem;
    kna__cutter cutter = { base, 0 };
    size_t parts = (size_t)(heads * job->chunks);
    kna__backward_rows none;
    job->block = kna__cut(&cutter, (size_t)heads, sizeof *job->block);
    for (int64_t head = 0; head < heads; head++) {
        kna__backward_rows_cut(base ? &job->block[head] : &none, p, BLOCK_ROWS, &cutter);
    }
    job->parts = kna__cut(&cutter, kna__size_product(parts, (size_t)(BLOCK_ROWS * p->d)), sizeof(float));
    job->used = kna__cut(&cutter, parts, sizeof(bool));
    cut_room(job, NULL, &job->room_bytes);
    job->rooms = kna__cut(&cutter, (size_t)p->context->threads, job->room_bytes);
    return cutter.used;
}

/* KV heads worked on together; a result does not depend on who else is. */
static int64_t heads_together(const exact_job *job)
{
    const kna__problem *p = &job->b->problem;
    int64_t want = (TASKS * (int64_t)p->context->threads + job->chunks - 1) / job->chunks;
    return smaller(want, p->h_kv);
}

int kna__backward_exact(const kna__backward *b)
{
    static const kna__step steps[] = { { read_tile, count_tiles }, { meet_chunk, count_chunks }, { join_tile, count_joins } };
    const kna__problem *p = &b->problem;
    exact_job job = { .b = b, .chunk = CHUNK_LEAST };
    if (!p->n || !p->m) {
        return KNA_OK;
    }
    while (job.chunk * CHUNKS < p->n) {
        job.chunk += TILE_KEYS;
    }
    job.chunks = (p->n + job.chunk - 1) / job.chunk;
    int64_t together = heads_together(&job);
    size_t bytes = cut_job(&job, together, NULL);
    char *scratch = kna__scratch(p->context, bytes);
    if (!scratch) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch", bytes);
    }
    cut_job(&job, together, scratch);
    for (job.head = 0; job.head < p->h_kv; job.head += together) {
        job.heads = smaller(together, p->h_kv - job.head);
        for (job.row = 0; job.row < p->m * p->g; job.row += BLOCK_ROWS) {
            job.rows = smaller(BLOCK_ROWS, p->m * p->g - job.row);
            kna__parallel_steps(p->context->threads, steps, 3, &job);
        }
    }
    return KNA_OK;
}
