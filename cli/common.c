/*
 * common.c - the options many commands share, and what they become in libkna.
 */
#include "cli.h"

static const char *const cpu_names[KNA_CPU_COUNT + 1] = { "best", "ref", "avx2", "avx512", "avx512vnni", "neon", NULL };

const char *const cli_method_names[KNA_METHOD_COUNT + 1] = { "exact", "topk", "knn", "uniform", "gumbel", "rejection", "mom",
                                                             "stratified", "centroid", "control", "window", "linformer", "nystrom", "performer", "lsh", NULL };
const char *const cli_certificate_names[KNA_CERTIFICATE_COUNT + 1] = { "asymptotic", "finite", "bernstein", "deterministic", NULL };
static const char *const bounds_names[KNA_BOUNDS_COUNT + 1] = { "head", "clusters", NULL };

const cli_option cli_machine_options[] = {
    { "threads", 0, CLI_INT, offsetof(cli_machine, threads), 1, KNA_MAX_THREADS, NULL, "N", "threads (default: all processors)" },
    { "cpu", 0, CLI_CHOICE, offsetof(cli_machine, cpu), 0, 0, cpu_names, "LEVEL",
      "best, ref, avx2, avx512, avx512vnni or neon (default best)" },
    { .name = NULL },
};

const cli_option cli_method_options[] = {
    { "method", 0, CLI_CHOICE, offsetof(cli_method, method), 0, 0, cli_method_names, "NAME",
      "exact, topk, knn, uniform, gumbel, rejection, mom, stratified, centroid, control, window, linformer, nystrom, performer "
      "or lsh (default exact)" },
    { "k-near", 0, CLI_INT, offsetof(cli_method, k_near), 1, KNA_MAX_ROWS, NULL, "K",
      "nearest keys read in full; exact: all are (default 384; where K is found by --delta it starts with that)" },
    { "near-sinks", 0, CLI_INT, offsetof(cli_method, near_sinks), 0, KNA_MAX_ROWS, NULL, "N",
      "knn, window, lsh: first keys always read in full (default 4)" },
    { "near-window", 0, CLI_INT, offsetof(cli_method, near_window), 0, KNA_MAX_ROWS, NULL, "N",
      "knn, window, lsh: recent keys always read in full (default 64)" },
    { "eps", 0, CLI_REAL, offsetof(cli_method, eps), 0, 1, NULL, "E",
      "knn: raise K until the estimated error is at most E; uniform: S, by the radius (default 0: as given)" },
    { "delta", 0, CLI_REAL, offsetof(cli_method, delta), 0, 1, NULL, "D",
      "knn: choose K so that at most a share D of rows is off by more than E, as drawn rows say (default 0: no); uniform: of the radius" },
    { "samples", 0, CLI_INT, offsetof(cli_method, samples), 1, KNA_MAX_ROWS, NULL, "S",
      "uniform, stratified, centroid, control: other keys sampled per row; gumbel, rejection, mom: keys drawn (default K)" },
    { "groups", 0, CLI_INT, offsetof(cli_method, groups), 1, KNA_MAX_ROWS, NULL, "G",
      "mom: groups of draws (default 8 log(1 / D), D 0.05 unless given)" },
    { "certificate", 0, CLI_CHOICE, offsetof(cli_method, certificate), 0, 0, cli_certificate_names, "KIND",
      "asymptotic, finite, bernstein or deterministic, what stands behind the radius (default asymptotic)" },
    { "bounds", 0, CLI_CHOICE, offsetof(cli_method, bounds), 0, 0, bounds_names, "KIND",
      "uniform, gumbel, rejection, mom: head or clusters, what bounds the logits of other keys (default head)" },
    { "gap", 0, CLI_REAL, offsetof(cli_method, gap), 0, 1e6, NULL, "X",
      "with bounds of the head: those logits may be so much above its least (default 0)" },
    { "rank", 0, CLI_INT, offsetof(cli_method, rank), 1, KNA_MAX_RANK, NULL, "R",
      "linformer, performer: rows or features (default 256); nystrom: landmarks (default 64)" },
    { "hash-bits", 0, CLI_INT, offsetof(cli_method, hash_bits), 1, KNA_MAX_HASH_BITS, NULL, "B", "lsh: bits of a table (default 10)" },
    { "hash-tables", 0, CLI_INT, offsetof(cli_method, hash_tables), 2, KNA_MAX_RANK, NULL, "L", "lsh: tables (default 150)" },
    { "audit", 0, CLI_REAL, offsetof(cli_method, audit), 0, 1, NULL, "SHARE",
      "share of rows also computed exactly, for the report (default 0)" },
    { "seed", 0, CLI_SEED, offsetof(cli_method, seed), 0, 0, NULL, "S", "random numbers: samples, and which rows are audited (default 0)" },
    { .name = NULL },
};

int cli_context(kna_context **context, const cli_machine *machine)
{
    kna_context_options options = KNA_CONTEXT_OPTIONS;
    options.threads = (int)machine->threads;
    options.cpu = machine->cpu;
    const int status = kna_context_new(context, &options);
    if (status == KNA_OK) return CLI_OK;
    if (status != KNA_ECPU) return cli_status(NULL, status);
    return cli_refuse("--cpu: this machine or this build lacks %s", cpu_names[machine->cpu]);
}

/* kna.h reads 0 as the default and a negative number as none; on the command line 0 is none. */
static int64_t none_if_zero(int64_t count)
{
    return count == 0 ? -1 : count;
}

void cli_method_fill(kna_attend_options *to, const cli_method *from)
{
    to->method = from->method;
    to->k_near = from->k_near;
    to->near_sinks = none_if_zero(from->near_sinks);
    to->near_window = none_if_zero(from->near_window);
    to->eps = (float)from->eps;
    to->delta = (float)from->delta;
    to->audit = (float)from->audit;
    to->seed = from->seed;
    to->samples = from->samples;
    to->groups = from->groups;
    to->rank = from->rank;
    to->hash_bits = from->hash_bits;
    to->hash_tables = from->hash_tables;
    to->certificate = from->certificate;
    to->bounds = from->bounds;
    to->gap = (float)from->gap;
}
