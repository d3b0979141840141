/*
 * lm_bench_model.h - `kna bench model`: what was asked, and how the answer is written.
 */
#ifndef KNA_CLI_LM_BENCH_MODEL_H
#define KNA_CLI_LM_BENCH_MODEL_H

#include "lm_common.h"

/* llama.cpp's two settings first: the faster of them is the yardstick. */
enum { OURS_EXACT = 2, OURS_KNN = 3, CONTENDERS = 4 };

typedef struct bench_request {
    lm_input input;
    lm_choice settings;
    cli_list depths, prompts;
    int64_t decode, rounds;
    int no_yarn, json;
} bench_request;

lm_attention bench_attention(const bench_request *r, int contender);

/* The answer under way: lines as they come, or a JSON object printed at the end. */
typedef struct bench_report {
    const bench_request *request;
    cJSON *root, *rows, *fills, *prompts; /* NULL without --json */
    int has_rows, has_prompts;            /* headings that were printed */
} bench_report;

void report_start(bench_report *report, const bench_request *r, const lm_model *model, int threads, double yarn);
void report_depth(bench_report *report, int depth, const lm_fill *fill, const lm_speed speeds[CONTENDERS]);
void report_prompt(bench_report *report, int tokens, const double seconds[CONTENDERS], const lm_usage *knn);

/* report_end() - print what is left if the run was `code` = CLI_OK, give up what was gathered; the exit code. */
int report_end(bench_report *report, int code);

#endif /* KNA_CLI_LM_BENCH_MODEL_H */
