/*
 * cmd_fairness.c - `kna fairness`: what an approximate attention does to groups of keys, beside full attention.
 *
 * Attention is linear in the values, so the softmax mass of a group is what comes out where its keys have one and others zero. Such
 * columns are put beside the values, too small to matter where clusters are formed of them: every method then says itself what it
 * gives to each group.
 *
 *   A_g, B_g     mean mass of group g under full attention, and under the method
 *   ratio        B_g / A_g, where A_g is at least 1e-4
 *   impact       the least ratio over the largest: 0.8 and more passes the four-fifths rule
 *   parity gap   the largest |B_g - A_g|;   total variation: half their sum
 *   error ratio  of queries by the group of the key they stand on: the largest mean ||out - exact|| / ||exact|| over the least
 */
#include "operands.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GROUPS_MOST = 64, METHODS_MOST = 8 };

typedef struct request {
    operand_request operands;
    const char *labels, *compare;
    int64_t buckets;
    int json;
    cli_method method;
    cli_machine machine;
} request;

#define AT(member) offsetof(request, member)

static const cli_option own_options[] = {
    { "labels", 0, CLI_TEXT, AT(labels), 0, 0, NULL, "l.npy", "group of each key (n), float32: 0, 1, .." },
    { "buckets", 0, CLI_INT, AT(buckets), 2, GROUPS_MOST, NULL, "N", "groups by position, as equal as can be (default 8)" },
    { "compare", 0, CLI_TEXT, AT(compare), 0, 0, NULL, "A,B,..", "methods (default --method, or topk,uniform,knn)" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON instead of tables" },
    { .name = NULL },
};

static const cli_usage usage = {
    "fairness",
    "--q q.npy --k k.npy --v v.npy [--labels l.npy | --buckets N] [options]",
    "What approximate attention does to groups of keys, beside full attention: the\n"
    "share of the softmax that each group has, by position or by labels, with each of\n"
    "some methods; and how far the outputs of queries of each group are off. Operands\n"
    "are those of kna attend, e.g. from kna dump.\n",
};

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Operands", operand_file_options, &r->operands },
        { "Groups and methods", own_options, r },
        { "What attention means", operand_meaning_options, &r->operands },
        { "Which keys are read", cli_method_options, &r->method },
        { "Machine", cli_machine_options, &r->machine },
        { NULL, NULL, NULL },
    };
    const int code = cli_parse(&usage, groups, argc, argv, NULL);
    if (code != CLI_GO_ON) return code;
    if (r->labels && r->buckets) return cli_refuse("fairness: --labels and --buckets exclude each other");
    if (r->operands.kv_type) return cli_refuse("fairness: --kv-type: keys and values are taken as float32");
    return operands_require(&usage, &r->operands);
}

/* ------------------------------------------------------------------ groups */

typedef struct grouping {
    int32_t *of; /* (n) */
    int count;
    int64_t keys[GROUPS_MOST];
} grouping;

static int read_labels(grouping *g, const request *r, int64_t n)
{
    static const npy_want want = { 1, 1, 0, "(n,)" };
    npy_array array = { .data = NULL };
    int code = npy_read(&array, r->labels, &want);
    if (code == CLI_OK && array.shape[0] != n)
        code = cli_refuse("%s: %" PRId64 " labels for %" PRId64 " keys", r->labels, array.shape[0], n);
    for (int64_t i = 0; i < n && code == CLI_OK; i++) {
        const float label = ((const float *)array.data)[i];
        if (!(label >= 0 && label < GROUPS_MOST) || label != floorf(label))
            code = cli_refuse("%s: %g at position %" PRId64 " is none of 0, 1, .. %d", r->labels, (double)label, i, GROUPS_MOST - 1);
        else
            g->of[i] = (int32_t)label;
    }
    npy_free(&array);
    return code;
}

static int find_groups(grouping *g, const request *r, int64_t n)
{
    const int64_t buckets = r->buckets ? r->buckets : 8;
    g->of = calloc((size_t)n + 1, sizeof *g->of);
    if (!g->of) return cli_fail("out of memory: groups of %" PRId64 " keys", n);
    if (r->labels) {
        const int code = read_labels(g, r, n);
        if (code != CLI_OK) return code;
    }
    for (int64_t i = 0; i < n; i++) {
        if (!r->labels) g->of[i] = (int32_t)(i * buckets / n);
        g->keys[g->of[i]]++;
        if (g->of[i] >= g->count) g->count = g->of[i] + 1;
    }
    if (g->count < 2) return cli_refuse("fairness: one group: there is nothing to compare");
    for (int i = 0; i < g->count; i++)
        if (!g->keys[i]) return cli_refuse("fairness: group %d has no keys, but group %d has", i, g->count - 1);
    return CLI_OK;
}

/* ------------------------------------------------------------------ attention with columns for groups */

typedef struct run {
    const operands *o;
    const grouping *g;
    float *values; /* (h_kv, n, dv + groups) */
    float size;    /* of a one */
    float *exact, *out;
    int64_t rows, columns;
} run;

static double root_mean_square(const operands *o)
{
    double square = 0;
    const int64_t count = o->v_rows.heads * o->v_rows.rows * o->v_rows.dim;
    for (int64_t i = 0; i < count; i++) square += (double)((const float *)o->v_rows.data)[i] * (double)((const float *)o->v_rows.data)[i];
    return count ? sqrt(square / (double)count) : 1;
}

static int run_new(run *x, const operands *o, const grouping *g)
{
    const kna_rows *v = &o->v_rows;
    *x = (run){ .o = o, .g = g, .rows = o->q_rows.heads * o->q_rows.rows, .columns = v->dim + g->count };
    if (x->columns > KNA_MAX_DIM) return cli_refuse("fairness: dv = %" PRId64 " and %d groups are above %d", v->dim, g->count, KNA_MAX_DIM);
    x->values = calloc((size_t)(v->heads * v->rows) + 1, (size_t)x->columns * sizeof(float));
    x->exact = calloc((size_t)x->rows + 1, (size_t)x->columns * sizeof(float));
    x->out = calloc((size_t)x->rows + 1, (size_t)x->columns * sizeof(float));
    if (!x->values || !x->exact || !x->out) return cli_fail("out of memory: %" PRId64 " rows", x->rows);
    x->size = (float)exp2(floor(log2(root_mean_square(o) + 1e-30)) - 6); /* a power of two */
    for (int64_t row = 0; row < v->heads * v->rows; row++) {
        memcpy(x->values + row * x->columns, (const float *)v->data + row * v->dim, (size_t)v->dim * sizeof(float));
        x->values[row * x->columns + v->dim + g->of[row % v->rows]] = x->size;
    }
    return CLI_OK;
}

static void run_free(run *x)
{
    free(x->values);
    free(x->exact);
    free(x->out);
}

static int attend(const run *x, kna_context *context, const request *r, int method, float *out)
{
    const kna_rows *k = &x->o->k_rows;
    const kna_rows v = { x->values, KNA_F32, k->heads, k->rows, x->columns, 0, 0, NULL };
    const kna_out_rows to = { out, 0, 0 };
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    cli_method_fill(&options, &r->method);
    operands_fill(&options, x->o, &r->operands);
    options.method = method;
    const int status = kna_attend(context, &to, NULL, NULL, &x->o->q_rows, k, &v, &options);
    return status == KNA_OK ? CLI_OK : operands_explain(context, status, &r->operands);
}

/* ------------------------------------------------------------------ measures */

typedef struct measures {
    double mass[GROUPS_MOST];  /* of each group, the mean over rows */
    double error[GROUPS_MOST]; /* of queries of each group */
    double impact, gap, variation, error_ratio;
} measures;

static void add_masses(double *mass, const run *x, const float *out)
{
    for (int64_t row = 0; row < x->rows; row++) {
        const float *columns = out + row * x->columns + x->o->v_rows.dim;
        for (int i = 0; i < x->g->count; i++) mass[i] += (double)columns[i] / (double)x->size / (double)x->rows;
    }
}

static double distance(const run *x, int64_t row)
{
    const float *out = x->out + row * x->columns, *exact = x->exact + row * x->columns;
    double off = 0, norm = 0;
    for (int64_t c = 0; c < x->o->v_rows.dim; c++) {
        off += ((double)out[c] - (double)exact[c]) * ((double)out[c] - (double)exact[c]);
        norm += (double)exact[c] * (double)exact[c];
    }
    return norm > 0 ? sqrt(off / norm) : sqrt(off);
}

static void add_errors(measures *m, const run *x)
{
    int64_t queries[GROUPS_MOST] = { 0 };
    const int64_t per_head = x->o->q_rows.rows, n = x->o->k_rows.rows;
    for (int64_t row = 0; row < x->rows; row++) {
        const int64_t position = n - per_head + row % per_head;
        if (position < 0) continue;
        m->error[x->g->of[position]] += distance(x, row);
        queries[x->g->of[position]]++;
    }
    double least = INFINITY, most = 0;
    for (int i = 0; i < x->g->count; i++) {
        m->error[i] = queries[i] ? m->error[i] / (double)queries[i] : NAN;
        if (queries[i]) least = fmin(least, m->error[i]), most = fmax(most, m->error[i]);
    }
    m->error_ratio = least > 0 && least < INFINITY ? most / least : NAN;
}

static int is_counted(const measures *full, int group)
{
    return full->mass[group] >= 1e-4;
}

static void compare(measures *m, const measures *full, const run *x)
{
    double least = INFINITY, most = 0;
    for (int i = 0; i < x->g->count; i++) {
        const double off = fabs(m->mass[i] - full->mass[i]);
        m->gap = fmax(m->gap, off);
        m->variation += off / 2;
        if (is_counted(full, i)) least = fmin(least, m->mass[i] / full->mass[i]), most = fmax(most, m->mass[i] / full->mass[i]);
    }
    m->impact = most > 0 ? least / most : NAN;
    add_errors(m, x);
}

/* ------------------------------------------------------------------ methods and answers */

typedef struct result {
    int method;
    measures m;
} result;

/* A name of the list --compare; *list moves behind it. */
static int next_method(const char **list, int *method)
{
    const size_t length = strcspn(*list, ",");
    for (int i = 0; i < KNA_METHOD_COUNT; i++) {
        const char *name = kna_method_name(i);
        if (strlen(name) != length || strncmp(name, *list, length) != 0) continue;
        *method = i;
        *list += length + ((*list)[length] == ',');
        return CLI_OK;
    }
    return cli_refuse("--compare: '%.*s' is no method", (int)length, *list);
}

static int find_methods(result *results, int *count, const char *list)
{
    while (*list) {
        if (*count == METHODS_MOST) return cli_refuse("--compare: more than %d methods", METHODS_MOST);
        const int code = next_method(&list, &results[*count].method);
        if (code != CLI_OK) return code;
        ++*count;
    }
    return *count ? CLI_OK : cli_refuse("--compare: no method");
}

static void print_table(const result *results, int count, const measures *full, const grouping *g, int64_t n)
{
    printf("share of the softmax of each group, full attention; and with each method, as a ratio to that\n\n  group     keys     full");
    for (int x = 0; x < count; x++) printf(" %10s", kna_method_name(results[x].method));
    printf("\n");
    for (int i = 0; i < g->count; i++) {
        printf("  %5d %7.1f%% %8.4f", i, 100.0 * (double)g->keys[i] / (double)n, full->mass[i]);
        for (int x = 0; x < count; x++) {
            if (is_counted(full, i)) printf(" %10.3f", results[x].m.mass[i] / full->mass[i]);
            else printf(" %10s", "-");
        }
        printf("\n");
    }
    printf("\n  %-10s %10s %12s %12s %12s\n", "method", "impact", "parity gap", "variation", "error ratio");
    for (int x = 0; x < count; x++) {
        const measures *m = &results[x].m;
        printf("  %-10s %10.3f %12.4f %12.4f", kna_method_name(results[x].method), m->impact, m->gap, m->variation);
        if (isnan(m->error_ratio)) printf(" %12s\n", "-"); /* some group is read exactly */
        else printf(" %12.2f\n", m->error_ratio);
    }
}

static int print_json(const result *results, int count, const measures *full, const grouping *g)
{
    cJSON *root = cli_json_object(NULL, NULL), *groups = cli_json_array(root, "groups");
    for (int i = 0; i < g->count; i++) {
        cJSON *group = cli_json_object(groups, NULL);
        cli_json_int(group, "keys", g->keys[i]);
        cli_json_real(group, "mass", full->mass[i]);
    }
    cJSON *methods = cli_json_array(root, "methods");
    for (int x = 0; x < count; x++) {
        const measures *m = &results[x].m;
        cJSON *method = cli_json_object(methods, NULL);
        cli_json_text(method, "method", kna_method_name(results[x].method));
        cli_json_real(method, "impact", m->impact);
        cli_json_real(method, "parity_gap", m->gap);
        cli_json_real(method, "total_variation", m->variation);
        cli_json_real(method, "error_ratio", m->error_ratio);
        cJSON *per_group = cli_json_array(method, "groups");
        for (int i = 0; i < g->count; i++) {
            cJSON *group = cli_json_object(per_group, NULL);
            cli_json_real(group, "mass", m->mass[i]);
            cli_json_real(group, "ratio", is_counted(full, i) ? m->mass[i] / full->mass[i] : NAN);
            cli_json_real(group, "error", m->error[i]);
        }
    }
    return cli_json_print(stdout, root);
}

static int run_methods(run *x, kna_context *context, const request *r, result *results, int count, measures *full)
{
    int code = attend(x, context, r, KNA_EXACT, x->exact);
    if (code == CLI_OK) add_masses(full->mass, x, x->exact);
    for (int i = 0; i < count && code == CLI_OK; i++) {
        code = attend(x, context, r, results[i].method, x->out);
        if (code != CLI_OK) break;
        add_masses(results[i].m.mass, x, x->out);
        compare(&results[i].m, full, x);
    }
    return code;
}

int kna_cmd_fairness(int argc, char **argv)
{
    request r = { .compare = NULL, .method = CLI_METHOD, .machine = CLI_MACHINE };
    operands o = { .q = { .data = NULL } };
    grouping g = { .of = NULL };
    run x = { .o = NULL };
    result results[METHODS_MOST] = { { 0 } };
    measures full = { .impact = 0 };
    kna_context *context = NULL;
    int count = 0, code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) return code;
    if (!r.compare) r.compare = r.method.method == KNA_EXACT ? "topk,uniform,knn" : kna_method_name(r.method.method);
    code = find_methods(results, &count, r.compare);
    if (code == CLI_OK) code = cli_context(&context, &r.machine);
    if (code == CLI_OK) r.operands.kv_type = KNA_F32 + 1; /* columns are put beside the values */
    if (code == CLI_OK) code = operands_read(&o, context, &r.operands);
    if (code == CLI_OK) code = find_groups(&g, &r, o.k_rows.rows);
    if (code == CLI_OK) code = run_new(&x, &o, &g);
    cli_progress_start("kna fairness");
    if (code == CLI_OK) code = run_methods(&x, context, &r, results, count, &full);
    cli_progress_end();
    if (code == CLI_OK && !r.json) print_table(results, count, &full, &g, o.k_rows.rows);
    if (code == CLI_OK && r.json) code = print_json(results, count, &full, &g);
    run_free(&x);
    free(g.of);
    operands_free(&o);
    kna_context_free(context);
    return code;
}
