/*
 * bench_print.h - what a bench has measured, and how it is shown.
 */
#ifndef KNA_CLI_BENCH_PRINT_H
#define KNA_CLI_BENCH_PRINT_H

#include "bench_run.h"

typedef struct bench_cell {
    bench_plan plan;
    bench_result results[BENCH_CONTENDERS];
} bench_cell;

typedef struct bench_run {
    const char *name;
    kna_context *context;
    int counts_bytes; /* 1: rates are bytes per second against copy_rate; 0: operations per second against fma_rate */
    double copy_rate; /* the best measured; 0: not measured */
    double fma_rate;
    int cell_count;
    bench_cell cells[CLI_LIST_MAX];
} bench_run;

/*
 * bench_growth() - a of the least squares fit of log time to b + a log n; NaN with fewer than two n. Where k is chosen by an error, this
 * is growth at an equal error.
 */
double bench_growth(const bench_run *run, int who);

/* bench_draw() - times against n into an SVG file. Returns CLI_OK or an exit code, having printed why. */
int bench_draw(const bench_run *run, const char *path);

/* Both print on standard output and return CLI_OK or CLI_FAILED. */
int bench_print_table(const bench_run *run);
int bench_print_json(const bench_run *run);

#endif /* KNA_CLI_BENCH_PRINT_H */
