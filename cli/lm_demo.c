/*
 * lm_demo.c - `kna demo`: a real document in a real model, four attentions side by side.
 *
 * Stages: options, model, document cut to length, four sessions in lockstep over the document, four continuations in turn, then
 * table, JSON or page. Invariant: every figure shown was measured in this run; contenders take turns step by step, in rotating
 * order, so that a slow phase of the machine meets all of them.
 */
#include "lm_demo.h"

#include "page.h"

#include <stdlib.h>
#include <string.h>

typedef struct request {
    lm_input input;
    lm_choice settings;
    const char *html;
    int64_t tokens, scored, count;
    int json;
} request;

#define AT(member) offsetof(request, member)

static const cli_option demo_options[] = {
    { "tokens", 0, CLI_INT, AT(tokens), 64, 1 << 20, NULL, "N",
      "the document is cut after its last whole line within N tokens (default 7500)" },
    { "scored", 0, CLI_INT, AT(scored), 1, 1 << 20, NULL, "N",
      "tokens at its end that are scored (default 2048, at most half of it)" },
    { "count", 'n', CLI_INT, AT(count), 2, 4096, NULL, "N", "tokens each attention continues it with (default 64)" },
    { "html", 0, CLI_TEXT, AT(html), 0, 0, NULL, "FILE", "write the figures as one self-contained page" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print the figures as JSON instead of a table" },
    { NULL, 0, CLI_FLAG, 0, 0, 0, NULL, NULL, NULL },
};

static const cli_usage usage = {
    "demo",
    "-m model.gguf -f document.txt [--html FILE] [options]",
    "Read a document with four attentions side by side: llama.cpp -fa 0, llama.cpp\n"
    "-fa 1, our exact and our knn; compare speed, perplexity and divergence on its last\n"
    "tokens, then let each continue it.\n",
};

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Input", lm_input_options, &r->input },
        { "What is shown", demo_options, r },
        { "Settings of knn", lm_choice_settings, &r->settings },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    code = code == CLI_GO_ON ? cli_require(&usage, "model", r->input.model) : code;
    code = code == CLI_GO_ON ? cli_require(&usage, "file", r->input.file) : code;
    return code == CLI_GO_ON && r->html && cli_output_check(r->html) != CLI_OK ? CLI_FAILED : code;
}

/* ------------------------------------------------------------------ document */

typedef struct document {
    char *text;
    size_t bytes;
    lm_tokens tokens;
} document;

static void document_free(document *d)
{
    free(d->text);
    lm_tokens_free(&d->tokens);
}

static int cut_document(document *d, const request *r, const lm_model *model)
{
    lm_error error = { { 0 } };
    size_t cut = 0;
    int status = lm_cut(&cut, model, d->text, d->bytes, (int)r->tokens, &error);
    if (status == LM_OK) {
        d->bytes = cut;
        d->text[cut] = '\0';
        status = lm_tokenize(&d->tokens, model, d->text, cut, 0, &error);
    }
    return lm_failed(status, &error);
}

static int read_document(document *d, const request *r, const lm_model *model)
{
    int code = lm_read_text(&d->text, &d->bytes, r->input.file);
    code = code == CLI_OK ? cut_document(d, r, model) : code;
    if (code != CLI_OK) {
        return code;
    }
    int64_t needed = d->tokens.count + r->count - 1, trained = lm_model_positions(model);
    if (d->tokens.count < 64) {
        return cli_refuse("%s: %d tokens in whole lines within %d, at least 64 are needed", r->input.file, d->tokens.count,
                          (int)r->tokens);
    }
    return needed > trained
               ? cli_refuse("%d tokens of document and %d more (-n) exceed the %d positions this model was trained with",
                            d->tokens.count, (int)r->count, (int)trained)
               : CLI_OK;
}

/* The last few lines of the text, not more than a screen's worth. */
static const char *tail_of(const document *d)
{
    size_t from = d->bytes > 600 ? d->bytes - 600 : 0;
    while (from > 0 && from < d->bytes && d->text[from - 1] != '\n') {
        from++;
    }
    return d->text + (from < d->bytes ? from : 0);
}

/* ------------------------------------------------------------------ run */

static const struct {
    int method, flash;
    const char *name;
} contenders[DEMO_CONTENDERS] = {
    { LM_OFF, 0, "llama.cpp -fa 0" },
    { LM_OFF, 1, "llama.cpp -fa 1" },
    { LM_EXACT, 1, "exact" },
    { LM_KNN, 1, "knn" },
};

static int open_sessions(lm_desk *desk, const request *r, int positions)
{
    int code = CLI_OK;
    for (int i = 0; code == CLI_OK && i < DEMO_CONTENDERS; i++) {
        const lm_attention attention = lm_attention_of(contenders[i].method, contenders[i].flash, &r->settings);
        code = lm_desk_session(desk, positions, 0, (int)r->input.threads, &attention);
    }
    return code;
}

static void take_figures(demo_result *result, const lm_desk *desk, int reading)
{
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        demo_entry *entry = &result->entries[i];
        lm_session *session = desk->group.sessions[i];
        *(reading ? &entry->read : &entry->made) = *lm_session_timing(session);
        lm_session_usage(session, reading ? &entry->read_usage : &entry->made_usage);
        lm_session_reset_figures(session);
    }
}

static int run_reading(demo_result *result, const lm_desk *desk, const document *d, lm_error *error)
{
    lm_score scores[DEMO_CONTENDERS];
    memset(scores, 0, sizeof scores);
    cli_progress_start("reading the document with four attentions in turn");
    int status = lm_score_text(scores, &desk->group, d->tokens.ids, d->tokens.count, d->tokens.count - 1 - result->scored, error);
    cli_progress_end();
    take_figures(result, desk, 1);
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        result->entries[i].score = scores[i];
    }
    return status;
}

static int run_making(demo_result *result, const lm_desk *desk, lm_error *error)
{
    lm_tokens made[DEMO_CONTENDERS];
    int row = lm_last_row(result->tokens, result->tokens - 1 - result->scored);
    cli_progress_start("continuing it with four attentions in turn");
    int status = lm_generate_each(made, &desk->group, row, result->count, error);
    cli_progress_end();
    if (status != LM_OK) {
        return status;
    }
    take_figures(result, desk, 0);
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        result->entries[i].tokens = made[i];
        result->entries[i].equal = lm_equal(&made[DEMO_FULL], &made[i]);
    }
    return LM_OK;
}

/* ------------------------------------------------------------------ answer */

double demo_prefill_ratio(const demo_result *result, int i)
{
    double full = lm_prefill_rate(&result->entries[DEMO_FULL].read), flash = lm_prefill_rate(&result->entries[DEMO_FLASH].read);
    return lm_prefill_rate(&result->entries[i].read) / (full > flash ? full : flash);
}

double demo_decode_ratio(const demo_result *result, int i)
{
    double full = lm_decode_rate(&result->entries[DEMO_FULL].made), flash = lm_decode_rate(&result->entries[DEMO_FLASH].made);
    return lm_decode_rate(&result->entries[i].made) / (full > flash ? full : flash);
}

static void describe(demo_result *result, const request *r, const lm_desk *desk, const document *d)
{
    const char *slash = strrchr(r->input.file, '/');
    int half = d->tokens.count / 2;
    result->model = desk->model;
    result->document = slash ? slash + 1 : r->input.file;
    result->tail = tail_of(d);
    result->threads = lm_session_threads(desk->group.sessions[0]);
    result->tokens = d->tokens.count;
    result->scored = r->scored < half ? (int)r->scored : half;
    result->count = (int)r->count;
    lm_machine_name(result->machine, sizeof result->machine);
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        result->entries[i].name = contenders[i].name;
    }
}

static int put_page(const void *result, FILE *page)
{
    return demo_html(result, page);
}

static int show(const demo_result *result, const request *r)
{
    int code = r->json ? demo_json(result) : demo_print(result);
    return code == CLI_OK && r->html ? page_write(r->html, put_page, result) : code;
}

static int work(const request *r, const lm_desk *desk, const document *d)
{
    lm_error error = { { 0 } };
    demo_result result;
    memset(&result, 0, sizeof result);
    describe(&result, r, desk, d);
    int status = run_reading(&result, desk, d, &error);
    if (status == LM_OK) {
        status = run_making(&result, desk, &error);
    }
    int code = status == LM_OK ? show(&result, r) : lm_failed(status, &error);
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        lm_tokens_free(&result.entries[i].tokens);
    }
    return code;
}

int kna_cmd_demo(int argc, char **argv)
{
    request r = { .tokens = 7500, .scored = 2048, .count = 64, .settings = LM_CHOICE };
    lm_desk desk = { 0 };
    document d = { 0 };
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) {
        return code;
    }
    code = lm_desk_open(&desk, &r.input);
    code = code == CLI_OK ? read_document(&d, &r, desk.model) : code;
    code = code == CLI_OK ? open_sessions(&desk, &r, (int)(d.tokens.count + r.count - 1)) : code;
    code = code == CLI_OK ? work(&r, &desk, &d) : code;
    document_free(&d);
    lm_desk_close(&desk);
    return code;
}
