/*
 * aims.c - how many lists a query must look into for a recall, measured when the index is made.
 *
 * The 10 nearest rows of some queries are found by looking at all rows; each is in a list, and that list's place among the query's promises is
 * how many lists it takes to find the row. The share of rows found within p lists is the recall at p. What is kept is the p for the aim and
 * one standard error more, for rows of a query come and go together: sqrt(a (1 - a) / queries).
 *
 * Of the 100 and 1,000 nearest, every 10th and every 100th are looked up: the last of each tenth, which are the farthest. A search for k of the
 * rows that a filter keeps a share of is as deep as one for k / share of all rows.
 */
#include "clusters.h"

#include <math.h>

enum { QUERIES = 256, NEAREST = 10, ALPHAS = 5, DECIDED_AT = 3 /* the aim that alpha is chosen for */ };
static const float alphas[ALPHAS] = { 0, 0.5f, 1, 2, 3 };

typedef struct aims {
    kna_context *context;
    const kna__aims_data *data;
    uint64_t dim, m, k;
    float *queries;   /* (m, dim) */
    int64_t *own;     /* (m) the row a query is; -1: none */
    kna_hit *hits;    /* (m, k) */
    int64_t *counts;  /* (m) */
    uint32_t *places; /* (ALPHAS, m * NEAREST) */
    uint64_t found;   /* of each */
    kna__query prepared;
    float *scan_q;
    int8_t *codes;
    float *promises;
    kna__packed packed;
} aims;

static void cut_aims(aims *a, kna__cutter *cutter)
{
    size_t m = (size_t)a->m, d = (size_t)a->dim;
    a->queries = kna__cut(cutter, m * d, sizeof(float));
    a->own = kna__cut(cutter, m, sizeof *a->own);
    a->hits = kna__cut(cutter, m * (size_t)a->k, sizeof *a->hits);
    a->counts = kna__cut(cutter, m, sizeof *a->counts);
    a->places = kna__cut(cutter, ALPHAS * m * NEAREST, sizeof *a->places);
    a->scan_q = kna__cut(cutter, d, sizeof(float));
    a->codes = kna__cut(cutter, (d + 3) / 4, 4);
    a->promises = kna__cut(cutter, (size_t)(a->data->lists + KNA_BLOCK - 1) / KNA_BLOCK, KNA_BLOCK * sizeof(float));
}

/* ---- queries */

void kna__take_queries(const kna__kernels *kernels, float *out, const kna_rows *from, uint64_t m)
{
    int64_t stride = from->row_stride_bytes ? from->row_stride_bytes : (int64_t)kna__row_bytes(from->type, from->dim);
    for (uint64_t i = 0; i < m; i++) {
        int64_t at = (int64_t)(i * (uint64_t)from->rows / m);
        kna__span span = { (const char *)from->data + at * stride, 0, from->scales ? from->scales + at : NULL };
        kernels->widen[from->type](out + i * (uint64_t)from->dim, (size_t)from->dim, span, 1, (size_t)from->dim);
    }
}

static int take_rows(aims *a)
{
    for (uint64_t i = 0; i < a->m; i++) {
        uint32_t id = a->data->ids[i * a->data->count / a->m];
        a->own[i] = id;
        if (kna__rows_read(a->data->rows, id, a->queries + i * a->dim) != KNA_OK) {
            return kna__rows_damaged(a->data->rows, kna__rows_run(a->data->rows, id));
        }
    }
    return KNA_OK;
}

/* ---- the nearest, and where their lists are */

static int find_nearest(aims *a)
{
    kna_search *search;
    kna_search_options options = KNA_SEARCH_OPTIONS;
    kna_search_how how = KNA_SEARCH_HOW;
    kna_rows queries = { .data = a->queries, .type = KNA_F32, .heads = 1, .rows = (int64_t)a->m, .dim = (int64_t)a->dim };
    options.metric = a->data->metric;
    options.index = KNA_SEARCH_NONE;
    how.k = (int64_t)a->k;
    KNA_TRY(kna_search_open(a->context, &search, a->data->rows->store, a->data->rows->family, &options));
    int status = kna_search_run(search, a->hits, a->counts, &queries, &how, NULL);
    kna_search_close(search);
    return status;
}

static uint32_t list_of(const kna__aims_data *data, uint64_t row)
{
    uint64_t low = 0, high = data->count - 1;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (data->ids[middle] < row) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return data->to[low];
}

/* Of every so many of the nearest, to places; returns how many. */
static uint64_t place_hits(aims *a, uint64_t query, int alpha, uint64_t every, uint32_t *places)
{
    const kna__kernels *kernels = a->context->kernels;
    uint64_t taken = 0, seen = 0;
    kna__promises(kernels, a->promises, &a->packed, a->data->spreads, alphas[alpha], &a->prepared);
    for (int64_t i = 0; i < a->counts[query] && taken < NEAREST; i++) {
        int64_t row = a->hits[query * a->k + (uint64_t)i].row;
        if (row != a->own[query] && ++seen % every == 0) {
            float promise = a->promises[list_of(a->data, (uint64_t)row)];
            places[taken++] = (uint32_t)kernels->count(a->promises, (size_t)a->data->lists, promise);
        }
    }
    return taken;
}

/* By alphas from .. to - 1, into their places. */
static void place_all(aims *a, int from, int to, uint64_t every)
{
    kna__search_job job = {
        .context = a->context, .kernels = a->context->kernels, .metric = a->data->metric, .dim = a->dim, .d4 = (a->dim + 3) / 4
    };
    a->found = 0;
    for (uint64_t i = 0; i < a->m; i++) {
        uint64_t taken = 0;
        kna__query_prepare(&job, &a->prepared, a->queries + i * a->dim, a->scan_q, a->codes);
        for (int alpha = from; alpha < to; alpha++) {
            taken = place_hits(a, i, alpha, every, a->places + (uint64_t)alpha * a->m * NEAREST + a->found);
        }
        a->found += taken;
    }
}

/* ---- what they say */

static int by_size(const void *x, const void *y)
{
    uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
    return (a > b) - (a < b);
}

static uint64_t place_at(const aims *a, int alpha, double aim)
{
    double share = aim + sqrt(aim * (1 - aim) / (double)a->m);
    uint64_t at = (uint64_t)ceil(share * (double)a->found);
    at = at < 1 ? 1 : at > a->found ? a->found : at;
    return a->places[(uint64_t)alpha * a->m * NEAREST + at - 1];
}

static void sort_places(aims *a, int alpha)
{
    qsort(a->places + (uint64_t)alpha * a->m * NEAREST, (size_t)a->found, sizeof *a->places, by_size);
}

static void take_probes(const aims *a, uint32_t probes[KNA_AIMS], int alpha)
{
    for (int i = 0; i < KNA_AIMS; i++) {
        probes[i] = (uint32_t)place_at(a, alpha, kna__aim(i));
    }
}

static void decide(aims *a, kna__index_head *head)
{
    int best = 0;
    for (int alpha = 0; alpha < ALPHAS; alpha++) {
        sort_places(a, alpha);
        best = place_at(a, alpha, kna__aim(DECIDED_AT)) < place_at(a, best, kna__aim(DECIDED_AT)) ? alpha : best;
    }
    head->alpha = alphas[best];
    take_probes(a, head->probes[0], best);
    uint64_t every = 10;
    for (int depth = 1; depth < KNA_DEPTHS && a->k >= every * NEAREST; depth++) {
        place_all(a, best, best + 1, every);
        sort_places(a, best);
        take_probes(a, head->probes[depth], best);
        every *= 10;
    }
}

static int measure(aims *a, kna__index_head *head)
{
    KNA_TRY(find_nearest(a));
    KNA_TRY(kna__probe_pack(a->context, &a->packed, a->data->centers, a->data->lists, a->dim, a->data->metric));
    place_all(a, 0, ALPHAS, 1);
    if (a->found) {
        decide(a, head);
    }
    kna__packed_free(a->context, &a->packed);
    return KNA_OK;
}

/* As many as half of the rows are. */
static uint64_t depth_for(uint64_t rows)
{
    uint64_t depth = NEAREST;
    for (int i = 1; i < KNA_DEPTHS && depth * 20 <= rows; i++) {
        depth *= 10;
    }
    return depth;
}

int kna__measure_aims(kna_context *context, kna__index_head *head, const kna__aims_data *data, const kna_rows *queries)
{
    uint64_t there = queries ? (uint64_t)queries->rows : data->count;
    aims a = { .context = context,
               .data = data,
               .dim = data->rows->dim,
               .m = there < QUERIES ? there : QUERIES,
               .k = depth_for(data->count) + (queries ? 0 : 1) };
    kna__cutter size = { NULL, 0 };
    for (int i = 0; i < KNA_AIMS; i++) {
        head->probes[0][i] = (uint32_t)data->lists; /* where nothing could be measured */
    }
    if (!a.m || !data->count) {
        return KNA_OK;
    }
    cut_aims(&a, &size);
    char *base = kna__allocate(&context->heap, size.used);
    if (!base) {
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory for %llu queries", (unsigned long long)a.m);
    }
    cut_aims(&a, &(kna__cutter){ base, 0 });
    int status = KNA_OK;
    if (queries) {
        kna__take_queries(context->kernels, a.queries, queries, a.m);
        for (uint64_t i = 0; i < a.m; i++) {
            a.own[i] = -1;
        }
    } else {
        status = take_rows(&a);
    }
    status = status == KNA_OK ? measure(&a, head) : status;
    kna__release(&context->heap, base, size.used);
    return status;
}
