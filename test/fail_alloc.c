/*
 * fail_alloc.c - every allocation of every call fails once: the call says KNA_ENOMEM, nothing leaks, context and index are as
 * before and still give the right result. And the account: what it says is what the allocator was asked for.
 */
#include "knn_oracle.h"

/* An allocator that counts, and fails the call number fail_at (counted from 1; 0: never). */
typedef struct ledger {
    size_t held_bytes, peak_bytes, blocks, calls, fail_at;
} ledger;

static void *ledger_allocate(void *user, size_t bytes)
{
    ledger *l = user;
    if (++l->calls == l->fail_at) return NULL;
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) return NULL;
    memset(memory, 0xff, bytes); /* nobody may count on zeros */
    l->blocks++;
    l->held_bytes += bytes;
    if (l->held_bytes > l->peak_bytes) l->peak_bytes = l->held_bytes;
    return memory;
}

static void ledger_release(void *user, void *memory, size_t bytes)
{
    ledger *l = user;
    EXPECT(memory != NULL && l->blocks > 0 && l->held_bytes >= bytes);
    memset(memory, 0xee, bytes);
    l->blocks--;
    l->held_bytes -= bytes;
    free(memory);
}

static kna_context *context_on(ledger *l)
{
    kna_context_options o = KNA_CONTEXT_OPTIONS;
    kna_context *context = NULL;
    o.allocator = (kna_allocator){ ledger_allocate, ledger_release, l };
    o.threads = 1; /* waiting for each other would take most of the time */
    EXPECT_INT(kna_context_new(&context, &o), KNA_OK);
    return context;
}

static void expect_account(const kna_context *context, const ledger *l)
{
    kna_memory m;
    kna_context_memory(context, &m);
    EXPECT_INT(m.now_bytes, l->held_bytes);
    EXPECT_INT(m.peak_bytes, l->peak_bytes);
    EXPECT(m.peak_bytes >= m.now_bytes);
}

static void expect_no_memory(int status, const kna_context *context)
{
    EXPECT_INT(status, KNA_ENOMEM);
    EXPECT_THAT(strstr(kna_context_message(context), "memory") != NULL, "message \"%s\"", kna_context_message(context));
}

/* ---- contexts and indexes */
static void new_context(void)
{
    ledger l = { .fail_at = 1 };
    kna_context_options o = KNA_CONTEXT_OPTIONS;
    o.allocator = (kna_allocator){ ledger_allocate, ledger_release, &l };
    kna_context *context = (kna_context *)(uintptr_t)64;
    EXPECT_INT(kna_context_new(&context, &o), KNA_ENOMEM);
    EXPECT(context == NULL && l.blocks == 0);
    kna_context_free(context_on(&l)); /* the second call succeeds */
    EXPECT(l.blocks == 0 && l.held_bytes == 0);
}

static void new_index(void)
{
    ledger l = { 0 };
    kna_context *context = context_on(&l);
    kna_index *index = (kna_index *)(uintptr_t)64;
    l.calls = 0;
    l.fail_at = 1;
    expect_no_memory(kna_index_new(context, &index, KNA_KNN, 2, 8, 8), context);
    EXPECT(index == NULL && l.blocks == 1);
    expect_account(context, &l);
    kna_context_free(context);
    EXPECT(l.blocks == 0 && l.held_bytes == 0);
}

/* ---- attention */
enum { ROWS = 1400 }; /* a segment of clusters and a piece */

typedef struct plan {
    const char *name;
    int method;
    int64_t m;
    bool indexed, audited, eps, masked;
} plan;

static const plan plans[] = {
    { "exact, one query", KNA_EXACT, 1, false, false, false, false },
    { "exact, many queries", KNA_EXACT, 40, false, false, false, true },
    { "topk", KNA_TOPK, 1, false, false, false, false },
    { "topk with an index, audited", KNA_TOPK, 20, true, true, false, true },
    { "knn", KNA_KNN, 1, false, false, false, false },
    { "knn, audited", KNA_KNN, 30, false, true, false, true },
    { "knn with an index", KNA_KNN, 1, true, false, false, false },
    { "knn with an index and eps", KNA_KNN, 9, true, true, true, true },
    { "knn of few keys", KNA_KNN, 2, false, false, false, false },
    { "uniform, audited", KNA_UNIFORM, 20, false, true, false, true },
    { "gumbel", KNA_GUMBEL, 3, false, false, false, false },
    { "topk by relevance, audited", KNA_TOPK, 20, false, true, false, true },
    { "knn by quotas", KNA_KNN, 20, false, false, false, false },
    { "topk by determinants", KNA_TOPK, 3, false, false, false, false },
    { "topk by quotas", KNA_TOPK, 3, false, false, false, false },
    { "topk with landmarks", KNA_TOPK, 70, true, false, false, true },
    { "topk with a mean tail", KNA_TOPK, 3, false, false, false, true },
    { "uniform in strata", KNA_UNIFORM, 3, false, false, false, false },
    { "median of means", KNA_MOM, 3, false, false, false, false },
    { "stratified, audited", KNA_STRATIFIED, 5, false, true, false, true },
    { "centroid", KNA_CENTROID, 2, false, false, false, false },
    { "control", KNA_CONTROL, 2, false, false, false, false },
    { "bounds of clusters", KNA_GUMBEL, 3, false, false, false, false },
    { "topk with a radius", KNA_TOPK, 3, true, false, false, false },
    { "window", KNA_WINDOW, 30, false, false, false, false },
    { "linformer", KNA_LINFORMER, 5, false, false, false, false },
    { "nystrom", KNA_NYSTROM, 20, false, false, false, false },
    { "performer", KNA_PERFORMER, 5, false, false, false, false },
    { "lsh", KNA_LSH, 5, false, false, false, false },
};

/* Rows 1,100 to 1,150 are hidden from every query. */
static void hide_some(random_case *c)
{
    case_mask(c, KNA_F16, 1, 0, false, false);
    for (int64_t at = 0; at < c->shape.m * ROWS; at++) {
        case_put_mask(c, 0, at / ROWS, at % ROWS, at % ROWS >= 1100 && at % ROWS < 1150 ? -INFINITY : 0);
    }
}

/* Heads and tails that are not simply the nearest keys and what is left. */
static void choose_of_plan(random_case *c, const char *name)
{
    kna_attend_options *o = &c->options;
    int32_t *groups = case_hold(c, ROWS * sizeof *groups);
    for (int64_t j = 0; j < ROWS; j++) groups[j] = (int32_t)(j % 3);
    o->diverse = strstr(name, "relevance")      ? KNA_DIVERSE_MMR
                 : strstr(name, "determinants") ? KNA_DIVERSE_DPP
                 : strstr(name, "quotas")       ? KNA_DIVERSE_QUOTA
                                                : KNA_DIVERSE_NONE;
    o->key_groups = groups;
    o->key_group_count = 3;
    o->stratify = strstr(name, "strata") != NULL;
    o->landmarks = strstr(name, "landmarks") ? 4 : 0;
    o->tail = strstr(name, "mean tail") ? KNA_TAIL_MEAN : KNA_TAIL_DROP;
}

static void case_of_plan(random_case *c, const plan *p)
{
    case_begin(c, (shape){ 4, 2, p->m, ROWS, 20, 12 });
    c->options.method = p->method;
    c->options.k_near = strcmp(p->name, "knn of few keys") == 0 ? ROWS : 5;
    c->options.near_window = 10;
    if (strcmp(p->name, "bounds of clusters") == 0) c->options.bounds = KNA_BOUNDS_CLUSTERS;
    if (strcmp(p->name, "topk with a radius") == 0) c->options.certificate = KNA_CERTIFICATE_DETERMINISTIC;
    c->options.audit = p->audited ? 1.0f : 0;
    c->options.eps = p->eps ? 0.1f : 0;
    if (p->masked) hide_some(c);
    choose_of_plan(c, p->name);
}

/* The account with nothing but the context and the index held. */
static size_t bare_bytes(kna_context *context, const ledger *l)
{
    kna_context_trim(context);
    expect_account(context, l);
    return l->held_bytes;
}

/* An index over all rows, none formed yet, the same each time. */
static kna_index *index_of_plan(const plan *p, const random_case *c, kna_context *context)
{
    if (!p->indexed) return NULL;
    kna_index *index = knn_index_of(c, context);
    index->phase = 0;
    return index;
}

static size_t index_bytes(const kna_index *index)
{
    return index ? kna_index_bytes(index) : 0;
}

/* One attempt with failure number n. False once the call needs fewer allocations than n. */
static bool attempt(const plan *p, random_case *c, kna_context *context, ledger *l, size_t n, const float *want, bool warm)
{
    size_t bytes = (size_t)(c->shape.h * c->shape.m * (c->shape.dv + 1)) * sizeof *want, bare;
    c->options.index = index_of_plan(p, c, context);
    bare = bare_bytes(context, l) - index_bytes(c->options.index);
    if (warm) { /* scratch is held already, though not enough of it */
        random_case small = *c;
        small.q.rows = small.k.rows = small.v.rows = 1;
        small.options = (kna_attend_options)KNA_ATTEND_OPTIONS;
        case_attend(&small, context, NULL);
    }
    kna_report report = { .size = sizeof report };
    l->calls = 0;
    l->fail_at = n;
    int status = kna_attend(context, &c->out, c->lse, &report, &c->q, &c->k, &c->v, &c->options);
    bool hit = l->calls >= n;
    l->fail_at = 0;
    expect_account(context, l);
    if (hit) {
        expect_no_memory(status, context);
        EXPECT_THAT(bare_bytes(context, l) == bare + index_bytes(c->options.index), "%s: a leak after failure %zu", p->name, n);
    } else {
        EXPECT_INT(status, KNA_OK);
    }
    case_attend(c, context, NULL);
    float *got = case_result(c);
    EXPECT_THAT(memcmp(got, want, bytes) == 0, "%s: other results after failure %zu", p->name, n);
    free(got);
    kna_index_free(c->options.index);
    c->options.index = NULL;
    return hit;
}

static void one_plan(const plan *p)
{
    ledger l = { 0 };
    random_case c = { .guarded = false };
    kna_context *context = context_on(&l);
    case_of_plan(&c, p);
    case_attend(&c, context, NULL); /* an index changes no bit, as prop_attend_index.c shows */
    float *want = case_result(&c);
    size_t failures = 0;
    for (int warm = 0; warm < 2; warm++) {
        size_t n = 1;
        while (n < 100 && attempt(p, &c, context, &l, n, want, warm)) n++;
        failures += n - 1;
    }
    EXPECT_THAT(failures >= 2, "%s: only %zu allocations", p->name, failures);
    kna_context_free(context);
    EXPECT_THAT(l.blocks == 0 && l.held_bytes == 0, "%s: %zu blocks, %zu bytes leak", p->name, l.blocks, l.held_bytes);
    free(want);
    case_end(&c);
}

static void attention(void)
{
    for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) one_plan(&plans[i]);
}

/* ---- gradients */

/* All of them, packed one after the other. */
static int differentiate(random_case *c, kna_context *context, const kna_rows *dout, float *all)
{
    shape s = c->shape;
    float *dk = all + s.h * s.m * s.d, *dv = dk + s.h_kv * s.n * s.d;
    bool values_only = c->options.chain == KNA_CHAIN_SIGNED;
    kna_gradients gradients = { .dv = { dv, 0, 0 } };
    if (!values_only) gradients.dq.data = all, gradients.dk.data = dk;
    kna_rows out = { c->out.data, KNA_F32, s.h, s.m, s.dv, c->out.head_stride_bytes, c->out.row_stride_bytes, NULL };
    return kna_attend_backward(context, &gradients, dout, &out, c->lse, &c->q, &c->k, &c->v, &c->options);
}

static void gradients_of(int method, int chain)
{
    ledger l = { 0 };
    random_case c = { .guarded = false };
    kna_context *context = context_on(&l);
    shape s = { 4, 2, 60, ROWS, 20, 12 };
    size_t numbers = (size_t)(s.h * s.m * s.d + s.h_kv * s.n * (s.d + s.dv));
    case_begin(&c, s);
    c.options.method = method;
    c.options.chain = chain;
    c.options.differentiable = 1;
    c.options.causal = method != KNA_LINFORMER && method != KNA_NYSTROM;
    c.options.k_near = 20;
    kna_rows dout = { NULL, KNA_F32, s.h, s.m, s.dv, 0, 0, NULL };
    case_rows(&c, &dout, KNA_F32, LAYOUT_PACKED, 1);
    float *want = case_hold(&c, numbers * sizeof *want), *got = case_hold(&c, numbers * sizeof *got);
    memset(want, 0, numbers * sizeof *want);
    memset(got, 0, numbers * sizeof *got);
    case_attend(&c, context, NULL);
    EXPECT_INT(differentiate(&c, context, &dout, want), KNA_OK);
    size_t bare = bare_bytes(context, &l), n = 1;
    for (bool hit = true; hit && n < 100; n += hit) {
        l.calls = 0;
        l.fail_at = n;
        int status = differentiate(&c, context, &dout, got);
        hit = l.calls >= n;
        l.fail_at = 0;
        if (hit) {
            expect_no_memory(status, context);
        } else {
            EXPECT_INT(status, KNA_OK);
            EXPECT(memcmp(want, got, numbers * sizeof *want) == 0);
        }
        EXPECT_INT(bare_bytes(context, &l), bare);
    }
    EXPECT_THAT(n >= 2, "only %zu allocations", n - 1);
    kna_context_free(context);
    EXPECT(l.blocks == 0 && l.held_bytes == 0);
    case_end(&c);
}

static void gradients(void)
{
    gradients_of(KNA_EXACT, 0);
    gradients_of(KNA_KNN, 0);
    gradients_of(KNA_TOPK, 0);
    gradients_of(KNA_UNIFORM, 0);
    gradients_of(KNA_STRATIFIED, 0);
    gradients_of(KNA_CONTROL, 0);
    gradients_of(KNA_GUMBEL, KNA_CHAIN_ROWS);
    gradients_of(KNA_REJECTION, KNA_CHAIN_JOINT);
    gradients_of(KNA_GUMBEL, KNA_CHAIN_SIGNED);
    gradients_of(KNA_GUMBEL, KNA_CHAIN_TAIL);
    for (int method = KNA_WINDOW; method <= KNA_LSH; method++) gradients_of(method, 0);
}

/* ---- an index that cannot grow is as before */

/* The index serves the rows it has, as its clusters are now. */
static void still_serves(random_case *c, kna_context *context)
{
    int64_t rows = 0, doubtful = 0;
    knn_case_holds(c, context, NULL, 1, &rows, &doubtful);
    EXPECT(rows == 8 && knn_index_holds(c->options.index, &c->k, &c->v));
}

/* Append STEP rows of the cache `all` with allocation 1 failing, then 2, and so on until none does; returns how many failed. */
enum { STEP = 450, ALL_ROWS = 10 * STEP };

static size_t append(random_case *c, const random_case *all, kna_context *context, ledger *l, kna_index *index)
{
    int64_t covered = kna_index_rows(index), stale = -1;
    size_t bytes = kna_index_bytes(index);
    for (size_t n = 1;; n++) {
        l->calls = 0;
        l->fail_at = n;
        int status = kna_index_update(context, index, &all->k, &all->v, covered, STEP);
        bool hit = l->calls >= n;
        l->fail_at = 0;
        expect_account(context, l);
        if (!hit) {
            EXPECT_INT(status, KNA_OK);
            EXPECT_INT(kna_index_rows(index), covered + STEP);
            return n - 1;
        }
        expect_no_memory(status, context);
        EXPECT_INT(kna_index_bytes(index), bytes);
        EXPECT_INT(kna_index_rows(index), covered);
        EXPECT_INT(kna_index_audit(context, &stale, index, &all->k, &all->v, 50, n), KNA_OK);
        EXPECT_INT(stale, 0);
        if (covered) still_serves(c, context);
    }
}

/* A call that makes room for the new rows' clusters and forms them, failing likewise. Returns how often it failed. */
static size_t attend_more(random_case *c, kna_context *context, ledger *l)
{
    for (size_t n = 1;; n++) {
        kna_context_trim(context);
        l->calls = 0;
        l->fail_at = n;
        int status = kna_attend(context, &c->out, c->lse, NULL, &c->q, &c->k, &c->v, &c->options);
        bool hit = l->calls >= n;
        l->fail_at = 0;
        expect_account(context, l);
        EXPECT(knn_index_holds(c->options.index, &c->k, &c->v));
        if (!hit) {
            EXPECT_INT(status, KNA_OK);
            return n - 1;
        }
        expect_no_memory(status, context);
    }
}

static void growing_index(void)
{
    ledger l = { 0 };
    random_case c = { .guarded = false };
    kna_context *context = context_on(&l);
    kna_index *index;
    size_t failures = 0;
    case_begin(&c, (shape){ 4, 2, 2, ALL_ROWS, 20, 12 });
    c.options.method = KNA_KNN;
    c.options.k_near = 5;
    EXPECT_INT(kna_index_new(context, &index, KNA_KNN, 2, 20, 12), KNA_OK);
    random_case part = c; /* what is indexed so far */
    part.k.head_stride_bytes = ALL_ROWS * 20 * 4;
    part.v.head_stride_bytes = ALL_ROWS * 12 * 4;
    part.options.index = index;
    for (int64_t rows = 0; rows < ALL_ROWS; rows += STEP) {
        failures += append(&part, &c, context, &l, index);
        part.k.rows = part.v.rows = part.shape.n = rows + STEP;
        failures += attend_more(&part, context, &l);
        still_serves(&part, context);
    }
    EXPECT_THAT(failures >= 40, "only %zu failures", failures);
    EXPECT(knn_formed_pieces(index) >= 6);
    kna_index_free(index);
    kna_context_free(context);
    EXPECT(l.blocks == 0 && l.held_bytes == 0);
    case_end(&c);
}

/* ---- the account over a working life */
static void account(void)
{
    ledger l = { 0 };
    kna_context *context = context_on(&l);
    kna_index *index;
    kna_memory m;
    size_t alone = l.held_bytes;
    EXPECT_INT(kna_index_new(context, &index, KNA_KNN, 2, 20, 12), KNA_OK);
    for (int i = 0; i < 30; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 1 + (int64_t)test_below(30), 1 + (int64_t)test_below(1400), 20, 12 });
        c.options.method = (int)test_below(KNA_CONTROL + 1);
        c.options.k_near = 3;
        EXPECT_INT(kna_index_remove(context, index, 0, kna_index_rows(index)), KNA_OK); /* another cache in its place */
        EXPECT_INT(kna_index_update(context, index, &c.k, &c.v, 0, c.shape.n), KNA_OK);
        if (c.options.method == KNA_KNN && test_below(3)) c.options.index = index;
        case_attend(&c, context, NULL);
        if (test_below(5) == 0) kna_context_trim(context);
        expect_account(context, &l);
        case_end(&c);
    }
    EXPECT_INT(bare_bytes(context, &l), alone + kna_index_bytes(index));
    kna_context_memory(context, &m);
    EXPECT(m.peak_bytes > m.now_bytes && m.allocations > 3);
    kna_index_free(index);
    EXPECT_INT(l.held_bytes, alone);
    kna_context_free(context);
    EXPECT(l.blocks == 0 && l.held_bytes == 0);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(new_context);
    TEST(new_index);
    TEST(attention);
    TEST(gradients);
    TEST(growing_index);
    TEST(account);
    return test_end();
}
