/*
 * prop_attend_sight.c - what a row may not see does not touch it, to the bit: the future, keys a mask or a window hides, rows that
 * are not present. And what garbage may lie there.
 */
#include "knn_oracle.h"

enum { H = 4, H_KV = 2, D = 16, DV = 8, TILE_ROWS = 192 }; /* at most so many rows choose clusters together */

static void random_near(random_case *c)
{
    kna_attend_options *o = &c->options;
    o->method = KNA_KNN;
    o->k_near = 1 + (int64_t)test_below(60);
    o->near_sinks = (int64_t)test_below(8) - 1;
    o->near_window = (int64_t)test_below(80) - 1;
    if (test_below(3) == 0) o->eps = 0.05f;
    if (test_below(3) == 0) o->softcap = 20;
}

static void begin(random_case *c, int64_t m, int64_t n)
{
    case_begin(c, (shape){ H, H_KV, m, n, D, DV });
    random_near(c);
}

/* Other numbers, of another size, for rows first .. end - 1 of all heads. */
static void scramble(const kna_rows *rows, int64_t first, int64_t end, const bool *only)
{
    double size = test_below(2) ? 1 : 100;
    for (int64_t head = 0; head < rows->heads; head++) {
        for (int64_t j = first; j < end; j++) {
            for (int64_t x = 0; x < rows->dim && (!only || only[j]); x++) case_put(rows, head, j, x, (float)(size * test_normal()));
        }
    }
}

static bool same_rows(const random_case *c, const float *a, const float *b, int64_t queries, const char *what)
{
    random_case named = *c;
    for (int64_t head = 0; head < c->shape.h; head++) {
        for (int64_t query = 0; query < queries; query++) {
            int64_t at = (head * c->shape.m + query) * (c->shape.dv + 1);
            bool same = memcmp(a + at, b + at, (size_t)(c->shape.dv + 1) * sizeof *a) == 0;
            if (!EXPECT_THAT(same, "%s: head %lld, query %lld: %s", what, (long long)head, (long long)query, case_text(&named))) {
                return false;
            }
        }
    }
    return true;
}

static float *attend(random_case *c)
{
    case_attend(c, context_best(), NULL);
    return case_result(c);
}

/* ---- the future */

/* Keys, values and queries after the first `queries` queries change; rows 0 .. same - 1 must not. */
static void change_future(random_case *c, int64_t queries, int64_t same)
{
    float *before = attend(c);
    int64_t first = queries + c->shape.n - c->shape.m;
    scramble(&c->q, queries, c->shape.m, NULL);
    scramble(&c->k, first, c->shape.n, NULL);
    scramble(&c->v, first, c->shape.n, NULL);
    float *after = attend(c);
    same_rows(c, before, after, same, "the future is seen");
    free(before);
    free(after);
}

/* Single queries: every one chooses for itself. */
static void future_of_few(void)
{
    for (int i = 0; i < rounds(30); i++) {
        random_case c = { .guarded = false };
        int64_t m = 2 + (int64_t)test_below(7);
        begin(&c, m, 500 + (int64_t)test_below(1500));
        c.options.causal = 1;
        int64_t queries = 1 + (int64_t)test_below((size_t)m - 1);
        change_future(&c, queries, queries);
        case_end(&c);
    }
}

/* A prompt: tiles before the one where the change begins; those of its tile choose with it. */
static void future_of_a_prompt(void)
{
    for (int i = 0; i < rounds(12); i++) {
        random_case c = { .guarded = false };
        int64_t m = 300 + (int64_t)test_below(1300), tile = TILE_ROWS / (H / H_KV);
        begin(&c, m, m + (int64_t)test_below(2) * (int64_t)test_below(1500));
        c.options.causal = 1;
        int64_t queries = tile + (int64_t)test_below((size_t)(m - tile));
        change_future(&c, queries, queries - tile);
        case_end(&c);
    }
}

/* The same through a mask, which says it row by row. */
static void future_behind_a_mask(void)
{
    for (int i = 0; i < rounds(20); i++) {
        random_case c = { .guarded = false };
        int64_t m = 2 + (int64_t)test_below(7), n = 500 + (int64_t)test_below(1500);
        begin(&c, m, n);
        case_mask(&c, test_below(2) ? KNA_F32 : KNA_F16, 1, 0, false, false);
            for (int64_t j = 0; j < m * n; j++) case_put_mask(&c, 0, j / n, j % n, j % n <= n - m + j / n ? 0 : -INFINITY);
        int64_t queries = 1 + (int64_t)test_below((size_t)m - 1);
        change_future(&c, queries, queries);
        case_end(&c);
    }
}

/* ---- hidden keys */

/* Which keys nobody may see: holes, every other stretch (another sequence), the beginning, the end. */
static bool *hidden_keys(random_case *c)
{
    int64_t n = c->shape.n, kind = (int64_t)test_below(4), stretch = 1 + (int64_t)test_below(400);
    bool *hidden = case_hold(c, (size_t)n);
    int64_t from = (int64_t)test_below((size_t)n), to = from + (int64_t)test_below(500);
    for (int64_t j = 0; j < n; j++) {
        hidden[j] = kind == 0   ? j >= from && j < to
                    : kind == 1 ? j / stretch % 2 == 1
                    : kind == 2 ? j < stretch
                                : test_below(600) == 0;
    }
    hidden[n - 1] = false;
    return hidden;
}

static void hide(random_case *c, const bool *hidden)
{
    case_mask(c, test_below(2) ? KNA_F32 : KNA_F16, 1, 0, false, false);
    for (int64_t i = 0; i < c->shape.m; i++) {
        for (int64_t j = 0; j < c->shape.n; j++) case_put_mask(c, 0, i, j, hidden[j] ? -INFINITY : 0);
    }
}

static void hidden_keys_do_nothing(void)
{
    for (int i = 0; i < rounds(40); i++) {
        random_case c = { .guarded = false };
        int64_t n = 500 + (int64_t)test_below(1800);
        begin(&c, test_below(2) ? 1 + (int64_t)test_below(8) : 20 + (int64_t)test_below(200), n);
        bool *hidden = hidden_keys(&c);
        hide(&c, hidden);
        float *before = attend(&c);
        scramble(&c.k, 0, n, hidden);
        scramble(&c.v, 0, n, hidden);
        float *after = attend(&c);
        same_rows(&c, before, after, c.shape.m, "hidden keys are seen");
        free(before);
        free(after);
        case_end(&c);
    }
}

/* Clusters were formed when nothing was hidden; those that hold a hidden key are of no use to anyone now. */
static void hidden_after_forming(void)
{
    for (int i = 0; i < rounds(30); i++) {
        random_case c = { .guarded = false };
        float *results[2];
        int64_t n = 700 + (int64_t)test_below(1800);
        begin(&c, 1 + (int64_t)test_below(8), n);
        bool *hidden = hidden_keys(&c);
        random_case masked = c;
        hide(&masked, hidden);
        kna_index *index[2];
        for (int x = 0; x < 2; x++) {
            index[x] = knn_index_of(&c, context_best());
            index[x]->phase = 0;
            c.options.index = index[x];
            case_attend(&c, context_best(), NULL);
            EXPECT(knn_formed_pieces(index[x]) > 0);
        }
        for (int x = 0; x < 2; x++) {
            masked.options.index = index[x];
            results[x] = attend(&masked);
            scramble(&c.k, 0, n, hidden);
            scramble(&c.v, 0, n, hidden);
        }
        same_rows(&masked, results[0], results[1], c.shape.m, "keys hidden after forming are seen");
        for (int x = 0; x < 2; x++) {
            kna_index_free(index[x]);
            free(results[x]);
        }
        case_end(&masked);
    }
}

/* No cluster is formed of a key the query cannot see. */
static void hidden_keys_in_no_cluster(void)
{
    for (int i = 0; i < rounds(20); i++) {
        random_case c = { .guarded = false };
        int64_t n = 900 + (int64_t)test_below(1500);
        begin(&c, 1, n);
        bool *hidden = hidden_keys(&c);
        hide(&c, hidden);
        c.options.index = knn_index_of(&c, context_best());
        case_attend(&c, context_best(), NULL);
        for (int64_t j = KNA_FIRST_ROWS; j < n; j++) {
            int state = c.options.index->clusters.state[j / KNA_PIECE];
            if (hidden[j] && !EXPECT_THAT(state == KNA_PIECE_OPEN, "hidden row %lld is in a cluster", (long long)j)) break;
        }
        kna_index_free(c.options.index);
        case_end(&c);
    }
}

/* A sliding window: what it has left behind. */
static void keys_before_the_window(void)
{
    for (int i = 0; i < rounds(20); i++) {
        random_case c = { .guarded = false };
        int64_t m = test_below(2) ? 1 + (int64_t)test_below(8) : 20 + (int64_t)test_below(150), n = 900 + (int64_t)test_below(1500);
        begin(&c, m, n);
        c.options.causal = (int)test_below(2);
        c.options.window = 300 + (int64_t)test_below(500);
        int64_t first = n - m - c.options.window + 1; /* the first key query 0 sees */
        float *before = attend(&c);
        scramble(&c.k, 0, first < 0 ? 0 : first, NULL);
        scramble(&c.v, 0, first < 0 ? 0 : first, NULL);
        float *after = attend(&c);
        same_rows(&c, before, after, m, "keys before the window are seen");
        free(before);
        free(after);
        case_end(&c);
    }
}

/* Two sequences in one cache, stretches of one and of the other: a query of one is not touched by the other's keys. */
static void other_sequences(void)
{
    for (int i = 0; i < rounds(20); i++) {
        random_case c = { .guarded = false };
        int64_t m = 8, n = 700 + (int64_t)test_below(1500);
        int64_t stretch = 1 + (int64_t)test_below(700), shared = (int64_t)test_below(400);
        begin(&c, m, n);
        case_mask(&c, KNA_F16, 1, 0, false, false);
            bool *odd = case_hold(&c, (size_t)n);
        for (int64_t j = 0; j < n; j++) odd[j] = j >= shared && j / stretch % 2 == 1;
        for (int64_t x = 0; x < m * n; x++) {
            bool is_own = x % n < shared || odd[x % n] == (x / n % 2 == 1);
            case_put_mask(&c, 0, x / n, x % n, is_own ? 0 : -INFINITY);
        }
        float *before = attend(&c);
        scramble(&c.k, 0, n, odd);
        scramble(&c.v, 0, n, odd);
        float *after = attend(&c);
        for (int64_t row = 0; row < H * m; row++) {
            bool same = memcmp(before + row * (DV + 1), after + row * (DV + 1), (DV + 1) * sizeof *before) == 0;
            if (row % m % 2 == 0) EXPECT_THAT(same, "row %lld sees the other sequence: %s", (long long)row, case_text(&c));
        }
        free(before);
        free(after);
        case_end(&c);
    }
}

/* ---- garbage */

static void put_garbage(random_case *c, int64_t row)
{
    for (int64_t head = 0; head < H_KV; head++) {
        case_put(&c->k, head, row, (int64_t)test_below(D), test_below(2) ? NAN : INFINITY);
        case_put(&c->v, head, row, (int64_t)test_below(DV), test_below(2) ? NAN : -INFINITY);
    }
}

static bool is_finite(const random_case *c)
{
    for (int64_t row = 0; row < c->shape.h * c->shape.m; row++) {
        const float *out = case_out_row(c, row / c->shape.m, row % c->shape.m);
        for (int64_t x = 0; x < c->shape.dv; x++) {
            if (!isfinite(out[x])) return false;
        }
    }
    return true;
}

/*
 * NaN and infinity, unchecked. In rows that are not present they do nothing; nor behind a mask, in pieces of 256 rows of which
 * nobody sees any. In a piece seen in part they are computed and then masked, which poisons, as in exact attention.
 */
static void garbage_nobody_sees(void)
{
    for (int i = 0; i < rounds(30); i++) {
        random_case c = { .guarded = false };
        int64_t n = 1000 + (int64_t)test_below(1500), m = test_below(2) ? 1 + (int64_t)test_below(8) : 30;
        int64_t first = 256 * (int64_t)test_below(3), end = first + 256 * (1 + (int64_t)test_below(3)), most = (n - 1) / 256 * 256;
        begin(&c, m, n);
        c.options.unchecked = 1;
        bool *hidden = case_hold(&c, (size_t)n);
        end = end < most ? end : most;
        for (int64_t j = first; j < end; j++) hidden[j] = true;
        hide(&c, hidden);
        float *before = attend(&c);
        for (int64_t j = first; j < end; j++) put_garbage(&c, j);
        float *after = attend(&c);
        EXPECT_THAT(is_finite(&c), "garbage from %lld to %lld poisons: %s", (long long)first, (long long)end, case_text(&c));
        same_rows(&c, before, after, m, "garbage is seen");
        free(before);
        free(after);
        case_end(&c);
    }
}

static void garbage_not_present(void)
{
    for (int i = 0; i < rounds(30); i++) {
        random_case c = { .guarded = false };
        float *results[2];
        int64_t n = 700 + (int64_t)test_below(1500);
        begin(&c, test_below(2) ? 1 + (int64_t)test_below(8) : 30, n);
        c.options.unchecked = 1;
        bool *gone = hidden_keys(&c);
        gone[n - 2] = true;
        for (int x = 0; x < 2; x++) {
            c.options.index = knn_index_of(&c, context_best());
            c.options.index->phase = 0;
            for (int64_t j = 0; j < n; j++) {
                if (gone[j]) EXPECT_INT(kna_index_remove(context_best(), c.options.index, j, 1), KNA_OK);
            }
            results[x] = attend(&c);
            EXPECT_THAT(is_finite(&c), "garbage poisons: %s", case_text(&c));
            kna_index_free(c.options.index);
            for (int64_t j = 0; j < n; j++) {
                if (gone[j]) put_garbage(&c, j);
            }
        }
        same_rows(&c, results[0], results[1], c.shape.m, "rows not present are seen");
        free(results[0]);
        free(results[1]);
        case_end(&c);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(future_of_few);
    TEST(future_of_a_prompt);
    TEST(future_behind_a_mask);
    TEST(hidden_keys_do_nothing);
    TEST(hidden_after_forming);
    TEST(hidden_keys_in_no_cluster);
    TEST(keys_before_the_window);
    TEST(other_sequences);
    TEST(garbage_nobody_sees);
    TEST(garbage_not_present);
    contexts_free();
    return test_end();
}
