/* knn_oracle.c - see knn_oracle.h. */
#include "knn_oracle.h"

#define BLOCK  16
#define HIDDEN (-(double)INFINITY)

/* ---- the index, recomputed */

/* Rows of numbers as f32 times a factor, to int8 with a scale per row; NaN and infinity make a row of zeros. */
static void quantize(kna_context *context, int8_t *out, float *scales, const double *x, int64_t rows, int64_t d, float factor)
{
    float *row = malloc((size_t)d * sizeof *row);
    for (int64_t r = 0; r < rows; r++) {
        bool finite = true;
        for (int64_t c = 0; c < d; c++) finite = finite && isfinite((float)x[r * d + c]);
        for (int64_t c = 0; c < d; c++) row[c] = finite ? (float)x[r * d + c] * factor : 0;
        EXPECT_INT(kna_quantize_i8(context, out + r * d, scales + r, row, 1, d), KNA_OK);
    }
    free(row);
}

/* The mean of 16 values in f16. Its sum in f32 is off by 16 u sum|v| at most; where f16 rounds that either way, there is doubt. */
static void mean_of_block(knn_oracle *x, int64_t kv_head, int64_t block, int64_t column)
{
    const oracle *o = x->o;
    int64_t at = kv_head * x->blocks + block;
    double sum = 0, size = 0;
    for (int64_t j = block * BLOCK; j < (block + 1) * BLOCK && j < o->n; j++) {
        double v = o->v[(kv_head * o->n + j) * o->dv + column];
        sum += v;
        size += fabs(v);
    }
    double low = oracle_f16(oracle_to_f16((float)(sum / BLOCK - 0x1p-23 * size)));
    double high = oracle_f16(oracle_to_f16((float)(sum / BLOCK + 0x1p-23 * size)));
    x->means[at * o->dv + column] = oracle_f16(oracle_to_f16((float)(sum / BLOCK)));
    x->doubts[at] = fmax(x->doubts[at], high - low);
}

static void block_means(knn_oracle *x)
{
    for (int64_t i = 0; i < x->o->h_kv * x->blocks * x->o->dv; i++) {
        mean_of_block(x, i / (x->blocks * x->o->dv), i / x->o->dv % x->blocks, i % x->o->dv);
    }
}

knn_oracle *knn_oracle_new(const oracle *o, const random_case *c, kna_context *context)
{
    const kna_attend_options *options = &c->options;
    knn_oracle *x = calloc(1, sizeof *x);
    size_t n = (size_t)o->n + 1;
    x->o = o;
    x->blocks = (o->n + BLOCK - 1) / BLOCK;
    x->near_sinks = options->near_sinks ? (options->near_sinks < 0 ? 0 : options->near_sinks) : 4;
    x->near_window = options->near_window ? (options->near_window < 0 ? 0 : options->near_window) : 64;
    x->k_near = options->k_near ? options->k_near : 128;
    x->q = malloc((size_t)(o->h * o->m * o->d));
    x->q_scale = malloc((size_t)(o->h * o->m) * sizeof(float));
    x->k = malloc((size_t)o->h_kv * n * (size_t)o->d);
    x->k_scale = malloc((size_t)o->h_kv * n * sizeof(float));
    x->means = malloc(((size_t)(o->h_kv * x->blocks * o->dv) + 1) * sizeof(double));
    x->doubts = calloc((size_t)(o->h_kv * x->blocks) + 1, sizeof(double));
    x->approx = malloc(n * sizeof(double));
    x->exact = malloc(n * sizeof(double));
    x->listed = malloc(n);
    float scale = options->scale != 0 ? options->scale : 1.0f / sqrtf((float)o->d);
    quantize(context, x->q, x->q_scale, o->q, o->h * o->m, o->d, scale);
    quantize(context, x->k, x->k_scale, o->k, o->h_kv * o->n, o->d, 1);
    block_means(x);
    return x;
}

void knn_oracle_free(knn_oracle *x)
{
    free(x->q);
    free(x->q_scale);
    free(x->k);
    free(x->k_scale);
    free(x->means);
    free(x->doubts);
    free(x->approx);
    free(x->exact);
    free(x->listed);
    free(x);
}

/* ---- one row */

static double approximate(const knn_oracle *x, int64_t head, int64_t query, int64_t key)
{
    const oracle *o = x->o;
    int64_t q_row = head * o->m + query, k_row = head / o->g * o->n + key, sum = 0;
    for (int64_t c = 0; c < o->d; c++) sum += x->q[q_row * o->d + c] * x->k[k_row * o->d + c];
    float product = x->q_scale[q_row] * x->k_scale[k_row];
    product *= (float)sum;
    return oracle_finish(o, head, query, key, (double)product);
}

static bool is_plain(const oracle *o)
{
    return o->options.softcap == 0 && !o->options.mask.data && !o->options.slopes;
}

/* Logits of the row, and the list but for the k nearest. Returns how many keys are neither listed nor unseen. */
static int64_t list_fixed(knn_oracle *x, int64_t head, int64_t query, knn_row *row)
{
    const oracle *o = x->o;
    oracle_logits(o, head, query, x->exact);
    for (int64_t j = 0; j < o->n; j++) {
        x->approx[j] = x->exact[j] > HIDDEN ? approximate(x, head, query, j) : HIDDEN;
        x->listed[j] = false;
        row->seen += x->exact[j] > HIDDEN;
    }
    int64_t nth = 0, left = 0;
    for (int64_t j = 0; j < o->n; j++) {
        if (x->exact[j] == HIDDEN) continue;
        bool whole = j / BLOCK * BLOCK + BLOCK <= o->n;
        for (int64_t i = j / BLOCK * BLOCK; whole && i < (j / BLOCK + 1) * BLOCK; i++) whole = x->exact[i] > HIDDEN;
        x->listed[j] = !whole || nth < x->near_sinks || nth >= row->seen - x->near_window;
        left += !x->listed[j];
        row->full += x->listed[j];
        nth++;
    }
    return left;
}

/* The k nearest of the rest onto the list; what was chosen is left in taken (n) so that it can be taken back. */
static void list_nearest(knn_oracle *x, int64_t k, bool *taken, knn_row *row)
{
    int64_t n = x->o->n;
    double *rest = malloc((size_t)n * sizeof *rest), least = (double)INFINITY;
    for (int64_t j = 0; j < n; j++) rest[j] = x->listed[j] ? HIDDEN : x->approx[j];
    double gap = oracle_keep_largest(rest, n, k);
    for (int64_t j = 0; j < n; j++) {
        taken[j] = rest[j] > HIDDEN;
        if (!taken[j]) continue;
        x->listed[j] = true;
        least = fmin(least, rest[j]);
    }
    if (!is_plain(x->o) && gap < 1e-5 * (1 + fabs(least))) row->doubtful = true;
    free(rest);
}

/* Weights relative to exp(most): of listed keys and of every tail key; and of the tail by its approximate logits. */
typedef struct weights {
    double most, listed, tail, tail_scan;
} weights;

static double mean_logit(const knn_oracle *x, int64_t block)
{
    double sum = 0;
    int count = 0;
    for (int64_t j = block * BLOCK; j < (block + 1) * BLOCK && j < x->o->n; j++) {
        if (x->approx[j] == HIDDEN || x->listed[j]) continue;
        sum += x->approx[j];
        count++;
    }
    return count ? sum / count : HIDDEN;
}

static weights weigh(const knn_oracle *x, int64_t head)
{
    const oracle *o = x->o;
    weights w = { HIDDEN, 0, 0, 0 };
    for (int64_t j = 0; j < o->n; j++) {
        if (x->exact[j] > HIDDEN) w.most = fmax(w.most, x->listed[j] ? x->exact[j] : mean_logit(x, j / BLOCK));
    }
    if (o->options.sinks) w.listed = exp((double)o->options.sinks[head] - w.most);
    for (int64_t j = 0; j < o->n; j++) {
        if (x->exact[j] == HIDDEN) continue;
        if (x->listed[j]) {
            w.listed += exp(x->exact[j] - w.most);
        } else {
            w.tail += exp(mean_logit(x, j / BLOCK) - w.most);
            w.tail_scan += exp(x->approx[j] - w.most);
        }
    }
    return w;
}

static double distance(const knn_oracle *x, weights w)
{
    double used = w.listed + w.tail, truth = w.listed + w.tail_scan, sum = w.listed * fabs(1 / used - 1 / truth);
    for (int64_t j = 0; j < x->o->n; j++) {
        if (x->exact[j] == HIDDEN || x->listed[j]) continue;
        sum += fabs(exp(mean_logit(x, j / BLOCK) - w.most) / used - exp(x->approx[j] - w.most) / truth);
    }
    return sum / 2;
}

/* The output: listed values, and per block its mean for 16, less what is listed of it. */
static void mix(const knn_oracle *x, int64_t head, weights w, double *out, knn_row *row)
{
    const oracle *o = x->o;
    const double *v = o->v + head / o->g * o->n * o->dv;
    double sum = w.listed + w.tail, most = 0;
    for (int64_t c = 0; c < o->dv; c++) out[c] = 0;
    for (int64_t block = 0; block < x->blocks; block++) {
        double tail = exp(mean_logit(x, block) - w.most) / sum;
        most += BLOCK * tail;
        row->mean_doubt += tail > 0 ? BLOCK * tail * x->doubts[head / o->g * x->blocks + block] : 0;
        for (int64_t c = 0; c < o->dv && tail > 0; c++) {
            out[c] += tail * BLOCK * x->means[(head / o->g * x->blocks + block) * o->dv + c];
        }
        for (int64_t j = block * BLOCK; j < (block + 1) * BLOCK && j < o->n; j++) {
            if (!x->listed[j]) continue;
            double weight = exp(x->exact[j] - w.most) / sum - tail;
            most += fabs(weight);
            for (int64_t c = 0; c < o->dv; c++) out[c] += weight * v[j * o->dv + c];
        }
    }
    row->bound = most;
}

static void finish_exact(knn_oracle *x, int64_t head, double *out, knn_row *row)
{
    row->exact = true;
    row->full = row->seen;
    row->bound = 1;
    row->lse = oracle_mix(x->o, head, x->exact, out);
}

knn_row knn_oracle_row(knn_oracle *x, int64_t head, int64_t query, double *out)
{
    knn_row row = { 0 };
    double eps = (double)x->o->options.eps;
    int64_t left = list_fixed(x, head, query, &row), fixed = row.full;
    bool *taken = malloc((size_t)x->o->n + 1);
    for (int64_t k = x->k_near;; k *= 2) {
        /* Reading half of the keys is given up in favour of reading all. */
        if (k >= left || (k > x->k_near && fixed + k > row.seen / 2)) {
            finish_exact(x, head, out, &row);
            break;
        }
        list_nearest(x, k, taken, &row);
        weights w = weigh(x, head);
        row.error = distance(x, w);
        if (eps > 0 && fabs(row.error - eps) < 1e-4) row.doubtful = true;
        if (eps == 0 || row.error <= eps) {
            row.full = fixed + k;
            row.tail_mass = w.tail / (w.listed + w.tail);
            row.lse = w.most + log(w.listed + w.tail);
            mix(x, head, w, out, &row);
            break;
        }
        row.error = 0;
        for (int64_t j = 0; j < x->o->n; j++) x->listed[j] = x->listed[j] && !taken[j];
    }
    free(taken);
    return row;
}

/* ---- all rows */

static void add_row(knn_truth *t, const knn_row *row)
{
    t->seen += (double)row->seen;
    t->full += (double)row->full;
    t->rows_exact += row->exact;
    t->doubtful += row->doubtful;
    t->tail_mass += row->tail_mass;
    t->error += row->error;
    t->error_most = fmax(t->error_most, row->error);
    t->seeing += row->seen > 0;
}

knn_truth knn_truth_of(const oracle *o, const random_case *c, kna_context *context, double tolerance)
{
    knn_truth t = { .e = expected_new(o) };
    knn_oracle *x = knn_oracle_new(o, c, context);
    for (int64_t i = 0; i < t.e->rows; i++) {
        knn_row row = knn_oracle_row(x, i / o->m, i % o->m, t.e->out + i * o->dv);
        t.e->lse[i] = row.lse;
        expected_bounds(t.e, o, i / o->m, i % o->m, x->exact, tolerance * fmax(1, row.bound));
        t.e->out_bound[i] += row.mean_doubt;
        if (row.doubtful) t.e->out_bound[i] = t.e->lse_bound[i] = 1e3;
        add_row(&t, &row);
    }
    t.tail_mass /= t.seeing ? (double)t.seeing : 1;
    t.error /= (double)(t.e->rows ? t.e->rows : 1);
    knn_oracle_free(x);
    return t;
}

/* The least and the most that a call can have read, as a share of what exact attention reads. */
static bool touched_is_plausible(const random_case *c, const kna_report *report)
{
    double pair = (double)(kna_type_row_bytes(c->k.type, c->shape.d) + kna_type_row_bytes(c->v.type, c->shape.dv));
    double blocks = (double)((c->shape.n + BLOCK - 1) / BLOCK);
    double index = blocks * (BLOCK * (double)((c->shape.d + 3) / 4 * 4 + 4) + 2 * (double)c->shape.dv);
    double least = report->keys_full * pair, most = least + (double)report->rows * index, all = report->keys_seen * pair;
    return report->keys_seen == 0 ? report->keys_touched == 0 || report->rows_exact == report->rows
                                  : report->keys_touched * all >= least * 0.9999 && report->keys_touched * all <= most * 1.0001;
}

bool knn_case_holds(random_case *c, kna_context *context, const knn_truth *t)
{
    kna_report r = { .size = sizeof r };
    if (case_attend(c, context, &r) != KNA_OK || !case_matches(c, t->e)) return false;
    bool good = EXPECT_THAT(r.rows == t->e->rows && r.method == KNA_KNN, "rows = %lld, method = %d", (long long)r.rows, r.method);
    good = good && EXPECT_THAT(r.keys_seen == t->seen, "keys_seen = %g, expected %g: %s", r.keys_seen, t->seen, case_text(c));
    good = good && EXPECT_THAT(touched_is_plausible(c, &r), "keys_touched = %g: %s", r.keys_touched, case_text(c));
    if (!good || t->doubtful) return good;
    good = EXPECT_THAT(r.keys_full == t->full, "keys_full = %g, expected %g: %s", r.keys_full, t->full, case_text(c));
    good = good && EXPECT_THAT(r.rows_exact == t->rows_exact, "rows_exact = %lld, expected %lld: %s", (long long)r.rows_exact,
                               (long long)t->rows_exact, case_text(c));
    good = good && EXPECT_THAT(fabs(r.tail_mass - t->tail_mass) <= 1e-4, "tail_mass = %g, expected %g: %s", r.tail_mass,
                               t->tail_mass, case_text(c));
    if (!good || c->options.eps == 0) return good;
    return EXPECT_THAT(fabs(r.error_est - t->error) <= 1e-4 && fabs(r.error_est_max - t->error_most) <= 1e-4,
                       "error_est = %g, at most %g; expected %g, %g: %s", r.error_est, r.error_est_max, t->error, t->error_most,
                       case_text(c));
}
