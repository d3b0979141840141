/*
 * lm_operands.c - what attention was given: queries, keys and values of chosen layers, copied out as the plugin meets them.
 *
 * Stage: beside the decoding of known text. Invariant: row i of everything belongs to token i; that cell i of the cache is token i
 * is read from the mask of each call, not assumed.
 */
#include "lm_internal.h"
#include "lm_run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One job: `at` and `step` are the tokens being decoded, `seen` the rows each layer has shown. */
typedef struct taker {
    lm_operands *operands;
    int count, with_out;
    int64_t rows, at, step;
    int64_t *seen;
    int is_checked; /* that there is memory for all layers */
    int status;     /* of what happened inside llama.cpp's call */
    lm_error *error;
} taker;

/* ------------------------------------------------------------------ one call */

/* The first rows of every head, to where row `place` of each head of a packed (heads, room, dim) array begins. */
static void copy_rows(void *to, int64_t room, int64_t place, const kna_rows *from, int64_t count)
{
    size_t row_bytes = kna_type_row_bytes(from->type, from->dim);
    for (int64_t head = 0; head < from->heads; head++) {
        const char *source = (const char *)from->data + head * from->head_stride_bytes;
        char *target = (char *)to + (size_t)(head * room + place) * row_bytes;
        for (int64_t row = 0; row < count; row++) {
            memcpy(target + (size_t)row * row_bytes, source + row * from->row_stride_bytes, row_bytes);
        }
    }
}

static int is_visible(const kna_mask *mask, int64_t query, int64_t cell)
{
    const char *row = (const char *)mask->data + query * mask->row_stride_bytes;
    if (mask->type == KNA_F16) {
        return ((const uint16_t *)(const void *)row)[cell] != 0xfc00u; /* -infinity */
    }
    return ((const float *)(const void *)row)[cell] > -3e38f;
}

/* Every token sees its own cell and none behind it: cells lie in the order of positions. */
static int is_by_position(const taker *t, const struct knnattn_operands *call)
{
    int fits = call->mask.data && call->stream == 0 && call->q.rows == t->step && call->k.rows >= t->at + t->step;
    for (int64_t i = 0; fits && i < t->step; i++) {
        fits = is_visible(&call->mask, i, t->at + i);
        for (int64_t cell = t->at + i + 1; fits && cell < call->k.rows; cell++) {
            fits = !is_visible(&call->mask, i, cell);
        }
    }
    return fits;
}

/* Once, by the first layer that shows itself: the layers of a model are alike. */
static int check_room(taker *t, size_t layer_bytes)
{
    char what[64];
    if (t->is_checked) {
        return LM_OK;
    }
    t->is_checked = 1;
    snprintf(what, sizeof what, "keeping what %d layers were given", t->count);
    return lm__check_bytes((double)layer_bytes * t->count, what, t->error);
}

static int make_room(taker *t, lm_operands *to, const struct knnattn_operands *call)
{
    size_t q = (size_t)(call->q.heads * t->rows * call->q.dim) * sizeof(float);
    size_t k = (size_t)(call->k.heads * t->rows) * kna_type_row_bytes(call->k.type, call->k.dim);
    size_t v = (size_t)(call->v.heads * t->rows) * kna_type_row_bytes(call->v.type, call->v.dim);
    size_t out = t->with_out ? (size_t)(call->q.heads * t->rows * call->v.dim) * sizeof(float) : 0;
    int status = check_room(t, q + k + v + out);
    if (status != LM_OK) {
        return status;
    }
    to->q = malloc(q);
    to->k = malloc(k);
    to->v = malloc(v);
    to->out = out > 0 ? malloc(out) : NULL;
    if (!to->q || !to->k || !to->v || (out > 0 && !to->out)) {
        return lm__fail(t->error, LM_ENOMEM, "out of memory for what layer %d was given", to->layer);
    }
    to->heads = call->q.heads;
    to->kv_heads = call->k.heads;
    to->rows = t->rows;
    to->dim = call->q.dim;
    to->value_dim = call->v.dim;
    to->scale = call->scale;
    to->k_type = call->k.type;
    to->v_type = call->v.type;
    return LM_OK;
}

static void copy_call(const taker *t, lm_operands *to, const struct knnattn_operands *call)
{
    copy_rows(to->q, t->rows, t->at, &call->q, t->step);
    if (to->out) {
        const kna_rows out = { call->out.data,
                               KNA_F32,
                               to->heads,
                               t->step,
                               to->value_dim,
                               call->out.head_stride_bytes,
                               call->out.row_stride_bytes,
                               NULL };
        copy_rows(to->out, t->rows, t->at, &out, t->step);
    }
    if (t->at + t->step == t->rows) {
        copy_rows(to->k, t->rows, 0, &call->k, t->rows);
        copy_rows(to->v, t->rows, 0, &call->v, t->rows);
    }
}

static void take_call(taker *t, int i, const struct knnattn_operands *call)
{
    lm_operands *to = &t->operands[i];
    if (!is_by_position(t, call)) {
        t->status = lm__fail(t->error, LM_EMODEL, "layer %d: the cache of this model is not laid out by position", to->layer);
    } else if (!to->q) {
        t->status = make_room(t, to, call);
    }
    if (t->status == LM_OK) {
        copy_call(t, to, call);
        t->seen[i] += t->step;
    }
}

static void on_call(void *user, const struct knnattn_operands *call)
{
    taker *t = user;
    for (int i = 0; t->status == LM_OK && i < t->count; i++) {
        if (t->operands[i].layer == call->layer) {
            take_call(t, i, call);
        }
    }
}

/* ------------------------------------------------------------------ all calls */

static int read_tokens(taker *t, const lm_group *group, const int32_t *tokens, lm_error *error)
{
    int status = LM_OK;
    for (; status == LM_OK && t->at < t->rows; t->at += t->step) {
        t->step = t->rows - t->at < LM_STEP ? t->rows - t->at : LM_STEP;
        status = lm_session_decode(group->sessions[0], tokens + t->at, (int)t->step, 0, error);
        status = status == LM_OK ? t->status : status;
        if (group->progress) {
            group->progress(group->user, (double)(t->at + t->step) / (double)t->rows);
        }
    }
    for (int i = 0; status == LM_OK && i < t->count; i++) {
        if (t->seen[i] != t->rows) {
            status = lm__fail(error, LM_EMODEL, "layer %d of this model has no attention over a cache", t->operands[i].layer);
        }
    }
    return status;
}

int lm_operands_take(lm_operands *operands, int count, const lm_group *group, const int32_t *tokens, int rows, int with_out,
                     lm_error *error)
{
    taker t = { .operands = operands, .count = count, .with_out = with_out, .rows = rows, .error = error };
    int slot = group->sessions[0]->slot;
    t.seen = calloc((size_t)count + 1, sizeof *t.seen);
    if (!t.seen) {
        return lm__fail(error, LM_ENOMEM, "out of memory");
    }
    lm__plugin_observe(slot, on_call, &t);
    int status = read_tokens(&t, group, tokens, error);
    lm__plugin_observe(slot, NULL, NULL);
    free(t.seen);
    return status;
}

void lm_operands_free(lm_operands *operands)
{
    free(operands->q);
    free(operands->k);
    free(operands->v);
    free(operands->out);
    operands->q = operands->out = NULL;
    operands->k = operands->v = NULL;
}
