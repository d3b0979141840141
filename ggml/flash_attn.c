/*
 * flash_attn.c - operands of ggml's flash attention as kna_rows, one kna_attend() per stream (see flash_attn.h).
 *
 * Operands, by ggml.h: q (d,m,h,streams), k (d,n,h_kv,streams), v (dv,n,h_kv,streams), mask (n,m,..), sinks (h), result
 * (dv,h,m,streams), dimensions fastest first and strides in bytes. Causality, windows and sequences all come as the mask.
 * Keys and values are read from the cache itself; the index only says which. So a stale index can make a result less near
 * to exact attention, never wrong in what it reads; and staleness is looked for in three ways: writes are announced
 * (cache.h), random rows are compared with the cache now and then, and the call counts keys that did not match.
 */
#define _GNU_SOURCE
#include "flash_attn.h"

#include "indexing.h"
#include "observe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what is supported */

/* Rows of contiguous numbers, none of them shared: a stride of 0 means "packed" to the library. */
static bool rows_supported(const struct ggml_tensor *tensor)
{
    if (knnattn_type_of(tensor->type) < 0 || tensor->nb[0] != ggml_type_size(tensor->type)) {
        return false;
    }
    if (tensor->ne[0] < 1 || tensor->ne[0] > KNA_MAX_DIM || tensor->ne[1] > KNA_MAX_ROWS || tensor->ne[2] > KNA_MAX_HEADS) {
        return false;
    }
    size_t alignment = tensor->type == GGML_TYPE_F32 ? 4 : 2;
    for (int i = 1; i < GGML_MAX_DIMS; i++) {
        if (tensor->ne[i] > 1 && (tensor->nb[i] == 0 || tensor->nb[i] % alignment != 0 || tensor->nb[i] > INT64_MAX)) {
            return false;
        }
    }
    return true;
}

static bool mask_supported(const struct ggml_tensor *mask, const struct ggml_tensor *q, const struct ggml_tensor *k)
{
    if (mask == NULL) {
        return true;
    }
    bool type = mask->type == GGML_TYPE_F16 || mask->type == GGML_TYPE_F32;
    return type && mask->nb[0] == ggml_type_size(mask->type) && mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1] &&
           q->ne[2] % mask->ne[2] == 0 && q->ne[3] % mask->ne[3] == 0 && mask->nb[1] % mask->nb[0] == 0 && mask->nb[1] > 0 &&
           mask->nb[2] % mask->nb[0] == 0 && mask->nb[2] > 0;
}

struct parameters {
    float scale, max_bias, softcap;
    int32_t n_kv_max; /* the mask's finite entries are few: a hint for implementations that gather them */
};

static struct parameters parameters_of(const struct ggml_tensor *op)
{
    struct parameters parameters;

    memcpy(&parameters.scale, &op->op_params[0], sizeof(float));
    memcpy(&parameters.max_bias, &op->op_params[1], sizeof(float));
    memcpy(&parameters.softcap, &op->op_params[2], sizeof(float));
    parameters.n_kv_max = op->op_params[4];
    return parameters;
}

static bool parameters_supported(const struct parameters *parameters, bool has_mask)
{
    bool scale = isfinite(parameters->scale) && parameters->scale != 0.0f;
    bool softcap = isfinite(parameters->softcap) && parameters->softcap >= 0.0f;
    bool bias = isfinite(parameters->max_bias) && parameters->max_bias >= 0.0f && (parameters->max_bias == 0.0f || has_mask);

    return scale && softcap && bias && parameters->n_kv_max == 0;
}

bool knnattn_flash_supported(const struct ggml_tensor *op)
{
    const struct ggml_tensor *q = op->src[0];
    const struct ggml_tensor *k = op->src[1];
    const struct ggml_tensor *v = op->src[2];
    const struct ggml_tensor *sinks = op->src[4];
    struct parameters parameters = parameters_of(op);

    if (q == NULL || k == NULL || v == NULL || op->type != GGML_TYPE_F32 || q->type != GGML_TYPE_F32 || !ggml_is_contiguous(op)) {
        return false;
    }
    if (!rows_supported(q) || !rows_supported(k) || !rows_supported(v) || !mask_supported(op->src[3], q, k)) {
        return false;
    }
    bool shapes = q->ne[0] == k->ne[0] && k->ne[1] == v->ne[1] && k->ne[2] == v->ne[2] && q->ne[3] == k->ne[3] &&
                  q->ne[3] == v->ne[3] && k->ne[2] > 0 && q->ne[2] % k->ne[2] == 0;
    bool sinks_fit = sinks == NULL || (sinks->type == GGML_TYPE_F32 && sinks->ne[0] == q->ne[2] && sinks->nb[0] == sizeof(float));
    return shapes && sinks_fit && parameters_supported(&parameters, op->src[3] != NULL);
}

/* ---- operands */

struct operands {
    kna_rows q, k, v;
    kna_out_rows out;
};

static struct operands operands_of(const struct ggml_tensor *op, int64_t stream)
{
    return (struct operands){
        .q = knnattn_rows_of(op->src[0], stream),
        .k = knnattn_rows_of(op->src[1], stream),
        .v = knnattn_rows_of(op->src[2], stream),
        .out = { .data = (float *)(void *)((char *)op->data + (size_t)stream * op->nb[3]),
                 .head_stride_bytes = (int64_t)op->nb[1],
                 .row_stride_bytes = (int64_t)op->nb[2] },
    };
}

static kna_mask mask_of(const struct ggml_tensor *mask, int64_t stream)
{
    if (mask == NULL) {
        return (kna_mask){ 0 };
    }
    return (kna_mask){
        .data = (const char *)mask->data + (size_t)(stream % mask->ne[3]) * mask->nb[3],
        .type = mask->type == GGML_TYPE_F16 ? KNA_F16 : KNA_F32,
        .heads = mask->ne[2],
        .head_stride_bytes = (int64_t)mask->nb[2],
        .row_stride_bytes = (int64_t)mask->nb[1],
    };
}

/* ALiBi: a geometric series over the largest power of two of heads, the rest in between. NULL without memory. */
static const float *slopes_for(struct knnattn_engine *engine, float max_bias, int64_t heads)
{
    if (heads > engine->slopes_count) {
        float *slopes = realloc(engine->slopes, (size_t)heads * sizeof(float));
        if (slopes == NULL) {
            return NULL;
        }
        engine->slopes = slopes;
        engine->slopes_count = heads;
    }
    int64_t power = 1;
    while (power * 2 <= heads) {
        power *= 2;
    }
    float base = powf(2.0f, -max_bias / (float)power);
    float between = powf(2.0f, -(max_bias / 2.0f) / (float)power);
    for (int64_t h = 0; h < heads; h++) {
        engine->slopes[h] = h < power ? powf(base, (float)(h + 1)) : powf(between, (float)(2 * (h - power) + 1));
    }
    return engine->slopes;
}

/* A count for the library's options, where 0 is "default" and negative is "none". */
static int64_t or_none(int64_t count)
{
    return count > 0 ? count : -1;
}

static int options_of(kna_attend_options *options, struct knnattn_engine *engine, const struct ggml_tensor *op)
{
    const struct knnattn_settings *settings = &engine->settings;
    struct parameters parameters = parameters_of(op);
    kna_attend_options none = KNA_ATTEND_OPTIONS;

    *options = none;
    options->scale = parameters.scale;
    options->softcap = parameters.softcap;
    if (parameters.max_bias > 0.0f) {
        options->slopes = slopes_for(engine, parameters.max_bias, op->src[0]->ne[2]);
        if (options->slopes == NULL) {
            return KNA_ENOMEM;
        }
    }
    options->sinks = op->src[4] != NULL ? op->src[4]->data : NULL;
    options->k_near = settings->k;
    options->near_sinks = or_none(settings->sinks);
    options->near_window = or_none(settings->window);
    options->eps = settings->eps;
    options->delta = settings->delta;
    options->audit = settings->audit;
    options->unchecked = 1; /* cells never written may hold anything, behind the mask */
    return KNA_OK;
}

/* ---- how many keys a query sees */

/* Whether entry i of a mask's row lets its key be seen, head 0 speaking for all. */
static bool is_seen(const kna_mask *mask, const char *row, int64_t i)
{
    const uint16_t minus_infinity = 0xfc00;

    if (mask->type == KNA_F16) {
        return ((const uint16_t *)(const void *)row)[i] != minus_infinity;
    }
    return ((const float *)(const void *)row)[i] != -INFINITY;
}

/*
 * Whether the last query sees at least so many of n keys. A sliding window hides most of its cache, and what is left is not
 * worth an index; behind a causal mask the answer is found among the first keys. The last query speaks for the whole call.
 */
static bool sees_at_least(const kna_mask *mask, int64_t queries, int64_t n, int64_t least)
{
    if (mask->data == NULL || least <= 0) {
        return n >= least;
    }
    const char *row = (const char *)mask->data + (queries - 1) * mask->row_stride_bytes;
    int64_t seen = 0;
    for (int64_t i = 0; i < n && seen < least && seen + n - i >= least; i++) {
        seen += is_seen(mask, row, i);
    }
    return seen >= least;
}

/* ---- one stream */

static int attend(struct knnattn_engine *engine, const struct operands *operands, const kna_attend_options *options,
                  kna_report *report)
{
    report->size = sizeof(*report);
    return kna_attend(engine->kna, &operands->out, NULL, report, &operands->q, &operands->k, &operands->v, options);
}

/* With the method asked for. A cache's keys take its record's index; other keys are indexed for this call alone. */
static int attend_near(struct knnattn_engine *engine, const struct operands *operands, kna_attend_options *options,
                       struct knnattn_record *record, struct knnattn_done *done, kna_report *report)
{
    options->method = engine->settings.method == KNNATTN_TOPK ? KNA_TOPK : KNA_KNN;
    if (record == NULL) {
        return attend(engine, operands, options, report);
    }
    options->index = record->index;
    int status = knnattn_index_ready(engine, record, operands->k.rows, done);
    if (status == KNA_OK) {
        status = attend(engine, operands, options, report);
    }
    if (status == KNA_OK && report->stale_rows > 0) {
        done->index_s += report->time_s;
        status = knnattn_index_repair(engine, record, operands->k.rows, report->stale_rows, done);
        if (status == KNA_OK) {
            status = attend(engine, operands, options, report);
        }
    }
    knnattn_record_weigh(&engine->records, record); /* clusters are formed by the call */
    return status;
}

static int attend_exact(struct knnattn_engine *engine, const struct operands *operands, kna_attend_options *options,
                        struct knnattn_done *done, kna_report *report)
{
    options->method = KNA_EXACT;
    options->index = NULL;
    done->exact = true;
    return attend(engine, operands, options, report);
}

static int layer_of(const struct ggml_tensor *op)
{
    return op->src[1]->view_src != NULL ? knnattn_cache_layer(op->src[1]->view_src) : -1;
}

static void show(const struct knnattn_engine *engine, const struct ggml_tensor *op, int64_t stream, const struct operands *operands,
                 const kna_attend_options *options)
{
    struct knnattn_operands shown = {
        .size = sizeof(shown),
        .layer = layer_of(op),
        .stream = stream,
        .scale = options->scale,
        .q = operands->q,
        .k = operands->k,
        .v = operands->v,
        .mask = options->mask,
        .out = operands->out,
    };

    knnattn_observed(engine->settings.slot, &shown);
}

/*
 * An index larger than its limit is found when it has grown, by one layer at a time. The context then goes on without: attention that
 * is exact in some layers only would be neither fast nor what was asked for.
 */
static void keep_limit(struct knnattn_engine *engine)
{
    if (engine->is_full || !knnattn_is_over_limit(engine)) {
        return;
    }
    fprintf(stderr, "knnattn: the indexes of a context take %zu KiB, more than the %lld of index_kib: every key is read from here on\n",
            engine->records.bytes / 1024, (long long)engine->settings.index_kib);
    knnattn_records_drop(&engine->records);
    engine->is_full = true;
}

/* Global context: every so many layers look at all there is. Layers are told apart by the names of their caches. */
static bool is_full_layer(const struct knnattn_settings *settings, const struct ggml_tensor *op)
{
    int layer = layer_of(op);

    return settings->full_every > 0 && layer >= 0 && layer % settings->full_every == 0;
}

static int attend_stream(struct knnattn_engine *engine, const struct ggml_tensor *op, kna_attend_options *options, int64_t stream)
{
    const struct knnattn_settings *settings = &engine->settings;
    struct operands operands = operands_of(op, stream);
    kna_report report = { 0 };
    struct knnattn_done done = { .slot = settings->slot, .layer = layer_of(op), .report = &report };
    bool indexed = (settings->method == KNNATTN_TOPK || settings->method == KNNATTN_KNN) && !is_full_layer(settings, op);
    int status = KNA_ENOMEM;

    options->mask = mask_of(op->src[3], stream);
    bool wanted = indexed && sees_at_least(&options->mask, operands.q.rows, operands.k.rows, settings->exact_below);
    bool near = wanted && !engine->is_full;
    options->seed = engine->calls++;
    /* Also for a call that does without an index: what is loaded into the cache before the next one is encoded at once. */
    struct knnattn_record *record = indexed && !engine->is_full ? knnattn_index_of(engine, op, stream) : NULL;
    if (near) {
        status = attend_near(engine, &operands, options, record, &done, &report);
        done.layer_bytes = record != NULL ? record->bytes : report.index_bytes;
    }
    done.fallback = wanted && status == KNA_ENOMEM;
    if (!near || done.fallback) {
        status = attend_exact(engine, &operands, options, &done, &report);
    }
    done.index_bytes = engine->records.bytes + (record == NULL ? report.index_bytes : 0);
    keep_limit(engine);
    if (status == KNA_OK) {
        knnattn_totals_add(&done);
        show(engine, op, stream, &operands, options);
    }
    return status;
}

int knnattn_flash_attend(struct knnattn_engine *engine, const struct ggml_tensor *op)
{
    kna_attend_options options;
    int status = options_of(&options, engine, op);

    for (int64_t stream = 0; status == KNA_OK && stream < op->ne[3]; stream++) {
        status = attend_stream(engine, op, &options, stream);
    }
    return status;
}
