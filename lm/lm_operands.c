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

/* One job: rows at .. at + step - 1 are being decoded; `first` is the row that cell 0 of the cache belongs to. */
typedef struct taker {
    lm_operands *operands;
    lm_hidden *hidden; /* NULL: not wanted */
    lm_session *session;
    int count;
    unsigned take;
    int64_t rows, window, at, step, first;
    int shown;      /* layers that have shown this step */
    int is_checked; /* that there is memory for all layers */
    int status;     /* of what happened inside llama.cpp's call */
    char hidden_name[48];
    lm_error *error;
} taker;

/* ------------------------------------------------------------------ one call */

/* Rows of every head from `first` on, to where row `place` of each head of a packed (heads, room, dim) array begins. */
static void copy_rows(void *to, int64_t room, int64_t place, const kna_rows *from, int64_t first, int64_t count)
{
    size_t row_bytes = kna_type_row_bytes(from->type, from->dim);
    for (int64_t head = 0; head < from->heads; head++) {
        const char *source = (const char *)from->data + head * from->head_stride_bytes;
        char *target = (char *)to + (size_t)(head * room + place) * row_bytes;
        for (int64_t row = 0; row < count; row++) {
            memcpy(target + (size_t)row * row_bytes, source + (first + row) * from->row_stride_bytes, row_bytes);
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

/* Every token sees its own cell, none behind it and none of another text: cells lie in the order of positions. */
static int is_by_position(const taker *t, const struct knnattn_operands *call)
{
    int64_t from = t->at - t->first;
    int fits = call->mask.data && call->stream == 0 && call->q.rows == t->step && call->k.rows >= from + t->step;
    for (int64_t i = 0; fits && i < t->step; i++) {
        fits = is_visible(&call->mask, i, from + i);
        for (int64_t cell = from + i + 1; fits && cell < call->k.rows; cell++) {
            fits = !is_visible(&call->mask, i, cell);
        }
        for (int64_t cell = (from + i) / t->window * t->window - 1; fits && cell >= 0; cell--) {
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

/* Room for an array, if it is wanted. */
static void *room_for(const taker *t, unsigned which, size_t bytes, int *fits)
{
    void *room = t->take & which ? malloc(bytes) : NULL;
    *fits &= room || !(t->take & which);
    return room;
}

static int make_room(taker *t, lm_operands *to, const struct knnattn_operands *call)
{
    size_t q = (size_t)(call->q.heads * t->rows * call->q.dim) * sizeof(float);
    size_t k = (size_t)(call->k.heads * t->rows) * kna_type_row_bytes(call->k.type, call->k.dim);
    size_t v = (size_t)(call->v.heads * t->rows) * kna_type_row_bytes(call->v.type, call->v.dim);
    size_t out = (size_t)(call->q.heads * t->rows * call->v.dim) * sizeof(float);
    size_t all = (t->take & LM_TAKE_Q ? q : 0) + (t->take & LM_TAKE_K ? k : 0) + (t->take & LM_TAKE_V ? v : 0) +
                 (t->take & LM_TAKE_OUT ? out : 0);
    int fits = 1, status = check_room(t, all);
    if (status != LM_OK) {
        return status;
    }
    to->q = room_for(t, LM_TAKE_Q, q, &fits);
    to->k = room_for(t, LM_TAKE_K, k, &fits);
    to->v = room_for(t, LM_TAKE_V, v, &fits);
    to->out = room_for(t, LM_TAKE_OUT, out, &fits);
    if (!fits) {
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
    if (to->q) {
        copy_rows(to->q, t->rows, t->at, &call->q, 0, t->step);
    }
    if (to->k) {
        copy_rows(to->k, t->rows, t->at, &call->k, t->at - t->first, t->step);
    }
    if (to->v) {
        copy_rows(to->v, t->rows, t->at, &call->v, t->at - t->first, t->step);
    }
    if (to->out) {
        const kna_rows out = { call->out.data,
                               KNA_F32,
                               to->heads,
                               t->step,
                               to->value_dim,
                               call->out.head_stride_bytes,
                               call->out.row_stride_bytes,
                               NULL };
        copy_rows(to->out, t->rows, t->at, &out, 0, t->step);
    }
}

static void take_call(taker *t, int i, const struct knnattn_operands *call)
{
    lm_operands *to = &t->operands[i];
    if (!is_by_position(t, call)) {
        t->status = lm__fail(t->error, LM_EMODEL, "layer %d: the cache of this model is not laid out by position", to->layer);
    } else if (to->rows == 0) {
        t->status = make_room(t, to, call);
    }
    if (t->status == LM_OK) {
        copy_call(t, to, call);
        t->shown++;
    }
}

static int all_shown(const taker *t)
{
    return t->shown == t->count + (t->hidden ? 1 : 0);
}

/* Once all is seen, or nothing can be kept any more, the rest of the graph is for nobody. */
static void stop_if_done(const taker *t)
{
    if (t->status != LM_OK || all_shown(t)) {
        t->session->is_stopped = 1;
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
    stop_if_done(t);
}

/* ------------------------------------------------------------------ hidden states */

static int make_hidden_room(taker *t, int64_t dim)
{
    double bytes = (double)t->rows * (double)dim * (double)sizeof(float);
    int status = lm__check_bytes(bytes, "keeping the hidden states", t->error);
    if (status == LM_OK) {
        t->hidden->x = malloc((size_t)bytes);
        t->hidden->rows = t->rows;
        t->hidden->dim = dim;
        status = t->hidden->x ? LM_OK : lm__fail(t->error, LM_ENOMEM, "out of memory for the hidden states");
    }
    return status;
}

static void take_hidden(taker *t, const struct ggml_tensor *tensor)
{
    lm_hidden *to = t->hidden;
    if (tensor->type != GGML_TYPE_F32 || !ggml_is_contiguous(tensor) || ggml_nrows(tensor) != t->step ||
        (to->x && tensor->ne[0] != to->dim)) {
        t->status = lm__fail(t->error, LM_EMODEL, "%s of this model does not hold one row of numbers per token", t->hidden_name);
    } else if (!to->x) {
        t->status = make_hidden_room(t, tensor->ne[0]);
    }
    if (t->status == LM_OK) {
        ggml_backend_tensor_get(tensor, to->x + t->at * to->dim, 0, ggml_nbytes(tensor));
        t->shown++;
    }
}

/* What llama.cpp asks: is this tensor wanted, and here it is. */
static bool on_tensor(struct ggml_tensor *tensor, bool ask, void *user)
{
    taker *t = user;
    int is_it = strcmp(tensor->name, t->hidden_name) == 0;
    if (!ask && is_it && t->status == LM_OK) {
        take_hidden(t, tensor);
        stop_if_done(t);
    }
    return ask ? is_it : true;
}

/* ------------------------------------------------------------------ all calls */

int lm_stretch_texts(int rows, int window)
{
    int64_t whole = window > 0 && window < LM_STEP ? LM_STEP / window : 1,
            needed = window > 0 ? ((int64_t)rows + window - 1) / window : 1;
    int64_t most = (int64_t)llama_max_parallel_sequences();
    whole = whole < most ? whole : most;
    return (int)(whole < needed ? whole : needed);
}

int lm_stretch_positions(int rows, int window)
{
    int64_t positions = window > 0 ? (int64_t)window * lm_stretch_texts(rows, window) : rows;
    return positions < rows ? (int)positions : rows;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* One step of the texts from row `first` on, which end before row `end`. What ends them need not be kept. */
static int read_step(taker *t, const int32_t *tokens, int64_t end, lm_error *error)
{
    t->step = least(end - t->at, LM_STEP);
    t->shown = 0;
    int status = LM_OK;
    if (t->at + t->step == end) {
        status = lm__decode_forget(t->session, tokens + t->at, (int)t->step, (int)t->window, t->hidden != NULL, error);
    } else {
        status = lm_session_decode(t->session, tokens + t->at, (int)t->step, t->hidden ? (int)t->step : 0, error);
    }
    return t->status == LM_OK ? status : t->status;
}

/* Every layer and the hidden states must have shown themselves. Those that have not are named by what is not there yet. */
static int check_shown(const taker *t, lm_error *error)
{
    if (all_shown(t)) {
        return LM_OK;
    }
    for (int i = 0; i < t->count; i++) {
        if (t->operands[i].rows == 0) {
            return lm__fail(error, LM_EMODEL, "layer %d of this model has no attention over a cache", t->operands[i].layer);
        }
    }
    return lm__fail(error, LM_EMODEL, "this model has no %s, what its last feed-forward part would be given", t->hidden_name);
}

static int read_tokens(taker *t, const lm_group *group, const int32_t *tokens, lm_error *error)
{
    const int64_t stride = t->window * lm_stretch_texts((int)t->rows, (int)t->window);
    int status = LM_OK;
    for (; status == LM_OK && t->first < t->rows; t->first += stride) {
        const int64_t end = least(t->first + stride, t->rows);
        for (t->at = t->first; status == LM_OK && t->at < end; t->at += t->step) {
            status = read_step(t, tokens, end, error);
            status = status == LM_OK ? check_shown(t, error) : status;
            if (group->progress) {
                group->progress(group->user, (double)(t->at + t->step) / (double)t->rows);
            }
        }
    }
    return status;
}

int lm_operands_take(lm_operands *operands, int count, lm_hidden *hidden, const lm_group *group, const lm_stretch *stretch,
                     lm_error *error)
{
    lm_session *session = group->sessions[0];
    taker t = { .operands = operands, .count = count, .hidden = hidden, .session = session, .error = error };
    t.take = stretch->take;
    t.rows = stretch->rows;
    t.window = stretch->window > 0 ? least(stretch->window, stretch->rows) : stretch->rows;
    snprintf(t.hidden_name, sizeof t.hidden_name, "ffn_norm-%d", lm_model_layers(group->model) - 1);
    lm__plugin_observe(session->slot, on_call, &t);
    session->on_tensor = hidden ? on_tensor : NULL;
    session->on_tensor_user = &t;
    int status = read_tokens(&t, group, stretch->tokens, error);
    session->on_tensor = NULL;
    lm__plugin_observe(session->slot, NULL, NULL);
    return status;
}

void lm_hidden_free(lm_hidden *hidden)
{
    free(hidden->x);
    hidden->x = NULL;
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
