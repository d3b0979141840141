/* lm_internal.h - what the files of this room share and its users need not see. */
#ifndef KNA_LM_INTERNAL_H
#define KNA_LM_INTERNAL_H

#include <stddef.h>

#include "../ggml/knnattn.h"
#include "ggml-backend.h"
#include "llama.h"
#include "lm.h"

#if defined(__GNUC__)
#    define LM_PRINTF(format_at, first_at) __attribute__((format(printf, format_at, first_at)))
#else
#    define LM_PRINTF(format_at, first_at)
#endif

struct lm_model {
    struct llama_model *llama;
    const struct llama_vocab *vocab;
    int positions; /* trained with; llama.cpp's own figure changes with the first context that uses YaRN */
    char name[256];
};

struct lm_session {
    lm_model *model;
    struct llama_context *llama;
    struct llama_batch batch;
    lm_attention attention;
    int opened; /* the method it was opened with */
    int positions, batch_size, logit_rows, threads;
    int yarn;
    int texts;                           /* sequences the cache can tell apart */
    ggml_backend_sched_eval_callback on_tensor; /* of whoever keeps hidden states just now; NULL: nobody */
    void *on_tensor_user;
    int is_stopped; /* the rest of the graph is not needed */
    int count;
    int last_count, last_scored; /* of the latest decode: where its logits are */
    lm_timing timing;
    int slot; /* of the plugin's counters */
};

/* lm__fail() - write the sentence, return the status. */
int lm__fail(lm_error *error, int status, const char *format, ...) LM_PRINTF(3, 4);

/* lm__log_reset() - forget the last complaint of llama.cpp; lm__log_last() - that complaint since then, "" if none. */
void lm__log_reset(void);
const char *lm__log_last(void);

/* lm__decode_forget() - decode tokens of texts of `window` tokens each, read side by side by themselves, the last of them possibly shorter; or, if
 * count <= window, tokens that follow those in the cache. Whoever watches the session may set is_stopped when all is seen, which saves
 * the rest. scored: 1: rows of all tokens reach the end of the last layer. The cache is empty afterwards. */
int lm__decode_forget(lm_session *session, const int32_t *tokens, int count, int window, int scored, lm_error *error);

/* lm__beside_executable() - "<folder of this program>/<name>" into path. 0: it does not fit or the folder is unknown. */
int lm__beside_executable(char *path, size_t size, const char *name);

/* lm__check_bytes() - LM_ENOMEM if so many bytes exceed the memory at hand; `what` is the subject of the sentence. */
int lm__check_bytes(double needed, const char *what, lm_error *error);

/* lm__check_room() - the same for the context of a session. */
int lm__check_room(const lm_session *session, lm_error *error);

/* lm__is_flash() - does this attention compute on llama.cpp's graph with flash attention? */
int lm__is_flash(const lm_attention *attention);

/* lm__state_transpose() - a state saved by a context with flash attention becomes one for a context without: values are stored
 * number by number there, not row by row. 0: a state this does not understand; its contents are lost then. */
int lm__state_transpose(void *state, size_t bytes);

/* lm__plugin_wanted() - the path given to lm_runtime_open(), or NULL. */
const char *lm__plugin_wanted(void);

/* ------------------------------------------------------------------ the plugin (lm_plugin.c) */

/* lm__plugin_find() - is it registered already, because GGML_BACKEND_PATH names it? Called once, after the backends are loaded. */
void lm__plugin_find(void);
void lm__plugin_close(void);

/* lm__slot_take() - a slot of the plugin's counters for one session; -1: all are taken. lm__slot_give() - give it back. */
int lm__slot_take(void);
void lm__slot_give(int slot);

/* lm__plugin_set() - settings for what comes next, loading the plugin if they need it. */
int lm__plugin_set(const lm_attention *attention, int slot, lm_error *error);

/* lm__plugin_observe() - show the calls of a slot to an observer, NULL: to nobody. A plugin must be loaded. */
void lm__plugin_observe(int slot, knnattn_observer_t observer, void *user);

void lm__plugin_usage(int slot, lm_usage *usage);
void lm__plugin_reset(int slot);

#endif /* KNA_LM_INTERNAL_H */
