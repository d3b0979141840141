/*
 * lm_task_needles.c - the tasks that ask for one place in a long text: passkey, needles, kv, repeat.
 *
 * Invariant: names, numbers and passages depend on the sample's seed alone; a larger size puts more text around them.
 */
#include "lm_task_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DISTRACTORS 4
#define INSERTS_MAX (LM_DEPTHS_MAX + DISTRACTORS)

static double depth_share(const lm_builder *b, int depth)
{
    return b->plan->depths[depth] / 100.0;
}

static void digits(lm_word number, lm_dice *dice, int count)
{
    for (int i = 0; i < count; i++) {
        number[i] = (char)('0' + (i == 0 ? 1 + lm__roll(dice, 9) : lm__roll(dice, 10)));
    }
    number[count] = '\0';
}

/* ------------------------------------------------------------------ passkey */

static int passkey_at(lm_builder *b, int depth, const lm_word key)
{
    lm_text context = { NULL, 0, 0, 0 }, question = { NULL, 0, 0, 0 }, answer = { NULL, 0, 0, 0 };
    lm_insert needle = { depth_share(b, depth), "" };
    snprintf(needle.text, sizeof needle.text, "The pass key is %s. Remember it. %s is the pass key.\n", key, key);
    lm__text_print(&context, "There is an important pass key hidden inside a lot of irrelevant text. Find it and remember it.\n\n");
    lm__haystack(&context, b, &needle, 1);
    lm__text_print(&question, "\nWhat is the pass key? The pass key is");
    lm__text_print(&answer, " %s", key);
    int status = lm__prompt_add(b->out, &context, &question, &answer, depth);
    free(context.bytes);
    free(question.bytes);
    free(answer.bytes);
    return status;
}

/* The deepest first: the text before a needle is then shared with the next prompt. */
int lm__build_passkey(lm_builder *b)
{
    lm_dice dice = lm__dice(b->plan->seed, LM_STREAM_ASKED);
    lm_word key;
    digits(key, &dice, 5);
    int status = LM_OK;
    for (int depth = b->plan->depth_count - 1; status == LM_OK && depth >= 0; depth--) {
        status = passkey_at(b, depth, key);
    }
    return status;
}

/* ------------------------------------------------------------------ one context, a question for each depth */

typedef struct asked {
    lm_text context;
    lm_insert inserts[INSERTS_MAX];
    lm_word names[INSERTS_MAX];
    char answers[INSERTS_MAX][320];
} asked;

/* The question of each depth behind the same context: `before`, the name, `after`. */
static int ask_each(lm_builder *b, const asked *a, const char *before, const char *after)
{
    int status = LM_OK;
    for (int depth = 0; status == LM_OK && depth < b->plan->depth_count; depth++) {
        lm_text question = { NULL, 0, 0, 0 }, answer = { NULL, 0, 0, 0 };
        lm__text_print(&question, "%s%s%s", before, a->names[depth], after);
        lm__text_print(&answer, "%s", a->answers[depth]);
        status = lm__prompt_add(b->out, &a->context, &question, &answer, depth);
        free(question.bytes);
        free(answer.bytes);
    }
    return status;
}

static int needles(lm_builder *b, asked *a)
{
    lm_dice dice = lm__dice(b->plan->seed, LM_STREAM_ASKED), others = lm__dice(b->plan->seed, LM_STREAM_OTHERS);
    int count = b->plan->depth_count + DISTRACTORS;
    lm__names(a->names, count, &dice);
    for (int i = 0; i < count; i++) {
        lm_word number;
        digits(number, &dice, 7);
        a->inserts[i].at = i < b->plan->depth_count ? depth_share(b, i) : lm__roll_share(&others);
        snprintf(a->inserts[i].text, sizeof a->inserts[i].text, "The magic number of the %s is %s.\n", a->names[i], number);
        snprintf(a->answers[i], sizeof a->answers[i], " %s", number);
    }
    lm__text_print(&a->context, "Some magic numbers are hidden inside the following text. Remember all of them.\n\n");
    lm__haystack(&a->context, b, a->inserts, count);
    return ask_each(b, a, "\nWhich magic number does the text name? The magic number of the ", " is");
}

#define PASSAGE_WORDS 24

static int repeat(lm_builder *b, asked *a)
{
    lm_dice dice = lm__dice(b->plan->seed, LM_STREAM_ASKED);
    lm__names(a->names, b->plan->depth_count, &dice);
    for (int i = 0; i < b->plan->depth_count; i++) {
        size_t used = 0;
        for (int w = 0; w < PASSAGE_WORDS; w++) {
            lm_word word;
            lm__made_word(word, &dice);
            used += (size_t)snprintf(a->answers[i] + used, sizeof a->answers[i] - used, " %s", word);
        }
        a->inserts[i].at = depth_share(b, i);
        snprintf(a->inserts[i].text, sizeof a->inserts[i].text, "The song of the %s:%s.\n", a->names[i], a->answers[i]);
    }
    lm__text_print(&a->context, "Some songs in an unknown language are hidden inside the following text. Learn them by heart.\n\n");
    lm__haystack(&a->context, b, a->inserts, b->plan->depth_count);
    return ask_each(b, a, "\nNow one of them again, word for word. The song of the ", ":");
}

/* ------------------------------------------------------------------ kv */

static void hexadecimal(lm_word word, lm_dice *dice)
{
    for (int i = 0; i < 8; i++) {
        word[i] = "0123456789abcdef"[lm__roll(dice, 16)];
    }
    word[8] = '\0';
}

/* Entry that a depth asks for; two depths of a short list may ask for the same one. */
static int entry_at(const lm_builder *b, int depth)
{
    return (int)(depth_share(b, depth) * (b->size - 1) + 0.5);
}

static int kv(lm_builder *b, asked *a)
{
    lm_dice dice = lm__dice(b->plan->seed, LM_STREAM_ASKED);
    lm__text_print(&a->context, "Here is a JSON object.\n\n{\n");
    for (int i = 0; i < b->size; i++) {
        lm_word key, value;
        hexadecimal(key, &dice);
        hexadecimal(value, &dice);
        lm__text_print(&a->context, "\"%s\": \"%s\"%s\n", key, value, i + 1 < b->size ? "," : "");
        for (int depth = 0; depth < b->plan->depth_count; depth++) {
            if (entry_at(b, depth) == i) {
                snprintf(a->names[depth], sizeof a->names[depth], "%s", key);
                snprintf(a->answers[depth], sizeof a->answers[depth], "%s\"", value);
            }
        }
    }
    lm__text_print(&a->context, "}\n");
    return ask_each(b, a, "\nOne entry of the JSON object above is:\n\n\"", "\": \"");
}

/* ------------------------------------------------------------------ entries */

static int with_context(lm_builder *b, int (*body)(lm_builder *b, asked *a))
{
    asked a;
    memset(&a, 0, sizeof a);
    int status = body(b, &a);
    free(a.context.bytes);
    return status;
}

int lm__build_needles(lm_builder *b)
{
    return with_context(b, needles);
}

int lm__build_repeat(lm_builder *b)
{
    return with_context(b, repeat);
}

int lm__build_kv(lm_builder *b)
{
    return with_context(b, kv);
}
