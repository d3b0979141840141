/*
 * cmd_grad.c - `kna grad`: gradients of attention on .npy files, one call of kna_attend() and one of kna_attend_backward().
 *
 * Stages: options, read, check shapes, attend, differentiate, write. Invariant: nothing is written before both calls have
 * succeeded, and then all files of the folder appear or none.
 */
#include "operands.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct request {
    operand_request operands;
    const char *dout, *folder;
    int json;
    int method; /* position in method_names */
    int chain;  /* a kna_chain */
    int64_t k_near, near_sinks, near_window, samples, rank, hash_bits, hash_tables;
    uint64_t seed;
    cli_machine machine;
} request;

#define AT(member)      offsetof(request, member)
#define FILE_AT(member) 0, CLI_TEXT, offsetof(request, member), 0, 0, NULL

static const cli_option own_options[] = {
    { "dout", FILE_AT(dout), "do.npy", "gradient of the output (h,m,dv), float32 or float16" },
    { "out-dir", FILE_AT(folder), "DIR", "folder for dq.npy, dk.npy, dv.npy and, with --sinks, dsinks.npy; --chain signed: dv.npy only" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print times and shapes on standard output" },
    { .name = NULL },
};

static const char *const method_names[] = { "exact", "topk", "knn", "uniform", "stratified", "centroid", "control", "chain", "window", "linformer", "nystrom", "performer", "lsh", NULL };
static const int methods[] = { KNA_EXACT, KNA_TOPK, KNA_KNN, KNA_UNIFORM, KNA_STRATIFIED, KNA_CENTROID, KNA_CONTROL, KNA_GUMBEL, KNA_WINDOW, KNA_LINFORMER, KNA_NYSTROM, KNA_PERFORMER, KNA_LSH };
static const char *const chain_names[KNA_CHAIN_COUNT + 1] = { "rows", "joint", "signed", "tail", NULL };

static const cli_option method_options[] = {
    { "method", 0, CLI_CHOICE, AT(method), 0, 0, method_names, "NAME", "exact; topk, knn, uniform, stratified, centroid or control, sets held fixed; chain, by keys drawn; window, linformer, nystrom, performer or lsh (default exact)" },
    { "k-near", 0, CLI_INT, AT(k_near), 1, KNA_MAX_ROWS, NULL, "K", "topk, knn, uniform to control, chain: nearest keys, read in full (default 384)" },
    { "samples", 0, CLI_INT, AT(samples), 1, KNA_MAX_ROWS, NULL, "S", "uniform to control, chain: other keys sampled, or keys drawn, per row (default K)" },
    { "chain", 0, CLI_CHOICE, AT(chain), 0, 0, chain_names, "KIND",
      "chain: every row its draws (rows), rows by what they can do (joint), a walk per column, of values only (signed), or the nearest as they are and draws of the others (tail) (default rows)" },
    { "rank", 0, CLI_INT, AT(rank), 1, KNA_MAX_RANK, NULL, "R", "linformer, performer: rows or features (default 256); nystrom: landmarks (default 64)" },
    { "hash-bits", 0, CLI_INT, AT(hash_bits), 1, KNA_MAX_HASH_BITS, NULL, "B", "lsh: bits of a table (default 10)" },
    { "hash-tables", 0, CLI_INT, AT(hash_tables), 2, KNA_MAX_RANK, NULL, "L", "lsh: tables (default 150)" },
    { "seed", 0, CLI_SEED, AT(seed), 0, 0, NULL, "S", "uniform to control, chain, performer, lsh: random numbers (default 0)" },
    { "near-sinks", 0, CLI_INT, AT(near_sinks), 0, KNA_MAX_ROWS, NULL, "N", "knn, window, lsh: first keys always read in full (default 4)" },
    { "near-window", 0, CLI_INT, AT(near_window), 0, KNA_MAX_ROWS, NULL, "N", "knn, window, lsh: recent keys always read in full (default 64)" },
    { .name = NULL },
};

static const cli_usage usage = {
    "grad",
    "--q q.npy --k k.npy --v v.npy --dout do.npy --out-dir DIR [options]",
    "Gradients of attention: of the sum of dout * out, out as kna attend gives it, by\n"
    "queries (h,m,d), keys (h_kv,n,d) and values (h_kv,n,dv). Files are NumPy's .npy,\n"
    "format 1.0 or 2.0, C order, little-endian; results are float32.\n",
};

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Operands", operand_file_options, &r->operands },
        { "Gradients", own_options, r },
        { "What attention means", operand_meaning_options, &r->operands },
        { "Which keys are read", method_options, r },
        { "Machine", cli_machine_options, &r->machine },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    if (code == CLI_GO_ON) code = operands_require(&usage, &r->operands);
    if (code == CLI_GO_ON) code = cli_require(&usage, "dout", r->dout);
    if (code == CLI_GO_ON) code = cli_require(&usage, "out-dir", r->folder);
    if (code == CLI_GO_ON && r->chain && methods[r->method] != KNA_GUMBEL) code = cli_refuse("--chain: goes with --method chain");
    return code;
}

/* ------------------------------------------------------------------ the calls */

/* Attention and its gradients, packed. */
typedef struct results {
    float *out, *lse, *dq, *dk, *dv, *dsinks;
    double forward_s, backward_s;
} results;

static void results_free(results *of)
{
    float *const all[] = { of->out, of->lse, of->dq, of->dk, of->dv, of->dsinks };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

static float *numbers(int64_t a, int64_t b, int64_t c)
{
    return calloc((size_t)(a * b) + 1, (size_t)c * sizeof(float));
}

static int results_new(results *of, const operands *o)
{
    const kna_rows *q = &o->q_rows, *k = &o->k_rows, *v = &o->v_rows;
    of->out = numbers(q->heads, q->rows, v->dim);
    of->lse = numbers(q->heads, q->rows, 1);
    of->dq = numbers(q->heads, q->rows, q->dim);
    of->dk = numbers(k->heads, k->rows, k->dim);
    of->dv = numbers(v->heads, v->rows, v->dim);
    of->dsinks = numbers(q->heads, 1, 1);
    if (of->out && of->lse && of->dq && of->dk && of->dv && of->dsinks) return CLI_OK;
    return cli_fail("out of memory: gradients of %" PRId64 " queries and %" PRId64 " keys", q->heads * q->rows, k->heads * k->rows);
}

static int read_dout(npy_array *dout, const operands *o, const request *r)
{
    static const npy_want want = { 3, 3, 1, "(h, m, dv)" };
    int code = npy_read(dout, r->dout, &want);
    if (code == CLI_OK) code = operands_check_equal(dout, 0, "h", &o->q, 0);
    if (code == CLI_OK) code = operands_check_equal(dout, 1, "m", &o->q, 1);
    if (code == CLI_OK) code = operands_check_equal(dout, 2, "dv", &o->v, 2);
    return code;
}

static int explain(const kna_context *context, int status, const request *r)
{
    const char *message = kna_context_message(context);
    if (strncmp(message, "dout:", 5) == 0) return cli_refuse("%s:%s", r->dout, message + 5);
    return operands_explain(context, status, &r->operands);
}

static int is_values_only(const request *r)
{
    return methods[r->method] == KNA_GUMBEL && r->chain == KNA_CHAIN_SIGNED;
}

static int differentiate(results *of, const operands *o, const npy_array *dout, kna_context *context, const request *r)
{
    const kna_rows *q = &o->q_rows, *k = &o->k_rows, *v = &o->v_rows;
    const kna_rows dout_rows = { dout->data, dout->type, q->heads, q->rows, v->dim, 0, 0, NULL };
    const kna_rows out_rows = { of->out, KNA_F32, q->heads, q->rows, v->dim, 0, 0, NULL };
    const kna_out_rows out = { of->out, 0, 0 };
    const int values_only = is_values_only(r);
    kna_gradients gradients = { .dv = { of->dv, 0, 0 }, .dsinks = o->sinks.data ? of->dsinks : NULL };
    if (!values_only) gradients.dq.data = of->dq;
    if (!values_only) gradients.dk.data = of->dk;
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    operands_fill(&options, o, &r->operands);
    options.method = methods[r->method];
    options.chain = options.method == KNA_GUMBEL ? r->chain : KNA_CHAIN_ROWS;
    options.samples = r->samples;
    options.rank = r->rank;
    options.hash_bits = r->hash_bits;
    options.hash_tables = r->hash_tables;
    options.seed = r->seed;
    options.differentiable = 1;
    options.k_near = r->k_near;
    options.near_sinks = r->near_sinks ? r->near_sinks : -1;
    options.near_window = r->near_window ? r->near_window : -1;
    const double start = cli_now_s();
    int status = kna_attend(context, &out, of->lse, NULL, q, k, v, &options);
    const double middle = cli_now_s();
    if (status == KNA_OK) status = kna_attend_backward(context, &gradients, &dout_rows, &out_rows, of->lse, q, k, v, &options);
    of->forward_s = middle - start;
    of->backward_s = cli_now_s() - middle;
    return status == KNA_OK ? CLI_OK : explain(context, status, r);
}

/* ------------------------------------------------------------------ outputs */

static int write_array(const request *r, const char *name, const kna_rows *like, const float *data)
{
    const int64_t shape[] = { like->heads, like->rows, like->dim }, count = like->heads * like->rows * like->dim;
    const int rank = strcmp(name, "dsinks") == 0 ? 1 : 3;
    char path[4096];
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(data[i])) return cli_refuse("%s: number %" PRId64 " exceeds float32", name, i);
    }
    if (snprintf(path, sizeof path, "%s/%s.npy", r->folder, name) >= (int)sizeof path) return cli_refuse("%s: too long", r->folder);
    FILE *file = cli_output_open(path);
    if (!file) return CLI_FAILED;
    npy_write(file, rank, shape, data);
    return cli_output_finish();
}

static int print_json(const results *of, const operands *o, const kna_context *context, const request *r)
{
    FILE *file = cli_output_open("-");
    if (!file) return CLI_FAILED;
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_text(root, "method", method_names[r->method]);
    cli_json_real(root, "forward_s", of->forward_s);
    cli_json_real(root, "backward_s", of->backward_s);
    cli_json_int(root, "h", o->q_rows.heads);
    cli_json_int(root, "h_kv", o->k_rows.heads);
    cli_json_int(root, "m", o->q_rows.rows);
    cli_json_int(root, "n", o->k_rows.rows);
    cli_json_int(root, "d", o->k_rows.dim);
    cli_json_int(root, "dv", o->v_rows.dim);
    cli_json_text(root, "cpu", kna_cpu_name(kna_context_cpu(context)));
    cli_json_int(root, "threads", kna_context_threads(context));
    return cli_json_print(file, root);
}

static int write_outputs(const results *of, const operands *o, const kna_context *context, const request *r)
{
    const kna_rows per_head = { NULL, KNA_F32, o->q_rows.heads, 1, 1, 0, 0, NULL };
    int code = cli_output_folder(r->folder);
    if (code == CLI_OK && !is_values_only(r)) code = write_array(r, "dq", &o->q_rows, of->dq);
    if (code == CLI_OK && !is_values_only(r)) code = write_array(r, "dk", &o->k_rows, of->dk);
    if (code == CLI_OK) code = write_array(r, "dv", &o->v_rows, of->dv);
    if (code == CLI_OK && o->sinks.data) code = write_array(r, "dsinks", &per_head, of->dsinks);
    if (code == CLI_OK && r->json) code = print_json(of, o, context, r);
    return code == CLI_OK ? cli_output_commit() : code;
}

int kna_cmd_grad(int argc, char **argv)
{
    request r = { .k_near = 384, .near_sinks = 4, .near_window = 64, .machine = CLI_MACHINE };
    operands o = { .q = { .data = NULL } };
    npy_array dout = { .data = NULL };
    results made = { .out = NULL };
    kna_context *context = NULL;
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) return code;
    code = cli_context(&context, &r.machine);
    cli_progress_start("kna grad: reading");
    if (code == CLI_OK) code = operands_read(&o, context, &r.operands);
    if (code == CLI_OK) code = read_dout(&dout, &o, &r);
    if (code == CLI_OK) code = results_new(&made, &o);
    cli_progress_start("kna grad: differentiating");
    if (code == CLI_OK) code = differentiate(&made, &o, &dout, context, &r);
    cli_progress_start("kna grad: writing");
    if (code == CLI_OK) code = write_outputs(&made, &o, context, &r);
    cli_progress_end();
    results_free(&made);
    npy_free(&dout);
    operands_free(&o);
    kna_context_free(context);
    return code;
}
