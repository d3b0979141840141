/*
 * bench_text.h - operands like those of a model that reads a text: made by a recipe, of any length, the same for the same seed on every
 * machine. bench_text.c says what they are made of and what it was fitted to.
 */
#ifndef KNA_CLI_BENCH_TEXT_H
#define KNA_CLI_BENCH_TEXT_H

#include "bench_data.h"

/* q (h,m,d): the last m queries; k, v (h_kv,n,d). CLI_OK or an exit code, having printed why. */
int bench_text_fill(float *q, float *k, float *v, const bench_shape *shape, uint64_t seed, int64_t layer);

#endif /* KNA_CLI_BENCH_TEXT_H */
