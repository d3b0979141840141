/*
 * cmd_bench_paper.c - `kna bench paper`: the experiments of paper.h, one after the other, into a folder.
 */
#include "paper.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_data.h"

typedef struct request {
    const char *folder, *dump;
    int64_t n, heads, kv_heads, dim, steps, max_n, late;
    cli_list k;
    double budget_s;
    uint64_t seed;
    int only; /* position in names */
    int data;
    cli_machine machine;
} request;

enum { ALL, ERRORS, HEADS, GRADIENTS, TIMES, AUTOMATIC, DESCENT, LONG };
static const char *const names[] = { "all", "errors", "heads", "gradients", "times", "automatic", "descent", "long", NULL };

#define AT(member) offsetof(request, member)

static const cli_option options[] = {
    { "out", 0, CLI_TEXT, AT(folder), 0, 0, NULL, "DIR", "folder for the tables (.csv) and pictures (.svg)" },
    { "only", 0, CLI_CHOICE, AT(only), 0, 0, names, "NAME", "one experiment: errors, heads, gradients, times, automatic, descent (default all of these), long" },
    { "n", 'n', CLI_INT, AT(n), 16, 100000, NULL, "N", "keys, and queries (default 1000)" },
    { "heads", 0, CLI_INT, AT(heads), 1, 1024, NULL, "N", "heads (default 10)" },
    { "kv-heads", 0, CLI_INT, AT(kv_heads), 1, 1024, NULL, "N", "key/value heads of a text (default a third of the heads, or as many)" },
    { "dim", 0, CLI_INT, AT(dim), 1, KNA_MAX_DIM, NULL, "N", "dimension (default 64)" },
    { "max-n", 0, CLI_INT, AT(max_n), 16, 10000000, NULL, "N", "largest n of the times (default 8 times --n)" },
    { "budget", 0, CLI_REAL, AT(budget_s), 0, 1e9, NULL, "S", "of times, calls that would take longer are not made (default 60 seconds)" },
    { "dump", 0, CLI_TEXT, AT(dump), 0, 0, NULL, "DIR", "errors on the heads of a model, too: a folder of 'kna dump'" },
    { "data", 0, CLI_CHOICE, AT(data), 0, 0, bench_data_names, "KIND",
      "topics, or text: without --dump, heads, long and automatic on what stands for the heads of a model, a text of --n tokens (default topics)" },
    { "k-near", 0, CLI_LIST, AT(k), 1, KNA_MAX_ROWS, NULL, "K,K,..", "of long (default 64,128,256,384,512)" },
    { "late", 0, CLI_INT, AT(late), 1, HEADS_LATE_MAX, NULL, "N", "queries of each dumped layer, its last ones (default 256)" },
    { "steps", 0, CLI_INT, AT(steps), 1, 1000000, NULL, "N", "of the descent (default 1500)" },
    { "seed", 0, CLI_SEED, AT(seed), 0, 0, NULL, "S", "of operands and draws (default 0)" },
    { .name = NULL },
};

static const cli_usage usage = {
    "bench paper",
    "--out DIR [options]",
    "What \"kNN Attention Demystified\" (arXiv 2411.04013) measures: how near topk and\n"
    "sampled attention are for k from n^1/8 to four times the root of n, operands uniform\n"
    "in [-B, B] or dumped from a model, beside two that know nothing; how near estimated\n"
    "gradients are; time and memory against n; k found by itself beside the best fixed\n"
    "one; and gradient descent with estimated gradients (n = 100, d = 3).\n",
};

static int run(paper_table *table, int (*experiment)(paper_table *, const paper_setup *), const paper_setup *setup, const request *r)
{
    cli_progress_start(table->name);
    int code = experiment(table, setup);
    cli_progress_end();
    if (code == CLI_OK) code = paper_write(table, r->folder);
    paper_free(table);
    return code;
}

static int is_wanted(const request *r, int experiment)
{
    return r->only == ALL || r->only == experiment;
}

/* Times, and the two tables that follow from them. */
static int run_times(const paper_setup *setup, const request *r)
{
    paper_table times = { .name = "times", .title = "Seconds of a causal call with k = sqrt n, index included", .x = 0, .y = 1,
                          .columns = { "n", "seconds", "power of n", "peak MiB", "index MiB", "scratch MiB" } };
    paper_table memory = { .name = "memory", .title = "MiB held by a call beside its operands", .x = 0, .y = 1,
                           .columns = { "n", "peak MiB", "index MiB", "scratch MiB" } };
    paper_table growth = { .name = "growth", .title = "Powers of n that fit the times, and where they cross exact attention's", .x = -1,
                           .columns = { "power of n", "at n = 1000", "crosses at" } };
    cli_progress_start("times");
    int code = paper_times(&times, setup);
    cli_progress_end();
    if (code == CLI_OK) code = paper_memory(&memory, &times);
    if (code == CLI_OK) code = paper_growth(&growth, &times);
    if (code == CLI_OK) code = paper_write(&times, r->folder);
    if (code == CLI_OK) code = paper_write(&memory, r->folder);
    if (code == CLI_OK) code = paper_write(&growth, r->folder);
    paper_free(&times), paper_free(&memory), paper_free(&growth);
    return code;
}

static int run_all(const paper_setup *setup, const request *r)
{
    paper_table errors = { .name = "errors", .title = "Distance from exact attention, by k", .x = 1, .y = 3,
                           .columns = { "B", "k", "keys read", "mean error", "largest" } };
    paper_table heads = { .name = "heads", .title = "Distance from exact attention on the heads of a model, by k", .x = 1, .y = 3,
                          .columns = { "layer", "k", "keys read", "mean error", "p95", "above 5 %" } };
    paper_table gradients = { .name = "gradients", .title = "Distance from the exact gradients, by keys a row looks at", .x = 0, .y = 2,
                              .columns = { "keys", "seconds", "dq", "dk", "dv" } };
    paper_table automatic = { .name = "automatic", .title = "k found by itself, beside the best fixed one", .x = 3, .y = 5,
                              .columns = { "eps", "delta", "k", "share read", "seconds", "mean error", "p95", "above eps" } };
    paper_table descent = { .name = "descent", .title = "Loss of exact attention, learned with estimated gradients", .x = 0, .y = 1,
                            .x_is_linear = 1, .columns = { "step", "loss" } };
    paper_table text = { .name = "long", .title = "A whole text on the heads of a model: times faster than exact, by error", .x = 1, .y = 3,
                         .columns = { "k", "mean error", "forward s", "faster", "backward s", "b. faster", "dq", "dk" } };
    int code = CLI_OK;
    if (r->only == LONG) return run(&text, paper_long, setup, r);
    if (is_wanted(r, ERRORS)) code = run(&errors, paper_errors, setup, r);
    if (code == CLI_OK && setup->dump && is_wanted(r, HEADS)) code = run(&heads, paper_heads, setup, r);
    if (code == CLI_OK && is_wanted(r, GRADIENTS)) code = run(&gradients, paper_gradients, setup, r);
    if (code == CLI_OK && is_wanted(r, TIMES)) code = run_times(setup, r);
    if (code == CLI_OK && is_wanted(r, AUTOMATIC)) code = run(&automatic, paper_automatic, setup, r);
    return code == CLI_OK && is_wanted(r, DESCENT) ? run(&descent, paper_descent, setup, r) : code;
}

/* A layer of heads like those of a model. */
static int make_text(heads_set *set, paper_setup *setup, const request *r)
{
    const int64_t h_kv = r->kv_heads ? r->kv_heads : r->heads % 3 == 0 ? r->heads / 3 : r->heads;
    const bench_shape shape = { r->heads, h_kv, r->n, r->n, r->dim, KNA_F16, BENCH_TEXT };
    if (r->heads % h_kv) return cli_refuse("--heads: %lld is not a multiple of --kv-heads %lld", (long long)r->heads, (long long)h_kv);
    heads_layer *l = set->layers = calloc(1, sizeof *set->layers);
    bench_layer made = { .q = NULL };
    int code = l ? CLI_OK : cli_fail("out of memory: a text of %lld tokens", (long long)r->n);
    if (code == CLI_OK) code = bench_layer_new(setup->context, &made, &shape, r->seed, 0);
    if (code == CLI_OK) {
        l->owned[0] = made.q, l->owned[1] = made.k.data, l->owned[2] = made.v.data;
        l->q = made.q_rows, l->k = made.k.rows, l->v = made.v.rows;
        l->scale = (float)(1 / sqrt((double)r->dim));
        set->count = 1;
        setup->dump = set;
    }
    return code;
}

static int read_dump(heads_set *dump, paper_setup *setup, const request *r)
{
    const heads_source source = { .dump = r->dump };
    const int needs_one = r->only == HEADS || r->only == LONG;
    if (!r->dump && r->data == BENCH_TEXT) return make_text(dump, setup, r);
    if (!r->dump) return needs_one ? cli_refuse("--only %s: --dump must name a folder of 'kna dump'", names[r->only]) : CLI_OK;
    int code = heads_read(dump, &source);
    if (code == CLI_OK) code = heads_check(dump, r->only == LONG ? 1 : r->late);
    setup->dump = dump;
    return code;
}

int kna_cmd_bench_paper(int argc, char **argv)
{
    request r = { .n = 1000, .k = { 5, { 64, 128, 256, 384, 512 } }, .heads = 10, .dim = 64, .steps = 1500, .late = 256, .budget_s = 60, .machine = CLI_MACHINE };
    const cli_group groups[] = { { "Experiments", options, &r }, { "Machine", cli_machine_options, &r.machine }, { NULL, NULL, NULL } };
    paper_setup setup = { .context = NULL };
    heads_set dump = { .count = 0 };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    if (code == CLI_GO_ON) code = cli_require(&usage, "out", r.folder);
    if (code != CLI_GO_ON) return code;
    code = cli_context(&setup.context, &r.machine);
    setup.data = r.data, setup.k = r.k;
    setup.n = r.n, setup.heads = r.heads, setup.dim = r.dim, setup.steps = r.steps, setup.seed = r.seed;
    setup.max_n = r.max_n ? r.max_n : 8 * r.n, setup.budget_s = r.budget_s, setup.late = r.late;
    if (code == CLI_OK) code = read_dump(&dump, &setup, &r);
    if (code == CLI_OK) code = cli_output_folder(r.folder);
    if (code == CLI_OK) code = run_all(&setup, &r);
    if (code == CLI_OK) code = cli_output_commit();
    kna_context_free(setup.context);
    heads_free(&dump);
    return code;
}
