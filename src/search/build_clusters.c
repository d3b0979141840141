/*
 * build_clusters.c - an index of clusters: rows in lists of rows that lie close together, each about its own center.
 *
 * For inner products rows are clustered as queries see them (turn.h), where a sample of queries is given; for cosine, at length 1.
 */
#include "clusters.h"
#include "turn.h"

#include <math.h>

enum { SAMPLE_OF_LIST = 32, TASK_ROWS = 512, LISTS_OF_ROOT = 4, LEAST_ROWS = 32, MOST_LISTS = 1 << 16 };
#define TOO_LARGE 1e36

typedef struct build {
    kna_context *context;
    const kna__rows *rows;
    int metric;
    uint64_t dim, count, lists, samples;
    uint32_t *ids, *to, *order; /* rows that can be in a list; the list of each; places in ids by lists */
    uint64_t *first;            /* (lists + 1) */
    float *strays;              /* (count) squared distance from the center, turned */
    float *turn;                /* (dim, dim); NULL: rows as they are */
    float *sample;              /* (samples, dim) turned */
    float *centers;             /* (lists, dim) */
    float *spreads;             /* (lists) */
    kna__packed packed;
    char *rooms;
    size_t room_bytes;
    uint64_t bad; /* atomic: one past the number of a row that is not as it was written */
} build;

/* A worker's own, for TASK_ROWS rows. */
typedef struct build_room {
    float *x, *y; /* as they are, turned */
    uint32_t *ids;
    void *assign;
} build_room;

static build_room cut_room(const build *b, const kna__packed *sizes, kna__cutter *cutter)
{
    size_t numbers = kna__size_product(TASK_ROWS, (size_t)b->dim);
    build_room room;
    room.x = kna__cut(cutter, b->turn ? numbers : 0, sizeof(float));
    room.y = kna__cut(cutter, numbers, sizeof(float));
    room.ids = kna__cut(cutter, TASK_ROWS, sizeof(uint32_t));
    room.assign = kna__cut(cutter, kna__assign_room(sizes), 1);
    return room;
}

static build_room room_of(const build *b, int worker)
{
    return cut_room(b, &b->packed, &(kna__cutter){ b->rooms + (size_t)worker * b->room_bytes, 0 });
}

/* ---- rows as they are clustered */

/* For cosine at length 1; zeros where it is too large for sums. */
static void read_row(build *b, uint32_t id, float *x)
{
    double square = 0;
    if (kna__rows_read(b->rows, id, x) != KNA_OK) {
        __atomic_store_n(&b->bad, (uint64_t)id + 1, __ATOMIC_RELAXED);
        memset(x, 0, (size_t)b->dim * sizeof *x);
        return;
    }
    for (uint64_t c = 0; c < b->dim; c++) {
        square += (double)x[c] * (double)x[c];
    }
    if (!(square < TOO_LARGE)) {
        memset(x, 0, (size_t)b->dim * sizeof *x);
    } else if (b->metric == KNA_COSINE && square > 0) {
        b->context->kernels->scale(x, (float)(1 / sqrt(square)), (size_t)b->dim);
    }
}

/* Into out (count, dim); count at most TASK_ROWS. */
static void read_rows(build *b, float *out, const uint32_t *ids, uint64_t count, const build_room *room)
{
    size_t d = (size_t)b->dim;
    float *to = b->turn ? room->x : out;
    for (uint64_t i = 0; i < count; i++) {
        read_row(b, ids[i], to + i * d);
    }
    if (b->turn) {
        b->context->kernels->gemm(out, d, to, d, b->turn, d, (size_t)count, d, d, false);
    }
}

static uint64_t tasks_of(uint64_t rows)
{
    return (rows + TASK_ROWS - 1) / TASK_ROWS;
}

/* ---- steps */

static void read_sample(void *argument, int64_t task, int worker)
{
    build *b = argument;
    build_room room = room_of(b, worker);
    uint64_t at = (uint64_t)task * TASK_ROWS, count = b->samples - at < TASK_ROWS ? b->samples - at : TASK_ROWS;
    for (uint64_t i = 0; i < count; i++) { /* evenly spread */
        room.ids[i] = b->ids[(uint64_t)((double)(at + i) * (double)b->count / (double)b->samples)];
    }
    read_rows(b, b->sample + at * b->dim, room.ids, count, &room);
}

static void assign_rows(void *argument, int64_t task, int worker)
{
    build *b = argument;
    build_room room = room_of(b, worker);
    uint64_t at = (uint64_t)task * TASK_ROWS, count = b->count - at < TASK_ROWS ? b->count - at : TASK_ROWS;
    read_rows(b, room.y, b->ids + at, count, &room);
    kna__assign(b->context->kernels, b->to + at, &b->packed, room.y, count, room.assign);
    for (uint64_t i = 0; i < count; i++) {
        float *away = room.y + i * b->dim;
        b->context->kernels->axpy(away, -1.0f, b->centers + (uint64_t)b->to[at + i] * b->dim, (size_t)b->dim);
        b->strays[at + i] = kna__square(b->context->kernels, away, (int64_t)b->dim);
    }
}

/* How far a list's scores usually are from its center's, for a query of length 1. */
static float spread_of(const build *b, uint64_t list)
{
    double sum = 0;
    for (uint64_t i = b->first[list]; i < b->first[list + 1]; i++) {
        sum += (double)b->strays[b->order[i]];
    }
    double rows = (double)(b->first[list + 1] - b->first[list]);
    return rows > 0 && sum < TOO_LARGE ? (float)sqrt(sum / rows / (double)b->dim) : 0;
}

/* Lists nobody is in go; their numbers close up. */
static void close_up(build *b)
{
    uint64_t kept = 0;
    for (uint64_t l = 0; l < b->lists; l++) {
        if (b->first[l] == b->first[l + 1]) {
            continue;
        }
        b->spreads[kept] = spread_of(b, l);
        memmove(b->centers + kept * b->dim, b->centers + l * b->dim, (size_t)b->dim * sizeof *b->centers);
        b->first[kept++] = b->first[l];
    }
    b->first[kept] = b->count;
    b->lists = kept;
    for (uint64_t l = 0; l < kept; l++) {
        for (uint64_t i = b->first[l]; i < b->first[l + 1]; i++) {
            b->to[b->order[i]] = (uint32_t)l;
        }
    }
}

static int bad_row(const build *b)
{
    const kna__run *run = b->bad ? kna__rows_run(b->rows, b->bad - 1) : NULL;
    return run ? kna__rows_damaged(b->rows, run) : KNA_OK;
}

static int find_centers(build *b)
{
    kna_context *context = b->context;
    kna__parallel_for(context->threads, (int64_t)tasks_of(b->samples), read_sample, b);
    KNA_TRY(bad_row(b));
    return kna__lloyd(context, b->centers, b->lists, b->sample, b->samples, b->dim);
}

static int fill_lists(build *b)
{
    kna_context *context = b->context;
    KNA_TRY(kna__packed_make(context, &b->packed, b->centers, b->lists, b->dim));
    kna__packed_by_distance(context->kernels, &b->packed, b->centers);
    kna__parallel_for(context->threads, (int64_t)tasks_of(b->count), assign_rows, b);
    kna__packed_free(context, &b->packed);
    KNA_TRY(bad_row(b));
    kna__sort_by_list(b->first, b->order, b->to, b->count, b->lists);
    close_up(b);
    for (uint64_t l = 0; l < b->lists && b->turn; l++) {
        kna__turn_back(b->centers + l * b->dim, b->turn, b->dim);
    }
    return KNA_OK;
}

static int write_lists(build *b, kna__index_writer *writer)
{
    for (uint64_t l = 0; l < b->lists; l++) {
        uint64_t rows = b->first[l + 1] - b->first[l];
        uint32_t *ids = b->order + b->first[l];
        for (uint64_t i = 0; i < rows; i++) { /* places become numbers; ascending as before */
            ids[i] = b->ids[ids[i]];
        }
        KNA_TRY(kna__index_put_list(writer, ids, rows));
        writer->table[l].spread = b->spreads[l];
    }
    return kna__index_finish(writer);
}

static int write_index(build *b, const kna_store_index_options *options)
{
    kna__index_writer writer;
    kna__index_head head = { .family = (uint32_t)b->rows->family,
                             .kind = KNA_SEARCH_CLUSTERS,
                             .metric = (uint32_t)b->metric,
                             .covered = b->rows->seen,
                             .lists = b->lists,
                             .centers = b->lists };
    kna__aims_data data = { b->rows, b->ids, b->count, b->to, b->centers, b->spreads, b->lists, b->metric };
    KNA_TRY(kna__measure_aims(b->context, &head, &data, options->queries));
    int status = kna__index_begin(&writer, b->rows, &head, b->centers);
    status = status == KNA_OK ? write_lists(b, &writer) : status;
    kna__index_abandon(&writer);
    return status;
}

/* ---- memory */

static uint64_t lists_for(uint64_t rows, int64_t wanted)
{
    uint64_t lists = wanted > 0 ? (uint64_t)wanted : (uint64_t)(LISTS_OF_ROOT * sqrt((double)rows));
    uint64_t most = rows / LEAST_ROWS < MOST_LISTS ? rows / LEAST_ROWS : MOST_LISTS;
    lists = lists < most ? lists : most;
    return lists ? lists : 1;
}

static void cut_build(build *b, kna__cutter *cutter)
{
    kna__packed sizes = {
        .lists = b->lists, .blocks = (b->lists + KNA_BLOCK - 1) / KNA_BLOCK, .d4 = (b->dim + 3) / 4, .dim = b->dim
    };
    kna__cutter room = { NULL, 0 };
    cut_room(b, &sizes, &room);
    b->room_bytes = (room.used + KNA_ALIGNMENT - 1) / KNA_ALIGNMENT * KNA_ALIGNMENT;
    b->to = kna__cut(cutter, (size_t)b->count, sizeof *b->to);
    b->order = kna__cut(cutter, (size_t)b->count, sizeof *b->order);
    b->strays = kna__cut(cutter, (size_t)b->count, sizeof *b->strays);
    b->first = kna__cut(cutter, (size_t)b->lists + 1, sizeof *b->first);
    b->spreads = kna__cut(cutter, (size_t)b->lists, sizeof *b->spreads);
    b->centers = kna__cut(cutter, kna__size_product((size_t)b->lists, (size_t)b->dim), sizeof *b->centers);
    b->sample = kna__cut(cutter, kna__size_product((size_t)b->samples, (size_t)b->dim), sizeof *b->sample);
    b->rooms = kna__cut(cutter, (size_t)b->context->threads, b->room_bytes);
}

static int build_with(build *b, const kna_store_index_options *options)
{
    KNA_TRY(find_centers(b));
    KNA_TRY(fill_lists(b));
    return write_index(b, options);
}

int kna__build_clusters(const kna__rows *rows, const kna_store_index_options *options, uint32_t *ids, uint64_t count, float *turn)
{
    kna_context *context = rows->store->context;
    build b = {
        .context = context, .rows = rows, .metric = options->metric, .dim = rows->dim, .count = count, .ids = ids, .turn = turn
    };
    kna__cutter size = { NULL, 0 };
    b.lists = lists_for(count, options->lists);
    b.samples = SAMPLE_OF_LIST * b.lists < count ? SAMPLE_OF_LIST * b.lists : count;
    if (!count) {
        b.lists = 0;
    }
    cut_build(&b, &size);
    char *base = kna__allocate(&context->heap, size.used);
    if (!base) {
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory for %llu rows in %llu lists", (unsigned long long)count,
                        (unsigned long long)b.lists);
    }
    cut_build(&b, &(kna__cutter){ base, 0 });
    int status = build_with(&b, options);
    kna__release(&context->heap, base, size.used);
    return status;
}
