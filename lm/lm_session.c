/*
 * lm_session.c - a context of llama.cpp with its own attention: decode, logits, truncate, time.
 *
 * Stage: tokens -> logits. Invariant: `count` tokens, positions 0 .. count-1 of sequence 0, are in the cache; the plugin has this
 * session's settings whenever llama.cpp builds or runs a graph of it.
 */
#define _GNU_SOURCE /* clock_gettime */
#include "lm_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_s(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

int lm__is_flash(const lm_attention *attention)
{
    return attention->method != LM_OFF || attention->flash;
}

static bool show_tensor(struct ggml_tensor *tensor, bool ask, void *user)
{
    lm_session *session = user;
    return session->on_tensor ? session->on_tensor(tensor, ask, session->on_tensor_user) : !ask;
}

/* YaRN, on top of whatever stretching the model was trained with. */
static void stretch(struct llama_context_params *params, const lm_model *model, double times)
{
    double trained = (double)llama_model_rope_freq_scale_train(model->llama);
    params->rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
    params->rope_freq_scale = (float)(trained / times);
    params->yarn_orig_ctx = trained >= 1.0 ? (uint32_t)model->positions : 0;
}

static struct llama_context_params context_params(lm_session *session, int watch)
{
    struct llama_context_params params = llama_context_default_params();
    double times = session->yarn ? lm_model_yarn(session->model, session->positions) : 1.0;
    params.n_ctx = (uint32_t)session->positions;
    params.n_batch = (uint32_t)session->batch_size;
    params.n_ubatch = (uint32_t)session->batch_size;
    params.n_outputs_max = (uint32_t)session->logit_rows;
    params.n_threads = session->threads;
    params.n_threads_batch = session->threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    if (lm__is_flash(&session->attention)) {
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    }
    if (times > 1.0) {
        stretch(&params, session->model, times);
    }
    params.n_seq_max = (uint32_t)session->texts;
    params.kv_unified = session->texts > 1;
    if (watch) {
        params.cb_eval = show_tensor;
        params.cb_eval_user_data = session;
    }
    params.offload_kqv = false;
    params.op_offload = false;
    return params;
}

static int check_options(const lm_session_options *options, lm_error *error)
{
    if (options->positions < 1 || options->batch < 0 || options->logits < 0 || options->threads < 0) {
        return lm__fail(error, LM_EINVAL,
                        "context %d, batch %d, logits %d, threads %d: the context must be at least 1, none negative",
                        options->positions, options->batch, options->logits, options->threads);
    }
    if (options->texts < 0 || options->texts > (int)llama_max_parallel_sequences()) {
        return lm__fail(error, LM_EINVAL, "%d texts side by side: at most %d", options->texts, (int)llama_max_parallel_sequences());
    }
    if (options->attention.method < 0 || options->attention.method >= LM_METHOD_COUNT) {
        return lm__fail(error, LM_EINVAL, "attention method %d does not exist", options->attention.method);
    }
    return LM_OK;
}

static int at_most(int value, int limit)
{
    return value < limit ? value : limit;
}

static void take_options(lm_session *session, const lm_session_options *options)
{
    session->attention = options->attention;
    session->opened = options->attention.method;
    session->yarn = options->yarn;
    session->texts = options->texts > 0 ? options->texts : 1;
    session->positions = options->positions;
    session->batch_size = at_most(options->batch > 0 ? options->batch : 512, options->positions);
    session->logit_rows = options->logits > 0 ? at_most(options->logits, session->batch_size) : session->batch_size;
    session->threads = options->threads > 0 ? options->threads : lm_processors();
}

int lm_session_open(lm_session **out, lm_model *model, const lm_session_options *options, lm_error *error)
{
    *out = NULL;
    int status = check_options(options, error);
    if (status != LM_OK) {
        return status;
    }
    lm_session *session = calloc(1, sizeof *session);
    if (!session) {
        return lm__fail(error, LM_ENOMEM, "out of memory");
    }
    session->model = model;
    session->slot = lm__slot_take();
    take_options(session, options);
    status = session->slot < 0 ? lm__fail(error, LM_ELIMIT, "too many sessions at once") : lm__check_room(session, error);
    status = status == LM_OK ? lm__plugin_set(&session->attention, session->slot, error) : status;
    if (status != LM_OK) {
        goto fail;
    }
    lm__log_reset();
    session->llama = llama_init_from_model(model->llama, context_params(session, options->watch));
    session->batch = llama_batch_init(session->batch_size, 0, 1);
    if (!session->llama || !session->batch.token) {
        status = lm__fail(error, LM_ENOMEM, "cannot make a context of %d positions: %s", session->positions, lm__log_last());
        goto fail;
    }
    *out = session;
    return LM_OK;
fail:
    lm_session_close(session);
    return status;
}

void lm_session_close(lm_session *session)
{
    if (!session) {
        return;
    }
    if (session->batch.token) {
        llama_batch_free(session->batch);
    }
    if (session->llama) {
        llama_free(session->llama);
    }
    lm__slot_give(session->slot);
    free(session);
}

/* ------------------------------------------------------------------ decode */

static void fill_batch(lm_session *session, const int32_t *tokens, int count, int scored)
{
    struct llama_batch *batch = &session->batch;
    batch->n_tokens = count;
    for (int i = 0; i < count; i++) {
        batch->token[i] = tokens[i];
        batch->pos[i] = session->count + i;
        batch->n_seq_id[i] = 1;
        batch->seq_id[i][0] = 0;
        batch->logits[i] = i >= count - scored;
    }
}

static int check_decode(const lm_session *session, const int32_t *tokens, int count, int scored, lm_error *error)
{
    if (count < 1 || count > session->batch_size || scored < 0 || scored > count || scored > session->logit_rows) {
        return lm__fail(error, LM_EINVAL, "a step of %d tokens with %d logit rows: at most %d tokens and %d rows", count, scored,
                        session->batch_size, session->logit_rows);
    }
    if (count > session->positions - session->count) {
        return lm__fail(error, LM_ELIMIT, "%d more tokens after %d do not fit into a context of %d", count, session->count,
                        session->positions);
    }
    for (int i = 0; i < count; i++) {
        if (tokens[i] < 0 || tokens[i] >= lm_model_vocab(session->model)) {
            return lm__fail(error, LM_EINVAL, "token %d is not in the vocabulary of %d", tokens[i], lm_model_vocab(session->model));
        }
    }
    return LM_OK;
}

/* One token behind others is a decode; the first token of all is a prefill, however short. */
static void add_time(lm_timing *timing, int count, int before, double seconds)
{
    if (count == 1 && before > 0) {
        timing->decode_s += seconds;
        timing->decode_tokens++;
    } else {
        timing->prefill_s += seconds;
        timing->prefill_tokens += count;
    }
}

int lm_session_decode(lm_session *session, const int32_t *tokens, int count, int scored, lm_error *error)
{
    int status = check_decode(session, tokens, count, scored, error);
    if (status == LM_OK) {
        status = lm__plugin_set(&session->attention, session->slot, error);
    }
    if (status != LM_OK) {
        return status;
    }
    fill_batch(session, tokens, count, scored);
    session->last_scored = 0;
    lm__log_reset();
    double start_s = now_s();
    int32_t code = llama_decode(session->llama, session->batch);
    llama_synchronize(session->llama);
    double seconds = now_s() - start_s;
    if (code != 0) {
        llama_memory_seq_rm(llama_get_memory(session->llama), 0, session->count, -1);
        return lm__fail(error, LM_EDECODE, "llama.cpp cannot decode %d tokens at position %d (code %d): %s", count, session->count,
                        (int)code, lm__log_last());
    }
    add_time(&session->timing, count, session->count, seconds);
    session->count += count;
    session->last_count = count;
    session->last_scored = scored;
    return LM_OK;
}

const float *lm_session_logits(const lm_session *session, int i)
{
    if (i < 0 || i >= session->last_scored) {
        return NULL;
    }
    return llama_get_logits_ith(session->llama, session->last_count - session->last_scored + i);
}

/* Who computes a node is decided when a graph is laid out, and llama.cpp keeps graphs: a control vector, none at all in this case,
 * makes it lay them out anew. */
int lm_session_attention(lm_session *session, const lm_attention *attention, lm_error *error)
{
    int can = session->opened == LM_EXACT && (attention->method == LM_EXACT || (attention->method == LM_OFF && attention->flash));
    if (!can) {
        return lm__fail(error, LM_EINVAL, "a session opened with %s cannot go on with %s", lm_method_names[session->opened],
                        lm_method_names[attention->method]);
    }
    if (attention->method != session->attention.method) {
        llama_set_adapter_cvec(session->llama, NULL, 0, 0, 0, 0);
    }
    session->attention = *attention;
    return LM_OK;
}

int lm_session_truncate(lm_session *session, int count, lm_error *error)
{
    if (count < 0 || count > session->count) {
        return lm__fail(error, LM_EINVAL, "cannot keep %d of %d tokens", count, session->count);
    }
    if (count < session->count && !llama_memory_seq_rm(llama_get_memory(session->llama), 0, count, -1)) {
        return lm__fail(error, LM_EDECODE, "this model's memory cannot be cut back to %d tokens", count);
    }
    session->count = count;
    session->last_scored = 0;
    return LM_OK;
}

int lm_session_warm(lm_session *session, lm_error *error)
{
    int32_t tokens[8] = { 0 };
    int count = at_most(8, at_most(session->batch_size, session->positions - 1));
    if (session->count != 0 || count < 1) {
        return LM_OK;
    }
    int status = lm_session_decode(session, tokens, count, 1, error);
    if (status == LM_OK) {
        status = lm_session_decode(session, tokens, 1, 1, error);
    }
    if (status == LM_OK) {
        status = lm_session_truncate(session, 0, error);
    }
    lm_session_reset_figures(session);
    return status;
}

int lm_decode_all(lm_session *const *sessions, int count, int first, const int32_t *tokens, int n, int scored, lm_error *error)
{
    for (int i = 0; i < count; i++) {
        int status = lm_session_decode(sessions[(first + i) % count], tokens, n, scored, error);
        if (status != LM_OK) {
            return status;
        }
    }
    return LM_OK;
}

/* ------------------------------------------------------------------ facts */

int lm_session_count(const lm_session *session)
{
    return session->count;
}

int lm_session_positions(const lm_session *session)
{
    return session->positions;
}

int lm_session_threads(const lm_session *session)
{
    return session->threads;
}

const lm_timing *lm_session_timing(const lm_session *session)
{
    return &session->timing;
}

void lm_session_usage(const lm_session *session, lm_usage *usage)
{
    lm__plugin_usage(session->slot, usage);
}

double lm_usage_full(const lm_usage *usage)
{
    return usage->keys_seen > 0.0 ? usage->keys_full / usage->keys_seen : 1.0;
}

void lm_session_reset_figures(lm_session *session)
{
    memset(&session->timing, 0, sizeof session->timing);
    lm__plugin_reset(session->slot);
}
