/*
 * lm_eval_result.c - from single rows and questions to means, differences and their intervals.
 *
 * Invariant: both attentions are summed over the same questions and rows; every interval is of paired differences.
 */
#include "lm_eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ texts */

/* Sums of the blocks of one text; blocks do not cross windows. */
typedef struct blocks {
    lm_unit *nll, *divergence, *agreement; /* nll: difference chosen - full */
    int count;
} blocks;

static void add_row(const blocks *b, int at, const lm_row *full, const lm_row *chosen)
{
    b->nll[at].sum += chosen->nll - full->nll;
    b->divergence[at].sum += chosen->divergence;
    b->agreement[at].sum += chosen->agree;
    b->nll[at].weight = b->divergence[at].weight = b->agreement[at].weight += 1.0;
}

static void fill_blocks(blocks *b, const lm_score *scores, int windows)
{
    int64_t rows = scores[EVAL_CHOSEN].nll.count / windows;
    for (int64_t r = 0; r < rows * windows; r++) {
        int is_first = r % rows % EVAL_BLOCK == 0;
        b->count += is_first;
        add_row(b, b->count - 1, &scores[EVAL_FULL].rows[r], &scores[EVAL_CHOSEN].rows[r]);
    }
}

static int text_intervals(eval_text *text, const blocks *b, uint64_t seed)
{
    int status = lm_bootstrap(&text->ppl_ratio, b->nll, &b->count, 1, seed);
    status = status == LM_OK ? lm_bootstrap(&text->divergence, b->divergence, &b->count, 1, seed) : status;
    status = status == LM_OK ? lm_bootstrap(&text->agreement, b->agreement, &b->count, 1, seed) : status;
    text->ppl_ratio.value = expm1(text->ppl_ratio.value);
    text->ppl_ratio.low = expm1(text->ppl_ratio.low);
    text->ppl_ratio.high = expm1(text->ppl_ratio.high);
    return status;
}

int eval_text_of(eval_text *text, const lm_score *scores, int windows, uint64_t seed)
{
    int64_t most = scores[EVAL_CHOSEN].nll.count / EVAL_BLOCK + windows;
    lm_unit *units = calloc((size_t)(3 * most), sizeof *units);
    if (!units) {
        return LM_ENOMEM;
    }
    blocks b = { units, units + most, units + 2 * most, 0 };
    fill_blocks(&b, scores, windows);
    text->windows = windows;
    text->tokens = scores[EVAL_CHOSEN].nll.count;
    text->ppl[EVAL_FULL] = lm_score_perplexity(&scores[EVAL_FULL]);
    text->ppl[EVAL_CHOSEN] = lm_score_perplexity(&scores[EVAL_CHOSEN]);
    int status = text_intervals(text, &b, seed);
    free(units);
    return status;
}

/* ------------------------------------------------------------------ tasks */

eval_cell *eval_cell_at(const eval_result *result, int task, int length, int sample, int depth)
{
    const eval_task *t = &result->tasks[task];
    return &t->cells[((ptrdiff_t)length * result->samples + sample) * t->depths + depth];
}

/* All questions of one sample that are chosen: one unit, as they share a context. */
static void add_sample(eval_figure *figure, lm_unit *unit, const eval_result *result, eval_choice at, int sample, int measure)
{
    int depths = result->tasks[at.task].depths;
    for (int depth = at.depth >= 0 ? at.depth : 0; depth < (at.depth >= 0 ? at.depth + 1 : depths); depth++) {
        const eval_cell *cell = eval_cell_at(result, at.task, at.length, sample, depth);
        figure->means[EVAL_FULL] += cell->sums[EVAL_FULL][measure];
        figure->means[EVAL_CHOSEN] += cell->sums[EVAL_CHOSEN][measure];
        figure->questions += cell->count;
        unit->sum += cell->sums[EVAL_CHOSEN][measure] - cell->sums[EVAL_FULL][measure];
        unit->weight += cell->count;
    }
}

int eval_figure_of(eval_figure *figure, const eval_result *result, eval_choice choice, int measure)
{
    int tasks = choice.task >= 0 ? 1 : result->task_count, lengths = choice.length >= 0 ? 1 : result->length_count, count = 0;
    lm_unit *units = calloc((size_t)tasks * (size_t)lengths * (size_t)result->samples, sizeof *units);
    int *strata = calloc((size_t)tasks * (size_t)lengths, sizeof *strata);
    memset(figure, 0, sizeof *figure);
    for (int s = 0; units && strata && s < tasks * lengths; s++) {
        eval_choice at = { choice.task >= 0 ? choice.task : s / lengths, choice.length >= 0 ? choice.length : s % lengths,
                           choice.depth };
        strata[s] = result->samples;
        for (int sample = 0; sample < result->samples; sample++) {
            add_sample(figure, &units[count++], result, at, sample, measure);
        }
    }
    for (int i = 0; i < EVAL_SESSIONS; i++) {
        figure->means[i] /= figure->questions > 0 ? figure->questions : 1;
    }
    int status = units && strata ? lm_bootstrap(&figure->difference, units, strata, tasks * lengths, result->seed) : LM_ENOMEM;
    free(units);
    free(strata);
    return status;
}

void eval_result_free(eval_result *result)
{
    for (int i = 0; i < result->text_count; i++) {
        free(result->texts[i].name);
    }
    for (int i = 0; i < result->task_count; i++) {
        free(result->tasks[i].cells);
    }
}
