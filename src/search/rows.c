/* rows.c - which rows of a family may be found, where they lie, and what they are. */
#include "search.h"

#include <math.h>

int kna__rows_init(kna__rows *rows, kna_store *store, int family)
{
    kna_family of;
    *rows = (kna__rows){ .store = store, .family = family };
    KNA_TRY(kna__store_status(store));
    KNA_TRY(kna_store_family(store, family, &of));
    if (of.type == KNA_BYTES) {
        return KNA_FAIL(store->context, KNA_ETYPE, "search: family %s holds bytes, not numbers", of.name);
    }
    rows->type = (uint32_t)of.type;
    rows->dim = (uint64_t)of.dim;
    return KNA_OK;
}

static void free_bits(kna__rows *rows)
{
    kna__release(&rows->store->context->heap, rows->bits, rows->bits_bytes);
    rows->bits = NULL;
    rows->bits_bytes = 0;
}

void kna__rows_free(kna__rows *rows)
{
    if (rows->store) {
        free_bits(rows);
        kna__release(&rows->store->context->heap, rows->runs, (size_t)rows->room * sizeof *rows->runs);
    }
    rows->runs = NULL;
    rows->count = rows->room = rows->there = rows->seen = 0;
}

static void set_bits(uint64_t *bits, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count;) {
        uint64_t left = first + count - i, here = 64 - i % 64;
        here = here < left ? here : left;
        uint64_t mask = here == 64 ? ~UINT64_C(0) : ((UINT64_C(1) << here) - 1) << i % 64;
        bits[i / 64] |= mask;
        i += here;
    }
}

static int make_room(kna__rows *rows, uint64_t parts)
{
    kna_context *context = rows->store->context;
    size_t bytes = (size_t)(rows->seen / 64 + 1) * sizeof *rows->bits;
    if (parts > rows->room) {
        kna__release(&context->heap, rows->runs, (size_t)rows->room * sizeof *rows->runs);
        rows->runs = kna__allocate(&context->heap, kna__size_product((size_t)parts, sizeof *rows->runs));
        rows->room = rows->runs ? parts : 0;
    }
    free_bits(rows);
    rows->bits = kna__allocate(&context->heap, bytes);
    rows->bits_bytes = rows->bits ? bytes : 0;
    if (!rows->bits || (parts && !rows->runs)) {
        return KNA_FAIL(context, KNA_ENOMEM, "search: out of memory for tables of %llu documents", (unsigned long long)parts);
    }
    memset(rows->bits, 0, bytes);
    return KNA_OK;
}

int kna__rows_fill(kna__rows *rows, int (*keep)(void *user, const kna_document *document), void *user)
{
    kna_store *s = rows->store;
    KNA_TRY(kna__store_status(s));
    const kna__held_family *family = kna__list_at(&s->families, (uint64_t)rows->family);
    rows->seen = family->visible_rows;
    rows->count = rows->there = 0;
    KNA_TRY(make_room(rows, family->visible_parts));
    for (uint64_t i = 0; i < family->visible_parts; i++) {
        uint64_t at = *(uint64_t *)kna__list_at(&family->parts, i);
        const kna__held_part *held = kna__list_at(&s->parts, at);
        const kna__entry *entry = kna__list_at(&s->entries, held->entry);
        kna_document document;
        if (entry->removed || !held->part.rows) {
            continue;
        }
        if (keep) {
            KNA_TRY(kna_store_document(s, (int64_t)entry->id, &document));
            if (!keep(user, &document)) {
                continue;
            }
        }
        rows->runs[rows->count++] = (kna__run){ held->part.first_row, held->part.rows, at };
        rows->there += held->part.rows;
        set_bits(rows->bits, held->part.first_row, held->part.rows);
    }
    return KNA_OK;
}

const kna__run *kna__rows_run(const kna__rows *rows, uint64_t row)
{
    uint64_t low = 0, high = rows->count;
    while (low < high) { /* the first that ends above the row */
        uint64_t middle = (low + high) / 2;
        if (rows->runs[middle].first + rows->runs[middle].rows <= row) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < rows->count && rows->runs[low].first <= row ? &rows->runs[low] : NULL;
}

kna__span kna__rows_at(const kna__rows *rows, const kna__run *run, uint64_t first, uint64_t count)
{
    const kna__held_part *held = kna__list_at(&rows->store->parts, run->part);
    uint64_t stride = kna__stored_row_bytes(rows->type, rows->dim), size, scales_at, at = first - run->first;
    kna__span span = { NULL, (size_t)stride, NULL };
    (void)kna__part_size(&size, &scales_at, rows->type, rows->dim, held->part.rows);
    const unsigned char *data = kna__part_bytes(rows->store, held, at * stride, count * stride);
    if (data && rows->type == KNA_I8) {
        const unsigned char *scales = kna__part_bytes(rows->store, held, scales_at + at * sizeof(float), count * sizeof(float));
        span.scales = (const float *)(const void *)scales;
        data = scales ? data : NULL;
    }
    span.data = (const char *)data;
    return span;
}

int kna__rows_damaged(const kna__rows *rows, const kna__run *run)
{
    const unsigned char *bytes;
    KNA_TRY(kna__part_rows(rows->store, kna__list_at(&rows->store->parts, run->part), &bytes));
    return KNA_FAIL(rows->store->context, KNA_EIO,
                    "rows of family %d, from %llu on: reading them failed, and now succeeds; try again", rows->family,
                    (unsigned long long)run->first);
}

/* *span without data: it is not as written. */
static int find_row(const kna__rows *rows, uint64_t row, kna__span *span)
{
    const kna__run *run = kna__rows_run(rows, row);
    if (!run) {
        return KNA_ENONE;
    }
    *span = kna__rows_at(rows, run, row, 1);
    return span->data ? KNA_OK : KNA_EDAMAGED;
}

int kna__rows_take(const kna__rows *rows, uint64_t row, float *out)
{
    kna__span span;
    KNA_TRY(find_row(rows, row, &span));
    rows->store->context->kernels->widen[rows->type](out, (size_t)rows->dim, span, 1, (size_t)rows->dim);
    return KNA_OK;
}

int kna__rows_read(const kna__rows *rows, uint64_t row, float *out)
{
    kna__span span;
    KNA_TRY(find_row(rows, row, &span));
    if (kna__find_nonfinite((int)rows->type, span.data, span.scales ? span.scales[0] : 1.0f, (int64_t)rows->dim) >= 0) {
        return KNA_EVALUE;
    }
    rows->store->context->kernels->widen[rows->type](out, (size_t)rows->dim, span, 1, (size_t)rows->dim);
    return KNA_OK;
}

int kna__rows_list(const kna__rows *rows, uint32_t *ids, uint64_t *count)
{
    kna_context *context = rows->store->context;
    size_t bytes = (size_t)rows->dim * sizeof(float);
    float *row = kna__allocate(&context->heap, bytes);
    int status = row ? KNA_OK : KNA_FAIL(context, KNA_ENOMEM, "index: out of memory");
    *count = 0;
    for (uint64_t i = 0; i < rows->count && status == KNA_OK; i++) {
        const kna__run *run = &rows->runs[i];
        for (uint64_t r = run->first; r < run->first + run->rows && status != KNA_EDAMAGED; r++) {
            status = kna__rows_read(rows, r, row);
            if (status == KNA_OK) {
                ids[(*count)++] = (uint32_t)r;
            }
        }
        status = status == KNA_EDAMAGED ? kna__rows_damaged(rows, run) : KNA_OK;
    }
    kna__release(&context->heap, row, bytes);
    return status;
}
