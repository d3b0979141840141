/*
 * lm_dump.c - `kna dump`: queries, keys and values of chosen layers, as attention inside a model is given them, into .npy files.
 *
 * Stages: options, model, operands (lm_take.c), files. `kna attend --causal` on the three files of a layer is that
 * layer's attention.
 */
#define _GNU_SOURCE /* PATH_MAX */
#include "convert.h"
#include "lm_common.h"
#include "lm_take.h"
#include "npy.h"

#include <limits.h>
#include <string.h>

typedef struct request {
    lm_input input;
    const char *out, *layers, *take;
    int64_t context, window;
    int type; /* position in type_names */
    int no_yarn, with_output, json;
    int method; /* position in method_names */
    lm_choice settings;
} request;

#define AT(member) offsetof(request, member)

static const char *const type_names[] = { "f16", "f32", NULL };
static const int types[] = { KNA_F16, KNA_F32 };

static const char *const method_names[] = { "exact", "topk", "knn", NULL };
static const int methods[] = { LM_EXACT, LM_TOPK, LM_KNN };

static const cli_option dump_options[] = {
    { "ctx", 'c', CLI_INT, AT(context), 1, 1 << 24, NULL, "N", "tokens of the text, from its beginning (default 512)" },
    { "window", 0, CLI_INT, AT(window), 0, 1 << 24, NULL, "W", "cut the tokens into texts of W, read by themselves (default 0: one text)" },
    { "layers", 0, CLI_TEXT, AT(layers), 0, 0, NULL, "LIST", "layers, as 0,8,20 or 0-3,29 (default: all)" },
    { "take", 0, CLI_TEXT, AT(take), 0, 0, NULL, "LETTERS", "of q, k, v, o (what attention returned), h (hidden states; default qkv)" },
    { "type", 0, CLI_CHOICE, AT(type), 0, 0, type_names, "TYPE", "of keys and values in the files: f16 or f32 (default f16)" },
    { "out", 0, CLI_TEXT, AT(out), 0, 0, NULL, "DIR", "the folder for the files" },
    { "method", 0, CLI_CHOICE, AT(method), 0, 0, method_names, "NAME",
      "attention by which the model reads: exact, topk or knn (default exact)" },
    { "no-yarn", 0, CLI_FLAG, AT(no_yarn), 0, 0, NULL, NULL, "do not stretch positions beyond what the model was trained with" },
    { "with-output", 0, CLI_FLAG, AT(with_output), 0, 0, NULL, NULL, "take o too" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "say what was written as JSON" },
    { NULL, 0, CLI_FLAG, 0, 0, 0, NULL, NULL, NULL },
};

static const cli_usage usage = {
    "dump",
    "-m model.gguf -f text.txt -c N [--layers LIST] --out DIR",
    "What attention is given inside a model that reads N tokens of a text: for each\n"
    "layer L the queries q.L.npy (h,N,d), keys k.L.npy (h_kv,N,d) and values v.L.npy\n"
    "(h_kv,N,dv). Queries are float32, not yet scaled; keys and values are what the cache\n"
    "holds, float16. All are taken where attention takes them, after rotation (RoPE).\n"
    "With --take h also h.npy (N,w), float32: what the last feed-forward layer is given,\n"
    "normalised. With --window W token i is number i mod W of its text and sees that alone;\n"
    "short texts are read side by side.\n",
};

static int takes(const request *r, char letter)
{
    return strchr(r->take, letter) != NULL || (letter == 'o' && r->with_output);
}

static int check_letters(const request *r)
{
    const size_t known = strspn(r->take, "qkvoh");
    if (r->take[known] != '\0') {
        return cli_refuse("--take: '%c' is none of q, k, v, o and h", r->take[known]);
    }
    return known > 0 ? CLI_GO_ON : cli_refuse("--take: none of q, k, v, o and h is named");
}

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Input", lm_input_options, &r->input },
        { "What is written", dump_options, r },
        { "Settings of topk and knn", lm_choice_settings, &r->settings },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    code = code == CLI_GO_ON ? cli_require(&usage, "model", r->input.model) : code;
    code = code == CLI_GO_ON ? cli_require(&usage, "file", r->input.file) : code;
    code = code == CLI_GO_ON ? cli_require(&usage, "out", r->out) : code;
    return code == CLI_GO_ON ? check_letters(r) : code;
}

/* ------------------------------------------------------------------ files */

static FILE *open_file(const request *r, const char *name)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s.npy", r->out, name) >= (int)sizeof path) {
        cli_refuse("--out: the name of the folder is too long");
        return NULL;
    }
    return cli_output_open(path);
}

static int write_array(const request *r, char letter, int layer, const kna_rows *rows)
{
    char name[32];
    snprintf(name, sizeof name, "%c.%d", letter, layer);
    FILE *to = open_file(r, name);
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
    int code = takes(r, 'q') ? write_array(r, 'q', o->layer, &q) : CLI_OK;
    code = code == CLI_OK && takes(r, 'k') ? write_cached(r, 'k', o->layer, &k) : code;
    code = code == CLI_OK && takes(r, 'v') ? write_cached(r, 'v', o->layer, &v) : code;
    return code == CLI_OK && takes(r, 'o') ? write_array(r, 'o', o->layer, &out) : code;
}

static int write_hidden(const request *r, const lm_hidden *hidden)
{
    const int64_t shape[2] = { hidden->rows, hidden->dim };
    FILE *to = open_file(r, "h");
    if (!to) {
        return CLI_FAILED;
    }
    npy_write(to, 2, shape, hidden->x);
    return cli_output_finish();
}

static int write_all(const request *r, const lm_taken *taken)
{
    int code = CLI_OK;
    cli_progress_start("writing");
    for (int i = 0; code == CLI_OK && i < taken->count; i++) {
        code = write_layer(r, &taken->operands[i]);
        cli_progress_share((double)(i + 1) / taken->count);
    }
    code = code == CLI_OK && takes(r, 'h') ? write_hidden(r, &taken->hidden) : code;
    cli_progress_end();
    return code == CLI_OK ? cli_output_commit() : code;
}

/* ------------------------------------------------------------------ answer */

static void print_hidden_json(cJSON *root, const lm_hidden *hidden)
{
    cJSON *shape = cli_json_object(root, "hidden");
    cli_json_int(shape, "rows", hidden->rows);
    cli_json_int(shape, "dim", hidden->dim);
}

static int print_json(const request *r, const lm_desk *desk, const lm_taken *taken)
{
    const lm_operands *operands = taken->operands;
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_text(root, "model", lm_model_name(desk->model));
    cli_json_text(root, "out", r->out);
    cli_json_int(root, "tokens", r->context);
    cli_json_int(root, "window", r->window > 0 && r->window < r->context ? r->window : r->context);
    cli_json_text(root, "take", r->take);
    cli_json_text(root, "type", type_names[r->type]);
    cJSON *layers = cli_json_array(root, "layers");
    for (int i = 0; i < taken->count; i++) {
        cJSON *layer = cli_json_object(layers, NULL);
        cli_json_int(layer, "layer", operands[i].layer);
        cli_json_int(layer, "h", operands[i].heads);
        cli_json_int(layer, "h_kv", operands[i].kv_heads);
        cli_json_int(layer, "d", operands[i].dim);
        cli_json_int(layer, "dv", operands[i].value_dim);
        cli_json_real(layer, "scale", (double)operands[i].scale);
    }
    if (takes(r, 'h')) {
        print_hidden_json(root, &taken->hidden);
    }
    return cli_json_print(stdout, root);
}

/* "q (9, 600, 64) f32", with a comma before all but the first. */
static void print_shape(char letter, int64_t heads, int64_t rows, int64_t dim, const char *type, int *printed)
{
    printf("%s %c (%d, %d, %d) %s", *printed ? "," : "", letter, (int)heads, (int)rows, (int)dim, type);
    *printed = 1;
}

static int print_words(const request *r, const lm_taken *taken)
{
    for (int i = 0; i < taken->count; i++) {
        const lm_operands *o = &taken->operands[i];
        int printed = 0;
        printf("layer %-3d", o->layer);
        if (takes(r, 'q')) print_shape('q', o->heads, o->rows, o->dim, "f32", &printed);
        if (takes(r, 'k')) print_shape('k', o->kv_heads, o->rows, o->dim, type_names[r->type], &printed);
        if (takes(r, 'v')) print_shape('v', o->kv_heads, o->rows, o->value_dim, type_names[r->type], &printed);
        if (takes(r, 'o')) print_shape('o', o->heads, o->rows, o->value_dim, "f32", &printed);
        printf(", scale %.9g\n", (double)o->scale);
    }
    if (takes(r, 'h')) {
        printf("hidden states (%d, %d) f32\n", (int)taken->hidden.rows, (int)taken->hidden.dim);
    }
    return CLI_OK;
}

/* ------------------------------------------------------------------ command */

static int dump(const request *r, lm_desk *desk)
{
    const unsigned take = (takes(r, 'q') ? LM_TAKE_Q : 0) | (takes(r, 'k') ? LM_TAKE_K : 0) | (takes(r, 'v') ? LM_TAKE_V : 0) |
                          (takes(r, 'o') ? LM_TAKE_OUT : 0);
    const lm_take_request wanted = { &r->input,
                                     r->layers,
                                     r->context,
                                     !r->no_yarn,
                                     take,
                                     lm_attention_of(methods[r->method], 1, &r->settings),
                                     r->window,
                                     takes(r, 'h') };
    lm_taken taken = { 0 };
    int code = cli_output_folder(r->out);
    code = code == CLI_OK ? lm_take(&taken, desk, &wanted) : code;
    code = code == CLI_OK ? write_all(r, &taken) : code;
    if (code == CLI_OK) {
        code = r->json ? print_json(r, desk, &taken) : print_words(r, &taken);
    }
    lm_taken_free(&taken);
    return code;
}

int kna_cmd_dump(int argc, char **argv)
{
    request r = { .context = 512, .take = "qkv", .settings = LM_CHOICE };
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
