/* knn_oracle.c - see knn_oracle.h. */
#include "knn_oracle.h"

#define HIDDEN (-(double)INFINITY)

kna_index *knn_index_of(const random_case *c, kna_context *context)
{
    kna_index *index = NULL;
    if (kna_index_new(context, &index, c->options.method, c->shape.h_kv, c->shape.d, c->shape.dv) != KNA_OK) abort();
    int status = kna_index_update(context, index, &c->k, &c->v, 0, c->shape.n);
    EXPECT_THAT(status == KNA_OK, "%s", kna_context_message(context));
    return index;
}

/* ---- the index against its rows */

int64_t knn_formed_pieces(const kna_index *index)
{
    int64_t formed = 0;
    for (int64_t i = 0; i < index->clusters.capacity; i++) formed += index->clusters.state[i] != KNA_PIECE_OPEN;
    return formed;
}

/* The mean of the members' numbers in one column as f16 may hold it; |x| of the members into *size. */
static bool mean_holds(const kna_rows *rows, int64_t head, const int32_t *ids, int64_t n, int64_t column, uint16_t got)
{
    double sum = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = oracle_number(rows, head, ids[i], column);
        sum += x / (double)n;
        size += fabs(x) / (double)n;
    }
    double slack = 0x1p-20 * size + 0x1p-25, off = 0x1p-11 * fabs(sum) + slack;
    double want = sum > 65504 ? 65504 : sum < -65504 ? -65504 : sum;
    return EXPECT_THAT(fabs(oracle_f16(got) - want) <= off, "mean of %lld rows from %d on, column %lld: %g, expected %g",
                       (long long)n, ids[0], (long long)column, oracle_f16(got), want);
}

static double mean_square_from_mean(const kna_rows *rows, int64_t head, const int32_t *ids, int64_t n)
{
    double sum = 0;
    for (int64_t c = 0; c < rows->dim; c++) {
        double mean = 0;
        for (int64_t i = 0; i < n; i++) mean += oracle_number(rows, head, ids[i], c) / (double)n;
        for (int64_t i = 0; i < n; i++) {
            double off = oracle_number(rows, head, ids[i], c) - mean;
            sum += off * off / (double)n;
        }
    }
    return sum;
}

static bool summary_holds(const kna_index *index, const kna_rows *k, const kna_rows *v, int64_t head, int64_t at,
                          const int32_t *ids)
{
    const kna__clusters *c = &index->clusters;
    int64_t n = c->count[at];
    double norm = 0;
    for (int64_t x = 0; x < index->d; x++) {
        double mean = 0;
        if (!mean_holds(k, head, ids, n, x, c->key[at * index->d + x])) return false;
        for (int64_t i = 0; i < n; i++) mean += oracle_number(k, head, ids[i], x) / (double)n;
        norm += mean * mean;
    }
    for (int64_t x = 0; x < index->dv; x++) {
        if (!mean_holds(v, head, ids, n, x, c->value[at * index->dv + x])) return false;
    }
    double size = 0, deviation = sqrt(mean_square_from_mean(v, head, ids, n));
    for (int64_t i = 0; i < n; i++) {
        for (int64_t x = 0; x < index->dv; x++) size = fmax(size, fabs(oracle_number(v, head, ids[i], x)));
    }
    return EXPECT_THAT(fabs((double)c->norm[at] - sqrt(norm)) <= 1e-5 * (1 + sqrt(norm)), "norm %g, expected %g",
                       (double)c->norm[at], sqrt(norm)) &&
           EXPECT_THAT(fabs((double)c->deviation[at] - deviation) <= 1e-4 * deviation + 1e-5 * size,
                       "deviation %g, expected %g", (double)c->deviation[at], deviation) &&
           EXPECT_THAT(c->spread[at] >= 0 && isfinite(c->spread[at]) && c->always[at] <= 1, "spread %g, always %d",
                       (double)c->spread[at], c->always[at]);
}

/* One unit of one head: every row of it but the first of all in exactly one cluster, in ascending order. */
static bool unit_holds(const kna_index *index, const kna_rows *k, const kna_rows *v, int64_t head, int64_t piece)
{
    const kna__clusters *c = &index->clusters;
    int64_t row = kna__unit_row(c, piece), rows = kna__unit_rows(c, piece), slot = piece * KNA_SLOTS, held = 0;
    uint8_t seen[KNA_SEGMENT] = { 0 };
    int32_t ids[KNA_SEGMENT];
    for (int64_t s = slot; s < slot + rows / KNA_PIECE * KNA_SLOTS; s++) {
        int64_t at = kna__cluster_slot(c, head, s), n = kna__cluster_rows(c, head, s, ids);
        held += n;
        if (!EXPECT_THAT(n == c->count[at] && held <= rows, "slot %lld: %lld members", (long long)s, (long long)n)) return false;
        for (int64_t i = 0; i < n; i++) {
            bool fits = ids[i] >= row && ids[i] < row + rows && ids[i] >= KNA_FIRST_ROWS && (i == 0 || ids[i] > ids[i - 1]);
            fits = fits && !seen[ids[i] - row]++;
            if (!EXPECT_THAT(fits, "slot %lld, member %lld: row %d of unit %lld", (long long)s, (long long)i, ids[i],
                             (long long)row)) {
                return false;
            }
        }
        if (n && !c->always[at] && !summary_holds(index, k, v, head, at, ids)) return false;
    }
    return EXPECT_INT(held, row ? rows : rows - KNA_FIRST_ROWS);
}

bool knn_index_holds(const kna_index *index, const kna_rows *k, const kna_rows *v)
{
    const kna__clusters *c = &index->clusters;
    for (int64_t piece = 0; piece < c->capacity;) {
        if (c->state[piece] == KNA_PIECE_OPEN) {
            piece++;
            continue;
        }
        if (!EXPECT_INT(kna__unit_row(c, piece), piece * KNA_PIECE)) return false;
        for (int64_t head = 0; head < index->heads; head++) {
            if (!unit_holds(index, k, v, head, piece)) return false;
        }
        piece += kna__unit_rows(c, piece) / KNA_PIECE;
    }
    return true;
}

/* ---- one choice */

typedef struct choice {
    const oracle *o;
    const kna_index *index;
    int64_t kv_head, query, queries, rows; /* rows = queries * g, query-major */
    int64_t clusters;
    int64_t *at;     /* (clusters) numbers within the index's arrays */
    int64_t *slot;
    bool *clustered; /* (n) the row is in one of them */
    double *mass;    /* (rows, clusters) relative to exp(top) */
    double *total;   /* (rows) all of softmax, as estimated, relative to exp(top) */
    double *top;     /* (rows) */
    double *square;  /* (rows) |q|^2 */
    double *share, *score; /* (clusters) */
    bool *chosen;    /* (clusters) */
    double mean_square, error, *logits; /* (n) */
    bool doubtful;
} choice;

static int64_t count_option(int64_t given, int64_t usual)
{
    return given ? (given < 0 ? 0 : given) : usual;
}

static bool any_head_sees(const oracle *o, int64_t query, int64_t key)
{
    for (int64_t head = 0; head < o->h; head++) {
        if (oracle_sees(o, head, query, key)) return true;
    }
    return false;
}

static bool all_see_plainly(const choice *x, int64_t first, int64_t end)
{
    const oracle *o = x->o;
    for (int64_t i = 0; i < x->queries * o->h; i++) {
        int64_t head = i % o->h, query = x->query + i / o->h;
        for (int64_t j = first; j < end; j++) {
            if (!oracle_sees(o, head, query, j) || oracle_finish(o, head, query, j, 0) != 0) return false;
        }
        if (o->options.slopes && !o->options.mask.data) return false;
    }
    return true;
}

/* Rows first .. end - 1 hold no row that the first query must read in full: none of its first keys, none of its recent ones. */
static bool is_ordinary(const choice *x, int64_t first, int64_t end)
{
    const oracle *o = x->o;
    int64_t low = 0, high = o->n, sinks = count_option(o->options.near_sinks, 4), window = count_option(o->options.near_window, 64);
    bool seen = false;
    while (low < high && !(seen = any_head_sees(o, x->query, low))) low++;
    while (high > low && !any_head_sees(o, x->query, high - 1)) high--;
    if (end > high - window) return false;
    return !seen || sinks == 0 || low + sinks <= KNA_FIRST_ROWS || end <= low || (first ? first : 0) >= low + sinks;
}

static int64_t shared_clusters(const choice *x)
{
    int64_t together = x->rows == 1 ? 1 : x->rows <= x->o->g ? 2 : 4;
    return (count_option(x->o->options.k_near, 256) * together + 15) / 16;
}

static int64_t own_clusters(const choice *x)
{
    return x->rows <= x->o->g ? 0 : (count_option(x->o->options.k_near, 256) + 15) / 16;
}

static int64_t budget(const choice *x)
{
    return shared_clusters(x) + own_clusters(x);
}

static void find_clusters(choice *x)
{
    const kna__clusters *c = &x->index->clusters;
    int32_t ids[KNA_SEGMENT];
    for (int64_t piece = 0; piece < c->capacity;) {
        int64_t row = kna__unit_row(c, piece), rows = kna__unit_rows(c, piece);
        bool formed = c->state[piece] != KNA_PIECE_OPEN && row + rows <= x->o->n;
        if (formed && is_ordinary(x, row, row + rows) && all_see_plainly(x, row ? row : KNA_FIRST_ROWS, row + rows)) {
            for (int64_t s = piece * KNA_SLOTS; s < (piece + rows / KNA_PIECE) * KNA_SLOTS; s++) {
                int64_t n = kna__cluster_rows(c, x->kv_head, s, ids);
                x->slot[x->clusters] = s;
                x->at[x->clusters++] = kna__cluster_slot(c, x->kv_head, s);
                for (int64_t i = 0; i < n; i++) x->clustered[ids[i]] = true;
            }
        }
        piece += c->state[piece] == KNA_PIECE_OPEN ? 1 : rows / KNA_PIECE;
    }
    if (x->clusters < 2 * budget(x)) { /* as good as all would be read */
        x->clusters = 0;
        memset(x->clustered, 0, (size_t)x->o->n * sizeof *x->clustered);
    }
}

static int64_t head_of(const choice *x, int64_t r)
{
    return x->kv_head * x->o->g + r % x->o->g;
}

/* Masses of one row, and what all of its softmax comes to with none of the clusters read. */
static void weigh(choice *x, int64_t r)
{
    const oracle *o = x->o;
    const kna__clusters *c = &x->index->clusters;
    const double *q = o->q + (head_of(x, r) * o->m + x->query + r / o->g) * o->d;
    double *mass = x->mass + r * x->clusters, cap = (double)o->options.softcap;
    oracle_logits(o, head_of(x, r), x->query + r / o->g, x->logits);
    for (int64_t i = 0; i < o->d; i++) x->square[r] += o->scale * o->scale * q[i] * q[i];
    x->top[r] = HIDDEN;
    for (int64_t s = 0; s < x->clusters; s++) {
        double z = 0;
        for (int64_t i = 0; i < o->d; i++) z += o->scale * q[i] * oracle_f16(c->key[x->at[s] * o->d + i]);
        mass[s] = c->count[x->at[s]] == 0 || c->always[x->at[s]] ? HIDDEN : cap > 0 ? cap * tanh(z / cap) : z;
        x->top[r] = fmax(x->top[r], mass[s]);
    }
    for (int64_t j = 0; j < o->n; j++) x->top[r] = fmax(x->top[r], x->logits[j]);
    for (int64_t s = 0; s < x->clusters; s++) {
        double spread = (double)c->spread[x->at[s]];
        mass[s] = (double)c->count[x->at[s]] * exp(mass[s] - x->top[r]) * (1 + x->square[r] * spread / 2);
        x->total[r] += mass[s];
    }
    for (int64_t j = 0; j < o->n; j++) x->total[r] += x->clustered[j] ? 0 : exp(x->logits[j] - x->top[r]);
    for (int64_t s = 0; s < x->clusters; s++) x->share[s] += x->total[r] > 0 ? mass[s] / x->total[r] : 0;
    x->mean_square += x->square[r] / (double)x->rows;
}

static double stray(const choice *x, int64_t s)
{
    const kna__clusters *c = &x->index->clusters;
    return (double)c->deviation[x->at[s]] * sqrt(x->mean_square * (double)c->spread[x->at[s]] + 0.1);
}

/* The `want` largest scores of those not yet taken; says where it is a near thing. */
static void take_largest(choice *x, const double *score, int64_t want, bool *taken)
{
    double last = (double)INFINITY;
    for (int64_t i = 0; i < want; i++) {
        int64_t best = -1;
        for (int64_t s = 0; s < x->clusters; s++) {
            if (!taken[s] && (best < 0 || score[s] > score[best])) best = s;
        }
        if (best < 0) return;
        taken[best] = true;
        last = score[best];
    }
    for (int64_t s = 0; s < x->clusters; s++) x->doubtful |= !taken[s] && score[s] > 0 && score[s] >= last * (1 - 2e-4);
}

static double error_left(const choice *x)
{
    double sum = 0;
    for (int64_t s = 0; s < x->clusters; s++) {
        double spread = (double)x->index->clusters.spread[x->at[s]];
        sum += x->chosen[s] ? 0 : x->share[s] * erf(sqrt(x->mean_square * spread / 8));
    }
    return sum / (double)x->rows;
}

static void choose(choice *x)
{
    const kna_attend_options *o = &x->o->options;
    int64_t want = shared_clusters(x);
    for (int64_t s = 0; s < x->clusters; s++) {
        bool always = x->index->clusters.always[x->at[s]];
        want += always;
        x->score[s] = always ? (double)INFINITY : x->share[s] * stray(x, s);
    }
    for (;; want *= 2) {
        memset(x->chosen, 0, (size_t)x->clusters);
        x->doubtful = false;
        take_largest(x, x->score, want, x->chosen);
        x->error = error_left(x);
        double eps = (double)o->eps;
        x->doubtful |= eps > 0 && fabs(x->error - eps) < 1e-4;
        if (eps == 0 || x->error <= eps || want >= x->clusters) return;
    }
}

/* ---- one row, the choice made */

/* In prefill, a row also reads clusters of its own. */
static void choose_own(choice *x, int64_t r, bool *taken)
{
    double *score = malloc((size_t)(x->clusters + 1) * sizeof *score);
    for (int64_t s = 0; s < x->clusters; s++) score[s] = x->mass[r * x->clusters + s] * stray(x, s);
    take_largest(x, score, own_clusters(x), taken);
    free(score);
}

static void add_value(double *out, const double *v, double weight, int64_t dv)
{
    for (int64_t c = 0; c < dv; c++) out[c] += weight * v[c];
}

/* out and the sum of weights; the sum of the tail's into *tail. */
static double mix(const choice *x, int64_t r, const bool *taken, double *out, double *tail, knn_row *row)
{
    const oracle *o = x->o;
    const kna__clusters *c = &x->index->clusters;
    double sum = 0, *mean = malloc((size_t)o->dv * sizeof *mean);
    const double *v = o->v + x->kv_head * o->n * o->dv;
    bool *read = calloc((size_t)o->n + 1, 1);
    int32_t ids[KNA_SEGMENT];
    for (int64_t i = 0; i < o->dv; i++) out[i] = 0;
    for (int64_t j = 0; j < o->n; j++) read[j] = !x->clustered[j];
    for (int64_t s = 0; s < x->clusters; s++) {
        int64_t n = taken[s] ? kna__cluster_rows(c, x->kv_head, x->slot[s], ids) : 0;
        for (int64_t i = 0; i < n; i++) read[ids[i]] = true;
        if (taken[s]) continue;
        *tail += x->mass[r * x->clusters + s];
        for (int64_t i = 0; i < o->dv; i++) mean[i] = oracle_f16(c->value[x->at[s] * o->dv + i]);
        add_value(out, mean, x->mass[r * x->clusters + s], o->dv);
    }
    for (int64_t j = 0; j < o->n; j++) {
        row->seen += x->logits[j] > HIDDEN;
        row->full += read[j] && x->logits[j] > HIDDEN;
        if (!read[j] || x->logits[j] == HIDDEN) continue;
        sum += exp(x->logits[j] - x->top[r]);
        add_value(out, v + j * o->dv, exp(x->logits[j] - x->top[r]), o->dv);
    }
    free(read);
    free(mean);
    return sum + *tail;
}

static knn_row finish_row(choice *x, int64_t r, const bool *taken, double tolerance, expected *e)
{
    const oracle *o = x->o;
    int64_t head = head_of(x, r), query = x->query + r / o->g, at = head * o->m + query;
    double tail = 0, sink = o->options.sinks ? (double)o->options.sinks[head] : HIDDEN, *out = e->out + at * o->dv;
    knn_row row = { .clusters = x->clusters, .error = x->clusters ? x->error : -1, .doubtful = x->doubtful };
    oracle_logits(o, head, query, x->logits);
    double sum = mix(x, r, taken, out, &tail, &row), top = x->top[r];
    /* What is taken out of the sum of all masses leaves the rounding of that sum. */
    double excess = sum > 0 ? fmax(1, x->total[r] / sum) : 1;
    if (sink > HIDDEN) {
        double higher = fmax(top, sink), shrink = top == HIDDEN ? 0 : exp(top - higher);
        for (int64_t c = 0; c < o->dv; c++) out[c] *= shrink;
        sum = sum * shrink + exp(sink - higher);
        tail *= shrink;
        top = higher;
    }
    for (int64_t c = 0; c < o->dv; c++) out[c] /= sum > 0 ? sum : 1;
    row.tail_mass = sum > 0 ? tail / sum : 0;
    e->lse[at] = row.lse = sum > 0 ? top + log(sum) : HIDDEN;
    expected_bounds(e, o, head, query, x->logits, tolerance * excess);
    if (row.doubtful) e->out_bound[at] = e->lse_bound[at] = 1e3;
    return row;
}

static void add_row(knn_truth *t, const knn_row *row)
{
    t->seen += (double)row->seen;
    t->full += (double)row->full;
    t->rows_exact += row->clusters == 0;
    t->doubtful += row->doubtful;
    t->tail_mass += row->tail_mass;
    t->seeing += row->seen > 0;
    if (row->error < 0) return;
    t->estimated++;
    t->error += row->error;
    t->error_most = fmax(t->error_most, row->error);
}

/* ---- all choices of a call */

static choice choice_new(const oracle *o, const kna_index *index, int64_t kv_head, int64_t query, int64_t queries)
{
    size_t slots = (size_t)(index->clusters.capacity * KNA_SLOTS) + 1, rows = (size_t)(queries * o->g);
    choice x = { .o = o, .index = index, .kv_head = kv_head, .query = query, .queries = queries, .rows = queries * o->g };
    x.at = malloc(slots * sizeof *x.at);
    x.slot = malloc(slots * sizeof *x.slot);
    x.clustered = calloc((size_t)o->n + 1, 1);
    x.mass = malloc(rows * slots * sizeof *x.mass);
    x.total = calloc(rows, sizeof *x.total);
    x.top = calloc(rows, sizeof *x.top);
    x.square = calloc(rows, sizeof *x.square);
    x.share = calloc(slots, sizeof *x.share);
    x.score = malloc(slots * sizeof *x.score);
    x.chosen = calloc(slots, 1);
    x.logits = malloc((size_t)(o->n + 1) * sizeof *x.logits);
    return x;
}

static void choice_free(choice *x)
{
    void *held[] = { x->at, x->slot, x->clustered, x->mass, x->total, x->top, x->square, x->share, x->score, x->chosen, x->logits };
    for (size_t i = 0; i < sizeof held / sizeof held[0]; i++) free(held[i]);
}

static void one_choice(knn_truth *t, const oracle *o, const kna_index *index, int64_t kv_head, int64_t query, int64_t queries,
                       double tolerance)
{
    choice x = choice_new(o, index, kv_head, query, queries);
    find_clusters(&x);
    for (int64_t r = 0; r < x.rows; r++) weigh(&x, r);
    choose(&x);
    bool *taken = malloc((size_t)x.clusters + 1), shared_doubt = x.doubtful;
    for (int64_t r = 0; r < x.rows; r++) {
        memcpy(taken, x.chosen, (size_t)x.clusters);
        x.doubtful = shared_doubt;
        choose_own(&x, r, taken);
        knn_row row = finish_row(&x, r, taken, tolerance, t->e);
        add_row(t, &row);
    }
    free(taken);
    choice_free(&x);
}

knn_truth knn_truth_of(const oracle *o, const kna_index *index, int64_t together, double tolerance)
{
    knn_truth t = { .e = expected_new(o) };
    for (int64_t kv_head = 0; kv_head < o->h_kv; kv_head++) {
        for (int64_t query = 0; query < o->m; query += together) one_choice(&t, o, index, kv_head, query, together, tolerance);
    }
    t.tail_mass /= t.seeing ? (double)t.seeing : 1;
    t.error = t.estimated ? t.error / (double)t.estimated : -1;
    t.error_most = t.estimated ? t.error_most : -1;
    return t;
}

static bool report_holds(random_case *c, const kna_report *r, const knn_truth *t)
{
    bool good = EXPECT_THAT(r->rows == t->e->rows && r->method == KNA_KNN, "rows = %lld, method = %d", (long long)r->rows,
                            r->method);
    good = good && EXPECT_THAT(r->keys_seen == t->seen, "keys_seen = %g, expected %g: %s", r->keys_seen, t->seen, case_text(c));
    good = good && EXPECT_THAT(r->rows_exact == t->rows_exact, "rows_exact = %lld, expected %lld: %s", (long long)r->rows_exact,
                               (long long)t->rows_exact, case_text(c));
    if (!good || t->doubtful) return good;
    good = EXPECT_THAT(fabs(r->keys_full - t->full) <= 1e-5 * t->full, "keys_full = %g, expected %g: %s", r->keys_full, t->full,
                       case_text(c));
    good = good && EXPECT_THAT(fabs(r->tail_mass - t->tail_mass) <= 1e-4, "tail_mass = %g, expected %g: %s", r->tail_mass,
                               t->tail_mass, case_text(c));
    if (!good || (c->options.eps == 0 && c->options.audit == 0)) return good;
    return EXPECT_THAT(fabs(r->error_est - t->error) <= 1e-4 && fabs(r->error_est_max - t->error_most) <= 1e-4,
                       "error_est = %g, at most %g; expected %g, %g: %s", r->error_est, r->error_est_max, t->error, t->error_most,
                       case_text(c));
}

bool knn_case_holds(random_case *c, kna_context *context, const bool *absent, int64_t together, int64_t *rows, int64_t *doubtful)
{
    kna_report r = { .size = sizeof r };
    if (case_attend(c, context, &r) != KNA_OK) return false;
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    o->absent = absent;
    knn_truth t = knn_truth_of(o, c->options.index, together, 1e-5);
    bool good = case_matches(c, t.e) && report_holds(c, &r, &t);
    *rows += t.e->rows;
    *doubtful += t.doubtful;
    expected_free(t.e);
    oracle_free(o);
    return good;
}

/* ---- inputs and errors */

double knn_row_error(const random_case *c, const expected *e, int64_t row)
{
    const float *out = case_out_row(c, row / c->shape.m, row % c->shape.m);
    double off = 0, norm = 0;
    for (int64_t i = 0; i < e->dv; i++) {
        double truth = e->out[row * e->dv + i];
        off += ((double)out[i] - truth) * ((double)out[i] - truth);
        norm += truth * truth;
    }
    return norm > 0 ? sqrt(off / norm) : sqrt(off);
}

knn_errors knn_errors_of(random_case *c, const bool *absent)
{
    oracle *o = oracle_new(&c->q, &c->k, &c->v, &c->options);
    o->absent = absent;
    expected *e = expected_exact(o, 1e-5);
    knn_errors errors = { 0, 0 };
    for (int64_t row = 0; row < e->rows; row++) {
        double error = knn_row_error(c, e, row);
        errors.most = error <= errors.most ? errors.most : error; /* NaN is the most */
        errors.mean += error / (double)e->rows;
    }
    expected_free(e);
    oracle_free(o);
    return errors;
}

void knn_grouped(random_case *c, int64_t groups, double radius)
{
    int64_t d = c->shape.d, dv = c->shape.dv;
    double *centre = malloc((size_t)(groups * (d + dv)) * sizeof *centre);
    for (int64_t i = 0; i < groups * (d + dv); i++) centre[i] = test_normal();
    for (int64_t head = 0; head < c->shape.h_kv; head++) {
        for (int64_t j = 0; j < c->shape.n; j++) {
            const double *at = centre + (int64_t)test_below((size_t)groups) * (d + dv);
            for (int64_t x = 0; x < d; x++) case_put(&c->k, head, j, x, (float)(at[x] + radius * test_normal()));
            for (int64_t x = 0; x < dv; x++) case_put(&c->v, head, j, x, (float)(at[d + x] + radius * test_normal()));
        }
    }
    free(centre);
}
