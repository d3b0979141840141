/*
 * decode.c - exact attention of few queries: bound by memory, so each cached byte is read once per KV head, for all its
 * query heads together, and the keys are split into chunks so that every thread has work however few the heads are.
 *
 * Invariant: the chunks, and the order in which their states are joined, depend on n only, so neither does the result on
 * the number of threads.
 */
#include "problem.h"

enum {
    CHUNK = 512, /* keys per task: 64 KiB of f16 keys at d = 64 */
    TILE = 64    /* keys whose mask is looked at together, to skip what is forbidden */
};

typedef struct decode_job {
    const kna__problem *problem;
    int64_t rows;         /* query rows per KV head */
    int64_t chunks;
    int64_t together;     /* KV heads per task */
    const float *queries; /* (h_kv, rows, d), scaled */
    kna__state *states;   /* (h_kv, chunks, rows) */
    float *values;        /* (h_kv, chunks, rows, dv) */
    float *scores;        /* per worker (rows, CHUNK) */
} decode_job;

/* Keys of first .. first+count that some row may see, by causality and window. */
static void union_range(const kna__problem *p, int64_t queries, int64_t *first, int64_t *end)
{
    int64_t lo, hi, least = *end, most = *first;
    for (int64_t query = 0; query < queries; query++) {
        kna__visible(p, query, &lo, &hi);
        least = lo < least ? lo : least;
        most = hi > most ? hi : most;
    }
    *first = least > *first ? least : *first;
    *end = most < *end ? most : *end;
}

static bool tile_is_forbidden(const kna__problem *p, int64_t kv_head, int64_t rows, int64_t first, int64_t count)
{
    if (!p->mask.data) {
        return false;
    }
    int64_t step = p->mask.heads == 1 ? p->g : 1; /* one look per query where all heads share a mask */
    for (int64_t r = 0; r < rows; r += step) {
        if (!kna__mask_forbids(p, kv_head * p->g + r % p->g, r / p->g, first, count)) {
            return false;
        }
    }
    return true;
}

/* All rows against the keys of a chunk, tile by tile; returns a bit per tile that holds something. */
static uint64_t score_chunk(const decode_job *job, int64_t kv_head, int64_t first, int64_t end, float *scores)
{
    const kna__problem *p = job->problem;
    const float *q = job->queries + kv_head * job->rows * p->d;
    uint64_t live = 0;
    for (int64_t at = first, tile = 0; at < end; at += TILE, tile++) {
        int64_t count = end - at < TILE ? end - at : TILE;
        if (tile_is_forbidden(p, kv_head, job->rows, at, count)) {
            for (int64_t r = 0; r < job->rows; r++) {
                kna__forbid(scores + r * CHUNK + (at - first), 0, count);
            }
            continue;
        }
        live |= UINT64_C(1) << tile;
        p->kernels->dot[p->k.type](scores + (at - first), CHUNK, q, (size_t)p->d, (size_t)job->rows,
                                   kna__span_at(&p->k, kv_head, at), (size_t)count, (size_t)p->d);
        for (int64_t r = 0; r < job->rows; r++) {
            kna__logits_seen(p, kv_head * p->g + r % p->g, r / p->g, at, scores + r * CHUNK + (at - first), count);
        }
    }
    return live;
}

static void mix_chunk(const decode_job *job, int64_t kv_head, int64_t first, int64_t end, uint64_t live, const float *scores,
                      float *values)
{
    const kna__problem *p = job->problem;
    for (int64_t at = first, tile = 0; at < end; at += TILE, tile++) {
        if (live >> tile & 1) {
            int64_t count = end - at < TILE ? end - at : TILE;
            p->kernels->mix[p->v.type](values, (size_t)p->dv, scores + (at - first), CHUNK, (size_t)job->rows,
                                       kna__span_at(&p->v, kv_head, at), (size_t)count, (size_t)p->dv);
        }
    }
}

static void decode_chunk(const decode_job *job, int64_t chunk, int64_t kv_head, int worker)
{
    const kna__problem *p = job->problem;
    int64_t at = kv_head * job->chunks + chunk;
    int64_t first = chunk * CHUNK, end = first + CHUNK < p->n ? first + CHUNK : p->n;
    float *scores = job->scores + worker * job->rows * CHUNK;
    kna__state *states = job->states + at * job->rows;
    float *values = job->values + at * job->rows * p->dv;
    memset(values, 0, (size_t)(job->rows * p->dv) * sizeof *values);
    union_range(p, job->rows / p->g, &first, &end);
    uint64_t live = first < end ? score_chunk(job, kv_head, first, end, scores) : 0;
    for (int64_t r = 0; r < job->rows; r++) {
        states[r] = kna__soften(p->kernels, scores + r * CHUNK, live ? end - first : 0);
    }
    mix_chunk(job, kv_head, first, end, live, scores, values);
}

/* A task: one chunk of `together` neighbouring KV heads. */
static void decode_task(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    int64_t groups = job->problem->h_kv / job->together, first = task % groups * job->together;
    for (int64_t kv_head = first; kv_head < first + job->together; kv_head++) {
        decode_chunk(job, task / groups, kv_head, worker);
    }
}

/*
 * Caches that keep the heads of a token side by side (llama.cpp's do) are read by whole tokens: what one head's pass brings into
 * the cache, wanted or not, the next head's finds there. Only the order of work changes, no result.
 */
static int64_t heads_together(const decode_job *job)
{
    const kna__problem *p = job->problem;
    bool is_interleaved = p->k.head_stride_bytes < p->k.row_stride_bytes;
    return is_interleaved && job->chunks >= 2 * (int64_t)p->context->threads ? p->h_kv : 1;
}

/* One output row: its chunks in order. */
static void join_row(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    const kna__problem *p = job->problem;
    (void)worker;
    int64_t kv_head = task / job->rows, row = task % job->rows;
    float values[KNA_MAX_DIM] = { 0 };
    kna__state state = { -INFINITY, 0 };
    for (int64_t chunk = 0; chunk < job->chunks; chunk++) {
        int64_t at = (kv_head * job->chunks + chunk) * job->rows + row;
        kna__state_join(p->kernels, &state, values, job->states[at], job->values + at * p->dv, p->dv);
    }
    kna__state_write(p, kv_head * p->g + row % p->g, row / p->g, state, values);
}

static bool cut_scratch(decode_job *job, float **queries, char *base, size_t *bytes)
{
    const kna__problem *p = job->problem;
    kna__cutter cutter = { base, 0 };
    size_t states = kna__size_product(kna__size_product((size_t)p->h_kv, (size_t)job->chunks), (size_t)job->rows);
    *queries = kna__cut(&cutter, (size_t)(p->h_kv * job->rows), (size_t)p->d * sizeof(float));
    job->states = kna__cut(&cutter, states, sizeof(kna__state));
    job->values = kna__cut(&cutter, states, (size_t)p->dv * sizeof(float));
    job->scores = kna__cut(&cutter, (size_t)p->context->threads, (size_t)(job->rows * CHUNK) * sizeof(float));
    job->queries = *queries;
    *bytes = cutter.used;
    return base != NULL;
}

int kna__attend_decode(const kna__problem *p)
{
    decode_job job = { 0 };
    float *queries;
    size_t bytes;
    job.problem = p;
    job.rows = p->m * p->g;
    job.chunks = (p->n + CHUNK - 1) / CHUNK;
    job.together = heads_together(&job);
    cut_scratch(&job, &queries, NULL, &bytes);
    if (!cut_scratch(&job, &queries, kna__scratch(p->context, bytes), &bytes)) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch", bytes);
    }
    for (int64_t kv_head = 0; kv_head < p->h_kv; kv_head++) {
        kna__queries_read(p, queries + kv_head * job.rows * p->d, kv_head, 0, job.rows);
    }
    kna__parallel_for(p->context->threads, p->h_kv / job.together * job.chunks, decode_task, &job);
    kna__parallel_for(job.chunks < 64 ? 1 : p->context->threads, p->h_kv * job.rows, join_row, &job);
    return KNA_OK;
}
