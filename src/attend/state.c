/*
 * state.c - softmax states of disjoint key sets, joined by their maxima (Milakov & Gimelshein 2018), and the final division.
 */
#include "problem.h"

#include <math.h>

void kna__state_join(const kna__kernels *kernels, kna__state *a, float *a_values, kna__state b, const float *b_values, int64_t dv)
{
    if (b.max == -INFINITY) {
        return;
    }
    if (b.max > a->max) {
        float shrink = a->max == -INFINITY ? 0.0f : expf(a->max - b.max);
        kernels->scale(a_values, shrink, (size_t)dv);
        a->sum *= (double)shrink;
        a->max = b.max;
    }
    float weight = expf(b.max - a->max);
    kernels->axpy(a_values, weight, b_values, (size_t)dv);
    a->sum += (double)weight * b.sum;
}

void kna__state_write(const kna__problem *p, int64_t head, int64_t query, kna__state state, float *values)
{
    double sum = state.sum;
    double max = (double)state.max;
    float *out = kna__out_at(p, head, query);
    if (p->options.sinks) {
        double sink = (double)p->options.sinks[head];
        double top = max > sink ? max : sink;
        double shrink = state.max == -INFINITY ? 0.0 : exp(max - top);
        sum = sum * shrink + exp(sink - top);
        max = top;
        p->kernels->scale(values, (float)shrink, (size_t)p->dv);
    }
    memcpy(out, values, (size_t)p->dv * sizeof *out);
    p->kernels->scale(out, sum > 0 ? (float)(1.0 / sum) : 0.0f, (size_t)p->dv);
    if (p->lse) {
        p->lse[head * p->m + query] = sum > 0 ? (float)(max + log(sum)) : -INFINITY;
    }
}

int kna_merge(kna_context *context, float *a, float *a_lse, const float *b, const float *b_lse, int64_t rows, int64_t dv)
{
    context->message[0] = 0;
    if (rows < 0 || dv < 1 || (rows && (!a || !a_lse || !b || !b_lse))) {
        return KNA_FAIL(context, KNA_EINVAL, "merge: rows = %lld, dv = %lld or a null pointer", (long long)rows, (long long)dv);
    }
    for (int64_t r = 0; r < rows; r++) {
        if (b_lse[r] == -INFINITY) {
            continue;
        }
        if (a_lse[r] == -INFINITY) { /* nothing is taken over whatever stood there */
            memcpy(a + r * dv, b + r * dv, (size_t)dv * sizeof *a);
            a_lse[r] = b_lse[r];
            continue;
        }
        double top = (double)(a_lse[r] > b_lse[r] ? a_lse[r] : b_lse[r]);
        double wa = exp((double)a_lse[r] - top), wb = exp((double)b_lse[r] - top);
        context->kernels->scale(a + r * dv, (float)(wa / (wa + wb)), (size_t)dv);
        context->kernels->axpy(a + r * dv, (float)(wb / (wa + wb)), b + r * dv, (size_t)dv);
        a_lse[r] = (float)(top + log(wa + wb));
    }
    return KNA_OK;
}
