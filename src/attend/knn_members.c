/*
 * knn_members.c - the keys of the clusters looked into, by a few rows together. What every key weighs is known from its code to a
 * tenth or so; the values of those that weigh anything are read from the cache, and of those that weigh something their keys too.
 * What is left, most of the keys but little of the softmax, goes back to its cluster: a mean value stands for it, with the weights
 * it has by its codes.
 */
#include "knn.h"

#include <float.h>
#include <math.h>

enum { MOST_BEYOND = 60 /* a weight may be exp() of so much, relative to the row's base, and still be a mass */ };

void kna__knn_members_cut(knn_members *members, const knn_call *call, int64_t rows, int64_t clusters, kna__cutter *cutter)
{
    size_t g = (size_t)rows, most = (size_t)(kna__knn_most_keys(call, clusters) + 2 * KNA_QUAD * clusters);
    members->run = kna__cut(cutter, (size_t)clusters, sizeof(knn_member_run));
    members->slots = kna__cut(cutter, (size_t)clusters, sizeof(int32_t));
    members->first = kna__cut(cutter, (size_t)clusters, sizeof(int32_t));
    members->count = kna__cut(cutter, (size_t)clusters, sizeof(int32_t));
    members->sums = kna__cut(cutter, (size_t)clusters, sizeof(float));
    members->means = kna__cut(cutter, g * (size_t)clusters, sizeof(float));
    members->logits = kna__cut(cutter, g * most, sizeof(float));
    members->step = kna__cut(cutter, most, sizeof(float));
    members->above = kna__cut(cutter, most, sizeof(float));
    members->values = kna__cut(cutter, most, sizeof(int32_t));
    members->keys = kna__cut(cutter, most, sizeof(int32_t));
    members->value_rows = kna__cut(cutter, most, sizeof(int32_t));
    members->key_rows = kna__cut(cutter, most, sizeof(int32_t));
    members->weights = kna__cut(cutter, g * most, sizeof(float));
}

static int32_t whole_quads(int64_t places)
{
    return (int32_t)((places + KNA_QUAD - 1) / KNA_QUAD * KNA_QUAD);
}

/* One cluster more: a run of its own, unless its members lie next to those of the last one. */
static void add_cluster(const knn_call *call, const knn_readers *by, int32_t slot, knn_members *members)
{
    const kna__clusters *c = &call->index->clusters;
    int64_t at = kna__cluster_slot(c, by->kv_head, slot), unit = kna__unit_row(c, slot / KNA_SLOTS);
    int64_t place = by->kv_head * c->capacity * KNA_PIECE + unit + c->first[at], skip = place % KNA_QUAD;
    int32_t count = c->level[KNA_CLUSTERS].count[at];
    knn_member_run *run = &members->run[members->runs ? members->runs - 1 : 0];
    if (!members->runs || run->unit != unit || slot != members->slots[members->clusters - 1] + 1) {
        run = &members->run[members->runs++];
        *run = (knn_member_run){ place - skip, unit, (int32_t)members->places, (int32_t)skip };
    }
    members->slots[members->clusters] = slot;
    members->first[members->clusters] = run->first + run->count;
    members->count[members->clusters++] = count;
    run->count += count;
    members->places = run->first + whole_quads(run->count);
    members->read.codes += count;
}

static void find_clusters(const knn_call *call, const knn_readers *by, const knn_list *list, const int32_t *numbers, int64_t count,
                          knn_members *members)
{
    members->numbers = numbers;
    members->clusters = members->runs = members->places = 0;
    members->read = (knn_tally){ .codes = 0 };
    for (int64_t i = 0; i < count; i++) {
        add_cluster(call, by, (int32_t)kna__knn_slot(list, numbers[i]), members);
    }
    for (int64_t i = 0; i < members->runs; i++) {
        members->run[i].count = whole_quads(members->run[i].count);
        kna__knn_codes_expect(call, members->run[i].place, members->run[i].count);
    }
}

/* Logits of the mean keys. */
static void find_means(const knn_call *call, const knn_readers *by, knn_members *members)
{
    const kna__problem *p = call->problem;
    int64_t first = kna__cluster_slot(&call->index->clusters, by->kv_head, 0), count = members->clusters;
    const uint16_t *key = call->index->clusters.level[KNA_CLUSTERS].key + first * p->d;
    if (!by->logits) {
        p->kernels->dot_at[KNA_F16](members->means, (size_t)count, by->q, (size_t)p->d, (size_t)by->rows,
                                    (kna__span){ (const char *)key, (size_t)p->d * sizeof *key, NULL }, members->slots,
                                    (size_t)count, (size_t)p->d);
        return;
    }
    for (int64_t r = 0; r < by->rows; r++) {
        for (int64_t i = 0; i < count; i++) {
            members->means[r * count + i] = by->logits[r * by->ldz + members->numbers[i]];
        }
    }
}

static void fill(float *x, float value, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] = value;
    }
}

/* The logits of the means in the places of their members; -infinity in those of other clusters. */
static void spread_means(const kna__kernels *kernels, const knn_readers *by, knn_members *members)
{
    for (int64_t r = 0; r < by->rows; r++) {
        float *s = members->logits + r * members->places;
        for (int64_t i = 0; i < members->runs; i++) {
            const knn_member_run *run = &members->run[i];
            int64_t quad = run->count ? KNA_QUAD : 0; /* clusters without members have no places */
            fill(s + run->first, -INFINITY, quad);
            fill(s + run->first + run->count - quad, -INFINITY, quad);
        }
        kernels->spread(s, members->means + r * members->clusters, members->first, members->count, (size_t)members->clusters);
    }
}

/* Logits of the members by their codes. */
static void estimate(const knn_call *call, const knn_readers *by, knn_members *members)
{
    const kna__clusters *c = &call->index->clusters;
    spread_means(call->problem->kernels, by, members);
    for (int64_t i = 0; i < members->clusters; i++) {
        members->sums[i] = c->step[kna__cluster_slot(c, by->kv_head, members->slots[i])] * 0.5f;
    }
    fill(members->step, 0, members->places);
    call->problem->kernels->spread(members->step, members->sums, members->first, members->count, (size_t)members->clusters);
    for (int64_t i = 0; i < members->runs; i++) {
        const knn_member_run *run = &members->run[i];
        kna__knn_codes_add(&by->codes, call, run->place, run->count, members->step + run->first, members->logits + run->first,
                           members->places);
    }
}

/* Softcap of a row; places of other clusters stay as they are. */
static void cap(const knn_call *call, const knn_members *members, float *s)
{
    float most = call->problem->options.softcap;
    for (int64_t i = 0; i < members->clusters && most > 0; i++) {
        call->problem->kernels->softcap(s + members->first[i], most, (size_t)members->count[i]);
    }
}

/* ---- what is worth reading */

/* log of the least weight of row r, relative to exp(0), for which a value is read. */
static float least_of(const knn_call *call, const knn_readers *by, int64_t r)
{
    double least = fmin(by->log_total[r] + log(kna__knn_least_value(call)), (double)by->base[r] + MOST_BEYOND);
    return (float)fmax(least, -FLT_MAX);
}

static void weigh_places(const knn_call *call, const knn_readers *by, const knn_members *members)
{
    const kna__problem *p = call->problem;
    fill(members->above, -INFINITY, members->places);
    for (int64_t r = 0; r < by->rows; r++) {
        const float *s = members->logits + r * members->places;
        if (p->options.softcap > 0) {
            memcpy(members->weights, s, (size_t)members->places * sizeof *s);
            cap(call, members, members->weights);
            s = members->weights;
        }
        p->kernels->lift(members->above, s, least_of(call, by, r), (size_t)members->places);
    }
}

/*
 * Beside what weighs enough: members of clusters of which a row has been written since, as their codes are no good and no mean may
 * stand for them; and a few to see whether the codes still hold.
 */
static void add_others(const knn_call *call, const knn_readers *by, const knn_members *members)
{
    const kna__clusters *c = &call->index->clusters;
    for (int64_t i = 0; i < members->clusters; i++) {
        if (c->always[kna__cluster_slot(c, by->kv_head, members->slots[i])]) {
            fill(members->above + members->first[i], INFINITY, members->count[i]);
        }
    }
    for (int64_t i = 0; i < members->runs; i++) {
        const knn_member_run *run = &members->run[i];
        for (int64_t x = kna__knn_spot(run->place, call->problem->n) - run->place; x < run->count; x += KNN_SPOTS) {
            float *above = &members->above[run->first + x];
            *above = *above > -INFINITY ? INFINITY : *above;
        }
    }
}

static void expect(const char *row, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 64) {
        __builtin_prefetch(row + at);
    }
}

/* Rows of the cache that a run's places stand for, from values[i] on; they will be wanted soon. Returns the next i. */
static int64_t find_rows(const knn_call *call, const knn_readers *by, knn_members *members, const knn_member_run *run, int64_t i,
                         float least_key)
{
    const kna__problem *p = call->problem;
    const uint16_t *member = call->index->clusters.member + run->place;
    kna__span keys = kna__span_at(&p->k, by->kv_head, 0), values = kna__span_at(&p->v, by->kv_head, 0);
    for (; i < members->read.values && members->values[i] < run->first + run->count; i++) {
        int32_t place = members->values[i], row = (int32_t)(run->unit + member[place - run->first]);
        int64_t at = members->read.keys;
        members->value_rows[i] = row;
        expect(values.data + (size_t)row * values.row_bytes, kna__row_bytes(p->v.type, p->dv));
        members->keys[at] = place;
        members->key_rows[at] = row;
        if (members->above[place] >= least_key) {
            expect(keys.data + (size_t)row * keys.row_bytes, kna__row_bytes(p->k.type, p->d));
            members->read.keys++;
        }
    }
    return i;
}

static void find_heavy(const knn_call *call, const knn_readers *by, knn_members *members)
{
    double least_value = kna__knn_least_value(call);
    float least_key = least_value > 0 ? (float)log(kna__knn_least_key(call) / least_value) : -FLT_MAX;
    int64_t found = 0;
    weigh_places(call, by, members);
    add_others(call, by, members);
    members->read.values = (int64_t)call->problem->kernels->select(members->values, members->above, (size_t)members->places, 0, 0);
    for (int64_t i = 0; i < members->runs; i++) {
        found = find_rows(call, by, members, &members->run[i], found, least_key);
    }
}

/* ---- keys */

/* How many of the clusters have a key, among those read, that is not what its code says; by the logits of the first row. */
static int32_t stale_clusters(const knn_call *call, const knn_readers *by, const knn_members *members)
{
    float q_norm = sqrtf(kna__square(call->problem->kernels, by->q, call->problem->d));
    int64_t i = 0;
    int32_t stale = 0;
    for (int64_t cluster = 0; cluster < members->clusters && i < members->read.keys; cluster++) {
        int64_t at = kna__cluster_slot(&call->index->clusters, by->kv_head, members->slots[cluster]);
        float most = 0;
        for (; i < members->read.keys && members->keys[i] < members->first[cluster] + members->count[cluster]; i++) {
            most = fmaxf(most, fabsf(members->weights[i] - members->logits[members->keys[i]]));
        }
        stale += most > 0 && !call->index->clusters.always[at] && most > kna__knn_codes_bound(call, at, q_norm);
    }
    return stale;
}

static void read_keys(const knn_call *call, const knn_readers *by, knn_members *members)
{
    const kna__problem *p = call->problem;
    int64_t count = members->read.keys;
    p->kernels->dot_at[p->k.type](members->weights, (size_t)count, by->q, (size_t)p->d, (size_t)by->rows,
                                  kna__span_at(&p->k, by->kv_head, 0), members->key_rows, (size_t)count, (size_t)p->d);
    members->read.stale = stale_clusters(call, by, members);
    for (int64_t r = 0; r < by->rows; r++) {
        for (int64_t i = 0; i < count; i++) {
            members->logits[r * members->places + members->keys[i]] = members->weights[r * count + i];
        }
    }
}

void kna__knn_members_read(const knn_call *call, const knn_readers *by, const knn_list *list, const int32_t *numbers, int64_t count,
                           knn_members *members)
{
    find_clusters(call, by, list, numbers, count, members);
    find_means(call, by, members);
    estimate(call, by, members);
    find_heavy(call, by, members);
    read_keys(call, by, members);
    for (int64_t r = 0; r < by->rows; r++) {
        cap(call, members, members->logits + r * members->places);
    }
}

/* ---- values */

static void take_heavy(const knn_members *members, int64_t r)
{
    float *w = members->logits + r * members->places, *weights = members->weights + r * members->read.values;
    for (int64_t i = 0; i < members->read.values; i++) {
        weights[i] = w[members->values[i]];
        w[members->values[i]] = 0;
    }
}

/* What is left of a row's weights, relative to exp(max), is a mass of their clusters. */
static void give_back(const knn_call *call, const knn_readers *by, const knn_members *members, int64_t r, float max)
{
    float scale = expf(fminf(max - by->base[r], MOST_BEYOND + 20)), *z = by->z + r * by->ldz;
    call->problem->kernels->part_sum(members->sums, members->logits + r * members->places, members->first, members->count,
                                     (size_t)members->clusters);
    for (int64_t i = 0; i < members->clusters; i++) {
        z[members->numbers[i]] = scale * members->sums[i];
    }
}

void kna__knn_members_mix(const knn_call *call, const knn_readers *by, knn_members *members, kna__state *states, float *out)
{
    const kna__problem *p = call->problem;
    const kna__kernels *kernels = p->kernels;
    int64_t count = members->read.values;
    float sum;
    for (int64_t r = 0; r < by->rows; r++) {
        take_heavy(members, r);
        kernels->part_sum(&sum, members->weights + r * count, &(int32_t){ 0 }, &(int32_t){ (int32_t)count }, 1);
        states[r].sum += (double)sum;
        give_back(call, by, members, r, states[r].max);
    }
    kernels->mix_at[p->v.type](out, (size_t)p->dv, members->weights, (size_t)count, (size_t)by->rows,
                                  kna__span_at(&p->v, by->kv_head, 0), members->value_rows, (size_t)count, (size_t)p->dv);
}
