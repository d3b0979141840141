/* probe.c - which lists a query looks into: those that promise most. */
#include "clusters.h"

#include <float.h>
#include <math.h>

static const double aims[KNA_AIMS] = { 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999 };

double kna__aim(int i)
{
    return aims[i];
}

static double probes_of(const kna__index_head *head, int aim, double nearest)
{
    double depth = 10, probes = head->probes[0][aim] > 1 ? head->probes[0][aim] : 1;
    for (int i = 1; i < KNA_DEPTHS && nearest > depth && head->probes[i][aim]; i++) {
        double next = head->probes[i][aim] > probes ? head->probes[i][aim] : probes;
        if (nearest < 10 * depth) {
            return probes * pow(next / probes, log10(nearest / depth));
        }
        depth *= 10;
        probes = next;
    }
    return nearest > depth ? probes * nearest / depth : probes;
}

uint64_t kna__probes_for(const kna__index_head *head, double recall, double nearest)
{
    for (int i = 0; i < KNA_AIMS; i++) {
        if (aims[i] >= recall) {
            double probes = ceil(probes_of(head, i, nearest));
            return probes < (double)head->lists ? (uint64_t)probes : head->lists;
        }
    }
    return head->lists;
}

int kna__probe_pack(kna_context *context, kna__packed *packed, const float *centers, uint64_t lists, uint64_t dim, int metric)
{
    KNA_TRY(kna__packed_make(context, packed, centers, lists, dim));
    if (metric == KNA_L2) { /* -|c|^2 beside <2 q, c> */
        kna__packed_by_distance(context->kernels, packed, centers);
        context->kernels->scale(packed->bias, 2.0f, (size_t)lists);
    }
    return KNA_OK;
}

void kna__promises(const kna__kernels *kernels, float *promises, const kna__packed *p, const float *spreads, float alpha,
                   const kna__query *query)
{
    size_t all = (size_t)p->blocks * KNA_BLOCK;
    kernels->scan(promises, all, query->codes, (size_t)p->d4 * 4, &query->step, 1, p->codes, p->steps, (size_t)p->blocks,
                  (size_t)p->d4);
    kernels->axpy(promises, 1.0f, p->bias, all);
    if (alpha > 0) {
        kernels->axpy(promises, (float)fmin((double)alpha * query->length, FLT_MAX), spreads, (size_t)p->lists);
    }
    for (uint64_t i = 0; i < p->lists; i++) { /* of numbers as large as f32 holds; kna__topk() takes no NaN */
        promises[i] = promises[i] >= -FLT_MAX ? promises[i] : -FLT_MAX;
    }
}

/* ---- a block of queries */

void kna__probe_cut(kna__probe *probe, const kna__search_job *job, kna__cutter *cutter)
{
    size_t lists = (size_t)probe->packed->lists, places = (size_t)probe->packed->blocks * KNA_BLOCK;
    size_t looks = kna__size_product((size_t)job->most, (size_t)probe->probes);
    probe->picked = kna__cut(cutter, looks, sizeof *probe->picked);
    probe->bases = kna__cut(cutter, looks, sizeof *probe->bases);
    probe->looks = kna__cut(cutter, looks, sizeof *probe->looks);
    probe->first = kna__cut(cutter, lists + 1, sizeof *probe->first);
    probe->active = kna__cut(cutter, lists, sizeof *probe->active);
    probe->room_numbers = places * 4 + 64;
    probe->rooms = kna__cut(cutter, kna__size_product((size_t)job->context->threads, probe->room_numbers), sizeof *probe->rooms);
}

typedef struct pick_call {
    kna__search_job *job;
    kna__probe *probe;
} pick_call;

/* The lists a query looks into, ascending, and the scores of their centers. */
static void pick(void *argument, int64_t query, int worker)
{
    const pick_call *call = argument;
    const kna__search_job *job = call->job;
    kna__probe *probe = call->probe;
    const kna__packed *p = probe->packed;
    const kna__query *q = &job->queries[query];
    size_t lists = (size_t)p->lists, places = (size_t)p->blocks * KNA_BLOCK, probes = (size_t)probe->probes;
    float *promises = probe->rooms + (size_t)worker * probe->room_numbers, *most = promises + places;
    int32_t *ids = (int32_t *)(void *)(promises + 3 * places + 64), *picked = probe->picked + (size_t)query * probes;
    float *bases = probe->bases + (size_t)query * probes;
    kna__promises(job->kernels, promises, p, probe->spreads, probe->alpha, q);
    kna__topk(job->kernels, picked, promises, lists, probes, ids, most);
    kna__span centers = { (const char *)probe->centers, (size_t)job->dim * sizeof(float), NULL };
    job->kernels->dot_at[KNA_F32](bases, probes, job->scan_q + (uint64_t)query * job->dim, 0, 1, centers, picked, probes,
                                  (size_t)job->dim);
}

/* The score of a center as the list's base, and how far f32 may have it off. */
static kna__look look_at(const kna__search_job *job, const kna__probe *probe, uint32_t query, uint64_t list, float product)
{
    const kna__query *q = &job->queries[query];
    double square = (double)probe->squares[list], base = (double)product, size = q->length * sqrt(square);
    if (job->metric == KNA_L2) {
        base -= square + q->square;
        size += square + q->square;
    }
    float slack = (float)((double)(job->dim + 8) * 0x1p-24 * size * 1.01);
    return (kna__look){ query, (float)base, q->error < INFINITY ? slack : INFINITY };
}

/* From lists by query to queries by list. */
static void turn_round(kna__search_job *job, kna__probe *probe)
{
    uint64_t lists = probe->packed->lists, all = job->count * probe->probes, sum = 0;
    uint64_t *first = probe->first;
    memset(first, 0, (size_t)(lists + 1) * sizeof *first);
    for (uint64_t i = 0; i < all; i++) {
        first[probe->picked[i]]++;
    }
    probe->active_count = 0;
    for (uint64_t l = 0; l < lists; l++) { /* the place after the last of each list */
        if (first[l]) {
            probe->active[probe->active_count++] = l;
        }
        sum += first[l];
        first[l] = sum;
    }
    first[lists] = sum;
    for (uint64_t i = all; i-- > 0;) {
        uint64_t list = (uint64_t)probe->picked[i];
        probe->looks[--first[list]] = look_at(job, probe, (uint32_t)(i / probe->probes), list, probe->bases[i]);
    }
    job->looks = (kna__looks){
        .first = first, .looks = probe->looks, .active = probe->active, .active_count = probe->active_count, .count = all
    };
}

void kna__probe_lists(kna__search_job *job, kna__probe *probe)
{
    pick_call call = { job, probe };
    kna__parallel_for(job->context->threads, (int64_t)job->count, pick, &call);
    turn_round(job, probe);
}
