/*
 * lm_bench_model.c - `kna bench model`: speed inside a model at given depths of context, ours beside llama.cpp's.
 *
 * Stages: options, model, text; per depth: one session reads the text, the others are given its cache, rounds in which all
 * contenders take turns; per prompt: all contenders read it from an empty cache, in turn. The yardstick is the faster of llama.cpp's two
 * settings, for each figure by itself.
 */
#include "lm_bench_model.h"

#include <stdlib.h>

#define AT(member) offsetof(bench_request, member)

static const cli_option bench_options[] = {
    { "depths", 0, CLI_LIST, AT(depths), 0, 1 << 24, NULL, "LIST",
      "tokens in the cache, ascending (default 0,512,2048,8192; with --prompts none)" },
    { "prompts", 0, CLI_LIST, AT(prompts), 2, 1 << 24, NULL, "LIST", "whole prompts to read, in tokens, ascending (default none)" },
    { "count", 'n', CLI_INT, AT(decode), 1, 4096, NULL, "N", "tokens decoded per round (default 16)" },
    { "rounds", 0, CLI_INT, AT(rounds), 1, 1000, NULL, "N", "rounds; medians over them are reported (default 3)" },
    { "no-yarn", 0, CLI_FLAG, AT(no_yarn), 0, 0, NULL, NULL, "do not stretch positions beyond what the model was trained with" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print the figures as JSON" },
    { NULL, 0, CLI_FLAG, 0, 0, 0, NULL, NULL, NULL },
};

static const cli_usage usage = {
    "bench model",
    "-m model.gguf -f text.txt [--depths LIST] [--prompts LIST] [options]",
    "Time decoding (one token at a time) and prefill (512 tokens at once) behind D\n"
    "tokens of the text, with llama.cpp -fa 0, llama.cpp -fa 1, our exact attention and\n"
    "knn, in turns. knn reads the text once; the others are given its cache. --prompts\n"
    "times whole prompts from an empty cache to the first token. Columns /llama and\n"
    "/exact: times faster than the faster of llama.cpp's two, and than our exact.\n",
};

/* ------------------------------------------------------------------ options */

static int check_ascending(const char *name, const cli_list *list)
{
    for (int i = 1; i < list->count; i++) {
        if (list->values[i] <= list->values[i - 1]) {
            return cli_refuse("--%s: %d after %d: the list must ascend", name, (int)list->values[i], (int)list->values[i - 1]);
        }
    }
    return CLI_GO_ON;
}

static int parse(bench_request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Input", lm_input_options, &r->input },
        { "What is measured", bench_options, r },
        { "Settings of knn", lm_choice_settings, &r->settings },
        { NULL, NULL, NULL },
    };
    const cli_list usual = { 4, { 0, 512, 2048, 8192 } };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    code = code == CLI_GO_ON ? cli_require(&usage, "model", r->input.model) : code;
    code = code == CLI_GO_ON ? cli_require(&usage, "file", r->input.file) : code;
    if (r->depths.count == 0 && r->prompts.count == 0) {
        r->depths = usual;
    }
    code = code == CLI_GO_ON ? check_ascending("depths", &r->depths) : code;
    return code == CLI_GO_ON ? check_ascending("prompts", &r->prompts) : code;
}

static const struct {
    int method, flash;
} contenders[CONTENDERS] = { { LM_OFF, 0 }, { LM_OFF, 1 }, [OURS_EXACT] = { LM_EXACT, 1 }, [OURS_KNN] = { LM_KNN, 1 } };

lm_attention bench_attention(const bench_request *r, int contender)
{
    return lm_attention_of(contenders[contender].method, contenders[contender].flash, &r->settings);
}

static int last_of(const cli_list *list)
{
    return list->count > 0 ? (int)list->values[list->count - 1] : 0;
}

/* Tokens that timing at the deepest depth takes. */
static int depth_reach(const bench_request *r)
{
    return r->depths.count > 0 ? lm_speed_reach(last_of(&r->depths), (int)r->decode) : 0;
}

static int most_positions(const bench_request *r)
{
    int reach = depth_reach(r), prompt = last_of(&r->prompts);
    return reach > prompt ? reach : prompt;
}

/* The few tokens timed behind a depth that the model just holds are no reason to stretch everything. */
static int exceeds_training(const bench_request *r, const lm_model *model)
{
    int depth = last_of(&r->depths), prompt = last_of(&r->prompts);
    return (depth > prompt ? depth : prompt) > lm_model_positions(model);
}

static int check_text(const bench_request *r, const lm_tokens *text)
{
    if (text->count < depth_reach(r)) {
        return cli_refuse("%s: %d tokens, timing at depth %d takes %d", r->input.file, text->count, last_of(&r->depths),
                          depth_reach(r));
    }
    if (text->count < last_of(&r->prompts)) {
        return cli_refuse("%s: %d tokens, fewer than the prompt of %d", r->input.file, text->count, last_of(&r->prompts));
    }
    return CLI_OK;
}

static int open_session(lm_desk *desk, const bench_request *r, int positions, int contender)
{
    const lm_attention attention = bench_attention(r, contender);
    return lm_desk_session(desk, positions, 1, (int)r->input.threads, &attention);
}

/* ------------------------------------------------------------------ depths */

/* llama.cpp's flash attention and our exact one keep nothing but the same cache: they share a session. */
enum { PLAIN, SHARED, READER, SESSIONS };

static int open_sessions(lm_desk *desk, const bench_request *r)
{
    static const int of[SESSIONS] = { [PLAIN] = 0, [SHARED] = OURS_EXACT, [READER] = OURS_KNN };
    int code = CLI_OK;
    for (int s = 0; code == CLI_OK && s < SESSIONS; s++) {
        code = open_session(desk, r, depth_reach(r), of[s]);
    }
    return code;
}

static int time_depth(bench_report *report, const lm_desk *desk, const lm_tokens *text, int depth)
{
    static const int session_of[CONTENDERS] = { PLAIN, SHARED, SHARED, READER };
    const bench_request *r = report->request;
    lm_contender turns[CONTENDERS];
    lm_speed speeds[CONTENDERS];
    lm_fill fill;
    lm_error error = { { 0 } };
    for (int c = 0; c < CONTENDERS; c++) {
        turns[c] = (lm_contender){ desk->group.sessions[session_of[c]], bench_attention(r, c) };
    }
    cli_progress_start("filling the cache");
    int status = lm_fill_to(&fill, &desk->group, text, depth, &error);
    if (status == LM_OK) {
        cli_progress_start("timing");
        status = lm_speed_at(speeds, turns, CONTENDERS, &desk->group, text, depth, (int)r->decode, (int)r->rounds, &error);
    }
    cli_progress_end();
    if (status == LM_OK) {
        report_depth(report, depth, &fill, speeds);
    }
    return lm_failed(status, &error);
}

static int time_depths(bench_report *report, lm_desk *desk, const lm_tokens *text)
{
    const bench_request *r = report->request;
    int code = r->depths.count > 0 ? open_sessions(desk, r) : CLI_OK;
    for (int i = 0; code == CLI_OK && i < r->depths.count; i++) {
        code = time_depth(report, desk, text, (int)r->depths.values[i]);
    }
    lm_desk_clear(desk);
    return code;
}

/* ------------------------------------------------------------------ prompts */

static int time_prompt(bench_report *report, lm_desk *desk, const lm_tokens *text, int tokens)
{
    double seconds[CONTENDERS];
    lm_usage knn;
    lm_error error = { { 0 } };
    int code = CLI_OK;
    for (int c = 0; code == CLI_OK && c < CONTENDERS; c++) {
        code = open_session(desk, report->request, tokens, c);
    }
    if (code == CLI_OK) {
        cli_progress_start("reading a prompt");
        code = lm_failed(lm_score_text(NULL, &desk->group, text->ids, tokens, tokens - 1, &error), &error);
        cli_progress_end();
    }
    for (int c = 0; code == CLI_OK && c < CONTENDERS; c++) {
        seconds[c] = lm_session_timing(desk->group.sessions[c])->prefill_s;
    }
    if (code == CLI_OK) {
        lm_session_usage(desk->group.sessions[OURS_KNN], &knn);
        report_prompt(report, tokens, seconds, &knn);
    }
    lm_desk_clear(desk);
    return code;
}

/* ------------------------------------------------------------------ command */

static int measure(const bench_request *r, lm_desk *desk, const lm_tokens *text)
{
    bench_report report;
    int threads = r->input.threads > 0 ? (int)r->input.threads : lm_processors();
    desk->yarn = !r->no_yarn && exceeds_training(r, desk->model);
    if (exceeds_training(r, desk->model)) {
        lm_warn_positions(desk->model, most_positions(r), desk->yarn);
    }
    report_start(&report, r, desk->model, threads, desk->yarn ? lm_model_yarn(desk->model, most_positions(r)) : 1.0);
    int code = time_depths(&report, desk, text);
    for (int i = 0; code == CLI_OK && i < r->prompts.count; i++) {
        code = time_prompt(&report, desk, text, (int)r->prompts.values[i]);
    }
    return report_end(&report, code);
}

int kna_cmd_bench_model(int argc, char **argv)
{
    bench_request r = { .decode = 16, .rounds = 3, .settings = LM_CHOICE };
    lm_desk desk = { 0 };
    lm_tokens text = { 0 };
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) {
        return code;
    }
    code = lm_desk_open(&desk, &r.input);
    code = code == CLI_OK ? lm_read_tokens(&text, desk.model, r.input.file) : code;
    code = code == CLI_OK ? check_text(&r, &text) : code;
    code = code == CLI_OK ? measure(&r, &desk, &text) : code;
    lm_tokens_free(&text);
    lm_desk_close(&desk);
    return code;
}
