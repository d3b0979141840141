/*
 * bench_run.h - one line of a bench: several ways of attention on the same operands, timed in turn.
 */
#ifndef KNA_CLI_BENCH_RUN_H
#define KNA_CLI_BENCH_RUN_H

#include "bench_data.h"
#include "cli.h"

enum { BENCH_NAIVE, BENCH_EXACT, BENCH_TOPK, BENCH_KNN, BENCH_CONTENDERS };
extern const char *const bench_names[BENCH_CONTENDERS + 1];

#define BENCH_ROUNDS_MAX 1001

typedef struct bench_plan {
    bench_shape shape;
    int causal;
    int64_t layers;  /* operands of so many layers are gone through in turn, as a model does for a token */
    int keeps_index; /* 1: topk and knn use an index built before, and each call first appends the last row to it;
                                      0: each call builds its index */
    int64_t rounds;
    int enabled[BENCH_CONTENDERS];
    cli_method method; /* its `method` is not used */
    double error;      /* topk, knn: k is the least of 16, 24, 32, 48, 64, .. with which the error is at most this; 0: method.k_near */
    double progress_from, progress_to;
} bench_plan;

/* Times are of one call, that is of one layer. Not measured or not known: NaN. */
typedef struct bench_result {
    double median_s, low_s, high_s; /* over the rounds; build included unless the index is kept */
    double build_s;                 /* of the index of one layer */
    int64_t k;                      /* topk, knn: nearest keys read */
    double error;                   /* mean over rows of ||out - exact|| / ||exact||; without exact attention, over audited ones */
    kna_report report;              /* of a call on the first layer; naive: size 0 */
} bench_result;

/* bench_measure() - returns CLI_OK or an exit code, having printed why. */
int bench_measure(kna_context *context, const bench_plan *plan, bench_result results[BENCH_CONTENDERS]);

/* bench_flops() - multiplications and additions of exact attention in one call; the exponentials are not counted. */
double bench_flops(const bench_plan *plan);

/* bench_kv_bytes() - keys and values of one layer. */
double bench_kv_bytes(const bench_plan *plan);

#endif /* KNA_CLI_BENCH_RUN_H */
