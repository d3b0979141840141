/*
 * paper.h - `kna bench paper`: what "kNN Attention Demystified" (Haris 2024, arXiv 2411.04013) measures, measured again: how near,
 * with which gradients, and whether one can learn with them. Each experiment is a table, written as CSV and drawn as SVG.
 */
#ifndef KNA_CLI_PAPER_H
#define KNA_CLI_PAPER_H

#include "cli.h"

/* What an experiment is given. */
typedef struct paper_setup {
    kna_context *context;
    int64_t n, heads, dim, steps;
    uint64_t seed;
} paper_setup;

/* A table: rows of numbers under named columns, with a word or two before them. */
enum { PAPER_COLUMNS = 8, PAPER_NAME = 48 };
typedef struct paper_row {
    char series[PAPER_NAME]; /* one line of the picture */
    double values[PAPER_COLUMNS];
} paper_row;
typedef struct paper_table {
    const char *name, *title;
    const char *columns[PAPER_COLUMNS + 1]; /* of values; ends with NULL */
    int x, y;                               /* those of the picture */
    int x_is_linear;
    paper_row *rows;
    int count, room;
} paper_table;

/* The next row, of a series. NULL: no memory, and that was said. */
paper_row *paper_add(paper_table *table, const char *series);
void paper_free(paper_table *table);

/* paper_write() - NAME.csv and NAME.svg into the folder, and the table in words. CLI_OK or an exit code, having printed why. */
int paper_write(const paper_table *table, const char *folder);

/* The experiments. CLI_OK or an exit code, having printed why. */
int paper_errors(paper_table *table, const paper_setup *setup);
int paper_gradients(paper_table *table, const paper_setup *setup);
int paper_times(paper_table *table, const paper_setup *setup);
int paper_descent(paper_table *table, const paper_setup *setup);

/* Numbers by (seed, stream, position): uniform in (0,1), normal. */
double paper_uniform(uint64_t seed, uint64_t stream, uint64_t position);
double paper_normal(uint64_t seed, uint64_t stream, uint64_t position);

/* ||x - y|| / ||y|| */
double paper_distance(const float *x, const float *y, int64_t n);

#endif /* KNA_CLI_PAPER_H */
