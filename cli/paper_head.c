/* paper_head.c - one head of operands and its gradients, for the experiments that are about gradients. */
#include "paper.h"

#include <stdlib.h>

void paper_head_free(paper_head *h)
{
    float *const all[] = { h->q, h->k, h->v, h->out, h->dout, h->dq, h->dk, h->dv, h->lse };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

int paper_head_new(paper_head *h, int64_t n, int64_t d)
{
    *h = (paper_head){ .n = n, .d = d };
    float **const all[] = { &h->q, &h->k, &h->v, &h->out, &h->dout, &h->dq, &h->dk, &h->dv, &h->lse };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        *all[i] = calloc((size_t)(n * d) + 1, sizeof(float));
        if (!*all[i]) return cli_fail("out of memory: %lld numbers", (long long)(n * d));
    }
    return CLI_OK;
}

void paper_head_fill(float *x, const paper_head *h, uint64_t seed, uint64_t stream, double deviation)
{
    for (int64_t i = 0; i < h->n * h->d; i++) x[i] = (float)(deviation * paper_normal(seed, stream, (uint64_t)i));
}

static kna_rows rows_of(const float *x, const paper_head *h)
{
    return (kna_rows){ x, KNA_F32, 1, h->n, h->d, 0, 0, NULL };
}

int paper_head_attend(paper_head *h, const paper_setup *s, const kna_attend_options *options)
{
    const kna_rows q = rows_of(h->q, h), k = rows_of(h->k, h), v = rows_of(h->v, h);
    const kna_out_rows out = { h->out, 0, 0 };
    const int status = kna_attend(s->context, &out, h->lse, NULL, &q, &k, &v, options);
    return status == KNA_OK ? CLI_OK : cli_status(s->context, status);
}

int paper_head_differentiate(paper_head *h, const paper_setup *s, const kna_attend_options *options)
{
    const kna_rows q = rows_of(h->q, h), k = rows_of(h->k, h), v = rows_of(h->v, h), out = rows_of(h->out, h), dout = rows_of(h->dout, h);
    const kna_gradients to = { { h->dq, 0, 0 }, { h->dk, 0, 0 }, { h->dv, 0, 0 }, NULL, NULL, NULL };
    return kna_attend_backward(s->context, &to, &dout, &out, h->lse, &q, &k, &v, options);
}
