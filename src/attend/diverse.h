/*
 * diverse.h - of a pool of near keys, k that are not all alike: greedy choices by maximal marginal relevance (Carbonell & Goldstein
 * 1998) and by a determinantal point process (Chen, Zhang & Zhou 2018).
 *
 * z~ are the pool's logits scaled to 0 .. 1. Equal gains go to the larger logit, then to the earlier key.
 */
#ifndef KNA_DIVERSE_H
#define KNA_DIVERSE_H

#include "../kernel/kernel.h"

typedef struct kna__pool {
    const kna__kernels *kernels;
    int64_t count, d;
    const float *logits; /* (count) */
    float *unit;         /* (count, d): keys of length 1, or of zeros */
    float *cosine;       /* room (count): with the key taken last */
    float *most;         /* room (count): the largest cosine with any taken */
    float *factor;       /* room (count), dpp: e^(2 theta z~) */
    float *inner;        /* room (count), dpp */
    float *basis;        /* room (count, basis_most), dpp: coordinates in a basis of what is taken */
    int64_t basis_most;  /* at least min(k, d) */
    double *gain;        /* room (count) */
    bool *taken;         /* out (count) */
} kna__pool;

/* Keys to length 1, in place; one whose square is 0 or infinite becomes 0. */
void kna__pool_normalise(const kna__pool *pool);

/* Takes k <= count of the pool, one by one: the largest lambda z~ - (1 - lambda) (largest cosine with one taken; at first 0). */
void kna__pool_take_mmr(const kna__pool *pool, int64_t k, double lambda);

/*
 * The same by the largest d_j^2: what j adds to the determinant of L = diag(e^theta z~) unit unit' diag(e^theta z~) over those taken.
 * Keys within a hundredth of the span of what is taken add nothing that float32 can tell; when only such are left, the rest go by
 * logit. Returns the log determinant over those taken before that: the sum of log d_j^2.
 */
double kna__pool_take_dpp(const kna__pool *pool, int64_t k, double theta);

#endif
