/* lm_task_internal.h - what the builders of the tasks share: growing text, dice, words, real text with things put in between. */
#ifndef KNA_LM_TASK_INTERNAL_H
#define KNA_LM_TASK_INTERNAL_H

#include "lm_internal.h"
#include "lm_task.h"

/* ------------------------------------------------------------------ text that grows (lm_task_words.c) */

/* bytes end with a zero beyond count. failed: out of memory; what is there is not whole then, and adding does nothing. */
typedef struct lm_text {
    char *bytes;
    size_t count, room;
    int failed;
} lm_text;

void lm__text_add(lm_text *text, const char *bytes, size_t count);
void lm__text_print(lm_text *text, const char *format, ...) LM_PRINTF(2, 3);

/* ------------------------------------------------------------------ dice and words (lm_task_words.c) */

/* Streams of one sample's seed: what one builder draws must not move what another part of the prompt draws. */
enum { LM_STREAM_FILLER, LM_STREAM_ASKED, LM_STREAM_OTHERS, LM_STREAM_ORDER };

typedef struct lm_dice {
    uint64_t seed, step;
} lm_dice;

lm_dice lm__dice(uint64_t seed, uint64_t stream);
int lm__roll(lm_dice *dice, int limit); /* 0 .. limit-1 */
double lm__roll_share(lm_dice *dice);   /* in [0,1) */
void lm__shuffle(lm_dice *dice, int *items, int count);

#define LM_WORD_BYTES 32
typedef char lm_word[LM_WORD_BYTES];

void lm__made_word(lm_word word, lm_dice *dice); /* three syllables: "baluri" */
void lm__real_word(lm_word word, lm_dice *dice,
                   const lm_filler *filler); /* 4 to 9 small letters from the filler; made if none is met */

/* lm__names() - two-word names, all different; at most LM_NAMES_MAX. */
#define LM_NAMES_MAX 256
void lm__names(lm_word *names, int count, lm_dice *dice);

/* lm__is_new() - is words[count] none of those before it? */
int lm__is_new(const lm_word *words, int count);

/* ------------------------------------------------------------------ prompts (lm_task.c) */

/* A task being built; size is what grows with the length: filler tokens or entries of a list. */
typedef struct lm_builder {
    const lm_case_plan *plan;
    int size;
    lm_case *out;
} lm_builder;

/* lm__prompt_add() - context, question and answer as one more prompt. LM_OK or LM_ENOMEM, also if one of the texts had failed. */
int lm__prompt_add(lm_case *to, const lm_text *context, const lm_text *question, const lm_text *answer, int depth);

/* lm__prompt_add_set() - the same with an answer of words: " a, b, c". */
int lm__prompt_add_set(lm_case *to, const lm_text *context, const lm_text *question, const lm_word *words, int count);

/* Something put into the filler, before the first line at or behind this share of it. */
typedef struct lm_insert {
    double at; /* 0..1 */
    char text[512];
} lm_insert;

/* lm__haystack() - `size` tokens of filler, from a place drawn by the sample's seed on, with the inserts in between, sorted here. */
void lm__haystack(lm_text *to, const lm_builder *b, lm_insert *inserts, int count);

/* The builders, one per task (lm_task_needles.c, lm_task_lists.c). */
int lm__build_passkey(lm_builder *b);
int lm__build_needles(lm_builder *b);
int lm__build_kv(lm_builder *b);
int lm__build_repeat(lm_builder *b);
int lm__build_tracking(lm_builder *b);
int lm__build_common(lm_builder *b);
int lm__build_frequent(lm_builder *b);

#endif /* KNA_LM_TASK_INTERNAL_H */
