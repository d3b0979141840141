/*
 * lm_common.h - what the commands that run a model share: their options, opening and closing, reading text, figures in words.
 *
 * All functions that return an exit code have printed why when it is not CLI_OK.
 */
#ifndef KNA_CLI_LM_COMMON_H
#define KNA_CLI_LM_COMMON_H

#include "cli.h"
#include "lm.h"
#include "lm_run.h"

/* ------------------------------------------------------------------ options */

/* -m/--model, -f/--file, --threads, --verbose */
typedef struct lm_input {
    const char *model;
    const char *file;
    int64_t threads;
    int verbose;
} lm_input;
extern const cli_option lm_input_options[];

/* --method and its settings, into an lm_attention */
typedef struct lm_choice {
    int method; /* an lm_method */
    int64_t flash, k_near, near_sinks, near_window, exact_below, full_every;
    double eps, delta, audit;
} lm_choice;
#define LM_CHOICE { LM_EXACT, 1, -1, -1, -1, -1, -1, -1.0, -1.0, -1.0 }
extern const cli_option lm_choice_options[];       /* with --method and --fa first, then the settings */
extern const cli_option *const lm_choice_settings; /* the settings alone */

lm_attention lm_choice_attention(const lm_choice *choice);
lm_attention lm_attention_of(int method, int flash, const lm_choice *settings);

/* lm_attention_name() - "llama.cpp -fa 0", "llama.cpp -fa 1", "exact", "topk", "knn" */
const char *lm_attention_name(const lm_attention *attention);

/* ------------------------------------------------------------------ opening */

/* The model of a command and its sessions, in the order opened. */
typedef struct lm_desk {
    lm_model *model;
    lm_group group; /* progress goes to the progress line */
    int yarn;       /* of sessions opened from now on: as in lm_session_options */
} lm_desk;

int lm_desk_open(lm_desk *desk, const lm_input *input);
int lm_desk_session(lm_desk *desk, int positions, int logits, int threads, const lm_attention *attention);
void lm_desk_clear(lm_desk *desk); /* close the sessions, keep the model */
void lm_desk_close(lm_desk *desk);

/* lm_warn_positions() - a context of so many positions is more than the model was trained with; say what is done about it. */
void lm_warn_positions(const lm_model *model, int positions, int yarn);

/* lm_failed() - print an lm_error; CLI_OK for LM_OK. */
int lm_failed(int status, const lm_error *error);

/* ------------------------------------------------------------------ text */

/* lm_read_text() - a whole text file ("-": standard input); one newline at its very end is dropped, as llama.cpp's programs do.
 * free(*text). */
int lm_read_text(char **text, size_t *bytes, const char *path);

/* lm_read_tokens() - the same as tokens. */
int lm_read_tokens(lm_tokens *tokens, const lm_model *model, const char *path);

/* lm_clean() - a copy that is valid UTF-8: what is not becomes U+FFFD. NULL: out of memory. Free it. */
char *lm_clean(const char *bytes, size_t count);

/* lm_text_of() - tokens as text, cleaned. NULL: out of memory. Free it. */
char *lm_text_of(const lm_model *model, const int32_t *tokens, int count);

/* ------------------------------------------------------------------ figures */

/* lm_machine_name() - the processor, as the system calls it. */
void lm_machine_name(char *name, size_t size);

double lm_per_second(int64_t count, double seconds); /* 0 of no time */
double lm_prefill_rate(const lm_timing *timing);
double lm_decode_rate(const lm_timing *timing);

/* lm_print_usage() - one line: keys read in full, bytes, tail mass, and the audit if there was one. Nothing if rows is 0. */
void lm_print_usage(FILE *to, const lm_usage *usage);

void lm_json_timing(cJSON *object, const lm_timing *timing);
void lm_json_usage(cJSON *object, const lm_usage *usage);      /* an object "attention", null if nothing went through the plugin */
void lm_json_comparison(cJSON *object, const lm_score *score); /* kl_divergence, kl_divergence_error, top_token_agreement */

#endif /* KNA_CLI_LM_COMMON_H */
