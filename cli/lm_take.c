/*
 * lm_take.c - the operands of chosen layers. Stages: layers, text, one window through the model.
 */
#include "lm_take.h"

#include <stdlib.h>
#include <string.h>

#include "layers.h"

static int mark_layers(unsigned char *wanted, int layers, const char *list)
{
    long largest = 0;
    if (!list) {
        memset(wanted, 1, (size_t)layers);
        return CLI_OK;
    }
    int code = layers_read(wanted, layers, list, &largest);
    if (code == CLI_OK && largest >= layers) {
        code = cli_refuse("--layers: %ld, but the model has layers 0..%d", largest, layers - 1);
    }
    return code;
}

static int choose_layers(lm_taken *taken, const lm_take_request *r, const lm_model *model)
{
    int layers = lm_model_layers(model);
    unsigned char *wanted = calloc((size_t)layers + 1, 1);
    taken->operands = calloc((size_t)layers + 1, sizeof *taken->operands);
    int code = wanted && taken->operands ? mark_layers(wanted, layers, r->layers) : cli_fail("out of memory");
    for (int layer = 0; code == CLI_OK && layer < layers; layer++) {
        if (wanted[layer] && r->take) {
            taken->operands[taken->count++].layer = layer;
        }
    }
    free(wanted);
    return code;
}

static int check_text(const lm_take_request *r, const lm_tokens *text)
{
    if (text->count < r->context) {
        return cli_refuse("%s: %d tokens, fewer than the %d asked for (-c)", r->input->file, text->count, (int)r->context);
    }
    return CLI_OK;
}

static int longest_text(const lm_take_request *r)
{
    return (int)(r->window > 0 && r->window < r->context ? r->window : r->context);
}

static int open_session(lm_desk *desk, const lm_take_request *r)
{
    lm_error error = { { 0 } };
    const int tokens = (int)r->context, window = (int)r->window;
    const lm_session_options options = { .positions = lm_stretch_positions(tokens, window),
                                         .batch = LM_STEP,
                                         .logits = r->with_hidden ? LM_STEP : 1,
                                         .threads = (int)r->input->threads,
                                         .attention = r->attention,
                                         .yarn = r->yarn,
                                         .texts = lm_stretch_texts(tokens, window),
                                         .watch = r->with_hidden };
    int status = lm_session_open(&desk->group.sessions[0], desk->model, &options, &error);
    desk->group.count = status == LM_OK;
    return lm_failed(status, &error);
}

int lm_take_tokens(lm_taken *taken, lm_desk *desk, const lm_take_request *r, const int32_t *tokens)
{
    lm_error error = { { 0 } };
    int code = choose_layers(taken, r, desk->model);
    if (code == CLI_OK) {
        lm_warn_positions(desk->model, longest_text(r), r->yarn);
        code = open_session(desk, r);
    }
    if (code == CLI_OK) {
        cli_progress_start("reading");
        const lm_stretch stretch = { tokens, (int)r->context, (int)r->window, r->take };
        lm_hidden *hidden = r->with_hidden ? &taken->hidden : NULL;
        int status = lm_operands_take(taken->operands, taken->count, hidden, &desk->group, &stretch, &error);
        cli_progress_end();
        code = lm_failed(status, &error);
    }
    return code;
}

int lm_take(lm_taken *taken, lm_desk *desk, const lm_take_request *r)
{
    lm_tokens text = { 0 };
    int code = lm_read_tokens(&text, desk->model, r->input->file);
    code = code == CLI_OK ? check_text(r, &text) : code;
    code = code == CLI_OK ? lm_take_tokens(taken, desk, r, text.ids) : code;
    lm_tokens_free(&text);
    return code;
}

void lm_taken_free(lm_taken *taken)
{
    for (int i = 0; i < taken->count; i++) {
        lm_operands_free(&taken->operands[i]);
    }
    lm_hidden_free(&taken->hidden);
    free(taken->operands);
}
