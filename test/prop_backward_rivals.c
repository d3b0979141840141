/*
 * prop_backward_rivals.c - gradients of window, linformer, nystrom, performer and lsh: of what each is defined to compute, in double precision
 * and by central differences of fourth order, against the library.
 */
#include "backward_case.h"

#include "../src/base/base.h"

static kna_context *random_context(void)
{
    kna_context *const *all;
    int count = contexts(&all);
    return all[test_below((size_t)count)];
}

/* ---- the oracle: sum of dout * out as a function of q, k, v and projections, all heads */

enum { MOST = 12, /* of rank */ FEATURES = 24 };

typedef struct rival {
    oracle *o;
    const double *dout;
    double *project_k, *project_v; /* (rank,n) or NULL */
    int64_t rank;
    double features[FEATURES * 16];                               /* (rank, d) */
    void (*row)(const struct rival *, int64_t head, double *out); /* outputs (m, dv) of a head */
} rival;

static double loss_of_head(const rival *r, int64_t head)
{
    double out[64 * 8], loss = 0;
    const oracle *o = r->o;
    r->row(r, head, out);
    for (int64_t i = 0; i < o->m * o->dv; i++) loss += out[i] * r->dout[head * o->m * o->dv + i];
    return loss;
}

static double loss_of(const rival *r, int64_t first, int64_t end)
{
    double loss = 0;
    for (int64_t head = first; head < end; head++) loss += loss_of_head(r, head);
    return loss;
}

/* Of fourth order: an error of h^4 beside one of 1e-16 / h. */
static double derivative(const rival *r, double *x, int64_t first, int64_t end, double h)
{
    double kept = *x, at[4];
    for (int i = 0; i < 4; i++) {
        *x = kept + h * (i < 2 ? i - 2 : i - 1);
        at[i] = loss_of(r, first, end);
    }
    *x = kept;
    return (at[0] - at[3] + 8 * (at[2] - at[1])) / (12 * h);
}

static void nystrom_head(const rival *r, int64_t head, double *out);
static int kinks; /* derivatives of nystrom that two steps see differently */

/* All numbers of x, `each` per group of heads; two steps must agree to 1e-7 of the largest. */
static double *derivatives(const rival *r, double *x, int64_t count, int64_t each, int64_t heads)
{
    double *to = calloc((size_t)count + 1, sizeof *to), most = 0, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t first = each ? i / each * heads : 0, end = each ? first + heads : heads;
        to[i] = derivative(r, x + i, first, end, 2e-3);
        worst = fmax(worst, fabs(to[i] - derivative(r, x + i, first, end, 1e-3)));
        most = fmax(most, fabs(to[i]));
    }
    if (r->row == nystrom_head && worst > 1e-7 * (most + 1e-3))
        kinks++; /* another column has the largest sum a step away */
    else
        EXPECT_THAT(worst <= 1e-7 * (most + 1e-3), "differences by two steps: %.3g of %.3g", worst, most);
    return to;
}

static void softmax_rows(const double *a, const double *b, int64_t rows, int64_t count, int64_t d, double scale,
                         const double *extra, double *to)
{
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t j = 0; j < count; j++) {
            double z = extra ? extra[j] : 0;
            for (int64_t x = 0; x < d; x++) z += scale * a[r * d + x] * b[j * d + x];
            sum += to[r * count + j] = exp(z);
        }
        for (int64_t j = 0; j < count; j++) to[r * count + j] /= sum;
    }
}

static void product(const double *a, const double *b, int64_t rows, int64_t inner, int64_t columns, double *to)
{
    for (int64_t i = 0; i < rows * columns; i++) {
        to[i] = 0;
        for (int64_t x = 0; x < inner; x++) to[i] += a[i / columns * inner + x] * b[x * columns + i % columns];
    }
}

static void means_of(const double *x, int64_t rows, int64_t d, int64_t parts, double *to)
{
    for (int64_t i = 0; i < parts * d; i++) {
        int64_t part = i / d, first = part * rows / parts, end = (part + 1) * rows / parts;
        to[i] = 0;
        for (int64_t row = first; row < end; row++) to[i] += x[row * d + i % d] / (double)(end - first);
    }
}

static void linformer_head(const rival *r, int64_t head, double *out)
{
    const oracle *o = r->o;
    double keys[MOST * 16], values[MOST * 8], weights[64 * MOST], counts[MOST];
    const double *k = o->k + head / o->g * o->n * o->d, *v = o->v + head / o->g * o->n * o->dv;
    for (int64_t i = 0; i < r->rank; i++) {
        counts[i] = r->project_k ? 0 : log((double)((i + 1) * o->n / r->rank - i * o->n / r->rank));
    }
    if (r->project_k) {
        product(r->project_k, k, r->rank, o->n, o->d, keys);
        product(r->project_v, v, r->rank, o->n, o->dv, values);
    } else {
        means_of(k, o->n, o->d, r->rank, keys);
        means_of(v, o->n, o->dv, r->rank, values);
    }
    softmax_rows(o->q + head * o->m * o->d, keys, o->m, r->rank, o->d, o->scale, counts, weights);
    product(weights, values, o->m, r->rank, o->dv, out);
}

static void pseudo_inverse(const double *a, int64_t n, double *z)
{
    double az[MOST * MOST], t[MOST * MOST], u[MOST * MOST], rows = 0, columns = 0;
    for (int64_t i = 0; i < n; i++) {
        double row = 0, column = 0;
        for (int64_t j = 0; j < n; j++) row += a[i * n + j], column += a[j * n + i];
        rows = fmax(rows, row), columns = fmax(columns, column);
    }
    for (int64_t i = 0; i < n * n; i++) z[i] = a[i % n * n + i / n] / rows / columns;
    for (int step = 0; step < 6; step++) {
        product(a, z, n, n, n, az);
        for (int64_t i = 0; i < n * n; i++) t[i] = (i % (n + 1) ? 0 : 7) - az[i];
        product(az, t, n, n, n, u);
        for (int64_t i = 0; i < n * n; i++) t[i] = (i % (n + 1) ? 0 : 15) - u[i];
        product(az, t, n, n, n, u);
        for (int64_t i = 0; i < n * n; i++) t[i] = (i % (n + 1) ? 0 : 13) - u[i];
        product(z, t, n, n, n, u);
        for (int64_t i = 0; i < n * n; i++) z[i] = u[i] / 4;
    }
}

static void nystrom_head(const rival *r, int64_t head, double *out)
{
    const oracle *o = r->o;
    double lq[MOST * 16], lk[MOST * 16], a[MOST * MOST], z[MOST * MOST], far[64 * MOST], back[64 * MOST], bv[MOST * 8],
        zbv[MOST * 8];
    const double *q = o->q + head * o->m * o->d, *k = o->k + head / o->g * o->n * o->d, *v = o->v + head / o->g * o->n * o->dv;
    means_of(q, o->m, o->d, r->rank, lq);
    means_of(k, o->n, o->d, r->rank, lk);
    softmax_rows(lq, lk, r->rank, r->rank, o->d, o->scale, NULL, a);
    pseudo_inverse(a, r->rank, z);
    softmax_rows(q, lk, o->m, r->rank, o->d, o->scale, NULL, far);
    softmax_rows(lq, k, r->rank, o->n, o->d, o->scale, NULL, back);
    product(back, v, r->rank, o->n, o->dv, bv);
    product(z, bv, r->rank, r->rank, o->dv, zbv);
    product(far, zbv, o->m, r->rank, o->dv, out);
}

static double exponent(const rival *r, const double *x, int64_t f)
{
    double sum = 0;
    for (int64_t c = 0; c < r->o->d; c++) {
        sum += sqrt(r->o->scale) * x[c] * r->features[f * r->o->d + c] - r->o->scale * x[c] * x[c] / 2;
    }
    return sum;
}

static void performer_head(const rival *r, int64_t head, double *out)
{
    const oracle *o = r->o;
    double keys[200 * FEATURES];
    for (int64_t i = 0; i < o->n * r->rank; i++) {
        keys[i] = exp(exponent(r, o->k + (head / o->g * o->n + i / r->rank) * o->d, i % r->rank));
    }
    for (int64_t i = 0; i < o->m; i++) {
        double weights[FEATURES], sum = 0;
        for (int64_t f = 0; f < r->rank; f++) weights[f] = exp(exponent(r, o->q + (head * o->m + i) * o->d, f));
        for (int64_t c = 0; c < o->dv; c++) out[i * o->dv + c] = 0;
        for (int64_t j = 0; j < o->n; j++) {
            double pair = 0;
            if (o->options.causal && j > oracle_position(o, i)) break;
            for (int64_t f = 0; f < r->rank; f++) pair += weights[f] * keys[j * r->rank + f];
            sum += pair;
            for (int64_t c = 0; c < o->dv; c++) out[i * o->dv + c] += pair * o->v[(head / o->g * o->n + j) * o->dv + c];
        }
        for (int64_t c = 0; c < o->dv && sum > 0; c++) out[i * o->dv + c] /= sum;
    }
}

/* As the library draws them: Gaussian by Box and Muller, orthogonal by blocks of d, as long as others. */
static double gaussian(uint64_t seed, uint64_t row, uint64_t column)
{
    double u = kna__uniform(seed, row, 2 * column), v = kna__uniform(seed, row, 2 * column + 1);
    return sqrt(-2 * log(u)) * cos(2 * acos(-1) * v);
}

static void draw_features(rival *r)
{
    int64_t d = r->o->d;
    double rows[FEATURES * 16];
    for (int64_t i = 0; i < r->rank; i++) {
        double *w = rows + i * d, length = 0, norm = 0;
        for (int64_t c = 0; c < d; c++) {
            w[c] = gaussian(r->o->options.seed, (uint64_t)(2 * i), (uint64_t)c);
            length += pow(gaussian(r->o->options.seed, (uint64_t)(2 * i + 1), (uint64_t)c), 2);
        }
        for (int64_t before = i / d * d; before < i; before++) {
            double dot = 0, square = 0;
            for (int64_t c = 0; c < d; c++)
                dot += w[c] * rows[before * d + c], square += rows[before * d + c] * rows[before * d + c];
            for (int64_t c = 0; c < d; c++) w[c] -= dot / square * rows[before * d + c];
        }
        for (int64_t c = 0; c < d; c++) norm += w[c] * w[c];
        for (int64_t c = 0; c < d; c++) w[c] *= sqrt(length / norm);
        for (int64_t c = 0; c < d; c++) r->features[i * d + c] = (double)(float)w[c];
    }
}

/* ---- the library against it */

static bool near(const kna_out_rows *got, const double *want, int64_t heads, int64_t rows, int64_t dim, double bound,
                 const char *name)
{
    double most = 0;
    for (int64_t i = 0; i < heads * rows * dim; i++) most = fmax(most, fabs(want[i]));
    for (int64_t i = 0; i < heads * rows * dim; i++) {
        int64_t head = i / dim / rows, row = i / dim % rows;
        float x = got->data[head * (got->head_stride_bytes / 4) + row * (got->row_stride_bytes / 4) + i % dim];
        if (!EXPECT_THAT(fabs((double)x - want[i]) <= bound * most + 1e-5,
                         "%s[%lld,%lld,%lld]: %.8g, expected %.8g, the largest %.3g", name, (long long)head, (long long)row,
                         (long long)(i % dim), (double)x, want[i], most)) {
            return false;
        }
    }
    return true;
}

static bool all_near(backward_case *b, rival *r, double bound)
{
    const oracle *o = r->o;
    double *dq = derivatives(r, o->q, o->h * o->m * o->d, o->m * o->d, 1),
           *dk = derivatives(r, o->k, o->h_kv * o->n * o->d, o->n * o->d, o->g);
    double *dv = derivatives(r, o->v, o->h_kv * o->n * o->dv, o->n * o->dv, o->g);
    bool good = kinks || (near(&b->gradients.dq, dq, o->h, o->m, o->d, bound, "dq") &&
                          near(&b->gradients.dk, dk, o->h_kv, o->n, o->d, bound, "dk") &&
                          near(&b->gradients.dv, dv, o->h_kv, o->n, o->dv, bound, "dv"));
    double *const projections[] = { r->project_k, r->project_v };
    float *const given[] = { b->gradients.dproject_k, b->gradients.dproject_v };
    for (int i = 0; i < 2 && good && projections[i]; i++) {
        double *want = derivatives(r, projections[i], r->rank * o->n, 0, o->h);
        kna_out_rows got = { given[i], r->rank * o->n * 4, o->n * 4 };
        good = near(&got, want, 1, r->rank, o->n, bound, i ? "dproject_v" : "dproject_k");
        free(want);
    }
    free(dq);
    free(dk);
    free(dv);
    if (!good) printf("  %s\n", case_text(b->c));
    return good;
}

/* A window is exact attention with a mask. */
static void windows(void)
{
    for (int i = 0; i < rounds(80); i++) {
        random_case c = { .guarded = false };
        int64_t g = 1 + (int64_t)test_below(3), h_kv = 1 + (int64_t)test_below(2), n = 1 + (int64_t)test_below(400);
        case_begin(&c, (shape){ g * h_kv, h_kv, 1 + (int64_t)test_below(200), n, 8, 5 });
        case_rows(&c, &c.k, random_type(8), (int)test_below(LAYOUT_COUNT), 1);
        case_rows(&c, &c.v, random_type(5), (int)test_below(LAYOUT_COUNT), 1);
        backward_case b = backward_begin(&c);
        c.options.method = KNA_WINDOW;
        c.options.causal = i % 2;
        c.options.near_sinks = (int64_t)test_below(12) - 1;
        c.options.near_window = (int64_t)test_below(170) - 1;
        if (test_below(4) == 0) c.options.causal_shift = (int64_t)test_below(60) - 30;
        if (test_below(4) == 0) c.options.softcap = 3;
        if (test_below(4) == 0) case_per_head(&c, &c.options.sinks, -2, 2);
        b.gradients.dsinks = c.options.sinks ? case_hold(&c, (size_t)c.shape.h * sizeof(float)) : NULL;
        int64_t sinks = c.options.near_sinks == 0 ? 4 : c.options.near_sinks < 0 ? 0 : c.options.near_sinks;
        int64_t window = c.options.near_window == 0 ? 64 : c.options.near_window < 0 ? 0 : c.options.near_window;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        double *extra = calloc((size_t)(c.shape.h * c.shape.m * n), sizeof *extra);
        for (int64_t at = 0; at < c.shape.h * c.shape.m * n; at++) {
            int64_t last = c.options.causal ? oracle_position(o, at / n % c.shape.m) : n - 1;
            extra[at] = at % n >= sinks && at % n <= last - window ? -(double)INFINITY : 0;
        }
        gradient_oracle *truth = gradient_oracle_with(o, b.dout_numbers, extra);
        bool good = backward_both(&b, random_context()) && backward_matches(&b, truth);
        if (!good) printf("  %s\n", case_text(&c));
        gradient_oracle_free(truth);
        oracle_free(o);
        free(extra);
        free(b.dout_numbers);
        case_end(&c);
        if (!good) break;
    }
}

static bool one_case(random_case *c, rival *r, double bound)
{
    backward_case b = backward_begin(c);
    shape s = c->shape;
    c->options.method = r->row == linformer_head ? KNA_LINFORMER : r->row == nystrom_head ? KNA_NYSTROM : KNA_PERFORMER;
    c->options.rank = r->rank;
    float *room = case_hold(c, (size_t)(4 * r->rank * s.n) * sizeof *room);
    double *projections = case_hold(c, (size_t)(2 * r->rank * s.n) * sizeof *projections);
    if (r->project_k) {
        for (int64_t i = 0; i < 2 * r->rank * s.n; i++) projections[i] = (double)(room[i] = (float)test_normal() / 4);
        r->project_k = projections;
        r->project_v = projections + r->rank * s.n;
        c->options.project_k = room;
        c->options.project_v = room + r->rank * s.n;
        b.gradients.dproject_k = room + 2 * r->rank * s.n;
        b.gradients.dproject_v = room + 3 * r->rank * s.n;
    }
    r->o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    r->dout = b.dout_numbers;
    if (r->row == performer_head) draw_features(r);
    bool good = backward_both(&b, random_context()) && all_near(&b, r, bound);
    oracle_free(r->o);
    free(b.dout_numbers);
    return good;
}

static void linformers(void)
{
    static double some;
    bool good = true;
    for (int i = 0; i < rounds(24) && good; i++) {
        random_case c = { .guarded = false };
        int64_t n = 1 + (int64_t)test_below(i % 4 ? 20 : 140);
        rival r = { .row = linformer_head, .rank = 1 + (int64_t)test_below(MOST), .project_k = i % 2 ? &some : NULL };
        if (!(i % 2)) r.rank = r.rank < n ? r.rank : n;
        case_begin(&c, (shape){ 4, 2, 1 + (int64_t)test_below(6), n, 4, 3 });
        case_rows(&c, &c.k, random_type(4), (int)test_below(LAYOUT_COUNT), 1);
        good = one_case(&c, &r, 1e-4);
        case_end(&c);
    }
}

/* Landmarks that are alike make an inverse of any size, whose errors are as large: queries and keys here stand apart. */
static void nystroms(void)
{
    bool good = true;
    int skipped = 0, tried = rounds(16);
    for (int i = 0; i < tried && good; i++) {
        random_case c = { .guarded = false };
        int64_t m = 1 + (int64_t)test_below(24), n = 1 + (int64_t)test_below(24);
        rival r = { .row = nystrom_head, .rank = 1 + (int64_t)test_below(MOST) };
        r.rank = r.rank < m ? r.rank : m;
        r.rank = r.rank < n ? r.rank : n;
        case_begin(&c, (shape){ 4, 2, m, n, 6, 3 });
        case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 2);
        case_rows(&c, &c.k, KNA_F32, LAYOUT_PACKED, 2);
        kinks = 0;
        good = one_case(&c, &r, 2e-3);
        skipped += kinks > 0;
        case_end(&c);
    }
    kinks = 0;
    EXPECT_THAT(skipped <= tried / 2, "%d of %d cases have a kink", skipped, tried);
}

static void performers(void)
{
    bool good = true;
    for (int i = 0; i < rounds(20) && good; i++) {
        random_case c = { .guarded = false };
        int64_t n = 1 + (int64_t)test_below(i % 5 ? 20 : 150), m = 1 + (int64_t)test_below(i % 5 ? 20 : 64);
        rival r = { .row = performer_head, .rank = 1 + (int64_t)test_below(i % 5 ? FEATURES : 4) };
        case_begin(&c, (shape){ 4, 2, m, n, 4, 3 });
        c.options.causal = i % 2;
        c.options.seed = test_random();
        if (i % 3 == 0) c.options.causal_shift = (int64_t)test_below(30) - 15;
        good = one_case(&c, &r, 1e-4);
        case_end(&c);
    }
}

/* Exponents that differ by tens: what is large of one feature is nothing of another. */
static void far_apart(void)
{
    random_case c = { .guarded = false };
    enum { N = 200 };
    case_begin(&c, (shape){ 2, 1, N, N, 8, 4 });
    case_rows(&c, &c.q, KNA_F32, LAYOUT_PACKED, 5);
    case_rows(&c, &c.k, KNA_F32, LAYOUT_PACKED, 5);
    backward_case b = backward_begin(&c);
    c.options.method = KNA_PERFORMER;
    c.options.causal = 1;
    c.options.rank = 32;
    EXPECT(backward_both(&b, context_best()));
    float *all = backward_copy(&b.gradients, c.shape);
    double most = 0;
    for (int64_t i = 0; i < backward_numbers(c.shape); i++) {
        if (!EXPECT(isfinite(all[i]))) break;
        most = fmax(most, fabs((double)all[i]));
    }
    EXPECT(most > 0);
    free(all);
    free(b.dout_numbers);
    case_end(&c);
}

/* ---- lsh: hashes again in double; what they choose is then exact attention with numbers added to the logits */

typedef struct hashes {
    int64_t bits, tables;
    double *w; /* (bits * tables, d) */
} hashes;

/* Bits of x less its centre; false where f32 might see one otherwise. */
static bool codes_of(const hashes *h, const double *x, const double *centre, int64_t d, unsigned *codes)
{
    bool is_clear = true;
    for (int64_t table = 0; table < h->tables; table++) {
        codes[table] = 0;
        for (int64_t bit = 0; bit < h->bits; bit++) {
            double sum = 0, most = 0;
            for (int64_t c = 0; c < d; c++) {
                double term = h->w[(table * h->bits + bit) * d + c] * (x[c] - centre[c]);
                sum += term;
                most += fabs(term) + fabs(h->w[(table * h->bits + bit) * d + c] * centre[c]);
            }
            codes[table] |= (unsigned)(sum > 0) << bit;
            is_clear &= fabs(sum) > 1e-5 * most;
        }
    }
    return is_clear;
}

/* The mean of whole blocks of 256 keys before the key's, or of all keys. */
static void centre_of(const oracle *o, const double *k, int64_t key, double *centre)
{
    int64_t count = o->options.causal ? key / 256 * 256 : o->n;
    for (int64_t c = 0; c < o->d; c++) {
        centre[c] = 0;
        for (int64_t j = 0; j < count; j++) centre[c] += k[j * o->d + c] / (double)count;
    }
}

static double log_probability(const hashes *h, const double *q, const double *k, const double *centre, int64_t d)
{
    double dot = 0, qq = 0, kk = 0;
    for (int64_t c = 0; c < d; c++) {
        dot += q[c] * (k[c] - centre[c]);
        qq += q[c] * q[c];
        kk += (k[c] - centre[c]) * (k[c] - centre[c]);
    }
    double tables = (double)h->tables, x = pow(1 - acos(dot / sqrt(qq * kk)) / acos(-1), (double)h->bits);
    return log(1 - pow(1 - x, tables) - tables * x * pow(1 - x, tables - 1));
}

/* What to add to the logits of a KV head's rows; false where f32 might choose otherwise. */
static bool lsh_head(const oracle *o, const hashes *h, int64_t kv_head, double *extra)
{
    unsigned *codes = calloc((size_t)(o->n * h->tables), sizeof *codes), mine[64];
    double *centres = calloc((size_t)(o->n * o->d), sizeof *centres), zero[16] = { 0 };
    const double *k = o->k + kv_head * o->n * o->d;
    bool is_clear = true;
    for (int64_t j = 0; j < o->n; j++) {
        centre_of(o, k, j, centres + j * o->d);
        is_clear &= codes_of(h, k + j * o->d, centres + j * o->d, o->d, codes + j * h->tables);
    }
    for (int64_t row = kv_head * o->g * o->m; row < (kv_head + 1) * o->g * o->m; row++) {
        const double *q = o->q + row * o->d;
        int64_t end = o->options.causal ? oracle_position(o, row % o->m) + 1 : o->n;
        end = end < 0 ? 0 : end < o->n ? end : o->n;
        is_clear &= codes_of(h, q, zero, o->d, mine);
        for (int64_t j = 0; j < o->n; j++) {
            int64_t met = 0;
            for (int64_t table = 0; table < h->tables; table++) met += codes[j * h->tables + table] == mine[table];
            double weight = j < o->options.near_sinks || j >= end - o->options.near_window ? 0
                            : met >= 2 ? -log_probability(h, q, k + j * o->d, centres + j * o->d, o->d)
                                       : -(double)INFINITY;
            extra[row * o->n + j] = weight;
        }
    }
    free(codes);
    free(centres);
    return is_clear;
}

static void draw_hashes(hashes *h, uint64_t seed, int64_t d)
{
    h->w = calloc((size_t)(h->bits * h->tables * d), sizeof *h->w);
    for (int64_t i = 0; i < h->bits * h->tables * d; i++) {
        h->w[i] = (double)(float)gaussian(seed, UINT64_C(1) << 61 | (uint64_t)(i / d), (uint64_t)(i % d));
    }
}

/* Outputs and gradients. */
static void hashed(void)
{
    int clear = 0, tried = rounds(80);
    for (int i = 0; i < tried; i++) {
        random_case c = { .guarded = false };
        int64_t g = 1 + (int64_t)test_below(3), h_kv = 1 + (int64_t)test_below(2), n = 1 + (int64_t)test_below(i % 8 ? 90 : 600);
        hashes h = { 1 + (int64_t)test_below(4), 2 + (int64_t)test_below(12), NULL };
        case_begin(&c, (shape){ g * h_kv, h_kv, 1 + (int64_t)test_below(i % 8 ? 70 : 5), n, 8, 5 });
        case_rows(&c, &c.k, random_type(8), (int)test_below(LAYOUT_COUNT), 1);
        case_rows(&c, &c.v, random_type(5), (int)test_below(LAYOUT_COUNT), 1);
        backward_case b = backward_begin(&c);
        c.options.method = KNA_LSH;
        c.options.causal = i % 2;
        c.options.near_sinks = 1 + (int64_t)test_below(4);
        c.options.near_window = 1 + (int64_t)test_below(20);
        c.options.hash_bits = h.bits;
        c.options.hash_tables = h.tables;
        c.options.seed = test_random();
        if (test_below(4) == 0) c.options.causal_shift = (int64_t)test_below(60) - 30;
        draw_hashes(&h, c.options.seed, 8);
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        double *extra = calloc((size_t)(c.shape.h * c.shape.m * n), sizeof *extra), *logits = calloc((size_t)n, sizeof *logits),
               out[5];
        bool is_clear = true, good = backward_both(&b, random_context());
        for (int64_t head = 0; head < h_kv; head++) is_clear &= lsh_head(o, &h, head, extra);
        clear += is_clear;
        for (int64_t row = 0; row < c.shape.h * c.shape.m && good && is_clear; row++) {
            oracle_logits(o, row / c.shape.m, row % c.shape.m, logits);
            for (int64_t j = 0; j < n; j++) logits[j] += extra[row * n + j];
            double lse = oracle_mix(o, row / c.shape.m, logits, out);
            for (int x = 0; x < 5 && good; x++) {
                good = EXPECT_NEAR((double)case_out_row(&c, row / c.shape.m, row % c.shape.m)[x], out[x],
                                   1e-4 * o->v_most[row / c.shape.m / g] + 1e-6);
            }
            if (lse > -(double)INFINITY) good = good && EXPECT_NEAR((double)c.lse[row], lse, 1e-3);
        }
        if (good && is_clear) {
            gradient_oracle *truth = gradient_oracle_with(o, b.dout_numbers, extra);
            for (int64_t x = 0; x < c.shape.h * c.shape.m * 8; x++)
                truth->dq_slack[x] *= 5; /* angles near 0: their cosine is f32's */
            for (int64_t x = 0; x < h_kv * n * 8; x++) truth->dk_slack[x] *= 5;
            for (int64_t x = 0; x < h_kv * n * 5; x++) truth->dv_slack[x] *= 5;
            good = backward_matches(&b, truth);
            gradient_oracle_free(truth);
        }
        if (!good) printf("  round %d: %s\n", i, case_text(&c));
        oracle_free(o);
        free(extra);
        free(logits);
        free(h.w);
        free(b.dout_numbers);
        case_end(&c);
        if (!good) break;
    }
    EXPECT_THAT(clear > tried / 2, "only %d of %d had clear hashes", clear, tried);
}

static void laws(void)
{
    for (int method = KNA_WINDOW; method <= KNA_LSH; method++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 6, 3, 150, 700, 12, 9 });
        backward_case b = backward_begin(&c);
        c.options.method = method;
        c.options.rank = 20;
        c.options.causal = method != KNA_LINFORMER && method != KNA_NYSTROM;
        backward_expect_same_bits(&b);
        if (method != KNA_NYSTROM) backward_expect_values_add_up(&b); /* whose weights add up to nothing in particular */
        backward_expect_one_at_a_time(&b);
        free(b.dout_numbers);
        case_end(&c);
    }
}

static void bad_input(void)
{
    random_case c = { .guarded = false };
    case_begin(&c, (shape){ 2, 1, 4, 9, 4, 4 });
    backward_case b = backward_begin(&c);
    float projection[9 * 4] = { 0 };
    for (int method = KNA_WINDOW; method <= KNA_LSH; method++) {
        c.options.method = method;
        c.options.window = 3;
        backward_expect_refused(&b, KNA_EINVAL, "window: ");
        c.options.window = 0;
        b.gradients.dproject_k = projection;
        backward_expect_refused(&b, KNA_EINVAL, "dproject: ");
        b.gradients.dproject_k = NULL;
    }
    c.options.method = KNA_NYSTROM;
    c.options.causal = 1;
    backward_expect_refused(&b, KNA_EINVAL, "causal: nystrom cannot follow it");
    free(b.dout_numbers);
    case_end(&c);
    for (int method = KNA_WINDOW; method <= KNA_LSH; method++) { /* no queries, no keys */
        for (int kind = 1; kind < 4; kind++) {
            case_begin(&c, (shape){ 2, 1, kind & 1 ? 0 : 3, kind & 2 ? 0 : 4, 3, 3 });
            b = backward_begin(&c);
            c.options.method = method;
            EXPECT(backward_both(&b, context_best()));
            free(b.dout_numbers);
            case_end(&c);
        }
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(windows);
    TEST(linformers);
    TEST(nystroms);
    TEST(performers);
    TEST(far_apart);
    TEST(hashed);
    TEST(laws);
    TEST(bad_input);
    contexts_free();
    return test_end();
}
