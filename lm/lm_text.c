/*
 * lm_text.c - score text that is known, in one stretch or in windows.
 *
 * Stage: tokens -> scores. Invariant: a token is scored from logits that saw exactly the tokens before it in the same stretch.
 */
#include "lm_run.h"

#include <stddef.h>

static void tell(const lm_group *group, double share)
{
    if (group->progress) {
        group->progress(group->user, share);
    }
}

static int rows_from(int at, int n, int first)
{
    int end = at + n;
    return end <= first ? 0 : (at >= first ? n : end - first);
}

/* Tokens of the step that begins at `at`. A last step of one token would count as decode in the timing: it takes one from the step
 * before. */
static int step_at(int at, int count)
{
    int left = count - at;
    return left <= LM_STEP ? left : (left == LM_STEP + 1 ? LM_STEP - 1 : LM_STEP);
}

int lm_last_row(int count, int first)
{
    int at = 0;
    while (at + step_at(at, count) < count) {
        at += step_at(at, count);
    }
    return rows_from(at, count - at, first) - 1;
}

/* The rows of one step; row i belongs to token `next` - 1 + i of the text and predicts the one after it. */
static void score_rows(lm_score *scores, const lm_group *group, const int32_t *next, int rows)
{
    int vocab = lm_model_vocab(group->model);
    for (int i = 0; i < rows; i++) {
        const float *reference = lm_session_logits(group->sessions[0], i);
        lm_score_add(&scores[0], reference, NULL, vocab, next[i]);
        for (int s = 1; s < group->count; s++) {
            lm_score_add(&scores[s], lm_session_logits(group->sessions[s], i), reference, vocab, next[i]);
        }
    }
}

/* As lm_score_text(), telling progress from `done` on in steps of `weight` per token. */
static int score_stretch(lm_score *scores, const lm_group *group, const int32_t *tokens, int count, int first, double done,
                         double weight, lm_error *error)
{
    for (int at = 0, n = 0; at < count; at += n) {
        n = step_at(at, count);
        int rows = rows_from(at, n, first);
        int status = lm_decode_all(group->sessions, group->count, at / LM_STEP, tokens + at, n, rows, error);
        if (status != LM_OK) {
            return status;
        }
        int known = at + n == count ? rows - 1 : rows; /* nothing is known to follow the last token */
        if (scores && known > 0) {
            score_rows(scores, group, tokens + at + n - rows + 1, known);
        }
        tell(group, done + weight * (double)(at + n));
    }
    return LM_OK;
}

int lm_score_text(lm_score *scores, const lm_group *group, const int32_t *tokens, int count, int first, lm_error *error)
{
    return score_stretch(scores, group, tokens, count, first, 0.0, 1.0 / (double)count, error);
}

/* ------------------------------------------------------------------ windows */

static int empty_caches(const lm_group *group, lm_error *error)
{
    for (int s = 0; s < group->count; s++) {
        int status = lm_session_truncate(group->sessions[s], 0, error);
        if (status != LM_OK) {
            return status;
        }
    }
    return LM_OK;
}

/* The window's first token gives way to the model's start token, as llama-perplexity does it; it is not scored. */
static int score_window(lm_score *scores, const lm_group *group, int32_t *window, int context, double done, double weight,
                        lm_error *error)
{
    int32_t bos = lm_model_bos(group->model), kept = window[0];
    int status = empty_caches(group, error);
    if (status != LM_OK) {
        return status;
    }
    window[0] = bos >= 0 ? bos : kept;
    status = score_stretch(scores, group, window, context, context / 2, done, weight, error);
    window[0] = kept;
    return status;
}

int lm_perplexity(lm_score *scores, int *done, const lm_group *group, const lm_tokens *text, int context, int chunks,
                  lm_error *error)
{
    int whole = text->count / context;
    int windows = chunks > 0 && chunks < whole ? chunks : whole;
    int status = LM_OK;
    *done = 0;
    while (status == LM_OK && *done < windows) {
        double share = (double)*done / windows, weight = 1.0 / windows / context;
        status = score_window(scores, group, text->ids + (ptrdiff_t)*done * context, context, share, weight, error);
        *done += status == LM_OK;
    }
    return status;
}
