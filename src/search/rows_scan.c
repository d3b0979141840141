/* rows_scan.c - rows as they are, a section of row numbers at a time: those that no index covers, or that are too few for one. */
#include "search.h"

#include <float.h>
#include <math.h>

/* Rows of a section that may be found, as f32, side by side whatever documents they are of. Returns how many. */
static uint64_t read_rows(kna__search_job *job, uint64_t first, uint64_t end, kna__search_room *room)
{
    const kna__rows *rows = job->rows;
    uint64_t count = 0, low = 0, high = rows->count;
    while (low < high) { /* the first run that ends above the section's begin */
        uint64_t middle = (low + high) / 2;
        if (rows->runs[middle].first + rows->runs[middle].rows <= first) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    for (; low < rows->count && rows->runs[low].first < end; low++) {
        const kna__run *run = &rows->runs[low];
        uint64_t from = run->first > first ? run->first : first, to = run->first + run->rows;
        to = to < end ? to : end;
        kna__span span = kna__rows_at(rows, run, from, to - from);
        if (!span.data) {
            __atomic_store_n(&job->bad_row, from + 1, __ATOMIC_RELAXED);
            continue;
        }
        job->kernels->widen[rows->type](room->rows + count * job->dim, (size_t)job->dim, span, (size_t)(to - from),
                                        (size_t)job->dim);
        for (uint64_t row = from; row < to; row++) {
            room->row_ids[count++] = (uint32_t)row;
        }
    }
    return count;
}

static bool is_zero(const float *x, uint64_t d)
{
    for (uint64_t c = 0; c < d; c++) {
        if (x[c] != 0) {
            return false;
        }
    }
    return true;
}

/* Numbers of a row as those of a list. One whose square f32 does not hold, or holds NaN, is scored in double, whatever its sums. */
static void measure(const kna__search_job *job, kna__search_room *room, uint64_t i)
{
    const float *x = room->rows + i * job->dim;
    float square = kna__square(job->kernels, x, (int64_t)job->dim);
    bool is_large = !(square < 1e36f), is_small = square < 1e-30f;
    bool is_loose = is_large || (is_small && job->metric == KNA_COSINE && !is_zero(x, job->dim));
    float length = is_loose ? 0 : sqrtf(square);
    room->errors[i] = is_loose ? INFINITY : 0;
    room->extra[i] = job->metric == KNA_L2 && !is_loose ? square : 0;
    room->inverse[i] = length > 0 ? 1 / length : 0;
    room->norms[i] = job->metric == KNA_COSINE ? 1 : 1.01f * length + 1e-15f; /* f32 may lose that at 65,536 columns */
}

static void forget_loose(const kna__search_room *room, float *out, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        out[i] = room->errors[i] > 0 ? 0 : out[i];
    }
}

static void finish(const kna__search_job *job, const kna__search_room *room, float *out, uint64_t count, bool has_loose)
{
    if (job->metric == KNA_COSINE) {
        for (uint64_t i = 0; i < count; i++) {
            out[i] *= room->inverse[i];
        }
    }
    if (job->metric == KNA_L2) {
        job->kernels->axpy(out, -1.0f, room->extra, (size_t)count);
    }
    if (has_loose) {
        forget_loose(room, out, count);
    }
}

static void look_through(kna__search_job *job, const kna__list_view *view, bool has_loose, int worker)
{
    kna__search_room *room = &job->rooms[worker];
    kna__span span = { (const char *)room->rows, (size_t)job->dim * sizeof(float), NULL };
    for (uint64_t from = 0; from < job->count; from += KNA_SECTION_QUERIES) {
        uint64_t count = job->count - from < KNA_SECTION_QUERIES ? job->count - from : KNA_SECTION_QUERIES;
        job->kernels->dot[KNA_F32](room->out, KNA_SECTION_ROWS, job->scan_q + from * job->dim, (size_t)job->dim, (size_t)count,
                                   span, (size_t)view->rows, (size_t)job->dim);
        for (uint64_t i = 0; i < count; i++) {
            float *out = room->out + i * KNA_SECTION_ROWS;
            const kna__query *q = &job->queries[from + i];
            kna__look look = { (uint32_t)(from + i), job->metric == KNA_L2 ? (float)-q->square : 0, 0 };
            finish(job, room, out, view->rows, has_loose);
            kna__sieve(job, view, &look, 0, view->rows, out, worker);
        }
    }
}

void kna__scan_rows(void *argument, int64_t section, int worker)
{
    kna__search_job *job = argument;
    kna__search_room *room = &job->rooms[worker];
    uint64_t first = job->covered + (uint64_t)section * job->row_section, end = first + job->row_section;
    uint64_t count = read_rows(job, first, end < job->rows->seen ? end : job->rows->seen, room);
    for (uint64_t i = 0; i < count; i++) {
        measure(job, room, i);
    }
    if (!count) {
        return;
    }
    kna__list_view view = { .rows = count,
                            .ids = room->row_ids,
                            .extra = room->extra,
                            .errors = room->errors,
                            .norms = room->norms,
                            .extra_most = job->kernels->max(room->extra, (size_t)count),
                            .error_most = job->kernels->max(room->errors, (size_t)count),
                            .norm_most = job->kernels->max(room->norms, (size_t)count),
                            .rounding = (float)(2 * job->dim + 32) * 0x1p-24f };
    room->scanned += count * job->count;
    look_through(job, &view, view.error_most > 0, worker);
}
