/* index_file.c - index files: written, mapped, compared. doc/format.md has the bytes. */
#include "search.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>

static const char magic[8] = "knaindex";
/* ALONE: lists of fewer blocks are encoded by one thread: thousands of short lists would wait for the other ones more than they work. */
enum { ALONE = 64, ORDER_MARK = 0x01020304, ENTRY_BYTES = 48, NUMBERS = 5 /* of four bytes, that a row has beside its codes */ };
_Static_assert(sizeof(kna__list_entry) == ENTRY_BYTES, "the table is read as it lies");

void kna__index_name(char name[40], int family, int kind)
{
    snprintf(name, 40, "index-%05d-%s", family, kna_search_index_name(kind));
}

static uint64_t groups_of(uint64_t dim)
{
    return (dim + 3) / 4;
}

static uint64_t list_bytes(uint64_t dim, uint64_t blocks)
{
    return blocks * KNA_BLOCK * 4 * (NUMBERS + groups_of(dim));
}

/* ---- the header */

static unsigned char *put4(unsigned char *to, uint32_t x)
{
    memcpy(to, &x, sizeof x);
    return to + sizeof x;
}

static unsigned char *put8(unsigned char *to, uint64_t x)
{
    memcpy(to, &x, sizeof x);
    return to + sizeof x;
}

static uint32_t get4(const unsigned char *from)
{
    uint32_t x;
    memcpy(&x, from, sizeof x);
    return x;
}

static uint64_t get8(const unsigned char *from)
{
    uint64_t x;
    memcpy(&x, from, sizeof x);
    return x;
}

static void encode(unsigned char bytes[KNA_INDEX_HEAD_BYTES], const kna__index_head *h)
{
    memset(bytes, 0, KNA_INDEX_HEAD_BYTES);
    memcpy(bytes, magic, sizeof magic);
    unsigned char *to = put4(put4(bytes + sizeof magic, KNA_INDEX_VERSION), ORDER_MARK);
    memcpy(to, h->uuid, sizeof h->uuid);
    to = put8(to + sizeof h->uuid, h->transaction);
    to = put4(put4(put4(put4(to, h->family), h->type), h->kind), h->metric);
    to = put8(put8(put8(put8(put8(to, h->dim), h->covered), h->rows), h->lists), h->centers);
    to = put8(put8(put8(put8(put8(to, h->table_at), h->centers_at), h->bytes), h->table_check), h->centers_check);
    memcpy(to, h->probes[0], sizeof h->probes[0]);
    to = (unsigned char *)memcpy(to + sizeof h->probes[0], &h->alpha, sizeof h->alpha) + sizeof h->alpha;
    memcpy(to, h->probes[1], sizeof h->probes - sizeof h->probes[0]);
    put8(bytes + KNA_INDEX_HEAD_BYTES - 8, kna__check(bytes, KNA_INDEX_HEAD_BYTES - 8, 0));
}

static int decode(kna_context *context, const char *name, kna__index_head *h, const unsigned char *bytes)
{
    if (memcmp(bytes, magic, sizeof magic) != 0) {
        return KNA_FAIL(context, KNA_EFORMAT, "%s: not an index file", name);
    }
    if (kna__check(bytes, KNA_INDEX_HEAD_BYTES - 8, 0) != get8(bytes + KNA_INDEX_HEAD_BYTES - 8)) {
        return KNA_FAIL(context, KNA_EDAMAGED, "%s: its header is not as it was written", name);
    }
    if (get4(bytes + 8) != KNA_INDEX_VERSION || get4(bytes + 12) != ORDER_MARK) {
        return KNA_FAIL(context, KNA_EFORMAT, "%s: of another version than %d, or byte order", name, KNA_INDEX_VERSION);
    }
    *h = (kna__index_head){ .transaction = get8(bytes + 32),
                            .family = get4(bytes + 40),
                            .type = get4(bytes + 44),
                            .kind = get4(bytes + 48),
                            .metric = get4(bytes + 52),
                            .dim = get8(bytes + 56),
                            .covered = get8(bytes + 64),
                            .rows = get8(bytes + 72),
                            .lists = get8(bytes + 80),
                            .centers = get8(bytes + 88),
                            .table_at = get8(bytes + 96),
                            .centers_at = get8(bytes + 104),
                            .bytes = get8(bytes + 112),
                            .table_check = get8(bytes + 120),
                            .centers_check = get8(bytes + 128) };
    memcpy(h->uuid, bytes + 16, sizeof h->uuid);
    memcpy(h->probes[0], bytes + 136, sizeof h->probes[0]);
    memcpy(&h->alpha, bytes + 168, sizeof h->alpha);
    memcpy(h->probes[1], bytes + 172, sizeof h->probes - sizeof h->probes[0]);
    return KNA_OK;
}

/* ---- reading */

/* Of this store and family, and of nothing later than what it shows: rows it still shows may be in no list of a later one. */
static int check_owner(const kna_store *s, const char *name, const kna__index_head *h, int family, int kind)
{
    kna_family of;
    KNA_TRY(kna_store_family(s, family, &of));
    if (memcmp(h->uuid, s->slot.uuid, sizeof h->uuid) != 0) {
        return KNA_FAIL(s->context, KNA_EFORMAT, "%s: made for another store", name);
    }
    if (h->family != (uint32_t)family || h->type != (uint32_t)of.type || h->dim != (uint64_t)of.dim || h->kind != (uint32_t)kind) {
        return KNA_FAIL(s->context, KNA_EFORMAT, "%s: made for other rows, or of another kind", name);
    }
    if (h->transaction > s->slot.transaction) {
        return KNA_FAIL(s->context, KNA_ESTALE, "%s: made from commit %llu, and this is %llu", name,
                        (unsigned long long)h->transaction, (unsigned long long)s->slot.transaction);
    }
    return KNA_OK;
}

static bool is_within(const kna__index_head *h, uint64_t at, uint64_t count, uint64_t each, uint64_t alignment)
{
    return at >= KNA_INDEX_HEAD_BYTES && at % alignment == 0 && at <= h->bytes && count <= (h->bytes - at) / each;
}

/* A list lies where the one before it ends, so that no byte of the file is in no check. */
static bool is_sound_entry(const kna__index_head *h, const kna__list_entry *e, uint64_t at)
{
    return e->at == at && is_within(h, e->at, e->blocks, list_bytes(h->dim, 1), KNA_PART_ALIGNMENT) && e->rows <= UINT32_MAX &&
           (e->rows + KNA_BLOCK - 1) / KNA_BLOCK == e->blocks && e->spread >= 0 && e->spread < INFINITY;
}

static bool is_sound_head(const kna__index_head *h)
{
    return h->metric < KNA_METRIC_COUNT && (h->centers == 1 || h->centers == h->lists) && h->dim > 0 && h->covered < UINT32_MAX &&
           is_within(h, h->table_at, h->lists, ENTRY_BYTES, 8) &&
           is_within(h, h->centers_at, h->centers, h->dim * sizeof(float), sizeof(float)) &&
           h->centers_at == h->table_at + h->lists * ENTRY_BYTES && h->bytes == h->centers_at + h->centers * h->dim * sizeof(float);
}

static bool has_sound_tables(const kna__index_file *f)
{
    const kna__index_head *h = &f->head;
    uint64_t rows = 0, at = KNA_INDEX_HEAD_BYTES;
    if (kna__check(f->table, (size_t)(h->lists * ENTRY_BYTES), 1) != h->table_check ||
        kna__check(f->centers, (size_t)(h->centers * h->dim * sizeof(float)), 2) != h->centers_check) {
        return false;
    }
    for (uint64_t i = 0; i < h->lists; i++) {
        if (!is_sound_entry(h, &f->table[i], at)) {
            return false;
        }
        rows += f->table[i].rows;
        at += list_bytes(h->dim, f->table[i].blocks);
    }
    return rows == h->rows && at == h->table_at;
}

static int check_tables(kna__index_file *f, const char *name)
{
    const kna__index_head *h = &f->head;
    bool sound = is_sound_head(h);
    f->table = (const kna__list_entry *)(const void *)(f->map + (sound ? h->table_at : 0));
    f->centers = (const float *)(const void *)(f->map + (sound ? h->centers_at : 0));
    if (!sound || !has_sound_tables(f)) {
        return KNA_FAIL(f->context, KNA_EDAMAGED, "%s: its tables are not as they were written", name);
    }
    f->compared = kna__allocate(&f->context->heap, (size_t)h->lists);
    if (!f->compared) {
        return KNA_FAIL(f->context, KNA_ENOMEM, "%s: out of memory for a table of %llu lists", name, (unsigned long long)h->lists);
    }
    memset(f->compared, 0, (size_t)h->lists);
    return KNA_OK;
}

static int map_file(kna__index_file *f, const kna_store *s, const char *name)
{
    kna__file file;
    uint64_t bytes = 0;
    const void *map = NULL;
    KNA_TRY(kna__file_open(&file, s->context, s->folder, name, KNA_FILE_READ));
    int status = kna__file_size(&file, &bytes);
    if (status == KNA_OK && bytes < KNA_INDEX_HEAD_BYTES) {
        status = KNA_FAIL(s->context, KNA_EDAMAGED, "%s: %llu bytes are no index", name, (unsigned long long)bytes);
    }
    status = status == KNA_OK ? kna__file_map(&file, &map, (size_t)bytes) : status;
    kna__file_close(&file);
    f->map = map;
    f->head.bytes = bytes;
    return status;
}

static int open_index(kna__index_file *f, kna_store *s, int family, int kind)
{
    char name[40];
    kna__index_head head;
    kna__index_name(name, family, kind);
    KNA_TRY(map_file(f, s, name));
    KNA_TRY(decode(s->context, name, &head, f->map));
    KNA_TRY(check_owner(s, name, &head, family, kind));
    if (head.bytes != f->head.bytes) {
        return KNA_FAIL(s->context, KNA_EDAMAGED, "%s: %llu bytes, and %llu were written", name, (unsigned long long)f->head.bytes,
                        (unsigned long long)head.bytes);
    }
    f->head = head;
    return check_tables(f, name);
}

int kna__index_open(kna__index_file *f, kna_store *s, int family, int kind)
{
    *f = (kna__index_file){ .context = s->context };
    int status = open_index(f, s, family, kind);
    if (status != KNA_OK) {
        kna__index_close(f);
    }
    return status;
}

void kna__index_close(kna__index_file *f)
{
    kna__file_unmap(f->map, (size_t)f->head.bytes);
    kna__release(&f->context->heap, f->compared, f->compared ? (size_t)f->head.lists : 0);
    f->map = NULL;
    f->compared = NULL;
}

bool kna__index_list(const kna__index_file *f, uint64_t list, kna__list_view *view)
{
    const kna__list_entry *e = &f->table[list];
    const unsigned char *at = f->map + e->at;
    uint64_t places = e->blocks * KNA_BLOCK;
    if (!__atomic_load_n(&f->compared[list], __ATOMIC_RELAXED)) {
        if (kna__check(at, (size_t)list_bytes(f->head.dim, e->blocks), list) != e->check) {
            return false;
        }
        __atomic_store_n(&f->compared[list], 1, __ATOMIC_RELAXED);
    }
    const float *numbers = (const float *)(const void *)at;
    *view = (kna__list_view){ .rows = e->rows,
                              .blocks = e->blocks,
                              .ids = (const uint32_t *)(const void *)at,
                              .steps = numbers + places,
                              .extra = numbers + 2 * places,
                              .errors = numbers + 3 * places,
                              .norms = numbers + 4 * places,
                              .rounding = KNA_ROUNDING,
                              .codes = at + NUMBERS * sizeof(float) * places,
                              .center = f->centers + (f->head.centers == 1 ? 0 : list * f->head.dim),
                              .extra_most = e->extra_most,
                              .error_most = e->error_most,
                              .norm_most = e->norm_most };
    return true;
}

/* ---- writing */

int kna__index_begin(kna__index_writer *w, const kna__rows *rows, const kna__index_head *head, const float *center)
{
    kna_store *s = rows->store;
    *w = (kna__index_writer){ .store = s, .rows = rows, .head = *head, .center = center, .at = KNA_INDEX_HEAD_BYTES };
    w->file.fd = -1;
    kna__index_name(w->name, rows->family, (int)head->kind);
    snprintf(w->temporary, sizeof w->temporary, "%s.new", w->name);
    memcpy(w->head.uuid, s->slot.uuid, sizeof w->head.uuid);
    w->head.transaction = s->slot.transaction;
    w->head.type = rows->type;
    w->head.dim = rows->dim;
    w->head.rows = 0;
    w->table = kna__allocate(&s->context->heap, kna__size_product((size_t)head->lists, sizeof *w->table));
    if (!w->table) {
        return KNA_FAIL(s->context, KNA_ENOMEM, "%s: out of memory for a table of %llu lists", w->name,
                        (unsigned long long)head->lists);
    }
    KNA_TRY(kna__file_unlink(s->context, s->folder, w->temporary)); /* of one that was cut off */
    return kna__file_open(&w->file, s->context, s->folder, w->temporary, KNA_FILE_CREATE);
}

typedef struct encoding {
    const kna__index_writer *writer;
    const uint32_t *ids;
    uint64_t count, places;
    unsigned char *bytes; /* the list */
    float *rows;          /* (workers, 2 dim): a row, and what is quantised of it */
    int8_t *codes;        /* (workers, 4 d4) */
    int status;           /* atomic: of a row that cannot be read */
    uint64_t bad;         /* its number */
} encoding;

static float round_up(double x)
{
    return x < 1e30 ? (float)(x * (1 + 1e-6)) : INFINITY;
}

/* What is kept of a row: numbers at `place`, codes into its block. */
static void encode_row(const encoding *e, const float *x, float *rest, int8_t *codes, uint64_t place)
{
    const kna__index_writer *w = e->writer;
    const float *center = w->center + (w->head.centers == 1 ? 0 : w->list * w->head.dim);
    uint64_t d = w->head.dim, d4 = groups_of(d);
    float *numbers = (float *)(void *)e->bytes;
    double square = 0, extra = 0, error = 0, norm = 0;
    for (uint64_t c = 0; c < d; c++) {
        square += (double)x[c] * (double)x[c];
    }
    double factor = w->head.metric != KNA_COSINE ? 1 : square > 0 ? 1 / sqrt(square) : 0;
    bool is_loose = !(square < 1e36);
    for (uint64_t c = 0; c < d; c++) {
        rest[c] = is_loose ? 0 : (float)(factor * (double)x[c] - (double)center[c]);
    }
    memset(codes, 0, (size_t)d4 * 4);
    float step = w->store->context->kernels->quantize(codes, rest, (size_t)d);
    for (uint64_t c = 0; c < d && !is_loose; c++) {
        double r = factor * (double)x[c] - (double)center[c], kept = (double)step * codes[c];
        extra += r * (2 * (double)center[c] + r);
        error += (r - kept) * (r - kept);
        norm += kept * kept;
    }
    numbers[e->places + place] = step;
    numbers[2 * e->places + place] = w->head.metric == KNA_L2 ? (float)extra : 0;
    numbers[3 * e->places + place] = is_loose ? INFINITY : round_up(sqrt(error));
    numbers[4 * e->places + place] = round_up(sqrt(norm));
    unsigned char *packed = e->bytes + NUMBERS * sizeof(float) * e->places + place / KNA_BLOCK * (d4 * 4 * KNA_BLOCK);
    kna__pack_row(packed, place % KNA_BLOCK, codes, (size_t)(4 * d4), (size_t)d4);
}

static void encode_block(void *argument, int64_t block, int worker)
{
    encoding *e = argument;
    uint64_t d = e->writer->head.dim, d4 = groups_of(d), from = (uint64_t)block * KNA_BLOCK;
    float *row = e->rows + (uint64_t)worker * 2 * d;
    for (uint64_t i = from; i < e->count && i < from + KNA_BLOCK; i++) {
        int status = kna__rows_read(e->writer->rows, e->ids[i], row);
        ((uint32_t *)(void *)e->bytes)[i] = e->ids[i];
        if (status != KNA_OK) {
            __atomic_store_n(&e->bad, e->ids[i], __ATOMIC_RELAXED);
            __atomic_store_n(&e->status, status, __ATOMIC_RELAXED);
            return;
        }
        encode_row(e, row, row + d, e->codes + (uint64_t)worker * 4 * d4, i);
    }
}

static int encode_failed(const encoding *e)
{
    const kna__index_writer *w = e->writer;
    const kna__run *run = kna__rows_run(w->rows, e->bad);
    if (e->status == KNA_EDAMAGED && run) {
        return kna__rows_damaged(w->rows, run);
    }
    return KNA_FAIL(w->store->context, e->status, "%s: row %llu cannot be in a list", w->name, (unsigned long long)e->bad);
}

static float most_of(const float *x, uint64_t count)
{
    float most = 0;
    for (uint64_t i = 0; i < count; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    }
    return most;
}

static int write_list(kna__index_writer *w, const encoding *e, uint64_t blocks)
{
    const float *numbers = (const float *)(const void *)e->bytes;
    size_t bytes = (size_t)list_bytes(w->head.dim, blocks);
    w->table[w->list] = (kna__list_entry){ .at = w->at,
                                           .rows = e->count,
                                           .blocks = blocks,
                                           .check = kna__check(e->bytes, bytes, w->list),
                                           .extra_most = most_of(numbers + 2 * e->places, e->count),
                                           .error_most = most_of(numbers + 3 * e->places, e->count),
                                           .norm_most = most_of(numbers + 4 * e->places, e->count) };
    KNA_TRY(kna__file_write(&w->file, e->bytes, bytes, w->at));
    w->at += bytes;
    w->head.rows += e->count;
    w->list++;
    return KNA_OK;
}

int kna__index_put_list(kna__index_writer *w, const uint32_t *ids, uint64_t count)
{
    kna_context *context = w->store->context;
    uint64_t d = w->head.dim, blocks = (count + KNA_BLOCK - 1) / KNA_BLOCK;
    size_t bytes = (size_t)list_bytes(d, blocks), threads = (size_t)context->threads;
    encoding e = { .writer = w, .ids = ids, .count = count, .places = blocks * KNA_BLOCK };
    kna__cutter cutter = { NULL, 0 };
    for (int pass = 0; pass < 2; pass++) {
        e.bytes = kna__cut(&cutter, bytes, 1);
        e.rows = kna__cut(&cutter, threads * 2 * (size_t)d, sizeof *e.rows);
        e.codes = kna__cut(&cutter, threads * 4 * (size_t)groups_of(d), 1);
        if (pass == 0) {
            cutter = (kna__cutter){ kna__scratch(context, cutter.used), 0 };
            if (!cutter.base) {
                return KNA_FAIL(context, KNA_ENOMEM, "%s: out of memory for a list of %llu rows", w->name,
                                (unsigned long long)count);
            }
        }
    }
    memset(e.bytes, 0, bytes);
    memset(e.bytes + count * sizeof *ids, 0xff, (size_t)(e.places - count) * sizeof *ids); /* no row */
    kna__parallel_for(blocks < ALONE ? 1 : context->threads, (int64_t)blocks, encode_block, &e);
    return e.status == KNA_OK ? write_list(w, &e, blocks) : encode_failed(&e);
}

static int write_tables(kna__index_writer *w)
{
    kna__index_head *h = &w->head;
    unsigned char bytes[KNA_INDEX_HEAD_BYTES];
    size_t table = (size_t)(h->lists * ENTRY_BYTES), centers = (size_t)(h->centers * h->dim * sizeof(float));
    h->table_at = w->at;
    h->table_check = kna__check(w->table, table, 1);
    h->centers_at = h->table_at + table;
    h->centers_check = kna__check(w->center, centers, 2);
    h->bytes = h->centers_at + centers;
    KNA_TRY(kna__file_write(&w->file, w->table, table, h->table_at));
    KNA_TRY(kna__file_write(&w->file, w->center, centers, h->centers_at));
    encode(bytes, h);
    return kna__file_write(&w->file, bytes, sizeof bytes, 0);
}

/* Under its own name when all of it is on the disk, and not before. */
int kna__index_finish(kna__index_writer *w)
{
    const kna_store *s = w->store;
    char from[KNA_PATH_BYTES], to[KNA_PATH_BYTES];
    KNA_TRY(write_tables(w));
    KNA_TRY(kna__file_sync(&w->file));
    kna__file_close(&w->file);
    KNA_TRY(kna__path(from, s->context, s->folder, w->temporary));
    KNA_TRY(kna__path(to, s->context, s->folder, w->name));
    if (kna__file_calls.rename(from, to) != 0) {
        return KNA_FAIL(s->context, KNA_EIO, "%s: renaming: %s", w->temporary, strerror(errno));
    }
    w->temporary[0] = 0;
    return kna__folder_sync(s->context, s->folder);
}

/* The message of what went wrong stays. */
void kna__index_abandon(kna__index_writer *w)
{
    kna_context *context = w->store->context;
    char message[KNA_MESSAGE_BYTES];
    memcpy(message, context->message, sizeof message);
    kna__file_close(&w->file);
    if (w->temporary[0]) {
        (void)kna__file_unlink(context, w->store->folder, w->temporary);
    }
    kna__release(&context->heap, w->table, w->table ? kna__size_product((size_t)w->head.lists, sizeof *w->table) : 0);
    w->table = NULL;
    w->temporary[0] = 0;
    memcpy(context->message, message, sizeof message);
}
