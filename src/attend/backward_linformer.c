/*
 * backward_linformer.c - gradients of attention to projected keys and values (rival_linformer.c): exact gradients by these, K' = E K and
 * V' = F V, and from there dK = E' dK', dE = dK' K', likewise of values. Without projections a row takes its share of its run's mean,
 * and the logarithm of what a mean stands for is a mask all queries share.
 */
#include "backward.h"
#include "rivals.h"

enum { PIECE = 64 /* keys at a time */ };

typedef struct linformer_back {
    const kna__backward *b;
    int64_t rank;
    float *keys, *values, *dkeys, *dvalues; /* (h_kv, rank, d) or (.., dv) */
    float *log_count;                       /* (rank) */
    char *rooms;
    size_t room_bytes;
} linformer_back;

typedef struct linformer_side {
    const kna_rows *rows;
    const kna_out_rows *to;
    const float *by, *projected; /* projected: its gradient */
    float *dproject;
} linformer_side;

static size_t cut_back(linformer_back *job, char *base)
{
    const kna__problem *p = &job->b->problem;
    kna__cutter cutter = { base, 0 };
    size_t rows = kna__size_product((size_t)p->h_kv, (size_t)job->rank), d = (size_t)p->d, dv = (size_t)p->dv;
    size_t widest = d > dv ? d : dv, long_room = kna__size_product((size_t)p->n, widest);
    size_t short_room = (size_t)PIECE * ((size_t)job->rank + 2 * widest);
    job->keys = kna__cut(&cutter, kna__size_product(rows, d), sizeof(float));
    job->values = kna__cut(&cutter, kna__size_product(rows, dv), sizeof(float));
    job->dkeys = kna__cut(&cutter, kna__size_product(rows, d), sizeof(float));
    job->dvalues = kna__cut(&cutter, kna__size_product(rows, dv), sizeof(float));
    job->log_count = kna__cut(&cutter, (size_t)job->rank, sizeof(float));
    job->room_bytes = kna__size_product(long_room > short_room ? long_room : short_room, sizeof(float));
    job->rooms = kna__cut(&cutter, (size_t)p->context->threads, job->room_bytes);
    return cutter.used;
}

static void project(void *argument, int64_t head, int worker)
{
    const linformer_back *job = argument;
    const kna__problem *p = &job->b->problem;
    float *x = (float *)(void *)(job->rooms + (size_t)worker * job->room_bytes);
    kna__linformer_project(p, &p->k, head, p->options.project_k, x, job->keys + head * job->rank * p->d, NULL);
    kna__linformer_project(p, &p->v, head, p->options.project_v, x, job->values + head * job->rank * p->dv, NULL);
}

/* Exact attention's gradients, by what was projected. */
static int differentiate(const linformer_back *job)
{
    kna__backward part = *job->b;
    kna__problem *p = &part.problem;
    const int64_t number = (int64_t)sizeof(float), rank = job->rank;
    p->k = (kna_rows){ job->keys, KNA_F32, p->h_kv, rank, p->d, rank * p->d * number, p->d * number, NULL };
    p->v = (kna_rows){ job->values, KNA_F32, p->h_kv, rank, p->dv, rank * p->dv * number, p->dv * number, NULL };
    if (!p->options.project_k) {
        p->mask = (kna_mask){ job->log_count, KNA_F32, 1, 0, 0 };
    }
    p->n = rank;
    p->options.method = KNA_EXACT;
    part.dk = (kna_out_rows){ job->dkeys, rank * p->d * number, p->d * number };
    part.dv = (kna_out_rows){ job->dvalues, rank * p->dv * number, p->dv * number };
    memset(job->dkeys, 0, (size_t)(p->h_kv * rank * p->d) * sizeof(float));
    memset(job->dvalues, 0, (size_t)(p->h_kv * rank * p->dv) * sizeof(float));
    return kna__backward_exact(&part);
}

/* Keys first .. first + count - 1, of all KV heads in turn: what a projection is to them. */
static void spread_projected(const linformer_back *job, const linformer_side *side, int64_t first, int64_t count, float *room)
{
    const kna__problem *p = &job->b->problem;
    size_t rank = (size_t)job->rank, dim = (size_t)side->rows->dim, keys = (size_t)count;
    float *turned = room, *x = room + PIECE * rank, *xt = x + PIECE * dim;
    p->kernels->transpose(turned, rank, side->by + first, (size_t)p->n, rank, keys);
    for (int64_t head = 0; head < p->h_kv; head++) {
        const float *from = side->projected + (size_t)head * rank * dim;
        if (side->to->data) {
            p->kernels->gemm(kna__gradient_at(side->to, head, first), (size_t)side->to->row_stride_bytes / sizeof(float), turned,
                             rank, from, dim, keys, dim, rank, false);
        }
        if (side->dproject) {
            kna__rival_widen(p, side->rows, head, first, count, x);
            p->kernels->transpose(xt, PIECE, x, dim, keys, dim);
            p->kernels->gemm(side->dproject + first, (size_t)p->n, from, dim, xt, PIECE, rank, keys, dim, true);
        }
    }
}

/* The same of means: the run of key j is the one with part * n / rank <= j. */
static void spread_means(const linformer_back *job, const linformer_side *side, int64_t first, int64_t count)
{
    const kna__problem *p = &job->b->problem;
    int64_t dim = side->rows->dim;
    for (int64_t j = first; side->to->data && j < first + count; j++) {
        int64_t part = ((j + 1) * job->rank - 1) / p->n;
        float share = 1 / (float)((part + 1) * p->n / job->rank - part * p->n / job->rank);
        for (int64_t head = 0; head < p->h_kv; head++) {
            p->kernels->axpy(kna__gradient_at(side->to, head, j), share, side->projected + (head * job->rank + part) * dim,
                             (size_t)dim);
        }
    }
}

static void spread(void *argument, int64_t task, int worker)
{
    const linformer_back *job = argument;
    const kna__backward *b = job->b;
    const kna__problem *p = &b->problem;
    const linformer_side sides[] = { { &p->k, &b->dk, p->options.project_k, job->dkeys, b->dproject_k },
                                     { &p->v, &b->dv, p->options.project_v, job->dvalues, b->dproject_v } };
    int64_t first = task * PIECE, count = p->n - first < PIECE ? p->n - first : PIECE;
    for (int i = 0; i < 2; i++) {
        if (sides[i].by) {
            spread_projected(job, &sides[i], first, count, (float *)(void *)(job->rooms + (size_t)worker * job->room_bytes));
        } else {
            spread_means(job, &sides[i], first, count);
        }
    }
}

static int run(linformer_back *job)
{
    const kna__problem *p = &job->b->problem;
    for (int64_t i = 0; i < job->rank; i++) {
        job->log_count[i] = logf((float)((i + 1) * p->n / job->rank - i * p->n / job->rank));
    }
    kna__parallel_for(p->context->threads, p->h_kv, project, job);
    KNA_TRY(differentiate(job));
    kna__parallel_for(p->context->threads, (p->n + PIECE - 1) / PIECE, spread, job);
    return KNA_OK;
}

int kna__backward_linformer(const kna__backward *b)
{
    const kna__problem *p = &b->problem;
    linformer_back job = { .b = b, .rank = kna__linformer_rank(p) };
    size_t bytes = cut_back(&job, NULL);
    char *held = kna__allocate(&p->context->heap, bytes);
    if (!held) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of projections", bytes);
    }
    cut_back(&job, held);
    int status = run(&job);
    kna__release(&p->context->heap, held, bytes);
    return status;
}
