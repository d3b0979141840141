/*
 * lm_forget.c - read texts by themselves, side by side, for what is seen inside the model on the way; nothing stays in the cache.
 *
 * Stage: beside lm_session.c, for jobs that watch. Invariant: token i of a text has position i and sees that text alone. Where a watcher has
 * seen all it wants, llama.cpp's own way of aborting ends the graph: reading keys of an early layer takes the time of the layers before it.
 */
#include "lm_internal.h"

static bool is_stopped(void *user)
{
    const lm_session *session = user;
    return session->is_stopped;
}

static void fill(lm_session *session, const int32_t *tokens, int count, int window, int scored)
{
    struct llama_batch *batch = &session->batch;
    batch->n_tokens = count;
    for (int i = 0; i < count; i++) {
        batch->token[i] = tokens[i];
        batch->pos[i] = session->count + i % window;
        batch->n_seq_id[i] = 1;
        batch->seq_id[i][0] = i / window;
        batch->logits[i] = scored != 0;
    }
}

static int check(const lm_session *session, int count, int window, int scored, lm_error *error)
{
    int texts = window > 0 ? (count + window - 1) / window : 0;
    if (count < 1 || count > session->batch_size || (scored && count > session->logit_rows)) {
        return lm__fail(error, LM_EINVAL, "a step of %d tokens: at most %d, %d with all rows", count, session->batch_size,
                        session->logit_rows);
    }
    if (texts < 1 || texts > session->texts || (texts > 1 && session->count > 0)) {
        return lm__fail(error, LM_EINVAL, "%d texts side by side behind %d tokens: at most %d, into an empty cache", texts,
                        session->count, session->texts);
    }
    if (count > session->positions - session->count) {
        return lm__fail(error, LM_ELIMIT, "%d more tokens after %d do not fit into a context of %d", count, session->count,
                        session->positions);
    }
    return LM_OK;
}

int lm__decode_forget(lm_session *session, const int32_t *tokens, int count, int window, int scored, lm_error *error)
{
    int status = check(session, count, window, scored, error);
    status = status == LM_OK ? lm__plugin_set(&session->attention, session->slot, error) : status;
    if (status != LM_OK) {
        return status;
    }
    fill(session, tokens, count, window, scored);
    session->last_scored = 0;
    session->is_stopped = 0;
    lm__log_reset();
    llama_set_abort_callback(session->llama, is_stopped, session);
    int32_t code = llama_decode(session->llama, session->batch);
    llama_synchronize(session->llama);
    llama_set_abort_callback(session->llama, NULL, NULL);
    llama_memory_seq_rm(llama_get_memory(session->llama), -1, 0, -1);
    if (code != 0 && !(code == 2 && session->is_stopped)) {
        status = lm__fail(error, LM_EDECODE, "llama.cpp cannot decode %d tokens at position %d (code %d): %s", count,
                          session->count, (int)code, lm__log_last());
    }
    session->count = 0;
    return status;
}
