/* tile.c - see tile.h. */
#include "tile.h"

#include <math.h>

void kna__tile_cut(kna__tile *tile, const kna__problem *p, int64_t rows, kna__cutter *cutter)
{
    size_t n = (size_t)rows, d = (size_t)p->d, dv = (size_t)p->dv;
    tile->problem = p;
    tile->q = kna__cut(cutter, n * d, sizeof(float));
    tile->panel = kna__cut(cutter, KNA_TILE_KEYS * (d > dv ? d : dv), sizeof(float));
    tile->kt = kna__cut(cutter, KNA_TILE_KEYS * d, sizeof(float));
    tile->s = kna__cut(cutter, n * KNA_TILE_KEYS, sizeof(float));
    tile->out = kna__cut(cutter, n * dv, sizeof(float));
    tile->state = kna__cut(cutter, n, sizeof(kna__state));
}

void kna__tile_begin(kna__tile *tile, int64_t kv_head, int64_t row, int64_t rows)
{
    const kna__problem *p = tile->problem;
    tile->kv_head = kv_head;
    tile->row = row;
    tile->rows = rows;
    tile->mute = 0;
    kna__queries_read(p, tile->q, kv_head, row, rows);
    memset(tile->out, 0, (size_t)(rows * p->dv) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        tile->state[r] = (kna__state){ -INFINITY, 0 };
    }
}

/* Logits of one row; returns their maximum. */
static float finish_row(const kna__tile *tile, int64_t r, int64_t first, int64_t count)
{
    const kna__problem *p = tile->problem;
    int64_t row = tile->row + r;
    float *s = tile->s + r * KNA_TILE_KEYS;
    kna__logits_seen(p, tile->kv_head * p->g + row % p->g, row / p->g, first, s, count);
    return p->kernels->max(s, (size_t)count);
}

void kna__tile_raise(kna__tile *tile, int64_t r, float max)
{
    const kna__problem *p = tile->problem;
    kna__state *state = &tile->state[r];
    if (max > state->max) {
        float shrink = state->max == -INFINITY ? 0.0f : expf(state->max - max);
        p->kernels->scale(tile->out + r * p->dv, shrink, (size_t)p->dv);
        state->sum *= (double)shrink;
        state->max = max;
    }
}

/* Online softmax of one row: shrink what is there if the maximum grew, turn logits into weights. */
static void soften_row(kna__tile *tile, int64_t r, float max, int64_t count)
{
    float *s = tile->s + r * KNA_TILE_KEYS;
    if (max == -INFINITY) {
        memset(s, 0, (size_t)count * sizeof *s);
        return;
    }
    kna__tile_raise(tile, r, max);
    tile->state[r].sum += (double)tile->problem->kernels->exp_sum(s, tile->state[r].max, (size_t)count);
}

static void score_panel(kna__tile *tile, size_t keys)
{
    const kna__problem *p = tile->problem;
    size_t d = (size_t)p->d;
    p->kernels->transpose(tile->kt, KNA_TILE_KEYS, tile->panel, d, keys, d);
    p->kernels->gemm(tile->s, KNA_TILE_KEYS, tile->q, d, tile->kt, KNA_TILE_KEYS, (size_t)tile->rows, keys, d, false);
}

static void mix_panel(kna__tile *tile, size_t keys)
{
    const kna__problem *p = tile->problem;
    size_t dv = (size_t)p->dv, mute = (size_t)tile->mute;
    p->kernels->gemm(tile->out + mute * dv, dv, tile->s + mute * KNA_TILE_KEYS, KNA_TILE_KEYS, tile->panel, dv,
                     (size_t)tile->rows - mute, dv, keys, true);
}

void kna__tile_keys(kna__tile *tile, int64_t first, int64_t count)
{
    const kna__problem *p = tile->problem;
    size_t keys = (size_t)count;
    if (kna__mask_forbids_rows(p, tile->kv_head, tile->row, tile->rows, first, count)) {
        return;
    }
    p->kernels->widen[p->k.type](tile->panel, (size_t)p->d, kna__span_at(&p->k, tile->kv_head, first), keys, (size_t)p->d);
    score_panel(tile, keys);
    for (int64_t r = 0; r < tile->rows; r++) {
        soften_row(tile, r, finish_row(tile, r, first, count), count);
    }
    p->kernels->widen[p->v.type](tile->panel, (size_t)p->dv, kna__span_at(&p->v, tile->kv_head, first), keys, (size_t)p->dv);
    mix_panel(tile, keys);
}

static void widen_ids(float *out, const kna__problem *p, const kna_rows *rows, int64_t head, const int32_t *ids, int64_t count)
{
    size_t dim = (size_t)rows->dim;
    for (int64_t i = 0; i < count; i++) {
        p->kernels->widen[rows->type](out + (size_t)i * dim, dim, kna__span_at(rows, head, ids[i]), 1, dim);
    }
}

void kna__tile_ids(kna__tile *tile, const int32_t *ids, int64_t count)
{
    const kna__problem *p = tile->problem;
    widen_ids(tile->panel, p, &p->k, tile->kv_head, ids, count);
    score_panel(tile, (size_t)count);
    for (int64_t r = 0; r < tile->rows; r++) {
        float *s = tile->s + r * KNA_TILE_KEYS;
        if (p->options.softcap > 0) {
            p->kernels->softcap(s, p->options.softcap, (size_t)count);
        }
        soften_row(tile, r, p->kernels->max(s, (size_t)count), count);
    }
    widen_ids(tile->panel, p, &p->v, tile->kv_head, ids, count);
    mix_panel(tile, (size_t)count);
}

void kna__tile_skip(kna__tile *tile, int64_t rows)
{
    tile->row += rows;
    tile->rows -= rows;
    tile->mute = tile->mute > rows ? tile->mute - rows : 0;
    tile->q += rows * tile->problem->d;
    tile->out += rows * tile->problem->dv;
    tile->state += rows;
}

void kna__tile_end(kna__tile *tile)
{
    const kna__problem *p = tile->problem;
    for (int64_t r = 0; r < tile->rows; r++) {
        int64_t row = tile->row + r;
        kna__state_write(p, tile->kv_head * p->g + row % p->g, row / p->g, tile->state[r], tile->out + r * p->dv);
    }
}
