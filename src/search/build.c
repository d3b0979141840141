/* build.c - the calls that make an index, tell of it and remove it. */
#include "search.h"

static int check_kind(kna_context *context, int kind)
{
    return kind == KNA_SEARCH_FLAT ? KNA_OK : KNA_FAIL(context, KNA_EINVAL, "index: kind %d cannot be made", kind);
}

int kna_store_index(kna_store *s, int family, const kna_store_index_options *options)
{
    static const kna_store_index_options usual = KNA_STORE_INDEX_OPTIONS;
    const kna_store_index_options *o = options ? options : &usual;
    kna__rows rows;
    KNA_TRY(kna__writer_status(s));
    if (o->size < sizeof *o || !kna_metric_name(o->metric)) {
        return KNA_FAIL(s->context, KNA_EINVAL, "index: size %zu (set it with KNA_STORE_INDEX_OPTIONS), or metric %d", o->size,
                        o->metric);
    }
    int kind = o->kind == KNA_SEARCH_AUTO ? KNA_SEARCH_FLAT : o->kind;
    KNA_TRY(check_kind(s->context, kind));
    KNA_TRY(kna__rows_init(&rows, s, family));
    if (kna_store_family_rows(s, family) >= UINT32_MAX) {
        return KNA_FAIL(s->context, KNA_ELIMIT, "index: %lld rows are above %u", (long long)kna_store_family_rows(s, family),
                        UINT32_MAX - 1);
    }
    int status = kna__rows_fill(&rows, NULL, NULL);
    status = status == KNA_OK ? kna__build_flat(&rows, o->metric) : status;
    kna__rows_free(&rows);
    return status;
}

int kna_store_index_get(kna_store *s, int family, int kind, kna_store_index_info *info)
{
    kna__index_file file;
    kna__list_view view;
    s->context->message[0] = 0;
    KNA_TRY(kna__store_status(s));
    if (info->size < sizeof *info || (kind != KNA_SEARCH_FLAT && kind != KNA_SEARCH_CLUSTERS)) {
        return KNA_FAIL(s->context, KNA_EINVAL, "index: size %zu of info, or kind %d", info->size, kind);
    }
    KNA_TRY(kna__index_open(&file, s, family, kind));
    const kna__index_head *h = &file.head;
    *info = (kna_store_index_info){ .size = info->size,
                                    .kind = (int)h->kind,
                                    .metric = (int)h->metric,
                                    .transaction = (int64_t)h->transaction,
                                    .covered = (int64_t)h->covered,
                                    .rows = (int64_t)h->rows,
                                    .lists = (int64_t)h->lists,
                                    .bytes = (int64_t)h->bytes };
    int status = KNA_OK;
    for (uint64_t i = 0; i < h->lists && status == KNA_OK; i++) {
        if (!kna__index_list(&file, i, &view)) {
            status = KNA_FAIL(s->context, KNA_EDAMAGED, "index: list %llu is not as it was written", (unsigned long long)i);
        }
    }
    kna__index_close(&file);
    return status;
}

int kna_store_index_drop(kna_store *s, int family, int kind)
{
    kna_family of;
    char name[40];
    KNA_TRY(kna__writer_status(s));
    KNA_TRY(kna_store_family(s, family, &of));
    if (kind != KNA_SEARCH_FLAT && kind != KNA_SEARCH_CLUSTERS) {
        return KNA_FAIL(s->context, KNA_EINVAL, "index: kind %d is none", kind);
    }
    kna__index_name(name, family, kind);
    KNA_TRY(kna__file_unlink(s->context, s->folder, name));
    return kna__folder_sync(s->context, s->folder);
}
