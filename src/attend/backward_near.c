/*
 * backward_near.c - gradients of calls that go by the nearest keys: topk and uniform, the sets of the forward call held fixed, and
 * by keys drawn (backward_chain.c); of samples that go by cells, these held fixed too (backward_cells.c). A block of queries at a time the forward call is repeated, which leaves lists of keys instead of
 * outputs (sampled_list.c): random numbers belong to positions, so the lists are those the outputs were made of.
 */
#include "chain.h"
#include "nearest.h"
#include "strata.h"

enum {
    BLOCK = 256,       /* queries at a time, at most */
    ENTRIES = 1 << 20, /* and entries of their lists, unless one query has more */
    PILOT_LEAST = 32,  /* keys that certificates finite and bernstein look at besides, or a fiftieth: sampled_tail.c */
    STRATUM_LEAST = 4, /* and of each group at least */
    LOOSE_MOST = 64    /* keys in no cell, where all are present: the first 16, and less than a block at both ends */
};

typedef struct near_job {
    kna__backward *b;
    kna__chain_plan plan;
    kna__lists lists;
    kna__list_cells cells;
    bool by_cells;
} near_job;

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Entries that a row may need. */
static int64_t entries_of(const near_job *job, int64_t head, int64_t query)
{
    const kna__problem *p = &job->b->problem;
    const kna_attend_options *o = &p->options;
    int64_t groups = o->key_groups ? o->key_group_count : 0; /* quotas rounded up; and some keys of each stratum */
    int64_t near = smaller(o->k_near + groups, p->n);
    if (job->by_cells) {
        return (o->index ? p->n : smaller(near + LOOSE_MOST, p->n)) + o->samples + p->n / KNA_BLOCK;
    }
    if (o->method == KNA_TOPK) {
        return near;
    }
    if (o->method == KNA_UNIFORM) {
        int64_t pilot = o->certificate != KNA_CERTIFICATE_ASYMPTOTIC ? PILOT_LEAST + p->n / 50 : 0;
        return o->eps > 0 ? p->n : smaller(near + pilot + o->samples + STRATUM_LEAST * groups, p->n);
    }
    bool is_planned = o->chain == KNA_CHAIN_JOINT || o->chain == KNA_CHAIN_SIGNED;
    return is_planned ? job->plan.draws[head * p->m + query] : o->samples + (o->chain == KNA_CHAIN_TAIL ? near : 0);
}

static int64_t entries_at(const near_job *job, int64_t query)
{
    int64_t sum = 0;
    for (int64_t head = 0; head < job->b->problem.h; head++) {
        sum += entries_of(job, head, query);
    }
    return sum;
}

/* How many queries from `query` on are a block, and the entries they need. */
static int64_t block_at(const near_job *job, int64_t query, int64_t *entries)
{
    int64_t m = job->b->problem.m, end = query;
    *entries = 0;
    while (end < m && end < query + BLOCK) {
        int64_t more = entries_at(job, end);
        if (end > query && *entries + more > ENTRIES) {
            break;
        }
        *entries += more;
        end++;
    }
    return end - query;
}

/* The largest block: rows of queries and entries need not be of the same one. */
static size_t cut_lists(near_job *job, char *base)
{
    const kna__problem *p = &job->b->problem;
    kna__cutter cutter = { base, 0 };
    int64_t most = 0;
    for (int64_t query = 0, entries; query < p->m; query += block_at(job, query, &entries)) {
        block_at(job, query, &entries);
        most = entries > most ? entries : most;
    }
    kna__lists_cut(&job->lists, p->h * smaller(p->m, BLOCK), most, &cutter);
    if (job->by_cells) {
        kna__list_cells_cut(&job->cells, job->b, p->h * smaller(p->m, BLOCK), most, &cutter);
    }
    job->lists.cells = job->by_cells ? &job->cells : NULL;
    return cutter.used;
}

static void lay_out(near_job *job, kna__lists_block block)
{
    const kna__problem *p = &job->b->problem;
    int64_t at = 0;
    for (int64_t row = 0; row < p->h * block.queries; row++) {
        int64_t head = row / block.queries, query = block.query + row % block.queries;
        job->lists.first[row] = at;
        job->lists.count[row] = job->lists.fixed[row] = 0;
        if (job->by_cells) {
            job->cells.count[row] = 0;
        }
        job->lists.weight[row] = p->options.chain == KNA_CHAIN_JOINT ? job->plan.weight[head * p->m + query] : 1;
        at += entries_of(job, head, query);
    }
    job->lists.first[p->h * block.queries] = at;
}

/* The forward call for a block of queries. */
static int fill_lists(near_job *job, const kna_index *index, kna__lists_block block)
{
    kna__problem part = job->b->problem;
    kna_report report;
    memset(&report, 0, sizeof report);
    part.q.data = (const char *)part.q.data + block.query * part.q.row_stride_bytes;
    part.q.rows = part.m = block.queries;
    part.shift += block.query;
    if (part.mask.data) {
        part.mask.data = (const char *)part.mask.data + block.query * part.mask.row_stride_bytes;
    }
    part.lse = NULL;
    part.lists = &job->lists;
    part.options.radius = NULL;
    part.options.draws = NULL;
    part.options.audit = 0;
    return kna__attend_nearest(&part, index, &report);
}

static int run_blocks(near_job *job, const kna_index *index)
{
    const kna__problem *p = &job->b->problem;
    kna__lists_block block = { 0, p->h_kv, 0, 0 };
    int64_t entries;
    for (; block.query < p->m; block.query += block.queries) {
        block.queries = block_at(job, block.query, &entries);
        lay_out(job, block);
        KNA_TRY(fill_lists(job, index, block));
        if (p->options.chain == KNA_CHAIN_SIGNED) {
            kna__chain_add_signed(&job->plan, &job->lists, block);
        } else {
            kna__lists_differentiate(job->b, &job->lists, block);
        }
    }
    return KNA_OK;
}

static void clear_cells(const near_job *job)
{
    const kna__problem *p = &job->b->problem;
    size_t all = (size_t)(p->h_kv * KNA_STRATA_LEVELS * job->cells.strata.cells);
    if (job->cells.dk) {
        memset(job->cells.dk, 0, all * (size_t)p->d * sizeof(float));
    }
    if (job->cells.dv) {
        memset(job->cells.dv, 0, all * (size_t)p->dv * sizeof(float));
    }
}

static int run_planned(near_job *job, const kna_index *index)
{
    const kna__problem *p = &job->b->problem;
    size_t bytes = cut_lists(job, NULL);
    char *held = kna__allocate(&p->context->heap, bytes);
    if (!held) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of lists of keys", bytes);
    }
    cut_lists(job, held);
    if (job->by_cells) {
        clear_cells(job);
    }
    int status = run_blocks(job, index);
    if (status == KNA_OK && job->by_cells) {
        kna__list_cells_spread(job->b, &job->cells);
    }
    kna__release(&p->context->heap, held, bytes);
    return status;
}

/* The cells of all queries: those of a block's alone would be the same, and formed for every block. */
static int run_with_cells(near_job *job, const kna_index *index)
{
    if (!job->by_cells) {
        return run_planned(job, index);
    }
    KNA_TRY(kna__strata_new(&job->b->problem, index, &job->cells.strata));
    int status = run_planned(job, index);
    kna__strata_free(&job->cells.strata);
    return status;
}

/* One index for all blocks, unless the caller has one. */
static int run_with_index(near_job *job)
{
    const kna__problem *p = &job->b->problem;
    kna_index *own = NULL;
    if (p->options.index) {
        return run_with_cells(job, p->options.index);
    }
    int status = kna_index_new(p->context, &own, KNA_TOPK, p->h_kv, p->d, p->dv);
    status = status == KNA_OK ? kna_index_update(p->context, own, &p->k, &p->v, 0, p->n) : status;
    status = status == KNA_OK ? run_with_cells(job, own) : status;
    kna_index_free(own);
    return status;
}

int kna__backward_near(kna__backward *b)
{
    const kna__problem *p = &b->problem;
    near_job job = { .b = b, .plan = { .b = b }, .by_cells = kna__needs_strata(&p->options) };
    kna__cutter cutter = { NULL, 0 };
    kna__chain_cut(&job.plan, &cutter);
    size_t bytes = cutter.used;
    char *held = kna__allocate(&p->context->heap, bytes);
    if (!held) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of a plan of draws", bytes);
    }
    cutter = (kna__cutter){ held, 0 };
    kna__chain_cut(&job.plan, &cutter);
    kna__chain_draw(&job.plan);
    int status = run_with_index(&job);
    kna__release(&p->context->heap, held, bytes);
    return status;
}
