/*
 * indexing.c - encoding what has been written to a cache, and finding what nobody announced (see indexing.h).
 */
#define _GNU_SOURCE
#include "indexing.h"

#include "watch.h"

#include <time.h>

/* Cache rows compared before one call in four, 1.5 us each; all layers of a context watch over each other. */
#define AUDITED_ROWS 2

/* A write of fewer rows is left to the next call: a step of decoding, or a program that writes row by row. */
#define LOADED_ROWS 256

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Encodes what has changed among the first n rows. */
static int refresh(struct knnattn_engine *engine, struct knnattn_record *record, int64_t n, struct knnattn_done *done)
{
    const struct knnattn_place *place = &record->place;
    int64_t first = 0;
    int64_t count = 0;
    int status = KNA_OK;

    while (status == KNA_OK && knnattn_record_take(record, n, &first, &count)) {
        status = kna_index_update(engine->kna, record->index, &place->k, &place->v, first, count);
        if (status != KNA_OK) {
            knnattn_record_taint(record, first, count);
        }
        done->rows_indexed += count;
    }
    knnattn_record_weigh(&engine->records, record);
    return status;
}

/* Something wrote to the cache behind our back; it did so in every layer, most likely. */
int knnattn_index_repair(struct knnattn_engine *engine, struct knnattn_record *record, int64_t n, int64_t stale,
                         struct knnattn_done *done)
{
    double start_s = seconds();

    done->stale_events++;
    done->stale_rows += stale;
    knnattn_records_taint(&engine->records);
    int status = refresh(engine, record, n, done);
    done->index_s += seconds() - start_s;
    return status;
}

/* One call in four, evenly, but not the same layers and streams each time as counting by four would have it. */
static bool is_audited(uint64_t call)
{
    return call * UINT64_C(0x9e3779b97f4a7c15) >> 62 == 0;
}

int knnattn_index_ready(struct knnattn_engine *engine, struct knnattn_record *record, int64_t n, struct knnattn_done *done)
{
    struct knnattn_place seen = record->place;
    double start_s = seconds();
    int64_t stale = 0;
    int status = refresh(engine, record, n, done);

    seen.k.rows = seen.v.rows = n; /* of the others some may have been announced and wait to be asked for */
    if (status == KNA_OK && is_audited(engine->calls)) {
        status = kna_index_audit(engine->kna, &stale, record->index, &seen.k, &seen.v, AUDITED_ROWS, engine->calls);
    }
    done->index_s += seconds() - start_s;
    if (status == KNA_OK && stale > 0) {
        status = knnattn_index_repair(engine, record, n, stale, done);
    }
    return status;
}

struct knnattn_record *knnattn_index_of(struct knnattn_engine *engine, const struct ggml_tensor *op, int64_t stream)
{
    struct knnattn_place place;

    if (!knnattn_place_of(&place, op->src[1], op->src[2], stream)) {
        return NULL;
    }
    int method = engine->settings.method == KNNATTN_TOPK ? KNA_TOPK : KNA_KNN;
    struct knnattn_record *record = knnattn_record_at(&engine->records, engine->kna, method, &place);
    if (record != NULL) {
        record->layer = knnattn_cache_layer(op->src[1]->view_src);
    }
    knnattn_watch(op->src[1]->view_src->buffer);
    knnattn_watch(op->src[2]->view_src->buffer);
    return record;
}

void knnattn_index_loaded(const void *start, size_t bytes, const void *room, size_t room_bytes)
{
    struct knnattn_records *records = NULL;
    int64_t rows = 0;
    struct knnattn_record *record = knnattn_record_loaded(start, bytes, room, room_bytes, LOADED_ROWS, &records, &rows);

    if (record == NULL) {
        return;
    }
    struct knnattn_engine *engine = records->engine;
    if (rows >= engine->settings.exact_below && !knnattn_is_over_limit(engine)) {
        struct knnattn_done done = { .slot = engine->settings.slot, .layer = record->layer };
        double start_s = seconds();
        /* Without memory it is left to the next call, which meets the same shortage and says so. */
        int status = refresh(engine, record, rows, &done);
        if (status == KNA_OK) {
            status = kna_index_form(engine->kna, record->index, &record->place.k, &record->place.v, rows);
        }
        (void)status;
        knnattn_record_weigh(records, record); /* room for clusters was made */
        done.index_s = seconds() - start_s;
        done.layer_bytes = record->bytes;
        done.index_bytes = records->bytes;
        knnattn_totals_add(&done);
    }
    pthread_mutex_unlock(&records->busy);
}
