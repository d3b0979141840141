/*
 * prop_attend_index.c - attention with an index that lives: grown row by row, shrunk, refilled, out of date, with garbage in
 * rows nobody may read; and causality, which an index must not break.
 */
#include "knn_oracle.h"

#define TOLERANCE 1e-5

static kna_index *index_for(const random_case *c, kna_context *context)
{
    kna_index *index = NULL;
    if (kna_index_new(context, &index, c->shape.h_kv, c->shape.d, c->shape.dv) != KNA_OK) abort();
    return index;
}

static void update(kna_context *context, kna_index *index, const random_case *c, int64_t first, int64_t count)
{
    int status = kna_index_update(context, index, &c->k, &c->v, first, count);
    EXPECT_THAT(status == KNA_OK, "%s", kna_context_message(context));
}

static bool same_results(random_case *c, const float *a, const float *b, const char *what)
{
    size_t bytes = (size_t)(c->shape.h * c->shape.m * (c->shape.dv + 1)) * sizeof *a;
    return EXPECT_THAT(memcmp(a, b, bytes) == 0, "%s gives other bits: %s", what, case_text(c));
}

static void random_near(random_case *c)
{
    kna_attend_options *o = &c->options;
    o->method = test_below(3) ? KNA_KNN : KNA_TOPK;
    o->k_near = 1 + (int64_t)test_below(30);
    o->near_sinks = (int64_t)test_below(8) - 1;
    o->near_window = (int64_t)test_below(40) - 1;
}

/* ---- one index, many ways to come by it */

/* Rows given in pieces of any size and order, some twice: as if given at once. With and without an index: the same bits. */
static void pieces(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        case_random(&c, random_shape(3e5));
        random_near(&c);
        int64_t n = c.shape.n;
        case_attend(&c, context, NULL);
        float *own = case_result(&c);
        c.options.index = index_for(&c, context);
        update(context, c.options.index, &c, 0, n);
        case_attend(&c, context, NULL);
        float *given = case_result(&c);
        same_results(&c, own, given, "an index of one's own");
        kna_index_free(c.options.index);

        c.options.index = index_for(&c, context);
        for (int64_t first = n; first > 0;) { /* from the end, then a few again */
            int64_t count = 1 + (int64_t)test_below((size_t)(first < 40 ? first : 40));
            first -= count;
            update(context, c.options.index, &c, first, count);
        }
        for (int again = 0; again < 5; again++) {
            int64_t first = (int64_t)test_below((size_t)n);
            update(context, c.options.index, &c, first, (int64_t)test_below((size_t)(n - first) + 1));
        }
        int64_t stale = -1;
        EXPECT_INT(kna_index_audit(context, &stale, c.options.index, &c.k, &c.v, 200, test_random()), KNA_OK);
        EXPECT_INT(stale, 0);
        EXPECT_INT(kna_index_rows(c.options.index), n);
        case_attend(&c, context, NULL);
        float *pieced = case_result(&c);
        same_results(&c, own, pieced, "an index made in pieces");
        kna_index_free(c.options.index);
        free(own);
        free(given);
        free(pieced);
        case_end(&c);
    }
}

/* Row after row appended, as a cache grows, each time with the view that ends there: the same bits as a new index. */
static void growing(void)
{
    for (int i = 0; i < 6; i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        case_begin(&c, (shape){ 4, 2, 1, 150, 20, 12 });
        case_rows(&c, &c.k, random_query_type(), LAYOUT_INTERLEAVED, 1);
        case_rows(&c, &c.v, random_query_type(), LAYOUT_INTERLEAVED, 1);
        random_near(&c);
        c.options.k_near = 5;
        kna_index *index = index_for(&c, context);
        for (int64_t n = 1; n <= 150; n++) {
            c.k.rows = c.v.rows = n;
            update(context, index, &c, n - 1, 1);
            c.options.index = index;
            case_attend(&c, context, NULL);
            float *grown = case_result(&c);
            c.options.index = NULL;
            case_attend(&c, context, NULL);
            float *fresh = case_result(&c);
            bool same = same_results(&c, fresh, grown, "a grown index");
            free(grown);
            free(fresh);
            if (!same) break;
        }
        kna_index_free(index);
        case_end(&c);
    }
}

/* ---- rows that take no part */

static bool *absent_rows(random_case *c)
{
    bool *absent = case_hold(c, (size_t)c->shape.n);
    for (int64_t j = 0; j < c->shape.n; j++) absent[j] = test_below(5) == 0;
    int64_t first = (int64_t)test_below((size_t)c->shape.n), end = first + (int64_t)test_below(40);
    for (int64_t j = first; j < end && j < c->shape.n; j++) absent[j] = true;
    return absent;
}

static void check_near(random_case *c, kna_context *context, const bool *absent)
{
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    o->absent = absent;
    if (c->options.method == KNA_KNN) {
        knn_truth t = knn_truth_of(o, c, context, TOLERANCE);
        knn_case_holds(c, context, &t);
        expected_free(t.e);
    } else {
        double *logits = malloc((size_t)(o->n + 1) * sizeof *logits);
        expected *e = expected_new(o);
        for (int64_t row = 0; row < e->rows; row++) {
            oracle_logits(o, row / o->m, row % o->m, logits);
            double gap = oracle_keep_largest(logits, o->n, o->options.k_near);
            double doubt =
                oracle_product_slack(o, row / o->m, row % o->m, logits) + oracle_finish_slack(o, row / o->m, row % o->m, logits);
            e->lse[row] = oracle_mix(o, row / o->m, logits, e->out + row * o->dv);
            expected_bounds(e, o, row / o->m, row % o->m, logits, TOLERANCE);
            if (gap < 2 * doubt) e->out_bound[row] = e->lse_bound[row] = 1e3;
        }
        if (case_attend(c, context, NULL) == KNA_OK) case_matches(c, e);
        expected_free(e);
        free(logits);
    }
    oracle_free(o);
}

static void fill_garbage(random_case *c, const bool *absent)
{
    for (int64_t head = 0; head < c->shape.h_kv; head++) {
        for (int64_t j = 0; j < c->shape.n; j++) {
            if (!absent[j]) continue;
            case_put(&c->k, head, j, (int64_t)test_below((size_t)c->shape.d), test_below(2) ? NAN : INFINITY);
            case_put(&c->v, head, j, (int64_t)test_below((size_t)c->shape.dv), test_below(2) ? NAN : -INFINITY);
        }
    }
}

/* Rows removed, or never given, take no part; what they hold does not matter, NaN and infinity included. */
static void absent_rows_take_no_part(void)
{
    for (int i = 0; i < rounds(120); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        case_random(&c, random_shape(5e5));
        if (i % 2) {
            case_rows(&c, &c.k, test_below(2) ? KNA_F32 : KNA_F16, LAYOUT_PADDED, 1);
            case_rows(&c, &c.v, test_below(2) ? KNA_F32 : KNA_BF16, LAYOUT_PADDED, 1);
        }
        random_near(&c);
        if (test_below(4) == 0) c.options.k_near = c.shape.n + 1; /* everything, yet not the absent rows */
        bool *absent = absent_rows(&c);
        kna_index *index = index_for(&c, context);
        bool removed = test_below(2);
        if (removed) update(context, index, &c, 0, c.shape.n);
        for (int64_t j = 0; j < c.shape.n; j++) {
            if (removed && absent[j]) EXPECT_INT(kna_index_remove(context, index, j, 1), KNA_OK);
            if (!removed && (!absent[j] || j == c.shape.n - 1)) update(context, index, &c, j, 1);
        }
        if (!removed && absent[c.shape.n - 1]) EXPECT_INT(kna_index_remove(context, index, c.shape.n - 1, 1), KNA_OK);
        int64_t stale = -1;
        EXPECT_INT(kna_index_audit(context, &stale, index, &c.k, &c.v, 100, test_random()), KNA_OK);
        EXPECT_INT(stale, 0);
        if (i % 2) fill_garbage(&c, absent);
        c.options.unchecked = i % 2;
        c.options.index = index;
        check_near(&c, context, absent);
        kna_index_free(index);
        case_end(&c);
    }
}

/* Rows that come back are as new. */
static void rows_come_back(void)
{
    for (int i = 0; i < rounds(40); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        case_random(&c, random_shape(3e5));
        random_near(&c);
        kna_index *index = index_for(&c, context);
        update(context, index, &c, 0, c.shape.n);
        for (int again = 0; again < 5; again++) {
            int64_t first = (int64_t)test_below((size_t)c.shape.n), count = (int64_t)test_below((size_t)(c.shape.n - first) + 1);
            EXPECT_INT(kna_index_remove(context, index, first, count), KNA_OK);
            if (test_below(2)) case_rows(&c, &c.v, c.v.type, LAYOUT_PACKED, 1); /* other values meanwhile: all are given again */
            update(context, index, &c, test_below(2) ? first : 0, count);
            update(context, index, &c, 0, c.shape.n);
        }
        case_attend(&c, context, NULL);
        float *own = case_result(&c);
        c.options.index = index;
        case_attend(&c, context, NULL);
        float *given = case_result(&c);
        same_results(&c, own, given, "an index with rows that came back");
        kna_index_free(index);
        free(own);
        free(given);
        case_end(&c);
    }
}

/* Garbage in rows that the mask forbids to everyone does no harm either. */
static void garbage_behind_the_mask(void)
{
    for (int i = 0; i < rounds(80); i++) {
        random_case c = { .guarded = false };
        case_random(&c, random_shape(5e5));
        case_rows(&c, &c.k, test_below(2) ? KNA_F32 : KNA_F16, LAYOUT_PACKED, 1);
        case_rows(&c, &c.v, test_below(2) ? KNA_F32 : KNA_BF16, LAYOUT_PACKED, 1);
        random_near(&c);
        if (c.options.k_near + 80 > c.shape.n) c.options.k_near = 1; /* exact attention promises nothing here */
        c.options.near_window = c.options.near_sinks = 2;
        c.options.unchecked = 1;
        case_mask(&c, test_below(2) ? KNA_F32 : KNA_F16, 1, 0, false, false);
        bool *absent = absent_rows(&c);
        for (int64_t j = 0; j < c.shape.n * c.shape.m; j++) {
            if (absent[j % c.shape.n]) case_forbid(&c, 0, j / c.shape.n, j % c.shape.n);
        }
        fill_garbage(&c, absent);
        if (c.shape.n > 5) check_near(&c, context_best(), absent);
        case_end(&c);
    }
}

/* ---- causality */

/* Keys and values after a position do not touch the rows up to it, to the bit. */
static void future_is_not_seen(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        int64_t m = 20 + (int64_t)test_below(200), n = m + (int64_t)test_below(200);
        case_begin(&c, (shape){ 2, 1, m, n, 16, 8 });
        c.options.causal = 1;
        if (test_below(3)) {
            random_near(&c);
        }
        if (test_below(3) == 0) c.options.eps = 0.05f;
        case_attend(&c, context_best(), NULL);
        float *before = case_result(&c);
        int64_t query = (int64_t)test_below((size_t)m), position = query + n - m;
        float *k = (float *)(uintptr_t)c.k.data, *v = (float *)(uintptr_t)c.v.data;
        float size = test_below(2) ? 1 : 1e4f; /* also such that scales of int8 change */
        for (int64_t x = (position + 1) * 16; x < n * 16; x++) k[x] = size * (float)test_normal();
        for (int64_t x = (position + 1) * 8; x < n * 8; x++) v[x] = size * (float)test_normal();
        case_attend(&c, context_best(), NULL);
        float *after = case_result(&c);
        for (int64_t head = 0; head < 2; head++) {
            size_t bytes = (size_t)((query + 1) * 9) * sizeof *before;
            EXPECT_THAT(memcmp(before + head * m * 9, after + head * m * 9, bytes) == 0, "rows 0 .. %lld see the future: %s",
                        (long long)query, case_text(&c));
        }
        free(before);
        free(after);
        case_end(&c);
    }
}

/* A prompt at once, and token after token with a growing index: the same attention; the same bits wherever rows are not exact. */
static void prompt_and_tokens(void)
{
    for (int i = 0; i < 12; i++) {
        enum { N = 260, D = 16, DV = 8, H = 4 };
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        case_begin(&c, (shape){ H, 2, N, N, D, DV });
        case_rows(&c, &c.k, i % 2 ? KNA_F16 : KNA_F32, LAYOUT_INTERLEAVED, 1);
        case_rows(&c, &c.v, i % 2 ? KNA_F16 : KNA_F32, LAYOUT_INTERLEAVED, 1);
        c.options.causal = 1;
        random_near(&c);
        c.options.near_window = 8;
        case_attend(&c, context, NULL);
        float *all = case_result(&c);
        kna_index *index = index_for(&c, context);
        random_case token = c;
        float out[H * DV], lse[H];
        int64_t reach = c.options.k_near + (c.options.method == KNA_KNN ? 16 : 0); /* shorter contexts are exact by another path */
        for (int64_t query = 0; query < N; query++) {
            token.q.data = (const float *)c.q.data + query * D;
            token.q.head_stride_bytes = N * D * 4;
            token.q.rows = token.shape.m = 1;
            token.k.rows = token.v.rows = query + 1;
            token.out = (kna_out_rows){ out, 0, 0 };
            token.lse = lse;
            token.options.index = index;
            update(context, index, &token, query, 1);
            case_attend(&token, context, NULL);
            bool same = true;
            for (int64_t head = 0; head < H && same; head++) {
                const float *want = all + (head * N + query) * (DV + 1);
                bool bits =
                    memcmp(want, out + head * DV, sizeof(float) * DV) == 0 && memcmp(want + DV, lse + head, sizeof(float)) == 0;
                float off = fabsf(want[DV] - lse[head]);
                for (int64_t x = 0; x < DV; x++) off = fmaxf(off, fabsf(want[x] - out[head * DV + x]));
                same = EXPECT_THAT(bits || (query <= reach && off <= 6e-5f), "token %lld differs by %g from the prompt: %s",
                                   (long long)query, (double)off, case_text(&c));
            }
            if (!same) break;
        }
        kna_index_free(index);
        free(all);
        case_end(&c);
    }
}

/* ---- out of date */

/* Keys overwritten behind the index: the keys read are found out; an audit of rows finds keys and values. */
static void stale_index(void)
{
    for (int i = 0; i < rounds(40); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        int64_t n = 200 + (int64_t)test_below(400);
        case_begin(&c, (shape){ 4, 2, 1 + (int64_t)test_below(3), n, 32, 16 });
        random_near(&c);
        c.options.softcap = i % 3 == 0 ? 20 : 0;
        c.options.index = index_for(&c, context);
        update(context, c.options.index, &c, 0, n);
        kna_report r = { .size = sizeof r };
        case_attend(&c, context, &r);
        EXPECT_THAT(r.stale_rows == 0, "%lld stale rows of a fresh index: %s", (long long)r.stale_rows, case_text(&c));
        EXPECT(r.index_bytes == kna_index_bytes(c.options.index));

        int64_t stale = -1;
        if (i % 2) {
            case_rows(&c, &c.k, KNA_F32, LAYOUT_PACKED, 1);
            case_attend(&c, context, &r);
            EXPECT_THAT(r.stale_rows > 0 && (double)r.stale_rows <= r.keys_seen, "%lld stale rows, all keys are: %s",
                        (long long)r.stale_rows, case_text(&c));
        } else {
            case_rows(&c, &c.v, KNA_F32, LAYOUT_PACKED, 1);
        }
        EXPECT_INT(kna_index_audit(context, &stale, c.options.index, &c.k, &c.v, 50, test_random()), KNA_OK);
        EXPECT_THAT(stale > (i % 2 ? 49 : 40), "%lld of 50 rows stale, expected nearly all", (long long)stale);
        update(context, c.options.index, &c, 0, n);
        EXPECT_INT(kna_index_audit(context, &stale, c.options.index, &c.k, &c.v, 50, test_random()), KNA_OK);
        EXPECT_INT(stale, 0);
        case_attend(&c, context, &r);
        EXPECT_INT(r.stale_rows, 0);
        kna_index_free(c.options.index);
        case_end(&c);
    }
}

/* One query, one KV head, row 0 read in full as a sink; returns how many stale rows the call reports. */
static int64_t stale_at_sink(random_case *c, kna_index *index)
{
    kna_report r = { .size = sizeof r };
    c->options.method = KNA_KNN;
    c->options.k_near = 1;
    c->options.near_window = -1;
    c->options.near_sinks = 1;
    c->options.index = index;
    case_attend(c, context_best(), &r);
    return r.stale_rows;
}

/*
 * How sharp the check of keys read is: a key along the query that shrinks by a tenth is found out, but one on which int8 is as
 * wrong as it can be (its columns are +-1 by the sign of what int8 loses of the query's) is not suspected.
 */
static void stale_bound(void)
{
    for (int i = 0; i < 20; i++) {
        enum { D = 64 };
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        case_begin(&c, (shape){ 1, 1, 1, 64, D, 4 });
        float *k = (float *)(uintptr_t)c.k.data, scale;
        const float *q = c.q.data;
        int8_t q_i8[D];
        kna_index *index = index_for(&c, context);
        EXPECT_INT(kna_quantize_i8(context, q_i8, &scale, q, 1, D), KNA_OK);
        for (int x = 0; x < D; x++) k[x] = q[x] > scale * (float)q_i8[x] ? 1 : -1;
        update(context, index, &c, 0, 64);
        EXPECT_INT(stale_at_sink(&c, index), 0);
        memcpy(k, q, D * sizeof *k);
        update(context, index, &c, 0, 64);
        EXPECT_INT(stale_at_sink(&c, index), 0);
        for (int x = 0; x < D; x++) k[x] *= 0.9f;
        EXPECT_INT(stale_at_sink(&c, index), 1);
        kna_index_free(index);
        case_end(&c);
    }
}

/* A few rows of many: an audit finds about their share. */
static void audit_share(void)
{
    enum { N = 1000, SAMPLES = 2000 };
    random_case c = { .guarded = false };
    kna_context *context = context_best();
    case_begin(&c, (shape){ 1, 1, 1, N, 8, 8 });
    kna_index *index = index_for(&c, context);
    update(context, index, &c, 0, N);
    for (int64_t j = 0; j < N; j += 10) case_put(&c.k, 0, j, 3, 7.5f);
    int64_t stale = -1, again = -1, other = 0;
    EXPECT_INT(kna_index_audit(context, &stale, index, &c.k, &c.v, SAMPLES, 5), KNA_OK);
    EXPECT_NEAR(stale, 0.1 * SAMPLES, 6 * sqrt(SAMPLES * 0.09));
    EXPECT_INT(kna_index_audit(context, &again, index, &c.k, &c.v, SAMPLES, 5), KNA_OK);
    EXPECT_INT(again, stale);
    for (uint64_t seed = 6; seed < 12; seed++) {
        EXPECT_INT(kna_index_audit(context, &again, index, &c.k, &c.v, SAMPLES, seed), KNA_OK);
        other += again != stale;
    }
    EXPECT(other > 0);
    /* With one row present, every sample is that row. */
    EXPECT_INT(kna_index_remove(context, index, 0, N), KNA_OK);
    EXPECT_INT(kna_index_audit(context, &stale, index, &c.k, &c.v, SAMPLES, 5), KNA_OK);
    EXPECT_INT(stale, 0);
    update(context, index, &c, 777, 1);
    case_put(&c.k, 0, 777, 3, -7.5f);
    EXPECT_INT(kna_index_audit(context, &stale, index, &c.k, &c.v, 30, 5), KNA_OK);
    EXPECT_INT(stale, 30);
    kna_index_free(index);
    case_end(&c);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(pieces);
    TEST(growing);
    TEST(absent_rows_take_no_part);
    TEST(rows_come_back);
    TEST(garbage_behind_the_mask);
    TEST(future_is_not_seen);
    TEST(prompt_and_tokens);
    TEST(stale_index);
    TEST(stale_bound);
    TEST(audit_share);
    contexts_free();
    return test_end();
}
