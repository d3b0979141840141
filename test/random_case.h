/*
 * random_case.h - random problems for kna_attend(): operands of every type and layout, masks, options, and the comparison with
 * the oracle.
 *
 * Invariant: operands lie in memory of exactly their size, and what lies between their rows is filled with ones (NaN in every
 * type that has one), so that reading it shows. A case owns its memory.
 */
#ifndef RANDOM_CASE_H
#define RANDOM_CASE_H

#include "test.h"

#include "oracle.h"

/* How many rounds of a random test: fewer where every access is watched, which takes several times as long. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#    define RANDOM_SHARE 4
#elif defined(__has_feature)
#    if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#        define RANDOM_SHARE 4
#    endif
#endif
#ifndef RANDOM_SHARE
#    define RANDOM_SHARE 1
#endif
static inline int rounds(int n)
{
    return n / RANDOM_SHARE;
}

/* How rows lie in memory. */
enum { LAYOUT_PACKED, LAYOUT_PADDED, LAYOUT_INTERLEAVED, LAYOUT_COUNT };

typedef struct shape {
    int64_t h, h_kv, m, n, d, dv;
} shape;

typedef struct random_case {
    shape shape;
    kna_rows q, k, v;
    kna_out_rows out;
    float *lse;
    kna_attend_options options;
    bool guarded; /* operands end at pages nobody may touch */
    void *held[64];
    int holds;
    char text[300];
} random_case;

/* A case of plain f32 operands, packed, numbers N(0,1). */
void case_begin(random_case *c, shape s);
void case_end(random_case *c);
void *case_hold(random_case *c, size_t bytes); /* zeroed, freed by case_end() */

/* Give an operand other numbers: a type, a layout, a standard deviation. */
void case_rows(random_case *c, kna_rows *rows, int type, int layout, double deviation);
void case_out(random_case *c, int layout);
void case_put(const kna_rows *rows, int64_t head, int64_t row, int64_t column, float x); /* f32, f16, bf16 */

/* Masks. Share of keys forbidden one by one; stripes of keys and whole rows are forbidden too where asked. */
void case_mask(random_case *c, int type, int64_t heads, double forbidden, bool stripes, bool whole_rows);
void case_forbid(const random_case *c, int64_t mask_head, int64_t query, int64_t key);
void case_put_mask(const random_case *c, int64_t mask_head, int64_t query, int64_t key, float x);
void case_per_head(random_case *c, const float **values, double low, double high); /* slopes, sinks */

/* Any type that has rows of d numbers; query types only; a shape whose oracle costs about `work` multiply-adds at most. */
int random_type(int64_t d);
int random_query_type(void);
shape random_shape(double work);
/* Everything at random: types, layouts, masks, options of meaning (not of method). */
void case_random(random_case *c, shape s);

/* The case in words, for messages. */
const char *case_text(random_case *c);

/* Every CPU level of this machine, threads as given. Made once, freed by contexts_free(). */
int contexts(kna_context *const **all);
kna_context *context_best(void);
void contexts_free(void);

int case_attend(random_case *c, kna_context *context, kna_report *report);
const float *case_out_row(const random_case *c, int64_t head, int64_t query);
/* Bits of all rows and lse, in one packed array of h m (dv + 1); free it. */
float *case_result(const random_case *c);

/* What a case should give, row by row (row = head * m + query), and how near. A bound of INFINITY: anything finite. */
typedef struct expected {
    int64_t rows, dv;
    double *out, *lse;             /* (h,m,dv), (h,m) */
    double *out_bound, *lse_bound; /* (h,m) */
} expected;

expected *expected_new(const oracle *o);
void expected_free(expected *e);
/* Bounds of a row whose logits are given: tolerance, plus what soft cap, mask and slopes cost in f32, times max|v|. */
void expected_bounds(expected *e, const oracle *o, int64_t head, int64_t query, const double *logits, double tolerance);
/* Exact attention. */
expected *expected_exact(const oracle *o, double tolerance);
/* True if the case's results are as expected; else false, and a message. */
bool case_matches(random_case *c, const expected *e);

#endif
