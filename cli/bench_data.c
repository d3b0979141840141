/*
 * bench_data.c - keys in runs of 64 that share a topic, and queries that ask for one: a few keys then carry much of the softmax and
 * the rest is noise, which is the case kNN attention is made for. Speeds hardly depend on this; errors do, so errors shown by
 * `kna bench` say that a method works and how methods compare, not what it costs a real model.
 */
#include "bench_data.h"

#include <stdlib.h>
#include <string.h>

#include "bench_text.h"
#include "cli.h"
#include "random.h"

const char *const bench_data_names[] = { "topics", "text", NULL };

#define TOPIC_KEYS 64

enum { QUERY, KEY, VALUE, KEY_TOPIC, VALUE_TOPIC, CHOICE };

static uint64_t key_for(uint64_t seed, int64_t layer, int stream)
{
    return cli_mix(seed + CLI_GOLDEN * (uint64_t)(8 * layer + stream + 1));
}

/* Near enough to a standard normal: the sum of eight bytes, centred. */
static float normal(uint64_t key, uint64_t counter)
{
    const uint64_t bits = cli_mix(key + CLI_GOLDEN * counter);
    int sum = 0;
    for (int shift = 0; shift < 64; shift += 8) sum += (int)(bits >> shift & 255);
    return ((float)sum - 1020.0f) / 209.02f;
}

typedef struct maker {
    const bench_shape *shape;
    uint64_t seed;
    int64_t layer;
} maker;

/* Row x (heads counted through) of keys or values: 0.6 of its topic and 0.8 noise, so that the variance is 1. */
static void fill_row(float *to, const maker *m, int stream, int topic_stream, int64_t head, int64_t row)
{
    const int64_t d = m->shape->d;
    const uint64_t noise = key_for(m->seed, m->layer, stream);
    const uint64_t topic = key_for(m->seed, m->layer, topic_stream);
    const int64_t at = (head * m->shape->n + row) * d;
    const int64_t topic_at = (head * m->shape->n + row / TOPIC_KEYS) * d;
    for (int64_t i = 0; i < d; i++)
        to[i] = 0.8f * normal(noise, (uint64_t)(at + i)) + 0.6f * normal(topic, (uint64_t)(topic_at + i));
}

static int fill(kna_context *context, converted *to, const maker *m, int stream, int topic_stream)
{
    const bench_shape *s = m->shape;
    float *x = malloc((size_t)(s->h_kv * s->n) * (size_t)s->d * sizeof *x);
    if (!x) return cli_fail("out of memory: %lld keys", (long long)s->n);
    for (int64_t head = 0; head < s->h_kv; head++)
        for (int64_t row = 0; row < s->n; row++) fill_row(x + (head * s->n + row) * s->d, m, stream, topic_stream, head, row);
    const kna_rows rows = { x, KNA_F32, s->h_kv, s->n, s->d, 0, 0, NULL };
    const int code = convert_rows(context, to, &rows, s->type, stream == KEY ? "keys" : "values");
    free(x);
    return code;
}

/* A query asks for the topic of a key before it. */
static void fill_query(float *to, const maker *m, int64_t head, int64_t query)
{
    const bench_shape *s = m->shape;
    const uint64_t noise = key_for(m->seed, m->layer, QUERY);
    const uint64_t topic = key_for(m->seed, m->layer, KEY_TOPIC);
    const uint64_t row = (uint64_t)(head * s->m + query);
    const uint64_t seen = (uint64_t)(s->n >= s->m ? s->n - s->m + query + 1 : s->n);
    const uint64_t asked = cli_mix(key_for(m->seed, m->layer, CHOICE) + row) % seen / TOPIC_KEYS;
    const uint64_t at = ((uint64_t)(head / (s->h / s->h_kv) * s->n) + asked) * (uint64_t)s->d;
    for (uint64_t i = 0; i < (uint64_t)s->d; i++) to[i] = normal(noise, row * (uint64_t)s->d + i) + 1.5f * normal(topic, at + i);
}

static int convert(kna_context *context, converted *to, float *x, const bench_shape *s, const char *name)
{
    const kna_rows rows = { x, KNA_F32, s->h_kv, s->n, s->d, 0, 0, NULL };
    return convert_rows(context, to, &rows, s->type, name);
}

static int fill_text(kna_context *context, bench_layer *layer, const maker *m)
{
    const bench_shape *s = m->shape;
    const size_t numbers = (size_t)(s->h_kv * s->n) * (size_t)s->d;
    float *k = malloc(numbers * sizeof *k), *v = malloc(numbers * sizeof *v);
    int code = k && v ? CLI_OK : cli_fail("out of memory: %lld keys", (long long)s->n);
    if (code == CLI_OK) code = bench_text_fill(layer->q, k, v, s, m->seed, m->layer);
    if (code == CLI_OK) code = convert(context, &layer->k, k, s, "keys");
    if (code == CLI_OK) code = convert(context, &layer->v, v, s, "values");
    free(k), free(v);
    return code;
}

int bench_layer_new(kna_context *context, bench_layer *layer, const bench_shape *shape, uint64_t seed, int64_t number)
{
    const maker m = { shape, seed, number };
    memset(layer, 0, sizeof *layer);
    layer->q = malloc((size_t)(shape->h * shape->m) * (size_t)shape->d * sizeof *layer->q);
    if (!layer->q) return cli_fail("out of memory: %lld queries", (long long)shape->m);
    layer->q_rows = (kna_rows){ layer->q, KNA_F32, shape->h, shape->m, shape->d, 0, 0, NULL };
    for (int64_t head = 0; head < shape->h && shape->data == BENCH_TOPICS; head++)
        for (int64_t query = 0; query < shape->m; query++)
            fill_query(layer->q + (head * shape->m + query) * shape->d, &m, head, query);
    int code = shape->data == BENCH_TEXT ? fill_text(context, layer, &m) : fill(context, &layer->k, &m, KEY, KEY_TOPIC);
    if (code == CLI_OK && shape->data == BENCH_TOPICS) code = fill(context, &layer->v, &m, VALUE, VALUE_TOPIC);
    if (code != CLI_OK) bench_layer_free(layer);
    return code;
}

void bench_layer_free(bench_layer *layer)
{
    free(layer->q);
    converted_free(&layer->k);
    converted_free(&layer->v);
    layer->q = NULL;
}
