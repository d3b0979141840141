/* unit_attend.c - what kna_attend() and kna_merge() refuse, with which status, and that the message names the thing. */
#include "random_case.h"

enum { H = 4, H_KV = 2, M = 3, N = 40, D = 32, DV = 16 };

static random_case c;
static kna_context *context;

static int attend(void)
{
    return kna_attend(context, &c.out, c.lse, NULL, &c.q, &c.k, &c.v, &c.options);
}

/* The case is refused as said; and once it is put right again, the same context works and its message is gone. */
#define EXPECT_REFUSED(status, words) refused(status, words, __LINE__)
static void refused(int status, const char *words, int line)
{
    int got = attend();
    const char *message = kna_context_message(context);
    test_check(got == status, __FILE__, line, "%s (%s), expected %s", kna_status_name(got), message, kna_status_name(status));
    test_check(strstr(message, words) != NULL, __FILE__, line, "message \"%s\" does not name \"%s\"", message, words);
    for (int i = 0; i < c.holds; i++) free(c.held[i]);
    case_begin(&c, (shape){ H, H_KV, M, N, D, DV });
    test_check(attend() == KNA_OK, __FILE__, line, "the next call: %s", kna_context_message(context));
    test_check(kna_context_message(context)[0] == 0, __FILE__, line, "a message after a success");
}

/* ---- operands */
static void null_operands(void)
{
    const kna_attend_options *o = &c.options;
    static const kna_rows *const none = NULL;
    EXPECT_INT(kna_attend(context, NULL, NULL, NULL, &c.q, &c.k, &c.v, o), KNA_EINVAL);
    EXPECT(strstr(kna_context_message(context), "out") != NULL);
    EXPECT_INT(kna_attend(context, &c.out, NULL, NULL, none, &c.k, &c.v, o), KNA_EINVAL);
    EXPECT(strstr(kna_context_message(context), "queries") != NULL);
    EXPECT_INT(kna_attend(context, &c.out, NULL, NULL, &c.q, none, &c.v, o), KNA_EINVAL);
    EXPECT_INT(kna_attend(context, &c.out, NULL, NULL, &c.q, &c.k, none, o), KNA_EINVAL);
    EXPECT_INT(kna_attend(context, &c.out, NULL, NULL, &c.q, &c.k, &c.v, NULL), KNA_OK); /* all defaults */
    c.q.data = NULL;
    EXPECT_REFUSED(KNA_EINVAL, "queries: null data");
    c.k.data = NULL;
    EXPECT_REFUSED(KNA_EINVAL, "keys: null data");
    c.v.data = NULL;
    EXPECT_REFUSED(KNA_EINVAL, "values: null data");
    c.out.data = NULL;
    EXPECT_REFUSED(KNA_EINVAL, "out: null data");
}

static kna_rows *operand(int i)
{
    return i == 0 ? &c.q : i == 1 ? &c.k : &c.v;
}

static void sizes(void)
{
    static const char *const names[] = { "queries", "keys", "values" };
    for (int i = 0; i < 3; i++) {
        operand(i)->heads = 0;
        EXPECT_REFUSED(KNA_EINVAL, names[i]);
        operand(i)->heads = -1;
        EXPECT_REFUSED(KNA_EINVAL, names[i]);
        operand(i)->rows = -1;
        EXPECT_REFUSED(KNA_EINVAL, names[i]);
        operand(i)->dim = 0;
        EXPECT_REFUSED(KNA_EINVAL, names[i]);
        operand(i)->dim = -32;
        EXPECT_REFUSED(KNA_EINVAL, names[i]);
        operand(i)->dim = KNA_MAX_DIM + 1;
        EXPECT_REFUSED(KNA_ELIMIT, names[i]);
        operand(i)->heads = KNA_MAX_HEADS + 1;
        EXPECT_REFUSED(KNA_ELIMIT, names[i]);
        operand(i)->rows = (int64_t)KNA_MAX_ROWS + 1;
        EXPECT_REFUSED(KNA_ELIMIT, names[i]);
        operand(i)->rows = INT64_MAX;
        EXPECT_REFUSED(KNA_ELIMIT, "2147483647");
        operand(i)->row_stride_bytes = -128;
        EXPECT_REFUSED(KNA_EINVAL, names[i]);
        operand(i)->head_stride_bytes = -128;
        EXPECT_REFUSED(KNA_EINVAL, names[i]);
        operand(i)->row_stride_bytes = INT64_MAX / 2;
        EXPECT_REFUSED(KNA_ELIMIT, names[i]);
    }
    c.out.row_stride_bytes = -4;
    EXPECT_REFUSED(KNA_EINVAL, "out");
    c.out.head_stride_bytes = -4;
    EXPECT_REFUSED(KNA_EINVAL, "out");
}

static void shapes_disagree(void)
{
    c.q.dim = D - 1;
    EXPECT_REFUSED(KNA_ESHAPE, "32");
    c.k.dim = D - 1;
    EXPECT_REFUSED(KNA_ESHAPE, "31");
    c.v.rows = N - 1;
    EXPECT_REFUSED(KNA_ESHAPE, "39");
    c.k.rows = N - 1;
    EXPECT_REFUSED(KNA_ESHAPE, "values");
    c.v.heads = 1;
    EXPECT_REFUSED(KNA_ESHAPE, "values");
    c.q.heads = 3;
    EXPECT_REFUSED(KNA_ESHAPE, "3 query heads are not a multiple of 2");
    c.q.heads = 1;
    EXPECT_REFUSED(KNA_ESHAPE, "1 query heads");
}

static void types(void)
{
    static const char *const names[] = { "queries", "keys", "values" };
    float scales[H * N] = { 0 };
    for (int i = 0; i < 3; i++) {
        operand(i)->type = KNA_TYPE_COUNT;
        EXPECT_REFUSED(KNA_ETYPE, names[i]);
        operand(i)->type = -1;
        EXPECT_REFUSED(KNA_ETYPE, names[i]);
        operand(i)->type = KNA_I8; /* without scales */
        EXPECT_REFUSED(KNA_EINVAL, names[i]);
        operand(i)->scales = scales; /* with scales, but f32 */
        EXPECT_REFUSED(KNA_EINVAL, "scales");
        operand(i)->type = KNA_Q8_0;
        operand(i)->dim = 48;
        EXPECT_REFUSED(KNA_ETYPE, "q8_0");
    }
    c.q.type = KNA_I8;
    c.q.scales = scales;
    EXPECT_REFUSED(KNA_ETYPE, "queries: type i8");
    c.q.type = KNA_Q8_0;
    EXPECT_REFUSED(KNA_ETYPE, "queries: type q8_0");
}

/* ---- numbers */
static void put_bad(int i, int64_t head, int64_t row, int64_t column, float x)
{
    case_put(operand(i), head, row, column, x);
}

static void nan_and_infinity(void)
{
    static const struct {
        int operand;
        int64_t head, row, column;
        const char *message;
    } places[] = {
        { 0, 3, 2, 31, "queries: NaN or infinity at head 3, row 2, column 31" },
        { 1, 1, 17, 3, "keys: NaN or infinity at head 1, row 17, column 3" },
        { 1, 0, 0, 0, "keys: NaN or infinity at head 0, row 0, column 0" },
        { 2, 1, N - 1, DV - 1, "values: NaN or infinity at head 1, row 39, column 15" },
    };
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    static const int types[] = { KNA_F32, KNA_F16, KNA_BF16 };
    for (size_t i = 0; i < sizeof places / sizeof places[0] * 9; i++) {
        size_t place = i / 9;
        case_rows(&c, operand(places[place].operand), types[i % 3], (int)test_below(LAYOUT_COUNT), 1);
        put_bad(places[place].operand, places[place].head, places[place].row, places[place].column, bad[i / 3 % 3]);
        c.options.method = (int)test_below(KNA_CONTROL + 1);
        EXPECT_REFUSED(KNA_EVALUE, places[place].message);
    }
    /* Two of them: the first in order, however many threads look. */
    put_bad(1, 1, 30, 2, NAN);
    put_bad(1, 1, 29, 9, NAN);
    EXPECT_REFUSED(KNA_EVALUE, "row 29, column 9");
}

static void bad_scales(void)
{
    case_rows(&c, &c.k, KNA_I8, LAYOUT_PACKED, 1);
    ((float *)(uintptr_t)c.k.scales)[N + 5] = NAN;
    EXPECT_REFUSED(KNA_EVALUE, "keys: NaN or infinity at head 1, row 5");
    case_rows(&c, &c.k, KNA_Q8_0, LAYOUT_PADDED, 1);
    uint16_t infinite = 0x7c00;
    memcpy((char *)(uintptr_t)c.k.data + 7 * c.k.row_stride_bytes, &infinite, sizeof infinite);
    EXPECT_REFUSED(KNA_EVALUE, "keys: NaN or infinity at head 0, row 7, column 0");
}

static void mask_numbers(void)
{
    for (int kind = 0; kind < 4; kind++) {
        int type = kind / 2 ? KNA_F16 : KNA_F32;
        case_mask(&c, type, H, 0.3, false, false);
        const kna_mask *mask = &c.options.mask;
        kna_rows view = { mask->data, type, H, M, N, mask->head_stride_bytes, mask->row_stride_bytes, NULL };
        case_put(&view, 2, 1, 39, kind % 2 ? NAN : INFINITY);
        EXPECT_REFUSED(KNA_EVALUE, "mask: NaN or +infinity at head 2, row 1, column 39");
    }
    case_mask(&c, KNA_F32, 1, 1, true, true); /* nothing but -infinity is fine */
    EXPECT_INT(attend(), KNA_OK);
    c.options.mask.type = KNA_BF16;
    EXPECT_REFUSED(KNA_ETYPE, "mask");
    case_mask(&c, KNA_F32, 1, 0, false, false);
    c.options.mask.heads = -1;
    EXPECT_REFUSED(KNA_EINVAL, "mask");
    case_mask(&c, KNA_F32, 1, 0, false, false);
    c.options.mask.row_stride_bytes = -4;
    EXPECT_REFUSED(KNA_EINVAL, "mask");
    case_mask(&c, KNA_F32, 1, 0, false, false);
    c.options.mask.head_stride_bytes = -4;
    EXPECT_REFUSED(KNA_EINVAL, "mask");
}

static void per_head_numbers(void)
{
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    for (int i = 0; i < 3; i++) {
        float x[H] = { 1, 1, bad[i], 1 };
        c.options.slopes = x;
        EXPECT_REFUSED(KNA_EVALUE, "slopes");
        c.options.sinks = x;
        EXPECT_REFUSED(KNA_EVALUE, "sinks");
    }
    float zero[H] = { 1, 0, 1, 1 }; /* 0 times a mask of -infinity is NaN */
    c.options.slopes = zero;
    EXPECT_INT(attend(), KNA_OK);
    case_mask(&c, KNA_F32, 1, 0, false, false);
    EXPECT_REFUSED(KNA_EVALUE, "head 1");
}

/* Without the check, garbage in gives garbage out, and no error. */
static void unchecked(void)
{
    put_bad(2, 0, 3, 3, NAN);
    c.options.unchecked = 1;
    EXPECT_INT(attend(), KNA_OK);
    c.options.unchecked = 0;
    EXPECT_REFUSED(KNA_EVALUE, "values");
}

/* ---- options */
static void option_ranges(void)
{
    c.options.method = KNA_METHOD_COUNT;
    EXPECT_REFUSED(KNA_EINVAL, "method: 15");
    c.options.method = -1;
    EXPECT_REFUSED(KNA_EINVAL, "method");
    c.options.scale = NAN;
    EXPECT_REFUSED(KNA_EINVAL, "scale");
    c.options.scale = INFINITY;
    EXPECT_REFUSED(KNA_EINVAL, "scale");
    c.options.softcap = -1;
    EXPECT_REFUSED(KNA_EINVAL, "softcap");
    c.options.softcap = NAN;
    EXPECT_REFUSED(KNA_EINVAL, "softcap");
    c.options.softcap = INFINITY;
    EXPECT_REFUSED(KNA_EINVAL, "softcap");
    c.options.window = -1;
    EXPECT_REFUSED(KNA_EINVAL, "window: -1");
    c.options.causal_shift = (int64_t)KNA_MAX_ROWS + 1;
    EXPECT_REFUSED(KNA_ELIMIT, "causal_shift: 2147483648");
    c.options.causal_shift = INT64_MIN;
    EXPECT_REFUSED(KNA_ELIMIT, "causal_shift");
    c.options.k_near = -1;
    EXPECT_REFUSED(KNA_EINVAL, "k_near: -1");
    static const float bad_eps[] = { -0.1f, 1, 2, NAN, INFINITY };
    for (int i = 0; i < 5; i++) {
        c.options.eps = 0.1f;
        c.options.delta = bad_eps[i];
        EXPECT_REFUSED(KNA_EINVAL, "delta");
        c.options.delta = 0;
        c.options.eps = bad_eps[i];
        EXPECT_REFUSED(KNA_EINVAL, "eps");
    }
    static const float bad_audit[] = { -0.1f, 1.5f, NAN, INFINITY };
    for (int i = 0; i < 4; i++) {
        c.options.audit = bad_audit[i];
        EXPECT_REFUSED(KNA_EINVAL, "audit");
    }
}

/* Options of another version: shorter ones are refused, longer ones only if what is not known is set. */
static void option_sizes(void)
{
    struct {
        kna_attend_options options;
        char more[24];
    } newer = { .options = c.options };
    memset(newer.more, 0, sizeof newer.more);
    c.options.size = 0;
    EXPECT_REFUSED(KNA_EINVAL, "size 0");
    c.options.size = sizeof c.options - 1;
    EXPECT_REFUSED(KNA_EINVAL, "KNA_ATTEND_OPTIONS");
    newer.options.size = sizeof newer;
    EXPECT_INT(kna_attend(context, &c.out, c.lse, NULL, &c.q, &c.k, &c.v, &newer.options), KNA_OK);
    newer.more[sizeof newer.more - 1] = 1;
    EXPECT_INT(kna_attend(context, &c.out, c.lse, NULL, &c.q, &c.k, &c.v, &newer.options), KNA_EINVAL);
    EXPECT(strstr(kna_context_message(context), "newer version") != NULL);
}

static void report_sizes(void)
{
    struct {
        kna_report report;
        char more[16];
    } newer;
    memset(&newer, 0x5a, sizeof newer);
    newer.report.size = sizeof(kna_report) - 1;
    EXPECT_INT(kna_attend(context, &c.out, c.lse, &newer.report, &c.q, &c.k, &c.v, &c.options), KNA_EINVAL);
    EXPECT(strstr(kna_context_message(context), "report") != NULL);
    newer.report.size = sizeof newer;
    EXPECT_INT(kna_attend(context, &c.out, c.lse, &newer.report, &c.q, &c.k, &c.v, &c.options), KNA_OK);
    EXPECT_INT(newer.report.size, sizeof newer);
    EXPECT_INT(newer.report.rows, H * M);
    for (size_t i = 0; i < sizeof newer.more; i++) EXPECT_INT(newer.more[i], 0x5a); /* not this version's to write */
}

/* What an exact call reports. */
static void report_of_exact(void)
{
    kna_report r = { .size = sizeof r };
    c.options.causal = 1;
    EXPECT_INT(kna_attend(context, &c.out, c.lse, &r, &c.q, &c.k, &c.v, &c.options), KNA_OK);
    EXPECT_INT(r.method, KNA_EXACT);
    EXPECT_INT(r.rows, H * M);
    EXPECT_INT(r.rows_exact, H * M);
    EXPECT_INT(r.keys_seen, H * (N + N - 1 + N - 2));
    EXPECT_INT(r.keys_full, r.keys_seen);
    EXPECT(r.keys_touched == 1 && r.tail_mass == 0 && r.build_s == 0 && r.time_s > 0 && r.time_s < 60);
    EXPECT(r.error_est < 0 && r.error_est_max < 0 && r.audit_mean < 0 && r.audit_p95 < 0);
    EXPECT(r.audited == 0 && r.stale_rows == 0 && r.index_bytes == 0 && r.scratch_bytes > 0);
}

/* A few keys more than two pieces: of 600, rows 16 to 511 lie in 31 clusters, of which one is read. */
static void report_of_knn(void)
{
    kna_report r = { .size = sizeof r };
    kna_memory memory;
    random_case x = { .guarded = false };
    case_begin(&x, (shape){ H, H_KV, M, 600, D, DV });
    x.options.method = KNA_KNN;
    x.options.k_near = 2;
    x.options.near_sinks = x.options.near_window = -1;
    case_attend(&x, context, &r);
    kna_context_memory(context, &memory);
    EXPECT(r.index_bytes > 0 && r.scratch_bytes > 0 && r.scratch_bytes <= memory.peak_bytes);
    EXPECT(r.build_s > 0 && r.build_s <= r.time_s);
    EXPECT_INT(r.rows_exact, 0);
    EXPECT_INT(r.keys_seen, H * M * 600);
    EXPECT(r.tail_mass > 0.2 && r.tail_mass < 0.9 && r.error_est < 0);
    double ranges = 600 - 512 + 16, most = ranges + 300;
    EXPECT_THAT(r.keys_full > H * M * ranges && r.keys_full < H * M * most, "%g keys in full", r.keys_full);
    case_end(&x);
}

static void names(void)
{
    EXPECT_TEXT(kna_method_name(KNA_EXACT), "exact");
    EXPECT_TEXT(kna_method_name(KNA_TOPK), "topk");
    EXPECT_TEXT(kna_method_name(KNA_KNN), "knn");
    EXPECT(kna_method_name(-1) == NULL && kna_method_name(KNA_METHOD_COUNT) == NULL);
}

static void merge(void)
{
    float a[2] = { 1, 2 }, a_lse = 0;
    EXPECT_INT(kna_merge(context, a, &a_lse, a, &a_lse, -1, 2), KNA_EINVAL);
    EXPECT(strstr(kna_context_message(context), "rows = -1") != NULL);
    EXPECT_INT(kna_merge(context, a, &a_lse, a, &a_lse, 1, 0), KNA_EINVAL);
    EXPECT_INT(kna_merge(context, NULL, &a_lse, a, &a_lse, 1, 2), KNA_EINVAL);
    EXPECT_INT(kna_merge(context, a, NULL, a, &a_lse, 1, 2), KNA_EINVAL);
    EXPECT_INT(kna_merge(context, a, &a_lse, NULL, &a_lse, 1, 2), KNA_EINVAL);
    EXPECT_INT(kna_merge(context, a, &a_lse, a, NULL, 1, 2), KNA_EINVAL);
    EXPECT_INT(kna_merge(context, a, &a_lse, a, &a_lse, 0, 2), KNA_OK);
    EXPECT_TEXT(kna_context_message(context), "");
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    context = context_best();
    case_begin(&c, (shape){ H, H_KV, M, N, D, DV });
    TEST(null_operands);
    TEST(sizes);
    TEST(shapes_disagree);
    TEST(types);
    TEST(nan_and_infinity);
    TEST(bad_scales);
    TEST(mask_numbers);
    TEST(per_head_numbers);
    TEST(unchecked);
    TEST(option_ranges);
    TEST(option_sizes);
    TEST(report_sizes);
    TEST(report_of_exact);
    case_end(&c);
    case_begin(&c, (shape){ H, H_KV, M, N, D, DV });
    TEST(report_of_knn);
    TEST(names);
    TEST(merge);
    case_end(&c);
    contexts_free();
    return test_end();
}
