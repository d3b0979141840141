/*
 * form.c - rows of a unit into clusters: each row becomes [key in the metric of the queries ; half its value], both scaled to
 * length 1 in the mean square, k-means divides them, and of each group are kept its means and how far members stray from them.
 *
 * The half: a cluster's mean value stands for its members, so they must agree in value too; 1/2 was best of 1/4, 1/2, 1 on real
 * heads. Task: one unit of one head, alone; all sums in row order.
 */
#include "../kernel/half.h"
#include "clusters.h"
#include "index.h"

#include <math.h>

#define VALUE_WEIGHT 0.5f

typedef struct form_job {
    kna_index *index;
    const kna__kernels *kernels;
    const kna_rows *k, *v;
    const kna__unit *units;
    char *scratch;
    size_t room_bytes;
} form_job;

typedef struct form_room {
    float *k, *v;  /* rows of the unit, (rows, d) and (rows, dv) */
    float *x;      /* (rows, d + dv) */
    int8_t *codes; /* (rows, d) */
    float *factor; /* (d, d) */
    float *mean;   /* d + dv */
    int32_t *assigned;
    kna__kmeans_room kmeans;
} form_room;

static form_room cut_room(const kna_index *index, int64_t unit_rows, char *base, size_t *bytes)
{
    kna__cutter cutter = { base, 0 };
    form_room room;
    size_t rows = (size_t)unit_rows, clusters = rows / KNA_PIECE * KNA_SLOTS, d = (size_t)index->d, dim = d + (size_t)index->dv;
    room.k = kna__cut(&cutter, rows * d, sizeof(float));
    room.v = kna__cut(&cutter, rows * (size_t)index->dv, sizeof(float));
    room.x = kna__cut(&cutter, rows * dim, sizeof(float));
    room.codes = kna__cut(&cutter, rows * d, sizeof(int8_t));
    room.factor = kna__cut(&cutter, d * d, sizeof(float));
    room.mean = kna__cut(&cutter, dim, sizeof(float));
    room.assigned = kna__cut(&cutter, rows, sizeof(int32_t));
    kna__kmeans_cut(&room.kmeans, rows, dim, clusters, &cutter);
    *bytes = cutter.used;
    return room;
}

/* Columns at .. at + width of x: less their mean, scaled so that a row's square is `level` in the mean. Returns the factor. */
static float normalise(const form_job *job, float *mean, float *x, int64_t n, int64_t dim, int64_t at, int64_t width, float level)
{
    double square = 0;
    memset(mean, 0, (size_t)width * sizeof *mean);
    for (int64_t i = 0; i < n; i++) {
        job->kernels->axpy(mean, 1.0f / (float)n, x + i * dim + at, (size_t)width);
    }
    for (int64_t i = 0; i < n; i++) {
        float *row = x + i * dim + at;
        job->kernels->axpy(row, -1.0f, mean, (size_t)width);
        square += (double)kna__square(job->kernels, row, width);
    }
    float factor = square > 0 && isfinite(square) ? level * (float)sqrt((double)n / square) : 0;
    for (int64_t i = 0; i < n; i++) {
        job->kernels->scale(x + i * dim + at, factor, (size_t)width);
    }
    return factor;
}

static void to_f16(uint16_t *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        out[i] = kna__float_to_f16(x[i] > 65504.0f ? 65504.0f : x[i] < -65504.0f ? -65504.0f : x[i]);
    }
}

typedef struct group {
    const uint16_t *member;
    int64_t n, origin; /* members are counted from the unit's first row, arrays start at row `origin` of it */
} group;

/* Mean of the members' rows. */
static void mean_row(const form_job *job, float *mean, const group *g, const float *rows, int64_t width)
{
    memset(mean, 0, (size_t)width * sizeof *mean);
    for (int64_t i = 0; i < g->n; i++) {
        job->kernels->axpy(mean, 1.0f, rows + (g->member[i] - g->origin) * width, (size_t)width);
    }
    job->kernels->scale(mean, 1.0f / (float)g->n, (size_t)width);
}

/* Mean squared distance of the members' columns at .. at + width from their mean. */
static double variance(const form_job *job, float *mean, const group *g, const float *x, int64_t dim, int64_t at, int64_t width)
{
    double sum = 0;
    memset(mean, 0, (size_t)width * sizeof *mean);
    for (int64_t i = 0; i < g->n; i++) {
        job->kernels->axpy(mean, 1.0f / (float)g->n, x + (g->member[i] - g->origin) * dim + at, (size_t)width);
    }
    for (int64_t i = 0; i < g->n; i++) {
        const float *row = x + (g->member[i] - g->origin) * dim + at;
        for (int64_t c = 0; c < width; c++) {
            double off = (double)row[c] - (double)mean[c];
            sum += off * off;
        }
    }
    return sum / (double)g->n;
}

/* Members of the clusters, ascending, one cluster after the other. */
static void list_members(kna_index *index, int64_t head, int64_t unit, int64_t slots, int64_t origin, const int32_t *assigned,
                         int64_t n)
{
    kna__clusters *c = &index->clusters;
    uint16_t *member = c->member + head * c->capacity * KNA_PIECE + unit;
    int64_t base = kna__cluster_slot(c, head, unit / KNA_PIECE * KNA_SLOTS);
    uint16_t *count = c->level[KNA_CLUSTERS].count + base, *first = c->first + base;
    memset(count, 0, (size_t)slots * sizeof *count);
    for (int64_t i = 0; i < n; i++) {
        count[assigned[i]]++;
    }
    for (int64_t s = 0, at = 0; s < slots; s++) {
        first[s] = (uint16_t)at;
        at += count[s];
        count[s] = 0;
    }
    for (int64_t i = 0; i < n; i++) {
        int32_t s = assigned[i];
        member[first[s] + count[s]++] = (uint16_t)(origin + i);
    }
}

/* The scaling of x, undone: a square of its key or value columns times this is one of the logits' or the values'. */
typedef struct scaling {
    double key, value;
} scaling;

/* What is kept of the clusters or groups of a level: means, and how far members stray from them. */
static void summarise(const form_job *job, form_room *room, const kna__level *level, int64_t at, const group *g, scaling by)
{
    const int64_t d = job->index->d, dv = job->index->dv;
    level->count[at] = (uint16_t)g->n;
    level->spread[at] = level->deviation[at] = 0;
    memset(level->key + at * d, 0, (size_t)d * sizeof(uint16_t));
    memset(level->value + at * dv, 0, (size_t)dv * sizeof(uint16_t));
    memset(room->mean, 0, (size_t)(d + dv) * sizeof *room->mean);
    if (!g->n) {
        return;
    }
    level->spread[at] = (float)(variance(job, room->mean, g, room->x, d + dv, 0, d) * by.key);
    level->deviation[at] = (float)sqrt(variance(job, room->mean, g, room->x, d + dv, d, dv) * by.value);
    mean_row(job, room->mean, g, room->v, dv);
    to_f16(level->value + at * dv, room->mean, dv);
    mean_row(job, room->mean, g, room->k, d);
    to_f16(level->key + at * d, room->mean, d);
}

/* A unit's clusters and groups; members of a group lie side by side, as its clusters do. */
static void summarise_unit(const form_job *job, form_room *room, int64_t head, int64_t unit, int64_t slots, int64_t origin,
                           scaling by)
{
    kna__clusters *c = &job->index->clusters;
    const uint16_t *member = c->member + head * c->capacity * KNA_PIECE + unit;
    int64_t at = kna__cluster_slot(c, head, unit / KNA_PIECE * KNA_SLOTS);
    for (int64_t s = at; s < at + slots; s++) {
        group g = { member + c->first[s], c->level[KNA_CLUSTERS].count[s], origin };
        summarise(job, room, &c->level[KNA_CLUSTERS], s, &g, by);
        c->norm[s] = sqrtf(kna__square(job->kernels, room->mean, job->index->d));
        c->always[s] = 0;
    }
    for (int64_t s = at; s < at + slots; s += KNA_GROUP_SLOTS) {
        int64_t last = s + KNA_GROUP_SLOTS - 1, end = c->first[last] + c->level[KNA_CLUSTERS].count[last];
        group g = { member + c->first[s], end - c->first[s], origin };
        summarise(job, room, &c->level[KNA_GROUPS], s / KNA_GROUP_SLOTS, &g, by);
    }
}

static void form_task(void *argument, int64_t task, int worker)
{
    const form_job *job = argument;
    kna_index *index = job->index;
    int64_t head = task % index->heads, d = index->d, dv = index->dv, dim = d + dv;
    const kna__unit *u = &job->units[task / index->heads];
    int64_t rows = u->merged ? KNA_SEGMENT : KNA_PIECE, unit = u->piece * KNA_PIECE, slots = rows / KNA_PIECE * KNA_SLOTS;
    int64_t origin = unit == 0 ? KNA_FIRST_ROWS : 0, n = rows - origin;
    size_t bytes;
    form_room room = cut_room(index, KNA_SEGMENT, job->scratch + (size_t)worker * job->room_bytes, &bytes);
    double trace;

    job->kernels->widen[job->k->type](room.k, (size_t)d, kna__row_span(job->k, head, unit + origin), (size_t)n, (size_t)d);
    job->kernels->widen[job->v->type](room.v, (size_t)dv, kna__row_span(job->v, head, unit + origin), (size_t)n, (size_t)dv);
    kna__metric_factor(index, head, room.factor, &trace);
    job->kernels->gemm(room.x, (size_t)dim, room.k, (size_t)d, room.factor, (size_t)d, (size_t)n, (size_t)d, (size_t)d, false);
    job->kernels->widen[KNA_F32](room.x + d, (size_t)dim, (kna__span){ (const char *)room.v, (size_t)dv * sizeof(float), NULL },
                                 (size_t)n, (size_t)dv);
    float key_factor = normalise(job, room.mean, room.x, n, dim, 0, d, 1);
    float value_factor = normalise(job, room.mean, room.x, n, dim, d, dv, VALUE_WEIGHT);
    kna__kmeans(job->kernels, room.assigned, room.x, n, dim, n / KNA_MEMBERS, &room.kmeans);

    list_members(index, head, unit, slots, origin, room.assigned, n);
    scaling by = { key_factor > 0 ? 1 / ((double)key_factor * (double)key_factor * trace) : 0,
                   value_factor > 0 ? 1 / ((double)value_factor * (double)value_factor) : 0 };
    summarise_unit(job, &room, head, unit, slots, origin, by);
    kna__clusters_encode(index, job->kernels, head, unit / KNA_PIECE * KNA_SLOTS, slots, room.k, origin, room.x, room.codes);
}

/* Members are read and added up as when the cluster was formed. */
static bool mean_is_stale(const kna__kernels *kernels, const uint16_t *mean, const kna_rows *rows, int64_t head, const int32_t *ids,
                          int64_t n)
{
    float sum[KNA_MAX_DIM] = { 0 }, x[KNA_MAX_DIM];
    uint16_t now[KNA_MAX_DIM];
    for (int64_t i = 0; i < n; i++) {
        kernels->widen[rows->type](x, (size_t)rows->dim, kna__row_span(rows, head, ids[i]), 1, (size_t)rows->dim);
        kernels->axpy(sum, 1.0f, x, (size_t)rows->dim);
    }
    kernels->scale(sum, 1.0f / (float)n, (size_t)rows->dim);
    to_f16(now, sum, rows->dim);
    return memcmp(now, mean, (size_t)rows->dim * sizeof *now) != 0;
}

bool kna__cluster_is_stale(const kna__kernels *kernels, const kna_index *index, const kna_rows *k, const kna_rows *v, int64_t head,
                           int64_t slot)
{
    const kna__clusters *c = &index->clusters;
    int32_t ids[KNA_SEGMENT];
    int64_t piece = slot / KNA_SLOTS;
    if (piece >= c->capacity || c->state[piece] == KNA_PIECE_OPEN || kna__unit_row(c, piece) + kna__unit_rows(c, piece) > k->rows) {
        return false;
    }
    int64_t at = kna__cluster_slot(c, head, slot), n = kna__cluster_rows(c, head, slot, ids);
    return n > 0 && !c->always[at] &&
           (mean_is_stale(kernels, c->level[KNA_CLUSTERS].key + at * index->d, k, head, ids, n) ||
            mean_is_stale(kernels, c->level[KNA_CLUSTERS].value + at * index->dv, v, head, ids, n));
}

int kna__clusters_form(kna_context *context, kna_index *index, const kna_rows *k, const kna_rows *v, const kna__unit *units,
                       int64_t count)
{
    form_job job = { index, context->kernels, k, v, units, NULL, 0 };
    int threads = (int64_t)context->threads < count * index->heads ? context->threads : (int)(count * index->heads);
    if (!count) {
        return KNA_OK;
    }
    cut_room(index, KNA_SEGMENT, NULL, &job.room_bytes);
    job.scratch = kna__scratch(context, kna__size_product(job.room_bytes, (size_t)threads));
    if (!job.scratch) {
        return KNA_FAIL(context, KNA_ENOMEM, "out of memory for %zu bytes of scratch per thread", job.room_bytes);
    }
    kna__parallel_for(threads, count * index->heads, form_task, &job);
    for (int64_t i = 0; i < count; i++) {
        int64_t pieces = units[i].merged ? KNA_SEGMENT_PIECES : 1;
        memset(index->clusters.state + units[i].piece, units[i].merged ? KNA_PIECE_MERGED : KNA_PIECE_ALONE, (size_t)pieces);
        memset(index->clusters.touched + units[i].piece, 0, (size_t)pieces);
    }
    return KNA_OK;
}

/* ---- which units */

enum { UNITS_AT_ONCE = 64 };

typedef struct forming {
    const kna_index *index;
    int64_t limit;
    kna__sees sees;
    const void *argument;
} forming;

static bool can_form(const forming *f, int64_t piece, int64_t rows, int64_t late)
{
    int64_t row = piece * KNA_PIECE, first = row ? row : KNA_FIRST_ROWS, end = row + rows;
    return end + late <= f->limit && kna__index_has_all(f->index, first, end) &&
           (!f->sees || f->sees(f->argument, first, end - first));
}

static bool is_whole(const kna__clusters *c, int64_t piece)
{
    return piece % KNA_SEGMENT_PIECES == 0 && c->state[piece] == KNA_PIECE_MERGED;
}

int kna__clusters_form_ready(kna_context *context, kna_index *index, const kna_rows *k, const kna_rows *v, int64_t limit,
                             int64_t late, kna__sees sees, const void *argument)
{
    const forming f = { index, limit, sees, argument };
    const kna__clusters *c = &index->clusters;
    kna__unit units[UNITS_AT_ONCE];
    int64_t count = 0;
    for (int64_t piece = 0; (piece + 1) * KNA_PIECE <= limit;) {
        bool whole = is_whole(c, piece);
        if (!whole && piece % KNA_SEGMENT_PIECES == 0 && can_form(&f, piece, KNA_SEGMENT, late)) {
            units[count++] = (kna__unit){ piece, true };
            whole = true;
        } else if (c->state[piece] == KNA_PIECE_OPEN && can_form(&f, piece, KNA_PIECE, late / KNA_SEGMENT_PIECES)) {
            units[count++] = (kna__unit){ piece, false };
        }
        piece += whole ? KNA_SEGMENT_PIECES : 1;
        if (count == UNITS_AT_ONCE) {
            KNA_TRY(kna__clusters_form(context, index, k, v, units, count));
            count = 0;
        }
    }
    return kna__clusters_form(context, index, k, v, units, count);
}

int kna_index_form(kna_context *context, kna_index *index, const kna_rows *k, const kna_rows *v, int64_t rows)
{
    context->message[0] = 0;
    KNA_TRY(kna__index_check(context, index, k, v));
    if (rows < 0 || rows > index->rows || rows > k->rows) {
        return KNA_FAIL(context, KNA_EINVAL, "index: %lld rows to form, %lld covered, %lld given", (long long)rows,
                        (long long)index->rows, (long long)k->rows);
    }
    if (index->method != KNA_KNN || kna__metric_is_empty(index)) {
        return KNA_OK;
    }
    KNA_TRY(kna__clusters_reserve(context, index, rows));
    return kna__clusters_form_ready(context, index, k, v, rows, 0, NULL, NULL);
}
