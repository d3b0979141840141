/*
 * bench_data.h - synthetic operands for `kna bench`: the same numbers for the same seed on every machine. Topics (bench_data.c), or such as
 * a model has that reads a text (bench_text.c).
 */
#ifndef KNA_CLI_BENCH_DATA_H
#define KNA_CLI_BENCH_DATA_H

#include "convert.h"
#include "kna.h"

typedef struct bench_shape {
    int64_t h, h_kv, m, n, d;
    int type; /* of keys and values */
    int data; /* position in bench_data_names */
} bench_shape;

enum { BENCH_TOPICS, BENCH_TEXT };
extern const char *const bench_data_names[];

/* One layer: its queries (always float32), keys and values. */
typedef struct bench_layer {
    float *q;
    converted k, v;
    kna_rows q_rows;
} bench_layer;

/* bench_layer_new() - fill a layer. Returns CLI_OK or an exit code, having printed why. */
int bench_layer_new(kna_context *context, bench_layer *layer, const bench_shape *shape, uint64_t seed, int64_t number);
void bench_layer_free(bench_layer *layer);

#endif /* KNA_CLI_BENCH_DATA_H */
