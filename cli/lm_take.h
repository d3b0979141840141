/*
 * lm_take.h - queries, keys and values of chosen layers of a model that reads the beginning of a text: for `kna dump`, which
 * writes them into files, and `kna bench heads` and `kna fairness`, which measure on them.
 */
#ifndef KNA_CLI_LM_TAKE_H
#define KNA_CLI_LM_TAKE_H

#include "lm_common.h"

typedef struct lm_take_request {
    const lm_input *input;
    const char *layers; /* a list, as in layers.h; NULL: all */
    int64_t context;    /* tokens of the text */
    int yarn;
    unsigned take;          /* LM_TAKE_..; 0: no layers are looked at */
    lm_attention attention; /* by which the model reads */
    int64_t window;         /* the tokens are texts of so many each, read by themselves; 0: one text */
    int with_hidden;        /* 1: also what the last feed-forward part is given */
} lm_take_request;

typedef struct lm_taken {
    lm_operands *operands; /* layers ascending */
    int count;
    lm_hidden hidden;
} lm_taken;

/* lm_take() - returns CLI_OK or an exit code, having printed why; free with lm_taken_free() in any case. */
int lm_take(lm_taken *taken, lm_desk *desk, const lm_take_request *request);

/* lm_take_tokens() - the same of `context` tokens instead of a file. */
int lm_take_tokens(lm_taken *taken, lm_desk *desk, const lm_take_request *request, const int32_t *tokens);
void lm_taken_free(lm_taken *taken);

#endif /* KNA_CLI_LM_TAKE_H */
