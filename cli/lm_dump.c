/*
 * lm_dump.c - `kna dump`: queries, keys and values of chosen layers, as attention inside a model is given them, into .npy files.
 *
 * Stages: options, model, text, one window through the model, files. `kna attend --causal` on the three files of a layer is that
 * layer's attention.
 */
#define _GNU_SOURCE /* PATH_MAX */
#include "convert.h"
#include "lm_common.h"
#include "npy.h"

#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

typedef struct request {
    lm_input input;
    const char *out, *layers;
    int64_t context;
    int type; /* position in type_names */
    int no_yarn, with_output, json;
} request;

#define AT(member) offsetof(request, member)

static const char *const type_names[] = { "f16", "f32", NULL };
static const int types[] = { KNA_F16, KNA_F32 };

static const cli_option dump_options[] = {
    { "ctx", 'c', CLI_INT, AT(context), 1, 1 << 24, NULL, "N", "tokens of the text, from its beginning (default 512)" },
    { "layers", 0, CLI_TEXT, AT(layers), 0, 0, NULL, "LIST", "layers, as 0,8,20 or 0-3,29 (default: all)" },
    { "type", 0, CLI_CHOICE, AT(type), 0, 0, type_names, "TYPE", "of keys and values in the files: f16 or f32 (default f16)" },
    { "out", 0, CLI_TEXT, AT(out), 0, 0, NULL, "DIR", "the folder for q.L.npy, k.L.npy and v.L.npy" },
    { "no-yarn", 0, CLI_FLAG, AT(no_yarn), 0, 0, NULL, NULL, "do not stretch positions beyond what the model was trained with" },
    { "with-output", 0, CLI_FLAG, AT(with_output), 0, 0, NULL, NULL, "also o.L.npy: what attention returned" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "say what was written as JSON" },
    { NULL, 0, CLI_FLAG, 0, 0, 0, NULL, NULL, NULL },
};

static const cli_usage usage = {
    "dump",
    "-m model.gguf -f text.txt -c N [--layers LIST] --out DIR",
    "What attention is given inside a model that reads N tokens of a text: for each\n"
    "layer L the queries q.L.npy (h,N,d), keys k.L.npy (h_kv,N,d) and values v.L.npy\n"
    "(h_kv,N,dv). Queries are float32, not yet scaled; keys and values are what the cache\n"
    "holds, float16. All are taken where attention takes them, after rotation (RoPE).\n",
};

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Input", lm_input_options, &r->input },
        { "What is written", dump_options, r },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    code = code == CLI_GO_ON ? cli_require(&usage, "model", r->input.model) : code;
    code = code == CLI_GO_ON ? cli_require(&usage, "file", r->input.file) : code;
    return code == CLI_GO_ON ? cli_require(&usage, "out", r->out) : code;
}

/* ------------------------------------------------------------------ layers */

/* A number of digits only at *at, which moves behind it; -1: there is none. */
static long take_number(const char **at)
{
    char *end = NULL;
    long number = isdigit((unsigned char)**at) ? strtol(*at, &end, 10) : -1;
    *at = end ? end : *at;
    return number;
}

/* "3" or "3-7" at *at; marks them. 0: malformed. */
static int take_range(unsigned char *wanted, int layers, const char **at, long *largest)
{
    long first = take_number(at), last = first;
    if (first >= 0 && **at == '-') {
        ++*at;
        last = take_number(at);
    }
    if (first < 0 || last < first) {
        return 0;
    }
    *largest = last > *largest ? last : *largest;
    for (long layer = first; layer <= last && layer < layers; layer++) {
        wanted[layer] = 1;
    }
    return 1;
}

/* Marks the layers of a list such as "0,8-10". */
static int read_layers(unsigned char *wanted, int layers, const char *list)
{
    long largest = 0;
    int fits = 1;
    for (const char *at = list; fits; at++) {
        fits = take_range(wanted, layers, &at, &largest) && (*at == ',' || *at == '\0');
        if (*at == '\0') {
            break;
        }
    }
    if (!fits) {
        return cli_refuse("--layers: '%s' is not a list of layers such as 0,8,20 or 0-3,29", list);
    }
    return largest < layers ? CLI_OK : cli_refuse("--layers: %ld, but the model has layers 0..%d", largest, layers - 1);
}

/* The layers wanted, ascending, as operands to be taken. free(*operands) */
static int choose_layers(lm_operands **operands, int *count, const request *r, const lm_model *model)
{
    int layers = lm_model_layers(model);
    unsigned char *wanted = calloc((size_t)layers + 1, 1);
    *operands = calloc((size_t)layers + 1, sizeof **operands);
    int code = wanted && *operands ? CLI_OK : cli_fail("out of memory");
    if (code == CLI_OK && r->layers) {
        code = read_layers(wanted, layers, r->layers);
    } else if (code == CLI_OK) {
        memset(wanted, 1, (size_t)layers);
    }
    for (int layer = 0; code == CLI_OK && layer < layers; layer++) {
        if (wanted[layer]) {
            (*operands)[(*count)++].layer = layer;
        }
    }
    free(wanted);
    return code;
}

/* ------------------------------------------------------------------ files */

static int write_array(const request *r, char letter, int layer, const kna_rows *rows)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%c.%d.npy", r->out, letter, layer) >= (int)sizeof path) {
        return cli_refuse("--out: the name of the folder is too long");
    }
    FILE *to = cli_output_open(path);
    if (!to) {
        return CLI_FAILED;
    }
    const int64_t shape[3] = { rows->heads, rows->rows, rows->dim };
    npy_write_as(to, rows->type, 3, shape, rows->data);
    return cli_output_finish();
}

/* Keys or values, in the type asked for. */
static int write_cached(const request *r, char letter, int layer, const kna_rows *rows)
{
    converted wanted = { 0 };
    if (rows->type == types[r->type]) {
        return write_array(r, letter, layer, rows);
    }
    int code = convert_rows(NULL, &wanted, rows, types[r->type], letter == 'k' ? "keys" : "values");
    code = code == CLI_OK ? write_array(r, letter, layer, &wanted.rows) : code;
    converted_free(&wanted);
    return code;
}

static int write_layer(const request *r, const lm_operands *o)
{
    const kna_rows q = { o->q, KNA_F32, o->heads, o->rows, o->dim, 0, 0, NULL };
    const kna_rows k = { o->k, o->k_type, o->kv_heads, o->rows, o->dim, 0, 0, NULL };
    const kna_rows v = { o->v, o->v_type, o->kv_heads, o->rows, o->value_dim, 0, 0, NULL };
    const kna_rows out = { o->out, KNA_F32, o->heads, o->rows, o->value_dim, 0, 0, NULL };
    int code = write_array(r, 'q', o->layer, &q);
    code = code == CLI_OK ? write_cached(r, 'k', o->layer, &k) : code;
    code = code == CLI_OK ? write_cached(r, 'v', o->layer, &v) : code;
    return code == CLI_OK && o->out ? write_array(r, 'o', o->layer, &out) : code;
}

static int write_all(const request *r, const lm_operands *operands, int count)
{
    int code = CLI_OK;
    cli_progress_start("writing");
    for (int i = 0; code == CLI_OK && i < count; i++) {
        code = write_layer(r, &operands[i]);
        cli_progress_share((double)(i + 1) / count);
    }
    cli_progress_end();
    return code == CLI_OK ? cli_output_commit() : code;
}

/* ------------------------------------------------------------------ answer */

static int print_json(const request *r, const lm_desk *desk, const lm_operands *operands, int count)
{
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_text(root, "model", lm_model_name(desk->model));
    cli_json_text(root, "out", r->out);
    cli_json_int(root, "tokens", r->context);
    cli_json_text(root, "type", type_names[r->type]);
    cJSON *layers = cli_json_array(root, "layers");
    for (int i = 0; i < count; i++) {
        cJSON *layer = cli_json_object(layers, NULL);
        cli_json_int(layer, "layer", operands[i].layer);
        cli_json_int(layer, "h", operands[i].heads);
        cli_json_int(layer, "h_kv", operands[i].kv_heads);
        cli_json_int(layer, "d", operands[i].dim);
        cli_json_int(layer, "dv", operands[i].value_dim);
        cli_json_real(layer, "scale", (double)operands[i].scale);
    }
    return cli_json_print(stdout, root);
}

static int print_words(const request *r, const lm_operands *operands, int count)
{
    for (int i = 0; i < count; i++) {
        const lm_operands *o = &operands[i];
        printf("layer %-3d q (%d, %d, %d) f32, k (%d, %d, %d) %s, v (%d, %d, %d) %s, scale %.9g\n", o->layer, (int)o->heads,
               (int)o->rows, (int)o->dim, (int)o->kv_heads, (int)o->rows, (int)o->dim, type_names[r->type], (int)o->kv_heads,
               (int)o->rows, (int)o->value_dim, type_names[r->type], (double)o->scale);
    }
    return CLI_OK;
}

/* ------------------------------------------------------------------ command */

static int check_text(const request *r, const lm_desk *desk, const lm_tokens *text)
{
    if (text->count < r->context) {
        return cli_refuse("%s: %d tokens, fewer than the %d asked for (-c)", r->input.file, text->count, (int)r->context);
    }
    lm_warn_positions(desk->model, (int)r->context, !r->no_yarn);
    return CLI_OK;
}

static int open_session(lm_desk *desk, const request *r)
{
    lm_error error = { { 0 } };
    const lm_attention exact = LM_ATTENTION;
    const lm_session_options options = { (int)r->context, LM_STEP, 1, (int)r->input.threads, exact, !r->no_yarn };
    int status = lm_session_open(&desk->group.sessions[0], desk->model, &options, &error);
    desk->group.count = status == LM_OK;
    return lm_failed(status, &error);
}

static int take(const request *r, const lm_desk *desk, const lm_tokens *text, lm_operands *operands, int count)
{
    lm_error error = { { 0 } };
    cli_progress_start("reading");
    int status = lm_operands_take(operands, count, &desk->group, text->ids, (int)r->context, r->with_output, &error);
    cli_progress_end();
    return lm_failed(status, &error);
}

static int dump(const request *r, lm_desk *desk)
{
    lm_operands *operands = NULL;
    lm_tokens text = { 0 };
    int count = 0;
    int code = choose_layers(&operands, &count, r, desk->model);
    code = code == CLI_OK ? lm_read_tokens(&text, desk->model, r->input.file) : code;
    code = code == CLI_OK ? check_text(r, desk, &text) : code;
    code = code == CLI_OK ? cli_output_folder(r->out) : code;
    code = code == CLI_OK ? open_session(desk, r) : code;
    code = code == CLI_OK ? take(r, desk, &text, operands, count) : code;
    code = code == CLI_OK ? write_all(r, operands, count) : code;
    if (code == CLI_OK) {
        code = r->json ? print_json(r, desk, operands, count) : print_words(r, operands, count);
    }
    for (int i = 0; i < count; i++) {
        lm_operands_free(&operands[i]);
    }
    free(operands);
    lm_tokens_free(&text);
    return code;
}

int kna_cmd_dump(int argc, char **argv)
{
    request r = { .context = 512 };
    lm_desk desk = { 0 };
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) {
        return code;
    }
    code = lm_desk_open(&desk, &r.input);
    code = code == CLI_OK ? dump(&r, &desk) : code;
    lm_desk_close(&desk);
    return code;
}
