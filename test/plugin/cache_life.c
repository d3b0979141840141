/*
 * cache_life.c - what happens to a key-value cache between two attention calls: rows appended and overwritten by SET_ROWS,
 * loaded, cleared, copied between sequences, rotated in place, changed behind everybody's back. After each event an index that
 * lived through all of it must give what an index built afresh gives, bit for bit for topk; and it may encode only what changed.
 * For knn, whose clusters depend on the queries met, it must be as near to exact attention as a fresh one.
 */
#include "harness.h"

#define HEADS   2
#define DIM     64
#define WIDTH   (HEADS * DIM)
#define CELLS   1152
#define STREAMS 2
#define NEAR    "method=topk,k=24,exact_below=0"
#define KNN     "method=knn,k=128,sinks=2,window=16,exact_below=0"

struct cache {
    struct ggml_context *ctx;
    ggml_backend_buffer_t buffer;
    struct ggml_tensor *k, *v;
};

static struct cache cache_new(enum ggml_type type)
{
    struct cache cache = { .ctx = graph_context() };
    cache.k = ggml_new_tensor_3d(cache.ctx, type, WIDTH, CELLS, STREAMS);
    cache.v = ggml_new_tensor_3d(cache.ctx, type, WIDTH, CELLS, STREAMS);
    ggml_set_name(cache.k, "cache_k_l5");
    ggml_set_name(cache.v, "cache_v_l5");
    cache.buffer = ggml_backend_alloc_ctx_tensors(cache.ctx, cpu);
    ggml_backend_buffer_clear(cache.buffer, 0);
    return cache;
}

static void cache_free(struct cache *cache)
{
    ggml_backend_buffer_free(cache->buffer);
    ggml_free(cache->ctx);
}

/* Rows of the cache, all streams in one as llama.cpp addresses them, written by SET_ROWS on a backend. */
static void set_rows(ggml_backend_t backend, struct ggml_tensor *root, const int64_t *rows, int64_t count, enum ggml_type source,
                     enum ggml_type index)
{
    struct ggml_context *ctx = graph_context();
    struct ggml_tensor *flat = ggml_reshape_2d(ctx, root, WIDTH, CELLS * STREAMS);
    struct ggml_tensor *from = ggml_new_tensor_2d(ctx, source, WIDTH, count);
    struct ggml_tensor *to = ggml_new_tensor_1d(ctx, index, count);
    struct ggml_tensor *op = ggml_set_rows(ctx, flat, from, to);
    struct ggml_cgraph *graph = graph_of(ctx, op);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, cpu);
    fill(from, 1.0);
    for (int64_t i = 0; i < count; i++) {
        int32_t narrow = (int32_t)rows[i];
        size_t bytes = ggml_type_size(index);
        ggml_backend_tensor_set(to, index == GGML_TYPE_I64 ? (const void *)&rows[i] : (const void *)&narrow, (size_t)i * bytes,
                                bytes);
    }
    if (backend != cpu) EXPECT(ggml_backend_supports_op(backend, op));
    EXPECT_INT(ggml_backend_graph_compute(backend, graph), GGML_STATUS_SUCCESS);
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
}

/* ---- attention over the first n cells */

struct question {
    struct ggml_context *ctx;
    ggml_backend_buffer_t buffer;
    struct ggml_cgraph *graph;
    struct ggml_tensor *out;
};

static struct ggml_tensor *view_of(struct ggml_context *ctx, struct ggml_tensor *root, int64_t n)
{
    struct ggml_tensor *view =
        ggml_view_4d(ctx, root, DIM, HEADS, n, STREAMS, ggml_row_size(root->type, DIM), root->nb[1], root->nb[2], 0);
    return ggml_permute(ctx, view, 0, 2, 1, 3);
}

static struct question question_with(struct cache *cache, int64_t n, int64_t queries, bool holes)
{
    struct question q = { .ctx = graph_context() };
    struct ggml_tensor *query = ggml_new_tensor_4d(q.ctx, GGML_TYPE_F32, DIM, queries, HEADS * 2, STREAMS);
    struct ggml_tensor *mask = ggml_new_tensor_4d(q.ctx, GGML_TYPE_F16, n, queries, 1, 1);
    q.out = ggml_flash_attn_ext(q.ctx, query, view_of(q.ctx, cache->k, n), view_of(q.ctx, cache->v, n), mask, 0.125f, 0.0f, 0.0f);
    q.graph = graph_of(q.ctx, q.out);
    q.buffer = ggml_backend_alloc_ctx_tensors(q.ctx, cpu);
    fill(query, 3.0);
    ggml_fp16_t *numbers = malloc(ggml_nbytes(mask));
    for (int64_t i = 0; i < n * queries; i++) {
        numbers[i] = ggml_fp32_to_fp16(holes && test_below(8) == 0 ? -INFINITY : 0.0f);
    }
    ggml_backend_tensor_set(mask, numbers, 0, ggml_nbytes(mask));
    free(numbers);
    return q;
}

static struct question question_new(struct cache *cache, int64_t n, int64_t queries)
{
    return question_with(cache, n, queries, true);
}

static float *answer(ggml_backend_t backend, struct question *q)
{
    EXPECT_INT(ggml_backend_graph_compute(backend, q->graph), GGML_STATUS_SUCCESS);
    return numbers_of(q->out);
}

static void question_free(struct question *q)
{
    ggml_backend_buffer_free(q->buffer);
    ggml_free(q->ctx);
}

/* The backend that lived through everything, given some steps to notice, against one made for this question. */
static void compare(ggml_backend_t old, struct cache *cache, const char *event, int steps)
{
    struct question q = question_new(cache, 64 * (int64_t)(1 + test_below(CELLS / 64)), (int64_t)(1 + test_below(3)));
    ggml_backend_t fresh = backend_with(NEAR ",slot=1");
    for (int i = 1; i < steps; i++) free(answer(old, &q));
    float *want = answer(fresh, &q), *got = answer(old, &q);
    EXPECT_THAT(memcmp(got, want, ggml_nbytes(q.out)) == 0, "the index is out of date after: %s", event);
    free(want);
    free(got);
    ggml_backend_free(fresh);
    question_free(&q);
}

/* Root mean square distance from exact attention, over its length. */
static double distance(const float *got, const float *exact, int64_t numbers)
{
    double off = 0, length = 0;
    for (int64_t i = 0; i < numbers; i++) {
        off += pow((double)got[i] - (double)exact[i], 2);
        length += pow((double)exact[i], 2);
    }
    return sqrt(off / (length + 1e-9));
}

/*
 * knn: an old index is about as far from exact attention as one made for this question. Not always: k-means may have put two groups
 * into one cluster, and the question may be about one of them. So cases are counted: *far, and *clustered where clusters were used.
 */
static void compare_distance(ggml_backend_t old, struct cache *cache, int steps, int *far, int *clustered)
{
    struct question q = question_with(cache, CELLS - 64 * (int64_t)test_below(3), (int64_t)(test_below(2) ? 1 : 12), false);
    ggml_backend_t exact = backend_with("method=exact,slot=3"), fresh = backend_with(KNN ",slot=1");
    int64_t numbers = ggml_nelements(q.out);
    struct question other = question_with(cache, 64, 12, false);
    for (int i = 0; i < 4; i++) free(answer(fresh, &other)); /* clusters made for one question would serve that one best */
    question_free(&other);
    for (int i = 1; i < steps; i++) free(answer(old, &q));
    struct knnattn_report before = report_of_slot(2);
    float *got = answer(old, &q), *want = answer(fresh, &q), *truth = answer(exact, &q);
    struct knnattn_report after = report_of_slot(2);
    double ours = distance(got, truth, numbers), theirs = distance(want, truth, numbers);
    *far += !(ours <= 2 * theirs + 0.5);
    free(got);
    free(want);
    free(truth);
    ggml_backend_free(fresh);
    ggml_backend_free(exact);
    question_free(&q);
    *clustered += after.keys_full - before.keys_full < after.keys_seen - before.keys_seen;
}

/* ---- events */

static int64_t head_of[STREAMS];

static void append(ggml_backend_t backend, struct cache *cache)
{
    int64_t rows[CELLS], stream = (int64_t)test_below(STREAMS), count = (int64_t)(1 + test_below(40));
    if (head_of[stream] + count > CELLS) head_of[stream] = 0;
    for (int64_t i = 0; i < count; i++) rows[i] = stream * CELLS + head_of[stream]++;
    set_rows(backend, cache->k, rows, count, GGML_TYPE_F32, GGML_TYPE_I64);
    set_rows(backend, cache->v, rows, count, GGML_TYPE_F32, GGML_TYPE_I64);
}

static void overwrite(ggml_backend_t backend, struct cache *cache)
{
    int64_t rows[20];
    for (int64_t i = 0; i < 20; i++) rows[i] = (int64_t)test_below(CELLS * STREAMS);
    set_rows(backend, test_below(2) ? cache->k : cache->v, rows, 20, GGML_TYPE_F32, GGML_TYPE_I32);
}

static void load(ggml_backend_t backend, struct cache *cache)
{
    (void)backend;
    fill_rows(test_below(2) ? cache->k : cache->v, (int64_t)test_below(CELLS * STREAMS - 30), 30, 1.0);
}

static void erase(ggml_backend_t backend, struct cache *cache)
{
    (void)backend;
    size_t bytes = cache->k->nb[1];
    ggml_backend_tensor_memset(cache->k, 0, test_below(CELLS) * bytes, bytes * 3);
}

static void copy_stream(ggml_backend_t backend, struct cache *cache)
{
    (void)backend;
    struct ggml_context *ctx = graph_context();
    struct ggml_tensor *from = ggml_view_2d(ctx, cache->v, WIDTH, CELLS, cache->v->nb[1], 0);
    struct ggml_tensor *to = ggml_view_2d(ctx, cache->v, WIDTH, CELLS, cache->v->nb[1], cache->v->nb[2]);
    from->buffer = to->buffer = cache->buffer;
    ggml_backend_tensor_copy(from, to);
    ggml_free(ctx);
}

static void clear(ggml_backend_t backend, struct cache *cache)
{
    (void)backend;
    ggml_backend_buffer_clear(cache->buffer, 0);
    fill_rows(cache->k, 0, CELLS, 1.0);
}

/* As a context shift: the CPU backend rewrites keys in place; the scheduler had asked the plugin first. */
static void rotate(ggml_backend_t backend, struct cache *cache)
{
    if (cache->k->type != GGML_TYPE_F32 && cache->k->type != GGML_TYPE_F16) return; /* what ROPE takes */
    struct ggml_context *ctx = graph_context();
    struct ggml_tensor *view =
        ggml_view_3d(ctx, cache->k, DIM, HEADS, CELLS * STREAMS, ggml_row_size(cache->k->type, DIM), cache->k->nb[1], 0);
    struct ggml_tensor *positions = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, CELLS * STREAMS);
    struct ggml_tensor *op = ggml_rope_inplace(ctx, view, positions, DIM, 0);
    struct ggml_cgraph *graph = graph_of(ctx, op);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, cpu);
    for (int32_t i = 0; i < CELLS * STREAMS; i++) ggml_backend_tensor_set(positions, &(int32_t){ -7 }, (size_t)i * 4, 4);
    EXPECT(!ggml_backend_supports_op(backend, op));
    EXPECT_INT(ggml_backend_graph_compute(cpu, graph), GGML_STATUS_SUCCESS);
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
}

/* Random rows are compared every few calls, one call per stream: after so many steps a change of all rows is found. */
#define BETRAYAL_STEPS 8

/* Through a pointer, past every interface: all keys change sign. Only the audit, or keys read in full, can tell. */
static void betray(ggml_backend_t backend, struct cache *cache)
{
    (void)backend;
    if (cache->k->type != GGML_TYPE_F16) return;
    uint16_t *numbers = cache->k->data;
    for (int64_t i = 0; i < ggml_nelements(cache->k); i++) numbers[i] ^= 0x8000;
}

static void nothing(ggml_backend_t backend, struct cache *cache)
{
    (void)backend;
    (void)cache;
}

static const struct {
    const char *name;
    void (*happen)(ggml_backend_t backend, struct cache *cache);
} events[] = { { "append", append }, { "overwrite", overwrite }, { "load", load },
               { "erase", erase },   { "copy", copy_stream },    { "clear", clear },
               { "rotate", rotate }, { "betray", betray },       { "nothing", nothing } };

static void lives_of(enum ggml_type type)
{
    struct cache cache = cache_new(type);
    ggml_backend_t old = backend_with(NEAR ",slot=2");
    memset(head_of, 0, sizeof(head_of));
    fill(cache.k, 1.0);
    fill(cache.v, 1.0);
    compare(old, &cache, "the first filling", 1);
    for (int i = 0; i < 60; i++) {
        size_t event = test_below(sizeof(events) / sizeof(events[0]));
        events[event].happen(old, &cache);
        compare(old, &cache, events[event].name, events[event].happen == betray ? BETRAYAL_STEPS : 1);
    }
    ggml_backend_free(old);
    cache_free(&cache);
}

/* Keys in groups are what clusters serve best: an index out of date is far worse. */
static void knn_lives_of(enum ggml_type type)
{
    struct cache cache = cache_new(type);
    ggml_backend_t old = backend_with(KNN ",slot=2");
    int far = 0, clustered = 0;
    fill_in_groups = true;
    memset(head_of, 0, sizeof(head_of));
    fill(cache.k, 1.0);
    fill(cache.v, 1.0);
    for (int i = 0; i < 40; i++) {
        size_t event = test_below(sizeof(events) / sizeof(events[0]));
        events[event].happen(old, &cache);
        compare_distance(old, &cache, events[event].happen == betray ? BETRAYAL_STEPS : 1, &far, &clustered);
    }
    EXPECT_THAT(far <= 3, "%d of 40 times far from exact attention: the index is out of date", far);
    EXPECT(clustered > 2);
    fill_in_groups = false;
    ggml_backend_free(old);
    cache_free(&cache);
}

static void knn_life_f16(void)
{
    knn_lives_of(GGML_TYPE_F16);
}

static void knn_life_q8_0(void)
{
    knn_lives_of(GGML_TYPE_Q8_0);
}

static void life_f16(void)
{
    lives_of(GGML_TYPE_F16);
}

static void life_f32(void)
{
    lives_of(GGML_TYPE_F32);
}

static void life_bf16(void)
{
    lives_of(GGML_TYPE_BF16);
}

static void life_q8_0(void)
{
    lives_of(GGML_TYPE_Q8_0);
}

/* ---- only what changed is encoded again, and unannounced changes are counted */

static int64_t rows_indexed_by(ggml_backend_t backend, struct question *q, int slot)
{
    int64_t before = report_of_slot(slot).rows_indexed;
    free(answer(backend, q));
    return report_of_slot(slot).rows_indexed - before;
}

/* An event, and how many rows must have been encoded since the last; 2 x 256 are in view. None may have gone unnoticed. */
static void expect_indexed(ggml_backend_t backend, struct question *q, int64_t rows, const char *event)
{
    static int64_t before;
    free(answer(backend, q));
    int64_t now = report_of_slot(3).rows_indexed, indexed = now - (now < before ? 0 : before);
    before = now;
    EXPECT_THAT(indexed == rows, "%s: %d rows encoded, expected %d", event, (int)indexed, (int)rows);
    EXPECT_THAT(report_of_slot(3).stale_events == 0, "%s: it had to be found out", event);
}

static void only_what_changed(void)
{
    struct cache cache = cache_new(GGML_TYPE_F16);
    ggml_backend_t backend = backend_with(NEAR ",slot=3");
    struct question q = question_new(&cache, 256, 1);
    int64_t rows[] = { 17, 18, CELLS + 200, CELLS + 300 }; /* the last is out of view */
    report_reset(3);
    expect_indexed(backend, &q, 512, "nothing known yet");
    expect_indexed(backend, &q, 0, "nothing happened");
    set_rows(backend, cache.k, rows, 4, GGML_TYPE_F32, GGML_TYPE_I64);
    expect_indexed(backend, &q, 3, "rows of keys set");
    set_rows(backend, cache.v, rows, 2, GGML_TYPE_F32, GGML_TYPE_I32);
    expect_indexed(backend, &q, 2, "rows of values set");
    fill_rows(cache.v, 5, 2, 1.0);
    expect_indexed(backend, &q, 2, "values loaded");
    fill(cache.k, 1.0);
    expect_indexed(backend, &q, 512, "all keys loaded");
    ggml_backend_tensor_memset(cache.k, 0, 9 * cache.k->nb[1], 4 * cache.k->nb[1]);
    expect_indexed(backend, &q, 4, "keys erased");
    copy_stream(backend, &cache);
    expect_indexed(backend, &q, CELLS, "a stream copied, which encodes it whole");
    rotate(backend, &cache);
    expect_indexed(backend, &q, 512, "keys rotated in place");
    ggml_backend_buffer_clear(cache.buffer, 0);
    expect_indexed(backend, &q, 512, "the cache cleared");
    expect_indexed(backend, &q, 0, "nothing happened again");
    question_free(&q);
    ggml_backend_free(backend);
    cache_free(&cache);
}

/* A state is loaded keys first, then values: with the values its rows are encoded, and the next call need not do it. */
static void encoded_when_loaded(void)
{
    struct cache cache = cache_new(GGML_TYPE_F16);
    ggml_backend_t backend = backend_with("method=topk,k=24,exact_below=200,slot=6");
    struct question small = question_new(&cache, 64, 1), q = question_new(&cache, 448, 1);
    report_reset(6);
    EXPECT_INT(rows_indexed_by(backend, &small, 6), 0); /* from here on the cache is known, although read whole */
    fill_rows(cache.k, 0, 448, 1.0);
    EXPECT_INT(report_of_slot(6).rows_indexed, 0);
    fill_rows(cache.v, 0, 448, 1.0);
    EXPECT_INT(report_of_slot(6).rows_indexed, 448);
    EXPECT_INT(report_of_slot(6).calls, STREAMS);
    EXPECT(report_of_slot(6).index_s > 0.0);
    EXPECT_INT(rows_indexed_by(backend, &q, 6), 448); /* the other stream */
    ggml_backend_t fresh = backend_with(NEAR ",slot=7");
    float *want = answer(fresh, &q), *got = answer(backend, &q);
    EXPECT(memcmp(got, want, ggml_nbytes(q.out)) == 0);
    fill_rows(cache.v, 0, 100, 1.0); /* few rows, or too few to be indexed at all, wait */
    EXPECT_INT(report_of_slot(6).rows_indexed, 896);
    free(want);
    free(got);
    ggml_backend_free(fresh);
    ggml_backend_free(backend);
    fill(cache.v, 1.0); /* nobody is left to encode it */
    question_free(&small);
    question_free(&q);
    cache_free(&cache);
}

/* Every so many layers read every key, to the bit as method exact does, and have no index; the others do not. */
static void full_layers(void)
{
    for (int every = 1; every <= 4; every++) {
        char settings[100];
        snprintf(settings, sizeof(settings), NEAR ",full_every=%d,slot=6", every);
        ggml_backend_t backend = fresh_backend_with(settings), exact = fresh_backend_with("method=exact,slot=7");
        for (int layer = 0; layer < 9; layer++) {
            char name[32];
            struct cache cache = cache_new(GGML_TYPE_F16);
            snprintf(name, sizeof(name), "cache_k_l%d", layer);
            ggml_set_name(cache.k, name);
            name[6] = 'v';
            ggml_set_name(cache.v, name);
            fill(cache.k, 1.0);
            fill(cache.v, 1.0);
            struct question q = question_new(&cache, 448, 1);
            report_reset(6);
            float *got = answer(backend, &q), *want = answer(exact, &q);
            struct knnattn_report r = report_of_slot(6);
            bool is_full = layer % every == 0;
            EXPECT_INT(r.calls, STREAMS);
            EXPECT_INT(r.calls_exact, is_full ? STREAMS : 0);
            EXPECT_INT(r.rows_indexed, is_full ? 0 : 448 * STREAMS);
            EXPECT((memcmp(got, want, ggml_nbytes(q.out)) == 0) == is_full);
            free(got);
            free(want);
            question_free(&q);
            cache_free(&cache);
        }
        ggml_backend_free(backend);
        ggml_backend_free(exact);
    }
}

/* What nobody announced is found, counted and repaired. */
static void found_out(void)
{
    struct cache cache = cache_new(GGML_TYPE_F16);
    ggml_backend_t backend = backend_with(NEAR ",slot=3");
    struct question q = question_new(&cache, 256, 1);
    fill(cache.k, 1.0);
    report_reset(3);
    EXPECT_INT(rows_indexed_by(backend, &q, 3), 512);
    betray(backend, &cache);
    int64_t indexed = 0;
    for (int i = 0; i < BETRAYAL_STEPS; i++) indexed += rows_indexed_by(backend, &q, 3);
    EXPECT(indexed >= 512);
    EXPECT(report_of_slot(3).stale_events >= 1);
    EXPECT(report_of_slot(3).stale_rows >= 1);
    EXPECT_INT(rows_indexed_by(backend, &q, 3), 0);
    question_free(&q);
    ggml_backend_free(backend);
    cache_free(&cache);
}

/* A second context writes into the first one's cache: the first one's index must know. */
static void another_context_writes(void)
{
    struct cache cache = cache_new(GGML_TYPE_F16);
    ggml_backend_t reader = backend_with(NEAR ",slot=4"), writer = backend_with(NEAR ",slot=5");
    struct question q = question_new(&cache, 128, 2);
    int64_t rows[] = { 3, 40, 41 };
    free(answer(reader, &q));
    set_rows(writer, cache.k, rows, 3, GGML_TYPE_F32, GGML_TYPE_I64);
    EXPECT_INT(rows_indexed_by(reader, &q, 4), 3);
    question_free(&q);
    ggml_backend_free(reader);
    ggml_backend_free(writer);
    cache_free(&cache);
}

/* ---- the bytes SET_ROWS leaves */

static void same_bytes(enum ggml_type type, enum ggml_type source, enum ggml_type index)
{
    struct cache ours = cache_new(type), theirs = cache_new(type);
    ggml_backend_t backend = backend_with(NEAR);
    int64_t rows[1000];
    uint64_t random = test_state.random;
    for (int64_t i = 0; i < 1000; i++) rows[i] = (i * 37 + (i & 1)) % (CELLS * STREAMS);
    set_rows(backend, ours.k, rows, 1000, source, index);
    test_state.random = random;
    set_rows(cpu, theirs.k, rows, 1000, source, index);
    EXPECT_THAT(memcmp(ours.k->data, theirs.k->data, ggml_nbytes(ours.k)) == 0,
                "%s from %s by %s: other bytes than ggml's CPU backend", ggml_type_name(type), ggml_type_name(source),
                ggml_type_name(index));
    ggml_backend_free(backend);
    cache_free(&ours);
    cache_free(&theirs);
}

static void bytes_written(void)
{
    static const enum ggml_type types[] = { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0 };
    for (int i = 0; i < 4; i++) {
        for (int repeat = 0; repeat < 8; repeat++) {
            same_bytes(types[i], GGML_TYPE_F32, repeat & 1 ? GGML_TYPE_I64 : GGML_TYPE_I32);
        }
    }
    same_bytes(GGML_TYPE_F16, GGML_TYPE_F16, GGML_TYPE_I64);
}

/* ---- which SET_ROWS are taken */

static bool takes(const char *settings, const char *name, enum ggml_type type, int64_t width)
{
    struct ggml_context *ctx = graph_context();
    struct ggml_tensor *root = ggml_new_tensor_2d(ctx, type, width, CELLS);
    struct ggml_tensor *from = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, width, 2);
    ggml_set_name(root, name);
    configure(settings, NULL, 0);
    bool taken = ggml_backend_dev_supports_op(device, ggml_set_rows(ctx, root, from, ggml_new_tensor_1d(ctx, GGML_TYPE_I64, 2)));
    configure("", NULL, 0);
    ggml_free(ctx);
    return taken;
}

static void rows_taken(void)
{
    EXPECT(takes("method=knn", "cache_k_l0", GGML_TYPE_F16, WIDTH));
    EXPECT(takes("method=topk", "cache_v_l31", GGML_TYPE_Q8_0, WIDTH));
    EXPECT(takes("method=knn", "cache_mtp_k_l2", GGML_TYPE_BF16, WIDTH));
    EXPECT(!takes("method=exact", "cache_k_l0", GGML_TYPE_F16, WIDTH));
    EXPECT(!takes("method=off", "cache_k_l0", GGML_TYPE_F16, WIDTH));
    EXPECT(!takes("method=knn", "cache_k_l0", GGML_TYPE_Q4_0, WIDTH));
    EXPECT(!takes("method=knn", "cache_v_l0", GGML_TYPE_F16, 1)); /* a transposed value cache */
    EXPECT(!takes("method=knn", "cache_r_l0", GGML_TYPE_F32, WIDTH));
    EXPECT(!takes("method=knn", "cache_k_lx", GGML_TYPE_F16, WIDTH));
    EXPECT(!takes("method=knn", "kv_l0", GGML_TYPE_F16, WIDTH));
}

/* As a program that has flash attention: its graphs are laid out before the first one is computed. */
static void ask_for_attention(void)
{
    struct cache cache = cache_new(GGML_TYPE_F16);
    struct question q = question_new(&cache, 64, 1);
    (void)ggml_backend_dev_supports_op(device, q.out);
    question_free(&q);
    cache_free(&cache);
}

/* Before anything asked for flash attention, rows are left to the CPU: such a program has no use for an index. */
static void rows_without_attention(void)
{
    EXPECT(!takes("method=knn", "cache_k_l0", GGML_TYPE_F16, WIDTH));
    ask_for_attention();
    EXPECT(takes("method=knn", "cache_k_l0", GGML_TYPE_F16, WIDTH));
}

/* A context begins with a graph of one shape, by which llama.cpp sees whether attention stays with the CPU; the next one ends it. */
static void first_shape_left_alone(void)
{
    struct cache cache = cache_new(GGML_TYPE_F16);
    struct question one = question_new(&cache, 256, 1), many = question_new(&cache, 256, 3);
    ggml_backend_t backend = fresh_backend_with("method=exact");
    for (int i = 0; i < 50; i++) EXPECT(!ggml_backend_supports_op(backend, one.out));
    EXPECT(ggml_backend_supports_op(backend, many.out));
    EXPECT(ggml_backend_supports_op(backend, one.out));
    ggml_backend_free(backend);
    backend = fresh_backend_with("method=exact");
    EXPECT(!ggml_backend_supports_op(backend, one.out));
    on_threads(backend, 2);
    EXPECT_THAT(ggml_backend_supports_op(backend, one.out), "a program of one shape never gets attention");
    ggml_backend_free(backend);
    question_free(&one);
    question_free(&many);
    cache_free(&cache);
}

/* Indexes above their limit are given up, once and for all layers; answers are then exact, memory is given back, and it is counted. */
static void limited(void)
{
    struct cache cache = cache_new(GGML_TYPE_F16);
    fill(cache.k, 1.0);
    fill(cache.v, 1.0);
    struct question q = question_new(&cache, 1024, 1);
    ggml_backend_t exact = backend_with("method=exact"), roomy = backend_with(NEAR ",index_kib=100000,slot=8"),
                   tight = backend_with(NEAR ",index_kib=40,slot=9");
    float *want = answer(exact, &q);
    report_reset(8);
    report_reset(9);
    for (int i = 0; i < 3; i++) {
        float *far = answer(roomy, &q), *got = answer(tight, &q);
        EXPECT(memcmp(far, want, ggml_nbytes(q.out)) != 0);
        EXPECT((memcmp(got, want, ggml_nbytes(q.out)) == 0) == (i > 0));
        free(far);
        free(got);
    }
    struct knnattn_report near = report_of_slot(8), full = report_of_slot(9);
    EXPECT(near.fallbacks == 0 && near.calls_exact == 0 && near.index_bytes > 40 * 1024);
    EXPECT_THAT(full.fallbacks == full.calls_exact && full.fallbacks >= 2 * STREAMS && full.fallbacks < full.calls, "%lld of %lld",
                (long long)full.fallbacks, (long long)full.calls);
    free(want);
    ggml_backend_free(exact);
    ggml_backend_free(roomy);
    ggml_backend_free(tight);
    question_free(&q);
    cache_free(&cache);
}

static void rows_outside(void)
{
    struct cache cache = cache_new(GGML_TYPE_F16);
    struct ggml_context *ctx = graph_context();
    ggml_backend_t backend = backend_with(NEAR);
    struct ggml_tensor *from = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, WIDTH, 1), *to = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, 1);
    struct ggml_tensor *flat = ggml_reshape_2d(ctx, cache.k, WIDTH, CELLS * STREAMS);
    struct ggml_cgraph *graph = graph_of(ctx, ggml_set_rows(ctx, flat, from, to));
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, cpu);
    fill(from, 1.0);
    ggml_backend_tensor_set(to, &(int64_t){ CELLS * STREAMS }, 0, 8);
    EXPECT_INT(ggml_backend_graph_compute(backend, graph), GGML_STATUS_FAILED);
    ggml_backend_tensor_set(to, &(int64_t){ -1 }, 0, 8);
    EXPECT_INT(ggml_backend_graph_compute(backend, graph), GGML_STATUS_FAILED);
    ggml_backend_free(backend);
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    cache_free(&cache);
}

/* The same memory, another shape: the old record goes. */
static void reshaped(void)
{
    struct cache cache = cache_new(GGML_TYPE_F16);
    ggml_backend_t backend = backend_with(NEAR);
    fill(cache.k, 1.0);
    fill(cache.v, 1.0);
    compare(backend, &cache, "filling", 1);
    cache.k->type = cache.v->type = GGML_TYPE_BF16;
    fill(cache.k, 1.0);
    fill(cache.v, 1.0);
    compare(backend, &cache, "another type at the same place", 1);
    ggml_backend_free(backend);
    cache_free(&cache);
}

int main(int argc, char **argv)
{
    wait_without_spinning(argv);
    test_begin(argc, argv);
    harness_open();
    TEST(rows_without_attention); /* the first: this is asked once per process */
    ask_for_attention();
    TEST(first_shape_left_alone);
    TEST(limited);
    TEST(bytes_written);
    TEST(rows_taken);
    TEST(rows_outside);
    TEST(only_what_changed);
    TEST(encoded_when_loaded);
    TEST(full_layers);
    TEST(found_out);
    TEST(another_context_writes);
    TEST(reshaped);
    TEST(knn_life_f16);
    TEST(knn_life_q8_0);
    TEST(life_f16);
    TEST(life_f32);
    TEST(life_bf16);
    TEST(life_q8_0);
    ggml_backend_free(cpu);
    return test_end();
}
