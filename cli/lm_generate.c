/*
 * lm_generate.c - `kna generate`: a model continues a text with the attention asked for.
 *
 * Stages: options, model, prompt, read, continue, figures. The text goes to standard output as it comes, figures to standard error;
 * with --json both come at the end as one object. With --compare llama.cpp's own attention is led along the same text.
 */
#include "lm_common.h"

#include <stdlib.h>
#include <string.h>

typedef struct request {
    lm_input input;
    lm_choice choice;
    const char *prompt;
    int64_t count, context;
    double temperature;
    uint64_t seed;
    int chat, compare, ignore_end, json;
} request;

#define AT(member) offsetof(request, member)

static const cli_option generate_options[] = {
    { "prompt", 'p', CLI_TEXT, AT(prompt), 0, 0, NULL, "TEXT", "the text, instead of a file" },
    { "count", 'n', CLI_INT, AT(count), 1, 1 << 20, NULL, "N", "tokens to make at most (default 128)" },
    { "ctx", 'c', CLI_INT, AT(context), 1, 1 << 20, NULL, "N",
      "size of the context (default: as needed, up to what the model was trained with)" },
    { "chat", 0, CLI_FLAG, AT(chat), 0, 0, NULL, NULL, "the text is a question: wrap it in the model's chat template" },
    { "temp", 0, CLI_REAL, AT(temperature), 0, 100, NULL, "T", "draw tokens at this temperature (default 0: the most likely one)" },
    { "seed", 0, CLI_SEED, AT(seed), 0, 0, NULL, "S", "random numbers for --temp (default 0)" },
    { "ignore-eos", 0, CLI_FLAG, AT(ignore_end), 0, 0, NULL, NULL, "do not stop where the model would" },
    { "compare", 0, CLI_FLAG, AT(compare), 0, 0, NULL, NULL, "lead llama.cpp -fa 0 along the same text and compare each step" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print text and figures as JSON" },
    { NULL, 0, CLI_FLAG, 0, 0, 0, NULL, NULL, NULL },
};

static const cli_usage usage = {
    "generate",
    "-m model.gguf (-f prompt.txt | -p TEXT) [-n N] [--method NAME] [options]",
    "Continue a text. Tokens are the most likely ones unless --temp is given. The text\n"
    "goes to standard output, speed and what attention read to standard error.\n"
    "--compare counts the leading tokens that full attention would have made too and\n"
    "measures the Kullback-Leibler divergence from it at every step.\n",
};

static int check_request(const request *r)
{
    if (!r->prompt && !r->input.file) {
        return cli_refuse("generate: a text is missing: -f FILE or -p TEXT");
    }
    return r->prompt && r->input.file ? cli_refuse("generate: -f and -p exclude each other") : CLI_GO_ON;
}

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Input", lm_input_options, &r->input },
        { "What is made", generate_options, r },
        { "Attention", lm_choice_options, &r->choice },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    code = code == CLI_GO_ON ? cli_require(&usage, "model", r->input.model) : code;
    return code == CLI_GO_ON ? check_request(r) : code;
}

/* ------------------------------------------------------------------ prompt and sessions */

static int tokenize(lm_tokens *prompt, const request *r, const lm_model *model, const char *text, size_t bytes)
{
    lm_error error = { { 0 } };
    char *wrapped = NULL;
    int status = LM_OK;
    if (r->chat) {
        status = lm_chat(&wrapped, model, text, &error);
        text = wrapped;
        bytes = wrapped ? strlen(wrapped) : 0;
    }
    if (status == LM_OK) {
        status = lm_tokenize(prompt, model, text, bytes, r->chat ? LM_TEXT_SPECIAL : 0, &error);
    }
    free(wrapped);
    return lm_failed(status, &error);
}

static int read_prompt(lm_tokens *prompt, const request *r, const lm_model *model)
{
    if (r->prompt) {
        return tokenize(prompt, r, model, r->prompt, strlen(r->prompt));
    }
    char *text = NULL;
    size_t bytes = 0;
    int code = lm_read_text(&text, &bytes, r->input.file);
    code = code == CLI_OK ? tokenize(prompt, r, model, text, bytes) : code;
    free(text);
    return code;
}

/* The last token made is never read back, so prompt + N - 1 positions hold everything. */
static int fit_context(int *positions, const request *r, const lm_model *model, const lm_tokens *prompt)
{
    int64_t needed = (int64_t)prompt->count + r->count - 1, trained = lm_model_positions(model);
    int64_t room = r->context > 0 ? r->context : trained;
    if (prompt->count < 1) {
        return cli_refuse("the prompt holds no token");
    }
    if (prompt->count > room) {
        return cli_refuse("the prompt has %d tokens, the context only %d (%s)", prompt->count, (int)room,
                          r->context > 0 ? "-c" : "what the model was trained with; -c N goes beyond");
    }
    if (needed > room) {
        return cli_refuse("the prompt has %d tokens and %d more are to be made (-n): the context of %d is too small", prompt->count,
                          (int)r->count, (int)room);
    }
    if (r->context > trained) {
        cli_warn("-c %d is more than the %d positions this model was trained with", (int)r->context, (int)trained);
    }
    *positions = (int)(r->context > 0 ? r->context : needed);
    return CLI_OK;
}

/* The reference, if any, comes first, as everywhere; the session that makes the text is the last. */
static int open_sessions(lm_desk *desk, const request *r, int positions)
{
    const lm_attention chosen = lm_choice_attention(&r->choice), full = lm_attention_of(LM_OFF, 0, &r->choice);
    int code = CLI_OK;
    if (r->compare) {
        code = lm_desk_session(desk, positions, 1, (int)r->input.threads, &full);
    }
    return code == CLI_OK ? lm_desk_session(desk, positions, 1, (int)r->input.threads, &chosen) : code;
}

static lm_session *maker(const lm_desk *desk)
{
    return desk->group.sessions[desk->group.count - 1];
}

/* ------------------------------------------------------------------ answer */

typedef struct answer {
    const request *request;
    const lm_desk *desk;
    lm_tokens made;
    lm_score score;
    int equal;
    int prompt_tokens;
} answer;

static void print_token(void *user, int32_t token)
{
    const lm_model *model = user;
    char piece[512];
    if (!lm_model_ends(model, token)) {
        fwrite(piece, 1, (size_t)lm_piece(model, token, piece, sizeof piece), stdout);
        fflush(stdout);
    }
}

static void print_timing(const char *name, const lm_timing *timing)
{
    fprintf(stderr, "%-16s prefill %lld tokens at %.1f tokens/s, decode %lld tokens at %.1f tokens/s\n", name,
            (long long)(timing->prefill_tokens), lm_prefill_rate(timing), (long long)timing->decode_tokens, lm_decode_rate(timing));
}

static int print_words(const answer *a)
{
    const lm_attention attention = lm_choice_attention(&a->request->choice);
    lm_usage used;
    lm_session_usage(maker(a->desk), &used);
    putchar('\n');
    fflush(stdout);
    print_timing(lm_attention_name(&attention), lm_session_timing(maker(a->desk)));
    lm_print_usage(stderr, &used);
    if (a->request->compare) {
        print_timing("llama.cpp -fa 0", lm_session_timing(a->desk->group.sessions[0]));
        fprintf(stderr, "compared   %d of %d leading tokens equal; KL divergence per step %.6f +/- %.6f\n", a->equal, a->made.count,
                lm_mean_value(&a->score.divergence), lm_mean_error(&a->score.divergence));
    }
    return CLI_OK;
}

static void json_reference(cJSON *root, const answer *a)
{
    cJSON *to = cli_json_object(root, "compare");
    cli_json_text(to, "reference", "llama.cpp -fa 0");
    cli_json_int(to, "equal_tokens", a->equal);
    lm_json_comparison(to, &a->score);
    lm_json_timing(to, lm_session_timing(a->desk->group.sessions[0]));
}

static int print_json(const answer *a)
{
    const lm_attention attention = lm_choice_attention(&a->request->choice);
    const lm_session *session = maker(a->desk);
    int ended = a->made.count > 0 && lm_model_ends(a->desk->model, a->made.ids[a->made.count - 1]);
    char *text = lm_text_of(a->desk->model, a->made.ids, a->made.count - ended);
    lm_usage used;
    if (!text) {
        return cli_fail("out of memory");
    }
    lm_session_usage(session, &used);
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_text(root, "model", lm_model_name(a->desk->model));
    cli_json_text(root, "method", lm_attention_name(&attention));
    cli_json_text(root, "text", text);
    cli_json_bool(root, "ended", ended);
    cli_json_int(root, "prompt_tokens", a->prompt_tokens);
    cli_json_int(root, "made_tokens", a->made.count);
    lm_json_timing(root, lm_session_timing(session));
    lm_json_usage(root, &used);
    if (a->request->compare) {
        json_reference(root, a);
    }
    free(text);
    return cli_json_print(stdout, root);
}

/* ------------------------------------------------------------------ work */

static int continue_text(answer *a, const request *r, lm_desk *desk, const lm_tokens *prompt)
{
    lm_error error = { { 0 } };
    lm_generation how = { (int)r->count, r->temperature, r->seed, r->ignore_end, r->json ? NULL : print_token, desk->model };
    lm_session *reference = r->compare ? desk->group.sessions[0] : NULL;
    cli_progress_start("reading the prompt");
    int status = lm_score_text(NULL, &desk->group, prompt->ids, prompt->count, prompt->count - 1, &error);
    cli_progress_end();
    if (status == LM_OK) {
        status = lm_generate(&a->made, &a->score, &a->equal, desk->model, maker(desk), reference, 0, &how, &error);
    }
    if (status != LM_OK) {
        return lm_failed(status, &error);
    }
    return r->json ? print_json(a) : print_words(a);
}

int kna_cmd_generate(int argc, char **argv)
{
    request r = { .count = 128, .choice = LM_CHOICE };
    lm_desk desk = { 0 };
    lm_tokens prompt = { 0 };
    int positions = 0;
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) {
        return code;
    }
    answer a = { .request = &r, .desk = &desk };
    code = lm_desk_open(&desk, &r.input);
    code = code == CLI_OK ? read_prompt(&prompt, &r, desk.model) : code;
    code = code == CLI_OK ? fit_context(&positions, &r, desk.model, &prompt) : code;
    code = code == CLI_OK ? open_sessions(&desk, &r, positions) : code;
    a.prompt_tokens = prompt.count;
    code = code == CLI_OK ? continue_text(&a, &r, &desk, &prompt) : code;
    lm_tokens_free(&a.made);
    lm_tokens_free(&prompt);
    lm_desk_close(&desk);
    return code;
}
