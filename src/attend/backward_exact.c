/*
 * backward_exact.c - exact gradients: bound by arithmetic, so tiles of rows meet tiles of keys in matrix products (backward.h has
 * the formulas). Logits are computed anew, as in FlashAttention: reading back n^2 of them would take longer.
 *
 * A block of query rows is worked on at a time, by all KV heads. A task is one chunk of a KV head's keys: it alone adds to their dK
 * and dV, in place, and has a part of the block's dQ to itself, which are added up afterwards.
 *
 * Invariant: chunks and tiles are cut by counts of rows and keys, and sums go over rows, keys and chunks in order, so the result
 * does not depend on the threads.
 */
#include "backward_tile.h"

enum {
    TILE_ROWS = KNA_BACKWARD_ROWS,
    TILE_KEYS = KNA_BACKWARD_KEYS,
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

static size_t room_bytes(const kna__problem *p)
{
    kna__cutter cutter = { NULL, 0 };
    kna__backward_room room;
    kna__backward_room_cut(&room, p, &cutter);
    return cutter.used;
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

/* The block with a tile of keys; returns whether any of its rows sees any of them. */
static bool meet_keys(const exact_job *job, int64_t head, int64_t first, int64_t count, kna__backward_room *room, float *part)
{
    const kna__problem *p = &job->b->problem;
    bool is_read = false;
    for (int64_t row = 0; row < job->rows; row += TILE_ROWS) {
        kna__backward_pair pair = { .kv_head = job->head + head,
                                    .row = job->row + row,
                                    .rows = smaller(TILE_ROWS, job->rows - row),
                                    .first = first,
                                    .count = count,
                                    .at = rows_from(p, &job->block[head], row),
                                    .dq = job->b->dq.data ? part + row * p->d : NULL };
        if (!kna__backward_sees(p, &pair)) {
            continue;
        }
        if (!is_read) {
            kna__backward_read(p, &pair, room);
            is_read = true;
        }
        kna__backward_add(job->b, &pair, room);
    }
    return is_read;
}

/* Chunks of recent keys first, of which most is seen: a short one at the end keeps nobody waiting. */
static void meet_chunk(void *argument, int64_t task, int worker)
{
    const exact_job *job = argument;
    const kna__problem *p = &job->b->problem;
    int64_t head = task % job->heads, chunk = job->chunks - 1 - task / job->heads, end = smaller((chunk + 1) * job->chunk, p->n);
    kna__cutter cutter = { job->rooms + (size_t)worker * job->room_bytes, 0 };
    kna__backward_room room;
    kna__backward_room_cut(&room, p, &cutter);
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
    job->room_bytes = room_bytes(p);
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
