/*
 * lm_task.c - filler, prompts, and how large a task must be built to fill its length.
 *
 * Stage: plan -> texts. Invariant: no prompt of a case has more tokens than the plan's length.
 */
#include "lm_task_internal.h"

#include <stdlib.h>
#include <string.h>

const char *const lm_task_names[LM_TASK_COUNT + 1] = {
    "passkey", "needles", "kv", "repeat", "tracking", "common", "frequent", NULL,
};

/* least: smallest size that is still the task. entry: about how many tokens one more of size costs, corrected as it is built. */
static const struct {
    int (*build)(lm_builder *b);
    int has_depth, least;
    double entry;
} tasks[LM_TASK_COUNT] = {
    [LM_TASK_PASSKEY] = { lm__build_passkey, 1, 32, 1.0 },
    [LM_TASK_NEEDLES] = { lm__build_needles, 1, 32, 1.0 },
    [LM_TASK_KV] = { lm__build_kv, 1, 8, 24.0 },
    [LM_TASK_REPEAT] = { lm__build_repeat, 1, 32, 1.0 },
    [LM_TASK_TRACKING] = { lm__build_tracking, 0, 32, 1.0 },
    [LM_TASK_COMMON] = { lm__build_common, 0, 40, 1.7 },
    [LM_TASK_FREQUENT] = { lm__build_frequent, 0, 40, 3.5 },
};

int lm_task_has_depth(int task)
{
    return tasks[task].has_depth;
}

/* ------------------------------------------------------------------ filler */

#define LINE_LONG       160 /* a line as long as that ends at the next blank */
#define LINE_LONGEST    240 /* or here */
#define FILLER_LEAST    64
#define CONTINUES(byte) (((unsigned char)(byte)&0xc0u) == 0x80u) /* inside a character of UTF-8 */

static int line_bytes(const char *text, size_t bytes)
{
    size_t n = 0;
    while (n < bytes && text[n] != '\n' && !(n >= LINE_LONG && text[n] == ' ') && !(n >= LINE_LONGEST && !CONTINUES(text[n]))) {
        n++;
    }
    return (int)(n < bytes && text[n] == '\n' ? n + 1 : n);
}

static int count_lines(const char *text, size_t bytes)
{
    int count = 0;
    for (size_t at = 0; at < bytes; count++) {
        at += (size_t)line_bytes(text + at, bytes - at);
    }
    return count;
}

static int measure_lines(lm_filler *filler, size_t bytes, lm_counter counter, void *user)
{
    size_t at = 0;
    for (int i = 0; at < bytes; i++) {
        lm_line *line = &filler->lines[i];
        line->offset = at;
        line->bytes = line_bytes(filler->text + at, bytes - at);
        int tokens = counter(user, filler->text + at, (size_t)line->bytes);
        if (tokens < 0) {
            return tokens;
        }
        line->tokens = tokens > 0 ? tokens : 1;
        filler->tokens += line->tokens;
        at += (size_t)line->bytes;
        filler->count++;
    }
    return LM_OK;
}

int lm_filler_make(lm_filler *filler, const char *text, size_t bytes, lm_counter counter, void *user, lm_error *error)
{
    memset(filler, 0, sizeof *filler);
    filler->text = text;
    filler->lines = calloc((size_t)count_lines(text, bytes) + 1, sizeof *filler->lines);
    int status = filler->lines ? measure_lines(filler, bytes, counter, user) : LM_ENOMEM;
    if (status == LM_OK && filler->tokens < FILLER_LEAST) {
        status =
            lm__fail(error, LM_ELIMIT, "the texts: %d tokens, prompts are made of at least %d", (int)filler->tokens, FILLER_LEAST);
    } else if (status != LM_OK) {
        lm__fail(error, status, "out of memory while counting tokens");
    }
    if (status != LM_OK) {
        lm_filler_free(filler);
    }
    return status;
}

void lm_filler_free(lm_filler *filler)
{
    free(filler->lines);
    memset(filler, 0, sizeof *filler);
}

static int by_place(const void *a, const void *b)
{
    double x = ((const lm_insert *)a)->at, y = ((const lm_insert *)b)->at;
    return (x > y) - (x < y);
}

void lm__haystack(lm_text *to, const lm_builder *b, lm_insert *inserts, int count)
{
    const lm_filler *filler = b->plan->filler;
    lm_dice dice = lm__dice(b->plan->seed, LM_STREAM_FILLER);
    int line = lm__roll(&dice, filler->count), next = 0, tokens = 0;
    qsort(inserts, (size_t)count, sizeof *inserts, by_place);
    while (tokens < b->size) {
        for (; next < count && inserts[next].at * b->size <= tokens; next++) {
            lm__text_add(to, inserts[next].text, strlen(inserts[next].text));
        }
        const lm_line *now = &filler->lines[line];
        lm__text_add(to, filler->text + now->offset, (size_t)now->bytes);
        if (now->bytes > 0 && filler->text[now->offset + (size_t)now->bytes - 1] != '\n') {
            lm__text_add(to, "\n", 1);
        }
        tokens += now->tokens;
        line = (line + 1) % filler->count;
    }
    for (; next < count; next++) {
        lm__text_add(to, inserts[next].text, strlen(inserts[next].text));
    }
}

/* ------------------------------------------------------------------ prompts */

int lm__prompt_add(lm_case *to, const lm_text *context, const lm_text *question, const lm_text *answer, int depth)
{
    lm_text text = { NULL, 0, 0, 0 };
    lm__text_add(&text, context->bytes ? context->bytes : "", context->count);
    lm__text_add(&text, question->bytes ? question->bytes : "", question->count);
    size_t asked = text.count;
    lm__text_add(&text, answer->bytes ? answer->bytes : "", answer->count);
    lm_prompt *more = realloc(to->prompts, ((size_t)to->count + 1) * sizeof *more);
    to->prompts = more ? more : to->prompts;
    if (!more || text.failed || context->failed || question->failed || answer->failed) {
        free(text.bytes);
        return LM_ENOMEM;
    }
    to->prompts[to->count++] = (lm_prompt){ text.bytes, asked, text.count, depth, 0, { 0 } };
    return LM_OK;
}

int lm__prompt_add_set(lm_case *to, const lm_text *context, const lm_text *question, const lm_word *words, int count)
{
    lm_text answer = { NULL, 0, 0, 0 };
    size_t word[LM_WORDS_MAX];
    for (int i = 0; i < count; i++) {
        word[i] = answer.count + (i > 0);
        lm__text_print(&answer, "%s %s", i > 0 ? "," : "", words[i]);
    }
    int status = lm__prompt_add(to, context, question, &answer, -1);
    for (int i = 0; status == LM_OK && i < count; i++) {
        lm_prompt *prompt = &to->prompts[to->count - 1];
        prompt->word[i] = prompt->asked + word[i];
        prompt->words = count;
    }
    free(answer.bytes);
    return status;
}

void lm_case_free(lm_case *made)
{
    for (int i = 0; i < made->count; i++) {
        free(made->prompts[i].text);
    }
    free(made->prompts);
    memset(made, 0, sizeof *made);
}

/* ------------------------------------------------------------------ how large */

static int longest(const lm_case *made, const lm_case_plan *plan)
{
    int most = 0;
    for (int i = 0; i < made->count; i++) {
        int tokens = plan->counter(plan->user, made->prompts[i].text, made->prompts[i].bytes);
        if (tokens < 0) {
            return tokens;
        }
        most = tokens > most ? tokens : most;
    }
    return most;
}

/* A case of that size and the tokens of its longest prompt, or a negative status and nothing. */
static int build(lm_case *made, const lm_case_plan *plan, int size)
{
    lm_builder b = { plan, size, made };
    memset(made, 0, sizeof *made);
    int status = tasks[plan->task].build(&b);
    int tokens = status == LM_OK ? longest(made, plan) : status;
    if (tokens < 0) {
        lm_case_free(made);
    }
    return tokens;
}

/* Secant from the least size on: tokens grow about linearly with it. Keeps the largest that fits. */
static int grow(lm_case *made, const lm_case_plan *plan, int base)
{
    const int least = tasks[plan->task].least, room = plan->length - base;
    double entry = tasks[plan->task].entry;
    int kept = base;
    for (int try = 0; try < 8 && kept < plan->length - plan->length / 50; try++) {
        int size = least + (int)(room / entry);
        lm_case next;
        int tokens = build(&next, plan, size);
        if (tokens < 0) {
            return tokens;
        }
        int is_better = tokens <= plan->length && tokens > kept;
        if (is_better) {
            lm_case kept_before = *made;
            *made = next;
            next = kept_before;
            kept = tokens;
        }
        lm_case_free(&next);
        double measured = size > least ? (double)(tokens - base) / (double)(size - least) : entry;
        entry = tokens > plan->length ? measured * (1.0 + 0.002 * (1 << try)) : measured;
        if (size == least || entry <= 0.0) {
            break;
        }
    }
    return kept;
}

static int check_depths(const lm_case_plan *plan, lm_error *error)
{
    int good = !tasks[plan->task].has_depth || (plan->depth_count >= 1 && plan->depth_count <= LM_DEPTHS_MAX);
    for (int i = 0; good && tasks[plan->task].has_depth && i < plan->depth_count; i++) {
        good = plan->depths[i] >= 0 && plan->depths[i] <= 100;
    }
    return good ? LM_OK
                : lm__fail(error, LM_EINVAL, "task %s takes 1 to %d depths of 0 to 100 percent", lm_task_names[plan->task],
                           LM_DEPTHS_MAX);
}

int lm_case_make(lm_case *made, const lm_case_plan *plan, lm_error *error)
{
    memset(made, 0, sizeof *made);
    int status = check_depths(plan, error);
    if (status != LM_OK) {
        return status;
    }
    int tokens = build(made, plan, tasks[plan->task].least);
    if (tokens >= 0 && tokens > plan->length) {
        lm_case_free(made);
        return lm__fail(error, LM_ELIMIT, "task %s takes at least %d tokens, the length is %d", lm_task_names[plan->task], tokens,
                        plan->length);
    }
    tokens = tokens >= 0 ? grow(made, plan, tokens) : tokens;
    if (tokens < 0) {
        lm_case_free(made);
        return lm__fail(error, tokens, "out of memory while building task %s", lm_task_names[plan->task]);
    }
    return LM_OK;
}
