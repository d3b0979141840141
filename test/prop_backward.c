/* prop_backward.c - exact gradients: the double-precision oracle against central differences, the library against the oracle; and estimates of
 * them by keys drawn. */
#include "random_case.h"

#include "golden/gradients.h"
#include "gradient_oracle.h"

/* ---- the oracle */

static double difference(const oracle *o, double *x, const double *dout, double h)
{
    double kept = *x;
    *x = kept + h;
    double above = gradient_oracle_loss(o, dout);
    *x = kept - h;
    double below = gradient_oracle_loss(o, dout);
    *x = kept;
    return (above - below) / (2 * h);
}

/* All numbers, relative to the largest. */
static void agree_with_differences(const oracle *o, double *x, const double *gradient, int64_t n, const double *dout,
                                   const char *name)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(gradient[i]));
    for (int64_t i = 0; i < n; i++) {
        double by_difference = difference(o, x + i, dout, 3e-5);
        if (!test_check(fabs(by_difference - gradient[i]) <= 1e-7 * most, __FILE__, __LINE__,
                        "%s[%lld]: %.10g, by differences %.10g", name, (long long)i, gradient[i], by_difference)) {
            return;
        }
    }
}

static double *random_numbers(int64_t n)
{
    double *x = calloc((size_t)n + 1, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (double)(float)test_normal();
    return x;
}

static void oracle_by_differences(void)
{
    for (int i = 0; i < 12; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 5, 9, 3, 4 });
        c.options.causal = i & 1;
        if (i & 2) c.options.softcap = 2;
        if (i & 4) case_mask(&c, KNA_F32, 1, 0.2, true, true);
        float sinks[4] = { 0.5f, -1, 2, 0 }, slopes[4] = { 0.1f, 0.2f, 0.5f, 1 };
        if (i & 8) c.options.sinks = sinks;
        if (i & 8) c.options.slopes = slopes;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        double *dout = random_numbers(4 * 5 * 4);
        gradient_oracle *g = gradient_oracle_new(o, dout);
        agree_with_differences(o, o->q, g->dq, 4 * 5 * 3, dout, "dq");
        agree_with_differences(o, o->k, g->dk, 2 * 9 * 3, dout, "dk");
        agree_with_differences(o, o->v, g->dv, 2 * 9 * 4, dout, "dv");
        for (int head = 0; head < 4 && c.options.sinks; head++) {
            double kept = (double)sinks[head], loss[2]; /* f32: a step that it can take */
            for (int side = 0; side < 2; side++) {
                sinks[head] = (float)(kept + (side ? 1 : -1) * 0x1p-12);
                loss[side] = gradient_oracle_loss(o, dout);
            }
            sinks[head] = (float)kept;
            EXPECT_NEAR((loss[1] - loss[0]) * 0x1p11, g->dsinks[head], 1e-6);
        }
        gradient_oracle_free(g);
        free(dout);
        oracle_free(o);
        case_end(&c);
    }
}

/* ---- the library */

typedef struct backward_case {
    random_case *c;
    kna_rows dout, out;
    double *dout_numbers;
    kna_gradients gradients;
} backward_case;

/* Rows with some numbers between them, which nobody may touch. */
static kna_out_rows padded(random_case *c, int64_t heads, int64_t rows, int64_t dim)
{
    int64_t stride = dim + (int64_t)test_below(3) * 3, head = stride * rows + (int64_t)test_below(2) * 5;
    float *data = case_hold(c, (size_t)(heads * head + stride + 1) * sizeof *data);
    for (int64_t i = 0; i < heads * head + stride; i++) data[i] = 7;
    return (kna_out_rows){ data, head * 4, stride * 4 };
}

static float *number_at(const kna_out_rows *rows, int64_t head, int64_t row, int64_t column)
{
    return rows->data + head * (rows->head_stride_bytes / 4) + row * (rows->row_stride_bytes / 4) + column;
}

static backward_case begin(random_case *c)
{
    shape s = c->shape;
    backward_case b = { .c = c };
    c->options.method = KNA_EXACT;
    b.dout = (kna_rows){ NULL, KNA_F32, s.h, s.m, s.dv, 0, 0, NULL };
    case_rows(c, &b.dout, random_query_type(), (int)test_below(LAYOUT_COUNT), 1);
    b.dout_numbers = calloc((size_t)(s.h * s.m * s.dv) + 1, sizeof(double));
    for (int64_t i = 0; i < s.h * s.m * s.dv; i++) {
        b.dout_numbers[i] = oracle_number(&b.dout, i / s.dv / s.m, i / s.dv % s.m, i % s.dv);
    }
    b.out = (kna_rows){ c->out.data, KNA_F32, s.h, s.m, s.dv, c->out.head_stride_bytes, c->out.row_stride_bytes, NULL };
    b.gradients.dq = padded(c, s.h, s.m, s.d);
    b.gradients.dk = padded(c, s.h_kv, s.n, s.d);
    b.gradients.dv = padded(c, s.h_kv, s.n, s.dv);
    b.gradients.dsinks = c->options.sinks ? case_hold(c, (size_t)s.h * sizeof(float)) : NULL;
    return b;
}

static int backward(const backward_case *b, kna_context *context, const kna_gradients *gradients)
{
    const random_case *c = b->c;
    return kna_attend_backward(context, gradients, &b->dout, &b->out, c->lse, &c->q, &c->k, &c->v, &c->options);
}

static bool rows_match(const backward_case *b, const kna_out_rows *rows, int64_t heads, int64_t count, int64_t dim,
                       const double *wanted, const double *slack, const char *name)
{
    for (int64_t i = 0; i < heads * count; i++) { /* one expectation a row: there are millions of numbers */
        const float *got = number_at(rows, i / count, i % count, 0);
        bool good = true;
        int64_t c = 0;
        for (; c < dim && good; c++) good = fabs((double)got[c] - wanted[i * dim + c]) <= slack[i * dim + c] + 1e-30;
        if (!test_check(good, __FILE__, __LINE__, "%s[%lld,%lld,%lld]: %.9g, expected %.9g +- %.2g; %s", name,
                        (long long)(i / count), (long long)(i % count), (long long)c - 1, (double)got[c - 1],
                        wanted[i * dim + c - 1], slack[i * dim + c - 1], case_text(b->c))) {
            return false;
        }
        for (; c < rows->row_stride_bytes / 4 && good; c++) good = got[c] == 7.0f; /* what is between the rows */
        if (!EXPECT(good)) return false;
    }
    return true;
}

static bool matches(const backward_case *b, const gradient_oracle *g)
{
    shape s = b->c->shape;
    bool good = rows_match(b, &b->gradients.dq, s.h, s.m, s.d, g->dq, g->dq_slack, "dq") &&
                rows_match(b, &b->gradients.dk, s.h_kv, s.n, s.d, g->dk, g->dk_slack, "dk") &&
                rows_match(b, &b->gradients.dv, s.h_kv, s.n, s.dv, g->dv, g->dv_slack, "dv");
    for (int64_t head = 0; head < s.h && good && b->gradients.dsinks; head++) {
        good = EXPECT_NEAR((double)b->gradients.dsinks[head], g->dsinks[head], g->dsinks_slack[head] + 1e-30);
    }
    return good;
}

/* On every CPU level. */
static void all_levels(random_case *c)
{
    kna_context *const *all;
    int count = contexts(&all);
    backward_case b = begin(c);
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    gradient_oracle *g = gradient_oracle_new(o, b.dout_numbers);
    bool good = true;
    for (int i = 0; i < count && good; i++) {
        good = EXPECT_INT(case_attend(c, all[i], NULL), KNA_OK) && EXPECT_INT(backward(&b, all[i], &b.gradients), KNA_OK) &&
               matches(&b, g);
        if (!good) printf("  on cpu %s: %s\n", kna_cpu_name(kna_context_cpu(all[i])), kna_context_message(all[i]));
    }
    gradient_oracle_free(g);
    oracle_free(o);
    free(b.dout_numbers);
}

static void random_cases(void)
{
    for (int i = 0; i < rounds(120); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(5e5));
        all_levels(&c);
        case_end(&c);
    }
}

/* Sizes where work is cut: 192 rows a tile, 768 a block, 128 keys a tile, 512 a chunk. */
static void cuts(void)
{
    static const shape shapes[] = {
        { 1, 1, 1, 1, 1, 1 },       { 1, 1, 191, 127, 5, 3 }, { 1, 1, 192, 128, 8, 8 }, { 1, 1, 193, 129, 7, 9 },
        { 3, 1, 256, 511, 4, 4 },   { 3, 1, 257, 512, 4, 4 }, { 3, 1, 256, 513, 4, 4 }, { 1, 1, 769, 1025, 2, 2 },
        { 4, 2, 400, 400, 16, 16 }, { 2, 2, 3, 900, 64, 64 }, { 1, 1, 40, 8400, 3, 2 }, { 6, 3, 64, 65, 33, 17 },
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int causal = 0; causal < 2; causal++) {
            random_case c = { .guarded = false };
            case_begin(&c, shapes[i]);
            c.options.causal = causal;
            if (causal) c.options.window = 1 + (int64_t)test_below((size_t)shapes[i].n);
            all_levels(&c);
            case_end(&c);
        }
    }
}

/* ---- PyTorch */

static void wave(float *x, double a, double b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] = (float)sin(a + b * (double)i);
}

static void golden(const double *want, float softcap, bool with_sinks)
{
    enum { H = GOLDEN_H, H_KV = GOLDEN_H_KV, M = GOLDEN_M, N = GOLDEN_N, D = GOLDEN_D, DV = GOLDEN_DV };
    float q[H * M * D], k[H_KV * N * D], v[H_KV * N * DV], dout[H * M * DV], sinks[H], out[H * M * DV], lse[H * M],
        got[H * M * D + H_KV * N * (D + DV) + H];
    wave(q, 0.3, 0.7, H * M * D);
    wave(k, 1.1, 0.9, H_KV * N * D);
    wave(v, 2.2, 1.3, H_KV * N * DV);
    wave(dout, 0.1, 0.6, H * M * DV);
    wave(sinks, 0.5, 2.0, H);
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    options.causal = 1;
    options.softcap = softcap;
    options.sinks = with_sinks ? sinks : NULL;
    kna_rows q_rows = { q, KNA_F32, H, M, D, 0, 0, NULL }, k_rows = { k, KNA_F32, H_KV, N, D, 0, 0, NULL },
             v_rows = { v, KNA_F32, H_KV, N, DV, 0, 0, NULL };
    kna_rows out_rows = { out, KNA_F32, H, M, DV, 0, 0, NULL }, dout_rows = { dout, KNA_F32, H, M, DV, 0, 0, NULL };
    float *dk = got + H * M * D, *dv = dk + H_KV * N * D, *dsinks = dv + H_KV * N * DV;
    kna_gradients to = { { got, 0, 0 }, { dk, 0, 0 }, { dv, 0, 0 }, with_sinks ? dsinks : NULL };
    memset(got, 0, sizeof got);
    EXPECT_INT(kna_attend(context_best(), &(kna_out_rows){ out, 0, 0 }, lse, NULL, &q_rows, &k_rows, &v_rows, &options), KNA_OK);
    EXPECT_INT(kna_attend_backward(context_best(), &to, &dout_rows, &out_rows, lse, &q_rows, &k_rows, &v_rows, &options), KNA_OK);
    for (size_t i = 0; i < sizeof got / sizeof got[0]; i++) EXPECT_NEAR((double)got[i], want[i], 2e-6);
}

static void as_pytorch_has_it(void)
{
    golden(golden_plain, 0, false);
    golden(golden_capped, 0.8f, true);
}

/* ---- laws */

static float *copy_all(const kna_gradients *g, shape s)
{
    int64_t dims[] = { s.d, s.d, s.dv }, counts[] = { s.m, s.n, s.n }, heads[] = { s.h, s.h_kv, s.h_kv };
    const kna_out_rows *rows[] = { &g->dq, &g->dk, &g->dv };
    float *copy = calloc((size_t)(s.h * s.m * s.d + s.h_kv * s.n * (s.d + s.dv)) + 1, sizeof *copy), *at = copy;
    for (int x = 0; x < 3; x++) {
        for (int64_t i = 0; i < heads[x] * counts[x] * dims[x]; i++) {
            *at++ = *number_at(rows[x], i / dims[x] / counts[x], i / dims[x] % counts[x], i % dims[x]);
        }
    }
    return copy;
}

static void expect_same_bits(const backward_case *b)
{
    static const int threads[] = { 1, 2, 3, 7 };
    shape s = b->c->shape;
    float *first = NULL;
    size_t bytes = (size_t)(s.h * s.m * s.d + s.h_kv * s.n * (s.d + s.dv)) * sizeof(float);
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        kna_context_options options = KNA_CONTEXT_OPTIONS;
        kna_context *context;
        options.threads = threads[i];
        EXPECT_INT(kna_context_new(&context, &options), KNA_OK);
        EXPECT_INT(case_attend(b->c, context, NULL), KNA_OK);
        EXPECT_INT(backward(b, context, &b->gradients), KNA_OK);
        float *now = copy_all(&b->gradients, s);
        if (first) EXPECT(memcmp(first, now, bytes) == 0);
        if (first) free(now);
        first = first ? first : now;
        kna_context_free(context);
    }
    free(first);
}

/* Weights of a row add up to 1, so the gradients of values add up to those of the outputs. */
static void expect_values_add_up(const backward_case *b)
{
    shape s = b->c->shape;
    int64_t rows = s.h / s.h_kv * s.m;
    for (int64_t i = 0; i < s.h_kv * s.dv; i++) {
        int64_t head = i / s.dv, column = i % s.dv;
        double in = 0, out = 0;
        for (int64_t row = 0; row < rows; row++) in += b->dout_numbers[(head * rows + row) * s.dv + column];
        for (int64_t row = 0; row < s.n; row++) out += (double)*number_at(&b->gradients.dv, head, row, column);
        EXPECT_NEAR(out, in, 1e-3);
    }
}

static void exact_laws(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 6, 3, 300, 1100, 16, 24 });
    c.options.causal = 1;
    backward_case b = begin(&c);
    expect_same_bits(&b);
    expect_values_add_up(&b);
    free(b.dout_numbers);
    case_end(&c);
}

/* What is asked for does not depend on what else is. */
static void one_at_a_time(void)
{
    shape s = { 4, 2, 90, 200, 12, 8 };
    random_case c = { .guarded = false };
    case_begin(&c, s);
    backward_case b = begin(&c);
    size_t bytes = (size_t)(s.h * s.m * s.d + s.h_kv * s.n * (s.d + s.dv)) * sizeof(float);
    EXPECT_INT(case_attend(&c, context_best(), NULL), KNA_OK);
    EXPECT_INT(backward(&b, context_best(), &b.gradients), KNA_OK);
    float *together = copy_all(&b.gradients, s);
    for (int x = 0; x < 3; x++) {
        kna_gradients one = { .dsinks = NULL };
        if (x == 0) one.dq = b.gradients.dq;
        if (x == 1) one.dk = b.gradients.dk;
        if (x == 2) one.dv = b.gradients.dv;
        memset(x == 0 ? one.dq.data : x == 1 ? one.dk.data : one.dv.data, 0, sizeof(float));
        EXPECT_INT(backward(&b, context_best(), &one), KNA_OK);
    }
    float *apart = copy_all(&b.gradients, s);
    EXPECT(memcmp(together, apart, bytes) == 0);
    free(together);
    free(apart);
    free(b.dout_numbers);
    case_end(&c);
}

/* ---- by keys drawn */

/*
 * Over many seeds, with the same case every time, the means are the exact gradients; and a sum of squared errors halves when draws
 * double. A bias of a tenth of one estimate's deviation would show.
 */
static void chain_is_unbiased(void)
{
    enum { SEEDS = 2000 };
    shape s = { 2, 1, 5, 60, 4, 3 };
    int64_t numbers = s.h * s.m * s.d + s.h_kv * s.n * (s.d + s.dv);
    uint64_t random = test_state.random;
    test_state.random = 4711;
    random_case c = { .guarded = false };
    case_begin(&c, s);
    backward_case b = begin(&c);
    test_state.random = random;
    c.options.causal = 1;
    EXPECT_INT(case_attend(&c, context_best(), NULL), KNA_OK);
    EXPECT_INT(backward(&b, context_best(), &b.gradients), KNA_OK);
    float *exact = copy_all(&b.gradients, s);
    double errors[2] = { 0, 0 };
    for (int round = 0; round < 2; round++) {
        double *sum = calloc((size_t)numbers, sizeof *sum), *square = calloc((size_t)numbers, sizeof *square);
        c.options.method = round ? KNA_REJECTION : KNA_GUMBEL;
        c.options.k_near = 10;
        c.options.samples = round ? 64 : 32;
        for (int seed = 0; seed < rounds(SEEDS); seed++) {
            c.options.seed = (uint64_t)seed;
            if (!EXPECT_INT(backward(&b, context_best(), &b.gradients), KNA_OK)) break;
            float *now = copy_all(&b.gradients, s);
            for (int64_t i = 0; i < numbers; i++) {
                double off = (double)now[i] - (double)exact[i];
                sum[i] += off;
                square[i] += off * off;
                errors[round] += off * off / rounds(SEEDS);
            }
            free(now);
        }
        for (int64_t i = 0; i < numbers; i++) {
            if (!EXPECT_NEAR(sum[i] / rounds(SEEDS), 0, 4.5 * sqrt(square[i]) / rounds(SEEDS) + 1e-6)) break;
        }
        free(sum);
        free(square);
    }
    EXPECT_NEAR(errors[0] / errors[1], 63.0 / 31, 0.2);
    free(exact);
    free(b.dout_numbers);
    case_end(&c);
}

/* Over several blocks of queries. */
static void chain_laws(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 4, 2, 600, 700, 8, 6 });
    backward_case b = begin(&c);
    c.options.method = KNA_GUMBEL;
    c.options.causal = 1;
    c.options.k_near = 30;
    c.options.samples = 16;
    expect_same_bits(&b);
    expect_values_add_up(&b);
    free(b.dout_numbers);
    case_end(&c);
}

/* ---- what is refused */

static void refused(backward_case *b, int status, const char *words)
{
    EXPECT_INT(backward(b, context_best(), &b->gradients), status);
    EXPECT_THAT(strstr(kna_context_message(context_best()), words) != NULL, "message: %s", kna_context_message(context_best()));
}

static void bad_input(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 2, 1, 3, 5, 4, 4 });
    backward_case b = begin(&c);
    case_rows(&c, &b.dout, KNA_F32, LAYOUT_PACKED, 1);
    EXPECT_INT(case_attend(&c, context_best(), NULL), KNA_OK);
    EXPECT_INT(backward(&b, context_best(), &b.gradients), KNA_OK);
    backward_case good = b;
    b.dout.rows = 4;
    refused(&b, KNA_ESHAPE, "dout: (2,4,4)");
    b = good;
    b.out.dim = 3;
    refused(&b, KNA_ESHAPE, "out: (2,3,3)");
    b = good;
    b.dout.type = KNA_I8;
    refused(&b, KNA_ETYPE, "dout");
    b = good;
    b.gradients.dk.row_stride_bytes = 18;
    refused(&b, KNA_EINVAL, "dk: strides");
    b = good;
    float sink_gradients[2];
    b.gradients.dsinks = sink_gradients;
    refused(&b, KNA_EINVAL, "dsinks");
    b = good;
    case_put(&b.dout, 1, 2, 3, NAN);
    refused(&b, KNA_EVALUE, "dout: NaN or infinity at head 1, row 2, column 3");
    case_put(&b.dout, 1, 2, 3, 0);
    float kept = c.lse[4];
    c.lse[4] = NAN;
    refused(&b, KNA_EVALUE, "lse: NaN or infinity at head 1, row 1");
    c.lse[4] = kept;
    c.options.method = KNA_TOPK;
    refused(&b, KNA_EINVAL, "topk");
    c.options.method = KNA_GUMBEL;
    c.options.samples = 1;
    refused(&b, KNA_EINVAL, "samples");
    c.options.samples = 8;
    c.options.softcap = 2;
    refused(&b, KNA_EINVAL, "softcap");
    c.options.softcap = 0;
    c.options.method = KNA_EXACT;
    EXPECT_INT(kna_attend_backward(context_best(), NULL, &b.dout, &b.out, c.lse, &c.q, &c.k, &c.v, &c.options), KNA_EINVAL);
    EXPECT_INT(kna_attend_backward(context_best(), &b.gradients, &b.dout, &b.out, NULL, &c.q, &c.k, &c.v, &c.options), KNA_EINVAL);
    free(b.dout_numbers);
    case_end(&c);
}

/* No queries, no keys. */
static void nothing(void)
{
    for (int kind = 0; kind < 4; kind++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 2, 2, kind & 1 ? 0 : 3, kind & 2 ? 0 : 4, 3, 3 });
        all_levels(&c);
        case_end(&c);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(oracle_by_differences);
    TEST(as_pytorch_has_it);
    TEST(nothing);
    TEST(cuts);
    TEST(random_cases);
    TEST(exact_laws);
    TEST(one_at_a_time);
    TEST(chain_is_unbiased);
    TEST(chain_laws);
    TEST(bad_input);
    contexts_free();
    return test_end();
}
