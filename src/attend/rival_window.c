/*
 * rival_window.c - the first keys and the recent ones, all others dropped: two exact calls, joined. A recent key is one of the last
 * near_window that a query may see; a first one is one of the first near_sinks that is not recent.
 */
#include "backward.h"
#include "rivals.h"

/* From row `first` on. How many there are stays as it was: by that the scales of another head are found. */
static void skip_rows(kna_rows *rows, int64_t first)
{
    rows->data = (const char *)rows->data + first * rows->row_stride_bytes;
    rows->scales = rows->scales ? rows->scales + first : NULL;
}

/* The problem with keys first .. end - 1 only. */
static int attend_part(const kna__problem *p, int64_t first, int64_t end, int64_t window, int64_t shift, kna_out_rows out,
                       float *lse)
{
    kna__problem part = *p;
    skip_rows(&part.k, first);
    skip_rows(&part.v, first);
    part.n = end - first;
    part.options.method = KNA_EXACT;
    part.options.window = window;
    part.options.sinks = NULL;
    part.shift = shift;
    part.out = out;
    part.lse = lse;
    return p->m * p->g <= KNA_DECODE_ROWS ? kna__attend_decode(&part) : kna__attend_prefill(&part);
}

/* As kna_attend() writes a row: a sink logit among the weights. */
static void write_rows(const kna__problem *p, float *out, float *lse)
{
    for (int64_t row = 0; row < p->h * p->m; row++) {
        kna__state state = { lse[row], lse[row] > -INFINITY ? 1 : 0 };
        kna__state_write(p, row / p->m, row % p->m, state, out + row * p->dv);
    }
}

/* Keys begin .. n - 1 with a window, and keys 0 .. end - 1. */
typedef struct parts {
    int64_t begin, window, last_shift, end, first_shift;
} parts;

/*
 * Without an order all queries stand on the last key, so what is recent is the same for all: the last keys. A first key that is
 * recent has been read: in order, query i sees those up to its position - recent.
 */
static parts parts_of(const kna__problem *p)
{
    const kna_attend_options *o = &p->options;
    int64_t sinks = o->near_sinks < p->n ? o->near_sinks : p->n, recent = o->near_window, begin = p->n > recent ? p->n - recent : 0;
    if (o->causal) {
        return (parts){ 0, recent ? recent : 1, recent ? p->shift : -KNA_MAX_ROWS, sinks, p->shift - recent };
    }
    return (parts){ begin, 0, p->shift, begin > sinks ? sinks : begin, p->shift - recent };
}

static void report_keys(const kna__problem *p, kna_report *report)
{
    double most = (double)(p->m * p->h) * (double)(p->options.near_sinks + p->options.near_window);
    report->keys_full = fmin(most, report->keys_seen);
    report->keys_touched = report->keys_seen > 0 ? report->keys_full / report->keys_seen : 1;
}

int kna__attend_window(const kna__problem *p, kna_report *report)
{
    report_keys(p, report);
    parts of = parts_of(p);
    int64_t rows = p->h * p->m;
    size_t numbers = kna__size_product((size_t)rows, (size_t)(p->dv + 1) * sizeof(float)), bytes = kna__size_product(2, numbers);
    float *first = kna__allocate(&p->context->heap, bytes);
    if (!first) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of outputs", bytes);
    }
    float *last = first + rows * (p->dv + 1), *first_lse = first + rows * p->dv, *last_lse = last + rows * p->dv;
    int64_t row_bytes = p->dv * (int64_t)sizeof(float);
    kna_out_rows to_first = { first, row_bytes * p->m, row_bytes }, to_last = { last, row_bytes * p->m, row_bytes };
    int status = attend_part(p, of.begin, p->n, of.window, of.last_shift, to_last, last_lse);
    if (status == KNA_OK) {
        status = attend_part(p, 0, of.end, 0, of.first_shift, to_first, first_lse);
    }
    if (status == KNA_OK) {
        status = kna_merge(p->context, last, last_lse, first, first_lse, rows, p->dv);
        write_rows(p, last, last_lse);
    }
    kna__release(&p->context->heap, first, bytes);
    return status;
}

/* ---- gradients: those of the two parts, by the lse and out of both together */

static int differentiate_part(const kna__backward *b, int64_t first, int64_t end, int64_t window, int64_t shift)
{
    kna__backward part = *b;
    kna__problem *p = &part.problem;
    skip_rows(&p->k, first);
    skip_rows(&p->v, first);
    part.dk.data = kna__gradient_at(&b->dk, 0, first);
    part.dv.data = kna__gradient_at(&b->dv, 0, first);
    p->n = end - first;
    p->options.method = KNA_EXACT;
    p->options.window = window;
    p->shift = shift;
    return kna__backward_exact(&part);
}

int kna__backward_window(const kna__backward *b)
{
    const kna__problem *p = &b->problem;
    parts of = parts_of(p);
    KNA_TRY(differentiate_part(b, of.begin, p->n, of.window, of.last_shift));
    return differentiate_part(b, 0, of.end, 0, of.first_shift);
}
