/*
 * cmd_bench_heads.c - `kna bench heads`: options; then operands, errors, times, tables.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "heads.h"

typedef struct request {
    heads_source source;
    cli_method method;
    cli_machine machine;
    cli_list k;
    int64_t late, rounds;
    int json;
} request;

#define AT(member)           offsetof(request, member)
#define ROWS_AT(member)      0, CLI_INT, AT(method.member), 0, KNA_MAX_ROWS, NULL, "N"

static const cli_option source_options[] = {
    { "dump", 0, CLI_TEXT, AT(source.dump), 0, 0, NULL, "DIR", "a folder that 'kna dump' wrote" },
    { "model", 'm', CLI_TEXT, AT(source.model), 0, 0, NULL, "FILE", "or a model, a GGUF file," },
    { "file", 'f', CLI_TEXT, AT(source.file), 0, 0, NULL, "FILE", "and the text it reads" },
    { "ctx", 'c', CLI_INT, AT(source.context), 2, 1 << 24, NULL, "N", "tokens, from the beginning (default: 4096; of a folder all)" },
    { "no-yarn", 0, CLI_FLAG, AT(source.no_yarn), 0, 0, NULL, NULL, "do not stretch positions beyond what the model was trained with" },
    { "layers", 0, CLI_TEXT, AT(source.layers), 0, 0, NULL, "LIST", "layers, as 0,8,20 or 0-3,29 (default: all there are)" },
    { "scale", 0, CLI_REAL, AT(source.scale), 1e-30, 1e30, NULL, "X", "logit = X * <q,k> (default: the model's; of a folder 1/sqrt(d))" },
    { .name = NULL },
};

static const cli_option run_options[] = {
    { "late", 0, CLI_INT, AT(late), 1, HEADS_LATE_MAX, NULL, "N", "queries measured, the last of the text (default 256)" },
    { "k", 'k', CLI_LIST, AT(k), 1, KNA_MAX_ROWS, NULL, "LIST", "nearest keys, ascending (default 64,128,256,512,1024)" },
    { "near-sinks", ROWS_AT(near_sinks), "first keys always read in full (default 4)" },
    { "near-window", ROWS_AT(near_window), "recent keys always read in full (default 64)" },
    { "audit", 0, CLI_REAL, AT(method.audit), 1e-6, 1, NULL, "SHARE", "of the rows audited by knn (default 0.1)" },
    { "seed", 0, CLI_SEED, AT(method.seed), 0, 0, NULL, "S", "chooses them (default 0)" },
    { "rounds", 0, CLI_INT, AT(rounds), 0, 1001, NULL, "N", "of timing, after the errors; 0: none (default 3)" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON instead of tables" },
    { .name = NULL },
};

static const cli_usage usage = {
    "bench heads",
    "(--dump DIR | -m model.gguf -f text.txt -c N) [options]",
    "What topk and knn do on the heads of a real model, by queries late in a text: the\n"
    "softmax that few keys hold, errors against double precision beside two oracles,\n"
    "what knn says of its errors, and times.\n",
};

static int check_source(const heads_source *s)
{
    if (s->dump && (s->model || s->file)) return cli_refuse("bench heads: either --dump or --model and --file, not both");
    if (s->dump || (s->model && s->file)) return CLI_GO_ON;
    return cli_refuse("bench heads: --dump, or --model and --file, must be given, see 'kna bench heads --help'");
}

static int check_ascending(const cli_list *k)
{
    for (int i = 1; i < k->count; i++)
        if (k->values[i] <= k->values[i - 1])
            return cli_refuse("--k: %" PRId64 " after %" PRId64 ": the list must ascend", k->values[i], k->values[i - 1]);
    return CLI_GO_ON;
}

static int parse(request *r, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Operands", source_options, r },
        { "What is measured", run_options, r },
        { "Machine", cli_machine_options, &r->machine },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usage, groups, argc, argv, NULL);
    if (code == CLI_GO_ON) code = check_source(&r->source);
    if (code == CLI_GO_ON) code = check_ascending(&r->k);
    r->source.threads = r->machine.threads;
    if (!r->source.dump && r->source.context == 0) r->source.context = 4096;
    return code;
}

static int measure(heads_study *study)
{
    cli_progress_start("errors");
    int code = heads_measure(study);
    cli_progress_end();
    if (code != CLI_OK || study->rounds == 0) return code;
    cli_progress_start("times");
    code = heads_measure_times(study);
    cli_progress_end();
    return code;
}

int kna_cmd_bench_heads(int argc, char **argv)
{
    request r = { .method = CLI_METHOD, .machine = CLI_MACHINE, .late = 256, .rounds = 3 };
    heads_set set = { NULL, 0, NULL };
    r.k = (cli_list){ 5, { 64, 128, 256, 512, 1024 } };
    r.method.audit = 0.1;
    int code = parse(&r, argc, argv);
    if (code != CLI_GO_ON) return code;
    heads_study study = { .set = &set, .k = r.k, .late = r.late, .rounds = r.rounds, .sinks = r.method.near_sinks,
                          .window = r.method.near_window, .audit = r.method.audit, .seed = r.method.seed };
    code = cli_context(&study.context, &r.machine);
    if (code == CLI_OK) code = r.source.dump ? heads_read(&set, &r.source) : heads_take(&set, &r.source);
    if (code == CLI_OK) code = heads_check(&set, r.late);
    if (code == CLI_OK) code = measure(&study);
    if (code == CLI_OK) code = r.json ? heads_print_json(&study) : heads_print_tables(&study);
    heads_study_free(&study);
    heads_free(&set);
    kna_context_free(study.context);
    return code;
}
