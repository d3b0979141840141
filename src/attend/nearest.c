/* nearest.c - the call: tiles of queries, the scan, the report. See nearest.h for the plan. */
#include "lists.h"
#include "sampled.h"

#include <math.h>

enum {
    CHUNK_BLOCKS = 64,          /* blocks per scan task: 1,024 keys */
    TILE_SCORES_BYTES = 2 << 20 /* scores of a tile of queries stay in a second-level cache */
};

/* Room to choose from a pool; for quotas only for what is taken of the nearest. */
static void cut_pool(const nearest_job *job, kna__pool *pool, kna__cutter *cutter)
{
    const kna__problem *p = job->problem;
    const kna_attend_options *o = &p->options;
    bool is_greedy = o->diverse == KNA_DIVERSE_MMR || o->diverse == KNA_DIVERSE_DPP;
    size_t n = (size_t)job->ld, most = (size_t)(o->pool < job->ld ? o->pool : job->ld), count = is_greedy ? most : 0;
    size_t determined = o->diverse == KNA_DIVERSE_DPP ? count : 0;
    memset(pool, 0, sizeof *pool);
    pool->basis_most = o->k_near < p->d ? o->k_near : p->d;
    pool->unit = kna__cut(cutter, kna__size_product(count, (size_t)p->d), sizeof(float));
    pool->cosine = kna__cut(cutter, count, sizeof(float));
    pool->most = kna__cut(cutter, count, sizeof(float));
    pool->factor = kna__cut(cutter, determined, sizeof(float));
    pool->inner = kna__cut(cutter, determined, sizeof(float));
    pool->basis = kna__cut(cutter, kna__size_product(determined, (size_t)pool->basis_most), sizeof(float));
    pool->gain = kna__cut(cutter, count, sizeof(double));
    pool->taken = kna__cut(cutter, o->diverse == KNA_DIVERSE_QUOTA ? n : count, sizeof(bool));
}

nearest_room kna__nearest_room(const nearest_job *job, int worker, char *base, size_t *bytes)
{
    nearest_room room;
    const kna_attend_options *o = &job->problem->options;
    size_t n = (size_t)job->ld, blocks = n / KNA_BLOCK, dv = (size_t)job->problem->dv;
    size_t rest = o->diverse == KNA_DIVERSE_QUOTA ? n : 0, marks = o->diverse == KNA_DIVERSE_QUOTA || o->landmarks ? n : 0;
    size_t strata = o->stratify ? (size_t)o->key_group_count : 1;
    size_t draws = o->method == KNA_TOPK ? 0 : (size_t)o->samples, groups = o->method == KNA_MOM ? (size_t)o->groups : 0;
    kna__cutter cutter = { base ? base + (size_t)worker * job->room_bytes : NULL, 0 };
    room.ids = kna__cut(&cutter, n, sizeof(int32_t));
    room.exact = kna__cut(&cutter, n, sizeof(float));
    room.approx = kna__cut(&cutter, n, sizeof(float));
    room.found = kna__cut(&cutter, n, sizeof(int32_t));
    room.found_scratch = kna__cut(&cutter, n, sizeof(int32_t));
    room.topk_scratch = kna__cut(&cutter, 2 * blocks + 1 + n, sizeof(float));
    room.work = kna__cut(&cutter, n, sizeof(float));
    room.values = kna__cut(&cutter, dv, sizeof(float));
    cut_pool(job, &room.pool, &cutter);
    room.part = kna__cut(&cutter, rest, sizeof(float));
    room.marked = marks ? kna__cut(&cutter, marks, sizeof(float)) : NULL;
    room.sums = kna__cut(&cutter, o->method == KNA_TOPK ? 0 : n, sizeof(double));
    room.doubles = kna__cut(&cutter, kna__size_product(5 + 2 * strata, dv), sizeof(double));
    room.strata = kna__cut(&cutter, strata, sizeof(kna__stratum));
    room.drawn = kna__cut(&cutter, draws, sizeof(int32_t));
    room.groups = kna__cut(&cutter, kna__size_product(groups, dv), sizeof(float));
    room.column = kna__cut(&cutter, groups, sizeof(float));
    memset(&room.cells, 0, sizeof room.cells);
    if (job->stratified) {
        kna__cells_cut(&room.cells, job->problem, job->ld, &cutter);
    }
    *bytes = cutter.used;
    return room;
}

/* Queries of the tile as f32 and int8, per KV head. */
static void read_queries(void *argument, int64_t kv_head, int worker)
{
    const nearest_job *job = argument;
    const kna__problem *p = job->problem;
    (void)worker;
    int64_t rows = job->tile * p->g, live = job->queries * p->g, d4 = (int64_t)job->index->d4 * 4;
    float *q = job->q + kv_head * rows * p->d;
    kna__queries_read(p, q, kv_head, job->query * p->g, live);
    for (int64_t r = 0; r < live; r++) {
        int64_t at = kv_head * rows + r;
        int8_t *coarse = job->q_i8 + at * d4;
        memset(coarse, 0, (size_t)d4);
        job->q_scale[at] = p->kernels->quantize(coarse, q + r * p->d, (size_t)p->d);
        float rest[KNA_MAX_DIM];
        for (int64_t c = 0; c < p->d; c++) {
            rest[c] = q[r * p->d + c] - job->q_scale[at] * (float)coarse[c];
        }
        int8_t *fine = job->q_rest + at * d4;
        memset(fine, 0, (size_t)d4);
        job->rest_scale[at] = p->kernels->quantize(fine, rest, (size_t)p->d);
        job->q_lost[at] = 0;
        for (int64_t c = 0; c < p->d; c++) {
            job->q_lost[at] += fabsf(rest[c] - job->rest_scale[at] * (float)fine[c]);
        }
    }
}

/* All rows of the tile against a chunk of blocks of one KV head. */
static void scan_chunk(void *argument, int64_t task, int worker)
{
    const nearest_job *job = argument;
    const kna__problem *p = job->problem;
    int64_t kv_head = task / job->chunks, block = task % job->chunks * CHUNK_BLOCKS;
    int64_t end = block + CHUNK_BLOCKS < job->ld / KNA_BLOCK ? block + CHUNK_BLOCKS : job->ld / KNA_BLOCK;
    int64_t rows = job->tile * p->g, live = job->queries * p->g, at = kv_head * rows;
    size_t stride = job->index->d4 * 4, count = (size_t)(end - block) * KNA_BLOCK;
    const uint8_t *packed = kna__index_packed(job->index, kv_head, block);
    const float *scales = kna__index_scales(job->index, kv_head, block);
    float *out = job->scores + at * job->ld + block * KNA_BLOCK;
    p->kernels->scan(out, (size_t)job->ld, job->q_i8 + (size_t)at * stride, stride, job->q_scale + at, (size_t)live, packed, scales,
                     (size_t)(end - block), job->index->d4);
    size_t unused;
    nearest_room room = kna__nearest_room(job, worker, job->rooms, &unused);
    for (int64_t r = 0; r < live; r++) {
        p->kernels->scan(room.work, count, job->q_rest + (size_t)(at + r) * stride, stride, job->rest_scale + at + r, 1, packed,
                         scales, (size_t)(end - block), job->index->d4);
        p->kernels->axpy(out + r * job->ld, 1.0f, room.work, count);
    }
}

static void attend_row(void *argument, int64_t task, int worker)
{
    const nearest_job *job = argument;
    const kna__problem *p = job->problem;
    size_t unused;
    nearest_row row;
    memset(&row, 0, sizeof row);
    int64_t per_head = job->queries * p->g, r = task % per_head;
    row.job = job;
    row.kv_head = task / per_head;
    row.head = row.kv_head * p->g + r % p->g;
    row.query = job->query + r / p->g;
    row.room = kna__nearest_room(job, worker, job->rooms, &unused);
    row.q = job->q + (row.kv_head * job->tile * p->g + r) * p->d;
    row.s = job->scores + (row.kv_head * job->tile * p->g + r) * job->ld;
    if (!job->scan) { /* what a row sees is told by what is added to its logits */
        memset(row.s, 0, (size_t)job->ld * sizeof *row.s);
    }
    kna__visible(p, row.query, &row.lo, &row.hi);
    kna__nearest_attend(&row, &job->stats[row.query * p->h + row.head]);
}

/* Groups, landmarks, and sums of values. */
static void cut_beside(nearest_job *job, kna__cutter *cutter)
{
    const kna__problem *p = job->problem;
    const kna_attend_options *o = &p->options;
    size_t n = o->diverse == KNA_DIVERSE_QUOTA ? (size_t)p->n : 0, steps = o->tail ? (size_t)(p->n / KNA_VALUE_STEP + 1) : 0;
    job->groups.keys = kna__cut(cutter, n, sizeof(int32_t));
    job->groups.first = kna__cut(cutter, o->diverse == KNA_DIVERSE_QUOTA ? (size_t)o->key_group_count + 1 : 0, sizeof(int64_t));
    kna__landmarks_cut(&job->landmarks, p, cutter);
    job->value_sums = kna__cut(cutter, kna__size_product((size_t)p->h_kv * steps, (size_t)p->dv), sizeof(double));
}

static size_t cut_scratch(nearest_job *job, char *base)
{
    const kna__problem *p = job->problem;
    kna__cutter cutter = { base, 0 };
    size_t rows = (size_t)(p->h_kv * job->tile * p->g), d4 = job->index->d4 * 4;
    kna__nearest_room(job, 0, NULL, &job->room_bytes);
    job->q = kna__cut(&cutter, rows * (size_t)p->d, sizeof(float));
    job->q_i8 = kna__cut(&cutter, rows, d4);
    job->q_rest = kna__cut(&cutter, rows, d4);
    job->q_scale = kna__cut(&cutter, rows, sizeof(float));
    job->rest_scale = kna__cut(&cutter, rows, sizeof(float));
    job->q_lost = kna__cut(&cutter, rows, sizeof(float));
    job->scores = kna__cut(&cutter, kna__size_product(rows, (size_t)job->ld), sizeof(float));
    job->stats = kna__cut(&cutter, kna__size_product((size_t)p->m, (size_t)p->h), sizeof(kna__row_stats));
    job->audits = kna__cut(&cutter, p->options.audit > 0 ? kna__size_product((size_t)p->m, (size_t)p->h) : 0, sizeof(float));
    size_t norms = p->options.certificate != KNA_CERTIFICATE_ASYMPTOTIC ? (size_t)p->h_kv : 0;
    job->v_norm = kna__cut(&cutter, kna__size_product(norms, (size_t)job->ld), sizeof(float));
    cut_beside(job, &cutter);
    job->rooms = kna__cut(&cutter, (size_t)p->context->threads, job->room_bytes);
    return cutter.used;
}

/* |v| of a chunk of rows of a KV head. */
static void measure_values(void *argument, int64_t task, int worker)
{
    const nearest_job *job = argument;
    const kna__problem *p = job->problem;
    int64_t kv_head = task / job->chunks, row = task % job->chunks * CHUNK_BLOCKS * KNA_BLOCK;
    int64_t end = row + CHUNK_BLOCKS * KNA_BLOCK < p->n ? row + CHUNK_BLOCKS * KNA_BLOCK : p->n;
    float value[KNA_MAX_DIM];
    (void)worker;
    for (; row < end; row++) {
        p->kernels->widen[p->v.type](value, (size_t)p->dv, kna__span_at(&p->v, kv_head, row), 1, (size_t)p->dv);
        job->v_norm[kv_head * job->ld + row] = sqrtf(kna__square(p->kernels, value, p->dv));
    }
}

static float largest_scale(const nearest_job *job)
{
    float most = 0;
    for (int64_t kv_head = 0; kv_head < job->problem->h_kv; kv_head++) {
        float max = job->problem->kernels->max(kna__index_scales(job->index, kv_head, 0), (size_t)job->ld);
        most = max > most ? max : most;
    }
    return most;
}

static int64_t choose_tile(const kna__problem *p, int64_t ld)
{
    int64_t per_query = p->h * ld * (int64_t)sizeof(float);
    int64_t tile = TILE_SCORES_BYTES / (per_query ? per_query : 1);
    return tile < 1 ? 1 : tile > p->m ? p->m : tile;
}

/* What all rows go by. */
static void find_beside(nearest_job *job)
{
    const kna__problem *p = job->problem;
    int threads = p->context->threads;
    if (p->options.certificate != KNA_CERTIFICATE_ASYMPTOTIC) {
        kna__parallel_for(threads, p->h_kv * job->chunks, measure_values, job);
    }
    if (p->options.diverse == KNA_DIVERSE_QUOTA) {
        kna__groups_sort(p, &job->groups);
    }
    if (p->options.landmarks && p->n > p->options.k_near) { /* else nothing is chosen */
        kna__landmarks_find(job);
    }
    if (p->options.tail) {
        kna__parallel_for(threads, p->h_kv, kna__tail_sum, job);
    }
}

static int attend_tiles(nearest_job *job, kna_report *report)
{
    const kna__problem *p = job->problem;
    size_t bytes = cut_scratch(job, NULL);
    char *scratch = kna__scratch(p->context, bytes);
    if (!scratch) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch", bytes);
    }
    cut_scratch(job, scratch);
    job->scale_max = job->scan ? largest_scale(job) : 0;
    int threads = p->context->threads;
    find_beside(job);
    for (job->query = 0; job->query < p->m; job->query += job->tile) {
        job->queries = p->m - job->query < job->tile ? p->m - job->query : job->tile;
        kna__parallel_for(1, p->h_kv, read_queries, job);
        kna__parallel_for(threads, job->scan ? p->h_kv * job->chunks : 0, scan_chunk, job);
        kna__parallel_for(threads, job->queries * p->h, attend_row, job);
    }
    kna__audit_rows(p, job->index, job->stats, 0, p->m, (kna__draw){ 0 });
    kna__report_rows(p, job->stats, job->audits, report);
    return KNA_OK;
}

int kna__attend_nearest(const kna__problem *p, const kna_index *index, kna_report *report)
{
    nearest_job job;
    memset(&job, 0, sizeof job);
    job.problem = p;
    job.index = index;
    job.scan = index->method == KNA_TOPK;
    job.stratified = kna__needs_strata(&p->options);
    job.ld = (p->n + KNA_BLOCK - 1) / KNA_BLOCK * KNA_BLOCK;
    job.tile = choose_tile(p, job.ld);
    job.chunks = (job.ld / KNA_BLOCK + CHUNK_BLOCKS - 1) / CHUNK_BLOCKS;
    if (job.stratified && p->lists) {
        job.strata = p->lists->cells->strata;
        return attend_tiles(&job, report);
    }
    if (job.stratified) {
        double start = kna__seconds();
        KNA_TRY(kna__strata_new(p, index, &job.strata));
        report->build_s += kna__seconds() - start;
    }
    int status = attend_tiles(&job, report);
    kna__strata_free(&job.strata);
    return status;
}
