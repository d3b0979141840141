/*
 * naive.c - softmax(scale * q k') v with plain loops, a row of logits at a time, threads over queries.
 */
#include "naive.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "parallel.h"

static float dot(const float *a, const float *b, int64_t d)
{
    float sum = 0;
    for (int64_t i = 0; i < d; i++) sum += a[i] * b[i];
    return sum;
}

/* One query over its first `seen` keys; logits is scratch. */
static void attend_row(const naive_call *c, float *out, const float *q, const float *k, const float *v, int64_t seen, float *logits)
{
    const float scale = 1.0f / sqrtf((float)c->d);
    float largest = -INFINITY;
    float total = 0;
    for (int64_t j = 0; j < seen; j++) {
        logits[j] = scale * dot(q, k + j * c->d, c->d);
        largest = fmaxf(largest, logits[j]);
    }
    memset(out, 0, (size_t)c->d * sizeof *out);
    for (int64_t j = 0; j < seen; j++) {
        const float weight = expf(logits[j] - largest);
        total += weight;
        for (int64_t i = 0; i < c->d; i++) out[i] += weight * v[j * c->d + i];
    }
    for (int64_t i = 0; i < c->d; i++) out[i] /= total;
}

static void attend_query(const naive_call *c, int64_t head, int64_t query, float *logits)
{
    const int64_t kv = head / (c->h / c->h_kv) * c->n * c->d;
    const int64_t row = (head * c->m + query) * c->d;
    const int64_t seen = c->causal ? c->n - c->m + query + 1 : c->n;
    attend_row(c, c->out + row, c->q + row, c->k + kv, c->v + kv, seen, logits);
}

int naive_attend(const naive_call *call)
{
    const int64_t queries = (call->m - call->first + call->step - 1) / call->step;
    float *logits = malloc((size_t)call->threads * (size_t)call->n * sizeof *logits);
    if (!logits) return cli_fail("out of memory: logits of naive attention");
    PARALLEL_FOR(call->threads)
    for (int part = 0; part < call->threads; part++)
        for (int64_t i = part; i < queries * call->h; i += call->threads)
            attend_query(call, i % call->h, call->first + i / call->h * call->step, logits + (int64_t)part * call->n);
    free(logits);
    return CLI_OK;
}
