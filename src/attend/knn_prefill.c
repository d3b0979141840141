/*
 * knn_prefill.c - kNN attention of many queries: bound by arithmetic. A tile of neighbouring queries, with all query heads of a KV
 * head, shares a choice of clusters; then everything is matrix products: rows with mean keys, masses with mean values, rows with
 * the keys of the chosen clusters, gathered once per tile, and with the plan's ranges. Where clusters are many, groups of them come
 * first.
 *
 * Causality holds for the choice too: where an order of queries is given (causal, window or mask), the tile's clusters are chosen
 * by its first query and the few before it, the probes, whose rows are computed beside the tile's own; what else a row needs it
 * chooses for itself. So no row depends on a later query. Without an order all rows of the tile choose.
 *
 * On real heads 64 tokens of 3 heads that share 1,024 of 7,600 keys err by 4.3 %, single rows with 256 keys each by 4.6 %.
 */
#include "knn_prefill.h"

#include <math.h>

enum {
    TILE_MOST = 192,
    TILE_LEAST = 24,
    PROBES = 16,
    MASSES_BYTES = 10 << 18 /* of a tile: they are gone through four times; half as many, and smaller tiles, take 8 % longer */
};

prefill_room kna__knn_prefill_room(const prefill_job *job, char *base, size_t *bytes)
{
    const kna__problem *p = job->call->problem;
    kna__cutter cutter = { base, 0 };
    prefill_room room;
    int64_t all = job->tile + PROBES * p->g, groups = job->pieces * KNA_PIECE_GROUPS, clusters = job->pieces * KNA_SLOTS;
    int64_t own = kna__knn_limit(job->call) > 0 ? clusters : kna__knn_own_most(job->call);
    size_t rows = (size_t)all;
    kna__tile_cut(&room.tile, p, all, &cutter);
    kna__knn_plan_cut(&room.plan, job->call, &cutter);
    kna__knn_choice_cut(&room.choice, job->call, clusters, &cutter);
    kna__knn_list_cut(&room.groups.list, KNA_GROUPS, 0, &cutter); /* its runs are the plan's */
    kna__knn_list_cut(&room.clusters.list, KNA_CLUSTERS, groups, &cutter);
    room.groups.z = kna__cut(&cutter, rows * (size_t)groups, sizeof(float));
    room.clusters.z = kna__cut(&cutter, rows * (size_t)clusters, sizeof(float));
    room.half_square = kna__cut(&cutter, rows, sizeof(float));
    room.tail = kna__cut(&cutter, rows, sizeof(double));
    room.max = kna__cut(&cutter, rows, sizeof(float));
    room.base = kna__cut(&cutter, rows, sizeof(float));
    room.total = kna__cut(&cutter, rows, sizeof(double));
    room.errors = kna__cut(&cutter, rows, sizeof(float));
    room.own = kna__cut(&cutter, rows, sizeof(knn_tally));
    kna__knn_codes_cut(&room.codes, job->call, p->g, &cutter);
    room.log_total = kna__cut(&cutter, (size_t)p->g, sizeof(double));
    kna__knn_members_cut(&room.members, job->call, p->g, own < clusters ? own : clusters, &cutter);
    room.ids = kna__cut(&cutter, KNA_TILE_KEYS + KNA_SEGMENT, sizeof(int32_t));
    room.trace = NULL;
    *bytes = cutter.used;
    return room;
}

void kna__knn_prefill_trace_cut(prefill_trace *trace, const prefill_job *job, kna__cutter *cutter)
{
    const kna__problem *p = job->call->problem;
    size_t clusters = (size_t)(job->pieces * KNA_SLOTS), queries = (size_t)(job->tile / p->g + PROBES);
    size_t rows = queries * (size_t)p->g;
    trace->own_most = kna__knn_own_most(job->call);
    trace->shared = kna__cut(cutter, clusters, sizeof(int32_t));
    trace->own = kna__cut(cutter, queries * (size_t)trace->own_most, sizeof(int32_t));
    trace->own_count = kna__cut(cutter, queries, sizeof(int32_t));
    trace->group_base = kna__cut(cutter, rows, sizeof(float));
}

static void trace_shared(prefill_room *room, int64_t probe_rows)
{
    const knn_choice *choice = &room->choice;
    if (room->trace) {
        memcpy(room->trace->shared, choice->chosen, (size_t)choice->count * sizeof *choice->chosen);
        room->trace->shared_count = choice->count;
        room->trace->probe_rows = probe_rows;
    }
}

/* Of the query whose heads are rows r .. r + g - 1. */
static void trace_own(prefill_room *room, int64_t r)
{
    const knn_choice *choice = &room->choice;
    prefill_trace *trace = room->trace;
    if (trace) {
        int64_t query = r / room->tile.problem->g;
        memcpy(trace->own + query * trace->own_most, choice->chosen, (size_t)choice->count * sizeof *choice->chosen);
        trace->own_count[query] = (int32_t)choice->count;
    }
}

/* ---- who chooses */

static bool has_order(const kna__problem *p)
{
    return p->options.causal || p->options.window > 0 || p->mask.data;
}

/* Queries before a tile that may choose for it: those of the same sequence, which see the first of the plan's clusters. */
static int64_t count_probes(const kna__problem *p, const knn_plan *plan, int64_t query)
{
    int64_t probes = 0;
    if (!has_order(p) || !plan->clusters.size) {
        return 0;
    }
    int64_t row = plan->clusters.runs[0].first * KNA_MEMBERS, first = row ? row : KNA_FIRST_ROWS;
    while (probes < PROBES && query - probes > 0 && kna__knn_sees(p, query - probes - 1, first, row + KNA_PIECE - first)) {
        probes++;
    }
    return probes;
}

static void measure_rows(prefill_room *room)
{
    const kna__problem *p = room->tile.problem;
    room->mean_square = 0;
    for (int64_t r = 0; r < room->tile.rows; r++) {
        float square = kna__square(p->kernels, room->tile.q + r * p->d, p->d);
        room->half_square[r] = square / 2;
        room->mean_square += r < room->choosers ? square / (float)room->choosers : 0;
        room->tail[r] = 0;
        room->max[r] = 0;
        room->own[r] = (knn_tally){ .codes = 0 };
        room->errors[r] = -1;
    }
}

/* ---- means */

static void read_ranges(prefill_room *room)
{
    for (int64_t i = 0; i < room->plan.range_count; i++) {
        for (int64_t first = room->plan.ranges[i].first; first < room->plan.ranges[i].end; first += KNA_TILE_KEYS) {
            int64_t left = room->plan.ranges[i].end - first;
            kna__tile_keys(&room->tile, first, left < KNA_TILE_KEYS ? left : KNA_TILE_KEYS);
        }
    }
}

static void widen_means(prefill_room *room, const uint16_t *means, int64_t n, int64_t dim)
{
    kna__span rows = { (const char *)means, (size_t)dim * sizeof(uint16_t), NULL };
    room->tile.problem->kernels->widen[KNA_F16](room->tile.panel, (size_t)dim, rows, (size_t)n, (size_t)dim);
}

/* At most a panel of a list's clusters that lie side by side, from number i on. */
static int64_t panel(const knn_call *call, const prefill_room *room, const knn_list *list, int64_t i, int64_t *at)
{
    int64_t most = i + KNA_TILE_KEYS < list->size ? i + KNA_TILE_KEYS : list->size;
    return kna__knn_stretch(call, list, room->tile.kv_head, i, most, at);
}

static void score_means(const knn_call *call, prefill_room *room, const prefill_means *means)
{
    const kna__problem *p = call->problem;
    const knn_list *list = &means->list;
    kna__tile *tile = &room->tile;
    size_t d = (size_t)p->d, size = (size_t)list->size;
    int32_t dead[KNA_TILE_KEYS];
    for (int64_t i = 0, end, at; i < list->size; i = end) {
        end = panel(call, room, list, i, &at);
        size_t n = (size_t)(end - i);
        int64_t dead_count = kna__knn_dead(call, list, at, end - i, dead);
        widen_means(room, kna__knn_level(call, list)->key + at * p->d, end - i, p->d);
        p->kernels->transpose(tile->kt, KNA_TILE_KEYS, tile->panel, d, n, d);
        p->kernels->gemm(means->z + i, size, tile->q, d, tile->kt, KNA_TILE_KEYS, (size_t)tile->rows, n, d, false);
        for (int64_t r = 0; r < tile->rows; r++) {
            float *z = means->z + r * list->size + i;
            if (p->options.softcap > 0) {
                p->kernels->softcap(z, p->options.softcap, n);
            }
            kna__knn_forget(z, dead, dead_count);
        }
    }
}

/* Logits of a row's clusters to masses, relative to the largest logit met so far; of choosers, their shares of softmax. */
static void weigh_row(const knn_call *call, prefill_room *room, const prefill_means *means, int64_t r)
{
    const kna__problem *p = call->problem;
    const knn_list *list = &means->list;
    kna__tile *tile = &room->tile;
    float *z = means->z + r * list->size;
    kna__tile_raise(tile, r, p->kernels->max(z, (size_t)list->size));
    double mass = kna__knn_mass(call, list, tile->kv_head, z, tile->state[r].max, room->half_square[r]);
    room->base[r] = tile->state[r].max;
    room->total[r] = mass + tile->state[r].sum;
    if (r < room->choosers && room->total[r] > 0 && isfinite(room->total[r])) {
        p->kernels->axpy(room->choice.share, (float)(1 / room->total[r]), z, (size_t)list->size);
    }
}

/* Returns the error estimated for what is left. */
static float choose_shared(const knn_call *call, prefill_room *room, const prefill_means *means, int64_t want, float error)
{
    const knn_list *list = &means->list;
    score_means(call, room, means);
    kna__knn_choice_begin(call, list, room->tile.kv_head, &room->choice, room->mean_square);
    for (int64_t r = 0; r < room->tile.rows; r++) {
        weigh_row(call, room, means, r);
    }
    float left = kna__knn_choose(call, list, room->tile.kv_head, &room->choice, want, room->choosers, error);
    for (int64_t r = 0; r < room->tile.rows; r++) {
        float *z = means->z + r * list->size;
        for (int64_t i = 0; i < room->choice.count; i++) {
            z[room->choice.chosen[i]] = 0;
        }
    }
    return left;
}

/* What is left in row r's masses goes into its state, relative to the maximum that the row has by now. */
static void add_tail(prefill_room *room, const prefill_means *means, int64_t r)
{
    kna__state *state = &room->tile.state[r];
    float *z = means->z + r * means->list.size;
    if (state->max > room->base[r]) {
        room->tile.problem->kernels->scale(z, expf(room->base[r] - state->max), (size_t)means->list.size);
    }
    double sum = kna__knn_sum(room->tile.problem->kernels, z, means->list.size);
    room->tail[r] = sum + (room->tail[r] > 0 ? room->tail[r] * exp((double)room->max[r] - (double)state->max) : 0);
    room->max[r] = state->max;
    state->sum += sum;
}

static void mix_means(const knn_call *call, prefill_room *room, const prefill_means *means)
{
    const kna__problem *p = call->problem;
    const knn_list *list = &means->list;
    kna__tile *tile = &room->tile;
    size_t dv = (size_t)p->dv, mute = (size_t)tile->mute, size = (size_t)list->size;
    for (int64_t i = 0, end, at; i < list->size; i = end) {
        end = panel(call, room, list, i, &at);
        widen_means(room, kna__knn_level(call, list)->value + at * p->dv, end - i, p->dv);
        p->kernels->gemm(tile->out + mute * dv, dv, means->z + mute * size + i, size, tile->panel, dv, (size_t)tile->rows - mute,
                         dv, (size_t)(end - i), true);
    }
}

/* ---- groups */

/* Half of the error asked for is for groups left closed. */
static void open_groups(const knn_call *call, prefill_room *room, int64_t rows)
{
    int64_t open = kna__knn_open(kna__knn_k(call, room->tile.kv_head), call, rows);
    kna__knn_list_clear(&room->clusters.list);
    room->error = choose_shared(call, room, &room->groups, open, kna__knn_limit(call) / 2);
    for (int64_t i = 0; i < room->choice.count; i++) {
        int64_t group = kna__knn_slot(&room->groups.list, room->choice.chosen[i]);
        kna__knn_list_add(&room->clusters.list, group * KNA_GROUP_SLOTS, (group + 1) * KNA_GROUP_SLOTS);
    }
    for (int64_t r = 0; r < room->tile.rows; r++) {
        add_tail(room, &room->groups, r);
        if (room->trace) {
            room->trace->group_base[r] = room->max[r];
        }
    }
    mix_means(call, room, &room->groups);
}

/* ---- keys */

/* Keys of the chosen clusters, a panel at a time. Returns how many. */
static int64_t read_chosen(const knn_call *call, prefill_room *room)
{
    int64_t held = 0, keys = 0;
    for (int64_t i = 0; i < room->choice.count; i++) {
        int64_t slot = kna__knn_slot(&room->clusters.list, room->choice.chosen[i]), done = 0;
        held += kna__cluster_rows(&call->index->clusters, room->tile.kv_head, slot, room->ids + held);
        for (; held - done >= KNA_TILE_KEYS; done += KNA_TILE_KEYS) {
            kna__tile_ids(&room->tile, room->ids + done, KNA_TILE_KEYS);
        }
        memmove(room->ids, room->ids + done, (size_t)(held - done) * sizeof(int32_t));
        keys += done;
        held -= done;
    }
    if (held) {
        kna__tile_ids(&room->tile, room->ids, held);
    }
    return keys + held;
}

/* The clusters that the heads of a query, rows r .. r + g - 1, have chosen for themselves. */
static void read_own(const knn_call *call, prefill_room *room, int64_t r)
{
    const kna__problem *p = call->problem;
    kna__tile *tile = &room->tile;
    knn_members *members = &room->members;
    const knn_list *list = &room->clusters.list;
    const float *q = tile->q + r * p->d;
    for (int64_t x = 0; x < p->g; x++) {
        double total = room->total[r + x];
        room->log_total[x] = total > 0 ? (double)room->base[r + x] + log(total) : -INFINITY;
    }
    kna__knn_codes_begin(&room->codes, call, q);
    knn_readers by = { p->g,       tile->kv_head, q, room->codes, room->log_total, NULL, room->clusters.z + r * list->size,
                       list->size, room->base + r };
    kna__knn_members_read(call, &by, list, room->choice.chosen, room->choice.count, members);
    for (int64_t x = 0; x < p->g; x++) {
        float *s = members->logits + x * members->places;
        kna__tile_raise(tile, r + x, p->kernels->max(s, (size_t)members->places));
        if (tile->state[r + x].max > -INFINITY) {
            p->kernels->exp_sum(s, tile->state[r + x].max, (size_t)members->places);
        } else {
            memset(s, 0, (size_t)members->places * sizeof *s);
        }
        room->own[r + x] = members->read;
    }
    kna__knn_members_mix(call, &by, members, &tile->state[r], tile->out + r * p->dv);
}

/*
 * What a query needs and the tile does not: a head that copies attends somewhere else at every token. The clusters with the
 * largest scores of its heads are read beside the shared ones; where an error is asked for, as many as it takes.
 */
static void choose_own(const knn_call *call, prefill_room *room, int64_t r)
{
    const kna__problem *p = call->problem;
    const knn_list *list = &room->clusters.list;
    knn_choice *choice = &room->choice;
    float limit = kna__knn_limit(call) - room->error, *z = room->clusters.z + r * list->size;
    int64_t want = kna__knn_own(kna__knn_k(call, room->tile.kv_head), call);
    memset(choice->share, 0, (size_t)list->size * sizeof *choice->share);
    for (int64_t x = 0; x < p->g; x++) {
        double total = room->total[r + x];
        if (total > 0 && isfinite(total)) {
            p->kernels->axpy(choice->share, (float)(1 / total), z + x * list->size, (size_t)list->size);
        }
    }
    float left = kna__knn_choose_own(call, list, room->tile.kv_head, choice, choice->share, (double)p->g, want, limit);
    for (int64_t x = 0; x < p->g; x++) {
        for (int64_t i = 0; i < choice->count; i++) {
            z[x * list->size + choice->chosen[i]] = 0;
        }
        room->errors[r + x] = left < 0 ? -1 : left + room->error;
    }
    trace_own(room, r);
    read_own(call, room, r);
}

/* ---- a tile */

/* From here on the probes are not computed any further. */
static void drop_probes(prefill_room *room, int64_t rows)
{
    kna__tile_skip(&room->tile, rows);
    room->clusters.z += rows * room->clusters.list.size;
    room->half_square += rows;
    room->tail += rows;
    room->max += rows;
    room->base += rows;
    room->total += rows;
    room->errors += rows;
    room->own += rows;
}

/* keys: of the clusters shared. */
static void report_rows(const knn_call *call, const prefill_room *room, int64_t keys)
{
    const kna__problem *p = call->problem;
    const kna__tile *tile = &room->tile;
    for (int64_t r = 0; r < tile->rows; r++) {
        int64_t query = (tile->row + r) / p->g, head = tile->kv_head * p->g + (tile->row + r) % p->g;
        const knn_tally *own = &room->own[r];
        double means = (double)(room->clusters.list.size + room->groups.list.size), shared = (double)keys;
        knn_read read = { (double)own->codes, shared + (double)own->keys, shared + (double)own->values, means, means };
        kna__row_stats *stats = kna__knn_count(call, &room->plan, head, query, &read);
        stats->stale = own->stale;
        double total = tile->state[r].sum + kna__sink_weight(p, head, tile->state[r].max);
        if (!room->plan.clusters.size) {
            continue;
        }
        stats->tail_mass = total > 0 ? (float)(room->tail[r] * exp((double)room->max[r] - (double)tile->state[r].max) / total) : 0;
        stats->error_est = room->errors[r];
    }
}

/* Returns keys of the clusters shared. */
static int64_t attend_clusters(const knn_call *call, prefill_room *room, int64_t probe_rows)
{
    int64_t rows = room->tile.rows - probe_rows, want = kna__knn_shared(kna__knn_k(call, room->tile.kv_head), call, rows);
    room->error = 0;
    if (room->is_deep) {
        room->groups.list = room->plan.groups;
        open_groups(call, room, rows);
    } else {
        room->clusters.list = room->plan.clusters;
    }
    choose_shared(call, room, &room->clusters, want, INFINITY);
    trace_shared(room, probe_rows);
    drop_probes(room, probe_rows);
    int64_t keys = read_chosen(call, room);
    for (int64_t r = 0; r < rows; r += call->problem->g) {
        choose_own(call, room, r);
    }
    for (int64_t r = 0; r < rows; r++) {
        add_tail(room, &room->clusters, r);
    }
    mix_means(call, room, &room->clusters);
    return keys;
}

void kna__knn_prefill_tile(const prefill_job *job, prefill_room *room, int64_t task)
{
    knn_call *call = job->call;
    const kna__problem *p = call->problem;
    int64_t kv_head = task / job->tiles, row = task % job->tiles * job->tile, all = call->queries * p->g, keys = 0;
    int64_t rows = all - row < job->tile ? all - row : job->tile, query = call->query + row / p->g;
    kna__knn_plan(call, &room->plan, query, rows / p->g);
    room->is_deep = kna__knn_is_deep(kna__knn_k(call, kv_head), call, &room->plan, rows);
    int64_t probes = count_probes(p, &room->plan, query);
    kna__tile_begin(&room->tile, kv_head, (query - probes) * p->g, rows + probes * p->g);
    room->tile.mute = probes * p->g;
    room->choosers = has_order(p) ? (probes + 1) * p->g : rows;
    kna__knn_list_clear(&room->groups.list);
    kna__knn_list_clear(&room->clusters.list);
    measure_rows(room);
    read_ranges(room);
    if (room->plan.clusters.size) {
        keys = attend_clusters(call, room, probes * p->g);
    }
    report_rows(call, room, keys);
}

static void prefill_task(void *argument, int64_t task, int worker)
{
    const prefill_job *job = argument;
    size_t bytes;
    prefill_room room = kna__knn_prefill_room(job, job->rooms + (size_t)worker * job->room_bytes, &bytes);
    kna__knn_prefill_tile(job, &room, task);
    kna__tile_end(&room.tile);
}

/* ---- the call */

/* Columns of masses that a tile goes through, when groups come first or not. */
static int64_t columns(const prefill_job *job)
{
    int64_t clusters = job->pieces * KNA_SLOTS, open = kna__knn_open(job->call->k_most, job->call, TILE_MOST) * KNA_GROUP_SLOTS;
    return clusters < 2 * open ? clusters : open + job->pieces * KNA_PIECE_GROUPS;
}

static int64_t choose_tile(const prefill_job *job)
{
    const kna__problem *p = job->call->problem;
    int64_t rows = job->call->queries * p->g, tile = TILE_MOST;
    while (tile > TILE_LEAST &&
           ((rows + tile - 1) / tile * p->h_kv < 6 || tile * columns(job) * (int64_t)sizeof(float) > MASSES_BYTES)) {
        tile /= 2;
    }
    tile = tile / p->g * p->g;
    return tile < p->g ? p->g : tile;
}

void kna__knn_prefill_begin(prefill_job *job)
{
    const kna__problem *p = job->call->problem;
    job->pieces = p->n / KNA_PIECE + 1;
    job->tile = choose_tile(job);
    job->tiles = (job->call->queries * p->g + job->tile - 1) / job->tile;
    kna__knn_prefill_room(job, NULL, &job->room_bytes);
}

int kna__attend_knn_prefill(knn_call *call)
{
    const kna__problem *p = call->problem;
    prefill_job job = { .call = call };
    kna__knn_prefill_begin(&job);
    job.rooms = kna__scratch(p->context, kna__size_product(job.room_bytes, (size_t)p->context->threads));
    if (!job.rooms) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch per thread", job.room_bytes);
    }
    kna__parallel_for(p->context->threads, p->h_kv * job.tiles, prefill_task, &job);
    return KNA_OK;
}
