/*
 * rivals.h - the other ways to make attention cheaper, as operators of the same signature, to compare with: each as its paper has
 * it, where that can be done without training; and what they cannot take of a problem's options.
 */
#ifndef KNA_RIVALS_H
#define KNA_RIVALS_H

#include "problem.h"

/* KNA_EINVAL, with the option's name, where a rival of the name given cannot follow what is asked for. */
int kna__rival_check(const kna__problem *problem);

int kna__attend_window(const kna__problem *problem);    /* first keys and recent ones (StreamingLLM, Xiao et al. 2023) */
int kna__attend_linformer(const kna__problem *problem); /* fewer keys and values by a projection (Wang et al. 2020) */
int kna__attend_nystrom(const kna__problem *problem);   /* landmarks (Xiong et al. 2021) */
int kna__attend_performer(const kna__problem *problem); /* random features of softmax (Choromanski et al. 2021) */

/* Rows of a KV head as f32, (rows, dim). */
void kna__rival_widen(const kna__problem *problem, const kna_rows *rows, int64_t head, int64_t first, int64_t count, float *out);

/* Means of `parts` runs of rows as equal as can be, (parts, dim); counts (parts), NULL: not wanted. x (rows, dim). */
void kna__rival_means(const kna__kernels *kernels, const float *x, int64_t rows, int64_t dim, int64_t parts, float *means,
                      float *counts);

#endif
