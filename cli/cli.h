/*
 * cli.h - what every command of `kna` is built from.
 *
 * A command is a function run(argc, argv), argv[0] being the word it was called by ("attend", "decode"). It parses its options
 * with cli_parse(), works, prints its answer to standard output and returns an exit code:
 *
 *   CLI_OK       0   done
 *   CLI_FAILED   1   something failed at run time: a file cannot be read or written, memory ran out
 *   CLI_REFUSED  2   the command line or an input is not acceptable; nothing was done
 *
 * Messages go to standard error, one line each, "kna: what is wrong: found, and the limit". Standard output carries answers only.
 * A command never calls exit(): files under construction (cli_output) are abandoned by main when the command returns not 0.
 *
 *   1. Commands   2. Options   3. Common options   4. Messages   5. Progress   6. Output files   7. JSON   8. Time
 */
#ifndef KNA_CLI_H
#define KNA_CLI_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cjson/cJSON.h>

#include "kna.h"

#define CLI_OK      0
#define CLI_FAILED  1
#define CLI_REFUSED 2
#define CLI_GO_ON   (-1) /* no exit code: cli_parse() found nothing that ends the command */

#if defined(__GNUC__)
#    define CLI_PRINTF(format_at, first_at) __attribute__((format(printf, format_at, first_at)))
#else
#    define CLI_PRINTF(format_at, first_at)
#endif

/* ------------------------------------------------------------------ 1. Commands */

/* A row of a command table; the table ends with name NULL. The summary is one line without a full stop. */
typedef struct cli_command {
    const char *name;
    const char *summary;
    int (*run)(int argc, char **argv);
} cli_command;

int kna_cmd_attend(int argc, char **argv);
int kna_cmd_grad(int argc, char **argv);
int kna_cmd_fairness(int argc, char **argv);
int kna_cmd_store(int argc, char **argv); /* hands each word to store_*.c */
int kna_cmd_bench(int argc, char **argv); /* decode, prefill, attend; hands `heads`, `paper` and `model` to others */
int kna_cmd_bench_heads(int argc, char **argv);
int kna_cmd_bench_paper(int argc, char **argv);

/* cli/lm_*.c, in builds with llama.cpp (KNA_HAVE_LLAMA). Without it main says so and exits with CLI_REFUSED. */
int kna_cmd_generate(int argc, char **argv);
int kna_cmd_ppl(int argc, char **argv);
int kna_cmd_dump(int argc, char **argv);
int kna_cmd_demo(int argc, char **argv);
int kna_cmd_eval(int argc, char **argv);
int kna_cmd_bench_model(int argc, char **argv);

/* ------------------------------------------------------------------ 2. Options */

typedef enum cli_kind {
    CLI_FLAG,   /* int: becomes 1; takes no value */
    CLI_INT,    /* int64_t in low..high */
    CLI_REAL,   /* double in low..high, finite */
    CLI_TEXT,   /* const char *, not empty, borrowed from argv */
    CLI_CHOICE, /* int: position in `choices` */
    CLI_SEED,   /* uint64_t, decimal or 0x... */
    CLI_LIST,   /* cli_list: 1..CLI_LIST_MAX integers in low..high, separated by commas */
    CLI_TEXTS   /* cli_texts, not empty, borrowed from argv: an option that may be given several times */
} cli_kind;

#define CLI_LIST_MAX 32
typedef struct cli_list {
    int count;
    int64_t values[CLI_LIST_MAX];
} cli_list;

#define CLI_TEXTS_MAX 16
typedef struct cli_texts {
    int count;
    const char *values[CLI_TEXTS_MAX];
} cli_texts;

/* One option of a table; the table ends with name NULL. Values already in place before parsing are the defaults. */
typedef struct cli_option {
    const char *name; /* "k-near" for --k-near */
    char letter;      /* 'k' for -k as well; 0: none */
    cli_kind kind;
    size_t offset;              /* of the value in the group's struct, offsetof() */
    double low, high;           /* limits, both allowed; integers must be within +-2^53 */
    const char *const *choices; /* CLI_CHOICE: ends with NULL */
    const char *argument;       /* how the value is called in the help text: "N", "FILE" */
    const char *help;           /* one line, default included */
} cli_option;

/* A titled table and the struct it fills; title NULL: it goes on with the one before. A list of groups ends with options NULL. */
typedef struct cli_group {
    const char *title;
    const cli_option *options;
    void *values;
} cli_group;

/* What --help prints besides the options. */
typedef struct cli_usage {
    const char *name;     /* "attend", "bench decode" */
    const char *synopsis; /* "--q q.npy --k k.npy ..." */
    const char *text;     /* paragraphs, wrapped by hand at 80 columns, ending in a newline; NULL: none */
} cli_usage;

/*
 * cli_parse() - parse argv by the groups; every command has --help besides.
 *
 * A value out of range, an unknown option or a missing value prints a message naming the option, the value and what is permitted.
 * Returns: CLI_GO_ON, or the exit code to return at once (CLI_OK after --help, CLI_REFUSED).
 * Out:     *rest  position in argv of the first operand. NULL: operands are refused. Options and operands may be mixed.
 */
int cli_parse(const cli_usage *usage, const cli_group *groups, int argc, char **argv, int *rest);

/* cli_require() - CLI_GO_ON if the text was given, else says that option --name is missing and returns CLI_REFUSED. */
int cli_require(const cli_usage *usage, const char *name, const char *value);

/* ------------------------------------------------------------------ 3. Common options */

/* --threads N, --cpu LEVEL */
typedef struct cli_machine {
    int64_t threads; /* 0: all processors */
    int cpu;         /* a kna_cpu */
} cli_machine;
#define CLI_MACHINE     \
    {                   \
        0, KNA_CPU_BEST \
    }
extern const cli_option cli_machine_options[];

/* cli_context() - a context for these. Returns CLI_OK or an exit code, having printed why. */
int cli_context(kna_context **context, const cli_machine *machine);

/* --method, --k-near, --near-sinks, --near-window, --eps, --delta, --samples, --groups, --certificate, --bounds, --gap, --rank, --hash-bits, --hash-tables, --audit, --seed */
typedef struct cli_method {
    int method; /* a kna_method */
    int64_t k_near;
    int64_t near_sinks;  /* here 0 means none, unlike in kna.h */
    int64_t near_window; /* here 0 means none, unlike in kna.h */
    double eps, delta;
    double audit;
    uint64_t seed;
    int64_t samples, groups; /* 0: the library's default */
    int certificate;         /* a kna_certificate */
    int bounds;              /* a kna_bounds */
    double gap;
    int64_t rank;            /* 0: the library's default */
    int64_t hash_bits, hash_tables; /* likewise */
} cli_method;
#define CLI_METHOD                              \
    {                                           \
        KNA_EXACT, 384, 4, 64, 0.0, 0.0, 0.0, 0, 0, 0, KNA_CERTIFICATE_ASYMPTOTIC, KNA_BOUNDS_HEAD, 0.0, 0, 0, 0 \
    }
extern const cli_option cli_method_options[];

/* cli_method_names - all of kna_method_name(), then NULL: for tables of a command's own, such as a --compare. */
extern const char *const cli_method_names[KNA_METHOD_COUNT + 1];

/* cli_certificate_names - of a kna_certificate, then NULL. */
extern const char *const cli_certificate_names[KNA_CERTIFICATE_COUNT + 1];

/* cli_method_fill() - write these into the options of a call; the other fields stay as they are. */
void cli_method_fill(kna_attend_options *to, const cli_method *from);

/* ------------------------------------------------------------------ 4. Messages */

/* Print "kna: ..." on standard error (a newline is added, a progress line is wiped first) and return the exit code. */
int cli_fail(const char *format, ...) CLI_PRINTF(1, 2);   /* CLI_FAILED */
int cli_refuse(const char *format, ...) CLI_PRINTF(1, 2); /* CLI_REFUSED */

/* cli_warn() - "kna: warning: ..." on standard error. */
void cli_warn(const char *format, ...) CLI_PRINTF(1, 2);

/* cli_status() - report a failed call of the library: its message, or the status's sentence. KNA_ENOMEM and KNA_ESTALE are
 * CLI_FAILED, all others CLI_REFUSED. `context` may be NULL. */
int cli_status(const kna_context *context, int status);

/* ------------------------------------------------------------------ 5. Progress */

/*
 * One line on standard error, drawn by a thread of its own from one second after the start on, and wiped at the end. Nothing at
 * all if standard error is no terminal. One at a time; starting a second ends the first. Without a known share the elapsed time
 * is shown.
 */
void cli_progress_start(const char *label); /* label: borrowed until the end */
void cli_progress_share(double share);      /* 0..1; negative: unknown. From any thread, cheap */
void cli_progress_end(void);

/* ------------------------------------------------------------------ 6. Output files */

/*
 * A file that appears under its name only when complete: it is written beside its target and renamed by cli_output_commit().
 * Devices and pipes (also "-", standard output) are written directly. All outputs of a command appear together or not at all.
 * Both print what is wrong. Files not committed are removed when the command ends, also by SIGINT, SIGTERM and SIGHUP.
 */
FILE *cli_output_open(const char *path); /* NULL after an error. Do not fclose() it */
int cli_output_finish(void);             /* the last one opened is complete: flush, check, close. CLI_OK or CLI_FAILED */
int cli_output_commit(void);             /* flush, check, rename all: CLI_OK or CLI_FAILED */

/* cli_output_folder() - make a folder for outputs unless it is there. One that was made goes again if nothing is committed. One per
 * command. CLI_OK or CLI_FAILED; path is borrowed until commit or abandon. */
int cli_output_folder(const char *path);

/* cli_output_abandon() - remove all that are not committed. main calls it after every command. */
void cli_output_abandon(void);

/* cli_output_check() - can path be created? For long jobs, before they start. CLI_OK or CLI_FAILED; leaves nothing behind. */
int cli_output_check(const char *path);

/* ------------------------------------------------------------------ 7. JSON */

/*
 * cJSON with two habits: numbers that are not finite become null, and running out of memory is noticed: any NULL on the way makes
 * cli_json_print() fail, so that no field is ever silently missing.
 */
cJSON *cli_json_object(cJSON *parent, const char *name); /* a new object; parent NULL: a root; name NULL: append to an array */
cJSON *cli_json_array(cJSON *parent, const char *name);
void cli_json_real(cJSON *object, const char *name, double value);
void cli_json_int(cJSON *object, const char *name, int64_t value);
void cli_json_text(cJSON *object, const char *name, const char *value); /* NULL: null */
void cli_json_raw(cJSON *object, const char *name, const char *json);   /* what is JSON already */
void cli_json_bool(cJSON *object, const char *name, int value);

/* cli_json_report() - the fields of a kna_report, as `kna attend --report` writes them. */
void cli_json_report(cJSON *object, const kna_report *report);

/* cli_json_line() - write root without a break, with a final newline, then delete it. Returns as cli_json_print(). */
int cli_json_line(FILE *to, cJSON *root);

/* cli_json_print() - write with a final newline, then delete root. Returns CLI_OK or CLI_FAILED, having printed why. */
int cli_json_print(FILE *to, cJSON *root);

/* ------------------------------------------------------------------ 8. Time */

double cli_now_s(void);                       /* monotonic */
double cli_median(double *values, int count); /* sorts values in place; of an even count the mean of the middle two */

#endif /* KNA_CLI_H */
