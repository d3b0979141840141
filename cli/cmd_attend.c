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

#include "choice.h"
#include "cli.h"
#include "operands.h"

/* ------------------------------------------------------------------ options */

typedef struct request {
    operand_request operands;
    const char *out, *lse, *radius, *draws, *report;
    const char *labels;
    int json, head_index;
    cli_method method;
    choice choice;
    cli_machine machine;
} request;

#define AT(member)      offsetof(request, member)
#define FILE_AT(member) 0, CLI_TEXT, offsetof(request, member), 0, 0, NULL

static const cli_option output_options[] = {
    { "out", FILE_AT(out), "o.npy", "output (h,m,dv), float32; - is standard output" },
    { "lse", FILE_AT(lse), "lse.npy", "log-sum-exp of the logits (h,m), float32" },
    { "radius", FILE_AT(radius), "r.npy", "certified distance from exact attention (h,m), float32; -1: none" },
    { "draws", FILE_AT(draws), "i.npy", "gumbel, rejection, mom: keys drawn (h,m,samples), int64" },
    { "report", FILE_AT(report), "r.json", "what the call did, as JSON" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print the report on standard output" },
    { .name = NULL },
};

static const char *const head_index_names[] = { "scan", "knn", NULL };

static const cli_option label_options[] = {
    { "labels", FILE_AT(labels), "l.npy", "quota, stratify: group of each key (n), float32: 0, 1, .." },
    { "head-index", 0, CLI_CHOICE, AT(head_index), 0, 0, head_index_names, "KIND",
      "uniform to control: the head by a scan of all keys, exact, or by clusters (knn), which may miss some; then draws and finite "
      "certificates take --bounds clusters or --gap (default scan)" },
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
        { "Operands", operand_file_options, &r->operands },
        { NULL, label_options, r },
        { "Results", output_options, r },
        { "What attention means", operand_meaning_options, &r->operands },
        { "Which keys are read", cli_method_options, &r->method },
        { "Heads that are not all alike, and global context", choice_options, &r->choice },
        { "Machine", cli_machine_options, &r->machine },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    if (code == CLI_GO_ON) code = operands_require(&usage, &r->operands);
    if (code == CLI_GO_ON) code = cli_require(&usage, "out", r->out);
    if (code == CLI_GO_ON && choice_wants_groups(&r->choice) && !r->labels)
        return cli_refuse("attend: --labels is missing: %s goes by groups of keys", r->choice.stratify ? "--stratify" : "--diverse quota");
    if (code == CLI_GO_ON && r->head_index && (r->method.method < KNA_UNIFORM || r->method.method > KNA_CONTROL))
        return cli_refuse("attend: --head-index goes with methods that sample, not with %s", kna_method_name(r->method.method));
    return code;
}

/* Outputs are looked at before the work: distinct, and they can be created. */
static int check_outputs(const request *r)
{
    const char *const paths[] = { r->out, r->lse, r->radius, r->draws, r->report, r->json ? "-" : NULL };
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        if (!paths[i]) continue;
        for (size_t j = 0; j < i; j++)
            if (paths[j] && strcmp(paths[i], paths[j]) == 0) return cli_refuse("%s: named for two outputs", paths[i]);
        const int code = cli_output_check(paths[i]);
        if (code != CLI_OK) return code;
    }
    return CLI_OK;
}

/* ------------------------------------------------------------------ the call */

typedef struct results {
    float *out, *lse, *radius;
    int32_t *draws;
    int64_t samples;
    int32_t *groups;
    int64_t group_count;
} results;

enum { LEARNED_QUERIES = 64 };

/* Clusters in the metric of the last queries: a call of knn meets them, and they are formed of all keys. */
static int form_index(kna_index **index, float *out, const operands *o, kna_context *context, const kna_attend_options *like)
{
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    const kna_rows *q = &o->q_rows;
    const kna_out_rows to = { out, 0, 0 };
    kna_rows last = *q;
    last.rows = q->rows < LEARNED_QUERIES ? q->rows : LEARNED_QUERIES;
    last.head_stride_bytes = (int64_t)kna_type_row_bytes(q->type, q->dim) * q->rows;
    last.data = (const char *)q->data + (q->rows - last.rows) * (int64_t)kna_type_row_bytes(q->type, q->dim);
    int status = kna_index_new(context, index, KNA_KNN, o->k_rows.heads, o->k_rows.dim, o->v_rows.dim);
    if (status == KNA_OK) status = kna_index_update(context, *index, &o->k_rows, &o->v_rows, 0, o->k_rows.rows);
    options.method = KNA_KNN;
    options.scale = like->scale;
    options.causal = like->causal;
    options.causal_shift = like->causal_shift;
    options.index = *index;
    if (status == KNA_OK) status = kna_attend(context, &to, NULL, NULL, &last, &o->k_rows, &o->v_rows, &options);
    if (status == KNA_OK) status = kna_index_form(context, *index, &o->k_rows, &o->v_rows, o->k_rows.rows);
    return status;
}

static int attend(results *to, const operands *o, kna_context *context, kna_report *report, const request *r)
{
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    const size_t rows = (size_t)(o->q_rows.heads * o->q_rows.rows);
    cli_method_fill(&options, &r->method);
    operands_fill(&options, o, &r->operands);
    choice_fill(&options, &r->choice, to->groups, to->group_count);
    to->out = calloc(rows, (size_t)o->v_rows.dim * sizeof *to->out);
    to->lse = calloc(rows, sizeof *to->lse);
    to->radius = r->radius ? calloc(rows, sizeof *to->radius) : NULL;
    to->samples = options.samples ? options.samples : options.k_near; /* as the library reads it */
    to->draws = r->draws ? calloc(rows, (size_t)to->samples * sizeof *to->draws) : NULL;
    options.radius = to->radius;
    options.draws = to->draws;
    if ((r->radius && !to->radius) || (r->draws && !to->draws)) return cli_fail("out of memory: %zu rows", rows);
    if (!to->out || !to->lse) return cli_fail("out of memory: an output of %zu rows", rows);
    const kna_out_rows out = { to->out, 0, 0 };
    report->size = sizeof *report;
    int status = r->head_index ? form_index(&options.index, to->out, o, context, &options) : KNA_OK;
    if (status == KNA_OK) status = kna_attend(context, &out, to->lse, report, &o->q_rows, &o->k_rows, &o->v_rows, &options);
    kna_index_free(options.index);
    return status == KNA_OK ? CLI_OK : operands_explain(context, status, &r->operands);
}

/* Finite operands can still have a product that is not. Such an output is refused, not written. */
static int check_result(const results *of, const operands *o)
{
    const int64_t dv = o->v_rows.dim;
    for (int64_t i = 0; i < o->q_rows.heads * o->q_rows.rows * dv; i++) {
        if (isfinite(of->out[i])) continue;
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

static int write_draws(const char *path, const int64_t *rows, const results *of)
{
    const int64_t shape[3] = { rows[0], rows[1], of->samples };
    FILE *file = cli_output_open(path);
    if (!file) return CLI_FAILED;
    npy_write_ids(file, 3, shape, of->draws);
    return CLI_OK;
}

static int write_report(const char *path, const operands *o, const kna_context *context, const kna_report *report)
{
    FILE *file = cli_output_open(path);
    return file ? cli_json_print(file, report_json(o, context, report)) : CLI_FAILED;
}

static int write_outputs(const results *of, const operands *o, const kna_context *context, const kna_report *report, const request *r)
{
    const int64_t shape[3] = { o->q_rows.heads, o->q_rows.rows, o->v_rows.dim };
    int code = write_array(r->out, 3, shape, of->out);
    if (code == CLI_OK && r->lse) code = write_array(r->lse, 2, shape, of->lse);
    if (code == CLI_OK && r->radius) code = write_array(r->radius, 2, shape, of->radius);
    if (code == CLI_OK && r->draws) code = write_draws(r->draws, shape, of);
    if (code == CLI_OK && r->report) code = write_report(r->report, o, context, report);
    if (code == CLI_OK && r->json) code = write_report("-", o, context, report);
    return code == CLI_OK ? cli_output_commit() : code;
}

int kna_cmd_attend(int argc, char **argv)
{
    request r = { .method = CLI_METHOD, .machine = CLI_MACHINE };
    operands o = { .q = { .data = NULL } };
    results made = { .out = NULL };
    kna_report report = { .size = sizeof report };
    kna_context *context = NULL;
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) return code;
    code = check_outputs(&r);
    if (code == CLI_OK) code = cli_context(&context, &r.machine);
    cli_progress_start("kna attend: reading");
    if (code == CLI_OK) code = operands_read(&o, context, &r.operands);
    if (code == CLI_OK && r.labels) code = choice_read_labels(&made.groups, &made.group_count, r.labels, o.k_rows.rows);
    cli_progress_start("kna attend: attending");
    if (code == CLI_OK) code = attend(&made, &o, context, &report, &r);
    if (code == CLI_OK) code = check_result(&made, &o);
    cli_progress_start("kna attend: writing");
    if (code == CLI_OK) code = write_outputs(&made, &o, context, &report, &r);
    cli_progress_end();
    operands_free(&o);
    free(made.out);
    free(made.lse);
    free(made.radius);
    free(made.draws);
    free(made.groups);
    kna_context_free(context);
    return code;
}
