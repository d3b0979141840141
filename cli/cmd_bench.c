/*
 * cmd_bench.c - `kna bench decode | prefill | attend`: one operator on synthetic operands, beside a naive one and beside what the
 * machine can do at most, all measured in the same run.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_print.h"
#include "bench_run.h"
#include "cli.h"
#include "peak.h"

/* ------------------------------------------------------------------ options */

typedef struct request {
    int64_t h, h_kv, d, m, layers, rounds; /* m 0: as many as keys */
    cli_list n;
    int type, data;
    int causal;
    const char *contenders, *picture;
    double error;
    int json;
    cli_method method;
    cli_machine machine;
} request;

static const char *const type_names[] = { "f32", "f16", "bf16", "i8", "q8_0", NULL };

#define AT(member)           offsetof(request, member)
#define ROWS_AT(member, low) 0, CLI_INT, offsetof(cli_method, member), low, KNA_MAX_ROWS, NULL, "N"

static const cli_option shape_options[] = {
    { "n", 'n', CLI_LIST, AT(n), 1, KNA_MAX_ROWS, NULL, "N,N,..", "numbers of keys, one after the other" },
    { "m", 'm', CLI_INT, AT(m), 1, KNA_MAX_ROWS, NULL, "N", "queries per head (decode 1, prefill as many as keys, attend 64)" },
    { "heads", 0, CLI_INT, AT(h), 1, 1024, NULL, "N", "query heads (default 9)" },
    { "kv-heads", 0, CLI_INT, AT(h_kv), 1, 1024, NULL, "N", "key/value heads (default 3)" },
    { "dim", 0, CLI_INT, AT(d), 1, KNA_MAX_DIM, NULL, "N", "dimension of keys and values (default 64)" },
    { "type", 0, CLI_CHOICE, AT(type), 0, 0, type_names, "TYPE", "keys and values: f32, f16, bf16, i8 or q8_0 (default f16)" },
    { "data", 0, CLI_CHOICE, AT(data), 0, 0, bench_data_names, "KIND",
      "topics: runs of keys alike; text: as the middle layers of a model have them that reads one (default topics)" },
    { "causal", 0, CLI_FLAG, AT(causal), 0, 0, NULL, NULL, "query i sees keys 0 .. n - m + i (prefill: always)" },
    { "layers", 0, CLI_INT, AT(layers), 1, 1000, NULL, "N", "operands gone through in turn (decode 30, else 1)" },
    { .name = NULL },
};

static const cli_option run_options[] = {
    { "contenders", 0, CLI_TEXT, AT(contenders), 0, 0, NULL, "A,B,..", "of naive, exact, topk, knn (default all)" },
    { "rounds", 0, CLI_INT, AT(rounds), 1, BENCH_ROUNDS_MAX, NULL, "N", "each is timed so often; the median counts (default 7)" },
    { "error", 0, CLI_REAL, AT(error), 0, 1, NULL, "E", "topk, knn: the least k of 16, 24, 32, 48, .. with a mean error of at most E" },
    { "svg", 0, CLI_TEXT, AT(picture), 0, 0, NULL, "FILE", "draw times against n, both logarithmic" },
    { "json", 0, CLI_FLAG, AT(json), 0, 0, NULL, NULL, "print JSON instead of a table" },
    { .name = NULL },
};

static const cli_option near_options[] = {
    { "k-near", ROWS_AT(k_near, 1), "topk, knn: nearest keys read in full (default 384)" },
    { "near-sinks", ROWS_AT(near_sinks, 0), "knn: first keys always read in full (default 4)" },
    { "near-window", ROWS_AT(near_window, 0), "knn: recent keys always read in full (default 64)" },
    { "eps", 0, CLI_REAL, offsetof(cli_method, eps), 0, 1, NULL, "E", "knn: raise K until the estimated error is at most E" },
    { "delta", 0, CLI_REAL, offsetof(cli_method, delta), 0, 1, NULL, "D",
      "knn: choose K so that at most a share D of rows is off by more than E" },
    { "audit", 0, CLI_REAL, offsetof(cli_method, audit), 0, 1, NULL, "SHARE",
      "of rows that errors are taken from where exact is no contender (default 0)" },
    { "seed", 0, CLI_SEED, offsetof(cli_method, seed), 0, 0, NULL, "S", "of the operands (default 0)" },
    { .name = NULL },
};

typedef enum bench_mode { DECODE, PREFILL, ATTEND } bench_mode;

static const cli_usage usages[] = {
    { "bench decode", "[options]",
      "One query per head over n cached keys, as a model does for every token: 30 layers\n"
      "in turn, so that keys and values come from memory. topk and knn keep their index\n"
      "from token to token; appending the new row to it is part of their time.\n" },
    { "bench prefill", "[options]",
      "n queries per head over n keys, causal. topk and knn build their index within\n"
      "their time.\n" },
    { "bench attend", "[options]", "m queries per head over n keys. topk and knn build their index within their time.\n" },
};

static request defaults(bench_mode mode)
{
    request r = { .h = 9, .h_kv = 3, .d = 64, .m = 64, .layers = 1, .rounds = 7, .type = KNA_F16 };
    r.method = (cli_method)CLI_METHOD;
    r.machine = (cli_machine)CLI_MACHINE;
    r.n = (cli_list){ 1, { 4096 } };
    if (mode == DECODE) {
        r.m = 1;
        r.layers = 30;
        r.n = (cli_list){ 3, { 1024, 4096, 8192 } };
    } else if (mode == PREFILL) {
        r.m = 0;
        r.causal = 1;
        r.n = (cli_list){ 3, { 512, 1024, 2048 } };
    }
    return r;
}

static int parse_contenders(const char *text, int enabled[BENCH_CONTENDERS])
{
    for (int i = 0; i < BENCH_CONTENDERS; i++) enabled[i] = !text;
    for (const char *at = text; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        const size_t length = strcspn(at, ",");
        int i = 0;
        while (i < BENCH_CONTENDERS && (strlen(bench_names[i]) != length || strncmp(bench_names[i], at, length) != 0)) i++;
        if (i == BENCH_CONTENDERS) return cli_refuse("--contenders: '%.*s' is none of naive, exact, topk, knn", (int)length, at);
        enabled[i] = 1;
    }
    return CLI_GO_ON;
}

static int check(const request *r)
{
    if (r->h % r->h_kv != 0) return cli_refuse("--heads: %" PRId64 " is not a multiple of --kv-heads %" PRId64, r->h, r->h_kv);
    if (kna_type_row_bytes(r->type, r->d) == 0)
        return cli_refuse("--dim: %s needs a multiple of 32, not %" PRId64, kna_type_name(r->type), r->d);
    for (int i = 0; i < r->n.count; i++)
        if (r->data == BENCH_TEXT && r->m > r->n.values[i])
            return cli_refuse("--m: %" PRId64 " queries of a text of %" PRId64 " tokens", r->m, r->n.values[i]);
    for (int i = 0; i < r->n.count; i++)
        if (r->causal && r->m > r->n.values[i])
            return cli_refuse("--m: %" PRId64 " causal queries over %" PRId64 " keys; the first would see none", r->m,
                              r->n.values[i]);
    return CLI_GO_ON;
}

static int parse(request *r, int enabled[BENCH_CONTENDERS], bench_mode mode, int argc, char **argv)
{
    const cli_group groups[] = {
        { "Shapes", shape_options, r }, { "Which keys are read", near_options, &r->method },
        { "Run", run_options, r },      { "Machine", cli_machine_options, &r->machine },
        { NULL, NULL, NULL },
    };
    int code = cli_parse(&usages[mode], groups, argc, argv, NULL);
    if (code == CLI_GO_ON) code = parse_contenders(r->contenders, enabled);
    if (code == CLI_GO_ON && r->error > 0 && !enabled[BENCH_EXACT] && !(r->method.audit > 0))
        return cli_refuse("--error: nothing to measure it by; have exact among the contenders, or --audit");
    return code == CLI_GO_ON ? check(r) : code;
}

/* ------------------------------------------------------------------ run */

/* The best seen so far: a yardstick is what the machine can do, not what it did while something else ran. */
static void measure_peaks(bench_run *run, const peak_copy *copy)
{
    const int threads = kna_context_threads(run->context);
    for (int i = 0; i < 2; i++) {
        if (copy->from)
            run->copy_rate = fmax(run->copy_rate, peak_copy_rate(copy, threads));
        else
            run->fma_rate = fmax(run->fma_rate, peak_fma_rate(kna_context_cpu(run->context), threads));
    }
}

static bench_plan plan_for(const request *r, const int enabled[BENCH_CONTENDERS], bench_mode mode, int cell)
{
    const int64_t n = r->n.values[cell];
    bench_plan plan = {
        .shape = { r->h, r->h_kv, r->m ? r->m : n, n, r->d, r->type, r->data },
        .causal = r->causal,
        .layers = r->layers,
        .keeps_index = mode == DECODE,
        .rounds = r->rounds,
        .method = r->method,
        .error = r->error,
        .progress_from = (double)cell / r->n.count,
        .progress_to = (double)(cell + 1) / r->n.count,
    };
    memcpy(plan.enabled, enabled, sizeof plan.enabled);
    return plan;
}

static int measure_cells(bench_run *run, const request *r, const int enabled[BENCH_CONTENDERS], bench_mode mode,
                         const peak_copy *copy)
{
    int code = CLI_OK;
    for (int i = 0; i < r->n.count && code == CLI_OK; i++) {
        bench_cell *cell = &run->cells[run->cell_count++];
        cell->plan = plan_for(r, enabled, mode, i);
        measure_peaks(run, copy);
        code = bench_measure(run->context, &cell->plan, cell->results);
    }
    if (code == CLI_OK) measure_peaks(run, copy);
    return code;
}

static int run_bench(bench_mode mode, int argc, char **argv)
{
    request r = defaults(mode);
    bench_run run = { .name = argv[0], .counts_bytes = mode == DECODE };
    peak_copy copy = { NULL, NULL, 0 };
    int enabled[BENCH_CONTENDERS];
    int code = parse(&r, enabled, mode, argc, argv);
    if (code != CLI_GO_ON) return code;
    cli_progress_start(usages[mode].name);
    code = cli_context(&run.context, &r.machine);
    if (code == CLI_OK && mode == DECODE) code = peak_copy_new(&copy, kna_context_threads(run.context));
    if (code == CLI_OK) code = measure_cells(&run, &r, enabled, mode, &copy);
    cli_progress_end();
    if (code == CLI_OK) code = r.json ? bench_print_json(&run) : bench_print_table(&run);
    if (code == CLI_OK && r.picture) code = bench_draw(&run, r.picture);
    peak_copy_free(&copy);
    kna_context_free(run.context);
    return code;
}

/* ------------------------------------------------------------------ which bench */

static int bench_decode(int argc, char **argv)
{
    return run_bench(DECODE, argc, argv);
}

static int bench_prefill(int argc, char **argv)
{
    return run_bench(PREFILL, argc, argv);
}

static int bench_attend(int argc, char **argv)
{
    return run_bench(ATTEND, argc, argv);
}

static const cli_command benches[] = {
    { "decode", "one query over a long cache: the operator behind a generated token", bench_decode },
    { "prefill", "as many queries as keys, causal: the operator behind reading a prompt", bench_prefill },
    { "attend", "any shape", bench_attend },
    { "heads", "errors and times on the heads of a real model", kna_cmd_bench_heads },
    { "paper", "the experiments of the paper on kNN attention", kna_cmd_bench_paper },
    { "model", "a model in llama.cpp, with and without", kna_cmd_bench_model },
    { NULL, NULL, NULL },
};

static int print_help(void)
{
    printf("usage: kna bench WHAT [options]\n\nWhat:\n");
    for (const cli_command *bench = benches; bench->name; bench++) printf("  %-10s%s\n", bench->name, bench->summary);
    printf("\n'kna bench WHAT --help' lists the options.\n");
    return CLI_OK;
}

int kna_cmd_bench(int argc, char **argv)
{
    if (argc < 2) return cli_refuse("bench: decode, prefill, attend, heads, paper or model must follow, see 'kna bench --help'");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return print_help();
    for (const cli_command *bench = benches; bench->name; bench++)
        if (strcmp(argv[1], bench->name) == 0) return bench->run(argc - 1, argv + 1);
    return cli_refuse("bench: '%s' is none of decode, prefill, attend, heads, paper, model", argv[1]);
}
