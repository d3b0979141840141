/*
 * prop_strata.c - cells of keys: what is kept of them bounds the logits of their members; draws by those bounds are by the softmax
 * whatever the head; estimates that go by them are unbiased; nothing depends on what a query does not see.
 *
 * Power: as in prop_sampled.c. Where bounds do not hold the same test fails, by much (bounds_that_do_not_hold).
 */
#include "sampling.h"

#include "../src/attend/strata.h"

/* ---- what is kept */

typedef struct study {
    random_case c;
    kna__problem p;
    kna__strata s;
    oracle *o;
} study;

static void study_begin(study *t, shape s, kna_index *index)
{
    memset(t, 0, sizeof *t);
    case_random(&t->c, s);
    t->c.options.method = KNA_STRATIFIED;
    t->o = oracle_new(&t->c.q, &t->c.k, &t->c.v, &t->c.options);
    EXPECT_INT(kna__problem_init(&t->p, context_best(), &t->c.out, t->c.lse, &t->c.q, &t->c.k, &t->c.v, &t->c.options), KNA_OK);
    EXPECT_INT(kna__strata_new(&t->p, index, &t->s), KNA_OK);
}

static void study_end(study *t)
{
    kna__strata_free(&t->s);
    oracle_free(t->o);
    case_end(&t->c);
}

/* Members of the units formed are all their rows but the first 16, each once. Returns how many units there are. */
static int64_t expect_partition(const study *t, int64_t head, int level)
{
    int64_t rows = kna__strata_rows(level), formed = 0;
    char *times = calloc((size_t)t->p.n + 1, 1);
    for (int64_t first = 0; first + rows <= t->p.n; first += rows) {
        int64_t cell = level * t->s.cells + first / KNA_BLOCK, members = 0;
        if (!t->s.formed[cell]) continue;
        formed++;
        for (int64_t c = cell; c < cell + rows / KNA_BLOCK; c++) {
            const int32_t *ids = kna__strata_members(&t->s, head, (int32_t)c);
            int32_t count = t->s.count[head * KNA_STRATA_LEVELS * t->s.cells + c];
            for (int32_t i = 0; i < count; i++) {
                if (!EXPECT(ids[i] >= first && ids[i] < first + rows && ids[i] >= KNA_FIRST_ROWS)) break;
                members += times[ids[i]]++ == 0;
            }
        }
        EXPECT_INT(members, rows - (first == 0 ? KNA_FIRST_ROWS : 0));
    }
    free(times);
    return formed;
}

/* Of one cell and one query: no logit above that of the mean and |q| times reach; e <= W <= e cosh(|q| reach). */
static void expect_bounds(const study *t, int64_t query_head, int64_t cell)
{
    const kna__strata *s = &t->s;
    int64_t head = query_head / t->p.g, at = head * KNA_STRATA_LEVELS * s->cells + cell, d = t->p.d, dv = t->p.dv;
    const int32_t *ids = kna__strata_members(s, head, (int32_t)cell);
    const double *q = t->o->q + query_head * t->p.m * d;
    double product = 0, norm = 0, weight = 0, size = 0;
    for (int64_t c = 0; c < d; c++) {
        product += t->o->scale * q[c] * (double)s->key[at * d + c];
        norm += t->o->scale * q[c] * t->o->scale * q[c];
        size += (double)s->key[at * d + c] * (double)s->key[at * d + c];
    }
    double h = sqrt(norm) * (double)s->reach[at], slack = 1e-5 * (1 + sqrt(norm * size));
    EXPECT_NEAR(s->norm[at], sqrt(size), 1e-5 * sqrt(size) + 1e-30);
    for (int32_t i = 0; i < s->count[at]; i++) {
        double logit = 0, apart = 0;
        for (int64_t c = 0; c < d; c++) logit += t->o->scale * q[c] * t->o->k[(head * t->p.n + ids[i]) * d + c];
        for (int64_t c = 0; c < dv; c++) {
            double off = t->o->v[(head * t->p.n + ids[i]) * dv + c] - (double)s->value[at * dv + c];
            apart += off * off;
        }
        EXPECT_THAT(fabs(logit - product) <= h + slack, "logit %g, that of the mean %g -+ %g", logit, product, h);
        EXPECT_THAT(sqrt(apart) <= (double)s->stray[at] * (1 + 1e-6), "value %g from the mean, %g", sqrt(apart),
                    (double)s->stray[at]);
        weight += exp(logit - product);
    }
    double count = s->count[at];
    EXPECT_THAT(weight >= count * (1 - slack) && weight <= count * cosh(h) * (1 + slack), "W / e = %g, cosh %g", weight / count,
                cosh(h));
}

static void cells_bound_their_keys(void)
{
    int64_t units[KNA_STRATA_LEVELS] = { 0 };
    for (int i = 0; i < rounds(16); i++) {
        study t;
        int64_t h_kv = 1 + (int64_t)test_below(2);
        study_begin(
            &t, (shape){ h_kv * (1 + (int64_t)test_below(2)), h_kv, 1 + (int64_t)test_below(40), (int64_t)test_below(2500), 8, 6 },
            NULL);
        for (int level = 0; level < KNA_STRATA_LEVELS && t.s.cells; level++) {
            for (int64_t head = 0; head < h_kv; head++) units[level] += expect_partition(&t, head, level);
            for (int64_t cell = 0; cell < t.s.cells; cell++) {
                int64_t head = (int64_t)test_below((size_t)t.p.h), at = head / t.p.g * KNA_STRATA_LEVELS * t.s.cells;
                if (t.s.count[at + level * t.s.cells + cell]) expect_bounds(&t, head, level * t.s.cells + cell);
            }
        }
        study_end(&t);
    }
    EXPECT_THAT(units[0] && (rounds(16) < 16 || (units[1] && units[2])), "units: %lld, %lld, %lld", (long long)units[0], (long long)units[1],
                (long long)units[2]);
}

/* ---- draws */

enum { KEYS = 800, DRAWN = 12000 / RANDOM_SHARE };

/* The same query again and again, one draw each: nothing is read twice, so nothing is gained by reading all. */
static void begin_repeated(random_case *c, int64_t times, double spread)
{
    sampling_begin(c, (shape){ 1, 1, times, KEYS, 16, 4 }, spread);
    for (int64_t query = 1; query < times; query++) {
        for (int64_t i = 0; i < 16; i++) case_put(&c->q, 0, query, i, (float)oracle_number(&c->q, 0, 0, i));
    }
}

/* An index of clusters in the metric of queries that are not the case's: one that knew these would find their nearest keys. */
static kna_index *formed_index(const random_case *c)
{
    kna_index *index = NULL;
    random_case one = { .guarded = false };
    uint64_t random = test_state.random;
    test_state.random = 42;
    case_begin(&one, (shape){ c->shape.h_kv, c->shape.h_kv, 50, c->shape.n, c->shape.d, c->shape.dv });
    test_state.random = random;
    one.k = c->k;
    one.v = c->v;
    one.options.method = KNA_KNN;
    one.options.k_near = 10;
    EXPECT_INT(kna_index_new(context_best(), &index, KNA_KNN, c->shape.h_kv, c->shape.d, c->shape.dv), KNA_OK);
    EXPECT_INT(kna_index_update(context_best(), index, &c->k, &c->v, 0, c->shape.n), KNA_OK);
    one.options.index = index;
    EXPECT_INT(case_attend(&one, context_best(), NULL), KNA_OK);
    EXPECT_INT(kna_index_form(context_best(), index, &c->k, &c->v, c->shape.n), KNA_OK);
    case_end(&one);
    return index;
}

typedef struct bounds {
    int method, bounds;
    double gap;
    bool indexed;
} bounds;

/* Chi-square over its limit of the draws of all rows; *looked: keys of the tail looked at per draw. */
static double draw_all(random_case *c, const bounds *b, kna_index *index, int64_t samples, kna_report *report)
{
    int32_t *draws = case_hold(c, (size_t)(c->shape.m * samples) * sizeof *draws);
    double logits[KEYS], out[4];
    c->options.method = b->method;
    c->options.bounds = b->bounds;
    c->options.gap = (float)b->gap;
    c->options.index = b->indexed ? index : NULL;
    c->options.samples = samples;
    c->options.draws = draws;
    *report = (kna_report){ .size = sizeof *report };
    EXPECT_INT(case_attend(c, context_best(), report), KNA_OK);
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    oracle_logits(o, 0, 0, logits);
    double lse = oracle_mix(o, 0, logits, out), ratio = sampling_chi_square(draws, c->shape.m * samples, logits, lse, KEYS);
    if (samples > 100) EXPECT_NEAR((double)c->lse[0], lse, 5 / sqrt((double)samples) + 1e-5);
    oracle_free(o);
    return ratio;
}

/* Heads exact and found by clusters, which miss much of keys that are random; every way to bound the rest; lazily, and by reading all. */
static void drawn_by_softmax(void)
{
    static const bounds all[] = {
        { KNA_GUMBEL, KNA_BOUNDS_HEAD, 1.5, false },   { KNA_REJECTION, KNA_BOUNDS_HEAD, 1.5, false },
        { KNA_GUMBEL, KNA_BOUNDS_CLUSTERS, 0, false }, { KNA_REJECTION, KNA_BOUNDS_CLUSTERS, 0, false },
        { KNA_GUMBEL, KNA_BOUNDS_CLUSTERS, 0, true },  { KNA_REJECTION, KNA_BOUNDS_CLUSTERS, 0, true },
        { KNA_GUMBEL, KNA_BOUNDS_HEAD, 14, true },     { KNA_REJECTION, KNA_BOUNDS_HEAD, 14, true },
        { KNA_MOM, KNA_BOUNDS_CLUSTERS, 0, true },
    };
    const float slope = 0.004f;
    for (int lazy = 0; lazy < 2; lazy++) {
        random_case c = { .guarded = false };
        begin_repeated(&c, lazy ? DRAWN : 1, 2);
        kna_index *index = formed_index(&c);
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
            kna_report report;
            c.options.k_near = all[i].indexed ? 3 : 20;
            c.options.softcap = all[i].bounds && !all[i].indexed ? 3 : 0;
            c.options.slopes = all[i].method == KNA_MOM ? &slope : NULL; /* the same for every query, but for a constant */
            double ratio = draw_all(&c, &all[i], index, lazy ? 1 : DRAWN, &report);
            EXPECT_THAT(ratio <= 1, "%s, bounds %d, gap %g, index %d: chi-square %g times its limit",
                        kna_method_name(all[i].method), all[i].bounds, all[i].gap, all[i].indexed, ratio);
            EXPECT_THAT(lazy || report.keys_full <= 2 * KEYS, "%g keys for %d draws", report.keys_full, DRAWN);
        }
        kna_index_free(index);
        case_end(&c);
    }
}

/* The law written out: all logits and a Gumbel number each. The same test of the same size passes it. */
static void naive_gumbel(void)
{
    random_case c = { .guarded = false };
    begin_repeated(&c, 1, 1);
    int32_t *draws = case_hold(&c, DRAWN * sizeof *draws);
    double logits[KEYS], out[4];
    uint64_t random = test_state.random;
    oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
    oracle_logits(o, 0, 0, logits);
    double lse = oracle_mix(o, 0, logits, out);
    test_state.random = 4711;
    for (int64_t i = 0; i < DRAWN; i++) {
        double best = -(double)INFINITY;
        for (int32_t j = 0; j < KEYS; j++) {
            double level = logits[j] - log(-log(test_uniform() + 1e-300));
            draws[i] = level > best ? j : draws[i];
            best = fmax(best, level);
        }
    }
    test_state.random = random;
    sampling_expect_softmax(draws, DRAWN, logits, lse, KEYS);
    oracle_free(o);
    case_end(&c);
}

/* A gap that is not there: keys above it are drawn too seldom, and chi-square sees it. */
static void bounds_that_do_not_hold(void)
{
    random_case c = { .guarded = false };
    begin_repeated(&c, DRAWN, 4);
    kna_index *index = formed_index(&c);
    const bounds wrong = { KNA_GUMBEL, KNA_BOUNDS_HEAD, 1e-3, true };
    kna_report report;
    c.options.k_near = 3;
    double ratio = draw_all(&c, &wrong, index, 1, &report);
    EXPECT_THAT(ratio > 2, "chi-square only %g times its limit", ratio);
    kna_index_free(index);
    case_end(&c);
}

/* Keys of an exact head in double precision: their sum relative to the largest, the least, and what is left. */
typedef struct kept {
    double sum, least, most;
} kept;

static kept head_of(const double *logits, int64_t k)
{
    double all[KEYS];
    kept h = { 0, (double)INFINITY, -(double)INFINITY };
    memcpy(all, logits, sizeof all);
    oracle_keep_largest(all, KEYS, k);
    for (int j = 0; j < KEYS; j++) {
        if (all[j] == -(double)INFINITY) continue;
        h.least = fmin(h.least, all[j]);
        h.most = fmax(h.most, all[j]);
        h.sum += exp(all[j]);
    }
    return h;
}

/*
 * With a gap a draw looks at N a / (1 + a) keys, a = exp(least + gap) / head sum. With bounds of clusters, by the same for each cell
 * of what strata.h keeps, cut off at the least logit of the head; the first 16 keys, in no cell, are in the head.
 */
static void few_keys_per_draw(void)
{
    random_case c = { .guarded = false };
    double logits[KEYS], mean[2] = { 0, 0 };
    kna_report report;
    kna__problem p;
    kna__strata s;
    begin_repeated(&c, DRAWN, 0.5);
    c.options.k_near = 20;
    c.options.method = KNA_GUMBEL;
    oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
    oracle_logits(o, 0, 0, logits);
    kept h = head_of(logits, 20);
    double a = exp(h.least + 1.5) / h.sum;
    mean[0] = (KEYS - 20) * a / (1 + a);
    /* 800 keys: pieces 0 to 2, and the last 32 as two blocks */
    for (int j = 0; j < 16; j++) h.sum += logits[j] < h.least ? exp(logits[j]) : 0;
    EXPECT_INT(kna__problem_init(&p, context_best(), &c.out, c.lse, &c.q, &c.k, &c.v, &c.options), KNA_OK);
    EXPECT_INT(kna__strata_new(&p, NULL, &s), KNA_OK);
    double q_norm = 0;
    for (int i = 0; i < 16; i++) q_norm += pow(o->scale * o->q[i], 2);
    for (int64_t cell = 0; cell < s.cells; cell++) {
        int64_t at = cell + (cell < 48 ? s.cells : 0), rest = 0;
        double bound = sqrt(q_norm) * (double)s.reach[at];
        const int32_t *ids = kna__strata_members(&s, 0, (int32_t)at);
        if (!s.count[at]) continue;
        for (int i = 0; i < 16; i++) bound += o->scale * o->q[i] * (double)s.key[at * 16 + i];
        for (int32_t i = 0; i < s.count[at]; i++) rest += logits[ids[i]] < h.least;
        a = exp(fmin(bound, h.least)) / h.sum;
        mean[1] += (double)rest * a / (1 + a);
    }
    kna__strata_free(&s);
    oracle_free(o);
    for (int i = 0; i < 2; i++) {
        const bounds b = { KNA_GUMBEL, i ? KNA_BOUNDS_CLUSTERS : KNA_BOUNDS_HEAD, i ? 0 : 1.5, false };
        draw_all(&c, &b, NULL, 1, &report);
        double head_keys = i ? 20 + 16 : 20, found = report.keys_full / DRAWN - head_keys;
        int among = 0;
        for (int j = 0; j < 16; j++) among += logits[j] >= h.least;
        found += i ? among : 0; /* of the first 16, those among the nearest were counted twice */
        EXPECT_NEAR(found, mean[i], 4 * (mean[i] + sqrt(mean[i])) / sqrt(DRAWN));
    }
    EXPECT_THAT(mean[1] < mean[0], "%g by clusters, %g with a gap", mean[1], mean[0]);
    case_end(&c);
}

/* ---- estimates */

/*
 * Over many seeds: the mean of the sum is the sum, by exact heads and by those an index of clusters finds; of the outputs, ratios, the
 * mean is off by about 1 / s of their deviation. A control variate that knows what keys weigh errs less than a uniform sample.
 */
static void unbiased(void)
{
    static const int methods[] = { KNA_STRATIFIED, KNA_CENTROID, KNA_CONTROL, KNA_UNIFORM };
    enum { SEEDS = 4000 / RANDOM_SHARE };
    for (int i = 0; i < 8; i++) {
        random_case c = { .guarded = false };
        kna_report report = { .size = sizeof report };
        sampling_begin(&c, (shape){ 1, 1, 1, 400, 8, 4 }, 1.5);
        kna_index *index = i < 4 ? NULL : formed_index(&c);
        c.options.method = methods[i % 4];
        c.options.k_near = 20;
        c.options.samples = 60;
        c.options.index = index;
        sampling_row t = sampling_truth(&c, 0);
        double sum = 0, sum_square = 0, out[4] = { 0 }, square[4] = { 0 };
        for (int seed = 0; seed < SEEDS; seed++) {
            c.options.seed = (uint64_t)seed;
            if (!EXPECT_INT(case_attend(&c, context_best(), &report), KNA_OK)) break;
            if (!EXPECT(report.by_means == 0)) break;
            double ratio = exp((double)c.lse[0] - t.lse) - 1;
            sum += ratio;
            sum_square += ratio * ratio;
            for (int x = 0; x < 4; x++) {
                double off = (double)c.out.data[x] - t.out[x];
                out[x] += off;
                square[x] += off * off;
            }
        }
        EXPECT_NEAR(sum / SEEDS, 0, 4.2 * sqrt(sum_square / SEEDS / SEEDS) + 1e-6);
        for (int x = 0; x < 4; x++) {
            double deviation = sqrt(square[x] / SEEDS);
            EXPECT_NEAR(out[x] / SEEDS, 0, 4.2 * deviation / sqrt(SEEDS) + deviation / 20);
        }
        kna_index_free(index);
        case_end(&c);
    }
}

/* Mean squared distance over seeds and queries, keys in tight groups or at random. */
static double error_of(int method, int64_t samples, bool grouped)
{
    random_case c = { .guarded = false };
    enum { SEEDS = 60 };
    double square = 0;
    sampling_begin(&c, (shape){ 1, 1, 20, 1100, 8, 8 }, 2);
    for (int64_t j = 0; grouped && j < 1100; j++) { /* keys and values near those of row j % 40 */
        for (int64_t x = 0; x < 8; x++) {
            case_put(&c.k, 0, j, x, (float)(oracle_number(&c.k, 0, j % 40, x) + 0.1 * (x == j % 8)));
            case_put(&c.v, 0, j, x, (float)(oracle_number(&c.v, 0, j % 40, x) + 0.1 * (x == j % 7)));
        }
    }
    c.options.method = method;
    c.options.k_near = 20;
    c.options.samples = samples;
    sampling_row t[20];
    for (int64_t query = 0; query < 20; query++) t[query] = sampling_truth(&c, query);
    for (int seed = 0; seed < SEEDS; seed++) {
        c.options.seed = (uint64_t)seed;
        EXPECT_INT(sampling_attend(&c), KNA_OK);
        for (int64_t query = 0; query < 20; query++) {
            square += pow(sampling_distance(case_out_row(&c, 0, query), t[query].out, 8), 2) / (20 * SEEDS);
        }
    }
    case_end(&c);
    return square;
}

/* Where cells are alike, squared errors of all three are less than half those of a uniform sample of as many; centroid's fall as 1 / s. */
static void worth_it(void)
{
    double uniform = error_of(KNA_UNIFORM, 100, true);
    for (int method = KNA_STRATIFIED; method <= KNA_CONTROL; method++) {
        double error = error_of(method, 100, true);
        EXPECT_THAT(error < uniform / 2, "%s: %g, uniform %g", kna_method_name(method), error, uniform);
    }
    double few = error_of(KNA_CENTROID, 200, false), many = error_of(KNA_CENTROID, 800, false);
    EXPECT_NEAR(log(few / many) / log(4), 1, 0.25);
}

/* Fewer samples than cells: the heaviest have some, others stand by their means, and the report says how much that is. */
static void some_stand_by_means(void)
{
    double last = 1;
    for (int64_t samples = 5; samples <= 80; samples *= 4) {
        random_case c = { .guarded = false };
        kna_report report = { .size = sizeof report };
        sampling_begin(&c, (shape){ 1, 1, 30, 1100, 8, 8 }, 1);
        c.options.method = KNA_STRATIFIED;
        c.options.k_near = 20;
        c.options.samples = samples;
        EXPECT_INT(case_attend(&c, context_best(), &report), KNA_OK);
        EXPECT_THAT(samples < 80 ? report.by_means > 0 && report.by_means < last : report.by_means == 0, "%lld samples: %g",
                    (long long)samples, report.by_means);
        EXPECT_NEAR(report.keys_full / 30, (double)(20 + samples), 16 + 16); /* and those in no cell */
        last = report.by_means;
        case_end(&c);
    }
}

/* ---- laws */

typedef struct way {
    int method, bounds, certificate;
} way;

static const way ways[] = { { KNA_STRATIFIED, 0, KNA_CERTIFICATE_DETERMINISTIC },
                            { KNA_CENTROID, 0, 0 },
                            { KNA_CONTROL, 0, 0 },
                            { KNA_GUMBEL, KNA_BOUNDS_CLUSTERS, 0 },
                            { KNA_UNIFORM, KNA_BOUNDS_CLUSTERS, KNA_CERTIFICATE_BERNSTEIN },
                            { KNA_TOPK, 0, KNA_CERTIFICATE_DETERMINISTIC } };
enum { WAYS = sizeof ways / sizeof ways[0] };

static void set_way(random_case *c, const way *w)
{
    c->options.method = w->method;
    c->options.bounds = w->bounds;
    c->options.certificate = w->certificate;
    c->options.k_near = 30;
    c->options.samples = 40;
    c->options.eps = w->method == KNA_UNIFORM ? 0.4f : 0; /* the radius is looked at */
}

/* Rows that come later, keys and values of any size, change no bit: outputs, sums, radii. */
static void no_look_ahead(void)
{
    enum { N = 1500, M = 300, KNOWN = 150 };
    for (int i = 0; i < WAYS; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 2, 1, M, N, 8, 4 });
        set_way(&c, &ways[i]);
        c.options.causal = 1;
        if (i == 3) c.options.window = 1100;
        float *radius[2];
        float *result[2];
        for (int later = 0; later < 2; later++) {
            for (int64_t row = N - M + KNOWN; row < N && later; row++) {
                for (int64_t x = 0; x < 8; x++) case_put(&c.k, 0, row, x, (float)test_normal() * 5);
                for (int64_t x = 0; x < 4; x++) case_put(&c.v, 0, row, x, (float)test_normal() * 50);
            }
            c.options.radius = radius[later] = case_hold(&c, 2 * M * sizeof(float));
            EXPECT_INT(sampling_attend(&c), KNA_OK);
            result[later] = case_result(&c);
        }
        for (int head = 0; head < 2; head++) {
            EXPECT_THAT(memcmp(result[0] + head * M * 5, result[1] + head * M * 5, KNOWN * 4 * sizeof(float)) == 0, "way %d", i);
            EXPECT_THAT(memcmp(radius[0] + head * M, radius[1] + head * M, KNOWN * sizeof(float)) == 0, "way %d: radii", i);
        }
        EXPECT(memcmp(result[0], result[1], 2 * M * 5 * sizeof(float)) != 0);
        free(result[0]);
        free(result[1]);
        case_end(&c);
    }
}

/* A query by itself, over the keys it saw in the batch, uses the same cells and draws the same. */
static void one_by_one(void)
{
    enum { N = 1500, M = 600 };
    for (int i = 0; i < WAYS; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 2, 1, M, N, 8, 4 });
        set_way(&c, &ways[i]);
        c.options.causal = 1;
        EXPECT_INT(sampling_attend(&c), KNA_OK);
        for (int64_t query = 5; query < M; query += 97) { /* at 901 to 1,500 keys: before and after the first segment is whole */
            float out[8], lse[2];
            kna_rows q = c.q, k = c.k, v = c.v;
            q.data = (const char *)q.data + query * 8 * 4;
            q.head_stride_bytes = M * 8 * 4;
            k.rows = v.rows = N - M + query + 1;
            q.rows = 1;
            EXPECT_INT(kna_attend(context_best(), &(kna_out_rows){ out, 0, 0 }, lse, NULL, &q, &k, &v, &c.options), KNA_OK);
            for (int head = 0; head < 2; head++) {
                for (int x = 0; x < 4; x++) {
                    EXPECT_THAT(fabs((double)out[head * 4 + x] - (double)case_out_row(&c, head, query)[x]) <= 1e-5,
                                "way %d, query %lld", i, (long long)query);
                }
                EXPECT_NEAR((double)lse[head], (double)c.lse[head * M + query], 1e-5);
            }
        }
        case_end(&c);
    }
}

/* With an index of clusters, threads and all options of meaning: the same bits, finite numbers among the values. */
static void with_an_index(void)
{
    for (int i = 0; i < rounds(40); i++) {
        random_case c = { .guarded = false };
        case_random(&c, (shape){ 2, 2, 1 + (int64_t)test_below(10), 300 + (int64_t)test_below(1200), 12, 6 });
        kna_index *index = formed_index(&c);
        set_way(&c, &ways[i % (WAYS - 1)]);
        c.options.index = index;
        if (test_below(2))
            EXPECT_INT(kna_index_remove(context_best(), index, (int64_t)test_below(300), 1 + (int64_t)test_below(20)), KNA_OK);
        float *first = NULL;
        for (int threads = 1; threads <= 4; threads += 3) {
            kna_context_options options = KNA_CONTEXT_OPTIONS;
            kna_context *context;
            options.threads = threads;
            EXPECT_INT(kna_context_new(&context, &options), KNA_OK);
            EXPECT_THAT(case_attend(&c, context, NULL) == KNA_OK, "%s: %s", kna_context_message(context), case_text(&c));
            float *now = case_result(&c);
            size_t count = (size_t)(c.shape.h * c.shape.m * (c.shape.dv + 1));
            if (first) EXPECT(memcmp(first, now, count * sizeof(float)) == 0);
            if (first) free(now);
            first = first ? first : now;
            kna_context_free(context);
        }
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        for (int64_t row = 0; row < c.shape.h * c.shape.m; row++) {
            for (int64_t x = 0; x < c.shape.dv; x++) {
                double got = (double)case_out_row(&c, row / c.shape.m, row % c.shape.m)[x],
                       most = o->v_most[row / c.shape.m / o->g];
                if (c.options.method != KNA_CONTROL)
                    EXPECT_THAT(fabs(got) <= most * 1.001, "%g of values up to %g: %s", got, most, case_text(&c));
            }
        }
        oracle_free(o);
        free(first);
        kna_index_free(index);
        case_end(&c);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(cells_bound_their_keys);
    TEST(naive_gumbel);
    TEST(drawn_by_softmax);
    TEST(bounds_that_do_not_hold);
    TEST(few_keys_per_draw);
    TEST(unbiased);
    TEST(worth_it);
    TEST(some_stand_by_means);
    TEST(no_look_ahead);
    TEST(one_by_one);
    TEST(with_an_index);
    contexts_free();
    return test_end();
}
