/*
 * check.h - the kernel test: every level of every kernel, on equal inputs, against what kernel.h promises.
 *
 * A kernel is described once (struct check): make() draws operands, expect() works out in double what must come out and how far
 * off it may be, call() calls it. The same call is judged (check.c) and timed (check_bench.c). Operands live in slots of memory
 * between pages nobody may touch (check_memory.c); inputs are read-only during the call.
 */
#ifndef CHECK_H
#define CHECK_H

#include "test.h"

#include "../src/kernel/half.h"
#include "../src/kernel/kernel.h"

#define CHECK_U 0x1p-24    /* half the distance from 1 to the next f32 */
#define CHECK_ETA 0x1p-149 /* the smallest f32: what an underflowing product may lose, twice over */

/* What inputs look like. */
enum flavour {
    NORMAL,
    LOGNORMAL,    /* over ten decades */
    CANCELLING,   /* alternating signs: sums far smaller than their terms */
    DENORMAL,     /* operands and products below 2^-126 */
    ZEROS,        /* of both signs */
    LARGE,        /* about 2^57: a product of two is below 2^128 by the sum of 1024 */
    INFINITE,     /* -infinity here and there, where the contract allows it; else as NORMAL */
    NOT_A_NUMBER, /* one NaN, where the contract speaks of it; else as NORMAL */
    FLAVOURS
};

/* Where operands lie. LEFT: queries, weights, vectors; MORE: ids or the scales of queries. */
enum slot { OUT, LEFT, ROWS, SCALES, MORE, SLOTS };

typedef struct job job;

/* One kernel. Names as in kna__kernels. */
typedef struct check {
    const char *name;
    size_t entry;                      /* offset in kna__kernels */
    bool per_type;                     /* an entry for each row type */
    bool exact;                        /* every level gives the reference's bits, also where nothing is written */
    const char *dims;                  /* which of g, n, d mean something: "gnd", "nd", "n" */
    void (*make)(job *j);
    void (*expect)(job *j);
    void (*call)(job *j);
    void (*pieces)(job *j);            /* or NULL: the same result in smaller calls, bit for bit (not the reference) */
    void (*verify)(job *j);            /* or NULL: further properties of a result */
    double (*work)(const job *j);      /* of a call, in `unit` */
    const char *unit;                  /* "FLOP" or "B" */
    size_t bench[4][3];                /* sizes g, n, d to time; n = 0 ends */
} check;

/* One set of operands, and what must come out. */
struct job {
    const check *check;
    const kna__kernels *kernels;       /* the level called */
    int type, flavour;
    bool bench;
    size_t g, n, d;                    /* gemm: m, n, inner */

    void *out;                         /* out_rows rows of out_cols elements, ldo apart */
    size_t out_rows, out_cols, ldo, out_unit;
    float *left;
    size_t ld_left;
    kna__span rows;
    size_t row_count;                  /* rows that exist; n of them are read */
    int32_t *ids;
    float a;                           /* the scalar argument */
    bool accumulate;
    int32_t base;

    double returned;                   /* what the call returned, for those that return a number */
    double *numbers;                   /* row_count x d, decoded */
    bool is_judged;                    /* expect() filled want and bound */
    double *want, *bound;              /* out_rows x out_cols */
    double want_returned, bound_returned;
};

/* check_*.c - the kernels, in the order they are run; each list ends with a NULL name. */
extern const check checks_rows[], checks_dense[], checks_vector[], checks_int8[];

/* check_plain.c - what has no levels: conversions, types, packing, and top-k over every level's kernels. */
void check_plain(const char *only);

/* check_bench.c */
void check_bench(const check *c, int type);

/* check.c */
extern const kna__kernels *check_levels[KNA_CPU_COUNT]; /* those asked for, the reference first, NULL at the end */
bool check_is_inherited(const check *c, int type, const kna__kernels *level);

/* check_memory.c - place `bytes` in a slot: against the page before or after it, or `0..15` units into it, by chance. */
void *check_place(enum slot slot, size_t bytes, size_t unit, bool bench);
void check_place_out(job *j, size_t rows, size_t cols, size_t unit);
float *check_place_left(job *j, size_t rows, size_t cols);
void check_seal(void);                 /* inputs become read-only, until check_unseal() */
void check_unseal(void);
size_t check_touched(enum slot slot);  /* bytes that changed around the operand */
const char *check_where(const void *address, char text[80]);
void check_save_out(const job *j);     /* what OUT holds before a call */
void check_restore_out(const job *j);
size_t check_padding(const job *j);    /* elements that changed between the rows of OUT */

/* check_input.c - numbers. */
double check_f16(uint16_t h);          /* by exponent and fraction, not by the library */
float check_draw(int flavour, size_t parity);
void check_fill_left(job *j, size_t rows, size_t cols);
void check_make_rows(job *j, size_t count);  /* `count` rows of j->d numbers of j->type, with strides, scales and padding */
void check_make_ids(job *j);                 /* n of row_count rows, with repeats; the others become NaN */
void check_poke_nan(job *j, size_t left_rows, size_t left_cols);

#endif
