/*
 * lm_ppl.c - `kna ppl`: perplexity of a model on a text, defined as llama-perplexity defines it.
 *
 * Stages: options, model, tokens, windows, figures. With --compare llama.cpp's own attention reads the same windows beside it.
 */
#include "lm_common.h"

#include <string.h>

typedef struct request {
    lm_input input;
    lm_choice choice;
    int64_t context, chunks;
    int compare, json;
} request;

#define AT(member) offsetof(request, member)

static const cli_option ppl_options[] = {
    { "ctx", 'c', CLI_INT, AT(context), 4, 1 << 20, NULL, "N",
      "tokens per window; the second half of each is scored (default 512)" },
    { "chunks", 0, CLI_INT, AT(chunks), 1, 1 << 30, NULL, "N", "at most N windows (default: all whole ones)" },
    { "compare", 0, CLI_FLAG, AT(compare), 0, 0, NULL, NULL, "read the windows with llama.cpp -fa 0 too and compare" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print the figures as JSON" },
    { NULL, 0, CLI_FLAG, 0, 0, 0, NULL, NULL, NULL },
};

static const cli_usage usage = {
    "ppl",
    "-m model.gguf -f text.txt [-c N] [--method NAME] [options]",
    "Perplexity of a model on a text. The text is cut into windows of N tokens; the\n"
    "second half of each is scored, each token from all before it in its window, as\n"
    "llama-perplexity does it. --compare adds the perplexity of full attention and\n"
    "the Kullback-Leibler divergence from it.\n",
};

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Input", lm_input_options, &r->input },
        { "What is measured", ppl_options, r },
        { "Attention", lm_choice_options, &r->choice },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    code = code == CLI_GO_ON ? cli_require(&usage, "model", r->input.model) : code;
    return code == CLI_GO_ON ? cli_require(&usage, "file", r->input.file) : code;
}

static int open_sessions(lm_desk *desk, const request *r)
{
    const lm_attention full = lm_attention_of(LM_OFF, 0, &r->choice), chosen = lm_choice_attention(&r->choice);
    int code = CLI_OK;
    if (r->compare) {
        code = lm_desk_session(desk, (int)r->context, 0, (int)r->input.threads, &full);
    }
    return code == CLI_OK ? lm_desk_session(desk, (int)r->context, 0, (int)r->input.threads, &chosen) : code;
}

/* ------------------------------------------------------------------ answer */

/* Sessions and scores of a finished run: the chosen attention is the last, the reference, if any, the first. */
typedef struct answer {
    const request *request;
    const lm_desk *desk;
    const lm_score *scores;
    const lm_timing *timing;
    lm_usage usage;
    int windows;
} answer;

static double read_rate(const lm_timing *timing)
{
    return lm_per_second(timing->prefill_tokens + timing->decode_tokens, timing->prefill_s + timing->decode_s);
}

static void json_reference(cJSON *root, const answer *a)
{
    cJSON *to = cli_json_object(root, "compare");
    cli_json_text(to, "reference", "llama.cpp -fa 0");
    cli_json_real(to, "ppl", lm_score_perplexity(&a->scores[0]));
    cli_json_real(to, "ppl_ratio", lm_score_perplexity(&a->scores[1]) / lm_score_perplexity(&a->scores[0]));
    lm_json_comparison(to, &a->scores[1]);
    cli_json_real(to, "tokens_per_s", read_rate(lm_session_timing(a->desk->group.sessions[0])));
}

static int print_json(const answer *a)
{
    const lm_attention attention = lm_choice_attention(&a->request->choice);
    const lm_score *score = &a->scores[a->desk->group.count - 1];
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_text(root, "model", lm_model_name(a->desk->model));
    cli_json_text(root, "method", lm_attention_name(&attention));
    cli_json_real(root, "ppl", lm_score_perplexity(score));
    cli_json_real(root, "ppl_error", lm_score_perplexity_error(score));
    cli_json_int(root, "tokens", score->nll.count);
    cli_json_real(root, "tokens_per_s", read_rate(a->timing));
    cli_json_int(root, "context", a->request->context);
    cli_json_int(root, "chunks", a->windows);
    lm_json_usage(root, &a->usage);
    if (a->request->compare) {
        json_reference(root, a);
    }
    return cli_json_print(stdout, root);
}

static int print_words(const answer *a)
{
    const lm_attention attention = lm_choice_attention(&a->request->choice);
    const lm_score *score = &a->scores[a->desk->group.count - 1], *full = &a->scores[0];
    printf("perplexity %.4f +/- %.4f  (%s, %d windows of %d tokens, %lld scored)\n", lm_score_perplexity(score),
           lm_score_perplexity_error(score), lm_attention_name(&attention), a->windows, (int)a->request->context,
           (long long)score->nll.count);
    printf("speed      %.1f tokens/s\n", read_rate(a->timing));
    lm_print_usage(stdout, &a->usage);
    if (a->request->compare) {
        printf("compared   llama.cpp -fa 0: perplexity %.4f (%+.3f %%), %.1f tokens/s\n", lm_score_perplexity(full),
               100.0 * (lm_score_perplexity(score) / lm_score_perplexity(full) - 1.0),
               read_rate(lm_session_timing(a->desk->group.sessions[0])));
        printf("           KL divergence from it %.6f +/- %.6f, same most likely token %.2f %%\n",
               lm_mean_value(&score->divergence), lm_mean_error(&score->divergence), 100.0 * lm_score_agreement(score));
    }
    return CLI_OK;
}

static int measure(const request *r, const lm_desk *desk, const lm_tokens *text)
{
    lm_error error = { { 0 } };
    lm_score scores[2];
    answer a = { .request = r, .desk = desk, .scores = scores };
    memset(scores, 0, sizeof scores);
    cli_progress_start("perplexity");
    int status = lm_perplexity(scores, &a.windows, &desk->group, text, (int)r->context, (int)r->chunks, &error);
    cli_progress_end();
    if (status != LM_OK) {
        return lm_failed(status, &error);
    }
    const lm_session *chosen = desk->group.sessions[desk->group.count - 1];
    a.timing = lm_session_timing(chosen);
    lm_session_usage(chosen, &a.usage);
    return r->json ? print_json(&a) : print_words(&a);
}

/* ------------------------------------------------------------------ command */

static int check_text(const request *r, const lm_desk *desk, const lm_tokens *text)
{
    if (text->count < r->context) {
        return cli_refuse("%s: %d tokens, fewer than one window of %d (-c)", r->input.file, text->count, (int)r->context);
    }
    if (r->context > lm_model_positions(desk->model)) {
        cli_warn("-c %d is more than the %d positions this model was trained with", (int)r->context,
                 lm_model_positions(desk->model));
    }
    return CLI_OK;
}

int kna_cmd_ppl(int argc, char **argv)
{
    request r = { .context = 512, .choice = LM_CHOICE };
    lm_desk desk = { 0 };
    lm_tokens text = { 0 };
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) {
        return code;
    }
    code = lm_desk_open(&desk, &r.input);
    code = code == CLI_OK ? lm_read_tokens(&text, desk.model, r.input.file) : code;
    code = code == CLI_OK ? check_text(&r, &desk, &text) : code;
    code = code == CLI_OK ? open_sessions(&desk, &r) : code;
    code = code == CLI_OK ? measure(&r, &desk, &text) : code;
    lm_tokens_free(&text);
    lm_desk_close(&desk);
    return code;
}
