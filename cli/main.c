/*
 * main.c - the `kna` command: finds the command and keeps the promises that hold for all of them.
 *
 * Invariant: what was printed on standard output has arrived, or the exit code says that it has not.
 */
#define _GNU_SOURCE
#include "cli.h"
#include "fairness.h"
#include "heads.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------ commands that need llama.cpp */

#ifdef KNA_HAVE_LLAMA
#    define BUILT_WITH_LLAMA 1
#else
#    define BUILT_WITH_LLAMA 0

static int refuse_without_llama(const char *name)
{
    return cli_refuse("%s: this build has no llama.cpp, which it needs (rebuild with -DLLAMA_SOURCE_DIR=DIR)", name);
}

int kna_cmd_generate(int argc, char **argv)
{
    (void)argc, (void)argv;
    return refuse_without_llama("generate");
}

int kna_cmd_ppl(int argc, char **argv)
{
    (void)argc, (void)argv;
    return refuse_without_llama("ppl");
}

int kna_cmd_dump(int argc, char **argv)
{
    (void)argc, (void)argv;
    return refuse_without_llama("dump");
}

int kna_cmd_demo(int argc, char **argv)
{
    (void)argc, (void)argv;
    return refuse_without_llama("demo");
}

int kna_cmd_eval(int argc, char **argv)
{
    (void)argc, (void)argv;
    return refuse_without_llama("eval");
}

int kna_cmd_bench_model(int argc, char **argv)
{
    (void)argc, (void)argv;
    return refuse_without_llama("bench model");
}

int heads_take(heads_set *set, const heads_source *source)
{
    (void)set, (void)source;
    return cli_refuse("bench heads: this build has no llama.cpp, which -m needs; take --dump");
}

void heads_give_back(void *source)
{
    (void)source;
}

int fair_take(fair_set *set, const fair_source *source)
{
    (void)set, (void)source;
    return cli_refuse("fairness: this build has no llama.cpp, which -m needs; take --q, --k and --v");
}

void fair_give_back(fair_set *set)
{
    (void)set;
}

int fair_lose(fair_result *result, const fair_set *set, const fair_source *source, const cli_method *method, int64_t late)
{
    (void)result, (void)set, (void)source, (void)method, (void)late;
    return refuse_without_llama("fairness -m");
}
#endif

/* ------------------------------------------------------------------ the table */

static const cli_command commands[] = {
    { "attend", "attention of .npy arrays: exact, topk or knn", kna_cmd_attend },
    { "grad", "gradients of attention of .npy arrays", kna_cmd_grad },
    { "fairness", "what approximate attention does to groups of keys", kna_cmd_fairness },
    { "store", "documents and their rows, kept in a folder", kna_cmd_store },
    { "generate", "continue a text with a model", kna_cmd_generate },
    { "ppl", "perplexity of a text under a model", kna_cmd_ppl },
    { "eval", "what an attention costs a model's answers, beside full attention", kna_cmd_eval },
    { "dump", "queries, keys and values inside a model, as .npy", kna_cmd_dump },
    { "bench", "measure speed: decode, prefill, attend, heads, model", kna_cmd_bench },
    { "demo", "a real document in a real model, side by side", kna_cmd_demo },
    { NULL, NULL, NULL },
};

static int print_help(void)
{
    printf("usage: kna COMMAND [options]\n\n"
           "kNN attention: reads the few keys that matter in full, estimates the rest.\n\nCommands:\n");
    for (const cli_command *command = commands; command->name; command++) printf("  %-10s%s\n", command->name, command->summary);
    printf("\n'kna COMMAND --help' lists a command's options; 'kna --version' tells version,\n"
           "CPU levels and what is built in.\n\n"
           "Exit codes: 0 done; 1 failed at run time (files, memory); 2 bad usage or input.\n");
    return CLI_OK;
}

static int print_version(void)
{
    printf("kna %s\n", KNA_VERSION_STRING);
    printf("libkna %s\n", kna_version());
    printf("cpu levels:");
    for (int cpu = KNA_CPU_REF; cpu < KNA_CPU_COUNT; cpu++)
        if (kna_cpu_is_present(cpu)) printf(" %s", kna_cpu_name(cpu));
    printf("\nllama.cpp: %s\n", BUILT_WITH_LLAMA ? "yes" : "no");
    return CLI_OK;
}

static int run(int argc, char **argv)
{
    const char *word = argv[1];
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) return print_help();
    if (strcmp(word, "--version") == 0) return print_version();
    for (const cli_command *command = commands; command->name; command++)
        if (strcmp(word, command->name) == 0) return command->run(argc - 1, argv + 1);
    return cli_refuse("unknown command '%s', see 'kna --help'", word);
}

/* ------------------------------------------------------------------ main */

/* With a standard stream closed, the next file opened would take its number and swallow what is meant for the stream. */
static void fill_standard_streams(void)
{
    for (int stream = 0; stream <= 2; stream++)
        if (fcntl(stream, F_GETFD) == -1 && open("/dev/null", stream == 0 ? O_WRONLY : O_RDONLY) < 0) return;
}

int main(int argc, char **argv)
{
    fill_standard_streams();
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files is an error of the write, with a message, not the end */
    if (argc < 2) return cli_refuse("no command given, see 'kna --help'");
    int code = run(argc, argv);
    cli_progress_end();
    cli_output_abandon();
    if (fflush(stdout) != 0 || ferror(stdout)) {
        const int why = errno ? errno : EIO;
        if (code == CLI_OK) code = cli_fail("standard output: %s", strerror(why));
    }
    return code;
}
