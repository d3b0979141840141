/* unit_index.c - an index's life, what it refuses, and that a refusal leaves it as it was. */
#include "random_case.h"

enum { HEADS = 2, N = 50, D = 24, DV = 12 };

static random_case c;
static kna_context *context;
static kna_index *index_;
static int method = KNA_KNN; /* that the index serves */

static void fresh(void)
{
    case_begin(&c, (shape){ HEADS, HEADS, 1, N, D, DV });
    context = context_best();
    EXPECT_INT(kna_index_new(context, &index_, method, HEADS, D, DV), KNA_OK);
}

static void done(void)
{
    kna_index_free(index_);
    index_ = NULL;
    case_end(&c);
}

static int update(int64_t first, int64_t count)
{
    return kna_index_update(context, index_, &c.k, &c.v, first, count);
}

#define EXPECT_STATUS(call, status, words)                                                                        \
    do {                                                                                                          \
        int got_ = (call);                                                                                        \
        const char *message_ = kna_context_message(context);                                                      \
        EXPECT_THAT(got_ == (status) && strstr(message_, words), "%s: %s (%s), expected %s naming \"%s\"", #call, \
                    kna_status_name(got_), message_, kna_status_name(status), words);                             \
    } while (0)

/* ---- making */
static void refused_shapes(void)
{
    static const int64_t bad[] = { 0, -1, INT64_MIN };
    kna_index *index = (kna_index *)(uintptr_t)64;
    context = context_best();
    for (int i = 0; i < 3; i++) {
        EXPECT_STATUS(kna_index_new(context, &index, method, bad[i], 1, 1), KNA_EINVAL, "heads");
        EXPECT_STATUS(kna_index_new(context, &index, method, 1, bad[i], 1), KNA_EINVAL, "d = ");
        EXPECT_STATUS(kna_index_new(context, &index, method, 1, 1, bad[i]), KNA_EINVAL, "dv = ");
    }
    EXPECT_STATUS(kna_index_new(context, &index, method, KNA_MAX_HEADS + 1, 1, 1), KNA_ELIMIT, "65536");
    EXPECT(index == NULL);
    EXPECT_STATUS(kna_index_new(context, &index, method, 1, KNA_MAX_DIM + 1, 1), KNA_ELIMIT, "1024");
    EXPECT_STATUS(kna_index_new(context, &index, method, 1, 1, KNA_MAX_DIM + 1), KNA_ELIMIT, "1024");
    EXPECT_STATUS(kna_index_new(context, NULL, method, 1, 1, 1), KNA_EINVAL, "index");
    static const int other[] = { KNA_EXACT, KNA_METHOD_COUNT, -1, INT32_MIN };
    for (int i = 0; i < 4; i++) {
        index = (kna_index *)(uintptr_t)64;
        EXPECT_STATUS(kna_index_new(context, &index, other[i], 1, 1, 1), KNA_EINVAL, "method");
        EXPECT(index == NULL);
    }
    EXPECT_INT(kna_index_new(context, &index, method, 1, KNA_MAX_DIM, KNA_MAX_DIM), KNA_OK);
    EXPECT_TEXT(kna_context_message(context), "");
    kna_index_free(index);
    kna_index_free(NULL);
}

static void empty(void)
{
    fresh();
    int64_t stale = -1;
    EXPECT_INT(kna_index_rows(index_), 0);
    EXPECT(kna_index_bytes(index_) > 0 && kna_index_bytes(index_) < 1000);
    EXPECT_INT(kna_index_remove(context, index_, 0, 100), KNA_OK);
    EXPECT_INT(kna_index_audit(context, &stale, index_, &c.k, &c.v, 10, 1), KNA_OK);
    EXPECT_INT(stale, 0);
    EXPECT_INT(update(0, 0), KNA_OK);
    EXPECT_INT(kna_index_rows(index_), 0);
    done();
}

/* ---- rows and bytes */
static void rows_and_bytes(void)
{
    fresh();
    kna_memory before, after;
    kna_context_memory(context, &before);
    size_t own = kna_index_bytes(index_);
    EXPECT_INT(update(10, 5), KNA_OK);
    EXPECT_INT(kna_index_rows(index_), 15);
    EXPECT_INT(update(0, 3), KNA_OK);
    EXPECT_INT(kna_index_rows(index_), 15);
    EXPECT_INT(update(49, 1), KNA_OK);
    EXPECT_INT(kna_index_rows(index_), 50);
    EXPECT_INT(kna_index_remove(context, index_, 40, 10), KNA_OK);
    EXPECT_INT(kna_index_rows(index_), 50); /* rows ever covered */
    kna_context_memory(context, &after);
    EXPECT_INT(kna_index_bytes(index_) - own, after.now_bytes - before.now_bytes); /* what it says is what it holds */
    if (method == KNA_TOPK) { /* int8 keys, one scale a row; not much more */
        size_t least = HEADS * N * (D + 4);
        EXPECT(kna_index_bytes(index_) - own >= least && kna_index_bytes(index_) - own <= 2 * least);
    }
    done();
}

/* ---- updating */
static void refused_updates(void)
{
    fresh();
    EXPECT_STATUS(update(-1, 1), KNA_EINVAL, "-1 + 1");
    EXPECT_STATUS(update(0, -1), KNA_EINVAL, "0 + -1");
    EXPECT_STATUS(update(0, N + 1), KNA_EINVAL, "0 + 51 are outside the 50 given");
    EXPECT_STATUS(update(N, 1), KNA_EINVAL, "outside");
    EXPECT_STATUS(update(INT64_MAX, INT64_MAX), KNA_EINVAL, "outside");
    EXPECT_STATUS(kna_index_update(context, NULL, &c.k, &c.v, 0, 1), KNA_EINVAL, "null");
    EXPECT_STATUS(kna_index_update(context, index_, NULL, &c.v, 0, 1), KNA_EINVAL, "null");
    EXPECT_STATUS(kna_index_update(context, index_, &c.k, NULL, 0, 1), KNA_EINVAL, "null");
    kna_rows k = c.k, v = c.v;
    c.k.heads = 1;
    EXPECT_STATUS(update(0, 1), KNA_ESHAPE, "(1,50,24)");
    c.k = k;
    c.k.dim = D - 1;
    EXPECT_STATUS(update(0, 1), KNA_ESHAPE, "d = 24");
    c.k = k;
    c.v.dim = DV + 1;
    EXPECT_STATUS(update(0, 1), KNA_ESHAPE, "dv = 12");
    c.v = v;
    c.v.rows = N - 1;
    EXPECT_STATUS(update(0, 1), KNA_ESHAPE, "49");
    c.v = v;
    c.v.heads = 3;
    EXPECT_STATUS(update(0, 1), KNA_ESHAPE, "values (3");
    c.v = v;
    c.k.type = 17;
    EXPECT_STATUS(update(0, 1), KNA_ETYPE, "keys");
    c.k.type = KNA_Q8_0;
    EXPECT_STATUS(update(0, 1), KNA_ETYPE, "q8_0");
    c.k.type = KNA_I8;
    EXPECT_STATUS(update(0, 1), KNA_EINVAL, "scales");
    c.k = k;
    c.v.data = NULL;
    EXPECT_STATUS(update(0, 1), KNA_EINVAL, "values: null data");
    c.v = v;
    c.v.row_stride_bytes = -4;
    EXPECT_STATUS(update(0, 1), KNA_EINVAL, "values");
    c.v = v;
    c.k.rows = c.v.rows = (int64_t)KNA_MAX_ROWS + 1;
    EXPECT_STATUS(update(0, 1), KNA_ELIMIT, "2147483647");
    c.k = k;
    c.v = v;
    EXPECT_INT(kna_index_rows(index_), 0); /* nothing has happened */
    EXPECT_INT(update(0, N), KNA_OK);
    EXPECT_TEXT(kna_context_message(context), "");
    done();
}

/* Rows at the very end of memory: nothing beyond is read, by updates, calls or audits. */
static void nothing_outside_is_read(void)
{
    int64_t stale = -1;
    c.guarded = true;
    fresh();
    EXPECT_INT(update(16, N - 16), KNA_OK);
    EXPECT_INT(update(0, 16), KNA_OK);
    c.options.method = method;
    c.options.index = index_;
    c.options.k_near = 1;
    case_attend(&c, context, NULL);
    EXPECT_INT(kna_index_audit(context, &stale, index_, &c.k, &c.v, 100, 1), KNA_OK);
    EXPECT_INT(stale, 0);
    done();
    c.guarded = false;
}

/* NaN and infinity in rows of an int8 index are encoded as zero: the row is there, and does not poison the scan of others. */
static void garbage_is_zero(void)
{
    if (method != KNA_TOPK) return;
    fresh();
    case_put(&c.k, 0, 20, 3, NAN);
    case_put(&c.k, 1, 21, 3, -INFINITY);
    EXPECT_INT(update(0, N), KNA_OK);
    c.options.method = KNA_TOPK;
    c.options.index = index_;
    c.options.k_near = 1;
    c.options.unchecked = 1;
    float *q = (float *)(uintptr_t)c.q.data;
    for (int x = 0; x < HEADS * D; x++) {
        q[x] = 1;
        case_put(&c.k, x / D, 7, x % D, 1); /* the nearest by far */
    }
    EXPECT_INT(update(7, 1), KNA_OK);
    case_attend(&c, context, NULL);
    for (int i = 0; i < HEADS * DV; i++) EXPECT_NEAR(c.out.data[i], oracle_number(&c.v, i / DV, 7, i % DV), 1e-6);
    done();
}

/* ---- removing and auditing */
static void refused_removals_and_audits(void)
{
    int64_t stale;
    fresh();
    EXPECT_INT(update(0, N), KNA_OK);
    EXPECT_STATUS(kna_index_remove(context, index_, -1, 1), KNA_EINVAL, "-1 + 1");
    EXPECT_STATUS(kna_index_remove(context, index_, 0, -1), KNA_EINVAL, "0 + -1");
    EXPECT_STATUS(kna_index_remove(context, index_, KNA_MAX_ROWS, 1), KNA_EINVAL, "2147483647");
    EXPECT_STATUS(kna_index_remove(context, NULL, 0, 1), KNA_EINVAL, "null");
    EXPECT_INT(kna_index_remove(context, index_, N, 1000), KNA_OK); /* never present: fine */
    EXPECT_STATUS(kna_index_audit(context, &stale, index_, &c.k, &c.v, -1, 0), KNA_EINVAL, "samples = -1");
    EXPECT_STATUS(kna_index_audit(context, NULL, index_, &c.k, &c.v, 1, 0), KNA_EINVAL, "stale");
    EXPECT_STATUS(kna_index_audit(context, &stale, NULL, &c.k, &c.v, 1, 0), KNA_EINVAL, "null");
    EXPECT_INT(kna_index_audit(context, &stale, index_, &c.k, &c.v, 0, 0), KNA_OK);
    kna_rows k = c.k;
    c.k.rows = N - 1;
    c.k.head_stride_bytes = k.head_stride_bytes ? k.head_stride_bytes : N * (int64_t)kna_type_row_bytes(k.type, k.dim);
    EXPECT_INT(kna_index_audit(context, &stale, index_, &c.k, &c.v, 100, 0), KNA_OK); /* of those given */
    EXPECT_INT(stale, 0);
    c.k = k;
    c.k.dim = 3;
    EXPECT_STATUS(kna_index_audit(context, &stale, index_, &c.k, &c.v, 1, 0), KNA_ESHAPE, "d = 24");
    c.k = k;
    c.k.data = NULL;
    EXPECT_STATUS(kna_index_audit(context, &stale, index_, &c.k, &c.v, 1, 0), KNA_EINVAL, "keys: null data");
    done();
}

/* ---- in attention */
static void refused_in_attention(void)
{
    fresh();
    c.options.index = index_;
    c.options.method = method;
    EXPECT_INT(update(0, N - 1), KNA_OK);
    EXPECT_STATUS(kna_attend(context, &c.out, NULL, NULL, &c.q, &c.k, &c.v, &c.options), KNA_ESTALE, "49 rows");
    c.options.method = method == KNA_KNN ? KNA_TOPK : KNA_KNN;
    EXPECT_STATUS(kna_attend(context, &c.out, NULL, NULL, &c.q, &c.k, &c.v, &c.options), KNA_ESTALE,
                  method == KNA_KNN ? "made for knn, asked for topk" : "made for topk, asked for knn");
    c.options.method = KNA_EXACT; /* asks no index */
    EXPECT_INT(kna_attend(context, &c.out, NULL, NULL, &c.q, &c.k, &c.v, &c.options), KNA_OK);
    c.options.method = method;
    EXPECT_INT(update(0, N), KNA_OK);
    EXPECT_INT(kna_attend(context, &c.out, NULL, NULL, &c.q, &c.k, &c.v, &c.options), KNA_OK);
    int64_t shapes[][3] = { { HEADS + 1, D, DV }, { HEADS, D + 1, DV }, { HEADS, D, DV + 1 } };
    for (int i = 0; i < 3; i++) {
        kna_index *other;
        EXPECT_INT(kna_index_new(context, &other, method, shapes[i][0], shapes[i][1], shapes[i][2]), KNA_OK);
        c.options.index = other;
        EXPECT_STATUS(kna_attend(context, &c.out, NULL, NULL, &c.q, &c.k, &c.v, &c.options), KNA_ESTALE, "index");
        kna_index_free(other);
    }
    done();
}

/* An index of more rows than the keys given serves: a cache seen up to some row. */
static void longer_than_the_keys(void)
{
    fresh();
    EXPECT_INT(update(0, N), KNA_OK);
    c.options.method = method;
    c.options.k_near = 3;
    c.options.near_sinks = c.options.near_window = -1;
    c.k.rows = c.v.rows = 39;
    c.k.head_stride_bytes = N * D * 4;
    c.v.head_stride_bytes = N * DV * 4;
    c.shape.n = 39;
    case_attend(&c, context, NULL);
    float *own = case_result(&c);
    c.options.index = index_;
    case_attend(&c, context, NULL);
    float *given = case_result(&c);
    EXPECT(memcmp(own, given, HEADS * (DV + 1) * sizeof *own) == 0);
    free(own);
    free(given);
    done();
}

/* Clusters of an index of more rows than the keys given: those that reach beyond are not used, and their rows not read. */
static void clusters_beyond_the_keys(void)
{
    random_case x = { .guarded = false };
    context = context_best();
    case_begin(&x, (shape){ HEADS, HEADS, 2, 2200, D, DV });
    x.options.method = KNA_KNN;
    x.options.k_near = 3;
    EXPECT_INT(kna_index_new(context, &x.options.index, KNA_KNN, HEADS, D, DV), KNA_OK);
    EXPECT_INT(kna_index_update(context, x.options.index, &x.k, &x.v, 0, 2200), KNA_OK);
    case_attend(&x, context, NULL);
    x.k.head_stride_bytes = 2200 * D * 4;
    x.v.head_stride_bytes = 2200 * DV * 4;
    for (int64_t n = 2000; n > 100; n -= 300) {
        x.k.rows = x.v.rows = x.shape.n = n;
        for (int64_t at = 0; at < HEADS * (2200 - n); at++) case_put(&x.k, at % HEADS, n + at / HEADS, 0, NAN); /* poison beyond */
        kna_report r = { .size = sizeof r };
        case_attend(&x, context, &r);
        EXPECT_INT(r.keys_seen, 2 * HEADS * n);
        for (int i = 0; i < 2 * HEADS * DV; i++) EXPECT_THAT(isfinite(x.out.data[i]), "n = %lld, out[%d]", (long long)n, i);
    }
    kna_index_free(x.options.index);
    case_end(&x);
}

static void both_methods(void (*body)(void), const char *name)
{
    for (method = KNA_TOPK; method <= KNA_KNN; method++) test_run(name, body);
}
#define TEST_BOTH(body) both_methods(body, #body)

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST_BOTH(refused_shapes);
    TEST_BOTH(empty);
    TEST_BOTH(rows_and_bytes);
    TEST_BOTH(refused_updates);
    TEST_BOTH(nothing_outside_is_read);
    TEST_BOTH(garbage_is_zero);
    TEST_BOTH(refused_removals_and_audits);
    TEST_BOTH(refused_in_attention);
    TEST_BOTH(longer_than_the_keys);
    TEST(clusters_beyond_the_keys);
    contexts_free();
    return test_end();
}
