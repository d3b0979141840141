/*
 * convert.h - rows from one number type of libkna to another, for `kna attend --kv-type` and the benches.
 */
#ifndef KNA_CLI_CONVERT_H
#define KNA_CLI_CONVERT_H

#include "kna.h"

/* Converted rows and what they own. */
typedef struct converted {
    kna_rows rows;
    void *data;
    float *scales; /* KNA_I8 only */
} converted;

/*
 * convert_rows() - packed rows of any type as packed rows of another.
 *
 * In:      name     the file or operand, for messages
 * Returns: CLI_OK, or, having printed why, CLI_REFUSED (NaN, infinity, too large for the type, no such row) or CLI_FAILED (memory).
 * Rounds:  f16, bf16: to nearest, ties to even. i8: kna_quantize_i8(). q8_0: as ggml, scale = max|x| / 127 per 32 numbers.
 */
int convert_rows(kna_context *context, converted *to, const kna_rows *from, int type, const char *name);

void converted_free(converted *rows);

/* convert_load() - one packed row of any type as float32. `row` counts through the heads: head * rows->rows + row. */
void convert_load(float *to, const kna_rows *rows, int64_t row);

#endif /* KNA_CLI_CONVERT_H */
