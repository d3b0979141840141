/*
 * rival_linformer.c - keys and values projected along the sequence to `rank` rows (Wang et al. 2020). The projections are learned;
 * without ones means of runs of rows stand for them, each with the weight of the rows it is the mean of. (Random ones are no
 * approximation.)
 */
#include "rivals.h"

typedef struct linformer_job {
    const kna__problem *problem;
    int64_t rank;
    char *rooms;
    size_t room_bytes;
} linformer_job;

typedef struct linformer_room {
    float *x;                         /* (n, max(d, dv)) */
    float *keys, *values, *log_count; /* (rank, d), (rank, dv), (rank) */
    float *q, *weights, *out;         /* one query */
} linformer_room;

static linformer_room cut_room(const linformer_job *job, char *base, size_t *bytes)
{
    const kna__problem *p = job->problem;
    kna__cutter cutter = { base, 0 };
    size_t rank = (size_t)job->rank, d = (size_t)p->d, dv = (size_t)p->dv;
    linformer_room room;
    room.x = kna__cut(&cutter, kna__size_product((size_t)p->n, d > dv ? d : dv), sizeof(float));
    room.keys = kna__cut(&cutter, rank * d, sizeof(float));
    room.values = kna__cut(&cutter, rank * dv, sizeof(float));
    room.log_count = kna__cut(&cutter, rank, sizeof(float));
    room.q = kna__cut(&cutter, d, sizeof(float));
    room.weights = kna__cut(&cutter, rank, sizeof(float));
    room.out = kna__cut(&cutter, dv, sizeof(float));
    *bytes = cutter.used;
    return room;
}

int64_t kna__linformer_rank(const kna__problem *p)
{
    int64_t rank = p->options.rank ? p->options.rank : 256;
    return rank < p->n || p->options.project_k ? rank : p->n;
}

void kna__linformer_project(const kna__problem *p, const kna_rows *rows, int64_t head, const float *by, float *x, float *to,
                            float *counts)
{
    size_t rank = (size_t)kna__linformer_rank(p), dim = (size_t)rows->dim;
    kna__rival_widen(p, rows, head, 0, p->n, x);
    if (by) {
        p->kernels->gemm(to, dim, by, (size_t)p->n, x, dim, rank, dim, (size_t)p->n, false);
    } else {
        kna__rival_means(p->kernels, x, p->n, rows->dim, (int64_t)rank, to, counts);
    }
}

static void attend_row(const linformer_job *job, int64_t head, int64_t query, linformer_room *room)
{
    const kna__problem *p = job->problem;
    kna__span keys = { (const char *)room->keys, (size_t)p->d * sizeof(float), NULL };
    kna__span values = { (const char *)room->values, (size_t)p->dv * sizeof(float), NULL };
    size_t rank = (size_t)job->rank;
    kna__queries_read(p, room->q, head / p->g, query * p->g + head % p->g, 1);
    p->kernels->dot[KNA_F32](room->weights, rank, room->q, (size_t)p->d, 1, keys, rank, (size_t)p->d);
    p->kernels->axpy(room->weights, 1.0f, room->log_count, rank);
    kna__state state = kna__soften(p->kernels, room->weights, job->rank);
    memset(room->out, 0, (size_t)p->dv * sizeof *room->out);
    p->kernels->mix[KNA_F32](room->out, (size_t)p->dv, room->weights, rank, 1, values, rank, (size_t)p->dv);
    kna__state_write(p, head, query, state, room->out);
}

static void attend_head(void *argument, int64_t kv_head, int worker)
{
    const linformer_job *job = argument;
    const kna__problem *p = job->problem;
    size_t unused;
    linformer_room room = cut_room(job, job->rooms + (size_t)worker * job->room_bytes, &unused);
    memset(room.log_count, 0, (size_t)job->rank * sizeof(float));
    kna__linformer_project(p, &p->v, kv_head, p->options.project_v, room.x, room.values, room.log_count);
    kna__linformer_project(p, &p->k, kv_head, p->options.project_k, room.x, room.keys, room.log_count);
    for (int64_t i = 0; i < job->rank; i++) {
        room.log_count[i] = p->options.project_k ? 0 : logf(room.log_count[i]);
    }
    for (int64_t row = 0; row < p->m * p->g; row++) {
        attend_row(job, kv_head * p->g + row % p->g, row / p->g, &room);
    }
}

int kna__attend_linformer(const kna__problem *p, kna_report *report)
{
    (void)report;
    linformer_job job = { p, kna__linformer_rank(p), NULL, 0 };
    cut_room(&job, NULL, &job.room_bytes);
    job.rooms = kna__scratch(p->context, kna__size_product(job.room_bytes, (size_t)p->context->threads));
    if (!job.rooms) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch per thread", job.room_bytes);
    }
    kna__parallel_for(p->context->threads, p->h_kv, attend_head, &job);
    return KNA_OK;
}
