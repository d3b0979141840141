/*
 * rivals.h - the other ways to make attention cheaper, as operators of the same signature, to compare with: each as its paper has
 * it, where that can be done without training; and what they cannot take of a problem's options.
 */
#ifndef KNA_RIVALS_H
#define KNA_RIVALS_H

#include "problem.h"

/* KNA_EINVAL, with the option's name, where a rival of the name given cannot follow what is asked for. */
int kna__rival_check(const kna__problem *problem);

/* At least one key. Each counts in the report what it reads of single keys, if it does: without that, none are, and all touched. */
typedef int (*kna__rival)(const kna__problem *problem, kna_report *report);
int kna__attend_window(const kna__problem *, kna_report *);    /* first keys and recent ones (StreamingLLM, Xiao et al. 2023) */
int kna__attend_linformer(const kna__problem *, kna_report *); /* fewer keys and values by a projection (Wang et al. 2020) */
int kna__attend_nystrom(const kna__problem *, kna_report *);   /* landmarks (Xiong et al. 2021) */
int kna__attend_performer(const kna__problem *, kna_report *); /* random features of softmax (Choromanski et al. 2021) */
int kna__attend_lsh(const kna__problem *, kna_report *);       /* keys that share hashes with the query (MagicPIG, Chen et al. 2024) */

/* rival_linformer.c - how many rows keys are projected to; rows (n, dim) of one KV head to as many. x: room for n * dim. counts (rank): of
 * rows that one stands for, where there is no projection `by`. */
int64_t kna__linformer_rank(const kna__problem *problem);
void kna__linformer_project(const kna__problem *problem, const kna_rows *rows, int64_t head, const float *by, float *x, float *to,
                            float *counts);

/* rival_nystrom.c - landmarks; softmax of each of `rows` rows of `count` numbers; the first guess at the inverse of a (n, n), and a step to a
 * better one, with room for three. */
int64_t kna__nystrom_rank(const kna__problem *problem);
void kna__nystrom_soften(const kna__problem *problem, float *x, int64_t rows, int64_t count);
void kna__nystrom_guess(const double *a, double *z, int64_t n);
void kna__nystrom_improve(const double *a, const double *z, double *better, double *room, int64_t n);
enum { KNA_NYSTROM_STEPS = 6 };

/* rival_performer.c - W: turned (d, rank), from `rows` (rank, d); W x - |x|^2 / 2 of n rows x (n, d), to out (n, rank). */
int64_t kna__performer_rank(const kna__problem *problem);
void kna__performer_draw(const kna__problem *problem, double *rows, float *turned);
void kna__performer_exponents(const kna__problem *problem, const float *turned, const float *x, int64_t n, float *out);

/* A normal number of a stream. */
double kna__rival_normal(const kna__problem *problem, uint64_t stream, uint64_t column);

/* Rows of a KV head as f32, (rows, dim). */
void kna__rival_widen(const kna__problem *problem, const kna_rows *rows, int64_t head, int64_t first, int64_t count, float *out);

/* Means of `parts` runs of rows as equal as can be, (parts, dim); counts (parts), NULL: not wanted. x (rows, dim). */
void kna__rival_means(const kna__kernels *kernels, const float *x, int64_t rows, int64_t dim, int64_t parts, float *means,
                      float *counts);

#endif
