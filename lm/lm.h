/*
 * lm.h - sessions with a language model: the room of this project that knows llama.cpp.
 *
 * Stage: text -> tokens -> model -> logits. Attention inside the model is llama.cpp's own or, through the ggml plugin, ours.
 * A runtime is opened once per process, a model on it, any number of sessions on a model; close in the reverse order. Sessions
 * with different attention may live side by side and be decoded in turn: each one hands its settings to the plugin before
 * every step, and gets what that step did from the plugin's report.
 *
 * Invariant: a session's cache holds exactly the tokens decoded and not truncated since it was opened; a call that fails
 * leaves it as it was before the call.
 *
 * Every function that can fail returns LM_OK or a negative code and writes one sentence naming the thing and the limit into
 * the lm_error (never NULL). Not thread-safe: one thread drives all sessions. Nothing here prints.
 */
#ifndef KNA_LM_H
#define KNA_LM_H

#include <stddef.h>
#include <stdint.h>

#define LM_STATUS_LIST(X)                                                   \
    X(LM_OK, 0, "success")                                                  \
    X(LM_EFILE, -1, "a file is missing or cannot be read")                  \
    X(LM_EMODEL, -2, "the file is no model that llama.cpp can run")         \
    X(LM_EPLUGIN, -3, "the attention plugin is missing or does not answer") \
    X(LM_EINVAL, -4, "an argument is outside its range")                    \
    X(LM_ELIMIT, -5, "the text does not fit into the context")              \
    X(LM_ENOMEM, -6, "out of memory")                                       \
    X(LM_EDECODE, -7, "llama.cpp failed to decode")

typedef enum lm_status {
#define LM_STATUS_ENUM(name, number, text) name = number,
    LM_STATUS_LIST(LM_STATUS_ENUM)
#undef LM_STATUS_ENUM
} lm_status;

typedef struct lm_error {
    char text[600];
} lm_error;

/* ------------------------------------------------------------------ 1. Runtime */

typedef struct lm_runtime_options {
    const char *llama_dir; /* folder of llama.cpp's backends; NULL: KNA_LLAMA_DIR, else beside the libllama in use */
    const char *plugin;    /* libggml-knnattn.so; NULL: KNA_PLUGIN, else beside the executable, else where it is installed */
    int verbose;           /* 1: llama.cpp's log goes to standard error */
    void (*fatal)(const char *text); /* llama.cpp ends the process where its own small allocations fail; this is called before, and
                                        may end it more gently. NULL: llama.cpp's way */
} lm_runtime_options;

/* lm_runtime_open() - load llama.cpp's CPU backend. The plugin is loaded when a session first asks for it. NULL: all defaults. */
int lm_runtime_open(const lm_runtime_options *options, lm_error *error);
void lm_runtime_close(void);

/* lm_runtime_plugin() - path of the plugin in use, "" while none was asked for. */
const char *lm_runtime_plugin(void);

/* lm_processors() - processors this process may run on. */
int lm_processors(void);

/* ------------------------------------------------------------------ 2. Model and tokens */

typedef struct lm_model lm_model;

/* lm_model_open() - map a GGUF. LM_EFILE: missing or unreadable; LM_EMODEL: no GGUF, cut short, or of an unknown kind. */
int lm_model_open(lm_model **model, const char *path, lm_error *error);
void lm_model_close(lm_model *model);

const char *lm_model_name(const lm_model *model);        /* of the file, without folders and ".gguf" */
int lm_model_vocab(const lm_model *model);               /* number of tokens */
int lm_model_positions(const lm_model *model);           /* context the model was trained with */
int lm_model_layers(const lm_model *model);

/* lm_model_yarn() - how many times YaRN stretches the model's positions so that so many fit; 1: it was trained with as many. */
double lm_model_yarn(const lm_model *model, int positions);
int32_t lm_model_bos(const lm_model *model);             /* token that starts every text, -1: this model takes none */
int lm_model_ends(const lm_model *model, int32_t token); /* 1: an end-of-generation token */

typedef struct lm_tokens {
    int32_t *ids;
    int count;
} lm_tokens;

#define LM_TEXT_SPECIAL 1 /* words like <|im_start|> in the text become the tokens they name */

/* lm_tokenize() - text to tokens, with the model's start token if it takes one. Free with lm_tokens_free(). */
int lm_tokenize(lm_tokens *tokens, const lm_model *model, const char *text, size_t bytes, int flags, lm_error *error);
void lm_tokens_free(lm_tokens *tokens);

/* lm_piece() - the bytes of one token; need not be whole characters. Returns their number (cut at size), no final zero. */
int lm_piece(const lm_model *model, int32_t token, char *bytes, int size);

/* lm_chat() - the text wrapped as one user message by the model's own template; free(*out). LM_EMODEL: it has none known. */
int lm_chat(char **out, const lm_model *model, const char *text, lm_error *error);

/* lm_cut() - length in bytes of the longest prefix of whole lines that has at most `limit` tokens. */
int lm_cut(size_t *cut, const lm_model *model, const char *text, size_t bytes, int limit, lm_error *error);

/* ------------------------------------------------------------------ 3. Attention */

typedef enum lm_method {
    LM_OFF = 0,   /* llama.cpp's own attention */
    LM_EXACT = 1, /* the plugin, every key */
    LM_TOPK = 2,  /* the plugin, k largest logits, the rest dropped */
    LM_KNN = 3    /* the plugin, k nearest in full, the rest estimated */
} lm_method;
#define LM_METHOD_COUNT 4

/* "off", "exact", "topk", "knn", NULL */
extern const char *const lm_method_names[LM_METHOD_COUNT + 1];

/* Settings of one session. A negative number leaves that setting at the plugin's default (ggml/knnattn.h). */
typedef struct lm_attention {
    int method;
    int flash;           /* LM_OFF: 1 as llama.cpp's -fa on, 0 as -fa off. Otherwise not used: the plugin needs it on */
    int64_t k_near;      /* keys read in full per query and head */
    int64_t near_sinks;  /* first keys always read in full */
    int64_t near_window; /* most recent keys always read in full */
    int64_t exact_below; /* every key is read while the last query of a call sees fewer */
    int64_t full_every;  /* layers 0, r, 2 r .. read every key */
    double eps;          /* raise k until the estimated distance to softmax is at most this */
    double delta;        /* raise k until at most this share of rows is off by more than eps, as drawn rows say */
    double audit;        /* share of rows also computed exactly */
} lm_attention;
#define LM_ATTENTION { LM_EXACT, 1, -1, -1, -1, -1, -1, -1.0, -1.0, -1.0 }

/* What the plugin did for a session, over layers and steps. A row is one (query, head) pair. rows = 0: nothing went through it. */
typedef struct lm_usage {
    int64_t rows, rows_exact; /* rows that took every key they see */
    double keys_seen;         /* sum over rows of the keys the mask allows */
    double keys_full;         /* of which: read in full */
    double bytes_share;       /* bytes of keys, values and index read / what exact attention reads */
    double tail_mass;         /* mean share of the softmax that was estimated or dropped */
    int64_t audited;          /* rows also computed exactly */
    double audit_mean;        /* their mean relative error; negative: none */
    double audit_p95;
    double time_s, index_s; /* in attention, and of that for the index */
    size_t index_bytes;     /* most held at once */
    int64_t stale_rows;     /* rows of the cache that changed without notice, found and encoded again */
} lm_usage;

/* lm_usage_full() - share of the keys seen that were read in full, 1 of nothing. */
double lm_usage_full(const lm_usage *usage);

/* ------------------------------------------------------------------ 4. Session */

typedef struct lm_session lm_session;

typedef struct lm_session_options {
    int positions; /* size of the context */
    int batch;     /* most tokens per lm_session_decode(); 0: 512 */
    int logits;    /* most logit rows kept per call; 0: batch */
    int threads;   /* 0: lm_processors() */
    lm_attention attention;
    int yarn; /* 1: beyond what the model was trained with, positions are stretched (lm_model_yarn()); 0: taken as they are */
    int texts; /* most texts read side by side by jobs that do (lm_operands_take()), 0: 1; `positions` are those of all together */
    int watch; /* 1: what the last feed-forward layer is given can be kept (lm_operands_take()) */
} lm_session_options;

/* Time spent inside the model: calls with one token behind others are decode, all others prefill. */
typedef struct lm_timing {
    double prefill_s, decode_s;
    int64_t prefill_tokens, decode_tokens;
} lm_timing;

int lm_session_open(lm_session **session, lm_model *model, const lm_session_options *options, lm_error *error);
void lm_session_close(lm_session *session);

/* lm_session_decode() - append `count` tokens to the cache; the last `scored` of them get logits. */
int lm_session_decode(lm_session *session, const int32_t *tokens, int count, int scored, lm_error *error);

/* lm_session_logits() - logits after the i-th scored token of the last decode, (vocab); valid until the next call. */
const float *lm_session_logits(const lm_session *session, int i);

/* lm_session_attention() - compute differently from the next step on. Only a session opened with LM_EXACT can, between LM_EXACT and
 * LM_OFF with flash: those two leave nothing behind but the cache. */
int lm_session_attention(lm_session *session, const lm_attention *attention, lm_error *error);

/* lm_session_share() - the cache of `from`, which computes with flash attention, into others. After a failure those may be empty.
 * LM_EMODEL: this model's or this llama.cpp's cache is of a kind that a session without flash attention cannot be given. */
int lm_session_share(lm_session *const *to, int count, const lm_session *from, lm_error *error);

/* lm_session_cache_bytes() - what the tokens in the cache take, by llama.cpp's own account. */
size_t lm_session_cache_bytes(const lm_session *session);

/* lm_session_truncate() - keep the first `count` tokens. */
int lm_session_truncate(lm_session *session, int count, lm_error *error);

int lm_session_count(const lm_session *session);     /* tokens in the cache */
int lm_session_positions(const lm_session *session); /* room for as many */
int lm_session_threads(const lm_session *session);
const lm_timing *lm_session_timing(const lm_session *session);
void lm_session_usage(const lm_session *session, lm_usage *usage);
void lm_session_reset_figures(lm_session *session); /* timing and usage start again from zero */

/* lm_session_warm() - of an empty session: one small prefill and one decode, then forget both. The first step of a context pays for
 * page faults and the reading of weights; this keeps that out of the timing. */
int lm_session_warm(lm_session *session, lm_error *error);

/* lm_decode_all() - the same tokens into `count` sessions one after the other, beginning with sessions[first % count], so that a
 * drift of the machine's speed meets all of them alike. */
int lm_decode_all(lm_session *const *sessions, int count, int first, const int32_t *tokens, int n, int scored, lm_error *error);

#endif /* KNA_LM_H */
