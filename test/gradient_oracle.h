/*
 * gradient_oracle.h - gradients of attention in double precision, by the definition: every pair by itself. test/prop_backward.c
 * holds it to central differences of the oracle's attention, and the library to it.
 */
#ifndef GRADIENT_ORACLE_H
#define GRADIENT_ORACLE_H

#include "oracle.h"

/* An empty one; filled by others. */
typedef struct gradient_oracle gradient_oracle;
gradient_oracle *gradient_oracle_empty(const oracle *o);

/* Gradients of sum <dout, out>, and how far f32 may be from them, each in the layout of what it is a gradient of, packed. */
struct gradient_oracle {
    double *dq, *dk, *dv, *dsinks;
    double *dq_slack, *dk_slack, *dv_slack, *dsinks_slack;
};

/* dout (h,m,dv). Free with gradient_oracle_free(). */
gradient_oracle *gradient_oracle_new(const oracle *o, const double *dout);
/* The same with numbers (h,m,n) added to the logits: the logarithm of what a key stands for, -INFINITY where it is left out. */
gradient_oracle *gradient_oracle_with(const oracle *o, const double *dout, const double *extra);
void gradient_oracle_free(gradient_oracle *g);

/* sum <dout, out> of the oracle's exact attention. */
double gradient_oracle_loss(const oracle *o, const double *dout);
double gradient_oracle_loss_with(const oracle *o, const double *dout, const double *extra);

#endif
