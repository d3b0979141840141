/* strata.c - see strata.h: which units are wanted, whose members they have, means and how far members stray from them. */
#include "strata.h"

enum { UNITS_AT_ONCE = 64 };

bool kna__needs_strata(const kna_attend_options *o)
{
    return (o->method >= KNA_STRATIFIED && o->method <= KNA_CONTROL) || o->bounds == KNA_BOUNDS_CLUSTERS ||
           o->certificate == KNA_CERTIFICATE_DETERMINISTIC ||
           (o->index && o->index->method == KNA_KNN && o->method >= KNA_UNIFORM && o->method < KNA_WINDOW);
}

static size_t cut_all(kna__strata *s, const kna__problem *p, char *base)
{
    kna__cutter cutter = { base, 0 };
    size_t level = (size_t)KNA_STRATA_LEVELS * (size_t)s->cells, all = kna__size_product(level, (size_t)p->h_kv);
    s->formed = kna__cut(&cutter, level, sizeof *s->formed);
    s->count = kna__cut(&cutter, all, sizeof *s->count);
    s->first = kna__cut(&cutter, all, sizeof *s->first);
    s->norm = kna__cut(&cutter, all, sizeof *s->norm);
    s->reach = kna__cut(&cutter, all, sizeof *s->reach);
    s->stray = kna__cut(&cutter, all, sizeof *s->stray);
    s->key = kna__cut(&cutter, kna__size_product(all, (size_t)p->d), sizeof *s->key);
    s->value = kna__cut(&cutter, kna__size_product(all, (size_t)p->dv), sizeof *s->value);
    s->member = kna__cut(&cutter, kna__size_product(all, KNA_BLOCK), sizeof *s->member);
    return cutter.used;
}

/* ---- which units */

static bool is_present(const kna_index *index, int64_t first, int64_t end)
{
    first = first < KNA_FIRST_ROWS && end > KNA_FIRST_ROWS ? KNA_FIRST_ROWS : first;
    return !index || kna__index_has_all(index, first, end);
}

/* Whether a query sees rows first .. end - 1, and may not see all of the segment that they are in. */
static bool is_wanted(const kna__problem *p, const kna_index *index, int64_t first, int64_t end)
{
    int64_t from = first / KNA_SEGMENT * KNA_SEGMENT, to = from + KNA_SEGMENT;
    bool any = p->mask.data || to - from == end - first || !is_present(index, from, to < p->n ? to : p->n);
    for (int64_t query = 0; query < p->m; query++) {
        int64_t lo, hi;
        kna__visible(p, query, &lo, &hi);
        if (lo <= first && hi >= end && (any || lo > from || hi < to)) {
            return true;
        }
    }
    return false;
}

/* ---- members */

static void take_unit(kna__strata *s, const kna__problem *p, const kna__clusters *c, int level, int64_t first)
{
    int32_t ids[KNA_SEGMENT];
    for (int64_t head = 0; head < p->h_kv; head++) {
        int64_t base = (head * KNA_STRATA_LEVELS + level) * s->cells, at = first;
        for (int64_t slot = first / KNA_BLOCK; slot < (first + kna__strata_rows(level)) / KNA_BLOCK; slot++) {
            int64_t count = c->always[kna__cluster_slot(c, head, slot)] ? 0 : kna__cluster_rows(c, head, slot, ids);
            s->first[base + slot] = (int32_t)at;
            s->count[base + slot] = (int32_t)count;
            memcpy(s->member + base * KNA_BLOCK + at, ids, (size_t)count * sizeof *ids);
            at += count;
        }
    }
    s->formed[level * s->cells + first / KNA_BLOCK] = 1;
}

static void take_blocks(kna__strata *s, const kna__problem *p, const kna_index *index)
{
    for (int64_t block = KNA_FIRST_ROWS / KNA_BLOCK; block < s->cells; block++) {
        s->formed[block] = is_present(index, block * KNA_BLOCK, (block + 1) * KNA_BLOCK);
        for (int64_t head = 0; head < p->h_kv && s->formed[block]; head++) {
            int64_t base = head * KNA_STRATA_LEVELS * s->cells;
            s->first[base + block] = (int32_t)(block * KNA_BLOCK);
            s->count[base + block] = KNA_BLOCK;
            for (int32_t i = 0; i < KNA_BLOCK; i++) {
                s->member[(base + block) * KNA_BLOCK + i] = (int32_t)(block * KNA_BLOCK) + i;
            }
        }
    }
}

/* The clusters an index has. */
static void take_index(kna__strata *s, const kna__problem *p, const kna_index *index)
{
    const kna__clusters *c = &index->clusters;
    for (int64_t piece = 0; piece < c->capacity && (piece + 1) * KNA_PIECE <= p->n;) {
        bool merged = c->state[piece] == KNA_PIECE_MERGED;
        int64_t row = piece * KNA_PIECE, rows = merged ? KNA_SEGMENT : KNA_PIECE;
        if (c->state[piece] != KNA_PIECE_OPEN && row + rows <= p->n && is_present(index, row, row + rows)) {
            take_unit(s, p, c, merged ? KNA_STRATA_SEGMENTS : KNA_STRATA_PIECES, row);
        }
        piece += rows / KNA_PIECE;
    }
}

/* Units of one size, formed for this call. */
static int form_level(kna__strata *s, const kna__problem *p, const kna_index *index, kna_index *own, int level)
{
    kna__unit units[UNITS_AT_ONCE];
    int64_t rows = kna__strata_rows(level), count = 0, first = 0;
    for (; first + rows <= p->n || count; first += rows) {
        if (first + rows <= p->n && is_present(index, first, first + rows) && is_wanted(p, index, first, first + rows)) {
            units[count++] = (kna__unit){ first / KNA_PIECE, level == KNA_STRATA_SEGMENTS };
        }
        if (count < UNITS_AT_ONCE && first + rows <= p->n) {
            continue;
        }
        KNA_TRY(kna__clusters_form(p->context, own, &p->k, &p->v, units, count));
        for (int64_t i = 0; i < count; i++) {
            take_unit(s, p, &own->clusters, level, units[i].piece * KNA_PIECE);
        }
        count = 0;
    }
    return KNA_OK;
}

static int form_all(kna__strata *s, const kna__problem *p, const kna_index *index)
{
    kna_index *own = NULL;
    int status = kna_index_new(p->context, &own, KNA_KNN, p->h_kv, p->d, p->dv);
    status = status == KNA_OK ? kna__clusters_reserve(p->context, own, p->n) : status;
    status = status == KNA_OK ? form_level(s, p, index, own, KNA_STRATA_PIECES) : status;
    status = status == KNA_OK ? form_level(s, p, index, own, KNA_STRATA_SEGMENTS) : status;
    kna_index_free(own);
    return status;
}

/* ---- means */

typedef struct measuring {
    kna__strata *s;
    const kna__problem *p;
} measuring;

/* Mean of members' rows, and no less than the largest distance of one from it. */
static float measure_rows(const kna__problem *p, const kna_rows *rows, int64_t head, const int32_t *ids, int32_t count, float *mean)
{
    double sum[KNA_MAX_DIM] = { 0 }, most = 0;
    float x[KNA_MAX_DIM];
    for (int32_t i = 0; i < count; i++) {
        p->kernels->widen[rows->type](x, (size_t)rows->dim, kna__span_at(rows, head, ids[i]), 1, (size_t)rows->dim);
        for (int64_t c = 0; c < rows->dim; c++) {
            sum[c] += (double)x[c];
        }
    }
    for (int64_t c = 0; c < rows->dim; c++) {
        mean[c] = (float)(sum[c] / count);
    }
    for (int32_t i = 0; i < count; i++) {
        double square = 0;
        p->kernels->widen[rows->type](x, (size_t)rows->dim, kna__span_at(rows, head, ids[i]), 1, (size_t)rows->dim);
        for (int64_t c = 0; c < rows->dim; c++) {
            square += ((double)x[c] - (double)mean[c]) * ((double)x[c] - (double)mean[c]);
        }
        most = fmax(most, square);
    }
    return (float)(sqrt(most) * (1 + 1e-6));
}

static void measure_cell(const measuring *job, int64_t head, int64_t at, const int32_t *ids)
{
    const kna__problem *p = job->p;
    kna__strata *s = job->s;
    if (!s->count[at]) {
        return;
    }
    s->reach[at] = measure_rows(p, &p->k, head, ids, s->count[at], s->key + at * p->d);
    s->norm[at] = sqrtf(kna__square(p->kernels, s->key + at * p->d, p->d));
    s->stray[at] = measure_rows(p, &p->v, head, ids, s->count[at], s->value + at * p->dv);
}

/* A segment of one KV head at every level. */
static void measure_task(void *argument, int64_t task, int worker)
{
    const measuring *job = argument;
    const kna__strata *s = job->s;
    int64_t head = task % job->p->h_kv, first = task / job->p->h_kv * (KNA_SEGMENT / KNA_BLOCK);
    int64_t end = first + KNA_SEGMENT / KNA_BLOCK < s->cells ? first + KNA_SEGMENT / KNA_BLOCK : s->cells;
    (void)worker;
    for (int32_t level = 0; level < KNA_STRATA_LEVELS; level++) {
        int64_t base = head * KNA_STRATA_LEVELS * s->cells;
        for (int64_t c = first; c < end; c++) {
            int64_t cell = level * s->cells + c;
            measure_cell(job, head, base + cell, kna__strata_members(s, head, (int32_t)cell));
        }
    }
}

/* ---- life */

void kna__strata_free(kna__strata *s)
{
    if (s->block) {
        kna__release(s->heap, s->block, s->bytes);
    }
    memset(s, 0, sizeof *s);
}

int kna__strata_new(const kna__problem *p, const kna_index *index, kna__strata *s)
{
    int status = KNA_OK;
    memset(s, 0, sizeof *s);
    s->heap = &p->context->heap;
    s->cells = p->n / KNA_BLOCK;
    s->bytes = cut_all(s, p, NULL);
    s->block = kna__allocate(s->heap, s->bytes);
    if (!s->block) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of strata", s->bytes);
    }
    cut_all(s, p, s->block);
    memset(s->formed, 0, (size_t)(KNA_STRATA_LEVELS * s->cells));
    memset(s->count, 0, (size_t)(p->h_kv * KNA_STRATA_LEVELS * s->cells) * sizeof *s->count);
    memset(s->first, 0, (size_t)(p->h_kv * KNA_STRATA_LEVELS * s->cells) * sizeof *s->first);
    take_blocks(s, p, index);
    if (index && index->method == KNA_KNN) {
        take_index(s, p, index);
    } else {
        status = form_all(s, p, index);
    }
    if (status != KNA_OK) {
        kna__strata_free(s);
        return status;
    }
    measuring job = { s, p };
    int64_t segments = (s->cells * KNA_BLOCK + KNA_SEGMENT - 1) / KNA_SEGMENT;
    kna__parallel_for(p->context->threads, segments * p->h_kv, measure_task, &job);
    return KNA_OK;
}
