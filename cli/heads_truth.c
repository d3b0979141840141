/*
 * heads_truth.c - full attention of a late query in double precision, what of its softmax few keys hold, and two oracles: the k
 * nearest keys, found by sorting, with all others dropped, or with the others by the clusters of an index.
 *
 * The second oracle reads in full what knn reads in any case (keys in no cluster, recent ones) and the k nearest of the rest. A
 * cluster stands for those of its members that were not read: their mean key and mean value, which follow from the cluster's
 * means and the members read, and its spread. Searching is not counted.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "heads.h"
#include "parallel.h"

const int64_t heads_tail_k[HEADS_TAILS - HEADS_TAILS_K] = { 16, 32, 64, 128, 256, 512 };

/* How an index divides the keys of a head. */
typedef struct division {
    int32_t *cluster; /* (n) */
    float *spread;    /* (n) */
    int32_t slots;    /* clusters are numbered below this */
    int64_t *count;   /* (slots) members */
    double *of;       /* (slots) spread */
    double *value;    /* (slots, dv) sum of values */
} division;

typedef struct ranked {
    double logit;
    int64_t key;
} ranked;

/* Softmax under construction, relative to the largest logit of the row. */
typedef struct mixture {
    double mass;
    double *values; /* (dv) */
} mixture;

typedef struct workroom {
    double *logit, *weight; /* (n) */
    ranked *order;          /* (n) keys that are neither among the first nor recent, nearest first */
    int64_t ordered;
    int64_t *left;     /* (n) per cluster: members not read */
    double *left_logit; /* (n) per cluster: sum of their logits */
    double *left_value; /* (n / 8, dv) likewise of their values */
    double *mixed;      /* (dv) */
    double *sum;        /* (dv) */
} workroom;

struct heads_truth {
    kna_context *context;
    const heads_layer *layer;
    heads_near near;
    int64_t n, d, dv, h, h_kv, most_slots;
    float *k, *v; /* float32, (h_kv, n, d) and (h_kv, n, dv) */
    division *divisions;
    workroom *rooms; /* (h) */
};

/* ------------------------------------------------------------------ life */

static float *plain(const kna_rows *rows)
{
    const int64_t count = rows->heads * rows->rows;
    float *to = malloc((size_t)count * (size_t)rows->dim * sizeof *to);
    for (int64_t row = 0; to && row < count; row++) convert_load(to + row * rows->dim, rows, row);
    return to;
}

static int division_new(division *x, const heads_truth *t)
{
    const size_t slots = (size_t)t->most_slots;
    x->cluster = malloc((size_t)t->n * sizeof *x->cluster);
    x->spread = malloc((size_t)t->n * sizeof *x->spread);
    x->count = calloc(slots, sizeof *x->count);
    x->of = calloc(slots, sizeof *x->of);
    x->value = calloc(slots * (size_t)t->dv, sizeof *x->value);
    return x->cluster && x->spread && x->count && x->of && x->value;
}

static int room_new(workroom *x, const heads_truth *t)
{
    const size_t n = (size_t)t->n;
    const size_t slots = (size_t)t->most_slots;
    x->logit = malloc(n * sizeof *x->logit);
    x->weight = malloc(n * sizeof *x->weight);
    x->order = malloc(n * sizeof *x->order);
    x->left = malloc(slots * sizeof *x->left);
    x->left_logit = malloc(slots * sizeof *x->left_logit);
    x->left_value = malloc(slots * (size_t)t->dv * sizeof *x->left_value);
    x->mixed = malloc((size_t)t->dv * sizeof *x->mixed);
    x->sum = malloc((size_t)t->dv * sizeof *x->sum);
    return x->logit && x->weight && x->order && x->left && x->left_logit && x->left_value && x->mixed && x->sum;
}

int heads_truth_new(heads_truth **truth, kna_context *context, const heads_layer *layer, const heads_near *near)
{
    heads_truth *t = calloc(1, sizeof *t);
    *truth = t;
    if (!t) return cli_fail("out of memory");
    *t = (heads_truth){ context,       layer,         *near,          layer->k.rows, layer->q.dim, layer->v.dim,
                        layer->q.heads, layer->k.heads, layer->k.rows + 256, NULL,      NULL,         NULL, NULL };
    t->k = plain(&layer->k);
    t->v = plain(&layer->v);
    t->divisions = calloc((size_t)t->h_kv, sizeof *t->divisions);
    t->rooms = calloc((size_t)t->h, sizeof *t->rooms);
    int good = t->k && t->v && t->divisions && t->rooms;
    for (int64_t head = 0; head < t->h_kv && good; head++) good = division_new(&t->divisions[head], t);
    for (int64_t head = 0; head < t->h && good; head++) good = room_new(&t->rooms[head], t);
    return good ? CLI_OK : cli_fail("out of memory: double precision attention over %lld keys", (long long)t->n);
}

static void division_free(division *x)
{
    free(x->cluster);
    free(x->spread);
    free(x->count);
    free(x->of);
    free(x->value);
}

static void room_free(workroom *x)
{
    free(x->logit);
    free(x->weight);
    free(x->order);
    free(x->left);
    free(x->left_logit);
    free(x->left_value);
    free(x->mixed);
    free(x->sum);
}

void heads_truth_free(heads_truth *t)
{
    if (!t) return;
    for (int64_t head = 0; t->divisions && head < t->h_kv; head++) division_free(&t->divisions[head]);
    for (int64_t head = 0; t->rooms && head < t->h; head++) room_free(&t->rooms[head]);
    free(t->divisions);
    free(t->rooms);
    free(t->k);
    free(t->v);
    free(t);
}

/* ------------------------------------------------------------------ clusters */

static void add_row(double *to, double factor, const float *row, int64_t count)
{
    for (int64_t i = 0; i < count; i++) to[i] += factor * (double)row[i];
}

static const float *value_of(const heads_truth *t, int64_t kv_head, int64_t key)
{
    return t->v + (kv_head * t->n + key) * t->dv;
}

static void sum_clusters(heads_truth *t, int64_t kv_head, int64_t seen)
{
    division *x = &t->divisions[kv_head];
    x->slots = 0;
    memset(x->count, 0, (size_t)t->most_slots * sizeof *x->count);
    memset(x->value, 0, (size_t)(t->most_slots * t->dv) * sizeof *x->value);
    for (int64_t key = 0; key < seen; key++) {
        const int32_t at = x->cluster[key];
        if (at < 0) continue;
        x->slots = at < x->slots ? x->slots : at + 1;
        x->count[at]++;
        x->of[at] = (double)x->spread[key];
        add_row(x->value + at * t->dv, 1, value_of(t, kv_head, key), t->dv);
    }
}

int heads_truth_see(heads_truth *t, const kna_index *index, int64_t seen)
{
    for (int64_t head = 0; head < t->h_kv; head++) {
        division *x = &t->divisions[head];
        const int status = kna_index_clusters(t->context, x->cluster, x->spread, index, head, seen);
        if (status != KNA_OK) return cli_status(t->context, status);
        sum_clusters(t, head, seen);
    }
    return CLI_OK;
}

/* ------------------------------------------------------------------ one row */

static double dot(const float *a, const float *b, int64_t d)
{
    double sum[4] = { 0 };
    int64_t i = 0;
    for (; i + 4 <= d; i += 4)
        for (int x = 0; x < 4; x++) sum[x] += (double)a[i + x] * (double)b[i + x];
    for (; i < d; i++) sum[0] += (double)a[i] * (double)b[i];
    return sum[0] + sum[1] + (sum[2] + sum[3]);
}

static int is_first_or_recent(const heads_truth *t, int64_t key, int64_t seen)
{
    return key < t->near.sinks || key >= seen - t->near.window;
}

static int nearer(const void *a, const void *b)
{
    const ranked *x = a;
    const ranked *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->key < y->key ? -1 : x->key > y->key;
}

static void weigh(const heads_truth *t, workroom *room, const float *q, const float *k, int64_t seen)
{
    double largest = -INFINITY;
    room->ordered = 0;
    for (int64_t key = 0; key < seen; key++) {
        room->logit[key] = (double)t->layer->scale * dot(q, k + key * t->d, t->d);
        largest = fmax(largest, room->logit[key]);
        if (!is_first_or_recent(t, key, seen)) room->order[room->ordered++] = (ranked){ room->logit[key], key };
    }
    for (int64_t key = 0; key < seen; key++) {
        room->logit[key] -= largest;
        room->weight[key] = exp(room->logit[key]);
    }
    qsort(room->order, (size_t)room->ordered, sizeof *room->order, nearer);
}

static mixture full_mixture(const heads_truth *t, const workroom *room, double *values, int64_t kv_head, int64_t seen)
{
    mixture all = { 0, values };
    memset(values, 0, (size_t)t->dv * sizeof *values);
    for (int64_t key = 0; key < seen; key++) {
        all.mass += room->weight[key];
        add_row(values, room->weight[key], value_of(t, kv_head, key), t->dv);
    }
    for (int64_t i = 0; i < t->dv; i++) values[i] /= all.mass;
    return all;
}

static void measure_tails(const heads_truth *t, const workroom *room, heads_row *row, double total, int64_t seen)
{
    double sinks = 0;
    double held = 0;
    for (int64_t key = 0; key < seen; key++) {
        sinks += key < t->near.sinks ? room->weight[key] : 0;
        held += is_first_or_recent(t, key, seen) ? room->weight[key] : 0;
    }
    row->tails[HEADS_SINKS_ONLY] = sinks / total;
    row->tails[HEADS_SINKS_WINDOW] = held / total;
    int64_t rank = room->ordered;
    double left = 0;
    for (int i = HEADS_TAILS - 1; i >= HEADS_TAILS_K; i--) { /* from the far end: small numbers first */
        while (rank > heads_tail_k[i - HEADS_TAILS_K]) left += room->weight[room->order[--rank].key];
        row->tails[i] = left / total;
    }
}

static double error_of(const heads_truth *t, const double *values, double mass, const double *exact)
{
    double apart = 0;
    double size = 0;
    for (int64_t i = 0; i < t->dv; i++) {
        const double off = values[i] / mass - exact[i];
        apart += off * off;
        size += exact[i] * exact[i];
    }
    return size > 0 ? sqrt(apart / size) : sqrt(apart);
}

static void take_key(const heads_truth *t, const workroom *room, mixture *to, int64_t kv_head, int64_t key)
{
    to->mass += room->weight[key];
    add_row(to->values, room->weight[key], value_of(t, kv_head, key), t->dv);
}

static void drop_tails(const heads_truth *t, const workroom *room, heads_row *row, int64_t kv_head, int64_t seen)
{
    mixture held = { 0, room->mixed };
    int64_t rank = 0;
    memset(held.values, 0, (size_t)t->dv * sizeof *held.values);
    for (int64_t key = 0; key < seen; key++)
        if (is_first_or_recent(t, key, seen)) take_key(t, room, &held, kv_head, key);
    for (int i = 0; i < t->near.k->count; i++) {
        for (; rank < room->ordered && rank < t->near.k->values[i]; rank++) take_key(t, room, &held, kv_head, room->order[rank].key);
        row->drop[i] = error_of(t, held.values, held.mass, row->exact);
    }
}

/* A key that is read is no longer its cluster's to stand for. */
static void take_from_cluster(const heads_truth *t, workroom *room, mixture *to, int64_t kv_head, int64_t key)
{
    const int32_t at = t->divisions[kv_head].cluster[key];
    take_key(t, room, to, kv_head, key);
    if (at < 0) return;
    room->left[at]--;
    room->left_logit[at] -= room->logit[key];
    add_row(room->left_value + at * t->dv, -1, value_of(t, kv_head, key), t->dv);
}

/* What was read, and the clusters; their number. */
static double oracle_error(const heads_truth *t, workroom *room, const mixture *read, int64_t kv_head, double half_square,
                           const double *exact, int64_t *clusters)
{
    const division *x = &t->divisions[kv_head];
    double mass = read->mass;
    *clusters = 0;
    memcpy(room->sum, read->values, (size_t)t->dv * sizeof *room->sum);
    for (int32_t at = 0; at < x->slots; at++) {
        *clusters += x->count[at] > 0;
        if (room->left[at] <= 0) continue;
        const double each = exp(room->left_logit[at] / (double)room->left[at]) * (1 + half_square * x->of[at]);
        mass += (double)room->left[at] * each;
        for (int64_t i = 0; i < t->dv; i++) room->sum[i] += each * room->left_value[at * t->dv + i];
    }
    return error_of(t, room->sum, mass, exact);
}

static void begin_oracle(const heads_truth *t, workroom *room, int64_t kv_head, int64_t seen)
{
    const division *x = &t->divisions[kv_head];
    memcpy(room->left, x->count, (size_t)x->slots * sizeof *room->left);
    memcpy(room->left_value, x->value, (size_t)(x->slots * t->dv) * sizeof *room->left_value);
    memset(room->left_logit, 0, (size_t)x->slots * sizeof *room->left_logit);
    for (int64_t key = 0; key < seen; key++)
        if (x->cluster[key] >= 0) room->left_logit[x->cluster[key]] += room->logit[key];
}

static void ask_oracle(const heads_truth *t, workroom *room, heads_row *row, int64_t kv_head, int64_t seen, double half_square)
{
    const division *x = &t->divisions[kv_head];
    mixture read = { 0, room->mixed };
    int64_t full = 0;
    int64_t rank = 0;
    memset(read.values, 0, (size_t)t->dv * sizeof *read.values);
    begin_oracle(t, room, kv_head, seen);
    for (int64_t key = 0; key < seen; key++) {
        if (x->cluster[key] >= 0 && !is_first_or_recent(t, key, seen)) continue;
        take_from_cluster(t, room, &read, kv_head, key);
        full++;
    }
    const int64_t always = full;
    for (int i = 0; i < t->near.k->count; i++) {
        int64_t clusters = 0;
        for (; rank < room->ordered && full - always < t->near.k->values[i]; rank++) {
            const int64_t key = room->order[rank].key;
            if (x->cluster[key] < 0) continue;
            take_from_cluster(t, room, &read, kv_head, key);
            full++;
        }
        row->oracle[i] = oracle_error(t, room, &read, kv_head, half_square, row->exact, &clusters);
        row->oracle_read[i] = (double)(full + clusters) / (double)seen;
    }
}

static void row_of(const heads_truth *t, heads_row *row, int64_t head, int64_t seen)
{
    const int64_t kv_head = head / (t->h / t->h_kv);
    const float *q = (const float *)t->layer->q.data + (head * t->n + seen - 1) * t->d;
    workroom *room = &t->rooms[head];
    weigh(t, room, q, t->k + kv_head * t->n * t->d, seen);
    const mixture all = full_mixture(t, room, row->exact, kv_head, seen);
    measure_tails(t, room, row, all.mass, seen);
    drop_tails(t, room, row, kv_head, seen);
    ask_oracle(t, room, row, kv_head, seen, (double)t->layer->scale * (double)t->layer->scale * dot(q, q, t->d) / 2);
}

void heads_truth_rows(heads_truth *t, heads_row *rows, int64_t seen)
{
    PARALLEL_FOR(kna_context_threads(t->context))
    for (int64_t head = 0; head < t->h; head++) row_of(t, &rows[head], head, seen);
}
