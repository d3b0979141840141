/*
 * backward_chain.c - gradients from keys drawn by the softmax: one step of a random walk from each query to a key, as many times as
 * option samples says. (Haris 2024 has such a chain for dV, with queries drawn too; here every query takes as many steps, which is
 * never worse, and the same draws give dQ and dK.)
 *
 * With s draws l of row i, x_l = <dout_i, v_l> and x their mean:
 *   dv_l += dout_i / s     dk_l += scale q_i (x_l - x) / (s - 1)     dq_i = scale sum_l k_l (x_l - x) / (s - 1)
 * dq is the covariance of k and <dout, v> under the softmax as a sample has it: nothing has to be known of Delta_i, a biased
 * estimate of which would show in it at first order. All three are unbiased; their errors shrink with the root of s.
 */
#include "backward.h"

enum { BLOCK = 256 /* queries whose draws are held at a time */ };

typedef struct chain_job {
    const kna__backward *b;
    int64_t query, queries; /* the block */
    int32_t *draws;         /* (h, queries, samples) */
    float *out;             /* (h, queries, dv): what the draws are a mean of; nobody looks at it */
    float *rooms;           /* (threads, samples) */
} chain_job;

static const char *mask_from(const kna_mask *mask, int64_t query)
{
    return mask->data ? (const char *)mask->data + query * mask->row_stride_bytes : NULL;
}

/* The block's draws are those of the forward call: random numbers belong to positions. */
static int draw(const chain_job *job)
{
    const kna__problem *p = &job->b->problem;
    kna_attend_options options = p->options;
    kna_rows q = p->q;
    int64_t row_bytes = p->dv * (int64_t)sizeof(float);
    q.data = (const char *)q.data + job->query * q.row_stride_bytes;
    q.rows = job->queries;
    options.mask = p->mask;
    options.mask.data = mask_from(&p->mask, job->query);
    options.causal_shift += job->query - p->m + job->queries;
    options.draws = job->draws;
    options.radius = NULL;
    options.audit = 0;
    options.unchecked = 1;
    kna_out_rows out = { job->out, row_bytes * job->queries, row_bytes };
    return kna_attend(p->context, &out, NULL, NULL, &q, &p->k, &p->v, &options);
}

static void add_row(const chain_job *job, int64_t head, int64_t query, float *weights)
{
    const kna__backward *b = job->b;
    const kna__problem *p = &b->problem;
    int64_t s = p->options.samples, kv_head = head / p->g;
    const int32_t *keys = job->draws + (head * job->queries + query - job->query) * s;
    float q[KNA_MAX_DIM], dout[KNA_MAX_DIM];
    if (keys[0] < 0) { /* it sees nothing */
        return;
    }
    kna__queries_read(p, q, kv_head, query * p->g + head % p->g, 1);
    p->kernels->widen[b->dout.type](dout, (size_t)p->dv, kna__span_at(&b->dout, head, query), 1, (size_t)p->dv);
    p->kernels->dot_at[p->v.type](weights, 0, dout, 0, 1, kna__span_at(&p->v, kv_head, 0), keys, (size_t)s, (size_t)p->dv);
    double mean = 0;
    for (int64_t i = 0; i < s; i++) {
        mean += (double)weights[i] / (double)s;
    }
    for (int64_t i = 0; i < s; i++) {
        weights[i] = (float)(((double)weights[i] - mean) / (double)(s - 1));
    }
    for (int64_t i = 0; i < s; i++) {
        float *dk = kna__gradient_at(&b->dk, kv_head, keys[i]), *dv = kna__gradient_at(&b->dv, kv_head, keys[i]);
        if (dk) {
            p->kernels->axpy(dk, weights[i], q, (size_t)p->d);
        }
        if (dv) {
            p->kernels->axpy(dv, 1 / (float)s, dout, (size_t)p->dv);
        }
    }
    if (b->dq.data) {
        p->kernels->scale(weights, p->scale, (size_t)s);
        p->kernels->mix_at[p->k.type](kna__gradient_at(&b->dq, head, query), 0, weights, 0, 1, kna__span_at(&p->k, kv_head, 0),
                                      keys, (size_t)s, (size_t)p->d);
    }
}

static void add_head(void *argument, int64_t kv_head, int worker)
{
    const chain_job *job = argument;
    const kna__problem *p = &job->b->problem;
    for (int64_t query = job->query; query < job->query + job->queries; query++) {
        for (int64_t head = kv_head * p->g; head < (kv_head + 1) * p->g; head++) {
            add_row(job, head, query, job->rooms + worker * p->options.samples);
        }
    }
}

static size_t cut_job(chain_job *job, char *base)
{
    const kna__problem *p = &job->b->problem;
    kna__cutter cutter = { base, 0 };
    size_t rows = (size_t)(p->h * (p->m < BLOCK ? p->m : BLOCK)), samples = (size_t)p->options.samples;
    job->draws = kna__cut(&cutter, kna__size_product(rows, samples), sizeof(int32_t));
    job->out = kna__cut(&cutter, kna__size_product(rows, (size_t)p->dv), sizeof(float));
    job->rooms = kna__cut(&cutter, kna__size_product((size_t)p->context->threads, samples), sizeof(float));
    return cutter.used;
}

static int run_blocks(chain_job *job)
{
    const kna__problem *p = &job->b->problem;
    for (job->query = 0; job->query < p->m; job->query += BLOCK) {
        job->queries = p->m - job->query < BLOCK ? p->m - job->query : BLOCK;
        KNA_TRY(draw(job));
        kna__parallel_for(p->context->threads, p->h_kv, add_head, job);
    }
    return KNA_OK;
}

/* One index for all blocks, unless the caller has one. */
int kna__backward_chain(kna__backward *b)
{
    const kna__problem *p = &b->problem;
    chain_job job = { .b = b };
    kna_index *own = NULL;
    size_t bytes = cut_job(&job, NULL);
    char *held = kna__allocate(&p->context->heap, bytes);
    if (!held) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of draws", bytes);
    }
    cut_job(&job, held);
    int status = KNA_OK;
    if (!p->options.index) {
        status = kna_index_new(p->context, &own, KNA_TOPK, p->h_kv, p->d, p->dv);
        status = status == KNA_OK ? kna_index_update(p->context, own, &p->k, &p->v, 0, p->n) : status;
        b->problem.options.index = own;
    }
    status = status == KNA_OK ? run_blocks(&job) : status;
    kna_index_free(own);
    kna__release(&p->context->heap, held, bytes);
    return status;
}
