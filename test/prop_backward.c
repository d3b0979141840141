/* prop_backward.c - exact gradients: the double-precision oracle against central differences, the library against the oracle; and estimates of
 * them by keys drawn. */
#include "backward_case.h"

#include "golden/gradients.h"

/* ---- the oracle */

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
        oracle_expect_differences(o, dout, NULL, 1e-7);
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

/* On every CPU level. */
static void all_levels(random_case *c)
{
    kna_context *const *all;
    int count = contexts(&all);
    backward_case b = backward_begin(c);
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    gradient_oracle *g = gradient_oracle_new(o, b.dout_numbers);
    for (int i = 0; i < count; i++) {
        if (backward_both(&b, all[i]) && backward_matches(&b, g)) continue;
        printf("  on cpu %s\n", kna_cpu_name(kna_context_cpu(all[i])));
        break;
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
    kna_gradients to = { { got, 0, 0 }, { dk, 0, 0 }, { dv, 0, 0 }, with_sinks ? dsinks : NULL, NULL, NULL };
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

static void exact_laws(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 6, 3, 300, 1100, 16, 24 });
    c.options.causal = 1;
    backward_case b = backward_begin(&c);
    backward_expect_same_bits(&b);
    backward_expect_values_add_up(&b);
    free(b.dout_numbers);
    case_end(&c);
}

/* What is asked for does not depend on what else is. */
static void one_at_a_time(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 4, 2, 90, 200, 12, 8 });
    backward_case b = backward_begin(&c);
    backward_expect_one_at_a_time(&b);
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
    backward_case b = backward_begin(&c);
    test_state.random = random;
    c.options.causal = 1;
    EXPECT_INT(case_attend(&c, context_best(), NULL), KNA_OK);
    EXPECT_INT(backward_run(&b, context_best(), &b.gradients), KNA_OK);
    float *exact = backward_copy(&b.gradients, s);
    double errors[2] = { 0, 0 };
    for (int round = 0; round < 2; round++) {
        double *sum = calloc((size_t)numbers, sizeof *sum), *square = calloc((size_t)numbers, sizeof *square);
        c.options.method = round ? KNA_REJECTION : KNA_GUMBEL;
        c.options.k_near = 10;
        c.options.samples = round ? 64 : 32;
        for (int seed = 0; seed < rounds(SEEDS); seed++) {
            c.options.seed = (uint64_t)seed;
            if (!EXPECT_INT(backward_run(&b, context_best(), &b.gradients), KNA_OK)) break;
            float *now = backward_copy(&b.gradients, s);
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
    backward_case b = backward_begin(&c);
    c.options.method = KNA_GUMBEL;
    c.options.causal = 1;
    c.options.k_near = 30;
    c.options.samples = 16;
    backward_expect_same_bits(&b);
    backward_expect_values_add_up(&b);
    free(b.dout_numbers);
    case_end(&c);
}

/* ---- what is refused */

static void bad_input(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 2, 1, 3, 5, 4, 4 });
    backward_case b = backward_begin(&c);
    case_rows(&c, &b.dout, KNA_F32, LAYOUT_PACKED, 1);
    EXPECT_INT(case_attend(&c, context_best(), NULL), KNA_OK);
    EXPECT_INT(backward_run(&b, context_best(), &b.gradients), KNA_OK);
    backward_case good = b;
    b.dout.rows = 4;
    backward_expect_refused(&b, KNA_ESHAPE, "dout: (2,4,4)");
    b = good;
    b.out.dim = 3;
    backward_expect_refused(&b, KNA_ESHAPE, "out: (2,3,3)");
    b = good;
    b.dout.type = KNA_I8;
    backward_expect_refused(&b, KNA_ETYPE, "dout");
    b = good;
    b.gradients.dk.row_stride_bytes = 18;
    backward_expect_refused(&b, KNA_EINVAL, "dk: strides");
    b = good;
    float sink_gradients[2];
    b.gradients.dsinks = sink_gradients;
    backward_expect_refused(&b, KNA_EINVAL, "dsinks");
    b = good;
    case_put(&b.dout, 1, 2, 3, NAN);
    backward_expect_refused(&b, KNA_EVALUE, "dout: NaN or infinity at head 1, row 2, column 3");
    case_put(&b.dout, 1, 2, 3, 0);
    float kept = c.lse[4];
    c.lse[4] = NAN;
    backward_expect_refused(&b, KNA_EVALUE, "lse: NaN or infinity at head 1, row 1");
    c.lse[4] = kept;
    c.options.method = KNA_MOM;
    backward_expect_refused(&b, KNA_EINVAL, "method: there are no gradients of mom");
    c.options.method = KNA_GUMBEL;
    c.options.samples = 1;
    backward_expect_refused(&b, KNA_EINVAL, "samples");
    c.options.samples = 8;
    c.options.softcap = 2;
    backward_expect_refused(&b, KNA_EINVAL, "softcap");
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
