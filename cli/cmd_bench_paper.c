/*
 * cmd_bench_paper.c - `kna bench paper`: the experiments of paper.h, one after the other, into a folder.
 */
#include "paper.h"

#include <stdlib.h>
#include <string.h>

typedef struct request {
    const char *folder;
    int64_t n, heads, dim, steps;
    uint64_t seed;
    cli_machine machine;
} request;

#define AT(member) offsetof(request, member)

static const cli_option options[] = {
    { "out", 0, CLI_TEXT, AT(folder), 0, 0, NULL, "DIR", "folder for errors, gradients, times and descent, each .csv and .svg" },
    { "n", 'n', CLI_INT, AT(n), 16, 100000, NULL, "N", "keys, and queries (default 1000)" },
    { "heads", 0, CLI_INT, AT(heads), 1, 1024, NULL, "N", "heads (default 10)" },
    { "dim", 0, CLI_INT, AT(dim), 1, KNA_MAX_DIM, NULL, "N", "dimension (default 64)" },
    { "steps", 0, CLI_INT, AT(steps), 1, 1000000, NULL, "N", "of the descent (default 1500)" },
    { "seed", 0, CLI_SEED, AT(seed), 0, 0, NULL, "S", "of operands and draws (default 0)" },
    { .name = NULL },
};

static const cli_usage usage = {
    "bench paper",
    "--out DIR [options]",
    "What \"kNN Attention Demystified\" (arXiv 2411.04013) measures: how near topk and\n"
    "sampled attention are for k from 3 to four times the root of n, operands uniform\n"
    "in [-B, B], beside two that know nothing; how near estimated gradients are; time\n"
    "against n; and gradient descent with estimated gradients (n = 100, d = 3).\n",
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

static int run_all(const paper_setup *setup, const request *r)
{
    paper_table errors = { .name = "errors", .title = "Distance from exact attention, by k", .x = 1, .y = 3,
                           .columns = { "B", "k", "keys read", "mean error", "largest" } };
    paper_table gradients = { .name = "gradients", .title = "Distance from the exact gradients, by keys a row looks at", .x = 0, .y = 1,
                              .columns = { "keys", "dq", "dk", "dv" } };
    paper_table descent = { .name = "descent", .title = "Loss of exact attention, learned with estimated gradients", .x = 0, .y = 1,
                            .x_is_linear = 1, .columns = { "step", "loss" } };
    paper_table times = { .name = "times", .title = "Seconds of a causal call with k = sqrt n, index included", .x = 0, .y = 1,
                          .columns = { "n", "seconds", "power of n" } };
    int code = run(&errors, paper_errors, setup, r);
    if (code == CLI_OK) code = run(&gradients, paper_gradients, setup, r);
    if (code == CLI_OK) code = run(&times, paper_times, setup, r);
    return code == CLI_OK ? run(&descent, paper_descent, setup, r) : code;
}

int kna_cmd_bench_paper(int argc, char **argv)
{
    request r = { .n = 1000, .heads = 10, .dim = 64, .steps = 1500, .machine = CLI_MACHINE };
    const cli_group groups[] = { { "Experiments", options, &r }, { "Machine", cli_machine_options, &r.machine }, { NULL, NULL, NULL } };
    paper_setup setup = { .context = NULL };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    if (code == CLI_GO_ON) code = cli_require(&usage, "out", r.folder);
    if (code != CLI_GO_ON) return code;
    code = cli_context(&setup.context, &r.machine);
    setup.n = r.n, setup.heads = r.heads, setup.dim = r.dim, setup.steps = r.steps, setup.seed = r.seed;
    if (code == CLI_OK) code = cli_output_folder(r.folder);
    if (code == CLI_OK) code = run_all(&setup, &r);
    if (code == CLI_OK) code = cli_output_commit();
    kna_context_free(setup.context);
    return code;
}
