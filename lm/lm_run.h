/*
 * lm_run.h - the longer jobs on sessions: score a text, continue it, time both, look at what attention was given.
 *
 * Every job takes one or more sessions that see the same tokens in turn (lm_decode_all); where they are compared, sessions[0] is
 * the reference. Nothing is stored per token but the score: logits are compared while both are at hand.
 */
#ifndef KNA_LM_RUN_H
#define KNA_LM_RUN_H

#include "lm.h"
#include "lm_score.h"

#define LM_SESSIONS_MAX 8
#define LM_STEP         512 /* tokens per step of a prefill */

/* Sessions side by side, and who is told about each step. */
typedef struct lm_group {
    const lm_model *model;
    lm_session *sessions[LM_SESSIONS_MAX];
    int count;
    void (*progress)(void *user, double share); /* 0..1 of the job; NULL: nobody */
    void *user;
} lm_group;

/* ------------------------------------------------------------------ text that is known */

/*
 * lm_score_text() - read `count` tokens into all sessions and score tokens first+1 .. count-1, each from the logits before it.
 *
 * Out:   scores  one per session, added to; NULL: nothing is scored. Sessions 1.. are also compared with session 0.
 *        After it lm_session_logits(s, lm_last_row(count, first)) is the prediction that follows the last token.
 */
int lm_score_text(lm_score *scores, const lm_group *group, const int32_t *tokens, int count, int first, lm_error *error);

/* lm_last_row() - row of the last token's logits after lm_score_text(). */
int lm_last_row(int count, int first);

/*
 * lm_perplexity() - perplexity as llama.cpp's llama-perplexity defines it: windows of `context` tokens one after the other, each
 * from an empty cache and begun with the model's start token, the second half scored.
 *
 * In:    chunks  at most so many windows; 0: all whole ones.
 * Out:   *done   windows read.
 */
int lm_perplexity(lm_score *scores, int *done, const lm_group *group, const lm_tokens *text, int context, int chunks,
                  lm_error *error);

/* ------------------------------------------------------------------ text that is made */

typedef struct lm_generation {
    int count;          /* most tokens to make */
    double temperature; /* 0: always the most likely token */
    uint64_t seed;
    int ignore_end;                           /* 1: end-of-generation tokens are never taken */
    void (*token)(void *user, int32_t token); /* called as each is made; NULL: nobody */
    void *user;
} lm_generation;

/*
 * lm_generate() - continue session `made` from its logits row `row`. With a reference, which must have read the same text, that one
 * is led along the same tokens and compared at every step.
 *
 * Out:   tokens  what was made, end token included; free with lm_tokens_free().
 *        *equal  leading tokens on which the most likely tokens of both agree; NULL without a reference, like score.
 */
int lm_generate(lm_tokens *tokens, lm_score *score, int *equal, const lm_model *model, lm_session *made, lm_session *reference,
                int row, const lm_generation *how, lm_error *error);

/* lm_generate_each() - every session continues on its own, one token each in turn, greedily; end tokens are never taken. */
int lm_generate_each(lm_tokens *tokens, const lm_group *group, int row, int count, lm_error *error);

/* lm_equal() - leading tokens that two runs have in common. */
int lm_equal(const lm_tokens *a, const lm_tokens *b);

/* ------------------------------------------------------------------ speed at a depth */

/* One way of computing attention, in a session that it may share with others (lm_session_attention). */
typedef struct lm_contender {
    lm_session *session;
    lm_attention attention;
} lm_contender;

/* What filling the caches to a depth took, by the session that read the text. */
typedef struct lm_fill {
    int tokens;         /* read, from wherever the cache ended before */
    double time_s;      /* inside the model */
    double index_s;     /* of which: for the index */
    size_t index_bytes; /* most held at once, so far */
    size_t cache_bytes; /* of the tokens now in the cache */
    int is_shared;      /* 0: the others had to read the text themselves, this model's cache cannot be given away */
} lm_fill;

typedef struct lm_speed {
    double prefill_s; /* median time of one prefill of LM_STEP tokens */
    double decode_s;  /* median time of one decoded token */
} lm_speed;

/* lm_speed_reach() - tokens of text that timing at a depth takes. */
int lm_speed_reach(int depth, int decode);

/*
 * lm_fill_to() - the first `depth` tokens of the text into the caches of a group: the last session reads what it does not hold yet,
 * the others are given its cache. Its figures start again from zero before and after.
 */
int lm_fill_to(lm_fill *fill, const lm_group *group, const lm_tokens *text, int depth, lm_error *error);

/*
 * lm_speed_at() - with `depth` tokens of the text in all caches, time steps in rounds. In a round each contender has one turn, in
 * rotating order: one token that is not timed, which brings its own data into the processor's caches, `decode` tokens one by one,
 * then LM_STEP tokens at once; all are taken back. lm_speed_reach() tokens of text are needed.
 */
int lm_speed_at(lm_speed *speeds, const lm_contender *contenders, int count, const lm_group *group, const lm_tokens *text,
                int depth, int decode, int rounds, lm_error *error);

/* ------------------------------------------------------------------ operands of attention */

/* What the attention of one layer was given for a stretch of `rows` tokens, and what it returned. Everything packed, row-major. */
typedef struct lm_operands {
    int layer;
    int64_t heads, kv_heads, rows, dim, value_dim;
    float scale;        /* logit = scale * <q,k> */
    int k_type, v_type; /* as in kna_rows: what the cache is made of, f16 */
    float *q;           /* (heads, rows, dim), unscaled; like the keys as attention sees them, after RoPE */
    void *k, *v;        /* (kv_heads, rows, dim), (kv_heads, rows, value_dim) */
    float *out;         /* (heads, rows, value_dim) */
} lm_operands;

/* What the feed-forward part of the last layer is given, normalised: the state that the next token is told from. */
typedef struct lm_hidden {
    int64_t rows, dim;
    float *x; /* (rows, dim) */
} lm_hidden;

/* Of a layer's operands, what is kept. */
#define LM_TAKE_Q   1u
#define LM_TAKE_K   2u
#define LM_TAKE_V   4u
#define LM_TAKE_OUT 8u
#define LM_TAKE_QKV (LM_TAKE_Q | LM_TAKE_K | LM_TAKE_V)

/* Tokens to be read, and how. */
typedef struct lm_stretch {
    const int32_t *tokens;
    int rows;
    int window; /* the tokens are texts of so many each, the last one possibly shorter, that are read by themselves; 0: one text */
    unsigned take; /* LM_TAKE_..; what is not named stays NULL */
} lm_stretch;

/* lm_stretch_texts(), lm_stretch_positions() - `texts` and `positions` of a session for this. */
int lm_stretch_texts(int rows, int window);
int lm_stretch_positions(int rows, int window);

/*
 * lm_operands_take() - read tokens into the first session, which is empty and computes with the plugin, and keep the operands of some
 * layers. Short texts are read side by side, and none farther into the model than to the last layer that is wanted.
 *
 * In/out: operands  `count` of them; .layer says which layer, all else is zero. Free each with lm_operands_free(), also on failure.
 *         hidden    all zero; the session was opened with `watch` and keeps LM_STEP logit rows. NULL: not wanted. Free likewise.
 * Returns: LM_EMODEL where a layer has no attention, or one whose cache is not laid out by position, or no feed-forward part is found.
 */
int lm_operands_take(lm_operands *operands, int count, lm_hidden *hidden, const lm_group *group, const lm_stretch *stretch,
                     lm_error *error);
void lm_operands_free(lm_operands *operands);
void lm_hidden_free(lm_hidden *hidden);

#endif /* KNA_LM_RUN_H */
