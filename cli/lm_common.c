/*
 * lm_common.c - options, opening and closing for the commands that run a model.
 *
 * Invariant: whatever lm_desk_open() and lm_desk_session() made, lm_desk_close() frees, also after a failure half-way.
 */
#include "lm_common.h"

#include <string.h>
#include <unistd.h>

#define INPUT(member)  offsetof(lm_input, member)
#define CHOICE(member) offsetof(lm_choice, member)
#define END                                          \
    {                                                \
        NULL, 0, CLI_FLAG, 0, 0, 0, NULL, NULL, NULL \
    }

const cli_option lm_input_options[] = {
    { "model", 'm', CLI_TEXT, INPUT(model), 0, 0, NULL, "FILE", "the model, a GGUF file" },
    { "file", 'f', CLI_TEXT, INPUT(file), 0, 0, NULL, "FILE", "the text; - is standard input" },
    { "threads", 0, CLI_INT, INPUT(threads), 1, KNA_MAX_THREADS, NULL, "N", "threads (default: all processors)" },
    { "verbose", 0, CLI_FLAG, INPUT(verbose), 0, 0, NULL, NULL, "let llama.cpp's log through to standard error" },
    END,
};

const cli_option lm_choice_options[] = {
    { "method", 0, CLI_CHOICE, CHOICE(method), 0, 0, lm_method_names, "NAME",
      "exact, topk or knn; off: llama.cpp's own attention (default exact)" },
    { "fa", 0, CLI_INT, CHOICE(flash), 0, 1, NULL, "0|1", "off: llama.cpp's -fa 0 or -fa 1 (default 1)" },
    { "k-near", 0, CLI_INT, CHOICE(k_near), 1, KNA_MAX_ROWS, NULL, "K", "topk, knn: nearest keys read in full (default 384)" },
    { "near-sinks", 0, CLI_INT, CHOICE(near_sinks), 0, KNA_MAX_ROWS, NULL, "N", "knn: first keys always read in full (default 4)" },
    { "near-window", 0, CLI_INT, CHOICE(near_window), 0, KNA_MAX_ROWS, NULL, "N",
      "knn: recent keys always read in full (default 64)" },
    { "exact-below", 0, CLI_INT, CHOICE(exact_below), 0, KNA_MAX_ROWS, NULL, "N",
      "topk, knn: every key is read while fewer are seen (default 1024)" },
    { "full-every", 0, CLI_INT, CHOICE(full_every), 1, KNA_MAX_ROWS, NULL, "R",
      "topk, knn: layers 0, R, 2 R .. read every key (default: none)" },
    { "eps", 0, CLI_REAL, CHOICE(eps), 0, 1, NULL, "E",
      "knn: raise K until the estimated error is at most E (default 0: K as given)" },
    { "delta", 0, CLI_REAL, CHOICE(delta), 0, 1, NULL, "D",
      "knn: choose K so that at most a share D of rows is off by more than E, as drawn rows say (default 0: no)" },
    { "audit", 0, CLI_REAL, CHOICE(audit), 0, 1, NULL, "SHARE", "share of rows also computed exactly, for the report (default 0)" },
    END,
};
const cli_option *const lm_choice_settings = lm_choice_options + 2;

lm_attention lm_attention_of(int method, int flash, const lm_choice *settings)
{
    lm_attention attention = LM_ATTENTION;
    attention.method = method;
    attention.flash = flash;
    attention.k_near = settings->k_near;
    attention.near_sinks = settings->near_sinks;
    attention.near_window = settings->near_window;
    attention.exact_below = settings->exact_below;
    attention.full_every = settings->full_every;
    attention.eps = settings->eps;
    attention.delta = settings->delta;
    attention.audit = settings->audit;
    return attention;
}

lm_attention lm_choice_attention(const lm_choice *choice)
{
    return lm_attention_of(choice->method, (int)choice->flash, choice);
}

const char *lm_attention_name(const lm_attention *attention)
{
    if (attention->method == LM_OFF) {
        return attention->flash ? "llama.cpp -fa 1" : "llama.cpp -fa 0";
    }
    return lm_method_names[attention->method];
}

/* ------------------------------------------------------------------ opening */

int lm_failed(int status, const lm_error *error)
{
    switch (status) {
    case LM_OK:
        return CLI_OK;
    case LM_EMODEL:
    case LM_EINVAL:
    case LM_ELIMIT:
        return cli_refuse("%s", error->text);
    default:
        return cli_fail("%s", error->text);
    }
}

void lm_warn_positions(const lm_model *model, int positions, int yarn)
{
    double times = lm_model_yarn(model, positions);
    if (times > 1.0 && yarn) {
        cli_warn("a context of %d is more than the %d positions this model was trained with: they are stretched %.4g times (YaRN)",
                 positions, lm_model_positions(model), times);
    } else if (times > 1.0) {
        cli_warn("a context of %d is more than the %d positions this model was trained with", positions, lm_model_positions(model));
    }
}

static void show(void *user, double share)
{
    (void)user;
    cli_progress_share(share);
}

/* Nothing of llama.cpp can be trusted from here on: no cleaning up but of files under construction. */
static void give_up(const char *text)
{
    int code = cli_fail("llama.cpp cannot go on, memory may have run out: %s", text);
    cli_output_abandon();
    _exit(code);
}

int lm_desk_open(lm_desk *desk, const lm_input *input)
{
    lm_error error = { { 0 } };
    lm_runtime_options runtime = { NULL, NULL, input->verbose, give_up };
    memset(desk, 0, sizeof *desk);
    cli_progress_start("loading the model");
    int status = lm_runtime_open(&runtime, &error);
    if (status == LM_OK) {
        status = lm_model_open(&desk->model, input->model, &error);
    }
    cli_progress_end();
    desk->group.model = desk->model;
    desk->group.progress = show;
    return lm_failed(status, &error);
}

int lm_desk_session(lm_desk *desk, int positions, int logits, int threads, const lm_attention *attention)
{
    lm_error error = { { 0 } };
    lm_session_options options = { positions, LM_STEP, logits, threads, *attention, desk->yarn, 1, 0 };
    lm_session **session = &desk->group.sessions[desk->group.count];
    int status = lm_session_open(session, desk->model, &options, &error);
    if (status == LM_OK) {
        desk->group.count++;
        status = lm_session_warm(*session, &error);
    }
    return lm_failed(status, &error);
}

void lm_desk_clear(lm_desk *desk)
{
    while (desk->group.count > 0) {
        lm_session_close(desk->group.sessions[--desk->group.count]);
    }
}

void lm_desk_close(lm_desk *desk)
{
    cli_progress_end();
    lm_desk_clear(desk);
    lm_model_close(desk->model);
    lm_runtime_close();
}
