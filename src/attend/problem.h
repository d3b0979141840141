/*
 * problem.h - one call of kna_attend(), checked and spelled out, as all methods see it.
 *
 * A "row" of the problem is one (query, head) pair. The rows of a KV head are numbered query-major: row r of KV head y is
 * query r / g, head y*g + r % g, so that neighbouring rows see nearly the same keys.
 */
#ifndef KNA_PROBLEM_H
#define KNA_PROBLEM_H

#include "../index/index.h"

#include <math.h>

/* Query rows per KV head up to which keys are streamed instead of packed for matrix products. */
enum { KNA_DECODE_ROWS = 16 };

typedef struct kna__problem {
    kna_context *context;
    const kna__kernels *kernels;
    kna_rows q, k, v; /* strides filled in */
    kna_out_rows out;
    float *lse;    /* (h,m) or NULL */
    kna_mask mask; /* strides filled in; data NULL: none */
    kna_attend_options options;
    int64_t h, h_kv, g, m, n, d, dv;
    int64_t shift; /* position of query i = i + shift */
    float scale;
    const struct kna__lists *lists; /* for gradients: where keys go in place of outputs (lists.h); NULL: there are outputs */
} kna__problem;

/* problem.c - check the operands and fill the problem; messages go to the context. */
int kna__problem_init(kna__problem *problem, kna_context *context, const kna_out_rows *out, float *lse, const kna_rows *q,
                      const kna_rows *k, const kna_rows *v, const kna_attend_options *options);
/* finite.c - KNA_EVALUE and a message that says where, if q, k or v holds NaN or infinity. */
int kna__problem_finite(const kna__problem *problem);
int kna__rows_finite(kna_context *context, const kna_rows *rows, const char *name);

static inline kna__span kna__span_at(const kna_rows *rows, int64_t head, int64_t row)
{
    kna__span span;
    span.data = (const char *)rows->data + head * rows->head_stride_bytes + row * rows->row_stride_bytes;
    span.row_bytes = (size_t)rows->row_stride_bytes;
    span.scales = rows->scales ? rows->scales + head * rows->rows + row : NULL;
    return span;
}

static inline float *kna__out_at(const kna__problem *p, int64_t head, int64_t query)
{
    char *base = (char *)p->out.data;
    return (float *)(void *)(base + head * p->out.head_stride_bytes + query * p->out.row_stride_bytes);
}

/* Keys a query may see by causality and window: lo .. hi - 1, never hi < lo. The mask may forbid more. */
static inline void kna__visible(const kna__problem *p, int64_t query, int64_t *lo, int64_t *hi)
{
    int64_t position = query + p->shift;
    *lo = 0;
    *hi = p->n;
    if (p->options.window > 0 && position - p->options.window + 1 > 0) {
        *lo = position - p->options.window + 1;
    }
    if (p->options.causal && position + 1 < *hi) {
        *hi = position + 1;
    }
    *hi = *hi < 0 ? 0 : *hi;
    *lo = *lo < *hi ? *lo : *hi;
}

/* logits.c - scaled products of keys first .. first+count-1 to logits: soft cap, mask, slopes. */
void kna__logits_finish(const kna__problem *problem, int64_t head, int64_t query, int64_t first, float *s, int64_t count);
/* And -inf for those the query does not see by causality and window. */
void kna__logits_seen(const kna__problem *problem, int64_t head, int64_t query, int64_t first, float *s, int64_t count);
/* logits_finish() for scattered keys. */
void kna__logits_finish_at(const kna__problem *problem, int64_t head, int64_t query, const int32_t *ids, float *s, int64_t count);
/* Whether the mask forbids all of keys first .. first+count-1 to the query. */
bool kna__mask_forbids(const kna__problem *problem, int64_t head, int64_t query, int64_t first, int64_t count);
/* To all of rows row .. row + rows - 1 of a KV head. */
bool kna__mask_forbids_rows(const kna__problem *problem, int64_t kv_head, int64_t row, int64_t rows, int64_t first, int64_t count);
/* Whether it adds nothing to them. */
bool kna__mask_is_zero(const kna__problem *problem, int64_t head, int64_t query, int64_t first, int64_t count);
/* The first of keys key .. end - 1 that it allows, or that it forbids; `end`: there is none. */
int64_t kna__mask_next(const kna__problem *problem, int64_t head, int64_t query, int64_t key, int64_t end, bool allowed);
/* How many of keys lo .. hi-1 it allows. */
int64_t kna__mask_allows(const kna__problem *problem, int64_t head, int64_t query, int64_t lo, int64_t hi);
/* Queries of one head, rows q_first .. +count (numbered as above), as f32 times the scale: out (count, d). */
void kna__queries_read(const kna__problem *problem, float *out, int64_t kv_head, int64_t row, int64_t count);

/* -inf from s[from] up to s[end - 1]. */
static inline void kna__forbid(float *s, int64_t from, int64_t end)
{
    for (int64_t j = from; j < end; j++) {
        s[j] = -INFINITY;
    }
}

/*
 * A softmax state: max logit, sum of exp(logit - max), and the sum of exp(logit - max) * value (dv floats beside it).
 * Empty: max = -INFINITY, sum = 0, values 0.
 */
typedef struct kna__state {
    float max;
    double sum;
} kna__state;

/* Logits to weights, in place, and what they add up to; where all are -inf the weights are 0. */
static inline kna__state kna__soften(const kna__kernels *kernels, float *s, int64_t count)
{
    kna__state state = { kernels->max(s, (size_t)count), 0 };
    if (state.max > -INFINITY) {
        state.sum = (double)kernels->exp_sum(s, state.max, (size_t)count);
    } else {
        memset(s, 0, (size_t)count * sizeof *s);
    }
    return state;
}

/* Whether the keys that every row reads in full are all there are, whatever the row. */
static inline bool kna__all_is_near(const kna__problem *p)
{
    const kna_attend_options *o = &p->options;
    return (o->method == KNA_KNN ? o->near_sinks + o->near_window : 0) + o->k_near >= p->n;
}

/* What a head's sink, if there is one, adds to a sum of weights relative to exp(max). */
static inline double kna__sink_weight(const kna__problem *p, int64_t head, float max)
{
    return p->options.sinks ? exp(fmin((double)p->options.sinks[head] - (double)max, 700)) : 0;
}

/* state.c - join b into a; write the row's result (sink logit and lse included). */
void kna__state_join(const kna__kernels *kernels, kna__state *a, float *a_values, kna__state b, const float *b_values, int64_t dv);
void kna__state_write(const kna__problem *problem, int64_t head, int64_t query, kna__state state, float *values);

/* Whether the row is among those audited (option audit). */
static inline bool kna__is_audited(const kna__problem *p, int64_t head, int64_t query)
{
    const kna_attend_options *o = &p->options;
    return o->audit > 0 && kna__uniform(o->seed, (uint64_t)head, (uint64_t)query) < (double)o->audit;
}

/* attend.c - KNA_ESTALE unless the index is one for this problem. */
int kna__check_index(const kna__problem *problem, const kna_index *index);

/* The methods. */
int kna__attend_decode(const kna__problem *problem);  /* exact, few queries */
int kna__attend_prefill(const kna__problem *problem); /* exact, many queries */

#endif
