/*
 * lm_eval_text.c - an evaluation's figures as a table on the terminal and as one JSON object.
 *
 * Invariant: a figure that is not known (an interval from a single sample) is null in JSON and a dash in the table.
 */
#include "lm_eval.h"

#include <inttypes.h>
#include <math.h>

/* ------------------------------------------------------------------ table */

static const char *sign_of(double value, const eval_format *format)
{
    return format->has_sign && value >= 0.0 ? "+" : "";
}

void eval_write(char *text, size_t size, const lm_interval *interval, const eval_format *format)
{
    const int digits = format->digits;
    const double value = format->scale * interval->value + 0.0; /* no "-0" */
    const double low = format->scale * interval->low + 0.0, high = format->scale * interval->high + 0.0;
    if (isfinite(low)) {
        snprintf(text, size, "%s%.*f%s (%s%.*f .. %s%.*f)", sign_of(value, format), digits, value, format->unit,
                 sign_of(low, format), digits, low, sign_of(high, format), digits, high);
    } else {
        snprintf(text, size, "%s%.*f%s (-)", sign_of(value, format), digits, value, format->unit);
    }
}

const eval_format eval_as_change = { 100.0, 2, 1, " %" };
const eval_format eval_as_divergence = { 1.0, 5, 0, "" };
const eval_format eval_as_share = { 100.0, 1, 0, " %" };
const eval_format eval_as_difference = { 1.0, 3, 1, "" };

static void print_texts(const eval_result *result)
{
    if (result->text_count == 0) {
        return;
    }
    printf("\n%-24s %7s  perplexity: full %9s  %-27s %-29s %s\n", "text", "tokens", result->names[EVAL_CHOSEN], "difference",
           "KL divergence", "same top token");
    for (int i = 0; i < result->text_count; i++) {
        const eval_text *text = &result->texts[i];
        char ratio[64], divergence[64], agreement[64];
        eval_write(ratio, sizeof ratio, &text->ppl_ratio, &eval_as_change);
        eval_write(divergence, sizeof divergence, &text->divergence, &eval_as_divergence);
        eval_write(agreement, sizeof agreement, &text->agreement, &eval_as_share);
        printf("%-24.24s %7lld  %16.3f %9.3f  %-27s %-29s %s\n", text->name, (long long)text->tokens, text->ppl[EVAL_FULL],
               text->ppl[EVAL_CHOSEN], ratio, divergence, agreement);
    }
}

static int figures_of(eval_figure *figures, const eval_result *result, eval_choice choice)
{
    int status = LM_OK;
    for (int m = 0; status == LM_OK && m < LM_MEASURES; m++) {
        status = eval_figure_of(&figures[m], result, choice, m);
    }
    return status == LM_OK ? CLI_OK : cli_fail("out of memory");
}

static int print_task(const eval_result *result, eval_choice choice)
{
    eval_figure figures[LM_MEASURES];
    char length[16] = "all", accuracy[64], logprob[64];
    int code = figures_of(figures, result, choice);
    if (code != CLI_OK) {
        return code;
    }
    const eval_figure *a = &figures[LM_ACCURACY], *m = &figures[LM_MATCH], *l = &figures[LM_LOGPROB];
    if (choice.length >= 0) {
        snprintf(length, sizeof length, "%d", result->lengths[choice.length]);
    }
    eval_write(accuracy, sizeof accuracy, &a->difference, &eval_as_difference);
    eval_write(logprob, sizeof logprob, &l->difference, &eval_as_difference);
    printf("%-9s %6s %5d  %5.2f %5.2f  %6.3f %6.3f  %-25s  %7.3f %7.3f  %s\n",
           choice.task >= 0 ? lm_task_names[result->tasks[choice.task].task] : "all", length, a->questions, m->means[EVAL_FULL],
           m->means[EVAL_CHOSEN], a->means[EVAL_FULL], a->means[EVAL_CHOSEN], accuracy, l->means[EVAL_FULL], l->means[EVAL_CHOSEN],
           logprob);
    return CLI_OK;
}

static int print_tasks(const eval_result *result)
{
    int code = CLI_OK;
    if (result->task_count == 0) {
        return CLI_OK;
    }
    printf("\n%-22s  %-11s  %-40s  %s\n", "", "match", "accuracy", "log-probability");
    printf("%-9s %6s %5s  %5s %5s  %6s %6s  %-25s  %7s %7s  %s\n", "task", "length", "asked", "full", result->names[EVAL_CHOSEN],
           "full", result->names[EVAL_CHOSEN], "difference", "full", result->names[EVAL_CHOSEN], "difference");
    for (int t = 0; t < result->task_count; t++) {
        for (int l = 0; code == CLI_OK && l < result->length_count; l++) {
            code = print_task(result, (eval_choice){ t, l, -1 });
        }
        if (code == CLI_OK && result->length_count > 1) {
            code = print_task(result, (eval_choice){ t, -1, -1 });
        }
    }
    return code == CLI_OK && result->task_count > 1 ? print_task(result, (eval_choice){ -1, -1, -1 }) : code;
}

int eval_print(const eval_result *result)
{
    printf("%s on %s, %d threads\n", result->model, result->machine, result->threads);
    printf("%s beside full attention (%s) on the same inputs; differences with their 95 %% interval; %.0f s\n",
           result->names[EVAL_CHOSEN], result->names[EVAL_FULL], result->time_s);
    print_texts(result);
    int code = print_tasks(result);
    if (code == CLI_OK) {
        putchar('\n');
        lm_print_usage(stdout, &result->usage[EVAL_CHOSEN]);
    }
    return code;
}

/* ------------------------------------------------------------------ JSON */

static void json_interval(cJSON *to, const char *name, const lm_interval *interval)
{
    cJSON *object = cli_json_object(to, name);
    cli_json_real(object, "value", interval->value);
    cli_json_real(object, "low", interval->low);
    cli_json_real(object, "high", interval->high);
}

static void json_text(cJSON *list, const eval_result *result, const eval_text *text)
{
    cJSON *to = cli_json_object(list, NULL);
    cli_json_text(to, "text", text->name);
    cli_json_int(to, "context", result->context);
    cli_json_int(to, "chunks", text->windows);
    cli_json_int(to, "tokens", text->tokens);
    cli_json_real(to, "ppl_full", text->ppl[EVAL_FULL]);
    cli_json_real(to, "ppl", text->ppl[EVAL_CHOSEN]);
    json_interval(to, "ppl_change", &text->ppl_ratio);
    json_interval(to, "kl_divergence", &text->divergence);
    json_interval(to, "top_token_agreement", &text->agreement);
}

/* questions, and for each measure full, chosen, difference. */
static int json_figures(cJSON *to, const eval_result *result, eval_choice choice)
{
    eval_figure figures[LM_MEASURES];
    int code = figures_of(figures, result, choice);
    if (code != CLI_OK) {
        return code;
    }
    cli_json_int(to, "questions", figures[0].questions);
    for (int m = 0; m < LM_MEASURES; m++) {
        cJSON *measure = cli_json_object(to, lm_measure_names[m]);
        cli_json_real(measure, "full", figures[m].means[EVAL_FULL]);
        cli_json_real(measure, "chosen", figures[m].means[EVAL_CHOSEN]);
        json_interval(measure, "difference", &figures[m].difference);
    }
    return CLI_OK;
}

static int json_lengths(cJSON *to, const eval_result *result, int task)
{
    cJSON *list = cli_json_array(to, "lengths");
    int code = CLI_OK;
    for (int l = 0; code == CLI_OK && l < result->length_count; l++) {
        cJSON *row = cli_json_object(list, NULL);
        cli_json_int(row, "length", result->lengths[l]);
        code = json_figures(row, result, (eval_choice){ task, l, -1 });
    }
    return code;
}

static int json_cells(cJSON *to, const eval_result *result, int task)
{
    cJSON *list = cli_json_array(to, "cells");
    int code = CLI_OK;
    if (!lm_task_has_depth(result->tasks[task].task)) {
        return CLI_OK;
    }
    for (int i = 0; code == CLI_OK && i < result->length_count * result->depth_count; i++) {
        int l = i / result->depth_count, d = i % result->depth_count;
        cJSON *row = cli_json_object(list, NULL);
        cli_json_int(row, "length", result->lengths[l]);
        cli_json_int(row, "depth", result->depths[d]);
        code = json_figures(row, result, (eval_choice){ task, l, d });
    }
    return code;
}

static int json_tasks(cJSON *root, const eval_result *result)
{
    cJSON *list = cli_json_array(root, "tasks");
    int code = CLI_OK;
    for (int t = 0; code == CLI_OK && t < result->task_count; t++) {
        cJSON *to = cli_json_object(list, NULL);
        cli_json_text(to, "task", lm_task_names[result->tasks[t].task]);
        code = json_figures(to, result, (eval_choice){ t, -1, -1 });
        code = code == CLI_OK ? json_lengths(to, result, t) : code;
        code = code == CLI_OK ? json_cells(to, result, t) : code;
    }
    if (code == CLI_OK && result->task_count > 0) {
        code = json_figures(cli_json_object(root, "all_tasks"), result, (eval_choice){ -1, -1, -1 });
    }
    return code;
}

static void json_design(cJSON *root, const eval_result *result)
{
    char seed[32];
    cli_json_text(root, "model", result->model);
    cli_json_text(root, "machine", result->machine);
    cli_json_int(root, "threads", result->threads);
    cli_json_text(root, "method", result->names[EVAL_CHOSEN]);
    cli_json_text(root, "reference", result->names[EVAL_FULL]);
    snprintf(seed, sizeof seed, "%" PRIu64, result->seed);
    cli_json_text(root, "seed", seed); /* 64 bits are more than a number in JSON is sure to keep */
    cli_json_int(root, "samples", result->samples);
    cli_json_real(root, "time_s", result->time_s);
    cli_json_int(root, "tokens_read", result->read);
    cli_json_int(root, "tokens_shared", result->shared);
    lm_json_timing(cli_json_object(root, "full_timing"), &result->timing[EVAL_FULL]);
    lm_json_timing(cli_json_object(root, "timing"), &result->timing[EVAL_CHOSEN]);
    lm_json_usage(root, &result->usage[EVAL_CHOSEN]);
}

int eval_json(const eval_result *result)
{
    cJSON *root = cli_json_object(NULL, NULL);
    json_design(root, result);
    cJSON *texts = cli_json_array(root, "texts");
    for (int i = 0; i < result->text_count; i++) {
        json_text(texts, result, &result->texts[i]);
    }
    int code = json_tasks(root, result);
    if (code != CLI_OK) {
        cJSON_Delete(root);
        return code;
    }
    return cli_json_print(stdout, root);
}
