/*
 * lm_ask.h - ask sessions questions whose right answer is known, and score how likely they find it.
 *
 * A reader knows what its sessions' caches hold and reads only what a prompt does not share with it: questions on one context read
 * the context once. All sessions of the group see the same tokens; each answers for itself.
 */
#ifndef KNA_LM_ASK_H
#define KNA_LM_ASK_H

#include "lm_run.h"
#include "lm_task.h"

typedef enum lm_measure {
    LM_MATCH,    /* greedy: 1 where the tokens made are the right answer; for a set of words the share of them that was made */
    LM_ACCURACY, /* share of the answer's tokens that were the most likely one, the right ones before it given */
    LM_LOGPROB   /* mean log-probability of the answer's tokens, the right ones before it given */
} lm_measure;
#define LM_MEASURES 3

/* "match", "accuracy", "logprob", NULL */
extern const char *const lm_measure_names[LM_MEASURES + 1];

typedef struct lm_answer {
    double measures[LM_MEASURES];
    int tokens; /* of the right answer */
} lm_answer;

typedef struct lm_reader {
    lm_group group;
    int32_t *held; /* what the caches hold */
    int count;
    int64_t decoded; /* tokens decoded by each session so far, prompts and answers */
    int64_t shared;  /* tokens of prompts that were in the caches already */
    int64_t planned; /* the caller's: tokens that will be decoded in all; the group's progress is told decoded / planned */
} lm_reader;

/* lm_reader_open() - the sessions' caches are emptied. */
int lm_reader_open(lm_reader *reader, const lm_group *group, lm_error *error);
void lm_reader_close(lm_reader *reader);

#define LM_ANSWER_ROOM \
    12 /* positions a session needs beyond a prompt with its answer: a set of words is looked for in so many more */

/*
 * lm_ask() - one prompt, one answer per session.
 *
 * The prompt is read in steps of LM_STEP; the answer is decoded token by token, as a program would make it. Where the answer is a
 * set, a token that begins a word is right if it begins any word not yet given, with the sum of their probabilities. LM_MATCH, for
 * one answer in one order, is 1 exactly if every token was the most likely one; for a set the sessions also go on by themselves.
 */
int lm_ask(lm_answer *answers, lm_reader *reader, const lm_prompt *prompt, lm_error *error);

/* lm_share_found() - share of the prompt's words that stand in a text, as words. */
double lm_share_found(const lm_prompt *prompt, const char *text);

#endif /* KNA_LM_ASK_H */
