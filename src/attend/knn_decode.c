/*
 * knn_decode.c - kNN attention of few queries: bound by memory and by waiting for scattered rows, so each mean and each row is read
 * once per KV head for all of its query heads together, and the work is cut so that every thread has some however few the heads.
 *
 * A set is one query of one KV head: g rows that share the choice of clusters. Three parallel steps: logits of the clusters, and
 * the keys that are read in any case; the choice, per set; the keys of the chosen clusters and the means of the others. Each
 * leaves softmax states that are joined in a fixed order.
 *
 * Invariant: what a task does depends on the set and on n only, never on the threads.
 */
#include "knn.h"

#include <math.h>

enum {
    CHUNK_PIECES = 32, /* clusters per task: 512 */
    EXACT_KEYS = 512,  /* rows of a range per task */
    LIST_CLUSTERS = 8  /* chosen clusters per task: about 128 keys */
};

/* What belongs to one set. */
typedef struct decode_set {
    knn_plan plan;
    knn_choice choice;
    int64_t kv_head, query;
    float *q;           /* (g, d) scaled */
    float *z;           /* (g, slots) mean logits, then masses */
    float *max;         /* (g) what the masses are relative to */
    double *tail;       /* (g) masses left after the choice, relative to exp(max) */
    double *total;      /* (g) all of softmax, relative to exp(max) */
    float *half_square; /* (g) */
    int64_t keys;       /* on the list */
    int32_t stale;
} decode_set;

typedef struct decode_job {
    knn_call *call;
    int64_t sets, g;
    int64_t chunks, exact_chunks, list_chunks; /* most of any set */
    int64_t parts;                             /* exact chunks, then list chunks, then chunks of means */
    decode_set *set;
    kna__state *states; /* (parts, sets, g) */
    float *values;      /* (parts, sets, g, dv) */
    int32_t *stale;     /* (sets, list chunks) */
    int64_t *listed;    /* (sets, list chunks) keys */
    char *rooms;
    size_t room_bytes;
} decode_job;

/* A worker's room. */
typedef struct decode_room {
    float *scores; /* (g, EXACT_KEYS) or (g, keys of a list chunk) */
    int32_t *ids;  /* keys of a list chunk */
} decode_room;

static int64_t room_keys(const decode_job *job)
{
    int64_t most = LIST_CLUSTERS * KNA_SEGMENT, n = job->call->problem->n + EXACT_KEYS;
    return most < n ? most : n; /* also enough for EXACT_KEYS rows */
}

static decode_room cut_room(const decode_job *job, int worker, char *base, size_t *bytes)
{
    kna__cutter cutter = { base ? base + (size_t)worker * job->room_bytes : NULL, 0 };
    decode_room room;
    room.scores = kna__cut(&cutter, (size_t)(job->g * room_keys(job)), sizeof(float));
    room.ids = kna__cut(&cutter, (size_t)room_keys(job), sizeof(int32_t));
    *bytes = cutter.used;
    return room;
}

static int64_t part_at(const decode_job *job, const decode_set *set, int64_t part)
{
    return (part * job->sets + (set - job->set)) * job->g;
}

static kna__state *part_state(const decode_job *job, const decode_set *set, int64_t part)
{
    return job->states + part_at(job, set, part);
}

static float *part_values(const decode_job *job, const decode_set *set, int64_t part)
{
    return job->values + part_at(job, set, part) * job->call->problem->dv;
}

static float *empty_values(const decode_job *job, const decode_set *set, int64_t part)
{
    float *values = part_values(job, set, part);
    memset(values, 0, (size_t)(job->g * job->call->problem->dv) * sizeof *values);
    return values;
}

/* ---- step 1 */

static void score_clusters(const decode_job *job, decode_set *set, int64_t chunk)
{
    const kna__problem *p = job->call->problem;
    const kna_index *index = job->call->index;
    int64_t stop = (chunk + 1) * CHUNK_PIECES < set->plan.piece_count ? (chunk + 1) * CHUNK_PIECES : set->plan.piece_count;
    int32_t dead[CHUNK_PIECES * KNA_SLOTS];
    for (int64_t i = chunk * CHUNK_PIECES, end; i < stop; i = end) {
        end = kna__knn_run(&set->plan, i, stop - i);
        int64_t at = kna__knn_at(job->call, &set->plan, set->kv_head, i);
        int64_t dead_count = kna__knn_dead(job->call, &set->plan, set->kv_head, i, end, dead);
        kna__span keys = { (const char *)(index->clusters.key + at * p->d), (size_t)p->d * sizeof(uint16_t), NULL };
        float *z = set->z + i * KNA_SLOTS;
        size_t n = (size_t)((end - i) * KNA_SLOTS);
        p->kernels->dot[KNA_F16](z, (size_t)set->plan.slots, set->q, (size_t)p->d, (size_t)job->g, keys, n, (size_t)p->d);
        for (int64_t r = 0; r < job->g; r++) {
            if (p->options.softcap > 0) {
                p->kernels->softcap(z + r * set->plan.slots, p->options.softcap, n);
            }
            kna__knn_forget(z + r * set->plan.slots, dead, dead_count);
        }
    }
}

/* The chunk-th stretch of at most EXACT_KEYS rows of the plan's ranges; false: there are fewer. */
static bool exact_stretch(const knn_plan *plan, int64_t chunk, int64_t *first, int64_t *end)
{
    for (int64_t i = 0; i < plan->range_count; i++) {
        int64_t rows = plan->ranges[i].end - plan->ranges[i].first, here = (rows + EXACT_KEYS - 1) / EXACT_KEYS;
        if (chunk < here) {
            *first = plan->ranges[i].first + chunk * EXACT_KEYS;
            *end = *first + EXACT_KEYS < plan->ranges[i].end ? *first + EXACT_KEYS : plan->ranges[i].end;
            return true;
        }
        chunk -= here;
    }
    return false;
}

static void read_stretch(const decode_job *job, decode_set *set, int64_t chunk, const decode_room *room)
{
    const kna__problem *p = job->call->problem;
    kna__state *states = part_state(job, set, chunk);
    float *values = empty_values(job, set, chunk);
    int64_t first, end;
    bool exists = exact_stretch(&set->plan, chunk, &first, &end);
    for (int64_t r = 0; r < job->g && !exists; r++) {
        states[r] = (kna__state){ -INFINITY, 0 };
    }
    if (!exists) {
        return;
    }
    size_t count = (size_t)(end - first), d = (size_t)p->d;
    p->kernels->dot[p->k.type](room->scores, count, set->q, d, (size_t)job->g, kna__span_at(&p->k, set->kv_head, first), count, d);
    for (int64_t r = 0; r < job->g; r++) {
        float *s = room->scores + (size_t)r * count;
        kna__logits_seen(p, set->kv_head * p->g + r, set->query, first, s, end - first);
        states[r] = kna__soften(p->kernels, s, end - first);
    }
    p->kernels->mix[p->v.type](values, (size_t)p->dv, room->scores, count, (size_t)job->g, kna__span_at(&p->v, set->kv_head, first),
                               count, (size_t)p->dv);
}

static void first_step(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    int64_t tasks = job->chunks + job->exact_chunks, chunk = task % tasks;
    decode_set *set = &job->set[task / tasks];
    size_t unused;
    if (chunk < job->chunks) {
        score_clusters(job, set, chunk);
    } else {
        decode_room room = cut_room(job, worker, job->rooms, &unused);
        read_stretch(job, set, chunk - job->chunks, &room);
    }
}

/* ---- step 2 */

/* Masses of one row; adds its shares of softmax to those of the set. */
static void weigh_row(const decode_job *job, decode_set *set, int64_t r)
{
    const kna__problem *p = job->call->problem;
    float *z = set->z + r * set->plan.slots;
    float max = p->kernels->max(z, (size_t)set->plan.slots);
    double sum = 0;
    set->tail[r] = kna__knn_mass(job->call, &set->plan, set->kv_head, z, max, set->half_square[r]);
    for (int64_t part = 0; part < job->exact_chunks; part++) {
        kna__state state = part_state(job, set, part)[r];
        sum += state.sum > 0 ? state.sum * exp(fmin((double)state.max - (double)max, 700)) : 0;
    }
    set->max[r] = max;
    set->total[r] = set->tail[r] + sum;
    if (set->total[r] > 0 && isfinite(set->total[r])) {
        p->kernels->axpy(set->choice.share, (float)(1 / set->total[r]), z, (size_t)set->plan.slots);
    }
}

static void leave_chosen(const decode_job *job, decode_set *set)
{
    for (int64_t r = 0; r < job->g; r++) {
        float *z = set->z + r * set->plan.slots;
        for (int64_t i = 0; i < set->choice.count; i++) {
            z[set->choice.chosen[i]] = 0;
        }
        set->tail[r] = kna__knn_sum(job->call->problem->kernels, z, set->plan.slots);
    }
}

static void choose_clusters(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    decode_set *set = &job->set[task];
    float square = 0;
    (void)worker;
    set->choice.count = 0;
    if (!set->plan.slots) {
        return;
    }
    memset(set->choice.share, 0, (size_t)set->plan.slots * sizeof(float));
    for (int64_t r = 0; r < job->g; r++) {
        weigh_row(job, set, r);
        square += 2 * set->half_square[r] / (float)job->g;
    }
    kna__knn_choose(job->call, &set->plan, set->kv_head, &set->choice, square, job->g);
    leave_chosen(job, set);
}

/* ---- step 3 */

static void read_list(const decode_job *job, decode_set *set, int64_t chunk, const decode_room *room)
{
    const kna__problem *p = job->call->problem;
    const kna_index *index = job->call->index;
    int64_t part = job->exact_chunks + chunk, first = chunk * LIST_CLUSTERS, at = 0;
    int64_t end = first + LIST_CLUSTERS < set->choice.count ? first + LIST_CLUSTERS : set->choice.count;
    kna__state *states = part_state(job, set, part);
    float *values = empty_values(job, set, part);
    for (int64_t i = first; i < end; i++) {
        at += kna__cluster_rows(&index->clusters, set->kv_head, kna__knn_slot(&set->plan, set->choice.chosen[i]), room->ids + at);
    }
    job->listed[chunk * job->sets + (set - job->set)] = at;
    for (int64_t r = 0; r < job->g; r++) {
        float *s = room->scores + r * at;
        p->kernels->dot_at[p->k.type](s, set->q + r * p->d, kna__span_at(&p->k, set->kv_head, 0), room->ids, (size_t)at,
                                      (size_t)p->d);
    }
    job->stale[chunk * job->sets + (set - job->set)] =
        kna__knn_stale(job->call, &set->plan, set->kv_head, set->choice.chosen + first, end > first ? end - first : 0, set->q,
                       sqrtf(2 * set->half_square[0]), room->scores);
    for (int64_t r = 0; r < job->g; r++) {
        float *s = room->scores + r * at;
        if (p->options.softcap > 0) {
            p->kernels->softcap(s, p->options.softcap, (size_t)at);
        }
        states[r] = kna__soften(p->kernels, s, at);
        p->kernels->mix_at[p->v.type](values + r * p->dv, s, kna__span_at(&p->v, set->kv_head, 0), room->ids, (size_t)at,
                                      (size_t)p->dv);
    }
}

/* The first chunk carries the whole sum: it is known. */
static void mix_means(const decode_job *job, decode_set *set, int64_t chunk)
{
    const kna__problem *p = job->call->problem;
    const kna_index *index = job->call->index;
    int64_t part = job->exact_chunks + job->list_chunks + chunk;
    kna__state *states = part_state(job, set, part);
    float *values = empty_values(job, set, part);
    int64_t stop = (chunk + 1) * CHUNK_PIECES < set->plan.piece_count ? (chunk + 1) * CHUNK_PIECES : set->plan.piece_count;
    for (int64_t r = 0; r < job->g; r++) {
        states[r] = (kna__state){ set->plan.slots ? set->max[r] : -INFINITY, chunk || !set->plan.slots ? 0 : set->tail[r] };
    }
    for (int64_t i = chunk * CHUNK_PIECES, end; i < stop; i = end) {
        end = kna__knn_run(&set->plan, i, stop - i);
        int64_t at = kna__knn_at(job->call, &set->plan, set->kv_head, i);
        kna__span means = { (const char *)(index->clusters.value + at * p->dv), (size_t)p->dv * sizeof(uint16_t), NULL };
        p->kernels->mix[KNA_F16](values, (size_t)p->dv, set->z + i * KNA_SLOTS, (size_t)set->plan.slots, (size_t)job->g, means,
                                 (size_t)((end - i) * KNA_SLOTS), (size_t)p->dv);
    }
}

static void third_step(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    int64_t tasks = job->list_chunks + job->chunks, chunk = task % tasks;
    decode_set *set = &job->set[task / tasks];
    size_t unused;
    decode_room room = cut_room(job, worker, job->rooms, &unused);
    if (chunk < job->list_chunks) {
        read_list(job, set, chunk, &room);
    } else {
        mix_means(job, set, chunk - job->list_chunks);
    }
}

/* ---- the end */

static void write_row(const decode_job *job, const decode_set *set, int64_t r)
{
    const kna__problem *p = job->call->problem;
    float values[KNA_MAX_DIM] = { 0 };
    kna__state state = { -INFINITY, 0 };
    for (int64_t part = 0; part < job->parts; part++) {
        kna__state_join(p->kernels, &state, values, part_state(job, set, part)[r], part_values(job, set, part) + r * p->dv, p->dv);
    }
    int64_t head = set->kv_head * p->g + r;
    kna__row_stats *stats = kna__knn_count(job->call, &set->plan, head, set->query, (float)set->keys);
    if (set->plan.slots) {
        double total = state.sum * exp((double)state.max - (double)set->max[r]);
        total += kna__sink_weight(p, head, set->max[r]);
        stats->tail_mass = total > 0 ? (float)(set->tail[r] / total) : 0;
        stats->error_est = set->choice.error;
    }
    stats->stale = r == 0 ? set->stale : 0;
    kna__state_write(p, head, set->query, state, values);
}

static void write_set(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    decode_set *set = &job->set[task];
    (void)worker;
    set->keys = 0;
    set->stale = 0;
    for (int64_t chunk = 0; chunk < job->list_chunks; chunk++) {
        int64_t at = chunk * job->sets + (set - job->set);
        set->keys += job->listed[at];
        set->stale += job->stale[at];
    }
    for (int64_t r = 0; r < job->g; r++) {
        write_row(job, set, r);
    }
}

/* ---- making room */

static void cut_set(const decode_job *job, decode_set *set, int64_t slots, kna__cutter *cutter)
{
    size_t g = (size_t)job->g;
    set->q = kna__cut(cutter, g * (size_t)job->call->problem->d, sizeof(float));
    set->z = kna__cut(cutter, g * (size_t)slots, sizeof(float));
    set->max = kna__cut(cutter, g, sizeof(float));
    set->half_square = kna__cut(cutter, g, sizeof(float));
    set->tail = kna__cut(cutter, g, sizeof(double));
    set->total = kna__cut(cutter, g, sizeof(double));
    kna__knn_choice_cut(&set->choice, slots, cutter);
}

/* Everything, as large as it may have to be: how many clusters and ranges there are is known only when plans are made. */
static size_t cut_scratch(decode_job *job, char *base)
{
    const kna__problem *p = job->call->problem;
    kna__cutter cutter = { base, 0 };
    decode_set none;
    int64_t slots = (p->n / KNA_PIECE + 1) * KNA_SLOTS, exact = p->n / EXACT_KEYS + kna__knn_most_ranges(job->call) + 1;
    int64_t lists = slots / LIST_CLUSTERS + 1, parts = exact + lists + slots / KNA_SLOTS / CHUNK_PIECES + 1;
    size_t states = kna__size_product((size_t)(parts * job->sets), (size_t)job->g);
    job->set = kna__cut(&cutter, (size_t)job->sets, sizeof(decode_set));
    for (int64_t i = 0; i < job->sets; i++) {
        decode_set *set = base ? &job->set[i] : &none;
        kna__knn_plan_cut(&set->plan, job->call, &cutter);
        cut_set(job, set, slots, &cutter);
    }
    job->states = kna__cut(&cutter, states, sizeof(kna__state));
    job->values = kna__cut(&cutter, states, (size_t)p->dv * sizeof(float));
    job->stale = kna__cut(&cutter, (size_t)(lists * job->sets), sizeof(int32_t));
    job->listed = kna__cut(&cutter, (size_t)(lists * job->sets), sizeof(int64_t));
    cut_room(job, 0, NULL, &job->room_bytes);
    job->rooms = kna__cut(&cutter, (size_t)p->context->threads, job->room_bytes);
    return cutter.used;
}

static int64_t stretches(const knn_plan *plan)
{
    int64_t count = 0;
    for (int64_t i = 0; i < plan->range_count; i++) {
        count += (plan->ranges[i].end - plan->ranges[i].first + EXACT_KEYS - 1) / EXACT_KEYS;
    }
    return count;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* A plan is the same for all KV heads of a query. */
static void begin_set(decode_job *job, int64_t i)
{
    const kna__problem *p = job->call->problem;
    decode_set *set = &job->set[i];
    set->kv_head = i % p->h_kv;
    set->query = job->call->query + i / p->h_kv;
    if (set->kv_head == 0) {
        kna__knn_plan(job->call, &set->plan, set->query, 1);
        job->chunks = larger(job->chunks, (set->plan.piece_count + CHUNK_PIECES - 1) / CHUNK_PIECES);
        job->exact_chunks = larger(job->exact_chunks, stretches(&set->plan));
    } else {
        set->plan = set[-1].plan;
    }
    kna__queries_read(p, set->q, set->kv_head, set->query * p->g, p->g);
    for (int64_t r = 0; r < p->g; r++) {
        set->half_square[r] = kna__square(p->kernels, set->q + r * p->d, p->d) / 2;
    }
}

static int64_t first_tasks(void *argument)
{
    const decode_job *job = argument;
    return job->sets * (job->chunks + job->exact_chunks);
}

static int64_t second_tasks(void *argument)
{
    const decode_job *job = argument;
    return job->chunks ? job->sets : 0;
}

static int64_t third_tasks(void *argument)
{
    decode_job *job = argument;
    for (int64_t i = 0; i < job->sets && job->chunks; i++) {
        job->list_chunks = larger(job->list_chunks, (job->set[i].choice.count + LIST_CLUSTERS - 1) / LIST_CLUSTERS);
    }
    job->parts = job->exact_chunks + job->list_chunks + job->chunks;
    return job->sets * (job->list_chunks + job->chunks);
}

static int64_t set_tasks(void *argument)
{
    const decode_job *job = argument;
    return job->sets;
}

int kna__attend_knn_decode(knn_call *call)
{
    const kna__problem *p = call->problem;
    decode_job job = { .call = call, .sets = p->h_kv * call->queries, .g = p->g };
    int threads = p->context->threads;
    size_t bytes = cut_scratch(&job, NULL);
    char *scratch = kna__scratch(p->context, bytes);
    if (!scratch) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch", bytes);
    }
    cut_scratch(&job, scratch);
    for (int64_t i = 0; i < job.sets; i++) {
        begin_set(&job, i);
    }
    static const kna__step steps[] = {
        { first_step, first_tasks }, { choose_clusters, second_tasks }, { third_step, third_tasks }, { write_set, set_tasks }
    };
    kna__parallel_steps(threads, steps, 4, &job);
    return KNA_OK;
}
