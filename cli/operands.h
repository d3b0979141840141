/*
 * operands.h - queries, keys and values on .npy files, and what attention means on them: shared by the commands that call the
 * operator.
 *
 * A message names the file, where the library names the operand.
 */
#ifndef KNA_CLI_OPERANDS_H
#define KNA_CLI_OPERANDS_H

#include "cli.h"
#include "convert.h"
#include "npy.h"

/* As asked for. */
typedef struct operand_request {
    const char *q, *k, *v, *mask, *slopes, *sinks;
    double scale, softcap;
    int causal;
    int64_t causal_shift, window;
    int kv_type; /* 0: as given; else a kna_type + 1 */
} operand_request;
extern const cli_option operand_file_options[];    /* --q, --k, --v */
extern const cli_option operand_meaning_options[]; /* --scale .. --kv-type */

/* CLI_GO_ON, or an exit code: one of --q, --k, --v is missing. */
int operands_require(const cli_usage *usage, const operand_request *request);

typedef struct operands {
    npy_array q, k, v, mask, slopes, sinks;
    converted k_as, v_as;
    kna_rows q_rows, k_rows, v_rows; /* keys and values as --kv-type says */
} operands;

/* Read and check all. CLI_OK or an exit code, having printed why. Free also after an error. */
int operands_read(operands *o, kna_context *context, const operand_request *request);
void operands_free(operands *o);

/* What attention means, into the options of a call; they borrow from the operands. */
void operands_fill(kna_attend_options *options, const operands *o, const operand_request *request);

/* An axis of an array is as long as one of another, named `name`. CLI_OK or CLI_REFUSED. */
int operands_check_equal(const npy_array *array, int axis, const char *name, const npy_array *other, int other_axis);

/* Report a failed call: as cli_status(), files named. */
int operands_explain(const kna_context *context, int status, const operand_request *request);

#endif
