/*
 * knn_backward.c - gradients of kNN attention: the exact adjoint of what kna_attend() computes, with the sets held fixed: who was
 * chosen is not differentiated, nor how far members stray from their means.
 *
 * The forward call is repeated, blocks of queries and index included, so that the same clusters are met; each tile of rows is then
 * gone through again. Keys read in full have the gradients of exact attention. A cluster left to its means is one pseudo-key:
 * weight P = count exp(z) (1 + |q|^2 spread / 2) / sum, z = <q, mean key>, so with dz = P (<dout, mean value> - Delta)
 *   d mean key += dz q     d mean value += P dout     dq += dz (mean key + q spread / (1 + |q|^2 spread / 2))
 * and a mean's gradient goes in equal parts to its members, when the cluster is formed anew or at the end.
 *
 * A task is a lane: every so many-th tile of a KV head, with gradients of keys and values of its own. The number of lanes depends
 * on the number of KV heads, so the result does not depend on the threads.
 */
#include "backward_tile.h"
#include "knn_prefill.h"

#include <math.h>

enum { LANES = 8 /* of all KV heads together, at least */ };

typedef struct level_gradients {
    float *key, *value; /* (lanes, heads, slots, d) and dv, as the index has its means */
    int64_t size;       /* heads * slots */
} level_gradients;

typedef struct backward_job {
    prefill_job prefill;
    const kna__backward *b;
    kna_index *index;
    int64_t lanes;
    float *dk, *dv; /* (lanes - 1, h_kv, n, d) and dv: lane 0 has the caller's */
    level_gradients level[KNA_LEVELS];
    char *rooms;
    size_t room_bytes;
} backward_job;

/* A worker's room. */
typedef struct backward_room {
    prefill_trace trace;
    kna__backward_room pairs;
    kna__backward_rows rows; /* of a tile */
    float *dq;               /* (tile, d) */
    double *total;           /* rows: sum of the softmax relative to its maximum */
    int32_t *ids;            /* of the clusters that the heads of a query chose for themselves */
    float *weights, *slopes; /* likewise, of each head */
    prefill_room prefill;    /* cut last: its size is its own affair */
} backward_room;

/* What a task works on. */
typedef struct backward_lane {
    const backward_job *job;
    const knn_call *call;
    kna__backward b; /* dk, dv: the lane's */
    int64_t lane, kv_head;
    backward_room room;
} backward_lane;

static backward_room cut_room(const backward_job *job, char *base, size_t *bytes)
{
    const kna__problem *p = &job->b->problem;
    kna__cutter cutter = { base, 0 };
    backward_room room;
    size_t rows = (size_t)job->prefill.tile, own;
    kna__knn_prefill_trace_cut(&room.trace, &job->prefill, &cutter);
    kna__backward_room_cut(&room.pairs, p, &cutter);
    own = (size_t)kna__knn_most_keys(job->prefill.call, room.trace.own_most);
    room.rows.dout = kna__cut(&cutter, rows * (size_t)p->dv, sizeof(float));
    room.rows.delta = kna__cut(&cutter, rows, sizeof(float));
    room.rows.lse = kna__cut(&cutter, rows, sizeof(float));
    room.dq = kna__cut(&cutter, rows * (size_t)p->d, sizeof(float));
    room.total = kna__cut(&cutter, rows, sizeof(double));
    room.ids = kna__cut(&cutter, own, sizeof(int32_t));
    room.weights = kna__cut(&cutter, own * (size_t)p->g, sizeof(float));
    room.slopes = kna__cut(&cutter, own * (size_t)p->g, sizeof(float));
    char *rest = kna__cut(&cutter, job->prefill.room_bytes, 1);
    room.prefill = kna__knn_prefill_room(&job->prefill, base ? rest : NULL, bytes);
    *bytes = cutter.used;
    return room;
}

/* ---- rows */

/* What the tile's rows came to: lse, Delta and dout. */
static void read_rows(backward_lane *lane)
{
    const kna__problem *p = &lane->b.problem;
    const kna__tile *tile = &lane->room.prefill.tile;
    kna__backward_rows *at = &lane->room.rows;
    size_t dv = (size_t)p->dv;
    at->q = tile->q;
    for (int64_t r = 0; r < tile->rows; r++) {
        int64_t head = tile->kv_head * p->g + (tile->row + r) % p->g, query = (tile->row + r) / p->g;
        float *dout = at->dout + r * p->dv, product;
        double total = tile->state[r].sum > 0 ? tile->state[r].sum + kna__sink_weight(p, head, tile->state[r].max) : 0;
        p->kernels->widen[lane->b.dout.type](dout, dv, kna__span_at(&lane->b.dout, head, query), 1, dv);
        p->kernels->dot[KNA_F32](&product, 1, tile->out + r * p->dv, 0, 1, (kna__span){ (const char *)dout, 0, NULL }, 1, dv);
        lane->room.total[r] = total;
        at->delta[r] = total > 0 ? (float)((double)product / total) : 0;
        at->lse[r] = total > 0 ? (float)((double)tile->state[r].max + log(total)) : -INFINITY;
    }
    memset(lane->room.dq, 0, (size_t)(tile->rows * p->d) * sizeof *lane->room.dq);
}

static void write_rows(const backward_lane *lane)
{
    const kna__problem *p = &lane->b.problem;
    const kna__tile *tile = &lane->room.prefill.tile;
    for (int64_t r = 0; r < tile->rows && lane->b.dq.data; r++) {
        int64_t head = tile->kv_head * p->g + (tile->row + r) % p->g, query = (tile->row + r) / p->g;
        p->kernels->axpy(kna__gradient_at(&lane->b.dq, head, query), p->scale, lane->room.dq + r * p->d, (size_t)p->d);
    }
}

/* ---- keys read in full */

static void add_keys(backward_lane *lane, int64_t first, int64_t count, const int32_t *ids)
{
    const kna__problem *p = &lane->b.problem;
    const kna__tile *tile = &lane->room.prefill.tile;
    kna__backward_pair pair = { tile->kv_head, tile->row, tile->rows, first, count, ids, lane->room.rows, lane->room.dq };
    if (count && (ids || kna__backward_sees(p, &pair))) {
        kna__backward_read(p, &pair, &lane->room.pairs);
        kna__backward_add(&lane->b, &pair, &lane->room.pairs);
    }
}

static void add_ranges(backward_lane *lane)
{
    const knn_plan *plan = &lane->room.prefill.plan;
    for (int64_t i = 0; i < plan->range_count; i++) {
        for (int64_t first = plan->ranges[i].first, end = plan->ranges[i].end; first < end; first += KNA_BACKWARD_KEYS) {
            add_keys(lane, first, end - first < KNA_BACKWARD_KEYS ? end - first : KNA_BACKWARD_KEYS, NULL);
        }
    }
}

/* Keys of the clusters that the tile shares, a panel at a time. */
static void add_shared(backward_lane *lane)
{
    const prefill_trace *trace = &lane->room.trace;
    int32_t ids[KNA_BACKWARD_KEYS + KNA_SEGMENT];
    int64_t held = 0;
    for (int64_t i = 0; i < trace->shared_count; i++) {
        int64_t slot = kna__knn_slot(&lane->room.prefill.clusters.list, trace->shared[i]), done = 0;
        held += kna__cluster_rows(&lane->call->index->clusters, lane->kv_head, slot, ids + held);
        for (; held - done >= KNA_BACKWARD_KEYS; done += KNA_BACKWARD_KEYS) {
            add_keys(lane, 0, KNA_BACKWARD_KEYS, ids + done);
        }
        memmove(ids, ids + done, (size_t)(held - done) * sizeof *ids);
        held -= done;
    }
    add_keys(lane, 0, held, ids);
}

static int64_t find_own(const backward_lane *lane, int64_t query)
{
    const prefill_trace *trace = &lane->room.trace;
    int64_t found = 0;
    for (int64_t i = 0; i < trace->own_count[query]; i++) {
        int64_t slot = kna__knn_slot(&lane->room.prefill.clusters.list, trace->own[query * trace->own_most + i]);
        found += kna__cluster_rows(&lane->call->index->clusters, lane->kv_head, slot, lane->room.ids + found);
    }
    return found;
}

/* Weights of the keys of row r, of which w holds the logits, and dS from <dout, values>. */
static void tilt_own(const backward_lane *lane, int64_t r, float *w, float *slopes, int64_t count)
{
    const kna__problem *p = &lane->b.problem;
    float cap = p->options.softcap, lse = lane->room.rows.lse[r];
    if (cap > 0) {
        p->kernels->softcap(w, cap, (size_t)count);
    }
    p->kernels->exp_sum(w, lse, (size_t)count);
    p->kernels->tilt(slopes, w, lane->room.rows.delta[r], (size_t)count);
    for (int64_t i = 0; i < count && cap > 0; i++) {
        float share = (logf(w[i]) + lse) / cap;
        slopes[i] *= w[i] > 0 ? 1 - share * share : 0;
    }
}

/* Rows r .. r + g - 1, the heads of a query. */
static void weigh_own(backward_lane *lane, int64_t r, int64_t count)
{
    const kna__problem *p = &lane->b.problem;
    backward_room *room = &lane->room;
    size_t n = (size_t)count, d = (size_t)p->d, dv = (size_t)p->dv, g = (size_t)p->g;
    p->kernels->dot_at[p->k.type](room->weights, n, room->rows.q + r * p->d, d, g, kna__span_at(&p->k, lane->kv_head, 0), room->ids,
                                  n, d);
    p->kernels->dot_at[p->v.type](room->slopes, n, room->rows.dout + r * p->dv, dv, g, kna__span_at(&p->v, lane->kv_head, 0),
                                  room->ids, n, dv);
    for (int64_t x = 0; x < p->g; x++) {
        tilt_own(lane, r + x, room->weights + x * count, room->slopes + x * count, count);
    }
}

/* Adds x[i + r count] y[r], of rows r, to a gradient's row of key i. */
static void spread_own(const kna__problem *p, float *to, const float *x, int64_t count, const float *y, int64_t dim)
{
    for (int64_t r = 0; r < p->g && to; r++) {
        p->kernels->axpy(to, x[r * count], y + r * dim, (size_t)dim);
    }
}

static void add_own(backward_lane *lane, int64_t r)
{
    const kna__problem *p = &lane->b.problem;
    backward_room *room = &lane->room;
    int64_t count = find_own(lane, r / p->g);
    weigh_own(lane, r, count);
    p->kernels->mix_at[p->k.type](room->dq + r * p->d, (size_t)p->d, room->slopes, (size_t)count, (size_t)p->g,
                                  kna__span_at(&p->k, lane->kv_head, 0), room->ids, (size_t)count, (size_t)p->d);
    for (int64_t i = 0; i < count; i++) {
        spread_own(p, kna__gradient_at(&lane->b.dk, lane->kv_head, room->ids[i]), room->slopes + i, count, room->rows.q + r * p->d,
                   p->d);
        spread_own(p, kna__gradient_at(&lane->b.dv, lane->kv_head, room->ids[i]), room->weights + i, count,
                   room->rows.dout + r * p->dv, p->dv);
    }
}

/* ---- means */

/* Clusters at .. at + count - 1 of a level's arrays, numbers from i on in the list. */
typedef struct mean_panel {
    const prefill_means *means;
    int64_t skip; /* rows of z before the tile's own */
    const float *base;
    int64_t i, at, count;
} mean_panel;

/* What the panel's clusters weigh in row r. */
static void weigh_means(const backward_lane *lane, const mean_panel *panel, int64_t r, float *w)
{
    const kna__tile *tile = &lane->room.prefill.tile;
    const float *z = panel->means->z + (panel->skip + r) * panel->means->list.size + panel->i;
    double total = lane->room.total[r];
    memcpy(w, z, (size_t)panel->count * sizeof *w);
    double factor = total > 0 ? exp((double)panel->base[panel->skip + r] - (double)tile->state[r].max) / total : 0;
    lane->b.problem.kernels->scale(w, (float)factor, (size_t)panel->count);
}

/* What the masses' own dependence on |q| adds. */
static void add_spread(backward_lane *lane, const mean_panel *panel, int64_t r, const float *slopes)
{
    const kna__problem *p = &lane->b.problem;
    const float *spread = kna__knn_level(lane->call, &panel->means->list)->spread + panel->at, *q = lane->room.rows.q + r * p->d;
    float half_square = lane->room.prefill.half_square[r], sum = 0;
    for (int64_t x = 0; x < panel->count; x++) {
        sum += slopes[x] * spread[x] / (1 + half_square * spread[x]);
    }
    p->kernels->axpy(lane->room.dq + r * p->d, sum, q, (size_t)p->d);
}

static void read_means(backward_lane *lane, const mean_panel *panel)
{
    const kna__problem *p = &lane->b.problem;
    const kna__level *level = kna__knn_level(lane->call, &panel->means->list);
    kna__backward_room *pairs = &lane->room.pairs;
    size_t d = (size_t)p->d, dv = (size_t)p->dv, n = (size_t)panel->count;
    kna__span keys = { (const char *)(level->key + panel->at * p->d), d * sizeof(uint16_t), NULL };
    kna__span values = { (const char *)(level->value + panel->at * p->dv), dv * sizeof(uint16_t), NULL };
    p->kernels->widen[KNA_F16](pairs->k, d, keys, n, d);
    p->kernels->widen[KNA_F16](pairs->v, dv, values, n, dv);
    p->kernels->transpose(pairs->vt, KNA_BACKWARD_KEYS, pairs->v, dv, n, dv);
    if (p->options.softcap > 0) {
        p->kernels->transpose(pairs->kt, KNA_BACKWARD_KEYS, pairs->k, d, n, d);
        p->kernels->gemm(pairs->raw, KNA_BACKWARD_KEYS, lane->room.rows.q, d, pairs->kt, KNA_BACKWARD_KEYS,
                         (size_t)lane->room.prefill.tile.rows, n, d, false);
    }
}

static void add_panel(backward_lane *lane, const mean_panel *panel)
{
    const kna__problem *p = &lane->b.problem;
    const level_gradients *to = &lane->job->level[panel->means->list.level];
    kna__backward_room *pairs = &lane->room.pairs;
    int64_t rows = lane->room.prefill.tile.rows, at = lane->lane * to->size + panel->at;
    size_t dv = (size_t)p->dv, n = (size_t)panel->count;
    read_means(lane, panel);
    p->kernels->gemm(pairs->slopes, KNA_BACKWARD_KEYS, lane->room.rows.dout, dv, pairs->vt, KNA_BACKWARD_KEYS, (size_t)rows, n, dv,
                     false);
    for (int64_t r = 0; r < rows; r++) {
        float *w = pairs->weights + r * KNA_BACKWARD_KEYS, *slopes = pairs->slopes + r * KNA_BACKWARD_KEYS;
        weigh_means(lane, panel, r, w);
        p->kernels->tilt(slopes, w, lane->room.rows.delta[r], n);
        add_spread(lane, panel, r, slopes);
        if (p->options.softcap > 0) {
            kna__backward_uncap(p, slopes, pairs->raw + r * KNA_BACKWARD_KEYS, panel->count);
        }
    }
    kna__backward_turned(p, pairs, to->value + at * p->dv, p->dv, pairs->weights, lane->room.rows.dout, rows, panel->count, p->dv,
                         true);
    kna__backward_turned(p, pairs, to->key + at * p->d, p->d, pairs->slopes, lane->room.rows.q, rows, panel->count, p->d, true);
    p->kernels->gemm(lane->room.dq, (size_t)p->d, pairs->slopes, KNA_BACKWARD_KEYS, pairs->k, (size_t)p->d, (size_t)rows,
                     (size_t)p->d, n, true);
}

static void add_means(backward_lane *lane, const prefill_means *means, int64_t skip, const float *base)
{
    mean_panel panel = { .means = means, .skip = skip, .base = base };
    for (int64_t i = 0, end; i < means->list.size; i = end) {
        int64_t most = i + KNA_BACKWARD_KEYS < means->list.size ? i + KNA_BACKWARD_KEYS : means->list.size;
        panel.i = i;
        end = kna__knn_stretch(lane->call, &means->list, lane->kv_head, i, most, &panel.at);
        panel.count = end - i;
        add_panel(lane, &panel);
    }
}

/* ---- tiles, lanes */

static void differentiate_tile(backward_lane *lane, int64_t tile)
{
    const prefill_job *prefill = &lane->job->prefill;
    backward_room *room = &lane->room;
    room->prefill.trace = &room->trace;
    kna__knn_prefill_tile(prefill, &room->prefill, lane->kv_head * prefill->tiles + tile);
    read_rows(lane);
    add_ranges(lane);
    if (room->prefill.plan.clusters.size) {
        float *max = room->prefill.max; /* of each row, when its clusters were weighed: its last one */
        add_shared(lane);
        for (int64_t r = 0; r < room->prefill.tile.rows; r += lane->b.problem.g) {
            add_own(lane, r);
        }
        add_means(lane, &room->prefill.clusters, 0, max);
        add_means(lane, &room->prefill.groups, room->trace.probe_rows, room->trace.group_base);
    }
    write_rows(lane);
}

static kna_out_rows lane_rows(const kna_out_rows *own, float *others, int64_t lane, int64_t heads, int64_t rows, int64_t dim)
{
    int64_t bytes = dim * (int64_t)sizeof(float);
    return lane == 0 || !own->data ? *own : (kna_out_rows){ others + (lane - 1) * heads * rows * dim, rows * bytes, bytes };
}

static void run_lane(void *argument, int64_t task, int worker)
{
    const backward_job *job = argument;
    const kna__problem *p = &job->b->problem;
    backward_lane lane = { .job = job, .call = job->prefill.call, .b = *job->b, .lane = task / p->h_kv, .kv_head = task % p->h_kv };
    lane.b.dk = lane_rows(&job->b->dk, job->dk, lane.lane, p->h_kv, p->n, p->d);
    lane.b.dv = lane_rows(&job->b->dv, job->dv, lane.lane, p->h_kv, p->n, p->dv);
    for (int64_t tile = lane.lane; tile < job->prefill.tiles; tile += job->lanes) {
        size_t unused;
        lane.room = cut_room(job, job->rooms + (size_t)worker * job->room_bytes, &unused);
        differentiate_tile(&lane, tile);
    }
}

/* ---- means to their members */

/* What all lanes have for the mean at `at` goes to its members' gradients, in equal parts. */
static void give_to(const backward_job *job, int level, int64_t at, int64_t kv_head, const int32_t *ids, int64_t n)
{
    const kna__problem *p = &job->b->problem;
    const level_gradients *from = &job->level[level];
    for (int64_t lane = 0; lane < job->lanes && n; lane++) {
        float *key = from->key + (lane * from->size + at) * p->d, *value = from->value + (lane * from->size + at) * p->dv;
        for (int64_t i = 0; i < n; i++) {
            float *dk = kna__gradient_at(&job->b->dk, kv_head, ids[i]), *dv = kna__gradient_at(&job->b->dv, kv_head, ids[i]);
            if (dk) {
                p->kernels->axpy(dk, 1 / (float)n, key, (size_t)p->d);
            }
            if (dv) {
                p->kernels->axpy(dv, 1 / (float)n, value, (size_t)p->dv);
            }
        }
        memset(key, 0, (size_t)p->d * sizeof *key);
        memset(value, 0, (size_t)p->dv * sizeof *value);
    }
}

/* The clusters and groups of a piece, or of a merged unit's share of its slots. */
static void give_piece(const backward_job *job, int64_t kv_head, int64_t piece)
{
    const kna__clusters *c = &job->index->clusters;
    int32_t ids[KNA_SEGMENT];
    for (int64_t group = piece * KNA_PIECE_GROUPS; group < (piece + 1) * KNA_PIECE_GROUPS; group++) {
        int64_t held = 0;
        for (int64_t slot = group * KNA_GROUP_SLOTS; slot < (group + 1) * KNA_GROUP_SLOTS; slot++) {
            int64_t n = kna__cluster_rows(c, kv_head, slot, ids + held);
            give_to(job, KNA_CLUSTERS, kna__cluster_slot(c, kv_head, slot), kv_head, ids + held, n);
            held += n;
        }
        give_to(job, KNA_GROUPS, kna__level_at(c, KNA_GROUPS, kv_head, group), kv_head, ids, held);
    }
}

/* All pieces that are formed; but those of whole segments only at the end: they are not formed again. */
typedef struct give_job {
    const backward_job *job;
    bool is_end;
} give_job;

static void give_head(void *argument, int64_t kv_head, int worker)
{
    const give_job *give = argument;
    const kna__clusters *c = &give->job->index->clusters;
    (void)worker;
    for (int64_t piece = 0; piece < give->job->b->problem.n / KNA_PIECE; piece++) {
        if (c->state[piece] == KNA_PIECE_ALONE || (give->is_end && c->state[piece] == KNA_PIECE_MERGED)) {
            give_piece(give->job, kv_head, piece);
        }
    }
}

static void give(const backward_job *job, bool is_end)
{
    give_job argument = { job, is_end };
    kna__parallel_for(job->b->problem.context->threads, job->b->problem.h_kv, give_head, &argument);
}

/* Gradients of the other lanes to the first one's. */
static void join_head(void *argument, int64_t kv_head, int worker)
{
    const backward_job *job = argument;
    const kna__problem *p = &job->b->problem;
    (void)worker;
    for (int64_t lane = 1; lane < job->lanes; lane++) {
        kna_out_rows dk = lane_rows(&job->b->dk, job->dk, lane, p->h_kv, p->n, p->d);
        kna_out_rows dv = lane_rows(&job->b->dv, job->dv, lane, p->h_kv, p->n, p->dv);
        for (int64_t row = 0; row < p->n; row++) {
            if (dk.data) {
                p->kernels->axpy(kna__gradient_at(&job->b->dk, kv_head, row), 1.0f, kna__gradient_at(&dk, kv_head, row),
                                 (size_t)p->d);
            }
            if (dv.data) {
                p->kernels->axpy(kna__gradient_at(&job->b->dv, kv_head, row), 1.0f, kna__gradient_at(&dv, kv_head, row),
                                 (size_t)p->dv);
            }
        }
    }
}

/* ---- the call */

static int run_block(backward_job *job, knn_call *call)
{
    const kna__problem *p = &job->b->problem;
    give(job, false);
    KNA_TRY(kna__knn_form(call, job->index));
    kna__knn_set_levels(call);
    kna__knn_prefill_begin(&job->prefill);
    cut_room(job, NULL, &job->room_bytes);
    job->rooms = kna__scratch(p->context, kna__size_product(job->room_bytes, (size_t)p->context->threads));
    if (!job->rooms) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch per thread", job->room_bytes);
    }
    kna__parallel_for(p->context->threads, job->lanes * p->h_kv, run_lane, job);
    kna__knn_learn(call, job->index);
    return KNA_OK;
}

/* What is held from block to block. */
static size_t cut_job(backward_job *job, knn_call *call, char *base)
{
    const kna__problem *p = &job->b->problem;
    const kna__clusters *c = &job->index->clusters;
    kna__cutter cutter = { base, 0 };
    size_t others = (size_t)((job->lanes - 1) * p->h_kv * p->n);
    job->dk = kna__cut(&cutter, job->b->dk.data ? kna__size_product(others, (size_t)p->d) : 0, sizeof(float));
    job->dv = kna__cut(&cutter, job->b->dv.data ? kna__size_product(others, (size_t)p->dv) : 0, sizeof(float));
    for (int level = 0; level < KNA_LEVELS; level++) {
        job->level[level].size = kna__level_at(c, level, p->h_kv, 0);
        size_t means = (size_t)(job->lanes * job->level[level].size);
        job->level[level].key = kna__cut(&cutter, kna__size_product(means, (size_t)p->d), sizeof(float));
        job->level[level].value = kna__cut(&cutter, kna__size_product(means, (size_t)p->dv), sizeof(float));
    }
    call->stats = kna__cut(&cutter, kna__size_product((size_t)p->m, (size_t)p->h), sizeof(kna__row_stats));
    return cutter.used;
}

static int run_blocks(backward_job *job, knn_call *call)
{
    const kna__problem *p = &job->b->problem;
    job->prefill.call = call;
    for (call->query = 0; call->query < p->m; call->query += KNA_KNN_BLOCK) {
        call->queries = p->m - call->query < KNA_KNN_BLOCK ? p->m - call->query : KNA_KNN_BLOCK;
        KNA_TRY(run_block(job, call));
    }
    kna__parallel_for(p->context->threads, p->h_kv, join_head, job);
    give(job, true);
    return KNA_OK;
}

static int differentiate(const kna__backward *b, kna_index *index)
{
    const kna__problem *p = &b->problem;
    knn_call call = { .problem = p, .index = index, .gaps = kna__index_gaps(index, p->n) };
    backward_job job = { .b = b, .index = index, .lanes = (LANES + p->h_kv - 1) / p->h_kv };
    KNA_TRY(kna__knn_prepare(&call, index));
    size_t bytes = cut_job(&job, &call, NULL);
    char *held = kna__allocate(&p->context->heap, bytes);
    if (!held) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of gradients", bytes);
    }
    memset(held, 0, bytes);
    cut_job(&job, &call, held);
    int status = run_blocks(&job, &call);
    kna__release(&p->context->heap, held, bytes);
    return status;
}

int kna__backward_knn(const kna__backward *b)
{
    const kna__problem *p = &b->problem;
    kna_index *index = NULL;
    int status = kna_index_new(p->context, &index, KNA_KNN, p->h_kv, p->d, p->dv);
    if (status == KNA_OK) {
        index->phase = 0; /* as kna_attend() has it for one call */
        status = kna_index_update(p->context, index, &p->k, &p->v, 0, p->n);
    }
    if (status == KNA_OK) {
        status = differentiate(b, index);
    }
    kna_index_free(index);
    return status;
}
