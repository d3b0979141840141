/*
 * backward_case.h - a random problem for kna_attend_backward(): a random_case, the gradient of its output, and rows for gradients with
 * numbers between them that nobody may touch.
 */
#ifndef BACKWARD_CASE_H
#define BACKWARD_CASE_H

#include "random_case.h"

#include "gradient_oracle.h"

typedef struct backward_case {
    random_case *c;
    kna_rows dout, out;
    double *dout_numbers; /* (h,m,dv) */
    kna_gradients gradients;
} backward_case;

/* The method is exact until the test says otherwise. Free dout_numbers. */
backward_case backward_begin(random_case *c);
int backward_run(const backward_case *b, kna_context *context, const kna_gradients *gradients);
/* Both calls, or a message. */
bool backward_both(const backward_case *b, kna_context *context);

/* Whether the gradients are the oracle's, up to its slack; a message where not. */
bool backward_matches(const backward_case *b, const gradient_oracle *g);

/* dq, dk and dv packed one after the other, for the caller to free; backward_numbers() of them. */
float *backward_copy(const kna_gradients *g, shape s);
int64_t backward_numbers(shape s);

/* Laws: the same bits for 1 to 7 threads; gradients of values add up to those of outputs; what is asked for does not depend on what else is. */
void backward_expect_same_bits(const backward_case *b);
void backward_expect_values_add_up(const backward_case *b);
void backward_expect_one_at_a_time(const backward_case *b);
void backward_expect_refused(const backward_case *b, int status, const char *words);

/* Gradients of the oracle against central differences of its loss, with `extra` as gradient_oracle_with() has it. */
void oracle_expect_differences(oracle *o, const double *dout, const double *extra, double tolerance);

#endif
