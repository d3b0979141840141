/*
 * lm_task_lists.c - the tasks whose answer is spread over the whole text: tracking, common, frequent.
 *
 * Invariant: the words of the answer depend on the sample's seed alone; no other word of the list is as frequent as one of them.
 */
#include "lm_task_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ tracking */

#define CHAINS 2
#define CHAIN  5

static void letters(lm_word name, lm_dice *dice)
{
    for (int i = 0; i < 5; i++) {
        name[i] = (char)('A' + lm__roll(dice, 26));
    }
    name[5] = '\0';
}

/* Where the statements of a chain stand: in order, one somewhere in each fifth of the text. */
static void place_chain(lm_insert *inserts, const lm_word *names, int value, lm_dice *dice)
{
    for (int i = 0; i < CHAIN; i++) {
        inserts[i].at = (i + lm__roll_share(dice)) / CHAIN;
        if (i == 0) {
            snprintf(inserts[i].text, sizeof inserts[i].text, "VAR %s = %d\n", names[i], value);
        } else {
            snprintf(inserts[i].text, sizeof inserts[i].text, "VAR %s = VAR %s\n", names[i], names[i - 1]);
        }
    }
}

static int ask_chain(lm_builder *b, const lm_text *context, const lm_word *names, int value)
{
    lm_text question = { NULL, 0, 0, 0 };
    lm__text_print(&question,
                   "\nQuestion: which variables have the value %d in the text above, directly or through other variables?\n",
                   value);
    lm__text_print(&question, "Answer: the %d variables with the value %d are", CHAIN, value);
    int status = lm__prompt_add_set(b->out, context, &question, names, CHAIN);
    free(question.bytes);
    return status;
}

int lm__build_tracking(lm_builder *b)
{
    lm_dice dice = lm__dice(b->plan->seed, LM_STREAM_ASKED), places = lm__dice(b->plan->seed, LM_STREAM_ORDER);
    lm_word names[CHAINS * CHAIN];
    lm_insert inserts[CHAINS * CHAIN];
    int values[CHAINS];
    for (int i = 0; i < CHAINS * CHAIN; i++) {
        do {
            letters(names[i], &dice);
        } while (!lm__is_new(names, i));
    }
    for (int c = 0; c < CHAINS; c++) { /* the first digits differ, so the values do */
        values[c] = 10000 * (2 * c + 1 + lm__roll(&dice, 2)) + lm__roll(&dice, 10000);
        place_chain(inserts + (ptrdiff_t)c * CHAIN, names + (ptrdiff_t)c * CHAIN, values[c], &places);
    }
    lm_text context = { NULL, 0, 0, 0 };
    lm__text_print(&context, "Remember the chains of variables that are assigned inside the following text.\n\n");
    lm__haystack(&context, b, inserts, CHAINS * CHAIN);
    int status = LM_OK;
    for (int c = 0; status == LM_OK && c < CHAINS; c++) {
        status = ask_chain(b, &context, names + (ptrdiff_t)c * CHAIN, values[c]);
    }
    free(context.bytes);
    return status;
}

/* ------------------------------------------------------------------ lists of words */

/* Words and the list made of them: entry i is words[order[i]]. */
typedef struct bag {
    lm_word *words;
    int *order;
    int different, entries;
} bag;

static int bag_new(bag *list, int entries)
{
    memset(list, 0, sizeof *list);
    list->words = malloc((size_t)entries * sizeof *list->words);
    list->order = malloc((size_t)entries * sizeof *list->order);
    return list->words && list->order;
}

static void bag_free(bag *list)
{
    free(list->words);
    free(list->order);
}

/* A word not yet there, `times` times, as far as there is room; filler NULL: a made word. */
static void bag_add(bag *list, int room, int times, lm_dice *dice, const lm_filler *filler)
{
    for (int try = 0; try == 0 || !lm__is_new(list->words, list->different); try++) {
        if (filler && try < 8) {
            lm__real_word(list->words[list->different], dice, filler);
        } else { /* the filler holds no further words, it seems */
            lm__made_word(list->words[list->different], dice);
        }
    }
    for (int i = 0; i < times && list->entries < room; i++) {
        list->order[list->entries++] = list->different;
    }
    list->different++;
}

static int ask_bag(lm_builder *b, bag *list, const char *before, const char *question, int asked)
{
    enum { PER_LINE = 12 };
    lm_dice order = lm__dice(b->plan->seed, LM_STREAM_ORDER);
    lm_text context = { NULL, 0, 0, 0 }, after = { NULL, 0, 0, 0 };
    lm__shuffle(&order, list->order, list->entries);
    lm__text_print(&context, "%s\n\n", before);
    for (int i = 0; i < list->entries; i++) {
        int ends_line = (i + 1) % PER_LINE == 0 || i + 1 == list->entries;
        lm__text_print(&context, "%s%s", list->words[list->order[i]], ends_line ? "\n" : " ");
    }
    lm__text_print(&after, "%s", question);
    int status = lm__prompt_add_set(b->out, &context, &after, list->words, asked);
    free(context.bytes);
    free(after.bytes);
    return status;
}

/* Five words take 5/16 of the list, the others come twice. */
int lm__build_common(lm_builder *b)
{
    enum { ASKED = 5, SHARE = 16, LEAST = 4, OTHERS = 2 };
    lm_dice dice = lm__dice(b->plan->seed, LM_STREAM_ASKED);
    int often = b->size / SHARE < LEAST ? LEAST : b->size / SHARE, status = LM_ENOMEM;
    bag list;
    if (bag_new(&list, b->size)) {
        while (list.entries < b->size) {
            bag_add(&list, b->size, list.different < ASKED ? often : OTHERS, &dice, b->plan->filler);
        }
        status = ask_bag(b, &list, "Below is a list of words. Some of them are far more common than the others.",
                         "\nQuestion: which five words are the most common in the list above?\n"
                         "Answer: the five most common words in the list are",
                         ASKED);
    }
    bag_free(&list);
    return status;
}

/* The word of rank r takes 0.6 / r^2 of the text, but each comes at least once. */
int lm__build_frequent(lm_builder *b)
{
    enum { ASKED = 3 };
    lm_dice dice = lm__dice(b->plan->seed, LM_STREAM_ASKED);
    int status = LM_ENOMEM;
    bag list;
    if (bag_new(&list, b->size)) {
        while (list.entries < b->size) {
            double rank = list.different + 1, times = 0.6 * b->size / (rank * rank);
            bag_add(&list, b->size, times < 1.0 ? 1 : (int)times, &dice, NULL);
        }
        status = ask_bag(b, &list, "Below is a text in an unknown language. Keep track of how often each word appears.",
                         "\nQuestion: which three words appear most often in the text above?\n"
                         "Answer: the three words that appear most often are",
                         ASKED);
    }
    bag_free(&list);
    return status;
}
