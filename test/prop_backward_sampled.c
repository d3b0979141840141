/*
 * prop_backward_sampled.c - gradients of topk and uniform, whose sets the test finds by itself, against central differences with the
 * sets held fixed; and of keys drawn, as chains of each kind, by what must hold of estimates.
 */
#include "backward_case.h"

#include "../src/base/base.h"

/* ---- sets: what each key stands for, as a logarithm; -INFINITY: it is left out */

static int by_logit(const void *a, const void *b)
{
    double x = **(const double *const *)a, y = **(const double *const *)b;
    return x > y ? -1 : x < y ? 1 : *(const double *const *)a < *(const double *const *)b ? -1 : 1;
}

/* Fisher and Yates over the tail, by the random numbers of the row: those the library is documented to draw, in its order. */
static void sample_tail(const random_case *c, int64_t head, int64_t query, int32_t *tail, int64_t rest, int64_t count)
{
    uint64_t position = (uint64_t)(query + c->shape.n - c->shape.m + c->options.causal_shift + KNA_MAX_ROWS);
    for (int64_t i = 0; i < count; i++) {
        int64_t other =
            i + (int64_t)(kna__uniform(c->options.seed, (uint64_t)head << 40 | position, (uint64_t)i) * (double)(rest - i));
        int32_t key = tail[other];
        tail[other] = tail[i];
        tail[i] = key;
    }
}

/* One row's; returns how clear the k-th largest logit is of the next. */
static double row_set(const random_case *c, const oracle *o, int64_t head, int64_t query, double *extra)
{
    int64_t n = c->shape.n, k = c->options.k_near, seen = 0, rest = 0;
    double *logits = calloc((size_t)n + 1, sizeof *logits), gap = INFINITY;
    double **order = calloc((size_t)n + 1, sizeof *order);
    int32_t *tail = calloc((size_t)n + 1, sizeof *tail);
    oracle_logits(o, head, query, logits);
    for (int64_t j = 0; j < n; j++) {
        extra[j] = -(double)INFINITY;
        if (logits[j] > -(double)INFINITY) order[seen++] = logits + j;
    }
    qsort(order, (size_t)seen, sizeof *order, by_logit);
    for (int64_t i = 0; i < seen && i < k; i++) extra[order[i] - logits] = 0;
    if (seen > k) gap = *order[k - 1] - *order[k];
    if (seen > k && c->options.method == KNA_UNIFORM) {
        for (int64_t j = 0; j < n; j++)
            if (logits[j] > -(double)INFINITY && extra[j] < 0) tail[rest++] = (int32_t)j;
        bool has_pilot = c->options.certificate != KNA_CERTIFICATE_ASYMPTOTIC;
        int64_t pilot = !has_pilot ? 0 : rest / 50 > 32 ? rest / 50 : rest < 32 ? rest : 32;
        int64_t samples = c->options.samples < rest - pilot ? c->options.samples : rest - pilot;
        sample_tail(c, head, query, tail, rest, pilot + samples);
        for (int64_t i = 0; i < pilot + samples; i++)
            extra[tail[i]] = i < pilot ? 0 : log((double)(rest - pilot) / (double)samples);
    }
    free(logits);
    free(order);
    free(tail);
    return gap;
}

/* All rows'; false where f32 may have chosen otherwise. */
static bool sets_of(const random_case *c, const oracle *o, double *extra)
{
    bool is_clear = true;
    for (int64_t row = 0; row < c->shape.h * c->shape.m; row++) {
        int64_t head = row / c->shape.m, query = row % c->shape.m;
        is_clear &= row_set(c, o, head, query, extra + row * c->shape.n) > 1e-4;
    }
    return is_clear;
}

static void options_of(random_case *c, int round)
{
    int64_t n = c->shape.n;
    c->options.method = round % 2 ? KNA_UNIFORM : KNA_TOPK;
    c->options.k_near = 1 + (int64_t)test_below((size_t)(n / 3 + 1));
    c->options.samples = 1 + (int64_t)test_below((size_t)(n / 2 + 1));
    c->options.seed = test_random();
    static const int certificates[] = { KNA_CERTIFICATE_FINITE, KNA_CERTIFICATE_ASYMPTOTIC, KNA_CERTIFICATE_BERNSTEIN };
    if (c->options.method == KNA_UNIFORM) c->options.certificate = certificates[round % 3];
    if (test_below(2)) c->options.causal = 1;
    if (test_below(4) == 0) c->options.softcap = 2;
    if (test_below(4) == 0) case_per_head(c, &c->options.sinks, -1, 2);
    if (test_below(4) == 0) case_mask(c, KNA_F32, 1, 0.2, true, true);
}

/* The oracle with its sets held fixed, by differences. */
static void oracle_by_differences(void)
{
    for (int i = 0; i < rounds(12); i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 5, 14, 3, 4 });
        options_of(&c, i);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        double *extra = case_hold(&c, 4 * 5 * 14 * sizeof *extra), *dout = case_hold(&c, 4 * 5 * 4 * sizeof *dout);
        for (int x = 0; x < 4 * 5 * 4; x++) dout[x] = test_normal();
        sets_of(&c, o, extra);
        oracle_expect_differences(o, dout, extra, 1e-7);
        oracle_free(o);
        case_end(&c);
    }
}

/* ---- the library */

static kna_context *random_context(void)
{
    kna_context *const *all;
    int count = contexts(&all);
    return all[test_below((size_t)count)];
}

/* Of a row the dS add up to 0 and the shares to 1: what every key is shifted by changes nothing, so sums of dk = q dS do not either. */
static void frozen_sets(void)
{
    int clear = 0, tried = rounds(160);
    for (int i = 0; i < tried; i++) {
        random_case c = { .guarded = false };
        int64_t g = 1 + (int64_t)test_below(3), h_kv = 1 + (int64_t)test_below(3);
        case_begin(&c, (shape){ g * h_kv, h_kv, 1 + (int64_t)test_below(40), 1 + (int64_t)test_below(150),
                                1 + (int64_t)test_below(40), 1 + (int64_t)test_below(40) });
        case_rows(&c, &c.k, random_type(c.shape.d), (int)test_below(LAYOUT_COUNT), 1);
        case_rows(&c, &c.v, random_type(c.shape.dv), (int)test_below(LAYOUT_COUNT), 1);
        backward_case b = backward_begin(&c);
        options_of(&c, i);
        b.gradients.dsinks = c.options.sinks ? case_hold(&c, (size_t)c.shape.h * sizeof(float)) : NULL;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        double *extra = case_hold(&c, (size_t)(c.shape.h * c.shape.m * c.shape.n) * sizeof *extra);
        bool is_clear = sets_of(&c, o, extra), good = backward_both(&b, random_context());
        if (good && is_clear) {
            gradient_oracle *truth = gradient_oracle_with(o, b.dout_numbers, extra);
            good = backward_matches(&b, truth);
            gradient_oracle_free(truth);
        }
        clear += is_clear;
        if (!good) printf("  round %d: %s\n", i, case_text(&c));
        oracle_free(o);
        free(b.dout_numbers);
        case_end(&c);
        if (!good) break;
    }
    EXPECT_THAT(clear > tried / 2, "only %d of %d had clear sets", clear, tried);
}

/* Large enough for several blocks of queries, of tiles and of slices. */
static void laws(void)
{
    static const int methods[] = { KNA_TOPK, KNA_UNIFORM, KNA_GUMBEL, KNA_REJECTION, KNA_STRATIFIED, KNA_CENTROID, KNA_CONTROL };
    for (int i = 0; i < 10; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 300, 420, 40, 36 });
        backward_case b = backward_begin(&c);
        c.options.method = methods[i < 4 ? i : i < 7 ? 3 : i - 3];
        c.options.chain = i == 4 ? KNA_CHAIN_JOINT : i == 5 ? KNA_CHAIN_TAIL : 0;
        c.options.causal = 1;
        c.options.k_near = 30;
        c.options.samples = 20;
        if (i == 6) c.options.eps = 0.2f, c.options.method = KNA_UNIFORM, c.options.chain = 0;
        backward_expect_same_bits(&b);
        if (c.options.chain != KNA_CHAIN_JOINT) backward_expect_values_add_up(&b);
        backward_expect_one_at_a_time(&b);
        free(b.dout_numbers);
        case_end(&c);
    }
}

/* Rows absent from the caller's index take no part. */
static void absent_rows(void)
{
    static const int methods[] = { KNA_TOPK, KNA_UNIFORM, KNA_GUMBEL };
    for (int i = 0; i < 3; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 2, 1, 6, 60, 8, 8 });
        backward_case b = backward_begin(&c);
        EXPECT_INT(kna_index_new(context_best(), &c.options.index, KNA_TOPK, 1, 8, 8), KNA_OK);
        EXPECT_INT(kna_index_update(context_best(), c.options.index, &c.k, &c.v, 0, 60), KNA_OK);
        EXPECT_INT(kna_index_remove(context_best(), c.options.index, 20, 7), KNA_OK);
        c.options.method = methods[i];
        for (c.options.k_near = 5; c.options.k_near <= 60; c.options.k_near += 55) {
            if (!backward_both(&b, context_best())) break;
            for (int64_t row = 0; row < 60; row++) {
                const float *dk = b.gradients.dk.data + row * (b.gradients.dk.row_stride_bytes / 4);
                if (row >= 20 && row < 27) EXPECT(dk[0] == 0 && dk[7] == 0);
            }
        }
        kna_index_free(c.options.index);
        free(b.dout_numbers);
        case_end(&c);
    }
}

/*
 * Heads that are not all alike, and strata: the test does not choose them again, but what was computed, moved by a little, says what
 * its gradient along that move is, as long as no set changes. Values do not choose: dv to f32. Sums: see backward_case.h.
 */
static void diverse_heads(void)
{
    static const int32_t group_count = 5;
    for (int i = 0; i < 4; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 30, 200, 16, 8 });
        case_rows(&c, &c.v, KNA_F32, LAYOUT_PACKED, 1);
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 2);
        int32_t *groups = case_hold(&c, 200 * sizeof *groups);
        for (int j = 0; j < 200; j++) groups[j] = (int32_t)test_below((size_t)group_count);
        backward_case b = backward_begin(&c);
        c.options.method = i % 2 ? KNA_UNIFORM : KNA_TOPK;
        c.options.diverse = i < 2 ? KNA_DIVERSE_QUOTA : KNA_DIVERSE_MMR;
        c.options.stratify = i % 2;
        c.options.key_groups = groups;
        c.options.key_group_count = group_count;
        c.options.k_near = 21;
        c.options.samples = 40;
        c.options.causal = 1;
        if (!backward_both(&b, context_best())) break;
        backward_expect_values_add_up(&b);
        double along = 0, before = 0, after = 0;
        float *v = (float *)(uintptr_t)c.v.data;
        for (int64_t x = 0; x < 4 * 30 * 8; x++) before += b.dout_numbers[x] * (double)case_out_row(&c, x / 240, x / 8 % 30)[x % 8];
        for (int64_t x = 0; x < 2 * 200 * 8; x++) { /* linear in the values: a move of any length */
            float step = (float)test_normal();
            along += (double)step * (double)b.gradients.dv.data[x / 1600 * (b.gradients.dv.head_stride_bytes / 4) +
                                                                x / 8 % 200 * (b.gradients.dv.row_stride_bytes / 4) + x % 8];
            v[x] += step;
        }
        EXPECT_INT(case_attend(&c, context_best(), NULL), KNA_OK);
        for (int64_t x = 0; x < 4 * 30 * 8; x++) after += b.dout_numbers[x] * (double)case_out_row(&c, x / 240, x / 8 % 30)[x % 8];
        EXPECT_NEAR(after - before, along, 1e-3 * (fabs(along) + 1));
        c.options.landmarks = 3;
        backward_expect_refused(&b, KNA_EINVAL, "landmarks: ");
        c.options.landmarks = 0;
        c.options.tail = KNA_TAIL_MEAN;
        if (c.options.method == KNA_TOPK) backward_expect_refused(&b, KNA_EINVAL, "tail: ");
        free(b.dout_numbers);
        case_end(&c);
    }
}

/* Where every key is a group of its own, quotas make all of them the head, and gradients those of exact attention. */
static void whole_heads(void)
{
    for (int method = KNA_TOPK; method <= KNA_UNIFORM; method += KNA_UNIFORM - KNA_TOPK) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 9, 70, 16, 8 });
        int32_t *groups = case_hold(&c, 70 * sizeof *groups);
        for (int32_t j = 0; j < 70; j++) groups[j] = j;
        backward_case b = backward_begin(&c);
        c.options.method = method;
        c.options.diverse = KNA_DIVERSE_QUOTA;
        c.options.key_groups = groups;
        c.options.key_group_count = 70;
        c.options.k_near = 6;
        c.options.samples = 5;
        c.options.causal = 1;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        gradient_oracle *truth = gradient_oracle_new(o, b.dout_numbers);
        EXPECT(backward_both(&b, random_context()) && backward_matches(&b, truth));
        gradient_oracle_free(truth);
        oracle_free(o);
        free(b.dout_numbers);
        case_end(&c);
    }
}

/* ---- chains */

typedef struct moments {
    double *sum, *square, error; /* of what is off, number by number; mean sum of squares */
} moments;

/* A case that is the same whatever the seed of the run. */
static backward_case chain_case(random_case *c, shape s)
{
    uint64_t random = test_state.random;
    test_state.random = 4711;
    case_begin(c, s);
    case_rows(c, &c->q, KNA_F32, LAYOUT_PACKED, 1.5);
    case_rows(c, &c->k, KNA_F32, LAYOUT_PACKED, 1);
    case_rows(c, &c->v, KNA_F32, LAYOUT_PACKED, 1);
    backward_case b = backward_begin(c);
    case_rows(c, &b.dout, KNA_F32, LAYOUT_PACKED, 1);
    for (int64_t i = 0; i < s.h * s.m * s.dv; i++) b.dout_numbers[i] = (double)((const float *)b.dout.data)[i];
    test_state.random = random;
    c->options.causal = 1;
    return b;
}

static const kna_gradients *wanted(const backward_case *b, kna_gradients *room)
{
    *room = b->gradients;
    if (b->c->options.chain == KNA_CHAIN_SIGNED) room->dq.data = room->dk.data = NULL;
    return room;
}

/* `seeds` runs against the numbers `truth`, those of a kind `from` .. `end` - 1. */
static moments run_seeds(const backward_case *b, const float *truth, int seeds, int first_seed)
{
    shape s = b->c->shape;
    int64_t numbers = backward_numbers(s), from = b->c->options.chain == KNA_CHAIN_SIGNED ? numbers - s.h_kv * s.n * s.dv : 0;
    moments m = { calloc((size_t)numbers, sizeof(double)), calloc((size_t)numbers, sizeof(double)), 0 };
    kna_gradients room;
    for (int seed = 0; seed < seeds; seed++) {
        b->c->options.seed = (uint64_t)(first_seed + seed);
        if (!EXPECT_INT(backward_run(b, context_best(), wanted(b, &room)), KNA_OK)) break;
        float *now = backward_copy(&b->gradients, s);
        for (int64_t i = from; i < numbers; i++) {
            double off = (double)now[i] - (double)truth[i];
            m.sum[i] += off;
            m.square[i] += off * off;
            m.error += off * off / seeds;
        }
        free(now);
    }
    return m;
}

static void moments_free(const moments *m)
{
    free(m->sum);
    free(m->square);
}

/* Exact gradients, for the caller to free. */
static float *truth_of(const backward_case *b)
{
    int method = b->c->options.method, chain = b->c->options.chain;
    b->c->options.method = KNA_EXACT;
    b->c->options.chain = 0;
    backward_both(b, context_best());
    b->c->options.method = method;
    b->c->options.chain = chain;
    return backward_copy(&b->gradients, b->c->shape);
}

/* Means over seeds are the exact gradients; a bias of a tenth of an estimate's deviation would show. */
static void unbiased(void)
{
    enum { SEEDS = 4000 }; /* fewer would let keys seldom drawn look off */
    for (int chain = 0; chain < KNA_CHAIN_COUNT; chain++) {
        for (int method = KNA_GUMBEL; method <= KNA_REJECTION; method++) {
            random_case c = { .guarded = false };
            backward_case b = chain_case(&c, (shape){ 2, 1, 5, 60, 4, 3 });
            c.options.method = method;
            c.options.chain = chain;
            c.options.k_near = 10;
            c.options.samples = 16;
            float *truth = truth_of(&b);
            moments m = run_seeds(&b, truth, SEEDS, 0);
            for (int64_t i = 0; i < backward_numbers(c.shape); i++) {
                double error = sqrt(m.square[i]) / SEEDS;
                if (!EXPECT_THAT(fabs(m.sum[i] / SEEDS) <= 4.5 * error + 1e-6, "%s, %s: number %lld is off by %.3g +- %.3g",
                                 kna_method_name(method), kna_chain_name(chain), (long long)i, m.sum[i] / SEEDS, error)) {
                    break;
                }
            }
            moments_free(&m);
            free(truth);
            free(b.dout_numbers);
            case_end(&c);
        }
    }
}

/* Sum over columns of Y^2 - |P'y|^2, over t; and what the shift of the paper's code comes to. One query head. */
typedef struct predicted {
    double by_sign, by_shift;
} predicted;

static predicted predict(const backward_case *b, const float *truth)
{
    shape s = b->c->shape;
    double t = (double)(b->c->options.samples * s.m);
    const float *dv = truth + s.m * s.d + s.n * s.d;
    predicted p = { 0, 0 };
    for (int64_t column = 0; column < s.dv; column++) {
        double all = 0, sum = 0, least = 0, square = 0;
        for (int64_t i = 0; i < s.m; i++) {
            double y = b->dout_numbers[i * s.dv + column];
            all += fabs(y);
            sum += y;
            least = fmin(least, y);
        }
        for (int64_t j = 0; j < s.n; j++) square += (double)dv[j * s.dv + column] * (double)dv[j * s.dv + column];
        double shifted = sum - (double)s.m * least, constant = -(double)s.m * least;
        p.by_sign += (all * all - square) / t;
        p.by_shift += (shifted * shifted + constant * constant) / t; /* less what the squares of the two expectations are */
    }
    return p;
}

/* With dout plus a constant, and the constant alone: two walks, of which the second is taken away again. */
static double shift_error(const backward_case *b, const float *truth, int seeds)
{
    shape s = b->c->shape;
    int64_t numbers = s.h * s.m * s.dv, values = s.n * s.dv, from = backward_numbers(s) - values;
    float *dout = malloc((size_t)numbers * sizeof *dout), *sum = calloc((size_t)values, sizeof *sum), least = 0;
    double error = 0;
    memcpy(dout, b->dout.data, (size_t)numbers * sizeof *dout);
    for (int64_t i = 0; i < numbers; i++) least = fminf(least, dout[i]);
    kna_gradients room;
    backward_case shifted = *b;
    shifted.dout.data = dout;
    for (int seed = 0; seed < seeds; seed++) {
        for (int walk = 0; walk < 2; walk++) {
            for (int64_t i = 0; i < numbers; i++) dout[i] = (walk ? 0 : ((const float *)b->dout.data)[i]) - least;
            b->c->options.seed = (uint64_t)(2 * seed + walk);
            EXPECT_INT(backward_run(&shifted, context_best(), wanted(&shifted, &room)), KNA_OK);
            float *now = backward_copy(&shifted.gradients, s);
            for (int64_t i = 0; i < values; i++) sum[i] = walk ? sum[i] - now[from + i] : now[from + i];
            free(now);
        }
        for (int64_t i = 0; i < values; i++) error += pow((double)sum[i] - (double)truth[from + i], 2) / seeds;
    }
    free(dout);
    free(sum);
    return error;
}

/* The paper's walk: as far off as it is said to be, and nearer than by a shift. */
static void signed_walks(void)
{
    enum { SEEDS = 1200 };
    random_case c = { .guarded = false };
    backward_case b = chain_case(&c, (shape){ 1, 1, 40, 40, 4, 3 });
    c.options.method = KNA_GUMBEL;
    c.options.chain = KNA_CHAIN_SIGNED;
    c.options.k_near = 8;
    c.options.samples = 4;
    float *truth = truth_of(&b);
    predicted p = predict(&b, truth);
    moments m = run_seeds(&b, truth, rounds(SEEDS), 0);
    EXPECT_NEAR(m.error / p.by_sign, 1, 0.1);
    double by_shift = shift_error(&b, truth, rounds(SEEDS) / 4);
    EXPECT_THAT(by_shift > 3 * m.error, "by sign %g, by shift %g", m.error, by_shift);
    EXPECT_THAT(p.by_shift > 3 * p.by_sign, "foreseen %g, %g", p.by_sign, p.by_shift);
    moments_free(&m);
    free(truth);
    free(b.dout_numbers);
    case_end(&c);
}

/* Where no number of dout is negative a column of dv adds up to that of dout, whatever is drawn. */
static void positive_columns(void)
{
    random_case c = { .guarded = false };
    backward_case b = chain_case(&c, (shape){ 2, 1, 50, 80, 4, 3 });
    float *dout = case_hold(&c, 2 * 50 * 3 * sizeof *dout);
    double want[3] = { 0 };
    kna_gradients room;
    for (int i = 0; i < 2 * 50 * 3; i++) want[i % 3] += (double)(dout[i] = fabsf((float)test_normal()));
    b.dout.data = dout;
    c.options.method = KNA_REJECTION;
    c.options.chain = KNA_CHAIN_SIGNED;
    c.options.k_near = 8;
    c.options.samples = 3;
    EXPECT_INT(backward_run(&b, context_best(), wanted(&b, &room)), KNA_OK);
    for (int column = 0; column < 3; column++) {
        double got = 0;
        for (int64_t j = 0; j < 80; j++) got += (double)b.gradients.dv.data[j * (b.gradients.dv.row_stride_bytes / 4) + column];
        EXPECT_NEAR(got, want[column], 1e-4 * want[column]);
    }
    free(b.dout_numbers);
    case_end(&c);
}

static double error_of(const backward_case *b, const float *truth, int chain, int64_t samples, int seeds)
{
    b->c->options.chain = chain;
    b->c->options.samples = samples;
    moments m = run_seeds(b, truth, seeds, 0);
    moments_free(&m);
    return m.error;
}

/*
 * Root mean square errors fall with the root of the draws; the head as it is beats drawing it; and where outputs differ in how much
 * they matter, choosing queries by that beats asking all alike.
 */
static void errors(void)
{
    enum { SEEDS = 160 };
    random_case c = { .guarded = false };
    backward_case b = chain_case(&c, (shape){ 2, 1, 48, 96, 6, 5 });
    float *dout = case_hold(&c, 2 * 48 * 5 * sizeof *dout);
    for (int i = 0; i < 2 * 48 * 5; i++) dout[i] = ((const float *)b.dout.data)[i] * (i / 5 % 8 == 0 ? 10 : 0.3f);
    b.dout.data = dout;
    c.options.method = KNA_GUMBEL;
    c.options.k_near = 12;
    float *truth = truth_of(&b);
    for (int chain = 0; chain < KNA_CHAIN_COUNT; chain++) {
        double few = error_of(&b, truth, chain, 8, rounds(SEEDS)), many = error_of(&b, truth, chain, 64, rounds(SEEDS));
        double slope = log(many / few) / 2 / log(8.0);
        EXPECT_THAT(fabs(slope + 0.5) <= 0.05, "%s: errors %.4g, %.4g, slope %.3f", kna_chain_name(chain), sqrt(few), sqrt(many),
                    slope);
    }
    double rows = error_of(&b, truth, KNA_CHAIN_ROWS, 16, rounds(SEEDS)),
           tail = error_of(&b, truth, KNA_CHAIN_TAIL, 16, rounds(SEEDS));
    double joint = error_of(&b, truth, KNA_CHAIN_JOINT, 16, rounds(SEEDS));
    EXPECT_THAT(tail < 0.7 * rows, "head as it is %.4g, all drawn %.4g", tail, rows);
    EXPECT_THAT(joint < 0.7 * rows, "queries drawn %.4g, all alike %.4g", joint, rows);
    free(truth);
    free(b.dout_numbers);
    case_end(&c);
}

/* Draws of a signed chain do not depend on the threads. */
static void signed_bits(void)
{
    random_case c = { .guarded = false };
    backward_case b = chain_case(&c, (shape){ 4, 2, 300, 330, 4, 6 });
    float *first = NULL;
    c.options.method = KNA_GUMBEL;
    c.options.chain = KNA_CHAIN_SIGNED;
    c.options.samples = 5;
    c.options.k_near = 9;
    for (int threads = 1; threads < 6; threads += 2) {
        kna_context_options options = KNA_CONTEXT_OPTIONS;
        kna_context *context;
        kna_gradients room;
        options.threads = threads;
        EXPECT_INT(kna_context_new(&context, &options), KNA_OK);
        EXPECT_INT(backward_run(&b, context, wanted(&b, &room)), KNA_OK);
        float *now = backward_copy(&b.gradients, c.shape);
        if (first) EXPECT(memcmp(now, first, (size_t)backward_numbers(c.shape) * sizeof *now) == 0);
        free(first);
        first = now;
        kna_context_free(context);
    }
    free(first);
    free(b.dout_numbers);
    case_end(&c);
}

/* A chain's draws are the forward call's, with a gap as without: so many are needed of each row that the tail is read, or not. */
static void forward_draws(void)
{
    for (int i = 0; i < 6; i++) {
        random_case c = { .guarded = false };
        backward_case b = chain_case(&c, (shape){ 2, 1, 50, 80, 4, 3 });
        int32_t *draws = case_hold(&c, 2 * 50 * 7 * sizeof *draws);
        double want[80 * 3] = { 0 };
        c.options.method = i % 2 ? KNA_REJECTION : KNA_GUMBEL;
        c.options.gap = (float)(i / 2) * 2;
        c.options.k_near = 40; /* half of the rows see fewer */
        c.options.samples = 7;
        c.options.seed = test_random();
        c.options.draws = draws;
        EXPECT(backward_both(&b, context_best()));
        for (int64_t at = 0; at < 2 * 50 * 7; at++) {
            for (int64_t x = 0; x < 3; x++) want[draws[at] * 3 + x] += b.dout_numbers[at / 7 * 3 + x] / 7;
        }
        for (int64_t x = 0; x < 80 * 3; x++) {
            const float *row = b.gradients.dv.data + x / 3 * (b.gradients.dv.row_stride_bytes / 4);
            if (!EXPECT_NEAR(row[x % 3], want[x], 1e-4 * (1 + fabs(want[x])))) break;
        }
        free(b.dout_numbers);
        case_end(&c);
    }
}

/* Nothing to draw by, nobody who sees a key, one key. */
static void corners(void)
{
    for (int chain = 0; chain < KNA_CHAIN_COUNT; chain++) {
        random_case c = { .guarded = false };
        kna_gradients room;
        backward_case b = chain_case(&c, (shape){ 2, 1, 7, 4, 3, 2 }); /* three queries see nothing */
        c.options.method = KNA_GUMBEL;
        c.options.chain = chain;
        c.options.k_near = 1;
        c.options.samples = 4;
        EXPECT_INT(backward_run(&b, context_best(), wanted(&b, &room)), KNA_OK);
        memset((void *)(uintptr_t)b.dout.data, 0, 2 * 7 * 2 * sizeof(float));
        EXPECT_INT(backward_run(&b, context_best(), wanted(&b, &room)), KNA_OK);
        for (int64_t j = 0; j < 4 * 2; j++) {
            EXPECT(b.gradients.dv.data[j / 2 * (b.gradients.dv.row_stride_bytes / 4) + j % 2] == 0);
        }
        free(b.dout_numbers);
        case_end(&c);
    }
}

static void bad_input(void)
{
    random_case c = { .guarded = false };
    backward_case b = chain_case(&c, (shape){ 2, 1, 3, 9, 4, 4 });
    c.options.method = KNA_GUMBEL;
    c.options.chain = KNA_CHAIN_COUNT;
    backward_expect_refused(&b, KNA_EINVAL, "chain: 4 is none of rows, joint, signed, tail");
    c.options.chain = KNA_CHAIN_SIGNED;
    backward_expect_refused(&b, KNA_EINVAL, "dq: a signed chain");
    c.options.chain = KNA_CHAIN_TAIL;
    c.options.method = KNA_UNIFORM;
    backward_expect_refused(&b, KNA_EINVAL, "chain: uniform has no gradients by keys drawn");
    c.options.chain = 0;
    c.options.method = KNA_MOM;
    backward_expect_refused(&b, KNA_EINVAL, "method: there are no gradients of mom");
    for (c.options.method = KNA_STRATIFIED; c.options.method <= KNA_CONTROL; c.options.method++) {
        c.options.softcap = 2;
        backward_expect_refused(&b, KNA_EINVAL, "softcap: gradients of ");
        c.options.softcap = 0;
        case_mask(&c, KNA_F32, 1, 0.1, false, false);
        backward_expect_refused(&b, KNA_EINVAL, "mask: gradients of ");
        c.options.mask.data = NULL;
        c.options.slopes = (const float[]){ 0.1f, 0.2f };
        backward_expect_refused(&b, KNA_EINVAL, "slopes: gradients of ");
        c.options.slopes = NULL;
    }
    c.options.method = KNA_UNIFORM;
    c.options.bounds = KNA_BOUNDS_CLUSTERS;
    backward_expect_refused(&b, KNA_EINVAL, "bounds: ");
    c.options.bounds = 0;
    c.options.certificate = KNA_CERTIFICATE_DETERMINISTIC;
    backward_expect_refused(&b, KNA_EINVAL, "certificate: ");
    c.options.method = KNA_TOPK;
    backward_expect_refused(&b, KNA_EINVAL, "certificate: ");
    c.options.certificate = 0;
    EXPECT_INT(kna_index_new(context_best(), &c.options.index, KNA_KNN, 1, 4, 4), KNA_OK);
    for (c.options.method = KNA_TOPK; c.options.method <= KNA_REJECTION; c.options.method++) {
        c.options.gap = c.options.method >= KNA_GUMBEL ? 1 : 0; /* else they are refused for want of bounds */
        if (c.options.method != KNA_KNN) backward_expect_refused(&b, KNA_EINVAL, "index: gradients of ");
    }
    kna_index_free(c.options.index);
    free(b.dout_numbers);
    case_end(&c);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(oracle_by_differences);
    TEST(frozen_sets);
    TEST(laws);
    TEST(absent_rows);
    TEST(diverse_heads);
    TEST(whole_heads);
    TEST(unbiased);
    TEST(signed_walks);
    TEST(positive_columns);
    TEST(errors);
    TEST(signed_bits);
    TEST(forward_draws);
    TEST(corners);
    TEST(bad_input);
    contexts_free();
    return test_end();
}
