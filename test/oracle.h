/*
 * oracle.h - attention in double precision, written from the words of kna.h alone: what the library is compared with.
 *
 * Invariant: nothing of the library's arithmetic is used; numbers are read from the rows as their types are documented. It is
 * slow and has one way to do each thing. Logits of keys a query does not see are -INFINITY.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include "kna.h"

#include <stdbool.h>

typedef struct oracle {
    int64_t h, h_kv, g, m, n, d, dv;
    kna_attend_options options; /* borrows mask, slopes and sinks */
    double scale;
    double *q, *k, *v;  /* (h,m,d), (h_kv,n,d), (h_kv,n,dv), exactly what the rows say */
    double *v_most;     /* (h_kv) max |v| over finite values */
    const bool *absent; /* (n) rows that take no part, or NULL; set by the test, borrowed */
} oracle;

/* The problem of one kna_attend() call. Free with oracle_free(). */
oracle *oracle_new(const kna_rows *q, const kna_rows *k, const kna_rows *v, const kna_attend_options *options);
void oracle_free(oracle *o);

/* One number of a row. */
double oracle_number(const kna_rows *rows, int64_t head, int64_t row, int64_t column);
double oracle_f16(uint16_t bits);
uint16_t oracle_to_f16(float x); /* nearest even; clamped to the finite range */

/* Position of a query; whether it sees a key; the mask's number (0 without a mask). */
int64_t oracle_position(const oracle *o, int64_t query);
bool oracle_sees(const oracle *o, int64_t head, int64_t query, int64_t key);
double oracle_mask(const oracle *o, int64_t head, int64_t query, int64_t key);
/* From scale * <q,k> to the logit: soft cap, then mask and slopes; whether the key is seen is not asked. */
double oracle_finish(const oracle *o, int64_t head, int64_t query, int64_t key, double product);

/* Logits of one row, n of them. */
void oracle_logits(const oracle *o, int64_t head, int64_t query, double *logits);
/* Softmax of the logits over the values of the head, sink included: out (dv); returns the lse. */
double oracle_mix(const oracle *o, int64_t head, const double *logits, double *out);

/* All logits but those of the k largest become -INFINITY; ties keep the lower index. Returns the gap between the k-th and the
 * next (INFINITY where there is no next). */
double oracle_keep_largest(double *logits, int64_t n, int64_t k);

/*
 * How far a logit near the row's largest may be off in f32 apart from the product itself: soft cap, mask, slopes (see the
 * numerics contract in kernel.h). And the same for the product: (d + 8) u sum |q_c k_c|, the largest over the keys seen.
 */
double oracle_finish_slack(const oracle *o, int64_t head, int64_t query, const double *logits);
double oracle_product_slack(const oracle *o, int64_t head, int64_t query, const double *logits);

#endif
