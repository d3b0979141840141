/*
 * paper.h - `kna bench paper`: what "kNN Attention Demystified" (Haris 2024, arXiv 2411.04013) measures, measured again: how near,
 * with which gradients, and whether one can learn with them. Each experiment is a table, written as CSV and drawn as SVG.
 */
#ifndef KNA_CLI_PAPER_H
#define KNA_CLI_PAPER_H

#include "heads.h"

/* What an experiment is given. */
typedef struct paper_setup {
    kna_context *context;
    int64_t n, heads, dim, steps;
    int64_t max_n;   /* of times and memory */
    double budget_s; /* a call that would take longer is not made */
    uint64_t seed;
    int64_t late;          /* queries of each layer of a dump, its last ones */
    const heads_set *dump; /* NULL: none was given */
    int data;              /* as bench_shape has it */
    cli_list k;            /* of long */
} paper_setup;

/* A table: rows of numbers under named columns, with a word or two before them. */
enum { PAPER_COLUMNS = 8, PAPER_NAME = 48 };
typedef struct paper_row {
    char series[PAPER_NAME]; /* one line of the picture */
    double values[PAPER_COLUMNS]; /* NaN: not measured, `note` says why */
    const char *note;             /* NULL: none */
    int is_hidden;                /* not in the picture */
} paper_row;
typedef struct paper_table {
    const char *name, *title;
    const char *columns[PAPER_COLUMNS + 1]; /* of values; ends with NULL */
    int x, y;                               /* those of the picture; x < 0: there is none */
    int x_is_linear;
    paper_row *rows;
    int count, room;
} paper_table;

/* The next row, of a series. NULL: no memory, and that was said. */
paper_row *paper_add(paper_table *table, const char *series);
void paper_free(paper_table *table);

/* paper_power() - the power of column x that fits column y of a series best, by least squares of logarithms; *at_one: the fit at x = 1. */
double paper_power(const paper_table *table, const char *series, int x, int y, double *at_one);

/* paper_write() - NAME.csv and NAME.svg into the folder, and the table in words. CLI_OK or an exit code, having printed why. */
int paper_write(const paper_table *table, const char *folder);

/*
 * The experiments: paper_errors.c, paper_heads.c, paper_long.c, paper_gradients.c, paper_times.c, paper_automatic.c, paper_descent.c. CLI_OK or an exit
 * code, having printed why.
 */
int paper_errors(paper_table *table, const paper_setup *setup);
int paper_heads(paper_table *table, const paper_setup *setup); /* nothing without a dump */
int paper_long(paper_table *table, const paper_setup *setup);  /* only with one */
int paper_gradients(paper_table *table, const paper_setup *setup);
int paper_times(paper_table *table, const paper_setup *setup);
int paper_automatic(paper_table *table, const paper_setup *setup);
int paper_descent(paper_table *table, const paper_setup *setup);
/* Of a table of times: what their calls held; the powers that fit them and where they cross. */
int paper_memory(paper_table *memory, const paper_table *times);
int paper_growth(paper_table *growth, const paper_table *times);

/* One head of operands and what goes with their gradients; all (n, d), lse (n). */
typedef struct paper_head {
    int64_t n, d;
    float *q, *k, *v, *out, *dout, *dq, *dk, *dv, *lse;
} paper_head;
int paper_head_new(paper_head *head, int64_t n, int64_t d);
void paper_head_free(paper_head *head);
void paper_head_fill(float *x, const paper_head *head, uint64_t seed, uint64_t stream, double deviation); /* normal */
/* Forward and backward; backward's status is the library's, so that a caller may find that there are no gradients. */
int paper_head_attend(paper_head *head, const paper_setup *setup, const kna_attend_options *options);
int paper_head_differentiate(paper_head *head, const paper_setup *setup, const kna_attend_options *options);

/* Numbers by (seed, stream, position): uniform in (0,1), normal. */
double paper_uniform(uint64_t seed, uint64_t stream, uint64_t position);
double paper_normal(uint64_t seed, uint64_t stream, uint64_t position);

/* ||x - y|| / ||y|| */
double paper_distance(const float *x, const float *y, int64_t n);

#endif /* KNA_CLI_PAPER_H */
