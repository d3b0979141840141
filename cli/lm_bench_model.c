/*
 * lm_bench_model.c - `kna bench model`: speed inside a model at given depths of context, ours beside llama.cpp's.
 *
 * Stages: options, model, text, then per depth: fill the caches, time rounds in which all contenders take turns, report medians.
 * The yardstick is the faster of llama.cpp's two settings, for decode and prefill each.
 */
#include "lm_common.h"

#include <stdlib.h>

typedef struct request {
    lm_input input;
    lm_choice settings;
    cli_list depths;
    int64_t decode, rounds;
    int json;
} request;

#define AT(member) offsetof(request, member)

static const cli_option bench_options[] = {
    { "depths", 0, CLI_LIST, AT(depths), 0, 1 << 20, NULL, "LIST", "tokens in the cache, ascending (default 0,512,2048,8192)" },
    { "count", 'n', CLI_INT, AT(decode), 1, 4096, NULL, "N", "tokens decoded per round (default 16)" },
    { "rounds", 0, CLI_INT, AT(rounds), 1, 1000, NULL, "N", "rounds; medians over them are reported (default 3)" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print the figures as JSON" },
    { NULL, 0, CLI_FLAG, 0, 0, 0, NULL, NULL, NULL },
};

static const cli_usage usage = {
    "bench model",
    "-m model.gguf -f text.txt [--depths LIST] [-n N] [options]",
    "Time decoding (one token at a time) and prefill (512 tokens at once) behind D\n"
    "tokens of the text, with llama.cpp -fa 0, llama.cpp -fa 1, our exact attention and\n"
    "knn. Contenders take turns token by token. Ratios are to the faster of llama.cpp's two.\n",
};

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Input", lm_input_options, &r->input },
        { "What is measured", bench_options, r },
        { "Settings of knn", lm_choice_settings, &r->settings },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    code = code == CLI_GO_ON ? cli_require(&usage, "model", r->input.model) : code;
    code = code == CLI_GO_ON ? cli_require(&usage, "file", r->input.file) : code;
    for (int i = 1; code == CLI_GO_ON && i < r->depths.count; i++) {
        if (r->depths.values[i] <= r->depths.values[i - 1]) {
            code =
                cli_refuse("--depths: %d after %d: the list must ascend", (int)r->depths.values[i], (int)r->depths.values[i - 1]);
        }
    }
    return code;
}

/* ------------------------------------------------------------------ contenders */

#define CONTENDERS 4
static const struct {
    int method, flash;
} contenders[CONTENDERS] = { { LM_OFF, 0 }, { LM_OFF, 1 }, { LM_EXACT, 1 }, { LM_KNN, 1 } };

static int tokens_needed(const request *r)
{
    int64_t deepest = r->depths.values[r->depths.count - 1];
    return (int)(deepest + (r->decode > LM_STEP ? r->decode : LM_STEP));
}

static int open_sessions(lm_desk *desk, const request *r)
{
    int code = CLI_OK;
    for (int s = 0; code == CLI_OK && s < CONTENDERS; s++) {
        const lm_attention attention = lm_attention_of(contenders[s].method, contenders[s].flash, &r->settings);
        code = lm_desk_session(desk, tokens_needed(r), 1, (int)r->input.threads, &attention);
    }
    return code;
}

/* ------------------------------------------------------------------ answer */

static double faster(double a, double b)
{
    return a < b ? a : b;
}

static const char *name_of(const request *r, int s)
{
    const lm_attention attention = lm_attention_of(contenders[s].method, contenders[s].flash, &r->settings);
    return lm_attention_name(&attention);
}

static void print_rows(const request *r, int depth, const lm_speed *speeds)
{
    double decode_s = faster(speeds[0].decode_s, speeds[1].decode_s), prefill_s = faster(speeds[0].prefill_s, speeds[1].prefill_s);
    for (int s = 0; s < CONTENDERS; s++) {
        printf("%7d  %-16s %10.1f %7.2fx %12.1f %7.2fx\n", depth, name_of(r, s), lm_per_second(1, speeds[s].decode_s),
               decode_s / speeds[s].decode_s, lm_per_second(LM_STEP, speeds[s].prefill_s), prefill_s / speeds[s].prefill_s);
    }
    fflush(stdout);
}

static void json_rows(cJSON *rows, const request *r, int depth, const lm_speed *speeds)
{
    double decode_s = faster(speeds[0].decode_s, speeds[1].decode_s), prefill_s = faster(speeds[0].prefill_s, speeds[1].prefill_s);
    for (int s = 0; s < CONTENDERS; s++) {
        cJSON *row = cli_json_object(rows, NULL);
        cli_json_int(row, "depth", depth);
        cli_json_text(row, "method", name_of(r, s));
        cli_json_real(row, "decode_tokens_per_s", lm_per_second(1, speeds[s].decode_s));
        cli_json_real(row, "decode_ratio", decode_s / speeds[s].decode_s);
        cli_json_real(row, "prefill_tokens_per_s", lm_per_second(LM_STEP, speeds[s].prefill_s));
        cli_json_real(row, "prefill_ratio", prefill_s / speeds[s].prefill_s);
    }
}

static cJSON *json_head(const request *r, const lm_desk *desk)
{
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_text(root, "model", lm_model_name(desk->model));
    cli_json_int(root, "threads", lm_session_threads(desk->group.sessions[0]));
    cli_json_int(root, "rounds", r->rounds);
    cli_json_int(root, "decode", r->decode);
    cli_json_int(root, "prefill", LM_STEP);
    return root;
}

static int measure(const request *r, const lm_desk *desk, const lm_tokens *text)
{
    lm_error error = { { 0 } };
    lm_speed speeds[CONTENDERS];
    cJSON *root = r->json ? json_head(r, desk) : NULL, *rows = r->json ? cli_json_array(root, "rows") : NULL;
    int status = LM_OK;
    if (!r->json) {
        printf("%s, %d threads, medians of %d rounds\n", lm_model_name(desk->model), lm_session_threads(desk->group.sessions[0]),
               (int)r->rounds);
        printf("  depth  attention        decode t/s   ratio  prefill t/s   ratio\n");
    }
    for (int i = 0; status == LM_OK && i < r->depths.count; i++) {
        int depth = (int)r->depths.values[i];
        cli_progress_start("timing");
        status = lm_speed_at(speeds, &desk->group, text, depth, (int)r->decode, (int)r->rounds, &error);
        cli_progress_end();
        if (status == LM_OK && r->json) {
            json_rows(rows, r, depth, speeds);
        } else if (status == LM_OK) {
            print_rows(r, depth, speeds);
        }
    }
    if (status != LM_OK) {
        cJSON_Delete(root);
        return lm_failed(status, &error);
    }
    return r->json ? cli_json_print(stdout, root) : CLI_OK;
}

static int check_text(const request *r, const lm_tokens *text)
{
    int needed = tokens_needed(r);
    return text->count < needed ? cli_refuse("%s: %d tokens, timing at depth %d takes %d", r->input.file, text->count,
                                             (int)r->depths.values[r->depths.count - 1], needed)
                                : CLI_OK;
}

int kna_cmd_bench_model(int argc, char **argv)
{
    request r = { .decode = 16, .rounds = 3, .depths = { 4, { 0, 512, 2048, 8192 } }, .settings = LM_CHOICE };
    lm_desk desk = { 0 };
    lm_tokens text = { 0 };
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) {
        return code;
    }
    code = lm_desk_open(&desk, &r.input);
    code = code == CLI_OK ? lm_read_tokens(&text, desk.model, r.input.file) : code;
    code = code == CLI_OK ? check_text(&r, &text) : code;
    code = code == CLI_OK ? open_sessions(&desk, &r) : code;
    code = code == CLI_OK ? measure(&r, &desk, &text) : code;
    lm_tokens_free(&text);
    lm_desk_close(&desk);
    return code;
}
