/*
 * knn.c - the call: queries in blocks, as they would arrive; before each block, the index forms clusters of what its first query
 * sees, and after it learns from its queries and, for a request, from rows that are audited. So no key or value a row uses, no
 * cluster and no k comes from later tokens.
 */
#include "knn.h"

enum {
    LEVELS_BLOCK = 64,   /* where k is being found: so many pay for one that is too small */
    QUERIES_LEARNED = 16 /* of a block: the metric needs no more */
};

/* ---- forming clusters */

typedef struct viewer {
    const kna__problem *problem;
    int64_t query;
} viewer;

static bool sees(const void *argument, int64_t first, int64_t count)
{
    const viewer *v = argument;
    return kna__knn_sees(v->problem, v->query, first, count);
}

/*
 * What a query sees. While decoding, all layers would form a segment at the same token: being late by so many rows, other for each
 * index, spreads that work.
 */
int kna__knn_form(const knn_call *call, kna_index *index)
{
    const kna__problem *p = call->problem;
    const viewer v = { p, call->query };
    int64_t late = index->phase * (KNA_PIECE / KNA_PHASES);
    return kna__clusters_form_ready(p->context, index, &p->k, &p->v, kna__knn_recent(p, call->query), late, sees, &v);
}

/* ---- learning from queries */

static void learn_row(const kna__problem *p, kna_index *index, int64_t query)
{
    float q[KNA_MAX_DIM];
    for (int64_t head = 0; head < p->h && p->d <= KNA_METRIC_DIM; head++) {
        int64_t row = query * p->g + head % p->g;
        kna__queries_read(p, q, head / p->g, row, 1);
        kna__metric_add(index, p->kernels, head / p->g, q, 1, p->d);
    }
}

/* A few queries, evenly; of single ones every fourth. */
static void learn(const kna__problem *p, kna_index *index, int64_t query, int64_t queries)
{
    int64_t step = (queries + QUERIES_LEARNED - 1) / QUERIES_LEARNED;
    if (queries == 1 && index->calls++ % 4) {
        return;
    }
    for (int64_t i = 0; i < queries; i += step) {
        learn_row(p, index, query + i);
    }
}

/* Keys came before any query (a loaded state): the first one must do, or, where every query sees every key, all of them. */
static void learn_first(const kna__problem *p, kna_index *index)
{
    if (p->m && kna__metric_is_empty(index)) {
        bool all = !p->options.causal && p->options.window == 0 && !p->mask.data;
        learn(p, index, 0, all ? p->m : 1);
    }
}

void kna__knn_learn(const knn_call *call, kna_index *index)
{
    learn(call->problem, index, call->query, call->queries);
}

/* ---- the call */

int kna__knn_prepare(knn_call *call, kna_index *index)
{
    const kna__problem *p = call->problem;
    KNA_TRY(kna__metric_reserve(p->context, index));
    KNA_TRY(kna__clusters_reserve(p->context, index, p->n));
    learn_first(p, index);
    return KNA_OK;
}

static int attend_block(knn_call *call, kna_index *index, double *build_s)
{
    const kna__problem *p = call->problem;
    double start = kna__seconds();
    KNA_TRY(kna__knn_form(call, index));
    *build_s += kna__seconds() - start;
    if (kna__knn_has_quotas(call)) {
        kna__knn_label(call);
    }
    kna__knn_set_levels(call);
    bool few = call->queries * p->g <= KNA_DECODE_ROWS && !p->options.differentiable;
    KNA_TRY(few ? kna__attend_knn_decode(call) : kna__attend_knn_prefill(call));
    kna__audit_rows(p, index, call->stats, call->query, call->queries, kna__knn_draw(p, index));
    kna__knn_move_levels(call, index);
    kna__knn_learn(call, index);
    return KNA_OK;
}

static int attend_blocks(knn_call *call, kna_index *index, float *audits, kna_report *report)
{
    const kna__problem *p = call->problem;
    int64_t block = kna__knn_has_levels(p) ? LEVELS_BLOCK : KNA_KNN_BLOCK;
    for (call->query = 0; call->query < p->m; call->query += block) {
        call->queries = p->m - call->query < block ? p->m - call->query : block;
        KNA_TRY(attend_block(call, index, &report->build_s));
    }
    kna__report_rows(p, call->stats, audits, report);
    return KNA_OK;
}

/* What outlives the scratch of a block. */
static size_t cut_room(knn_call *call, float **audits, char *base)
{
    const kna__problem *p = call->problem;
    kna__cutter cutter = { base, 0 };
    size_t rows = kna__size_product((size_t)p->m, (size_t)p->h);
    call->k = kna__knn_has_levels(p) ? kna__cut(&cutter, (size_t)p->h_kv, sizeof(int64_t)) : NULL;
    call->stats = kna__cut(&cutter, rows, sizeof(kna__row_stats));
    *audits = kna__cut(&cutter, rows, sizeof(float));
    kna__knn_labels_cut(call, &cutter);
    return cutter.used;
}

int kna__attend_knn(const kna__problem *p, kna_index *index, kna_report *report)
{
    knn_call call = { .problem = p, .index = index, .gaps = kna__index_gaps(index, p->n) };
    float *audits;
    KNA_TRY(kna__knn_prepare(&call, index));
    size_t bytes = cut_room(&call, &audits, NULL);
    char *room = kna__allocate(&p->context->heap, bytes);
    if (!room) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of statistics", bytes);
    }
    cut_room(&call, &audits, room);
    index->draws += kna__knn_has_levels(p);
    int status = attend_blocks(&call, index, audits, report);
    kna__release(&p->context->heap, room, bytes);
    report->index_bytes = kna_index_bytes(index);
    return status;
}
