/*
 * lm_continue.c - text that the model makes: one session alone, one beside a reference, or several each for itself.
 *
 * Stage: logits -> tokens -> logits. Invariant: the token made at step i depends only on the seed, i and the logits before it.
 */
#include "lm_internal.h"
#include "lm_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The row without end-of-generation tokens, or the row itself where those are welcome. */
static const float *allowed(float *scratch, const lm_model *model, const float *logits, int ignore_end)
{
    if (!ignore_end) {
        return logits;
    }
    int vocab = lm_model_vocab(model);
    for (int32_t i = 0; i < vocab; i++) {
        scratch[i] = lm_model_ends(model, i) ? -INFINITY : logits[i];
    }
    return scratch;
}

static int32_t choose(float *scratch, const lm_model *model, const float *logits, const lm_generation *how, int step)
{
    int vocab = lm_model_vocab(model);
    const float *row = allowed(scratch, model, logits, how->ignore_end);
    if (how->temperature > 0.0) {
        return lm_sample(row, vocab, how->temperature, lm_random(how->seed, (uint64_t)step));
    }
    return lm_top(row, vocab);
}

static int make_tokens(lm_tokens *tokens, int count)
{
    tokens->count = 0;
    tokens->ids = malloc((size_t)(count > 0 ? count : 1) * sizeof *tokens->ids);
    return tokens->ids != NULL;
}

static float *make_row(const lm_model *model)
{
    return malloc((size_t)lm_model_vocab(model) * sizeof(float));
}

/* ------------------------------------------------------------------ one, perhaps beside a reference */

typedef struct pair {
    const lm_model *model;
    lm_session *both[2]; /* the maker, its reference or NULL */
    int row;
    int agreeing; /* 1 while the most likely tokens have always agreed */
} pair;

static void compare(pair *p, lm_score *score, int *equal)
{
    if (!p->both[1]) {
        return;
    }
    int64_t before = score->agree;
    lm_score_compare(score, lm_session_logits(p->both[0], p->row), lm_session_logits(p->both[1], p->row), lm_model_vocab(p->model));
    p->agreeing = p->agreeing && score->agree > before;
    *equal += p->agreeing;
}

static int advance(pair *p, int step, int32_t token, lm_error *error)
{
    p->row = 0;
    return lm_decode_all(p->both, p->both[1] ? 2 : 1, step, &token, 1, 1, error);
}

static int make_all(lm_tokens *tokens, lm_score *score, int *equal, pair *p, float *scratch, const lm_generation *how,
                    lm_error *error)
{
    int status = LM_OK;
    for (int step = 0; status == LM_OK && step < how->count; step++) {
        compare(p, score, equal);
        int32_t token = choose(scratch, p->model, lm_session_logits(p->both[0], p->row), how, step);
        tokens->ids[tokens->count++] = token;
        if (how->token) {
            how->token(how->user, token);
        }
        if (lm_model_ends(p->model, token) || step + 1 == how->count) {
            break;
        }
        status = advance(p, step, token, error);
    }
    return status;
}

int lm_generate(lm_tokens *tokens, lm_score *score, int *equal, const lm_model *model, lm_session *made, lm_session *reference,
                int row, const lm_generation *how, lm_error *error)
{
    pair p = { model, { made, reference }, row, 1 };
    float *scratch = make_row(model);
    int status = make_tokens(tokens, how->count) && scratch ? LM_OK : lm__fail(error, LM_ENOMEM, "out of memory");
    if (status == LM_OK) {
        status = make_all(tokens, score, equal, &p, scratch, how, error);
    }
    free(scratch);
    if (status != LM_OK) {
        lm_tokens_free(tokens);
    }
    return status;
}

/* ------------------------------------------------------------------ each for itself */

static int make_one(lm_tokens *tokens, const lm_model *model, lm_session *session, int row, float *scratch, int last,
                    lm_error *error)
{
    int32_t token = lm_top(allowed(scratch, model, lm_session_logits(session, row), 1), lm_model_vocab(model));
    tokens->ids[tokens->count++] = token;
    return last ? LM_OK : lm_session_decode(session, &token, 1, 1, error);
}

static int make_round(lm_tokens *tokens, const lm_group *group, int row, int step, int count, float *scratch, lm_error *error)
{
    int status = LM_OK;
    for (int i = 0; status == LM_OK && i < group->count; i++) {
        int s = (step + i) % group->count;
        status = make_one(&tokens[s], group->model, group->sessions[s], row, scratch, step + 1 == count, error);
    }
    if (group->progress) {
        group->progress(group->user, (double)(step + 1) / (double)count);
    }
    return status;
}

int lm_generate_each(lm_tokens *tokens, const lm_group *group, int row, int count, lm_error *error)
{
    float *scratch = make_row(group->model);
    int status = scratch ? LM_OK : lm__fail(error, LM_ENOMEM, "out of memory");
    memset(tokens, 0, (size_t)group->count * sizeof *tokens);
    for (int s = 0; status == LM_OK && s < group->count; s++) {
        status = make_tokens(&tokens[s], count) ? LM_OK : lm__fail(error, LM_ENOMEM, "out of memory");
    }
    for (int step = 0; status == LM_OK && step < count; step++) {
        status = make_round(tokens, group, step == 0 ? row : 0, step, count, scratch, error);
    }
    free(scratch);
    for (int s = 0; status != LM_OK && s < group->count; s++) {
        lm_tokens_free(&tokens[s]);
    }
    return status;
}

int lm_equal(const lm_tokens *a, const lm_tokens *b)
{
    int n = 0;
    while (n < a->count && n < b->count && a->ids[n] == b->ids[n]) {
        n++;
    }
    return n;
}
