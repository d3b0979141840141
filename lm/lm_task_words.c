/*
 * lm_task_words.c - growing text, dice and words for the builders of the tasks.
 *
 * Invariant: what is drawn depends on the dice alone; dice are counters on a stream of the sample's seed.
 */
#include "lm_score.h"
#include "lm_task_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ text */

static int make_room(lm_text *text, size_t more)
{
    if (text->failed || more + 1 <= text->room - text->count) {
        return !text->failed;
    }
    size_t room = 2 * text->room + more + 256;
    char *bytes = realloc(text->bytes, room);
    if (!bytes) {
        text->failed = 1;
        return 0;
    }
    text->bytes = bytes;
    text->room = room;
    return 1;
}

void lm__text_add(lm_text *text, const char *bytes, size_t count)
{
    if (make_room(text, count)) {
        memcpy(text->bytes + text->count, bytes, count);
        text->count += count;
        text->bytes[text->count] = '\0';
    }
}

void lm__text_print(lm_text *text, const char *format, ...)
{
    char bytes[1024]; /* longer than any sentence of a task */
    va_list arguments;
    va_start(arguments, format);
    int count = vsnprintf(bytes, sizeof bytes, format, arguments);
    va_end(arguments);
    lm__text_add(text, bytes, count < (int)sizeof bytes ? (size_t)count : sizeof bytes - 1);
}

/* ------------------------------------------------------------------ dice */

lm_dice lm__dice(uint64_t seed, uint64_t stream)
{
    return (lm_dice){ lm_bits(seed, stream), 0 };
}

int lm__roll(lm_dice *dice, int limit)
{
    return (int)(lm_bits(dice->seed, dice->step++) % (uint64_t)limit);
}

double lm__roll_share(lm_dice *dice)
{
    return lm_random(dice->seed, dice->step++);
}

void lm__shuffle(lm_dice *dice, int *items, int count)
{
    for (int i = count - 1; i > 0; i--) {
        int other = lm__roll(dice, i + 1), kept = items[i];
        items[i] = items[other];
        items[other] = kept;
    }
}

/* ------------------------------------------------------------------ words */

void lm__made_word(lm_word word, lm_dice *dice)
{
    static const char consonants[] = "bdfgklmnprstvz", vowels[] = "aeiou";
    int length = 0;
    for (int syllable = 0; syllable < 3; syllable++) {
        word[length++] = consonants[lm__roll(dice, (int)sizeof consonants - 1)];
        word[length++] = vowels[lm__roll(dice, (int)sizeof vowels - 1)];
    }
    word[length] = '\0';
}

static int is_small(char c)
{
    return c >= 'a' && c <= 'z';
}

static int is_blank(char c)
{
    return c == ' ' || c == '\n';
}

/* Length of the word that begins behind the next blank of a line; 0: there is none, or it is no plain word of 4 to 9 letters. */
static int plain_word(const char **word, const char *line, int from, int bytes)
{
    while (from < bytes && !is_blank(line[from])) {
        from++;
    }
    int length = 0;
    for (*word = line + ++from; from + length < bytes && is_small((*word)[length]);) {
        length++;
    }
    return length >= 4 && length <= 9 && from + length < bytes && is_blank((*word)[length]) ? length : 0;
}

void lm__real_word(lm_word word, lm_dice *dice, const lm_filler *filler)
{
    for (int try = 0; try < 16; try++) {
        const lm_line *line = &filler->lines[lm__roll(dice, filler->count)];
        const char *found;
        int length = plain_word(&found, filler->text + line->offset, lm__roll(dice, line->bytes), line->bytes);
        if (length > 0) {
            snprintf(word, LM_WORD_BYTES, "%.*s", length, found);
            return;
        }
    }
    lm__made_word(word, dice);
}

int lm__is_new(const lm_word *words, int count)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(words[i], words[count]) == 0) {
            return 0;
        }
    }
    return 1;
}

/* 16 x 16 pairs, numbered and drawn without replacement. */
void lm__names(lm_word *names, int count, lm_dice *dice)
{
    static const char *const first[16] = { "silver", "quiet",  "amber",  "hollow",  "crimson", "frozen", "gentle",  "northern",
                                           "velvet", "broken", "golden", "distant", "iron",    "misty",  "scarlet", "ancient" };
    static const char *const second[16] = { "harbor", "lantern", "meadow", "canyon", "orchard", "castle", "river",  "mirror",
                                            "garden", "valley",  "bridge", "forest", "island",  "tower",  "desert", "anchor" };
    int order[LM_NAMES_MAX];
    for (int i = 0; i < LM_NAMES_MAX; i++) {
        order[i] = i;
    }
    lm__shuffle(dice, order, LM_NAMES_MAX);
    for (int i = 0; i < count; i++) {
        snprintf(names[i], LM_WORD_BYTES, "%s %s", first[order[i] / 16], second[order[i] % 16]);
    }
}
