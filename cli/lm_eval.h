/* lm_eval.h - what an evaluation measured, and the three ways to show it. */
#ifndef KNA_CLI_LM_EVAL_H
#define KNA_CLI_LM_EVAL_H

#include "lm_ask.h"
#include "lm_bootstrap.h"
#include "lm_common.h"

#define EVAL_SESSIONS 2
#define EVAL_FULL     0 /* the reference of all comparisons */
#define EVAL_CHOSEN   1

/* One text: figures over the second halves of its windows. Differences and intervals are over blocks of neighbouring tokens. */
#define EVAL_BLOCK 64
typedef struct eval_text {
    char *name; /* without folders, valid UTF-8 */
    int windows;
    int64_t tokens; /* scored */
    double ppl[EVAL_SESSIONS];
    lm_interval ppl_ratio;  /* minus 1 */
    lm_interval divergence; /* in nats */
    lm_interval agreement;  /* share of rows with the same most likely token */
} eval_text;

/* Sums over the questions at one length and depth in one sample. */
typedef struct eval_cell {
    double sums[EVAL_SESSIONS][LM_MEASURES];
    int count;
} eval_cell;

typedef struct eval_task {
    int task;
    int depths; /* of its grid: those asked for, or 1 */
    eval_cell *cells;
} eval_task;

typedef struct eval_result {
    const char *model, *names[EVAL_SESSIONS];
    char machine[128];
    int threads, context, samples;
    uint64_t seed;
    int lengths[CLI_LIST_MAX], length_count;
    int depths[CLI_LIST_MAX], depth_count; /* percent */
    eval_text texts[CLI_TEXTS_MAX];
    int text_count;
    eval_task tasks[LM_TASK_COUNT];
    int task_count;
    int64_t read, shared; /* tokens of prompts and answers decoded; tokens of prompts that were in the caches already */
    lm_timing timing[EVAL_SESSIONS];
    lm_usage usage[EVAL_SESSIONS];
    double time_s;
} eval_result;

/* ------------------------------------------------------------------ running (lm_eval_run.c); exit codes */

typedef struct eval_source {
    const char *path;
    char *text;
    size_t bytes;
    lm_tokens tokens;
} eval_source;

/* What is read and asked; the rest of the design stands in the result. */
typedef struct eval_plan {
    eval_source sources[CLI_TEXTS_MAX];
    int source_count;
    int with_text, chunks; /* windows of each text at most */
    int tasks[LM_TASK_COUNT], task_count;
    char *filler_text; /* of all sources */
    lm_filler filler;
    lm_model *model; /* counts tokens */
} eval_plan;

/* eval_fit() - can every task be built at the shortest length? Known before the long work begins. */
int eval_fit(const eval_plan *plan, const eval_result *result);

/* eval_run() - texts, then tasks, into the result; session EVAL_FULL of the desk beside session EVAL_CHOSEN. */
int eval_run(eval_result *result, const lm_desk *desk, const eval_plan *plan);

/* eval_count() - an lm_counter; user is the lm_model. */
int eval_count(void *user, const char *text, size_t bytes);

/* ------------------------------------------------------------------ lm_eval_result.c */

/* Mean over some of the questions, with the interval of the difference chosen - full. */
typedef struct eval_figure {
    double means[EVAL_SESSIONS];
    lm_interval difference;
    int questions;
} eval_figure;

/* Which questions: task or depth -1: all of them, length -1: all. Numbers in the result's lists, not percent or tokens. */
typedef struct eval_choice {
    int task, length, depth;
} eval_choice;

eval_cell *eval_cell_at(const eval_result *result, int task, int length, int sample, int depth);

/* eval_figure_of() - LM_ENOMEM or LM_OK. Units of the interval: all questions of one sample of one task at one length. */
int eval_figure_of(eval_figure *figure, const eval_result *result, eval_choice choice, int measure);

/* eval_text_of() - figures from the rows of both scores; windows * (rows of one window) rows each. */
int eval_text_of(eval_text *text, const lm_score *scores, int windows, uint64_t seed);

void eval_result_free(eval_result *result);

/* ------------------------------------------------------------------ showing; int: an exit code */

/* How an interval is written: "+1.29 % (+0.91 .. +1.66)", "(-)" where nothing is known. */
typedef struct eval_format {
    double scale;
    int digits, has_sign;
    const char *unit;
} eval_format;
extern const eval_format eval_as_change, eval_as_divergence, eval_as_share, eval_as_difference;
void eval_write(char *text, size_t size, const lm_interval *interval, const eval_format *format); /* lm_eval_text.c */

int eval_print(const eval_result *result);            /* lm_eval_text.c */
int eval_json(const eval_result *result);             /* lm_eval_text.c */
int eval_html(const eval_result *result, FILE *page); /* lm_eval_html.c */

#endif /* KNA_CLI_LM_EVAL_H */
