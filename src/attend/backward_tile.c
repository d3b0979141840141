/* backward_tile.c - see backward_tile.h. */
#include "backward_tile.h"

void kna__backward_room_cut(kna__backward_room *room, const kna__problem *p, kna__cutter *cutter)
{
    size_t keys = KNA_BACKWARD_KEYS, pairs = (size_t)KNA_BACKWARD_ROWS * KNA_BACKWARD_KEYS, d = (size_t)p->d, dv = (size_t)p->dv;
    room->k = kna__cut(cutter, keys * d, sizeof(float));
    room->kt = kna__cut(cutter, keys * d, sizeof(float));
    room->v = kna__cut(cutter, keys * dv, sizeof(float));
    room->vt = kna__cut(cutter, keys * dv, sizeof(float));
    room->weights = kna__cut(cutter, pairs, sizeof(float));
    room->slopes = kna__cut(cutter, pairs, sizeof(float));
    room->turned = kna__cut(cutter, pairs, sizeof(float));
    room->raw = kna__cut(cutter, p->options.softcap > 0 ? pairs : 0, sizeof(float));
    room->part = kna__cut(cutter, keys * (d > dv ? d : dv), sizeof(float));
}

/* Rows to query heads and queries. */
static int64_t head_of(const kna__problem *p, const kna__backward_pair *pair, int64_t r)
{
    return pair->kv_head * p->g + (pair->row + r) % p->g;
}

static int64_t query_of(const kna__problem *p, const kna__backward_pair *pair, int64_t r)
{
    return (pair->row + r) / p->g;
}

bool kna__backward_sees(const kna__problem *p, const kna__backward_pair *pair)
{
    int64_t lo, hi, unused;
    kna__visible(p, query_of(p, pair, 0), &lo, &unused);
    kna__visible(p, query_of(p, pair, pair->rows - 1), &unused, &hi);
    return pair->first < hi && pair->first + pair->count > lo &&
           !kna__mask_forbids_rows(p, pair->kv_head, pair->row, pair->rows, pair->first, pair->count);
}

static void widen(const kna__problem *p, const kna_rows *rows, const kna__backward_pair *pair, float *out)
{
    size_t dim = (size_t)rows->dim;
    if (!pair->ids) {
        p->kernels->widen[rows->type](out, dim, kna__span_at(rows, pair->kv_head, pair->first), (size_t)pair->count, dim);
        return;
    }
    for (int64_t i = 0; i < pair->count; i++) {
        p->kernels->widen[rows->type](out + (size_t)i * dim, dim, kna__span_at(rows, pair->kv_head, pair->ids[i]), 1, dim);
    }
}

void kna__backward_read(const kna__problem *p, const kna__backward_pair *pair, kna__backward_room *room)
{
    size_t d = (size_t)p->d, dv = (size_t)p->dv, keys = (size_t)pair->count;
    widen(p, &p->k, pair, room->k);
    p->kernels->transpose(room->kt, KNA_BACKWARD_KEYS, room->k, d, keys, d);
    widen(p, &p->v, pair, room->v);
    p->kernels->transpose(room->vt, KNA_BACKWARD_KEYS, room->v, dv, keys, dv);
}

static void finish_logits(const kna__problem *p, const kna__backward_pair *pair, int64_t r, float *w)
{
    if (!pair->ids) {
        kna__logits_seen(p, head_of(p, pair, r), query_of(p, pair, r), pair->first, w, pair->count);
    } else if (p->options.softcap > 0) {
        p->kernels->softcap(w, p->options.softcap, (size_t)pair->count);
    }
}

/* What every key weighs, by the logits anew and the lse of the forward call. */
static void weigh(const kna__problem *p, const kna__backward_pair *pair, kna__backward_room *room)
{
    size_t d = (size_t)p->d, keys = (size_t)pair->count;
    p->kernels->gemm(room->weights, KNA_BACKWARD_KEYS, pair->at.q, d, room->kt, KNA_BACKWARD_KEYS, (size_t)pair->rows, keys, d,
                     false);
    if (p->options.softcap > 0) {
        memcpy(room->raw, room->weights, (size_t)(pair->rows * KNA_BACKWARD_KEYS) * sizeof *room->raw);
    }
    for (int64_t r = 0; r < pair->rows; r++) {
        float *w = room->weights + r * KNA_BACKWARD_KEYS;
        finish_logits(p, pair, r, w);
        if (pair->at.lse[r] == -INFINITY) {
            memset(w, 0, keys * sizeof *w); /* a row that sees nothing */
        } else {
            p->kernels->exp_sum(w, pair->at.lse[r], keys);
        }
    }
}

void kna__backward_uncap(const kna__problem *p, float *slopes, float *raw, int64_t count)
{
    float cap = p->options.softcap;
    p->kernels->softcap(raw, cap, (size_t)count);
    for (int64_t j = 0; j < count; j++) {
        float share = raw[j] / cap;
        slopes[j] *= 1 - share * share;
    }
}

/* dS. */
static void slope(const kna__problem *p, const kna__backward_pair *pair, kna__backward_room *room)
{
    size_t dv = (size_t)p->dv, keys = (size_t)pair->count;
    p->kernels->gemm(room->slopes, KNA_BACKWARD_KEYS, pair->at.dout, dv, room->vt, KNA_BACKWARD_KEYS, (size_t)pair->rows, keys, dv,
                     false);
    for (int64_t r = 0; r < pair->rows; r++) {
        float *slopes = room->slopes + r * KNA_BACKWARD_KEYS;
        p->kernels->tilt(slopes, room->weights + r * KNA_BACKWARD_KEYS, pair->at.delta[r], keys);
        if (p->options.softcap > 0) {
            kna__backward_uncap(p, slopes, room->raw + r * KNA_BACKWARD_KEYS, pair->count);
        }
    }
}

void kna__backward_turned(const kna__problem *p, kna__backward_room *room, float *to, int64_t ldt, const float *x, const float *y,
                          int64_t rows, int64_t count, int64_t dim, bool accumulate)
{
    p->kernels->transpose(room->turned, KNA_BACKWARD_ROWS, x, KNA_BACKWARD_KEYS, (size_t)rows, (size_t)count);
    p->kernels->gemm(to, (size_t)ldt, room->turned, KNA_BACKWARD_ROWS, y, (size_t)dim, (size_t)count, (size_t)dim, (size_t)rows,
                     accumulate);
}

/* x' y to rows of a gradient: x (rows, keys), y (rows, dim). */
static void add_turned(const kna__problem *p, const kna__backward_pair *pair, kna__backward_room *room, const kna_out_rows *to,
                       const float *x, const float *y, int64_t dim)
{
    if (!to->data) {
        return;
    }
    if (!pair->ids) {
        kna__backward_turned(p, room, kna__gradient_at(to, pair->kv_head, pair->first),
                             to->row_stride_bytes / (int64_t)sizeof(float), x, y, pair->rows, pair->count, dim, true);
        return;
    }
    kna__backward_turned(p, room, room->part, dim, x, y, pair->rows, pair->count, dim, false);
    for (int64_t i = 0; i < pair->count; i++) {
        p->kernels->axpy(kna__gradient_at(to, pair->kv_head, pair->ids[i]), 1.0f, room->part + i * dim, (size_t)dim);
    }
}

void kna__backward_add(const kna__backward *b, const kna__backward_pair *pair, kna__backward_room *room)
{
    const kna__problem *p = &b->problem;
    weigh(p, pair, room);
    add_turned(p, pair, room, &b->dv, room->weights, pair->at.dout, p->dv);
    if (!pair->dq && !b->dk.data) {
        return;
    }
    slope(p, pair, room);
    add_turned(p, pair, room, &b->dk, room->slopes, pair->at.q, p->d);
    if (pair->dq) {
        p->kernels->gemm(pair->dq, (size_t)p->d, room->slopes, KNA_BACKWARD_KEYS, room->k, (size_t)p->d, (size_t)pair->rows,
                         (size_t)p->d, (size_t)pair->count, true);
    }
}
