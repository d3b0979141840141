/* unit_index.c - an index's life, what it refuses, and that a refusal leaves it as it was. */
#include "random_case.h"

enum { HEADS = 2, N = 50, D = 24, DV = 12 };

static random_case c;
static kna_context *context;
static kna_index *index_;

static void fresh(void)
{
    case_begin(&c, (shape){ HEADS, HEADS, 1, N, D, DV });
    context = context_best();
    EXPECT_INT(kna_index_new(context, &index_, HEADS, D, DV), KNA_OK);
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
        EXPECT_STATUS(kna_index_new(context, &index, bad[i], 1, 1), KNA_EINVAL, "heads");
        EXPECT_STATUS(kna_index_new(context, &index, 1, bad[i], 1), KNA_EINVAL, "d = ");
        EXPECT_STATUS(kna_index_new(context, &index, 1, 1, bad[i]), KNA_EINVAL, "dv = ");
    }
    EXPECT_STATUS(kna_index_new(context, &index, KNA_MAX_HEADS + 1, 1, 1), KNA_ELIMIT, "65536");
    EXPECT(index == NULL);
    EXPECT_STATUS(kna_index_new(context, &index, 1, KNA_MAX_DIM + 1, 1), KNA_ELIMIT, "1024");
    EXPECT_STATUS(kna_index_new(context, &index, 1, 1, KNA_MAX_DIM + 1), KNA_ELIMIT, "1024");
    EXPECT_STATUS(kna_index_new(context, NULL, 1, 1, 1), KNA_EINVAL, "index");
    EXPECT_INT(kna_index_new(context, &index, 1, KNA_MAX_DIM, KNA_MAX_DIM), KNA_OK);
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
    /* int8 keys, one scale a row, a f16 mean a block; not much more. */
    size_t least = HEADS * (N * (D + 4) + N / 16 * DV * 2);
    EXPECT(kna_index_bytes(index_) - own >= least && kna_index_bytes(index_) - own <= 2 * least);
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

/* The mean of a block needs all of its present rows: a view that ends among them is refused, and nothing beyond it is read. */
static void views_that_end_too_soon(void)
{
    c.guarded = true;
    fresh();
    EXPECT_INT(update(0, 20), KNA_OK);
    c.k.rows = c.v.rows = 18;
    c.k.head_stride_bytes = N * D * 4;
    c.v.head_stride_bytes = N * DV * 4;
    EXPECT_STATUS(update(16, 2), KNA_ESHAPE, "row 18");
    EXPECT_INT(update(0, 16), KNA_OK); /* another block */
    EXPECT_INT(kna_index_remove(context, index_, 18, 2), KNA_OK);
    EXPECT_INT(update(16, 2), KNA_OK);
    done();
    c.guarded = false;
}

/* NaN and infinity are encoded as zero: the row is there, and poisons nothing. */
static void garbage_is_zero(void)
{
    fresh();
    case_put(&c.k, 0, 20, 3, NAN);
    case_put(&c.v, 1, 21, 3, -INFINITY);
    EXPECT_INT(update(0, N), KNA_OK);
    c.options.method = KNA_KNN;
    c.options.index = index_;
    c.options.k_near = 1;
    c.options.near_sinks = c.options.near_window = -1;
    c.options.unchecked = 1;
    memset((void *)(uintptr_t)c.q.data, 0, HEADS * D * 4); /* equal logits: the nearest is row 0, the garbage in the tail */
    c.k.rows = c.v.rows = 32;                              /* two whole blocks */
    c.k.head_stride_bytes = N * D * 4;
    c.v.head_stride_bytes = N * DV * 4;
    case_attend(&c, context, NULL);
    for (int i = 0; i < HEADS * DV; i++) EXPECT_THAT(isfinite(c.out.data[i]), "out[%d] = %g", i, (double)c.out.data[i]);
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
    EXPECT_STATUS(kna_index_audit(context, &stale, index_, &c.k, &c.v, 1, 0), KNA_EINVAL, "49 rows given, 50 indexed");
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
    c.options.method = KNA_KNN;
    EXPECT_INT(update(0, N - 1), KNA_OK);
    static const int methods[] = { KNA_TOPK, KNA_KNN };
    for (int i = 0; i < 2; i++) {
        c.options.method = methods[i];
        EXPECT_STATUS(kna_attend(context, &c.out, NULL, NULL, &c.q, &c.k, &c.v, &c.options), KNA_ESTALE, "49 rows");
    }
    c.options.method = KNA_EXACT; /* asks no index */
    EXPECT_INT(kna_attend(context, &c.out, NULL, NULL, &c.q, &c.k, &c.v, &c.options), KNA_OK);
    c.options.method = KNA_KNN;
    EXPECT_INT(update(0, N), KNA_OK);
    EXPECT_INT(kna_attend(context, &c.out, NULL, NULL, &c.q, &c.k, &c.v, &c.options), KNA_OK);
    int64_t shapes[][3] = { { HEADS + 1, D, DV }, { HEADS, D + 1, DV }, { HEADS, D, DV + 1 } };
    for (int i = 0; i < 3; i++) {
        kna_index *other;
        EXPECT_INT(kna_index_new(context, &other, shapes[i][0], shapes[i][1], shapes[i][2]), KNA_OK);
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
    c.options.method = KNA_KNN;
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

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(refused_shapes);
    TEST(empty);
    TEST(rows_and_bytes);
    TEST(refused_updates);
    TEST(views_that_end_too_soon);
    TEST(garbage_is_zero);
    TEST(refused_removals_and_audits);
    TEST(refused_in_attention);
    TEST(longer_than_the_keys);
    contexts_free();
    return test_end();
}
