/*
 * lm_ask.c - prompts into caches that share what they can, and right answers scored token by token.
 *
 * Stage: prompt -> tokens -> answers. Invariant: after every call the caches of all sessions hold exactly reader->held, the last
 * prompt without its answer; a failed call leaves them empty.
 */
#include "lm_ask.h"
#include "lm_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const lm_measure_names[LM_MEASURES + 1] = { "match", "accuracy", "logprob", NULL };

/* A prompt in tokens: those up to `start` ask, the others are the right answer. */
typedef struct asked {
    lm_tokens all;
    int start, count; /* of the answer */
    int words, word[LM_WORDS_MAX];
} asked;

/* ------------------------------------------------------------------ caches */

static int truncate_all(const lm_group *group, int count, lm_error *error)
{
    int status = LM_OK;
    for (int s = 0; status == LM_OK && s < group->count; s++) {
        status = lm_session_truncate(group->sessions[s], count, error);
    }
    return status;
}

int lm_reader_open(lm_reader *reader, const lm_group *group, lm_error *error)
{
    int positions = lm_session_positions(group->sessions[0]);
    memset(reader, 0, sizeof *reader);
    reader->group = *group;
    reader->held = malloc((size_t)positions * sizeof *reader->held);
    return reader->held ? truncate_all(group, 0, error) : lm__fail(error, LM_ENOMEM, "out of memory");
}

void lm_reader_close(lm_reader *reader)
{
    free(reader->held);
    memset(reader, 0, sizeof *reader);
}

static int decode_all(lm_reader *reader, const int32_t *tokens, int count, int scored, lm_error *error)
{
    const lm_group *group = &reader->group;
    int first = (int)(reader->decoded % group->count);
    int status = lm_decode_all(group->sessions, group->count, first, tokens, count, scored, error);
    reader->decoded += status == LM_OK ? count : 0;
    if (group->progress && reader->planned > 0) {
        group->progress(group->user, (double)reader->decoded / (double)reader->planned);
    }
    return status;
}

static int common(const int32_t *a, int a_count, const int32_t *b, int b_count)
{
    int n = 0;
    while (n < a_count && n < b_count && a[n] == b[n]) {
        n++;
    }
    return n;
}

/* Caches hold exactly these tokens, and the last of them has just been decoded: its logits are row 0. */
static int read_prompt(lm_reader *reader, const int32_t *tokens, int count, lm_error *error)
{
    int at = common(reader->held, reader->count, tokens, count - 1);
    if (truncate_all(&reader->group, at, error) != LM_OK) { /* a memory that cannot be cut back is read anew */
        at = 0;
        int status = truncate_all(&reader->group, 0, error);
        if (status != LM_OK) {
            return status;
        }
    }
    reader->count = 0;
    reader->shared += at;
    while (at < count) {
        int n = count - at < LM_STEP ? count - at : LM_STEP;
        int status = decode_all(reader, tokens + at, n, at + n == count, error);
        if (status != LM_OK) {
            return status;
        }
        at += n;
    }
    memcpy(reader->held, tokens, (size_t)count * sizeof *tokens);
    reader->count = count;
    return LM_OK;
}

/* ------------------------------------------------------------------ prompt to tokens */

/* The first token that `text`, cut at `bytes`, does not have in common with the whole. */
static int token_at(int *at, const lm_model *model, const lm_tokens *all, const char *text, size_t bytes, lm_error *error)
{
    lm_tokens part;
    int status = lm_tokenize(&part, model, text, bytes, 0, error);
    *at = common(all->ids, all->count, part.ids, part.count);
    lm_tokens_free(&part);
    return status;
}

static int split(asked *a, const lm_model *model, const lm_prompt *prompt, lm_error *error)
{
    memset(a, 0, sizeof *a);
    int status = lm_tokenize(&a->all, model, prompt->text, prompt->bytes, 0, error);
    if (status == LM_OK) {
        status = token_at(&a->start, model, &a->all, prompt->text, prompt->asked, error);
    }
    for (int w = 0; status == LM_OK && w < prompt->words; w++) {
        status = token_at(&a->word[w], model, &a->all, prompt->text, prompt->word[w], error);
        a->word[w] -= a->start;
    }
    a->words = prompt->words;
    a->count = a->all.count - a->start;
    if (status == LM_OK && (a->count < 1 || a->start < 1)) {
        status = lm__fail(error, LM_EINVAL, "a prompt of %d tokens leaves %d for its answer", a->start, a->count);
    }
    return status;
}

/* ------------------------------------------------------------------ scores */

/* Tokens that are right as the i-th of the answer: the one in the text, or every beginning of a word not yet given. */
static int right_tokens(int32_t *right, const asked *a, int i)
{
    const int32_t *answer = a->all.ids + a->start;
    int count = 0, w = 0;
    while (w < a->words && a->word[w] != i) {
        w++;
    }
    right[count++] = answer[i];
    for (w++; w < a->words; w++) {
        int known = 0;
        for (int j = 0; j < count; j++) {
            known = known || right[j] == answer[a->word[w]];
        }
        if (!known) {
            right[count++] = answer[a->word[w]];
        }
    }
    return count;
}

static void score_token(lm_answer *answer, const float *logits, int vocab, const int32_t *right, int count)
{
    int32_t top = lm_top(logits, vocab);
    double nll[LM_WORDS_MAX + 1], least = INFINITY, sum = 0.0;
    int hit = 0;
    for (int i = 0; i < count; i++) {
        nll[i] = lm_nll(logits, vocab, right[i]);
        least = nll[i] < least ? nll[i] : least;
        hit = hit || right[i] == top;
    }
    for (int i = 0; i < count; i++) { /* relative to the likeliest, so that tiny probabilities do not vanish */
        sum += exp(least - nll[i]);
    }
    answer->measures[LM_ACCURACY] += hit;
    answer->measures[LM_LOGPROB] += log(sum) - least;
}

static void score_row(lm_answer *answers, const lm_reader *reader, const asked *a, int i)
{
    int32_t right[LM_WORDS_MAX + 1];
    int count = right_tokens(right, a, i);
    for (int s = 0; s < reader->group.count; s++) {
        score_token(&answers[s], lm_session_logits(reader->group.sessions[s], 0), lm_model_vocab(reader->group.model), right,
                    count);
    }
}

/* The right answer, token by token; the logits for its first token are at hand. */
static int force_answer(lm_answer *answers, lm_reader *reader, const asked *a, lm_error *error)
{
    score_row(answers, reader, a, 0);
    for (int i = 0; i + 1 < a->count; i++) {
        int status = decode_all(reader, a->all.ids + a->start + i, 1, 1, error);
        if (status != LM_OK) {
            return status;
        }
        score_row(answers, reader, a, i + 1);
    }
    for (int s = 0; s < reader->group.count; s++) {
        answers[s].tokens = a->count;
        answers[s].measures[LM_MATCH] = answers[s].measures[LM_ACCURACY] == a->count;
        answers[s].measures[LM_ACCURACY] /= a->count;
        answers[s].measures[LM_LOGPROB] /= a->count;
    }
    return LM_OK;
}

/* ------------------------------------------------------------------ answers made freely */

static int is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int stands_in(const char *text, const char *word, size_t length)
{
    for (const char *at = text; *at; at++) {
        if (strncmp(at, word, length) == 0 && !is_letter(at[length]) && (at == text || !is_letter(at[-1]))) {
            return 1;
        }
    }
    return 0;
}

double lm_share_found(const lm_prompt *prompt, const char *text)
{
    int found = 0;
    for (int w = 0; w < prompt->words; w++) {
        const char *word = prompt->text + prompt->word[w] + 1; /* without the blank */
        size_t length = strcspn(word, ",");
        found += stands_in(text, word, length);
    }
    return prompt->words > 0 ? (double)found / prompt->words : 0.0;
}

static double share_made(const lm_model *model, const lm_prompt *prompt, const lm_tokens *made)
{
    enum { PIECE = 64, LONGEST = 4096 };
    char text[LONGEST + 1];
    int used = 0;
    for (int i = 0; i < made->count && used + PIECE <= LONGEST; i++) {
        used += lm_piece(model, made->ids[i], text + used, PIECE);
    }
    text[used] = '\0';
    return lm_share_found(prompt, text);
}

/* Every session goes on greedily behind the question, a little longer than the right answer is. */
static int make_answer(lm_answer *answers, lm_reader *reader, const asked *a, const lm_prompt *prompt, lm_error *error)
{
    lm_group quiet = reader->group;
    lm_tokens made[LM_SESSIONS_MAX];
    int count = a->count + LM_ANSWER_ROOM;
    quiet.progress = NULL;
    int status = truncate_all(&quiet, a->start - 1, error);
    status = status == LM_OK ? decode_all(reader, a->all.ids + a->start - 1, 1, 1, error) : status;
    status = status == LM_OK ? lm_generate_each(made, &quiet, 0, count, error) : status;
    if (status != LM_OK) {
        return status;
    }
    reader->decoded += count - 1;
    for (int s = 0; s < quiet.count; s++) {
        answers[s].measures[LM_MATCH] = share_made(quiet.model, prompt, &made[s]);
        lm_tokens_free(&made[s]);
    }
    return LM_OK;
}

/* ------------------------------------------------------------------ entry */

int lm_ask(lm_answer *answers, lm_reader *reader, const lm_prompt *prompt, lm_error *error)
{
    asked a;
    lm_error ignored;
    memset(answers, 0, (size_t)reader->group.count * sizeof *answers);
    int status = split(&a, reader->group.model, prompt, error);
    status = status == LM_OK ? read_prompt(reader, a.all.ids, a.start, error) : status;
    status = status == LM_OK ? force_answer(answers, reader, &a, error) : status;
    if (status == LM_OK && prompt->words > 0) {
        status = make_answer(answers, reader, &a, prompt, error);
    }
    status = status == LM_OK ? truncate_all(&reader->group, a.start, error) : status;
    if (status != LM_OK) {
        truncate_all(&reader->group, 0, &ignored);
        reader->count = 0;
    }
    lm_tokens_free(&a.all);
    return status;
}
