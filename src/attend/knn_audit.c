/* knn_audit.c - a random share of rows also computed exactly, and how far the result was from that. */
#include "knn.h"

#include <math.h>

enum { CHUNK = 512 };

typedef struct audit_job {
    const knn_call *call;
    const int64_t *rows; /* query * h + head */
    char *rooms;
    size_t room_bytes;
} audit_job;

typedef struct audit_room {
    float *q, *s, *part, *values;
} audit_room;

static audit_room cut_room(const kna__problem *p, char *base, size_t *bytes)
{
    kna__cutter cutter = { base, 0 };
    audit_room room;
    room.q = kna__cut(&cutter, (size_t)(p->g * p->d), sizeof(float));
    room.s = kna__cut(&cutter, CHUNK, sizeof(float));
    room.part = kna__cut(&cutter, (size_t)p->dv, sizeof(float));
    room.values = kna__cut(&cutter, (size_t)p->dv, sizeof(float));
    *bytes = cutter.used;
    return room;
}

/* Rows that are not present take no part. */
static void forget_absent(const knn_call *call, float *s, int64_t first, int64_t count)
{
    for (int64_t j = 0; j < count && call->gaps; j++) {
        s[j] = kna__index_has(call->index, first + j) ? s[j] : -INFINITY;
    }
}

static kna__state exact_row(const knn_call *call, audit_room *room, int64_t head, int64_t query)
{
    const kna__problem *p = call->problem;
    int64_t lo, hi, kv_head = head / p->g;
    kna__state state = { -INFINITY, 0 };
    kna__visible(p, query, &lo, &hi);
    kna__queries_read(p, room->q, kv_head, query * p->g, p->g);
    memset(room->values, 0, (size_t)p->dv * sizeof(float));
    for (int64_t first = lo; first < hi; first += CHUNK) {
        int64_t count = hi - first < CHUNK ? hi - first : CHUNK;
        p->kernels->dot[p->k.type](room->s, (size_t)count, room->q + head % p->g * p->d, (size_t)p->d, 1,
                                   kna__span_at(&p->k, kv_head, first), (size_t)count, (size_t)p->d);
        kna__logits_finish(p, head, query, first, room->s, count);
        forget_absent(call, room->s, first, count);
        kna__state part = kna__soften(p->kernels, room->s, count);
        if (part.max > -INFINITY) {
            memset(room->part, 0, (size_t)p->dv * sizeof(float));
            p->kernels->mix[p->v.type](room->part, (size_t)p->dv, room->s, (size_t)count, 1, kna__span_at(&p->v, kv_head, first),
                                       (size_t)count, (size_t)p->dv);
            kna__state_join(p->kernels, &state, room->values, part, room->part, p->dv);
        }
    }
    return state;
}

static void audit_row(void *argument, int64_t task, int worker)
{
    const audit_job *job = argument;
    const kna__problem *p = job->call->problem;
    size_t bytes;
    audit_room room = cut_room(p, job->rooms + (size_t)worker * job->room_bytes, &bytes);
    int64_t row = job->rows[task], head = row % p->h, query = row / p->h;
    kna__state state = exact_row(job->call, &room, head, query);
    double sink = kna__sink_weight(p, head, state.max);
    double difference = 0, norm = 0;
    const float *out = kna__out_at(p, head, query);
    for (int64_t c = 0; c < p->dv; c++) {
        double truth = state.sum > 0 ? (double)room.values[c] / (state.sum + sink) : 0, off = (double)out[c] - truth;
        difference += off * off;
        norm += truth * truth;
    }
    job->call->stats[row].audit_error = (float)(norm > 0 ? sqrt(difference / norm) : sqrt(difference));
}

int kna__knn_audit(knn_call *call)
{
    const kna__problem *p = call->problem;
    audit_job job = { call, NULL, NULL, 0 };
    int64_t count = 0, *rows;
    kna__cutter cutter = { NULL, 0 };
    if (p->options.audit <= 0) {
        return KNA_OK;
    }
    cut_room(p, NULL, &job.room_bytes);
    size_t room_bytes = kna__size_product(job.room_bytes, (size_t)p->context->threads);
    kna__cut(&cutter, (size_t)(p->m * p->h), sizeof *rows);
    kna__cut(&cutter, 1, room_bytes);
    char *scratch = kna__scratch(p->context, cutter.used);
    if (!scratch) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch", cutter.used);
    }
    cutter = (kna__cutter){ scratch, 0 };
    job.rows = rows = kna__cut(&cutter, (size_t)(p->m * p->h), sizeof *rows);
    job.rooms = kna__cut(&cutter, 1, room_bytes);
    for (int64_t row = 0; row < p->m * p->h; row++) {
        if (kna__is_audited(p, row % p->h, row / p->h)) {
            rows[count++] = row;
        }
    }
    kna__parallel_for(p->context->threads, count, audit_row, &job);
    return KNA_OK;
}
