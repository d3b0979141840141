/*
 * choice.h - how the head of a row is chosen where it is not simply the nearest keys, and what is made of the rest: options of commands
 * that call the operator on given operands.
 */
#ifndef KNA_CLI_CHOICE_H
#define KNA_CLI_CHOICE_H

#include "cli.h"

/* --diverse, --pool, --mmr-lambda, --dpp-theta, --quota, --stratify, --landmarks, --tail */
typedef struct choice {
    int diverse; /* a kna_diverse */
    int64_t pool, landmarks;
    double mmr_lambda, dpp_theta, quota; /* 0: the library's default */
    int stratify, tail;                  /* tail: a kna_tail */
} choice;
extern const cli_option choice_options[];

/* Whether these need the groups of keys. */
int choice_wants_groups(const choice *c);

/* These, and the group of each of n keys (NULL: none), into the options of a call, which borrow `of`. */
void choice_fill(kna_attend_options *to, const choice *from, const int32_t *of, int64_t count);

/* The same for one of several methods: only what that method has. */
void choice_fill_for(kna_attend_options *to, int method, const choice *from, const int32_t *of, int64_t count);

/* Whether anything is asked for. */
int choice_is_any(const choice *c);

/* The labels of n keys, float32 whole numbers 0, 1, .., as ids: free(*of). *count: one more than the largest. CLI_OK or an exit code. */
int choice_read_labels(int32_t **of, int64_t *count, const char *path, int64_t n);

#endif
