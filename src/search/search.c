/*
 * search.c - the calls: open, filter, run.
 *
 * Queries go in blocks. Lists that any query of a block looks into are scanned in parallel, each for all its queries; then the rows no list
 * covers; each worker keeps candidates of each query for itself. Then, query by query, these are joined and scored.
 */
#include "clusters.h"
#include "hits.h"

#include <float.h>
#include <math.h>

enum {
    CANDIDATE_BYTES = 64 << 20, /* of a block */
    QUERY_BYTES = 16 << 20,
    MOST_QUERIES = 1024,
    ROW_BYTES = 1 << 20, /* rows as they are, as f32: so many at a time */
    CANDIDATES = 256,    /* of a query, beside 4 k */
    PROBES = 1 << 20,    /* lists looked into, of a block of queries */
    FEW_ROWS = 8         /* where less than one row of so many may be found, codes that are to be read are not worth it */
};

#define DEFAULT_RECALL 0.95

struct kna_search {
    kna_context *context;
    kna_store *store;
    int metric, wanted; /* a kna_metric, a kna_search_index */
    int (*keep)(void *user, const kna_document *document);
    void *user;
    kna__rows rows;
    kna__index_file index;
    bool has_index;
    kna__packed packed; /* its centers, and |center|^2; of clusters */
    float *squares, *spreads;
    int refused;                      /* why there is none */
    uint64_t covered;                 /* rows that may be found and are in the index */
    uint64_t transaction, generation; /* the store was like this when rows were listed; 0: not yet */
};

/* ---- what there is to search */

static void free_clusters(kna_search *s)
{
    kna_context *context = s->context;
    kna__packed_free(context, &s->packed);
    kna__release(&context->heap, s->squares, s->squares ? 2 * (size_t)s->index.head.lists * sizeof(float) : 0);
    s->squares = s->spreads = NULL;
}

/* What probing needs of an index of clusters. */
static int take_clusters(kna_search *s)
{
    const kna__index_head *h = &s->index.head;
    size_t lists = (size_t)h->lists;
    KNA_TRY(kna__probe_pack(s->context, &s->packed, s->index.centers, h->lists, h->dim, (int)h->metric));
    s->squares = kna__allocate(&s->context->heap, 2 * lists * sizeof(float));
    if (!s->squares) {
        return KNA_FAIL(s->context, KNA_ENOMEM, "search: out of memory for %zu centers", lists);
    }
    s->spreads = s->squares + lists;
    for (size_t i = 0; i < lists; i++) {
        s->squares[i] = kna__square(s->context->kernels, s->index.centers + i * h->dim, (int64_t)h->dim);
        s->spreads[i] = s->index.table[i].spread;
    }
    return KNA_OK;
}

static void drop_index(kna_search *s, int why)
{
    if (s->has_index) {
        free_clusters(s);
        kna__index_close(&s->index);
    }
    s->has_index = false;
    s->refused = why;
}

static int try_index(kna_search *s, int kind)
{
    KNA_TRY(kna__index_open(&s->index, s->store, s->rows.family, kind));
    s->has_index = true;
    if (kind == KNA_SEARCH_CLUSTERS && s->index.head.lists) {
        int status = take_clusters(s);
        if (status != KNA_OK) {
            drop_index(s, status);
            return status;
        }
    }
    if (s->index.head.metric != (uint32_t)s->metric) {
        drop_index(s, KNA_EFORMAT);
        return KNA_EFORMAT;
    }
    return KNA_OK;
}

/* The index there is; that there is none is no fault. Only want of memory is one. */
static int find_index(kna_search *s)
{
    static const int kinds[] = { KNA_SEARCH_CLUSTERS, KNA_SEARCH_FLAT };
    drop_index(s, KNA_ENONE);
    for (int i = 0; i < 2 && !s->has_index; i++) {
        if (s->wanted == KNA_SEARCH_AUTO || s->wanted == kinds[i]) {
            int status = try_index(s, kinds[i]);
            if (status == KNA_ENOMEM) {
                return status;
            }
            s->refused = status != KNA_ENONE || i == 0 ? status : s->refused;
        }
    }
    s->context->message[0] = 0;
    return KNA_OK;
}

static uint64_t count_covered(const kna__rows *rows, uint64_t covered)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < rows->count && rows->runs[i].first < covered; i++) {
        uint64_t end = rows->runs[i].first + rows->runs[i].rows;
        count += (end < covered ? end : covered) - rows->runs[i].first;
    }
    return count;
}

/* Rows and index as the store is now. */
static int keep_up(kna_search *s)
{
    const kna__slot *slot = &s->store->slot;
    KNA_TRY(kna__store_status(s->store));
    if (s->transaction == slot->transaction && s->generation == slot->generation) {
        return KNA_OK;
    }
    s->transaction = 0;
    KNA_TRY(kna__rows_fill(&s->rows, s->keep, s->user));
    KNA_TRY(find_index(s));
    s->covered = s->has_index ? count_covered(&s->rows, s->index.head.covered) : 0;
    s->transaction = slot->transaction;
    s->generation = slot->generation;
    return KNA_OK;
}

static int check_options(kna_context *context, const kna_search_options *o)
{
    if (o->size < sizeof *o) {
        return KNA_FAIL(context, KNA_EINVAL, "options: size %zu is below %zu: set it with KNA_SEARCH_OPTIONS", o->size, sizeof *o);
    }
    if (!kna_metric_name(o->metric) || !kna_search_index_name(o->index)) {
        return KNA_FAIL(context, KNA_EINVAL, "search: metric %d or index %d is none", o->metric, o->index);
    }
    return KNA_OK;
}

const char *kna_search_index_name(int index)
{
    static const char *const names[KNA_SEARCH_INDEX_COUNT] = { "auto", "none", "flat", "clusters" };
    return index >= 0 && index < KNA_SEARCH_INDEX_COUNT ? names[index] : NULL;
}

static int check_rows(const kna__rows *rows)
{
    int64_t count = kna_store_family_rows(rows->store, rows->family);
    return count < UINT32_MAX
               ? KNA_OK
               : KNA_FAIL(rows->store->context, KNA_ELIMIT, "search: %lld rows are above %u", (long long)count, UINT32_MAX - 1);
}

int kna_search_open(kna_context *context, kna_search **search, kna_store *store, int family, const kna_search_options *options)
{
    static const kna_search_options none = KNA_SEARCH_OPTIONS;
    const kna_search_options *o = options ? options : &none;
    kna__rows rows;
    *search = NULL;
    context->message[0] = 0;
    if (!store || store->context != context) {
        return KNA_FAIL(context, KNA_EINVAL, "search: no store, or one of another context");
    }
    KNA_TRY(check_options(context, o));
    KNA_TRY(kna__rows_init(&rows, store, family));
    KNA_TRY(check_rows(&rows));
    kna_search *s = kna__allocate(&context->heap, sizeof *s);
    if (!s) {
        return KNA_FAIL(context, KNA_ENOMEM, "search: out of memory");
    }
    *s = (kna_search){ .context = context, .store = store, .metric = o->metric, .wanted = o->index, .rows = rows };
    s->index.context = context;
    int status = keep_up(s);
    if (status != KNA_OK) {
        kna_search_close(s);
        return status;
    }
    *search = s;
    return KNA_OK;
}

void kna_search_close(kna_search *s)
{
    if (!s) {
        return;
    }
    kna_context *context = s->context;
    drop_index(s, KNA_OK);
    kna__rows_free(&s->rows);
    kna__release(&context->heap, s, sizeof *s);
}

int kna_search_filter(kna_search *s, int (*keep)(void *user, const kna_document *document), void *user)
{
    s->context->message[0] = 0;
    s->keep = keep;
    s->user = user;
    s->transaction = 0;
    s->rows.count = s->rows.there = 0;
    return keep_up(s);
}

/* ---- a block of queries */

typedef struct search_call {
    kna__search_job job;
    kna_search *search;
    kna_hit *hits;
    int64_t *counts;
    const kna_rows *queries;
    const kna_search_how *how;
    float *q;        /* (most, dim) */
    int8_t *codes;   /* (most, 4 d4) */
    uint64_t first;  /* of the block */
    uint64_t *again; /* (most) those that are asked again, */
    bool is_again;   /* while they are */
    uint64_t lists_seen;
    kna__probe probe; /* probes 0: all lists are looked into */
} search_call;

static int64_t place_of(const search_call *call, int64_t query)
{
    return (int64_t)(call->is_again ? call->again[query] : call->first + (uint64_t)query);
}

/* Which lists the queries of the block look into. Where all have one center, each query has one base for all of them. */
static void choose_lists(search_call *call)
{
    kna__search_job *job = &call->job;
    if (call->probe.probes && !call->is_again) {
        kna__probe_lists(job, &call->probe);
        return;
    }
    job->looks = (kna__looks){ .every = true };
    for (uint64_t i = 0; i < job->count && job->index->head.centers == 1; i++) {
        kna__query *q = &job->queries[i];
        q->base = (float)kna__base_of(job->metric, q, job->index->centers, job->dim);
    }
}

static void settle_query(void *argument, int64_t query, int worker)
{
    search_call *call = argument;
    kna__search_job *job = &call->job;
    int64_t at = place_of(call, query);
    kna_hit *hits = call->hits + at * call->how->k;
    const kna__scored *scored = job->rooms[worker].scored;
    uint64_t count = job->k ? kna__candidates_settle(job, (uint64_t)query, worker) : 0;
    for (uint64_t i = 0; i < count; i++) {
        const kna__run *run = kna__rows_run(job->rows, scored[i].row);
        const kna__held_part *held = kna__list_at(&job->rows->store->parts, run->part);
        const kna__entry *entry = kna__list_at(&job->rows->store->entries, held->entry);
        double score = fmax(-(double)FLT_MAX, fmin((double)FLT_MAX, scored[i].score));
        hits[i] = (kna_hit){ .score = (float)score,
                             .row = (int64_t)scored[i].row,
                             .document = (int64_t)entry->id,
                             .place = (int64_t)(scored[i].row - run->first) };
    }
    call->counts[at] = (int64_t)count;
    if (call->how->lse) {
        call->how->lse[at] = kna__hits_lse(hits, (int64_t)count, call->how->temperature);
    }
}

static void prepare_query(void *argument, int64_t query, int worker)
{
    search_call *call = argument;
    kna__search_job *job = &call->job;
    uint64_t i = (uint64_t)query, d = job->dim;
    const kna_rows *r = call->queries;
    int64_t at = place_of(call, query);
    int64_t stride = r->row_stride_bytes ? r->row_stride_bytes : (int64_t)kna__row_bytes(r->type, r->dim);
    kna__span span = { (const char *)r->data + at * stride, 0, r->scales ? r->scales + at : NULL };
    (void)worker;
    job->kernels->widen[r->type](call->q + i * d, (size_t)d, span, 1, (size_t)d);
    kna__query_prepare(job, &job->queries[i], call->q + i * d, job->scan_q + i * d, call->codes + i * job->d4 * 4);
    kna__candidates_clear(job, i);
}

static int damaged_row(const kna__search_job *job)
{
    return kna__rows_damaged(job->rows, kna__rows_run(job->rows, job->bad_row - 1));
}

static int run_block(search_call *call)
{
    kna__search_job *job = &call->job;
    int threads = job->context->threads;
    job->bad_list = 0;
    kna__parallel_for(threads, (int64_t)job->count, prepare_query, call);
    if (job->index) {
        choose_lists(call);
        uint64_t lists = job->looks.every ? job->index->head.lists : job->looks.active_count;
        kna__parallel_for(threads, (int64_t)lists, kna__scan_list, job);
        call->lists_seen += job->looks.every ? lists * job->count : job->looks.count;
    }
    if (!job->bad_list) {
        uint64_t rows = job->rows->seen > job->covered ? job->rows->seen - job->covered : 0;
        kna__parallel_for(threads, (int64_t)((rows + job->row_section - 1) / job->row_section), kna__scan_rows, job);
        kna__parallel_for(threads, (int64_t)job->count, settle_query, call);
    }
    return job->bad_row ? damaged_row(job) : KNA_OK;
}

/* What the lists that were chosen for a recall have not enough of, for what a filter keeps lies elsewhere; or nothing could be chosen. */
static bool is_short(const search_call *call, uint64_t query)
{
    const kna__search_job *job = &call->job;
    bool has_few = (uint64_t)call->counts[call->first + query] < job->k && !(job->beta < INFINITY);
    return has_few || !(job->queries[query].error < INFINITY);
}

/* All lists are looked into for queries that have found fewer than k. */
static int complete_block(search_call *call)
{
    kna__search_job *job = &call->job;
    uint64_t count = job->count, few = 0;
    if (!job->index || !call->probe.probes || call->how->probes) {
        return KNA_OK;
    }
    for (uint64_t i = 0; i < count; i++) {
        if (is_short(call, i)) {
            call->again[few++] = call->first + i;
        }
    }
    job->count = few;
    call->is_again = true;
    int status = few ? run_block(call) : KNA_OK;
    call->is_again = false;
    job->count = count;
    return status;
}

/* Without an index. */
static void use_rows(kna__search_job *job)
{
    job->index = NULL;
    job->covered = 0;
}

static int run_blocks(search_call *call)
{
    kna__search_job *job = &call->job;
    uint64_t m = (uint64_t)call->queries->rows;
    for (call->first = 0; call->first < m; call->first += job->most) {
        job->count = m - call->first < job->most ? m - call->first : job->most;
        KNA_TRY(run_block(call));
        KNA_TRY(job->bad_list ? KNA_OK : complete_block(call));
        if (job->bad_list) {
            drop_index(call->search, KNA_EDAMAGED);
            call->search->covered = 0;
            use_rows(job);
            KNA_TRY(run_block(call));
        }
    }
    return KNA_OK;
}

/* ---- room */

static void cut_room(const kna__search_job *job, kna__search_room *room, kna__cutter *cutter)
{
    size_t section = KNA_SECTION_ROWS, queries = KNA_SECTION_QUERIES;
    *room = (kna__search_room){ 0 };
    room->out = kna__cut(cutter, section * queries, sizeof(float));
    room->ids = kna__cut(cutter, section, sizeof(int32_t));
    room->codes = kna__cut(cutter, queries, (size_t)job->d4 * 4);
    room->steps = kna__cut(cutter, queries, sizeof(float));
    room->rows = kna__cut(cutter, (size_t)(job->row_section * job->dim), sizeof(float));
    room->row_ids = kna__cut(cutter, section, sizeof(uint32_t));
    room->extra = kna__cut(cutter, section, sizeof(float));
    room->errors = kna__cut(cutter, section, sizeof(float));
    room->norms = kna__cut(cutter, section, sizeof(float));
    room->inverse = kna__cut(cutter, section, sizeof(float));
    room->row = kna__cut(cutter, (size_t)job->dim, sizeof(float));
    room->values = kna__cut(cutter, (size_t)job->candidate_room, sizeof(float));
    room->scored = kna__cut(cutter, (size_t)job->candidate_room, sizeof(kna__scored));
}

static size_t cut_scratch(search_call *call, char *base)
{
    kna__search_job *job = &call->job;
    kna__cutter cutter = { base, 0 };
    size_t threads = (size_t)job->context->threads, most = (size_t)job->most, d = (size_t)job->dim;
    size_t room = (size_t)job->candidate_room;
    kna__search_room unused;
    call->q = kna__cut(&cutter, most * d, sizeof(float));
    call->codes = kna__cut(&cutter, most, (size_t)job->d4 * 4);
    job->scan_q = kna__cut(&cutter, most * d, sizeof(float));
    job->queries = kna__cut(&cutter, most, sizeof *job->queries);
    job->candidates = kna__cut(&cutter, threads * most, sizeof *job->candidates);
    job->rooms = kna__cut(&cutter, threads, sizeof *job->rooms);
    for (size_t i = 0; i < threads; i++) {
        cut_room(job, base ? &job->rooms[i] : &unused, &cutter);
    }
    if (call->probe.probes) {
        kna__probe_cut(&call->probe, job, &cutter);
        call->again = kna__cut(&cutter, most, sizeof *call->again);
    }
    float *bounds = kna__cut(&cutter, kna__size_product(threads * most, room), 3 * sizeof(float));
    for (size_t i = 0; base && i < threads * most; i++) {
        float *own = bounds + i * 3 * room;
        job->candidates[i] = (kna__candidates){ .upper = own, .lower = own + room, .rows = (uint32_t *)(void *)(own + 2 * room) };
    }
    return cutter.used;
}

static uint64_t at_most(uint64_t x, uint64_t most)
{
    return x < most ? x : most;
}

/* How many lists a query looks into. Of rows that a filter keeps a share of, k are as deep among all rows as k / share are. */
static uint64_t probes_for(const search_call *call)
{
    const kna_search *s = call->search;
    const kna__index_head *h = &s->index.head;
    const kna_search_how *how = call->how;
    if (h->kind != KNA_SEARCH_CLUSTERS || how->exact) {
        return h->lists;
    }
    double share = s->covered < h->rows ? (double)s->covered / (double)h->rows : 1;
    return how->probes ? (uint64_t)how->probes
                       : kna__probes_for(h, how->recall > 0 ? how->recall : DEFAULT_RECALL, (double)call->job.k / share);
}

static void plan_probes(search_call *call, uint64_t probes)
{
    const kna_search *s = call->search;
    const kna__index_head *h = &s->index.head;
    if (probes < h->lists) {
        call->probe = (kna__probe){ .packed = &s->packed,
                                    .centers = s->index.centers,
                                    .squares = s->squares,
                                    .spreads = s->spreads,
                                    .alpha = h->alpha,
                                    .probes = probes };
        call->job.most = at_most(call->job.most, PROBES / probes + 1);
    }
}

static void plan(search_call *call)
{
    kna_search *s = call->search;
    kna__search_job *job = &call->job;
    uint64_t threads = (uint64_t)s->context->threads, there = s->rows.there, fit;
    job->context = s->context;
    job->kernels = s->context->kernels;
    job->rows = &s->rows;
    job->metric = s->metric;
    job->dim = s->rows.dim;
    job->d4 = (job->dim + 3) / 4;
    job->k = at_most((uint64_t)call->how->k, there);
    job->beta = call->how->beta > 0 ? call->how->beta : INFINITY;
    job->candidate_room = at_most(4 * job->k + CANDIDATES, there + 1);
    fit = CANDIDATE_BYTES / (threads * job->candidate_room * 3 * sizeof(float));
    job->most = at_most(fit, QUERY_BYTES / (job->dim * 9));
    job->most = at_most(at_most(job->most, MOST_QUERIES), (uint64_t)call->queries->rows);
    job->most = job->most ? job->most : 1;
    job->row_section = at_most(ROW_BYTES / (job->dim * sizeof(float)), KNA_SECTION_ROWS);
    job->row_section = job->row_section ? job->row_section : 1;
    use_rows(job);
    if (s->has_index && s->covered) {
        const kna__index_head *h = &s->index.head;
        uint64_t probes = probes_for(call);
        double part = call->how->probes || probes >= h->lists ? 1 : (double)probes / (double)h->lists; /* of all codes */
        if ((double)s->covered * FEW_ROWS >= floor((double)h->rows * part)) {
            job->index = &s->index;
            job->covered = h->covered;
            plan_probes(call, probes);
        }
    }
}

/* ---- the call */

static void fill_report(const search_call *call, double start, kna_search_report *report)
{
    const kna_search *s = call->search;
    const kna__search_job *job = &call->job;
    size_t size = report->size;
    *report = (kna_search_report){ .size = size,
                                   .index = job->index ? (int)job->index->head.kind : KNA_SEARCH_NONE,
                                   .refused = s->wanted == KNA_SEARCH_NONE ? KNA_OK : s->refused,
                                   .rows = (int64_t)s->rows.there,
                                   .covered = job->index ? (int64_t)s->covered : 0,
                                   .lists = job->index ? (int64_t)job->index->head.lists : 0,
                                   .lists_seen = (int64_t)call->lists_seen };
    for (int i = 0; i < job->context->threads && job->rooms; i++) {
        report->scanned += (int64_t)job->rooms[i].scanned;
        report->rescored += (int64_t)job->rooms[i].rescored;
    }
    report->seconds = kna__seconds() - start;
}

static int run(search_call *call)
{
    kna_context *context = call->search->context;
    plan(call);
    size_t bytes = cut_scratch(call, NULL);
    char *scratch = kna__scratch(context, bytes);
    if (!scratch) {
        return KNA_FAIL(context, KNA_ENOMEM, "search: out of memory for %zu bytes of scratch", bytes);
    }
    cut_scratch(call, scratch);
    return run_blocks(call);
}

int kna_search_run(kna_search *s, kna_hit *hits, int64_t *counts, const kna_rows *queries, const kna_search_how *how,
                   kna_search_report *report)
{
    static const kna_search_how usual = KNA_SEARCH_HOW;
    double start = kna__seconds();
    search_call call = { .search = s, .hits = hits, .counts = counts, .queries = queries, .how = how ? how : &usual };
    s->context->message[0] = 0;
    if (!queries || (queries->rows && (!hits || !counts))) {
        return KNA_FAIL(s->context, KNA_EINVAL, "search: no queries, hits or counts");
    }
    if (report && report->size < sizeof *report) {
        return KNA_FAIL(s->context, KNA_EINVAL, "report: size %zu is below %zu", report->size, sizeof *report);
    }
    KNA_TRY(kna__how_check(s->context, call.how));
    KNA_TRY(kna__queries_check(s->context, queries, s->rows.dim));
    KNA_TRY(keep_up(s));
    KNA_TRY(run(&call));
    if (report) {
        fill_report(&call, start, report);
    }
    return KNA_OK;
}
