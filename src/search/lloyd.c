/*
 * lloyd.c - centers of lists by Lloyd's algorithm on a sample, products by int8.
 *
 * Which center is nearest to a row is told by int8 products, four times as fast as f32 where there is VNNI: a row near the border of two
 * lists may go to the other one, which costs a search nothing, for every row is in one list all the same.
 *
 * Sums are taken in the order of rows, by one task for each list, so the centers do not depend on the number of threads.
 */
#include "lloyd.h"

#include <math.h>

enum { STEPS = 6, ASSIGN_ROWS = 8, TASK_ROWS = 512, FIND = 64 };
#define NEVER -1e30f

/* ---- packed centers */

static void cut_packed(kna__packed *p, kna__cutter *cutter)
{
    p->codes = kna__cut(cutter, kna__size_product((size_t)p->blocks, (size_t)p->d4), 4 * KNA_BLOCK);
    p->steps = kna__cut(cutter, (size_t)p->blocks * KNA_BLOCK, sizeof(float));
    p->bias = kna__cut(cutter, (size_t)p->blocks * KNA_BLOCK, sizeof(float));
}

int kna__packed_make(kna_context *context, kna__packed *packed, const float *centers, uint64_t lists, uint64_t dim)
{
    kna__cutter count = { NULL, 0 };
    *packed = (kna__packed){ .lists = lists, .blocks = (lists + KNA_BLOCK - 1) / KNA_BLOCK, .d4 = (dim + 3) / 4, .dim = dim };
    cut_packed(packed, &count);
    size_t row_bytes = (size_t)dim;
    int8_t *row = kna__allocate(&context->heap, row_bytes);
    char *base = row ? kna__allocate(&context->heap, count.used) : NULL;
    if (!base) {
        kna__release(&context->heap, row, row_bytes);
        *packed = (kna__packed){ .codes = NULL };
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory for %llu centers", (unsigned long long)lists);
    }
    cut_packed(packed, &(kna__cutter){ base, 0 });
    packed->bytes = count.used;
    memset(packed->codes, 128, (size_t)(packed->blocks * packed->d4) * 4 * KNA_BLOCK);
    for (uint64_t i = 0; i < packed->blocks * KNA_BLOCK; i++) {
        packed->steps[i] = 0;
        packed->bias[i] = i < lists ? 0 : NEVER;
        if (i < lists) {
            uint8_t *block = packed->codes + i / KNA_BLOCK * packed->d4 * 4 * KNA_BLOCK;
            packed->steps[i] = context->kernels->quantize(row, centers + i * dim, (size_t)dim);
            kna__pack_row(block, (size_t)(i % KNA_BLOCK), row, (size_t)dim, (size_t)packed->d4);
        }
    }
    kna__release(&context->heap, row, row_bytes);
    return KNA_OK;
}

void kna__packed_free(kna_context *context, kna__packed *packed)
{
    kna__release(&context->heap, packed->codes, packed->bytes);
    *packed = (kna__packed){ .codes = NULL };
}

void kna__packed_by_distance(const kna__kernels *kernels, kna__packed *packed, const float *centers)
{
    for (uint64_t i = 0; i < packed->lists; i++) {
        packed->bias[i] = -0.5f * kna__square(kernels, centers + i * packed->dim, (int64_t)packed->dim);
    }
}

/* ---- the nearest */

typedef struct assign_room {
    float *sums; /* (ASSIGN_ROWS, blocks * 16) */
    int8_t *codes;
    float *steps;
} assign_room;

static void cut_room(assign_room *room, const kna__packed *p, kna__cutter *cutter)
{
    room->sums = kna__cut(cutter, ASSIGN_ROWS * (size_t)p->blocks * KNA_BLOCK, sizeof(float));
    room->codes = kna__cut(cutter, ASSIGN_ROWS * (size_t)p->d4, 4);
    room->steps = kna__cut(cutter, ASSIGN_ROWS, sizeof(float));
}

size_t kna__assign_room(const kna__packed *packed)
{
    kna__cutter count = { NULL, 0 };
    assign_room room;
    cut_room(&room, packed, &count);
    return count.used;
}

/* Where the largest is, the first of several; below n whatever numbers there are. */
static uint64_t place_of_largest(const kna__kernels *kernels, const float *x, uint64_t n)
{
    float most = kernels->max(x, (size_t)n);
    uint64_t at = 0;
    while (n - at > FIND && kernels->max(x + at, FIND) < most) {
        at += FIND;
    }
    while (at + 1 < n && x[at] < most) {
        at++;
    }
    return at;
}

void kna__assign(const kna__kernels *kernels, uint32_t *to, const kna__packed *p, const float *x, uint64_t n, void *memory)
{
    assign_room room;
    size_t all = (size_t)p->blocks * KNA_BLOCK, stride = (size_t)p->d4 * 4;
    cut_room(&room, p, &(kna__cutter){ memory, 0 });
    memset(room.codes, 0, ASSIGN_ROWS * stride);
    for (uint64_t at = 0; at < n; at += ASSIGN_ROWS) {
        size_t rows = n - at < ASSIGN_ROWS ? (size_t)(n - at) : ASSIGN_ROWS;
        for (size_t r = 0; r < rows; r++) {
            room.steps[r] = kernels->quantize(room.codes + r * stride, x + (at + r) * p->dim, (size_t)p->dim);
        }
        kernels->scan(room.sums, all, room.codes, stride, room.steps, rows, p->codes, p->steps, (size_t)p->blocks, (size_t)p->d4);
        for (size_t r = 0; r < rows; r++) {
            kernels->axpy(room.sums + r * all, 1.0f, p->bias, all);
            to[at + r] = (uint32_t)place_of_largest(kernels, room.sums + r * all, p->lists);
        }
    }
}

/* ---- Lloyd's algorithm */

typedef struct lloyd {
    kna_context *context;
    float *centers;
    const float *x;
    uint64_t lists, n, dim;
    kna__packed packed;
    uint32_t *to, *order;
    uint64_t *first;
    char *rooms;
    size_t room_bytes;
    uint64_t step;
} lloyd;

void kna__sort_by_list(uint64_t *first, uint32_t *order, const uint32_t *to, uint64_t n, uint64_t lists)
{
    memset(first, 0, (size_t)(lists + 1) * sizeof *first);
    for (uint64_t i = 0; i < n; i++) {
        first[to[i]]++;
    }
    uint64_t sum = 0;
    for (uint64_t l = 0; l <= lists; l++) { /* the place after the last of each list */
        sum += l < lists ? first[l] : 0;
        first[l] = sum;
    }
    for (uint64_t i = n; i-- > 0;) {
        order[--first[to[i]]] = (uint32_t)i;
    }
}

static void assign_some(void *argument, int64_t task, int worker)
{
    lloyd *l = argument;
    uint64_t at = (uint64_t)task * TASK_ROWS, rows = l->n - at < TASK_ROWS ? l->n - at : TASK_ROWS;
    kna__assign(l->context->kernels, l->to + at, &l->packed, l->x + at * l->dim, rows, l->rooms + (size_t)worker * l->room_bytes);
}

/* A list nobody is in takes a row of the sample for its center. */
static void mean_of_list(void *argument, int64_t list, int worker)
{
    (void)worker;
    const lloyd *l = argument;
    float *center = l->centers + (uint64_t)list * l->dim;
    uint64_t from = l->first[list], to = l->first[list + 1];
    if (from == to) {
        double u = kna__uniform(0, l->step, (uint64_t)list);
        memcpy(center, l->x + (uint64_t)(u * (double)l->n) * l->dim, (size_t)l->dim * sizeof *center);
        return;
    }
    memset(center, 0, (size_t)l->dim * sizeof *center);
    for (uint64_t i = from; i < to; i++) {
        l->context->kernels->axpy(center, 1.0f, l->x + l->order[i] * l->dim, (size_t)l->dim);
    }
    l->context->kernels->scale(center, 1.0f / (float)(to - from), (size_t)l->dim);
}

static int run_lloyd(lloyd *l)
{
    for (l->step = 0; l->step < STEPS; l->step++) {
        KNA_TRY(kna__packed_make(l->context, &l->packed, l->centers, l->lists, l->dim));
        kna__packed_by_distance(l->context->kernels, &l->packed, l->centers);
        kna__parallel_for(l->context->threads, (int64_t)((l->n + TASK_ROWS - 1) / TASK_ROWS), assign_some, l);
        kna__sort_by_list(l->first, l->order, l->to, l->n, l->lists);
        kna__parallel_for(l->context->threads, (int64_t)l->lists, mean_of_list, l);
        kna__packed_free(l->context, &l->packed);
    }
    return KNA_OK;
}

static void cut_lloyd(lloyd *l, kna__cutter *cutter)
{
    l->to = kna__cut(cutter, (size_t)l->n, sizeof *l->to);
    l->order = kna__cut(cutter, (size_t)l->n, sizeof *l->order);
    l->first = kna__cut(cutter, (size_t)l->lists + 1, sizeof *l->first);
    l->rooms = kna__cut(cutter, (size_t)l->context->threads, l->room_bytes);
}

int kna__lloyd(kna_context *context, float *centers, uint64_t lists, const float *x, uint64_t n, uint64_t dim)
{
    lloyd l = { .context = context, .centers = centers, .x = x, .lists = lists, .n = n, .dim = dim };
    kna__packed sizes = { .lists = lists, .blocks = (lists + KNA_BLOCK - 1) / KNA_BLOCK, .d4 = (dim + 3) / 4, .dim = dim };
    kna__cutter count = { NULL, 0 };
    l.room_bytes = (kna__assign_room(&sizes) + KNA_ALIGNMENT - 1) / KNA_ALIGNMENT * KNA_ALIGNMENT;
    cut_lloyd(&l, &count);
    char *base = kna__allocate(&context->heap, count.used);
    if (!base) {
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory for a sample of %llu rows", (unsigned long long)n);
    }
    cut_lloyd(&l, &(kna__cutter){ base, 0 });
    for (uint64_t c = 0; c < lists; c++) { /* rows evenly spread */
        memcpy(centers + c * dim, x + c * n / lists * dim, (size_t)dim * sizeof *centers);
    }
    int status = run_lloyd(&l);
    kna__release(&context->heap, base, count.used);
    return status;
}
