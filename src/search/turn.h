/* turn.h - rows as queries see them: the second moment S of a sample of queries, S = L L'; the row x becomes x L. */
#ifndef KNA_TURN_H
#define KNA_TURN_H

#include "../kernel/context.h"

/* L (dim, dim), lower triangular, so that |x L|^2 is dim / |q|^2 times the mean square of <q,x>. queries (m, dim), finite; m 0: no turn. */
int kna__turn_make(kna_context *context, float *turn, const float *queries, uint64_t m, uint64_t dim);
/* y L^-1 in its place. */
void kna__turn_back(float *y, const float *turn, uint64_t dim);

#endif
