/* store_case.c - see store_case.h. */
#include "store_case.h"

#include <ftw.h>
#include <sys/stat.h>

static char place[64];

static int remove_one(const char *path, const struct stat *status, int flag, struct FTW *walk)
{
    (void)status, (void)flag, (void)walk;
    return remove(path);
}

void remove_folder(const char *folder)
{
    nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

void drop_place(void)
{
    if (place[0]) remove_folder(place);
    place[0] = 0;
}

const char *fresh_place(void)
{
    drop_place();
    snprintf(place, sizeof place, "%s/kna-store-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(place)) abort();
    return place;
}

bool went_well(kna_context *context, int status, const char *file, int line)
{
    return test_check(status == KNA_OK, file, line, "%s: %s", kna_status_name(status), kna_context_message(context));
}

kna_store *open_store(kna_context *context, const char *folder, int write, int64_t segment_bytes)
{
    kna_store *store = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    o.write = write;
    o.segment_bytes = segment_bytes;
    WELL(context, kna_store_open(context, &store, folder, &o));
    return store;
}

/* ---- documents whose rows follow from a number */

const kna_family families[FAMILIES] = {
    { "keys", KNA_F16, 64 }, { "hidden", KNA_F32, 24 }, { "codes", KNA_I8, 40 }, { "text", KNA_BYTES, 1 }
};

static uint32_t mix(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Rows of document `number`: as many of each family as the number says, none of some. */
void fill(filled *f, uint32_t number)
{
    uint32_t state = number * 2654435761u + 1;
    *f = (filled){ .count = 0 };
    for (int family = 0; family < FAMILIES; family++) {
        const kna_family *of = &families[family];
        int64_t rows = mix(&state) % 5 == 0 ? 0 : family == TEXT ? mix(&state) % 3000 : mix(&state) % 40;
        if (number % 50 == 7 && family == HIDDEN) rows = 3000; /* several pieces */
        size_t bytes = (size_t)(rows * of->dim) * (of->type == KNA_F32 ? 4 : of->type == KNA_F16 ? 2 : 1);
        unsigned char *data = malloc(bytes + 1);
        for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)mix(&state);
        kna_store_rows *r = &f->rows[f->count++];
        *r = (kna_store_rows){ family, 0, { .data = data, .type = of->type, .heads = 1, .rows = rows, .dim = of->dim } };
        f->data[family] = data;
        if (of->type == KNA_I8) {
            f->scales = malloc((size_t)rows * sizeof(float) + 1);
            for (int64_t i = 0; i < rows; i++) f->scales[i] = (float)(mix(&state) % 1000) / 1000;
            r->rows.scales = f->scales;
        }
    }
}

void unfill(filled *f)
{
    for (int i = 0; i < FAMILIES; i++) free(f->data[i]);
    free(f->scales);
}

void name_of(char name[32], uint32_t number)
{
    if (number % 11 == 3) {
        name[0] = 0;
    } else {
        snprintf(name, 32, "doc/%u", number % 300);
    }
}

int add(kna_store *store, uint32_t number, int replace, int64_t *id)
{
    filled f;
    char uri[32], attributes[64];
    name_of(uri, number);
    snprintf(attributes, sizeof attributes, "{\"number\":%u}", number);
    kna_document d = { .uri = uri, .tags = number % 2 ? "odd\nall" : "even\nall", .attributes = attributes, .tokens = number };
    memcpy(d.hash, &number, sizeof number);
    fill(&f, number);
    int status = kna_store_add(store, &d, f.rows, f.count, replace);
    *id = d.id;
    unfill(&f);
    return status;
}

/* Whether a document is what add() made of the number. */
bool is_document(kna_store *store, kna_context *context, int64_t id, uint32_t number)
{
    filled f;
    kna_document d;
    char uri[32];
    bool same = true;
    name_of(uri, number);
    if (!WELL(context, kna_store_document(store, id, &d))) return false;
    same = EXPECT(strcmp(d.uri, uri) == 0 && d.tokens == number && memcmp(d.hash, &number, sizeof number) == 0 && d.id == id);
    fill(&f, number);
    for (int family = 0; family < FAMILIES && same; family++) {
        const kna_rows *want = &f.rows[family].rows;
        kna_store_rows got;
        int64_t first, rows;
        if (!WELL(context, kna_store_rows_of(store, id, family, &got))) return false;
        if (!WELL(context, kna_store_extent(store, id, family, &first, &rows))) return false;
        if (!EXPECT_INT(first, got.first) || !EXPECT_INT(rows, got.rows.rows)) return false;
        size_t bytes = (size_t)(want->rows * want->dim) * (want->type == KNA_F32 ? 4 : want->type == KNA_F16 ? 2 : 1);
        same = EXPECT_INT(got.rows.rows, want->rows) && EXPECT(!bytes || memcmp(got.rows.data, want->data, bytes) == 0);
        if (same && family == CODES && want->rows)
            same = EXPECT(memcmp(got.rows.scales, want->scales, (size_t)want->rows * sizeof(float)) == 0);
        for (int64_t row = 0; row < want->rows && same; row += 1 + want->rows / 3) {
            int64_t owner, at;
            same = WELL(context, kna_store_owner(store, family, got.first + row, &owner, &at)) && EXPECT(owner == id && at == row);
        }
    }
    unfill(&f);
    return same;
}

/* ---- the model: which documents there should be */

int model_named(const model *m, uint32_t number)
{
    char want[32], have[32];
    name_of(want, number);
    for (int i = 0; i < m->count && want[0]; i++) {
        name_of(have, m->numbers[i]);
        if (strcmp(want, have) == 0) return i;
    }
    return -1;
}

void model_remove(model *m, int i)
{
    memmove(m->ids + i, m->ids + i + 1, (size_t)(m->count - i - 1) * sizeof m->ids[0]);
    memmove(m->numbers + i, m->numbers + i + 1, (size_t)(m->count - i - 1) * sizeof m->numbers[0]);
    m->count--;
}

void model_add(model *m, int64_t id, uint32_t number)
{
    if (m->count == MODEL_MOST) abort();
    m->ids[m->count] = id;
    m->numbers[m->count++] = number;
}

bool has_ids_of(kna_store *store, const model *m)
{
    kna_document d = { .id = 0 };
    for (int i = 0; i < m->count; i++) {
        if (kna_store_next(store, d.id, &d) != KNA_OK || d.id != m->ids[i]) return false;
    }
    return kna_store_next(store, d.id, &d) == KNA_ENONE;
}

bool is_model(kna_store *store, kna_context *context, const model *m)
{
    kna_document d = { .id = 0 };
    kna_store_info info = { .size = sizeof info };
    for (int i = 0; i < m->count; i++) {
        if (!WELL(context, kna_store_next(store, d.id, &d)) || !EXPECT_INT(d.id, m->ids[i])) return false;
        char uri[32];
        int64_t id = d.id;
        snprintf(uri, sizeof uri, "%s", d.uri);
        if (uri[0] && (!WELL(context, kna_store_find(store, uri, &d)) || !EXPECT_INT(d.id, id))) return false;
        if (!is_document(store, context, id, m->numbers[i])) return false;
        d.id = id;
    }
    EXPECT_INT(kna_store_next(store, d.id, &d), KNA_ENONE);
    return WELL(context, kna_store_info_get(store, &info)) && EXPECT_INT(info.documents, m->count);
}
