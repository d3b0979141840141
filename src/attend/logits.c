/* logits.c - from scaled products to logits: soft cap, then mask, then slopes, as llama.cpp's models define them. */
#include "../kernel/half.h"
#include "problem.h"

#include <math.h>

static const char *mask_row(const kna__problem *p, int64_t head, int64_t query)
{
    return (const char *)p->mask.data + head % p->mask.heads * p->mask.head_stride_bytes + query * p->mask.row_stride_bytes;
}

void kna__logits_finish(const kna__problem *p, int64_t head, int64_t query, int64_t first, float *s, int64_t count)
{
    const kna__kernels *kernels = p->kernels;
    if (p->options.softcap != 0) {
        kernels->softcap(s, p->options.softcap, (size_t)count);
    }
    float slope = p->options.slopes ? p->options.slopes[head] : 1.0f;
    if (p->mask.data) {
        const char *row = mask_row(p, head, query);
        if (p->mask.type == KNA_F32) {
            kernels->axpy(s, slope, (const float *)(const void *)row + first, (size_t)count);
        } else {
            kernels->add_f16(s, slope, (const uint16_t *)(const void *)row + first, (size_t)count);
        }
    } else if (p->options.slopes) {
        for (int64_t j = 0; j < count; j++) {
            s[j] += slope * (float)(first + j - (query + p->shift));
        }
    }
}

void kna__logits_seen(const kna__problem *p, int64_t head, int64_t query, int64_t first, float *s, int64_t count)
{
    int64_t lo, hi;
    kna__logits_finish(p, head, query, first, s, count);
    kna__visible(p, query, &lo, &hi);
    kna__forbid(s, 0, lo - first < count ? lo - first : count);
    kna__forbid(s, hi > first ? hi - first : 0, count);
}

void kna__logits_finish_at(const kna__problem *p, int64_t head, int64_t query, const int32_t *ids, float *s, int64_t count)
{
    for (int64_t j = 0; j < count; j++) {
        kna__logits_finish(p, head, query, ids[j], s + j, 1);
    }
}

static bool all_minus_infinity_f16(const uint16_t *x, int64_t count)
{
    for (int64_t j = 0; j < count; j++) {
        if (x[j] != 0xfc00) {
            return false;
        }
    }
    return true;
}

static bool all_minus_infinity_f32(const float *x, int64_t count)
{
    for (int64_t j = 0; j < count; j++) {
        if (x[j] != -INFINITY) {
            return false;
        }
    }
    return true;
}

bool kna__mask_forbids(const kna__problem *p, int64_t head, int64_t query, int64_t first, int64_t count)
{
    if (!p->mask.data) {
        return false;
    }
    const char *row = mask_row(p, head, query);
    return p->mask.type == KNA_F32 ? all_minus_infinity_f32((const float *)(const void *)row + first, count)
                                   : all_minus_infinity_f16((const uint16_t *)(const void *)row + first, count);
}

bool kna__mask_forbids_rows(const kna__problem *p, int64_t kv_head, int64_t row, int64_t rows, int64_t first, int64_t count)
{
    if (!p->mask.data) {
        return false;
    }
    int64_t step = p->mask.heads == 1 ? p->g : 1;
    for (int64_t r = row; r < row + rows; r += step) {
        if (!kna__mask_forbids(p, kv_head * p->g + r % p->g, r / p->g, first, count)) {
            return false;
        }
    }
    return true;
}

/* Without early exit, so that the compiler makes vectors of it. */
static int64_t count_not(const uint16_t *x, int64_t count, uint16_t value)
{
    int64_t differing = 0;
    for (int64_t first = 0; first < count; first += 4096) {
        int32_t some = 0;
        int64_t end = count - first < 4096 ? count : first + 4096;
        for (int64_t j = first; j < end; j++) {
            some += x[j] != value;
        }
        differing += some;
    }
    return differing;
}

bool kna__mask_is_zero(const kna__problem *p, int64_t head, int64_t query, int64_t first, int64_t count)
{
    if (!p->mask.data) {
        return true;
    }
    const char *row = mask_row(p, head, query);
    if (p->mask.type == KNA_F16) {
        return count_not((const uint16_t *)(const void *)row + first, count, 0) == 0;
    }
    for (int64_t j = first; j < first + count; j++) {
        if (((const float *)(const void *)row)[j] != 0) {
            return false;
        }
    }
    return true;
}

int64_t kna__mask_next(const kna__problem *p, int64_t head, int64_t query, int64_t key, int64_t end, bool allowed)
{
    const char *row = p->mask.data ? mask_row(p, head, query) : NULL;
    if (!row) {
        return allowed && key < end ? key : end;
    }
    for (; key < end; key++) {
        bool forbidden = p->mask.type == KNA_F32 ? ((const float *)(const void *)row)[key] == -INFINITY
                                                 : ((const uint16_t *)(const void *)row)[key] == 0xfc00;
        if (forbidden != allowed) {
            return key;
        }
    }
    return end;
}

int64_t kna__mask_allows(const kna__problem *p, int64_t head, int64_t query, int64_t lo, int64_t hi)
{
    if (!p->mask.data) {
        return hi - lo;
    }
    const char *row = mask_row(p, head, query);
    if (p->mask.type == KNA_F16) {
        return count_not((const uint16_t *)(const void *)row + lo, hi - lo, 0xfc00);
    }
    int64_t allowed = 0;
    for (int64_t j = lo; j < hi; j++) {
        allowed += ((const float *)(const void *)row)[j] != -INFINITY;
    }
    return allowed;
}

void kna__queries_read(const kna__problem *p, float *out, int64_t kv_head, int64_t row, int64_t count)
{
    for (int64_t r = 0; r < count; r++) {
        int64_t query = (row + r) / p->g, head = kv_head * p->g + (row + r) % p->g;
        p->kernels->widen[p->q.type](out + r * p->d, (size_t)p->d, kna__span_at(&p->q, head, query), 1, (size_t)p->d);
    }
    p->kernels->scale(out, p->scale, (size_t)(count * p->d));
}
