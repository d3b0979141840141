/* build.c - the calls that make an index, tell of it and remove it. */
#include "clusters.h"
#include "turn.h"

static int check_kind(kna_context *context, int kind)
{
    return kind == KNA_SEARCH_FLAT || kind == KNA_SEARCH_CLUSTERS
               ? KNA_OK
               : KNA_FAIL(context, KNA_EINVAL, "index: kind %d cannot be made", kind);
}

static int check_clusters(kna_context *context, const kna__rows *rows, const kna_store_index_options *o)
{
    if (o->lists < 0 || o->lists > UINT32_MAX) {
        return KNA_FAIL(context, KNA_EINVAL, "index: %lld lists", (long long)o->lists);
    }
    if (o->queries && o->queries->rows < 1) {
        return KNA_FAIL(context, KNA_ESHAPE, "index: a sample of no queries");
    }
    return o->queries ? kna__queries_check(context, o->queries, rows->dim) : KNA_OK;
}

enum { TURN_QUERIES = 4096 };

/* The metric of the sample of queries; *turn stays NULL where rows are clustered as they are. */
static int make_turn(kna_context *context, float **turn, uint64_t dim, const kna_store_index_options *o)
{
    if (!o->queries || o->metric != KNA_IP) {
        return KNA_OK;
    }
    uint64_t m = (uint64_t)o->queries->rows < TURN_QUERIES ? (uint64_t)o->queries->rows : TURN_QUERIES;
    size_t bytes = kna__size_product((size_t)(m * dim), sizeof(float));
    float *sample = kna__allocate(&context->heap, bytes);
    *turn = kna__allocate(&context->heap, kna__size_product((size_t)(dim * dim), sizeof(float)));
    int status = KNA_ENOMEM;
    if (sample && *turn) {
        kna__take_queries(context->kernels, sample, o->queries, m);
        status = kna__turn_make(context, *turn, sample, m, dim);
    } else {
        status = KNA_FAIL(context, KNA_ENOMEM, "index: out of memory for the metric of %llu numbers", (unsigned long long)dim);
    }
    kna__release(&context->heap, sample, bytes);
    return status;
}

static int build_clusters(const kna__rows *rows, const kna_store_index_options *o, uint32_t *ids, uint64_t count)
{
    kna_context *context = rows->store->context;
    float *turn = NULL;
    KNA_TRY(check_clusters(context, rows, o));
    int status = make_turn(context, &turn, rows->dim, o);
    status = status == KNA_OK ? kna__build_clusters(rows, o, ids, count, turn) : status;
    kna__release(&context->heap, turn, turn ? kna__size_product((size_t)(rows->dim * rows->dim), sizeof(float)) : 0);
    return status;
}

static int build(const kna__rows *rows, const kna_store_index_options *o)
{
    kna_context *context = rows->store->context;
    uint64_t count;
    size_t bytes = kna__size_product((size_t)rows->there, sizeof(uint32_t));
    uint32_t *ids = kna__allocate(&context->heap, bytes);
    if (!ids) {
        return KNA_FAIL(context, KNA_ENOMEM, "index: out of memory for %llu rows", (unsigned long long)rows->there);
    }
    int status = kna__rows_list(rows, ids, &count);
    if (status == KNA_OK) {
        status =
            o->kind == KNA_SEARCH_CLUSTERS ? build_clusters(rows, o, ids, count) : kna__build_flat(rows, o->metric, ids, count);
    }
    kna__release(&context->heap, ids, bytes);
    return status;
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
    status = status == KNA_OK ? build(&rows, o) : status;
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
                                    .bytes = (int64_t)h->bytes,
                                    .probes = h->kind == KNA_SEARCH_CLUSTERS ? (int64_t)kna__probes_for(h, 0.95, 10) : 0 };
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
