/* operands.c - see operands.h. */
#include "operands.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static const char *const kv_types[] = { "as-given", "f32", "f16", "bf16", "i8", "q8_0", NULL }; /* position - 1: a kna_type */

#define AT(member)      offsetof(operand_request, member)
#define FILE_AT(member) 0, CLI_TEXT, offsetof(operand_request, member), 0, 0, NULL

const cli_option operand_file_options[] = {
    { "q", FILE_AT(q), "q.npy", "queries (h,m,d), float32 or float16" },
    { "k", FILE_AT(k), "k.npy", "keys (h_kv,n,d), h a multiple of h_kv" },
    { "v", FILE_AT(v), "v.npy", "values (h_kv,n,dv)" },
    { .name = NULL },
};

const cli_option operand_meaning_options[] = {
    { "scale", 0, CLI_REAL, AT(scale), 1e-30, 1e30, NULL, "X", "logit = X * <q,k> (default 1/sqrt(d))" },
    { "causal", 0, CLI_FLAG, AT(causal), 0, 0, NULL, NULL, "query i sees keys 0 .. p; p = n - m + i + shift" },
    { "causal-shift", 0, CLI_INT, AT(causal_shift), -KNA_MAX_ROWS, KNA_MAX_ROWS, NULL, "N",
      "moves the position p of every query (default 0)" },
    { "window", 0, CLI_INT, AT(window), 1, KNA_MAX_ROWS, NULL, "N", "query i sees keys after p - N only (default: all)" },
    { "softcap", 0, CLI_REAL, AT(softcap), 1e-30, 1e30, NULL, "C", "logit = C * tanh(logit / C) (default: none)" },
    { "mask", FILE_AT(mask), "mask.npy", "added to the logits, (m,n) or (h,m,n); -inf forbids" },
    { "slopes", FILE_AT(slopes), "s.npy", "ALiBi, (h), >= 0: slope * (j - p) is added; with --mask, slope * mask" },
    { "sinks", FILE_AT(sinks), "s.npy", "(h): logit of one further key per head whose value is 0" },
    { "kv-type", 0, CLI_CHOICE, AT(kv_type), 0, 0, kv_types, "TYPE", "convert keys and values first, to f32, f16, bf16, i8 or q8_0" },
    { .name = NULL },
};

int operands_require(const cli_usage *usage, const operand_request *r)
{
    int code = cli_require(usage, "q", r->q);
    if (code == CLI_GO_ON) code = cli_require(usage, "k", r->k);
    return code == CLI_GO_ON ? cli_require(usage, "v", r->v) : code;
}

void operands_free(operands *o)
{
    npy_array *const arrays[] = { &o->q, &o->k, &o->v, &o->mask, &o->slopes, &o->sinks };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) npy_free(arrays[i]);
    converted_free(&o->k_as);
    converted_free(&o->v_as);
}

static int read_files(operands *o, const operand_request *r)
{
    static const npy_want queries = { 3, 3, 1, "(h, m, d)" };
    static const npy_want keys = { 3, 3, 1, "(h_kv, n, d)" };
    static const npy_want values = { 3, 3, 1, "(h_kv, n, dv)" };
    static const npy_want masks = { 2, 3, 1, "(m, n) or (h, m, n)" };
    static const npy_want per_head = { 1, 1, 0, "(h,)" };
    int code = npy_read(&o->q, r->q, &queries);
    if (code == CLI_OK) code = npy_read(&o->k, r->k, &keys);
    if (code == CLI_OK) code = npy_read(&o->v, r->v, &values);
    if (code == CLI_OK && r->mask) code = npy_read(&o->mask, r->mask, &masks);
    if (code == CLI_OK && r->slopes) code = npy_read(&o->slopes, r->slopes, &per_head);
    if (code == CLI_OK && r->sinks) code = npy_read(&o->sinks, r->sinks, &per_head);
    return code;
}

static int check_range(const npy_array *array, int axis, const char *name, int64_t low, int64_t high)
{
    const int64_t found = array->shape[axis];
    if (found >= low && found <= high) return CLI_OK;
    return cli_refuse("%s: %s = %" PRId64 " is not in %" PRId64 "..%" PRId64, array->path, name, found, low, high);
}

int operands_check_equal(const npy_array *array, int axis, const char *name, const npy_array *other, int other_axis)
{
    const int64_t found = array->shape[axis];
    const int64_t wanted = other->shape[other_axis];
    if (found == wanted) return CLI_OK;
    return cli_refuse("%s: %s = %" PRId64 ", but %s has %" PRId64, array->path, name, found, other->path, wanted);
}

/* Per-head numbers are finite; slopes also not negative, because they multiply the -inf of a mask. */
static int check_per_head(const npy_array *array, int allows_negative)
{
    const float *x = array->data;
    for (int64_t i = 0; x && i < array->shape[0]; i++) {
        if (!isfinite(x[i])) return cli_refuse("%s: %s at position %" PRId64, array->path, isnan(x[i]) ? "NaN" : "infinity", i);
        if (!allows_negative && x[i] < 0)
            return cli_refuse("%s: %g at position %" PRId64 "; slopes are at least 0", array->path, (double)x[i], i);
    }
    return CLI_OK;
}

static int check_qkv(const operands *o)
{
    int code = check_range(&o->q, 0, "h", 1, KNA_MAX_HEADS);
    if (code == CLI_OK) code = check_range(&o->q, 1, "m", 1, KNA_MAX_ROWS);
    if (code == CLI_OK) code = check_range(&o->q, 2, "d", 1, KNA_MAX_DIM);
    if (code == CLI_OK) code = check_range(&o->k, 0, "h_kv", 1, KNA_MAX_HEADS);
    if (code == CLI_OK) code = operands_check_equal(&o->k, 2, "d", &o->q, 2);
    if (code == CLI_OK) code = operands_check_equal(&o->v, 0, "h_kv", &o->k, 0);
    if (code == CLI_OK) code = operands_check_equal(&o->v, 1, "n", &o->k, 1);
    if (code == CLI_OK) code = check_range(&o->v, 2, "dv", 1, KNA_MAX_DIM);
    if (code != CLI_OK || o->q.shape[0] % o->k.shape[0] == 0) return code;
    return cli_refuse("%s: h = %" PRId64 " is not a multiple of h_kv = %" PRId64 " of %s", o->q.path, o->q.shape[0], o->k.shape[0],
                      o->k.path);
}

static int check_mask(const operands *o)
{
    const npy_array *mask = &o->mask;
    if (!mask->data) return CLI_OK;
    int code = operands_check_equal(mask, mask->rank - 2, "m", &o->q, 1);
    if (code == CLI_OK) code = operands_check_equal(mask, mask->rank - 1, "n", &o->k, 1);
    if (code == CLI_OK && mask->rank == 3 && mask->shape[0] != 1) code = operands_check_equal(mask, 0, "h", &o->q, 0);
    return code;
}

static int check_shapes(const operands *o)
{
    int code = check_qkv(o);
    if (code == CLI_OK) code = check_mask(o);
    if (code == CLI_OK && o->slopes.data) code = operands_check_equal(&o->slopes, 0, "h", &o->q, 0);
    if (code == CLI_OK && o->sinks.data) code = operands_check_equal(&o->sinks, 0, "h", &o->q, 0);
    if (code == CLI_OK) code = check_per_head(&o->slopes, 0);
    if (code == CLI_OK) code = check_per_head(&o->sinks, 1);
    return code;
}

static kna_rows as_rows(const npy_array *array)
{
    return (kna_rows){ array->data, array->type, array->shape[0], array->shape[1], array->shape[2], 0, 0, NULL };
}

static int convert(operands *o, kna_context *context, const operand_request *r)
{
    o->q_rows = as_rows(&o->q);
    o->k_rows = as_rows(&o->k);
    o->v_rows = as_rows(&o->v);
    if (r->kv_type == 0) return CLI_OK;
    int code = convert_rows(context, &o->k_as, &o->k_rows, r->kv_type - 1, r->k);
    if (code == CLI_OK) code = convert_rows(context, &o->v_as, &o->v_rows, r->kv_type - 1, r->v);
    o->k_rows = o->k_as.rows;
    o->v_rows = o->v_as.rows;
    return code;
}

int operands_read(operands *o, kna_context *context, const operand_request *r)
{
    int code = read_files(o, r);
    if (code == CLI_OK) code = check_shapes(o);
    return code == CLI_OK ? convert(o, context, r) : code;
}

static kna_mask as_mask(const npy_array *array)
{
    return (kna_mask){ array->data, array->type, array->rank == 3 ? array->shape[0] : 1, 0, 0 };
}

void operands_fill(kna_attend_options *options, const operands *o, const operand_request *r)
{
    options->scale = (float)r->scale;
    options->softcap = (float)r->softcap;
    options->causal = r->causal;
    options->causal_shift = r->causal_shift;
    options->window = r->window;
    options->slopes = o->slopes.data;
    options->sinks = o->sinks.data;
    if (o->mask.data) options->mask = as_mask(&o->mask);
}

/* The library knows operands, the user knows files. */
int operands_explain(const kna_context *context, int status, const operand_request *r)
{
    const char *const files[][2] = { { "queries:", r->q }, { "keys:", r->k }, { "values:", r->v }, { "mask:", r->mask } };
    const char *message = kna_context_message(context);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        const size_t length = strlen(files[i][0]);
        if (strncmp(message, files[i][0], length) == 0) return cli_refuse("%s:%s", files[i][1], message + length);
    }
    return cli_status(context, status);
}
