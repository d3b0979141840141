/*
 * knn_decode.c - kNN attention of few queries: bound by memory and by waiting for scattered rows, so each mean and each row is read
 * once per KV head for all of its query heads together, and the work is cut so that every thread has some however few the heads.
 *
 * A set is one query of one KV head: g rows that share the choice of clusters. Parallel steps: logits of the clusters, and the keys
 * that are read in any case; the choice, per set; the chosen clusters' members; the mean values of all clusters, for what is left
 * of them. Where the clusters are many the first step looks at groups of them, and two more steps choose which groups to open and
 * look at what is in those. Each step leaves softmax states that are joined in a fixed order.
 *
 * Invariant: what a task does depends on the set and on n only, never on the threads.
 */
#include "knn.h"

#include <math.h>

enum {
    MEANS = 512,       /* clusters or groups per task */
    EXACT_KEYS = 512,  /* rows of a range per task */
    LIST_CLUSTERS = 32 /* chosen clusters per task: about 512 keys */
};

/* Clusters of one level, as a set's rows weigh them. */
typedef struct decode_means {
    knn_list list;
    float *z;      /* (g, list.size) mean logits, then masses */
    float *logits; /* (g, list.size) those, without softcap; clusters only */
    float *max;    /* (g) what the masses are relative to */
} decode_means;

/* What belongs to one set. */
typedef struct decode_set {
    knn_plan plan;
    knn_choice choice;
    decode_means groups, clusters; /* groups: none unless is_deep */
    bool is_deep;
    int64_t kv_head, query;
    float *q;           /* (g, d) scaled */
    knn_codes codes;    /* the same in 8 bits */
    float *half_square; /* (g) */
    double *closed;     /* (g) masses of groups left closed, relative to exp(groups.max) */
    double *log_total;  /* (g) log of all of the softmax, as estimated; -infinity: not known */
    float error;        /* estimated; negative: nobody asked */
} decode_set;

/* The most tasks that any set has in the steps, one kind after the other: the parts that results are joined from. */
typedef struct decode_parts {
    int64_t exact, lists, clusters, groups;
} decode_parts;

typedef struct decode_job {
    knn_call *call;
    int64_t sets, g;
    decode_parts parts;
    bool is_deep; /* some set is */
    decode_set *set;
    kna__state *states; /* (parts, sets, g) */
    float *values;      /* (parts, sets, g, dv) */
    knn_tally *counts;  /* (parts, sets) */
    char *rooms;
    size_t room_bytes;
} decode_job;

/* A worker's room. */
typedef struct decode_room {
    float *scores; /* (g, EXACT_KEYS) or (g, groups of a chunk) */
    knn_members members;
    knn_heavy heavy; /* means of a chunk */
} decode_room;

static decode_room cut_room(const decode_job *job, int worker, char *base, size_t *bytes)
{
    kna__cutter cutter = { base ? base + (size_t)worker * job->room_bytes : NULL, 0 };
    decode_room room;
    room.scores = kna__cut(&cutter, (size_t)(job->g * EXACT_KEYS), sizeof(float));
    kna__knn_members_cut(&room.members, job->call, job->g, LIST_CLUSTERS, &cutter);
    kna__knn_heavy_cut(&room.heavy, job->g, MEANS, &cutter);
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

static knn_tally *part_count(const decode_job *job, const decode_set *set, int64_t part)
{
    return job->counts + part * job->sets + (set - job->set);
}

static float *empty_values(const decode_job *job, const decode_set *set, int64_t part)
{
    float *values = part_values(job, set, part);
    memset(values, 0, (size_t)(job->g * job->call->problem->dv) * sizeof *values);
    return values;
}

static int64_t tasks_of(int64_t work, int64_t each)
{
    return (work + each - 1) / each;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- logits */

static void score_means(const decode_job *job, const decode_set *set, const decode_means *means, int64_t chunk)
{
    const kna__problem *p = job->call->problem;
    const knn_list *list = &means->list;
    int64_t stop = smaller((chunk + 1) * MEANS, list->size);
    int32_t dead[MEANS];
    for (int64_t i = chunk * MEANS, end, at; i < stop; i = end) {
        end = kna__knn_stretch(job->call, list, set->kv_head, i, stop, &at);
        int64_t dead_count = kna__knn_dead(job->call, list, at, end - i, dead);
        const uint16_t *first = kna__knn_level(job->call, list)->key + at * p->d;
        kna__span keys = { (const char *)first, (size_t)p->d * sizeof(uint16_t), NULL };
        p->kernels->dot[KNA_F16](means->z + i, (size_t)list->size, set->q, (size_t)p->d, (size_t)job->g, keys, (size_t)(end - i),
                                 (size_t)p->d);
        for (int64_t r = 0; r < job->g; r++) {
            float *z = means->z + r * list->size + i;
            if (means->logits) {
                memcpy(means->logits + r * list->size + i, z, (size_t)(end - i) * sizeof *z);
            }
            if (p->options.softcap > 0) {
                p->kernels->softcap(z, p->options.softcap, (size_t)(end - i));
            }
            kna__knn_forget(z, dead, dead_count);
        }
    }
}

/* The chunk-th stretch of at most EXACT_KEYS rows of the plan's ranges; false: there are fewer. */
static bool exact_stretch(const knn_plan *plan, int64_t chunk, int64_t *first, int64_t *end)
{
    for (int64_t i = 0; i < plan->range_count; i++) {
        int64_t here = tasks_of(plan->ranges[i].end - plan->ranges[i].first, EXACT_KEYS);
        if (chunk < here) {
            *first = plan->ranges[i].first + chunk * EXACT_KEYS;
            *end = smaller(*first + EXACT_KEYS, plan->ranges[i].end);
            return true;
        }
        chunk -= here;
    }
    return false;
}

static void read_stretch(const decode_job *job, const decode_set *set, int64_t chunk, const decode_room *room)
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

/* What a set looks at first: all its clusters, or groups of them. */
static const decode_means *first_means(const decode_set *set)
{
    return set->is_deep ? &set->groups : &set->clusters;
}

static int64_t first_chunks(const decode_job *job)
{
    int64_t chunks = 0;
    for (int64_t i = 0; i < job->sets; i++) {
        chunks = larger(chunks, tasks_of(first_means(&job->set[i])->list.size, MEANS));
    }
    return chunks;
}

static int64_t first_tasks(void *argument)
{
    const decode_job *job = argument;
    return job->sets * (first_chunks(job) + job->parts.exact);
}

static void first_step(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    const decode_set *set = &job->set[task % job->sets];
    int64_t chunk = task / job->sets;
    size_t unused;
    if (chunk < job->parts.exact) {
        decode_room room = cut_room(job, worker, job->rooms, &unused);
        read_stretch(job, set, chunk, &room);
    } else {
        score_means(job, set, first_means(set), chunk - job->parts.exact);
    }
}

/* ---- choices */

/* exp(a - b), of maxima that may be -infinity. */
static double relative(float a, float b)
{
    return a > -INFINITY ? exp(fmin((double)a - (double)b, 700)) : 0;
}

/* Masses of one row; adds its shares of softmax to those of the set. */
static void weigh_row(const decode_job *job, decode_set *set, decode_means *means, int64_t r)
{
    const kna__problem *p = job->call->problem;
    const knn_list *list = &means->list;
    float *z = means->z + r * list->size, max = p->kernels->max(z, (size_t)list->size);
    double total = kna__knn_mass(job->call, list, set->kv_head, z, max, set->half_square[r]);
    means->max[r] = max;
    for (int64_t part = 0; part < job->parts.exact && max > -INFINITY; part++) {
        kna__state state = part_state(job, set, part)[r];
        total += state.sum > 0 ? state.sum * relative(state.max, max) : 0;
    }
    if (set->is_deep && means == &set->clusters && max > -INFINITY) {
        total += set->closed[r] * relative(set->groups.max[r], max);
    }
    bool is_known = total > 0 && isfinite(total);
    set->log_total[r] = is_known ? (double)max + log(total) : -INFINITY;
    if (is_known) {
        p->kernels->axpy(set->choice.share, (float)(1 / total), z, (size_t)list->size);
    }
}

/* Weighs a list's clusters and chooses among them; what is chosen has no mass left. */
static void choose_means(const decode_job *job, decode_set *set, decode_means *means, int64_t want, float error)
{
    float square = 0;
    for (int64_t r = 0; r < job->g; r++) {
        square += 2 * set->half_square[r] / (float)job->g;
    }
    kna__knn_choice_begin(job->call, &means->list, set->kv_head, &set->choice, square);
    for (int64_t r = 0; r < job->g; r++) {
        weigh_row(job, set, means, r);
    }
    float left = kna__knn_choose(job->call, &means->list, set->kv_head, &set->choice, want, job->g, error);
    set->error = left < 0 ? -1 : set->error + left;
    for (int64_t r = 0; r < job->g; r++) {
        float *z = means->z + r * means->list.size;
        for (int64_t i = 0; i < set->choice.count; i++) {
            z[set->choice.chosen[i]] = 0;
        }
    }
}

/* Half of the error asked for is for groups left closed. */
static void open_groups(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    decode_set *set = &job->set[task];
    (void)worker;
    if (!set->is_deep) {
        return;
    }
    int64_t open = kna__knn_open(kna__knn_k(job->call, set->kv_head), job->call, job->g);
    choose_means(job, set, &set->groups, open, kna__knn_limit(job->call) / 2);
    for (int64_t r = 0; r < job->g; r++) {
        set->closed[r] = kna__knn_sum(job->call->problem->kernels, set->groups.z + r * set->groups.list.size, set->groups.list.size);
    }
    kna__knn_list_clear(&set->clusters.list);
    for (int64_t i = 0; i < set->choice.count; i++) {
        int64_t group = kna__knn_slot(&set->groups.list, set->choice.chosen[i]);
        kna__knn_list_add(&set->clusters.list, group * KNA_GROUP_SLOTS, (group + 1) * KNA_GROUP_SLOTS);
    }
}

static void choose_clusters(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    decode_set *set = &job->set[task];
    int64_t want = kna__knn_shared(kna__knn_k(job->call, set->kv_head), job->call, job->g);
    (void)worker;
    choose_means(job, set, &set->clusters, want, kna__knn_limit(job->call) - (set->is_deep ? set->error : 0));
}

static int64_t set_tasks(void *argument)
{
    const decode_job *job = argument;
    return job->sets;
}

/* ---- clusters of the groups opened */

static int64_t opened_tasks(void *argument)
{
    decode_job *job = argument;
    for (int64_t i = 0; i < job->sets; i++) {
        job->parts.clusters = larger(job->parts.clusters, tasks_of(job->set[i].clusters.list.size, MEANS));
    }
    return job->sets * job->parts.clusters;
}

static void score_opened(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    const decode_set *set = &job->set[task % job->sets];
    (void)worker;
    if (set->is_deep) {
        score_means(job, set, &set->clusters, task / job->sets);
    }
}

/* ---- keys */

static knn_readers readers_of(const decode_job *job, const decode_set *set)
{
    const decode_means *means = &set->clusters;
    return (knn_readers){ job->g,        set->kv_head, set->q,           set->codes, set->log_total,
                          means->logits, means->z,     means->list.size, means->max };
}

static int64_t list_tasks(void *argument)
{
    decode_job *job = argument;
    for (int64_t i = 0; i < job->sets; i++) {
        job->parts.lists = larger(job->parts.lists, tasks_of(job->set[i].choice.count, LIST_CLUSTERS));
    }
    return job->sets * job->parts.lists;
}

static void read_list(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    const decode_set *set = &job->set[task % job->sets];
    const kna__problem *p = job->call->problem;
    int64_t chunk = task / job->sets, part = job->parts.exact + chunk, first = chunk * LIST_CLUSTERS;
    size_t unused;
    decode_room room = cut_room(job, worker, job->rooms, &unused);
    knn_members *members = &room.members;
    knn_readers by = readers_of(job, set);
    kna__state *states = part_state(job, set, part);
    float *values = empty_values(job, set, part);
    kna__knn_members_read(job->call, &by, &set->clusters.list, set->choice.chosen + first,
                          larger(smaller(set->choice.count - first, LIST_CLUSTERS), 0), members);
    for (int64_t r = 0; r < job->g; r++) {
        states[r] = kna__soften(p->kernels, members->logits + r * members->places, members->places);
        states[r].sum = 0;
    }
    kna__knn_members_mix(job->call, &by, members, states, values);
    *part_count(job, set, part) = members->read;
}

/* ---- mean values */

/* Weights relative to exp(max) of a row; `least` is a share of its softmax. */
static void weigh_heavy(const decode_set *set, int64_t r, knn_heavy *heavy, const float *w, int64_t count, float max, double least)
{
    kna__knn_heavy_row(heavy, w, count, set->log_total[r] + log(least) - (double)max);
}

static kna__span mean_values(const decode_job *job, int level, int64_t at)
{
    const kna__problem *p = job->call->problem;
    const uint16_t *first = job->call->index->clusters.level[level].value + at * p->dv;
    return (kna__span){ (const char *)first, (size_t)p->dv * sizeof(uint16_t), NULL };
}

/* Groups of which no mean may be used: of their clusters all are heavy. */
static void spare_groups(const decode_job *job, int64_t group_at, int64_t groups, knn_heavy *heavy)
{
    for (int64_t i = 0; i < groups; i++) {
        if (kna__level_always(&job->call->index->clusters, KNA_GROUPS, group_at + i)) {
            for (int64_t x = 0; x < KNA_GROUP_SLOTS; x++) {
                heavy->over[i * KNA_GROUP_SLOTS + x] = 1;
            }
        }
    }
}

static void add_groups(float *sums, const float *z, int64_t groups)
{
    for (int64_t i = 0; i < groups; i++, z += KNA_GROUP_SLOTS) {
        sums[i] = 0;
        for (int64_t x = 0; x < KNA_GROUP_SLOTS; x++) {
            sums[i] += z[x];
        }
    }
}

/*
 * Clusters number .. number + count - 1, whole groups that lie side by side from `at` on: the mean values of those that weigh
 * something, and for the others the mean values of their groups. Returns how many means were read.
 */
static int64_t mix_clusters(const decode_job *job, const decode_set *set, int64_t number, int64_t count, int64_t at,
                            decode_room *room, float *values)
{
    const kna__problem *p = job->call->problem;
    const decode_means *means = &set->clusters;
    knn_heavy *heavy = &room->heavy;
    float *z = means->z + number;
    int64_t size = means->list.size, groups = count / KNA_GROUP_SLOTS, group_at = at / KNA_GROUP_SLOTS;
    double least = kna__knn_least_mean(job->call);
    kna__knn_heavy_begin(heavy, count);
    for (int64_t r = 0; r < job->g; r++) {
        weigh_heavy(set, r, heavy, z + r * size, count, means->max[r], least);
    }
    spare_groups(job, group_at, groups, heavy);
    kna__knn_heavy_take(heavy, p->kernels, z, size, job->g, count);
    p->kernels->mix_at[KNA_F16](values, (size_t)p->dv, heavy->weights, (size_t)heavy->count, (size_t)job->g,
                                mean_values(job, KNA_CLUSTERS, at), heavy->ids, (size_t)heavy->count, (size_t)p->dv);
    for (int64_t r = 0; r < job->g; r++) {
        add_groups(room->scores + r * groups, z + r * size, groups);
    }
    p->kernels->mix[KNA_F16](values, (size_t)p->dv, room->scores, (size_t)groups, (size_t)job->g,
                             mean_values(job, KNA_GROUPS, group_at), (size_t)groups, (size_t)p->dv);
    return heavy->count + groups;
}

/* What a chunk of the clusters or groups left to their means is to the rows. It is summed before any of it goes elsewhere. */
static void mix_means(const decode_job *job, const decode_set *set, const decode_means *means, int64_t chunk, int64_t part,
                      decode_room *room)
{
    const kna__problem *p = job->call->problem;
    const knn_list *list = &means->list;
    kna__state *states = part_state(job, set, part);
    float *values = empty_values(job, set, part);
    knn_tally *counts = part_count(job, set, part);
    int64_t first = chunk * MEANS, stop = smaller(first + MEANS, list->size);
    for (int64_t r = 0; r < job->g; r++) {
        bool is_empty = first >= stop;
        states[r].max = is_empty ? -INFINITY : means->max[r];
        states[r].sum = is_empty ? 0 : kna__knn_sum(p->kernels, means->z + r * list->size + first, stop - first);
    }
    *counts = (knn_tally){ .keys = 0 };
    for (int64_t i = first, end, at; i < stop; i = end) {
        end = kna__knn_stretch(job->call, list, set->kv_head, i, stop, &at);
        if (list->level == KNA_CLUSTERS) {
            counts->values += mix_clusters(job, set, i, end - i, at, room, values);
        } else {
            p->kernels->mix[KNA_F16](values, (size_t)p->dv, means->z + i, (size_t)list->size, (size_t)job->g,
                                     mean_values(job, KNA_GROUPS, at), (size_t)(end - i), (size_t)p->dv);
            counts->values += end - i;
        }
    }
}

static int64_t mean_tasks(void *argument)
{
    decode_job *job = argument;
    decode_parts *parts = &job->parts;
    for (int64_t i = 0; i < job->sets; i++) {
        const decode_set *set = &job->set[i];
        parts->clusters = larger(parts->clusters, tasks_of(set->clusters.list.size, MEANS));
        parts->groups = larger(parts->groups, tasks_of(set->groups.list.size, MEANS));
    }
    return job->sets * (parts->clusters + parts->groups);
}

static void mean_step(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    const decode_set *set = &job->set[task % job->sets];
    int64_t chunk = task / job->sets, part = job->parts.exact + job->parts.lists + chunk;
    size_t unused;
    decode_room room = cut_room(job, worker, job->rooms, &unused);
    if (chunk < job->parts.clusters) {
        mix_means(job, set, &set->clusters, chunk, part, &room);
    } else {
        mix_means(job, set, &set->groups, chunk - job->parts.clusters, part, &room);
    }
}

/* ---- the end */

/* Weights that means stand for, relative to exp(max). */
static double tail_of(const decode_job *job, const decode_set *set, int64_t r, float max)
{
    const decode_parts *parts = &job->parts;
    int64_t first = parts->exact + parts->lists;
    double tail = 0;
    for (int64_t part = first; part < first + parts->clusters + parts->groups; part++) {
        kna__state state = part_state(job, set, part)[r];
        tail += state.sum > 0 ? state.sum * relative(state.max, max) : 0;
    }
    return tail;
}

static void write_row(const decode_job *job, const decode_set *set, int64_t r, const knn_read *read, int32_t stale)
{
    const kna__problem *p = job->call->problem;
    const decode_parts *parts = &job->parts;
    float values[KNA_MAX_DIM] = { 0 };
    kna__state state = { -INFINITY, 0 };
    for (int64_t part = 0; part < parts->exact + parts->lists + parts->clusters + parts->groups; part++) {
        kna__state_join(p->kernels, &state, values, part_state(job, set, part)[r], part_values(job, set, part) + r * p->dv, p->dv);
    }
    int64_t head = set->kv_head * p->g + r;
    kna__row_stats *stats = kna__knn_count(job->call, &set->plan, head, set->query, read);
    if (set->plan.clusters.size) {
        double total = state.sum + kna__sink_weight(p, head, state.max);
        stats->tail_mass = total > 0 ? (float)(tail_of(job, set, r, state.max) / total) : 0;
        stats->error_est = set->error;
    }
    stats->stale = r == 0 ? stale : 0;
    kna__state_write(p, head, set->query, state, values);
}

static void write_set(void *argument, int64_t task, int worker)
{
    const decode_job *job = argument;
    const decode_parts *parts = &job->parts;
    const decode_set *set = &job->set[task];
    knn_read read = { .key_means = (double)(set->groups.list.size + set->clusters.list.size) };
    int32_t stale = 0;
    (void)worker;
    for (int64_t part = 0; part < parts->lists + parts->clusters + parts->groups; part++) {
        const knn_tally *count = part_count(job, set, parts->exact + part);
        bool is_list = part < parts->lists;
        read.codes += is_list ? (double)count->codes : 0;
        read.keys += is_list ? (double)count->keys : 0;
        read.values += is_list ? (double)count->values : 0;
        read.value_means += is_list ? 0 : (double)count->values;
        stale += is_list ? count->stale : 0;
    }
    for (int64_t r = 0; r < job->g; r++) {
        write_row(job, set, r, &read, stale);
    }
}

/* ---- making room */

/* At most so many of a level, in so many runs. */
static void cut_means(const decode_job *job, decode_means *means, int level, int64_t most, int64_t runs, kna__cutter *cutter)
{
    size_t g = (size_t)job->g;
    kna__knn_list_cut(&means->list, level, runs, cutter);
    means->z = kna__cut(cutter, g * (size_t)most, sizeof(float));
    means->logits = level == KNA_CLUSTERS ? kna__cut(cutter, g * (size_t)most, sizeof(float)) : NULL;
    means->max = kna__cut(cutter, g, sizeof(float));
}

static void cut_set(const decode_job *job, decode_set *set, int64_t pieces, kna__cutter *cutter)
{
    size_t g = (size_t)job->g;
    kna__knn_choice_cut(&set->choice, job->call, pieces * KNA_SLOTS, cutter);
    cut_means(job, &set->groups, KNA_GROUPS, pieces * KNA_PIECE_GROUPS, 0, cutter); /* its runs are the plan's */
    cut_means(job, &set->clusters, KNA_CLUSTERS, pieces * KNA_SLOTS, pieces * KNA_PIECE_GROUPS, cutter);
    set->q = kna__cut(cutter, g * (size_t)job->call->problem->d, sizeof(float));
    kna__knn_codes_cut(&set->codes, job->call, job->g, cutter);
    set->half_square = kna__cut(cutter, g, sizeof(float));
    set->closed = kna__cut(cutter, g, sizeof(double));
    set->log_total = kna__cut(cutter, g, sizeof(double));
}

/* Everything, as large as it may have to be: how many clusters and ranges there are is known only when plans are made. */
static size_t cut_scratch(decode_job *job, char *base)
{
    const kna__problem *p = job->call->problem;
    kna__cutter cutter = { base, 0 };
    decode_set none;
    int64_t pieces = p->n / KNA_PIECE + 1, exact = p->n / EXACT_KEYS + kna__knn_most_ranges(job->call) + 1;
    int64_t lists = tasks_of(pieces * KNA_SLOTS, LIST_CLUSTERS), means = tasks_of(pieces * KNA_SLOTS, MEANS);
    int64_t parts = exact + lists + means + tasks_of(pieces * KNA_PIECE_GROUPS, MEANS);
    size_t states = kna__size_product((size_t)(parts * job->sets), (size_t)job->g);
    job->set = kna__cut(&cutter, (size_t)job->sets, sizeof(decode_set));
    for (int64_t i = 0; i < job->sets; i++) {
        decode_set *set = base ? &job->set[i] : &none;
        if (i % p->h_kv == 0) {
            kna__knn_plan_cut(&set->plan, job->call, &cutter); /* for all KV heads of a query */
        }
        cut_set(job, set, pieces, &cutter);
    }
    job->states = kna__cut(&cutter, states, sizeof(kna__state));
    job->values = kna__cut(&cutter, states, (size_t)p->dv * sizeof(float));
    job->counts = kna__cut(&cutter, (size_t)(parts * job->sets), sizeof(knn_tally));
    cut_room(job, 0, NULL, &job->room_bytes);
    job->rooms = kna__cut(&cutter, (size_t)p->context->threads, job->room_bytes);
    return cutter.used;
}

static int64_t stretches(const knn_plan *plan)
{
    int64_t count = 0;
    for (int64_t i = 0; i < plan->range_count; i++) {
        count += tasks_of(plan->ranges[i].end - plan->ranges[i].first, EXACT_KEYS);
    }
    return count;
}

/* A plan is the same for all KV heads of a query. */
static void plan_set(decode_job *job, int64_t i)
{
    decode_set *set = &job->set[i];
    if (set->kv_head > 0) {
        set->plan = set[-1].plan;
        return;
    }
    kna__knn_plan(job->call, &set->plan, set->query, 1);
    job->parts.exact = larger(job->parts.exact, stretches(&set->plan));
}

static void begin_set(decode_job *job, int64_t i)
{
    const kna__problem *p = job->call->problem;
    decode_set *set = &job->set[i];
    set->kv_head = i % p->h_kv;
    set->query = job->call->query + i / p->h_kv;
    plan_set(job, i);
    set->is_deep = kna__knn_is_deep(kna__knn_k(job->call, set->kv_head), job->call, &set->plan, p->g);
    job->is_deep |= set->is_deep;
    kna__knn_list_clear(&set->groups.list);
    if (set->is_deep) {
        set->groups.list = set->plan.groups;
    } else {
        set->clusters.list = set->plan.clusters;
    }
    set->error = 0;
    kna__queries_read(p, set->q, set->kv_head, set->query * p->g, p->g);
    kna__knn_codes_begin(&set->codes, job->call, set->q);
    for (int64_t r = 0; r < p->g; r++) {
        set->half_square[r] = kna__square(p->kernels, set->q + r * p->d, p->d) / 2;
    }
}

int kna__attend_knn_decode(knn_call *call)
{
    static const kna__step flat[] = { { first_step, first_tasks },
                                      { choose_clusters, set_tasks },
                                      { read_list, list_tasks },
                                      { mean_step, mean_tasks },
                                      { write_set, set_tasks } };
    static const kna__step deep[] = { { first_step, first_tasks },    { open_groups, set_tasks }, { score_opened, opened_tasks },
                                      { choose_clusters, set_tasks }, { read_list, list_tasks },  { mean_step, mean_tasks },
                                      { write_set, set_tasks } };
    const kna__problem *p = call->problem;
    decode_job job = { .call = call, .sets = p->h_kv * call->queries, .g = p->g };
    size_t bytes = cut_scratch(&job, NULL);
    char *scratch = kna__scratch(p->context, bytes);
    if (!scratch) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch", bytes);
    }
    cut_scratch(&job, scratch);
    for (int64_t i = 0; i < job.sets; i++) {
        begin_set(&job, i);
    }
    kna__parallel_steps(p->context->threads, job.is_deep ? deep : flat, job.is_deep ? 7 : 5, &job);
    return KNA_OK;
}
