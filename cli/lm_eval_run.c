/*
 * lm_eval_run.c - two sessions over the same texts and the same questions.
 *
 * Stages: texts in windows, then tasks by length and sample. Invariant: what is asked depends on seed, task, length and sample only,
 * not on which others are asked beside it.
 */
#include "lm_eval.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ texts */

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Scores with room for each row. */
static int scores_new(lm_score *scores, int64_t rows)
{
    memset(scores, 0, EVAL_SESSIONS * sizeof *scores);
    for (int s = 0; s < EVAL_SESSIONS; s++) {
        scores[s].rows = calloc((size_t)rows, sizeof *scores[s].rows);
        scores[s].room = rows;
    }
    return scores[EVAL_FULL].rows && scores[EVAL_CHOSEN].rows ? LM_OK : LM_ENOMEM;
}

static void scores_free(lm_score *scores)
{
    for (int s = 0; s < EVAL_SESSIONS; s++) {
        free(scores[s].rows);
    }
}

static int run_text(eval_result *result, const lm_desk *desk, const eval_plan *plan, const eval_source *source)
{
    lm_error error = { "out of memory" };
    lm_score scores[EVAL_SESSIONS];
    eval_text *text = &result->texts[result->text_count];
    int windows = source->tokens.count / result->context;
    windows = windows < plan->chunks ? windows : plan->chunks;
    int status = scores_new(scores, (int64_t)windows * result->context);
    if (status == LM_OK) {
        status = lm_perplexity(scores, &windows, &desk->group, &source->tokens, result->context, windows, &error);
    }
    if (status == LM_OK) {
        const char *name = base_name(source->path);
        text->name = lm_clean(name, strlen(name));
        status = text->name ? eval_text_of(text, scores, windows, result->seed) : LM_ENOMEM;
        result->text_count += text->name != NULL;
    }
    scores_free(scores);
    return lm_failed(status, &error);
}

static int run_texts(eval_result *result, const lm_desk *desk, const eval_plan *plan)
{
    int code = CLI_OK;
    for (int i = 0; code == CLI_OK && plan->with_text && i < plan->source_count; i++) {
        char label[64];
        snprintf(label, sizeof label, "reading text %d of %d with both attentions", i + 1, plan->source_count);
        cli_progress_start(label);
        code = run_text(result, desk, plan, &plan->sources[i]);
        cli_progress_end();
    }
    return code;
}

/* ------------------------------------------------------------------ tasks */

int eval_count(void *user, const char *text, size_t bytes)
{
    lm_error error;
    lm_tokens tokens;
    int status = lm_tokenize(&tokens, user, text, bytes, 0, &error);
    int count = tokens.count;
    lm_tokens_free(&tokens);
    return status == LM_OK ? count : status;
}

static lm_case_plan case_plan(const eval_plan *plan, const eval_result *result, int task, int length, int sample)
{
    uint64_t seed = lm_bits(lm_bits(lm_bits(result->seed, (uint64_t)task), (uint64_t)length), (uint64_t)sample);
    return (lm_case_plan){ task, length, result->depths, result->depth_count, seed, &plan->filler, eval_count, plan->model };
}

int eval_fit(const eval_plan *plan, const eval_result *result)
{
    lm_error error = { { 0 } };
    int status = LM_OK;
    for (int t = 0; status == LM_OK && t < plan->task_count; t++) {
        const lm_case_plan wanted = case_plan(plan, result, plan->tasks[t], result->lengths[0], 0);
        lm_case made;
        status = lm_case_make(&made, &wanted, &error);
        lm_case_free(&made);
    }
    return lm_failed(status, &error);
}

static int ask_case(eval_result *result, lm_reader *reader, const lm_case *made, int task, int length, int sample, lm_error *error)
{
    int status = LM_OK;
    for (int i = 0; status == LM_OK && i < made->count; i++) {
        const lm_prompt *prompt = &made->prompts[i];
        lm_answer answers[LM_SESSIONS_MAX];
        status = lm_ask(answers, reader, prompt, error);
        eval_cell *cell = eval_cell_at(result, task, length, sample, prompt->depth >= 0 ? prompt->depth : 0);
        for (int s = 0; status == LM_OK && s < EVAL_SESSIONS; s++) {
            for (int m = 0; m < LM_MEASURES; m++) {
                cell->sums[s][m] += answers[s].measures[m];
            }
        }
        cell->count += status == LM_OK;
    }
    return status;
}

static int run_sample(eval_result *result, lm_reader *reader, const eval_plan *plan, int task, int length, int sample)
{
    lm_error error = { { 0 } };
    lm_case made;
    const lm_case_plan wanted = case_plan(plan, result, result->tasks[task].task, result->lengths[length], sample);
    int status = lm_case_make(&made, &wanted, &error);
    if (status == LM_OK) {
        status = ask_case(result, reader, &made, task, length, sample, &error);
    }
    lm_case_free(&made);
    return lm_failed(status, &error);
}

/* About how many tokens will be decoded, for the progress line: one context, but for passkey what lies behind each needle again. */
static int64_t planned_tokens(const eval_result *result)
{
    enum { QUESTION = 48 };
    double tokens = 0.0;
    for (int t = 0; t < result->task_count; t++) {
        double contexts = 1.0;
        for (int d = 0; result->tasks[t].task == LM_TASK_PASSKEY && d + 1 < result->depth_count; d++) {
            contexts += 1.0 - result->depths[d] / 100.0;
        }
        for (int l = 0; l < result->length_count; l++) {
            tokens += result->samples * (contexts * result->lengths[l] + QUESTION * result->tasks[t].depths);
        }
    }
    return (int64_t)tokens + 1;
}

static int prepare_tasks(eval_result *result, const eval_plan *plan)
{
    for (int t = 0; t < plan->task_count; t++) {
        eval_task *task = &result->tasks[t];
        task->task = plan->tasks[t];
        task->depths = lm_task_has_depth(task->task) ? result->depth_count : 1;
        task->cells = calloc((size_t)result->length_count * (size_t)result->samples * (size_t)task->depths, sizeof *task->cells);
        result->task_count++;
        if (!task->cells) {
            return cli_fail("out of memory");
        }
    }
    return CLI_OK;
}

static int run_tasks(eval_result *result, const lm_desk *desk, const eval_plan *plan)
{
    lm_error error = { { 0 } };
    lm_reader reader;
    int code = prepare_tasks(result, plan);
    if (code != CLI_OK) {
        return code;
    }
    code = lm_failed(lm_reader_open(&reader, &desk->group, &error), &error);
    reader.planned = planned_tokens(result);
    cli_progress_start("asking both attentions");
    for (int t = 0; code == CLI_OK && t < result->task_count; t++) {
        for (int i = 0; code == CLI_OK && i < result->length_count * result->samples; i++) {
            code = run_sample(result, &reader, plan, t, i / result->samples, i % result->samples);
        }
    }
    cli_progress_end();
    result->read = reader.decoded;
    result->shared = reader.shared;
    lm_reader_close(&reader);
    return code;
}

int eval_run(eval_result *result, const lm_desk *desk, const eval_plan *plan)
{
    double start_s = cli_now_s();
    int code = run_texts(result, desk, plan);
    code = code == CLI_OK && plan->task_count > 0 ? run_tasks(result, desk, plan) : code;
    for (int s = 0; s < EVAL_SESSIONS; s++) {
        result->timing[s] = *lm_session_timing(desk->group.sessions[s]);
        lm_session_usage(desk->group.sessions[s], &result->usage[s]);
    }
    result->time_s = cli_now_s() - start_s;
    return code;
}
