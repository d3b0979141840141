/*
 * prop_attend_index.c - attention with an index that lives: grown row by row, shrunk, refilled, rewritten, out of date. The keys
 * of an int8 index say the same however they came; clusters depend on when they were formed, so what holds of them is their
 * definition (knn_oracle.h), and nearness to exact attention where keys lie in tight groups.
 */
#include "knn_oracle.h"

#define TOLERANCE 1e-5

/* What clusters of tight groups may be off by, of ||exact||. */
#define NEAR 0.1

static kna_index *empty_index(const random_case *c, kna_context *context)
{
    kna_index *index = NULL;
    if (kna_index_new(context, &index, c->options.method, c->shape.h_kv, c->shape.d, c->shape.dv) != KNA_OK) abort();
    index->phase = 0; /* as a call's own */
    return index;
}

static void update(kna_context *context, kna_index *index, const random_case *c, int64_t first, int64_t count)
{
    int status = kna_index_update(context, index, &c->k, &c->v, first, count);
    EXPECT_THAT(status == KNA_OK, "%s", kna_context_message(context));
}

static void expect_stale(kna_context *context, const kna_index *index, const random_case *c, int64_t least, int64_t most)
{
    int64_t stale = -1;
    EXPECT_INT(kna_index_audit(context, &stale, index, &c->k, &c->v, 200, test_random()), KNA_OK);
    EXPECT_THAT(stale >= least && stale <= most, "%lld of 200 stale, expected %lld to %lld: %s", (long long)stale, (long long)least,
                (long long)most, kna_method_name(c->options.method));
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

/* A cache of keys in tight groups, of which a case sees some. */
static void grouped(random_case *c, int64_t m, int64_t n)
{
    case_begin(c, (shape){ 4, 2, m, n, 24, 12 });
    case_rows(c, &c->k, random_query_type(), LAYOUT_INTERLEAVED, 1);
    case_rows(c, &c->v, random_query_type(), LAYOUT_INTERLEAVED, 1);
    knn_grouped(c, 10, 0.02);
    c->options.method = KNA_KNN;
    c->options.k_near = 32;
}

static bool is_near(random_case *c, kna_context *context, const bool *absent, const char *what)
{
    case_attend(c, context, NULL);
    double most = knn_errors_of(c, absent).most;
    return EXPECT_THAT(most <= NEAR, "%s: off by %g: %s", what, most, case_text(c));
}

/* ---- one index, many ways to come by it */

/* Rows given in pieces of any size and order, some twice: as if given at once. With and without an index: the same bits. */
static void pieces(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        case_random(&c, random_shape(1e6));
        random_near(&c);
        int64_t n = c.shape.n;
        case_attend(&c, context, NULL);
        float *own = case_result(&c);
        c.options.index = empty_index(&c, context);
        update(context, c.options.index, &c, 0, n);
        case_attend(&c, context, NULL);
        float *given = case_result(&c);
        same_results(&c, own, given, "an index of one's own");
        kna_index_free(c.options.index);

        c.options.index = empty_index(&c, context);
        for (int64_t first = n; first > 0;) { /* from the end, then a few again */
            int64_t count = 1 + (int64_t)test_below((size_t)(first < 40 ? first : 40));
            first -= count;
            update(context, c.options.index, &c, first, count);
        }
        for (int again = 0; again < 5; again++) {
            int64_t first = (int64_t)test_below((size_t)n);
            update(context, c.options.index, &c, first, (int64_t)test_below((size_t)(n - first) + 1));
        }
        expect_stale(context, c.options.index, &c, 0, 0);
        EXPECT_INT(kna_index_rows(c.options.index), n);
        case_attend(&c, context, NULL);
        float *pieced = case_result(&c);
        same_results(&c, own, pieced, "an index made in pieces");
        expect_stale(context, c.options.index, &c, 0, 0);
        kna_index_free(c.options.index);
        free(own);
        free(given);
        free(pieced);
        case_end(&c);
    }
}

/* Row after row appended, as a cache grows, each time with the view that ends there: top-k has the bits of a new index. */
static void growing_topk(void)
{
    for (int i = 0; i < rounds(6) + 1; i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        case_begin(&c, (shape){ 4, 2, 1, 150, 20, 12 });
        case_rows(&c, &c.k, random_query_type(), LAYOUT_INTERLEAVED, 1);
        case_rows(&c, &c.v, random_query_type(), LAYOUT_INTERLEAVED, 1);
        random_near(&c);
        c.options.method = KNA_TOPK;
        c.options.k_near = 5;
        kna_index *index = empty_index(&c, context);
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

/* Clusters of a growing cache: as defined by what is formed so far, near exact attention, all but the last rows in clusters. */
static void growing_knn(void)
{
    for (int i = 0; i < rounds(6) + 1; i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        int64_t most = 2600, step = 1 + (int64_t)test_below(100), rows = 0, doubtful = 0;
        grouped(&c, 1, most);
        kna_index *index = NULL;
        EXPECT_INT(kna_index_new(context, &index, KNA_KNN, 2, 24, 12), KNA_OK);
        c.options.index = index;
        for (int64_t n = 1 + (int64_t)test_below(900), before = 0; n <= most; before = n, n += step) {
            c.k.rows = c.v.rows = c.shape.n = n;
            update(context, index, &c, before, n - before);
            for (int64_t x = 0; x < 4 * 24; x++) ((float *)(uintptr_t)c.q.data)[x] = (float)test_normal();
            if (n > 256 && !knn_case_holds(&c, context, NULL, 1, &rows, &doubtful)) break;
            if (!is_near(&c, context, NULL, "a growing index")) break;
            /* A piece is formed once it lies behind the window, 64 rows later at most; a segment 256 rows later at most. */
            EXPECT_THAT(knn_formed_pieces(index) * 256 >= n - 64 - 64 - 256, "%lld pieces of %lld rows",
                        (long long)knn_formed_pieces(index), (long long)n);
            EXPECT_THAT(n < 1024 + 64 + 256 || index->clusters.state[0] == KNA_PIECE_MERGED, "no segment at %lld", (long long)n);
        }
        EXPECT(knn_index_holds(index, &c.k, &c.v));
        kna_index_free(index);
        case_end(&c);
    }
}

/* ---- rows that take no part */

static bool *absent_rows(random_case *c)
{
    bool *absent = case_hold(c, (size_t)c->shape.n);
    int64_t share = test_below(2) ? 5 : 600;
    for (int64_t j = 0; j < c->shape.n; j++) absent[j] = test_below((size_t)share) == 0;
    int64_t first = (int64_t)test_below((size_t)c->shape.n), end = first + (int64_t)test_below(40);
    for (int64_t j = first; j < end && j < c->shape.n; j++) absent[j] = true;
    return absent;
}

static void check_topk(random_case *c, kna_context *context, const bool *absent)
{
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    o->absent = absent;
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

/* An index without the absent rows: they were removed, or never given. */
static kna_index *index_without(const random_case *c, kna_context *context, const bool *absent)
{
    kna_index *index = empty_index(c, context);
    bool removed = test_below(2);
    int64_t last = c->shape.n - 1;
    if (removed) update(context, index, c, 0, c->shape.n);
    for (int64_t j = 0; j < c->shape.n; j++) {
        if (removed && absent[j]) EXPECT_INT(kna_index_remove(context, index, j, 1), KNA_OK);
        if (!removed && (!absent[j] || j == last)) update(context, index, c, j, 1);
    }
    if (!removed && absent[last]) EXPECT_INT(kna_index_remove(context, index, last, 1), KNA_OK);
    return index;
}

/* Rows removed, or never given, take no part; what they hold does not matter, NaN and infinity included. */
static void absent_rows_take_no_part(void)
{
    for (int i = 0; i < rounds(80); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        int64_t rows = 0, doubtful = 0, m = 1 + (int64_t)test_below(4);
        case_random(&c, (shape){ 4, 2, m, 200 + (int64_t)test_below(1500), 16 + (int64_t)test_below(20), 12 });
        if (i % 2) {
            case_rows(&c, &c.k, test_below(2) ? KNA_F32 : KNA_F16, LAYOUT_PADDED, 1);
            case_rows(&c, &c.v, test_below(2) ? KNA_F32 : KNA_BF16, LAYOUT_PADDED, 1);
        }
        if (test_below(3)) c.options.mask.data = NULL;
        random_near(&c);
        if (test_below(4) == 0) c.options.k_near = c.shape.n + 1; /* everything, yet not the absent rows */
        bool *absent = absent_rows(&c);
        kna_index *index = index_without(&c, context, absent);
        if (i % 2) fill_garbage(&c, absent);
        c.options.unchecked = i % 2;
        c.options.index = index;
        if (c.options.method == KNA_KNN) {
            knn_case_holds(&c, context, absent, 1, &rows, &doubtful);
        } else {
            check_topk(&c, context, absent);
        }
        if (i % 2 == 0) expect_stale(context, index, &c, 0, 0);
        kna_index_free(index);
        case_end(&c);
    }
}

/* An audit compares with exact attention over the rows that are present; the others may hold anything. */
static void audit_without_absent_rows(void)
{
    for (int i = 0; i < rounds(12); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        kna_report r = { .size = sizeof r };
        case_begin(&c, (shape){ 4, 2, 1 + (int64_t)test_below(8), 600 + (int64_t)test_below(900), 16, 12 });
        c.options.method = i % 4 < 2 ? KNA_KNN : KNA_TOPK;
        c.options.k_near = 16;
        c.options.audit = 1;
        c.options.unchecked = i % 2;
        bool *absent = absent_rows(&c);
        c.options.index = index_without(&c, context, absent);
        if (i % 2) fill_garbage(&c, absent);
        case_attend(&c, context, &r);
        double mean = knn_errors_of(&c, absent).mean;
        EXPECT_THAT(fabs(r.audit_mean - mean) <= 1e-3 * mean + 1e-4, "audit_mean = %g, expected %g: %s", r.audit_mean, mean,
                    case_text(&c));
        kna_index_free(c.options.index);
        case_end(&c);
    }
}

/* Rows that come back are as new to an int8 index. */
static void rows_come_back(void)
{
    for (int i = 0; i < rounds(40); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        case_random(&c, random_shape(3e5));
        random_near(&c);
        c.options.method = KNA_TOPK;
        kna_index *index = empty_index(&c, context);
        update(context, index, &c, 0, c.shape.n);
        for (int again = 0; again < 5; again++) {
            int64_t first = (int64_t)test_below((size_t)c.shape.n), count = (int64_t)test_below((size_t)(c.shape.n - first) + 1);
            EXPECT_INT(kna_index_remove(context, index, first, count), KNA_OK);
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

/* ---- rows written again */

/* Other numbers in rows first .. first + count - 1, taken from elsewhere in the cache, so that keys stay in groups. */
static void rewrite(random_case *c, int64_t first, int64_t count)
{
    for (int64_t j = first; j < first + count; j++) {
        int64_t from = (int64_t)test_below((size_t)c->shape.n);
        for (int64_t head = 0; head < c->shape.h_kv; head++) {
            for (int64_t x = 0; x < c->shape.d; x++) {
                case_put(&c->k, head, j, x, (float)oracle_number(&c->k, head, from, x));
            }
            for (int64_t x = 0; x < c->shape.dv; x++) {
                case_put(&c->v, head, j, x, (float)(1 + oracle_number(&c->v, head, from, x)));
            }
        }
    }
}

/* Clusters with a rewritten member are read in full, pieces with many are open; what is not, holds. */
static void rewritten_rows(void)
{
    for (int i = 0; i < rounds(60); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        int64_t rows = 0, doubtful = 0, formed;
        grouped(&c, 1 + (int64_t)test_below(4), 1400 + (int64_t)test_below(1200));
        c.options.index = empty_index(&c, context);
        update(context, c.options.index, &c, 0, c.shape.n);
        case_attend(&c, context, NULL);
        formed = knn_formed_pieces(c.options.index);
        EXPECT(formed >= 5);
        for (int again = 0; again < 3; again++) {
            int64_t first = (int64_t)test_below((size_t)c.shape.n - 300), count = 1 + (int64_t)test_below(test_below(2) ? 4 : 300);
            rewrite(&c, first, count);
            update(context, c.options.index, &c, first, count);
            expect_stale(context, c.options.index, &c, 0, 0);
            if (!knn_case_holds(&c, context, NULL, 1, &rows, &doubtful)) break;
            if (!is_near(&c, context, NULL, "rows written again")) break;
            EXPECT(knn_index_holds(c.options.index, &c.k, &c.v));
        }
        EXPECT_INT(knn_formed_pieces(c.options.index), formed); /* what was opened is formed again */
        kna_index_free(c.options.index);
        case_end(&c);
    }
}

/* A conversation: rolled back to some row, then continued otherwise. */
static void rolled_back(void)
{
    for (int i = 0; i < rounds(30); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        int64_t all = 2600, n = 1500 + (int64_t)test_below(1000), rows = 0, doubtful = 0;
        grouped(&c, 1, all);
        c.options.index = empty_index(&c, context);
        c.k.rows = c.v.rows = c.shape.n = n;
        update(context, c.options.index, &c, 0, n);
        case_attend(&c, context, NULL);
        for (int again = 0; again < 4; again++) {
            int64_t back = (int64_t)test_below((size_t)(n < 1400 ? n : 1400));
            bool all_gone = test_below(2); /* as a cache does that removes to its end, or only what it had */
            EXPECT_INT(kna_index_remove(context, c.options.index, n - back, all_gone ? KNA_MAX_ROWS - n : back), KNA_OK);
            rewrite(&c, n - back, back);
            n = n - back + (int64_t)test_below(700);
            n = n < 300 ? 300 : n > all ? all : n;
            c.k.rows = c.v.rows = c.shape.n = n;
            update(context, c.options.index, &c, 0, n);
            if (!knn_case_holds(&c, context, NULL, 1, &rows, &doubtful)) break;
            if (!is_near(&c, context, NULL, "a cache rolled back")) break;
            EXPECT(knn_index_holds(c.options.index, &c.k, &c.v));
        }
        kna_index_free(c.options.index);
        case_end(&c);
    }
}

/* ---- a prompt at once, and token after token */

static void attend_token(random_case *token, const random_case *all, int64_t query, kna_context *context, kna_index *index)
{
    int64_t m = all->shape.m;
    token->q.data = (const float *)all->q.data + query * all->shape.d;
    token->q.head_stride_bytes = m * all->shape.d * 4;
    token->q.rows = token->shape.m = 1;
    token->k.rows = token->v.rows = token->shape.n = query + 1;
    token->options.index = index;
    update(context, index, token, query, 1);
    case_attend(token, context, NULL);
}

/* Top-k gives the same bits wherever rows are not exact by another path. */
static void prompt_and_tokens_topk(void)
{
    enum { N = 260, D = 16, DV = 8, H = 4 };
    for (int i = 0; i < rounds(8); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        case_begin(&c, (shape){ H, 2, N, N, D, DV });
        case_rows(&c, &c.k, i % 2 ? KNA_F16 : KNA_F32, LAYOUT_INTERLEAVED, 1);
        case_rows(&c, &c.v, i % 2 ? KNA_F16 : KNA_F32, LAYOUT_INTERLEAVED, 1);
        c.options.causal = 1;
        random_near(&c);
        c.options.method = KNA_TOPK;
        case_attend(&c, context, NULL);
        float *all = case_result(&c), out[H * DV], lse[H];
        kna_index *index = empty_index(&c, context);
        random_case token = c;
        token.out = (kna_out_rows){ out, 0, 0 };
        token.lse = lse;
        bool same = true;
        for (int64_t query = 0; query < N && same; query++) {
            attend_token(&token, &c, query, context, index);
            for (int64_t head = 0; head < H && same; head++) {
                const float *want = all + (head * N + query) * (DV + 1);
                float off = fabsf(want[DV] - lse[head]);
                for (int64_t x = 0; x < DV; x++) off = fmaxf(off, fabsf(want[x] - out[head * DV + x]));
                same = EXPECT_THAT(off == 0 || (query <= c.options.k_near && off <= 6e-5f), "token %lld differs by %g: %s",
                                   (long long)query, (double)off, case_text(&c));
            }
        }
        kna_index_free(index);
        free(all);
        case_end(&c);
    }
}

/* kNN attention: the prompt and each token are near exact attention. */
static void prompt_and_tokens_knn(void)
{
    for (int i = 0; i < rounds(4) + 1; i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        int64_t n = 1300;
        grouped(&c, n, n);
        c.options.causal = 1;
        case_attend(&c, context, NULL);
        double prompt = knn_errors_of(&c, NULL).most, most = 0;
        EXPECT_THAT(prompt <= NEAR, "the prompt is off by %g", prompt);
        kna_index *index = empty_index(&c, context);
        random_case token = c;
        float out[4 * 12], lse[4];
        token.out = (kna_out_rows){ out, 0, 0 };
        token.lse = lse;
        for (int64_t query = 0; query < n; query++) {
            attend_token(&token, &c, query, context, index);
            if (query % 20 == 0 || query > n - 10) most = fmax(most, knn_errors_of(&token, NULL).most);
        }
        EXPECT_THAT(most <= NEAR && most > 0, "tokens are off by %g", most);
        EXPECT(knn_formed_pieces(index) >= 4 && knn_index_holds(index, &c.k, &c.v));
        kna_index_free(index);
        case_end(&c);
    }
}

/* ---- out of date */

/* Rows overwritten behind the index: what is read is found out by keys, an audit finds keys and values. */
static void stale_index(void)
{
    for (int i = 0; i < rounds(40); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        int64_t n = 1100 + (int64_t)test_below(400), most = 200;
        case_begin(&c, (shape){ 4, 2, 1 + (int64_t)test_below(3), n, 32, 16 });
        random_near(&c);
        c.options.softcap = i % 3 == 0 ? 20 : 0;
        c.options.index = empty_index(&c, context);
        update(context, c.options.index, &c, 0, n);
        kna_report r = { .size = sizeof r };
        case_attend(&c, context, &r);
        EXPECT_THAT(r.stale_rows == 0, "%lld stale rows of a fresh index: %s", (long long)r.stale_rows, case_text(&c));
        EXPECT(r.index_bytes == kna_index_bytes(c.options.index));
        if (i % 2) {
            case_rows(&c, &c.k, KNA_F32, LAYOUT_PACKED, 1);
            case_attend(&c, context, &r);
            EXPECT_THAT(r.stale_rows > 0 && (double)r.stale_rows <= r.keys_seen, "%lld stale rows, all keys are: %s",
                        (long long)r.stale_rows, case_text(&c));
        } else {
            case_rows(&c, &c.v, KNA_F32, LAYOUT_PACKED, 1);
        }
        /* Top-k keeps keys only; the last piece of clusters is open: of 1,100 to 1,500 rows at least 1,024 are in clusters. */
        bool keeps = c.options.method == KNA_KNN || i % 2;
        if (!keeps) most = 0;
        expect_stale(context, c.options.index, &c, keeps ? 105 : 0, most);
        update(context, c.options.index, &c, 0, n);
        expect_stale(context, c.options.index, &c, 0, 0);
        case_attend(&c, context, &r);
        EXPECT_INT(r.stale_rows, 0);
        expect_stale(context, c.options.index, &c, 0, 0);
        kna_index_free(c.options.index);
        case_end(&c);
    }
}

/* One key of a cluster that is read: a query along it is told so; one that was announced is not. */
static void one_stale_key(void)
{
    for (int i = 0; i < rounds(20); i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        int64_t row = 16 + (int64_t)test_below(1000);
        case_begin(&c, (shape){ 1, 1, 1, 1200, 32, 16 });
        c.options.method = KNA_KNN;
        c.options.k_near = 16;
        c.options.eps = 1e-9f; /* all clusters are read */
        c.options.near_sinks = c.options.near_window = -1;
        c.options.index = empty_index(&c, context);
        update(context, c.options.index, &c, 0, 1200);
        kna_report r = { .size = sizeof r };
        case_attend(&c, context, &r);
        EXPECT_INT(r.stale_rows, 0);
        for (int64_t x = 0; x < 32; x++) case_put(&c.k, 0, row, x, (float)oracle_number(&c.q, 0, 0, x));
        case_attend(&c, context, &r);
        EXPECT_INT(r.stale_rows, 1);
        EXPECT_THAT(knn_errors_of(&c, NULL).most <= 1e-4, "all clusters are read, and yet %g", knn_errors_of(&c, NULL).most);
        update(context, c.options.index, &c, row, 1);
        case_attend(&c, context, &r);
        EXPECT_INT(r.stale_rows, 0);
        kna_index_free(c.options.index);
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
    c.options.method = KNA_TOPK;
    kna_index *index = empty_index(&c, context);
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

/* One cluster of 64 out of date, by a key or by a value: an audit finds about that share of samples. */
static void audit_share_of_clusters(void)
{
    enum { SAMPLES = 4000 };
    for (int i = 0; i < 2; i++) {
        random_case c = { .guarded = false };
        kna_context *context = context_best();
        int64_t stale = -1, row = 500;
        case_begin(&c, (shape){ 1, 1, 1, 1104, 8, 8 });
        c.options.method = KNA_KNN;
        c.options.k_near = 16;
        c.options.index = empty_index(&c, context);
        update(context, c.options.index, &c, 0, 1104);
        case_attend(&c, context, NULL);
        EXPECT_INT(c.options.index->clusters.state[0], KNA_PIECE_MERGED);
        EXPECT_INT(knn_formed_pieces(c.options.index), 4);
        case_put(i ? &c.v : &c.k, 0, row, 3, 50);
        EXPECT_INT(kna_index_audit(context, &stale, c.options.index, &c.k, &c.v, SAMPLES, test_random()), KNA_OK);
        EXPECT_NEAR(stale, SAMPLES * 16 / 1104.0, 6 * sqrt(SAMPLES * 0.0145));
        update(context, c.options.index, &c, row, 1);
        EXPECT_INT(kna_index_audit(context, &stale, c.options.index, &c.k, &c.v, SAMPLES, test_random()), KNA_OK);
        EXPECT_INT(stale, 0);
        kna_index_free(c.options.index);
        case_end(&c);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(pieces);
    TEST(growing_topk);
    TEST(growing_knn);
    TEST(absent_rows_take_no_part);
    TEST(audit_without_absent_rows);
    TEST(rows_come_back);
    TEST(rewritten_rows);
    TEST(rolled_back);
    TEST(prompt_and_tokens_topk);
    TEST(prompt_and_tokens_knn);
    TEST(stale_index);
    TEST(one_stale_key);
    TEST(audit_share);
    TEST(audit_share_of_clusters);
    contexts_free();
    return test_end();
}
