/*
 * lm_task.h - prompts whose right answer is known, made from a seed and real text: what `kna eval` asks a model.
 *
 * Stage: (task, length, depths, seed, filler) -> texts. No model is known here, only a function that counts tokens; asking is
 * lm_ask.h. Invariant: the same arguments give the same bytes, whatever was made before.
 *
 *   passkey   one five-digit number in real text, at each depth in a text of its own
 *   needles   seven-digit numbers under two-word names, one at each depth and four more; each depth is asked for
 *   kv        a JSON object of random keys and values; the value at each depth is asked for
 *   repeat    passages of made-up words in real text, one at each depth; each must be copied word for word
 *   tracking  two chains of five variables, each assigned the one before, scattered over real text: which have this value?
 *   common    a list of words, five of them far more often than all others: which?
 *   frequent  a text in made-up words whose frequencies fall as 1/rank^2: which three lead?
 */
#ifndef KNA_LM_TASK_H
#define KNA_LM_TASK_H

#include "lm.h"

typedef enum lm_task {
    LM_TASK_PASSKEY,
    LM_TASK_NEEDLES,
    LM_TASK_KV,
    LM_TASK_REPEAT,
    LM_TASK_TRACKING,
    LM_TASK_COMMON,
    LM_TASK_FREQUENT
} lm_task;
#define LM_TASK_COUNT 7

/* "passkey", ..., "frequent", NULL */
extern const char *const lm_task_names[LM_TASK_COUNT + 1];

/* lm_task_has_depth() - 1: what is asked for lies at one place; 0: it is spread over the whole text. */
int lm_task_has_depth(int task);

/* Tokens of a text; negative: an lm_status. */
typedef int (*lm_counter)(void *user, const char *text, size_t bytes);

/* ------------------------------------------------------------------ filler */

/* A piece of the filler: a line, or as much of a long one as ends at a blank. */
typedef struct lm_line {
    size_t offset;
    int bytes, tokens;
} lm_line;

/* Real text in lines, read as a ring. */
typedef struct lm_filler {
    const char *text; /* the caller's; must outlive this */
    lm_line *lines;
    int count;
    int64_t tokens; /* of all lines together */
} lm_filler;

/* lm_filler_make() - LM_ELIMIT: there are fewer than 64 tokens; LM_ENOMEM, or what the counter returned. */
int lm_filler_make(lm_filler *filler, const char *text, size_t bytes, lm_counter counter, void *user, lm_error *error);
void lm_filler_free(lm_filler *filler);

/* ------------------------------------------------------------------ prompts */

#define LM_WORDS_MAX  8
#define LM_DEPTHS_MAX 32

/*
 * One question with its context and the right answer behind it. Where the answer is a set of words, the order in which the text
 * gives them is one of many: any word not yet given is right at the beginning of a word.
 */
typedef struct lm_prompt {
    char *text;
    size_t asked, bytes;       /* text[asked .. bytes) is the right answer */
    int depth;                 /* number of its depth in the list; -1: the task has none */
    int words;                 /* words of a set, 0: one answer in one order */
    size_t word[LM_WORDS_MAX]; /* where each begins, with the blank before it */
} lm_prompt;

/* The prompts of one sample, in the order in which neighbours share most: most tasks have one context and several questions. */
typedef struct lm_case {
    lm_prompt *prompts;
    int count;
} lm_case;

typedef struct lm_case_plan {
    int task;
    int length;        /* tokens of the longest prompt with its answer: at most this, and nearly */
    const int *depths; /* percent of the context, ascending; used where the task has depths */
    int depth_count;
    uint64_t seed; /* of this sample */
    const lm_filler *filler;
    lm_counter counter;
    void *user;
} lm_case_plan;

/* lm_case_make() - LM_EINVAL: no depths, too many, or one outside 0..100; LM_ELIMIT: the task does not fit into the length; LM_ENOMEM, or what the counter returned. */
int lm_case_make(lm_case *made, const lm_case_plan *plan, lm_error *error);
void lm_case_free(lm_case *made);

#endif /* KNA_LM_TASK_H */
