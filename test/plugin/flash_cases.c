/*
 * flash_cases.c - flash attention by the plugin, operation by operation, against ggml's CPU backend and against a softmax in
 * double precision over the same stored numbers; and which operations the plugin declines.
 */
#include "harness.h"

enum { MASK_NONE, MASK_CAUSAL, MASK_RANDOM, MASK_BIAS, MASK_DISTANCE, MASKS };

struct shape {
    int64_t d, dv, h, h_kv, m, n, streams;
    enum ggml_type k_type, v_type;
    int mask, mask_heads, mask_streams; /* heads and streams of the mask: 0 one for all, 1 each its own */
    float softcap, max_bias;
    int sinks, packed; /* packed: heads apart as ggml's own tests have it; else as llama.cpp's cache interleaves them */
};

struct attention {
    struct ggml_context *ctx;
    ggml_backend_buffer_t buffer;
    struct ggml_cgraph *graph;
    struct ggml_tensor *q, *k, *v, *mask, *sinks, *out; /* as stored, before any permutation */
    float scale;
};

static const char *shape_text(const struct shape *s)
{
    static char text[256];
    snprintf(text, sizeof(text),
             "d %d dv %d h %d/%d m %d n %d streams %d k %s v %s mask %d/%d/%d softcap %g bias %g sinks %d packed %d", (int)s->d,
             (int)s->dv, (int)s->h, (int)s->h_kv, (int)s->m, (int)s->n, (int)s->streams, ggml_type_name(s->k_type),
             ggml_type_name(s->v_type), s->mask, s->mask_heads, s->mask_streams, (double)s->softcap, (double)s->max_bias, s->sinks,
             s->packed);
    return text;
}

static struct ggml_tensor *stored(struct ggml_context *ctx, enum ggml_type type, int64_t dim, int64_t rows, int64_t heads,
                                  int64_t streams, int packed)
{
    if (packed) return ggml_new_tensor_4d(ctx, type, dim, rows, heads, streams);
    return ggml_new_tensor_4d(ctx, type, dim, heads, rows, streams);
}

static struct ggml_tensor *operand(struct ggml_context *ctx, struct ggml_tensor *tensor, int packed)
{
    return packed ? tensor : ggml_permute(ctx, tensor, 0, 2, 1, 3);
}

static float mask_number(const struct shape *s, int64_t query, int64_t key)
{
    int64_t position = s->n - s->m + query;
    switch (s->mask) {
    case MASK_CAUSAL:
        return key <= position ? 0.0f : -INFINITY;
    case MASK_RANDOM:
        return query == 1 || test_below(3) == 0 ? -INFINITY : 0.0f; /* the second query sees nothing at all */
    case MASK_BIAS:
        return test_below(4) == 0 ? -INFINITY : (float)test_normal();
    default:
        return key <= position ? (float)(key - position) : -INFINITY;
    }
}

static void fill_mask(struct ggml_tensor *mask, const struct shape *s)
{
    ggml_fp16_t *numbers = malloc(ggml_nbytes(mask));
    for (int64_t i = 0; i < ggml_nelements(mask); i++) {
        numbers[i] = ggml_fp32_to_fp16(mask_number(s, i / s->n % s->m, i % s->n));
    }
    ggml_backend_tensor_set(mask, numbers, 0, ggml_nbytes(mask));
    free(numbers);
}

static struct attention attention_new(const struct shape *s)
{
    struct attention a = { .ctx = graph_context(), .scale = 1.0f / sqrtf((float)s->d) };
    a.q = stored(a.ctx, GGML_TYPE_F32, s->d, s->m, s->h, s->streams, s->packed);
    a.k = stored(a.ctx, s->k_type, s->d, s->n, s->h_kv, s->streams, s->packed);
    a.v = stored(a.ctx, s->v_type, s->dv, s->n, s->h_kv, s->streams, s->packed);
    if (s->mask != MASK_NONE) {
        a.mask = ggml_new_tensor_4d(a.ctx, GGML_TYPE_F16, s->n, s->m, s->mask_heads ? s->h : 1, s->mask_streams ? s->streams : 1);
    }
    a.sinks = s->sinks ? ggml_new_tensor_1d(a.ctx, GGML_TYPE_F32, s->h) : NULL;
    a.out = ggml_flash_attn_ext(a.ctx, operand(a.ctx, a.q, s->packed), operand(a.ctx, a.k, s->packed),
                                operand(a.ctx, a.v, s->packed), a.mask, a.scale, s->max_bias, s->softcap);
    ggml_flash_attn_ext_add_sinks(a.out, a.sinks);
    a.graph = graph_of(a.ctx, a.out);
    a.buffer = ggml_backend_alloc_ctx_tensors(a.ctx, cpu);
    fill(a.q, 2.0);
    fill(a.k, 1.0);
    fill(a.v, 1.0);
    if (a.mask) fill_mask(a.mask, s);
    if (a.sinks) fill(a.sinks, 2.0);
    return a;
}

static void attention_free(struct attention *a)
{
    ggml_backend_buffer_free(a->buffer);
    ggml_free(a->ctx);
}

/* ---- the reference */

static size_t at(const struct shape *s, int64_t dim, int64_t rows, int64_t heads, int64_t stream, int64_t head, int64_t row)
{
    return (size_t)(s->packed ? ((stream * heads + head) * rows + row) * dim : ((stream * rows + row) * heads + head) * dim);
}

static double slope_of(const struct shape *s, int64_t head)
{
    if (s->max_bias == 0.0f) return 1.0;
    int64_t power = (int64_t)exp2(floor(log2((double)s->h)));
    double base = exp2(-(double)s->max_bias / (double)power), between = exp2(-(double)s->max_bias / 2.0 / (double)power);
    return head < power ? pow(base, (double)(head + 1)) : pow(between, (double)(2 * (head - power) + 1));
}

struct contents {
    float *q, *k, *v, *mask, *sinks;
};

static double logit_of(const struct shape *s, const struct attention *a, const struct contents *c, int64_t stream, int64_t head,
                       int64_t query, int64_t key)
{
    const float *q = c->q + at(s, s->d, s->m, s->h, stream, head, query);
    const float *k = c->k + at(s, s->d, s->n, s->h_kv, stream, head / (s->h / s->h_kv), key);
    double logit = 0;
    for (int64_t i = 0; i < s->d; i++) logit += (double)q[i] * (double)k[i];
    logit *= (double)a->scale;
    if (s->softcap != 0.0f) logit = (double)s->softcap * tanh(logit / (double)s->softcap);
    if (c->mask == NULL) return logit;
    int64_t plane = (stream % a->mask->ne[3]) * a->mask->ne[2] + head % a->mask->ne[2];
    return logit + slope_of(s, head) * (double)c->mask[(plane * s->m + query) * s->n + key];
}

static void reference_row(const struct shape *s, const struct attention *a, const struct contents *c, int64_t stream, int64_t head,
                          int64_t query, double *out)
{
    double largest = c->sinks ? (double)c->sinks[head] : -INFINITY, sum = 0;
    double *logits = malloc((size_t)s->n * sizeof(double));
    for (int64_t key = 0; key < s->n; key++) {
        logits[key] = logit_of(s, a, c, stream, head, query, key);
        largest = fmax(largest, logits[key]);
    }
    memset(out, 0, (size_t)s->dv * sizeof(double));
    if (c->sinks) sum += exp((double)c->sinks[head] - largest);
    for (int64_t key = 0; key < s->n && isfinite(largest); key++) {
        double weight = exp(logits[key] - largest);
        const float *v = c->v + at(s, s->dv, s->n, s->h_kv, stream, head / (s->h / s->h_kv), key);
        sum += weight;
        for (int64_t i = 0; i < s->dv; i++) out[i] += weight * (double)v[i];
    }
    for (int64_t i = 0; i < s->dv && sum > 0; i++) out[i] /= sum;
    free(logits);
}

/* In the layout of the result: (dv,h,m,streams). */
static double *reference(const struct shape *s, const struct attention *a)
{
    struct contents c = { numbers_of(a->q), numbers_of(a->k), numbers_of(a->v), a->mask ? numbers_of(a->mask) : NULL,
                          a->sinks ? numbers_of(a->sinks) : NULL };
    double *out = malloc((size_t)(s->dv * s->h * s->m * s->streams) * sizeof(double));
    for (int64_t row = 0; row < s->h * s->m * s->streams; row++) {
        reference_row(s, a, &c, row / (s->h * s->m), row % s->h, row / s->h % s->m, out + row * s->dv);
    }
    free(c.q);
    free(c.k);
    free(c.v);
    free(c.mask);
    free(c.sinks);
    return out;
}

/* ---- comparisons */

static double largest_difference(const float *got, const double *want, int64_t count)
{
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        double difference = fabs((double)got[i] - want[i]);
        if (!(difference <= largest)) largest = difference; /* NaN stays */
    }
    return largest;
}

/* Squared distance over squared length, as ggml's own tests measure. */
static double relative_square(const float *got, const double *want, int64_t count)
{
    double distance = 0, length = 0;
    for (int64_t i = 0; i < count; i++) {
        distance += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        length += want[i] * want[i];
    }
    return distance / (length > 0 ? length : 1);
}

static float *result_of(ggml_backend_t backend, struct attention *a)
{
    ggml_backend_tensor_memset(a->out, 0xff, 0, ggml_nbytes(a->out)); /* NaN wherever nothing is written */
    EXPECT_INT(ggml_backend_graph_compute(backend, a->graph), GGML_STATUS_SUCCESS);
    return numbers_of(a->out);
}

static void check_shape(const struct shape *s, ggml_backend_t *backends, int backends_count)
{
    struct attention a = attention_new(s);
    int64_t count = ggml_nelements(a.out);
    double *want = reference(s, &a);
    EXPECT_THAT(ggml_backend_dev_supports_op(device, a.out), "declined: %s", shape_text(s));
    for (int i = 0; i < backends_count; i++) {
        float *got = result_of(backends[i], &a);
        double difference = largest_difference(got, want, count);
        EXPECT_THAT(difference <= 1e-4, "backend %d: off by %g: %s", i, difference, shape_text(s));
        free(got);
    }
    /* ggml accumulates in f16; the second query of a random mask sees nothing, which its tiled path does not define. */
    if (s->mask != MASK_RANDOM) {
        float *theirs = result_of(cpu, &a);
        double square = relative_square(theirs, want, count);
        EXPECT_THAT(square <= 5e-4, "ggml's CPU backend differs by %g: %s", square, shape_text(s));
        free(theirs);
    }
    free(want);
    attention_free(&a);
}

/* Exactly, and with so many neighbours that both other methods must be exact as well. */
static void every_case(const struct shape *shapes, size_t count)
{
    ggml_backend_t backends[] = { backend_with("method=topk,k=100000,exact_below=0"),
                                  backend_with("method=knn,k=100000,exact_below=0"), backend_with("method=exact") };
    for (size_t i = 0; i < count; i++) check_shape(&shapes[i], backends, 3);
    for (int i = 0; i < 3; i++) ggml_backend_free(backends[i]);
}

#define F32  GGML_TYPE_F32
#define F16  GGML_TYPE_F16
#define BF16 GGML_TYPE_BF16
#define Q8   GGML_TYPE_Q8_0

static void chosen(void)
{
    static const struct shape shapes[] = {
        /* d  dv  h  h_kv m  n  streams       mask                softcap bias sinks packed */
        { 64, 64, 9, 3, 1, 256, 1, F16, F16, MASK_CAUSAL, 0, 0, 0, 0, 0, 0 },
        { 64, 64, 9, 3, 1, 768, 1, F16, F16, MASK_CAUSAL, 0, 0, 0, 0, 0, 0 },
        { 64, 64, 9, 3, 70, 320, 1, F16, F16, MASK_CAUSAL, 0, 0, 0, 0, 0, 0 },
        { 64, 64, 9, 3, 33, 256, 1, Q8, Q8, MASK_CAUSAL, 0, 0, 0, 0, 0, 0 },
        { 64, 64, 4, 4, 1, 512, 1, Q8, Q8, MASK_RANDOM, 0, 0, 0, 0, 0, 0 },
        { 128, 128, 8, 1, 5, 300, 1, BF16, BF16, MASK_BIAS, 0, 0, 0, 0, 0, 0 },
        { 128, 128, 8, 2, 3, 256, 3, F16, F16, MASK_CAUSAL, 0, 1, 0, 0, 0, 0 },
        { 64, 64, 6, 2, 2, 256, 2, F16, F16, MASK_RANDOM, 0, 0, 0, 0, 0, 0 },
        { 256, 256, 4, 1, 4, 256, 1, F16, F16, MASK_CAUSAL, 0, 0, 50.0f, 0, 0, 0 },
        { 64, 64, 8, 8, 6, 256, 1, F16, F16, MASK_CAUSAL, 0, 0, 0, 0, 1, 0 },
        { 64, 64, 12, 12, 4, 200, 1, F16, F16, MASK_DISTANCE, 0, 0, 0, 8.0f, 0, 0 },
        { 80, 80, 5, 5, 17, 129, 1, F32, F32, MASK_NONE, 0, 0, 0, 0, 0, 1 },
        { 576, 512, 16, 1, 2, 256, 1, F16, F16, MASK_CAUSAL, 0, 0, 0, 0, 0, 0 },
        { 64, 32, 4, 2, 3, 100, 2, F16, Q8, MASK_BIAS, 1, 1, 0, 0, 1, 1 },
        { 96, 96, 3, 1, 20, 64, 1, F32, F16, MASK_RANDOM, 1, 0, 30.0f, 4.0f, 1, 0 },
        { 40, 48, 2, 1, 1, 1, 1, F16, F16, MASK_NONE, 0, 0, 0, 0, 0, 0 },
        { 1, 1, 1, 1, 7, 7, 1, F32, F32, MASK_CAUSAL, 0, 0, 0, 0, 0, 1 },
    };
    every_case(shapes, sizeof(shapes) / sizeof(shapes[0]));
}

static enum ggml_type any_type(int64_t dim)
{
    static const enum ggml_type types[] = { F32, F16, BF16, Q8 };
    return types[test_below(dim % 32 == 0 ? 4 : 3)];
}

static void at_random(void)
{
    static const int64_t groups[] = { 1, 2, 3, 4, 8 };
    struct shape shapes[40];
    for (size_t i = 0; i < 40; i++) {
        struct shape *s = &shapes[i];
        *s = (struct shape){ .d = 8 * (int64_t)(1 + test_below(16)), .dv = 8 * (int64_t)(1 + test_below(16)) };
        s->h_kv = (int64_t)(1 + test_below(4));
        s->h = s->h_kv * groups[test_below(5)];
        s->n = (int64_t)(1 + test_below(400));
        s->m = (int64_t)(1 + test_below((size_t)(s->n < 40 ? s->n : 40)));
        s->streams = (int64_t)(1 + test_below(3));
        s->k_type = any_type(s->d);
        s->v_type = any_type(s->dv);
        s->mask = (int)test_below(MASKS);
        s->mask_heads = (int)test_below(2);
        s->mask_streams = (int)test_below(2);
        s->softcap = test_below(3) == 0 ? 20.0f : 0.0f;
        s->max_bias = s->mask != MASK_NONE && test_below(3) == 0 ? 8.0f : 0.0f;
        s->sinks = test_below(3) == 0;
        s->packed = (int)test_below(2);
    }
    every_case(shapes, 40);
}

/* ---- what is declined */

static const struct shape plain = { 64, 64, 8, 2, 4, 64, 1, F16, F16, MASK_CAUSAL, 0, 0, 0, 0, 0, 0 };

static void expect_claim(const struct shape *s, int32_t n_kv_max, float scale, bool claimed, const char *why)
{
    struct attention a = attention_new(s);
    ggml_flash_attn_ext_set_n_kv_max(a.out, n_kv_max);
    memcpy(&a.out->op_params[0], &scale, sizeof(scale));
    EXPECT_THAT(ggml_backend_dev_supports_op(device, a.out) == claimed, "%s: %s", claimed ? "declined" : "claimed", why);
    attention_free(&a);
}

static void declined(void)
{
    struct shape s = plain;
    configure("method=knn", NULL, 0);
    expect_claim(&s, 0, 0.125f, true, "a plain case");
    expect_claim(&s, 16, 0.125f, false, "few finite mask entries announced");
    expect_claim(&s, 0, 0.0f, false, "a scale of zero");
    s.k_type = GGML_TYPE_Q4_0;
    expect_claim(&s, 0, 0.125f, false, "keys in q4_0");
    s = plain;
    s.v_type = GGML_TYPE_Q5_1;
    expect_claim(&s, 0, 0.125f, false, "values in q5_1");
    s = plain;
    s.d = 1088;
    expect_claim(&s, 0, 0.125f, false, "keys of 1088 numbers");
    configure("method=exact", NULL, 0);
    expect_claim(&plain, 0, 0.125f, true, "method exact");
    configure("method=off", NULL, 0);
    expect_claim(&plain, 0, 0.125f, false, "method off");
    configure("", NULL, 0);
}

static void other_operations(void)
{
    struct ggml_context *ctx = graph_context();
    struct ggml_tensor *a = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 64, 64);
    struct ggml_tensor *view = ggml_reshape_1d(ctx, a, 4096);
    EXPECT(ggml_backend_dev_supports_op(device, view));
    EXPECT(!ggml_backend_dev_supports_op(device, ggml_mul_mat(ctx, a, a)));
    EXPECT(!ggml_backend_dev_supports_op(device, ggml_soft_max(ctx, a)));
    EXPECT_INT(ggml_backend_dev_type(device), GGML_BACKEND_DEVICE_TYPE_ACCEL);
    EXPECT(ggml_backend_dev_supports_buft(device, ggml_backend_cpu_buffer_type()));
    ggml_free(ctx);
}

int main(int argc, char **argv)
{
    wait_without_spinning(argv);
    test_begin(argc, argv);
    harness_open();
    TEST(chosen);
    TEST(at_random);
    TEST(declined);
    TEST(other_operations);
    ggml_backend_free(cpu);
    return test_end();
}
