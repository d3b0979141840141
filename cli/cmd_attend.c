/*
 * cmd_attend.c - `kna attend`: one call of kna_attend() on .npy files.
 *
 * Stages: options, read, check shapes, convert keys and values, attend, write. Invariant: nothing is written before the call has
 * succeeded, and then all outputs appear or none.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "convert.h"
#include "npy.h"

/* ------------------------------------------------------------------ options */

typedef struct request {
    const char *q, *k, *v, *mask, *slopes, *sinks;
    const char *out, *lse, *report;
    int json;
    double scale, softcap;
    int causal;
    int64_t causal_shift, window;
    int kv_type; /* position in kv_types */
    cli_method method;
    cli_machine machine;
} request;

static const char *const kv_types[] = { "as-given", "f32", "f16", "bf16", "i8", "q8_0", NULL }; /* position - 1: a kna_type */

#define AT(member)      offsetof(request, member)
#define FILE_AT(member) 0, CLI_TEXT, offsetof(request, member), 0, 0, NULL

static const cli_option file_options[] = {
    { "q", FILE_AT(q), "q.npy", "queries (h,m,d), float32 or float16" },
    { "k", FILE_AT(k), "k.npy", "keys (h_kv,n,d), h a multiple of h_kv" },
    { "v", FILE_AT(v), "v.npy", "values (h_kv,n,dv)" },
    { "out", FILE_AT(out), "o.npy", "output (h,m,dv), float32; - is standard output" },
    { "lse", FILE_AT(lse), "lse.npy", "log-sum-exp of the logits (h,m), float32" },
    { "report", FILE_AT(report), "r.json", "what the call did, as JSON" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print the report on standard output" },
    { .name = NULL },
};

static const cli_option meaning_options[] = {
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

static const cli_usage usage = {
    "attend",
    "--q q.npy --k k.npy --v v.npy --out o.npy [options]",
    "Attention of m queries per head over n keys, out = softmax(logits) v: over every\n"
    "key (exact), over the k nearest keys only (topk), or over the nearest keys in\n"
    "full and all others through block means (knn). Files are NumPy's .npy, format\n"
    "1.0 or 2.0, C order, little-endian.\n",
};

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Files", file_options, r },
        { "What attention means", meaning_options, r },
        { "Which keys are read", cli_method_options, &r->method },
        { "Machine", cli_machine_options, &r->machine },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    if (code == CLI_GO_ON) code = cli_require(&usage, "q", r->q);
    if (code == CLI_GO_ON) code = cli_require(&usage, "k", r->k);
    if (code == CLI_GO_ON) code = cli_require(&usage, "v", r->v);
    if (code == CLI_GO_ON) code = cli_require(&usage, "out", r->out);
    return code;
}

/* Outputs are looked at before the work: distinct, and they can be created. */
static int check_outputs(const request *r)
{
    const char *const paths[] = { r->out, r->lse, r->report, r->json ? "-" : NULL };
    for (int i = 0; i < 4; i++) {
        if (!paths[i]) continue;
        for (int j = 0; j < i; j++)
            if (paths[j] && strcmp(paths[i], paths[j]) == 0) return cli_refuse("%s: named for two outputs", paths[i]);
        const int code = cli_output_check(paths[i]);
        if (code != CLI_OK) return code;
    }
    return CLI_OK;
}

/* ------------------------------------------------------------------ operands */

typedef struct operands {
    npy_array q, k, v, mask, slopes, sinks;
    converted k_as, v_as;
    kna_rows q_rows, k_rows, v_rows;
    float *out, *lse;
} operands;

static void operands_free(operands *o)
{
    npy_array *const arrays[] = { &o->q, &o->k, &o->v, &o->mask, &o->slopes, &o->sinks };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) npy_free(arrays[i]);
    converted_free(&o->k_as);
    converted_free(&o->v_as);
    free(o->out);
    free(o->lse);
}

static int read_operands(operands *o, const request *r)
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

static int check_equal(const npy_array *array, int axis, const char *name, const npy_array *other, int other_axis)
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
    if (code == CLI_OK) code = check_equal(&o->k, 2, "d", &o->q, 2);
    if (code == CLI_OK) code = check_equal(&o->v, 0, "h_kv", &o->k, 0);
    if (code == CLI_OK) code = check_equal(&o->v, 1, "n", &o->k, 1);
    if (code == CLI_OK) code = check_range(&o->v, 2, "dv", 1, KNA_MAX_DIM);
    if (code != CLI_OK || o->q.shape[0] % o->k.shape[0] == 0) return code;
    return cli_refuse("%s: h = %" PRId64 " is not a multiple of h_kv = %" PRId64 " of %s", o->q.path, o->q.shape[0], o->k.shape[0],
                      o->k.path);
}

static int check_mask(const operands *o)
{
    const npy_array *mask = &o->mask;
    if (!mask->data) return CLI_OK;
    int code = check_equal(mask, mask->rank - 2, "m", &o->q, 1);
    if (code == CLI_OK) code = check_equal(mask, mask->rank - 1, "n", &o->k, 1);
    if (code == CLI_OK && mask->rank == 3 && mask->shape[0] != 1) code = check_equal(mask, 0, "h", &o->q, 0);
    return code;
}

static int check_shapes(const operands *o)
{
    int code = check_qkv(o);
    if (code == CLI_OK) code = check_mask(o);
    if (code == CLI_OK && o->slopes.data) code = check_equal(&o->slopes, 0, "h", &o->q, 0);
    if (code == CLI_OK && o->sinks.data) code = check_equal(&o->sinks, 0, "h", &o->q, 0);
    if (code == CLI_OK) code = check_per_head(&o->slopes, 0);
    if (code == CLI_OK) code = check_per_head(&o->sinks, 1);
    return code;
}

static kna_rows as_rows(const npy_array *array)
{
    return (kna_rows){ array->data, array->type, array->shape[0], array->shape[1], array->shape[2], 0, 0, NULL };
}

static int convert(operands *o, kna_context *context, const request *r)
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

/* ------------------------------------------------------------------ the call */

static kna_mask as_mask(const npy_array *array)
{
    return (kna_mask){ array->data, array->type, array->rank == 3 ? array->shape[0] : 1, 0, 0 };
}

static kna_attend_options call_options(const operands *o, const request *r)
{
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    cli_method_fill(&options, &r->method);
    options.scale = (float)r->scale;
    options.softcap = (float)r->softcap;
    options.causal = r->causal;
    options.causal_shift = r->causal_shift;
    options.window = r->window;
    options.slopes = o->slopes.data;
    options.sinks = o->sinks.data;
    if (o->mask.data) options.mask = as_mask(&o->mask);
    return options;
}

/* The library knows operands, the user knows files. */
static int explain(const kna_context *context, int status, const request *r)
{
    const char *const files[][2] = { { "queries:", r->q }, { "keys:", r->k }, { "values:", r->v }, { "mask:", r->mask } };
    const char *message = kna_context_message(context);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        const size_t length = strlen(files[i][0]);
        if (strncmp(message, files[i][0], length) == 0) return cli_refuse("%s:%s", files[i][1], message + length);
    }
    return cli_status(context, status);
}

static int attend(operands *o, kna_context *context, kna_report *report, const request *r)
{
    const kna_attend_options options = call_options(o, r);
    const size_t rows = (size_t)(o->q_rows.heads * o->q_rows.rows);
    o->out = calloc(rows, (size_t)o->v_rows.dim * sizeof *o->out);
    o->lse = calloc(rows, sizeof *o->lse);
    if (!o->out || !o->lse) return cli_fail("out of memory: an output of %zu rows", rows);
    const kna_out_rows out = { o->out, 0, 0 };
    report->size = sizeof *report;
    const int status = kna_attend(context, &out, o->lse, report, &o->q_rows, &o->k_rows, &o->v_rows, &options);
    return status == KNA_OK ? CLI_OK : explain(context, status, r);
}

/* Finite operands can still have a product that is not. Such an output is refused, not written. */
static int check_result(const operands *o)
{
    const int64_t dv = o->v_rows.dim;
    for (int64_t i = 0; i < o->q_rows.heads * o->q_rows.rows * dv; i++) {
        if (isfinite(o->out[i])) continue;
        return cli_refuse("a logit or sum exceeds float32: the output at head %" PRId64 ", row %" PRId64 " is not finite",
                          i / dv / o->q_rows.rows, i / dv % o->q_rows.rows);
    }
    return CLI_OK;
}

/* ------------------------------------------------------------------ outputs */

static cJSON *report_json(const operands *o, const kna_context *context, const kna_report *report)
{
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_report(root, report);
    cli_json_int(root, "h", o->q_rows.heads);
    cli_json_int(root, "h_kv", o->k_rows.heads);
    cli_json_int(root, "m", o->q_rows.rows);
    cli_json_int(root, "n", o->k_rows.rows);
    cli_json_int(root, "d", o->k_rows.dim);
    cli_json_int(root, "dv", o->v_rows.dim);
    cli_json_text(root, "kv_type", kna_type_name(o->k_rows.type));
    cli_json_text(root, "cpu", kna_cpu_name(kna_context_cpu(context)));
    cli_json_int(root, "threads", kna_context_threads(context));
    return root;
}

static int write_array(const char *path, int rank, const int64_t *shape, const float *data)
{
    FILE *file = cli_output_open(path);
    if (!file) return CLI_FAILED;
    npy_write(file, rank, shape, data);
    return CLI_OK;
}

static int write_report(const char *path, const operands *o, const kna_context *context, const kna_report *report)
{
    FILE *file = cli_output_open(path);
    return file ? cli_json_print(file, report_json(o, context, report)) : CLI_FAILED;
}

static int write_outputs(const operands *o, const kna_context *context, const kna_report *report, const request *r)
{
    const int64_t shape[3] = { o->q_rows.heads, o->q_rows.rows, o->v_rows.dim };
    int code = write_array(r->out, 3, shape, o->out);
    if (code == CLI_OK && r->lse) code = write_array(r->lse, 2, shape, o->lse);
    if (code == CLI_OK && r->report) code = write_report(r->report, o, context, report);
    if (code == CLI_OK && r->json) code = write_report("-", o, context, report);
    return code == CLI_OK ? cli_output_commit() : code;
}

int kna_cmd_attend(int argc, char **argv)
{
    request r = { .method = CLI_METHOD, .machine = CLI_MACHINE };
    operands o = { .out = NULL };
    kna_report report = { .size = sizeof report };
    kna_context *context = NULL;
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) return code;
    code = check_outputs(&r);
    if (code == CLI_OK) code = cli_context(&context, &r.machine);
    cli_progress_start("kna attend: reading");
    if (code == CLI_OK) code = read_operands(&o, &r);
    if (code == CLI_OK) code = check_shapes(&o);
    if (code == CLI_OK) code = convert(&o, context, &r);
    cli_progress_start("kna attend: attending");
    if (code == CLI_OK) code = attend(&o, context, &report, &r);
    if (code == CLI_OK) code = check_result(&o);
    cli_progress_start("kna attend: writing");
    if (code == CLI_OK) code = write_outputs(&o, context, &report, &r);
    cli_progress_end();
    operands_free(&o);
    kna_context_free(context);
    return code;
}
