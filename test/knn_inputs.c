/* knn_inputs.c - an index against its rows, and inputs for it; see knn_oracle.h. */
#include "knn_oracle.h"

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

/* The means of a cluster or a group; *norm of its mean key. */
static bool means_hold(const kna_index *index, const kna_rows *k, const kna_rows *v, int64_t head, const kna__level *c, int64_t at,
                       const int32_t *ids, int64_t n, double *norm)
{
    *norm = 0;
    for (int64_t x = 0; x < index->d; x++) {
        double mean = 0;
        if (!mean_holds(k, head, ids, n, x, c->key[at * index->d + x])) return false;
        for (int64_t i = 0; i < n; i++) mean += oracle_number(k, head, ids[i], x) / (double)n;
        *norm += mean * mean;
    }
    for (int64_t x = 0; x < index->dv; x++) {
        if (!mean_holds(v, head, ids, n, x, c->value[at * index->dv + x])) return false;
    }
    double size = 0, deviation = sqrt(mean_square_from_mean(v, head, ids, n));
    for (int64_t i = 0; i < n; i++) {
        for (int64_t x = 0; x < index->dv; x++) size = fmax(size, fabs(oracle_number(v, head, ids[i], x)));
    }
    *norm = sqrt(*norm);
    return EXPECT_INT(c->count[at], n) &&
           EXPECT_THAT(fabs((double)c->deviation[at] - deviation) <= 1e-4 * deviation + 1e-5 * size,
                       "deviation %g, expected %g", (double)c->deviation[at], deviation) &&
           EXPECT_THAT(c->spread[at] >= 0 && isfinite(c->spread[at]), "spread %g", (double)c->spread[at]);
}

/* Codes say what a member's key is beside its cluster's mean, to little more than half a step; the step is as small as can be. */
static bool codes_hold(const kna_index *index, const kna_rows *k, int64_t head, int64_t at, int64_t unit, const int32_t *ids, int64_t n)
{
    const kna__clusters *c = &index->clusters;
    double step = (double)c->step[at], largest = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t place = head * c->capacity * KNA_PIECE + unit + c->first[at] + i;
        const uint8_t *quad = c->code + (size_t)(place / KNA_QUAD) * kna__code_chunks(index->d) * KNA_QUAD_BYTES;
        for (int64_t x = 0; x < index->d; x++) {
            double beside = oracle_number(k, head, ids[i], x) - oracle_f16(c->level[KNA_CLUSTERS].key[at * index->d + x]);
            double said = step * ((double)kna__code_at(quad, (size_t)(place % KNA_QUAD), (size_t)x) - 7.5);
            largest = fmax(largest, fabs(beside));
            if (!EXPECT_THAT(fabs(beside - said) <= 0.54 * step + 1e-30, "row %d, column %lld: %g beside the mean, by its code %g", ids[i],
                             (long long)x, beside, said)) {
                return false;
            }
        }
    }
    return EXPECT_THAT(fabs(step - largest / 7.5) <= 1e-5 * step + 1e-30, "step %g, expected %g", step, largest / 7.5);
}

static bool cluster_holds(const kna_index *index, const kna_rows *k, const kna_rows *v, int64_t head, int64_t at, int64_t unit,
                          const int32_t *ids, int64_t n)
{
    const kna__clusters *c = &index->clusters;
    double norm;
    return means_hold(index, k, v, head, &c->level[KNA_CLUSTERS], at, ids, n, &norm) &&
           EXPECT_THAT(fabs((double)c->norm[at] - norm) <= 1e-5 * (1 + norm), "norm %g, expected %g", (double)c->norm[at], norm) &&
           EXPECT_THAT(c->always[at] <= 1, "always %d", c->always[at]) && codes_hold(index, k, head, at, unit, ids, n);
}

/* A group describes the members of its clusters, whatever has become of them since. */
static bool group_holds(const kna_index *index, const kna_rows *k, const kna_rows *v, int64_t head, int64_t group)
{
    const kna__clusters *c = &index->clusters;
    int32_t ids[KNA_SEGMENT];
    int64_t n = 0, at = kna__level_at(c, KNA_GROUPS, head, group);
    double norm;
    for (int64_t s = group * KNA_GROUP_SLOTS; s < (group + 1) * KNA_GROUP_SLOTS; s++) {
        n += kna__cluster_rows(c, head, s, ids + n);
    }
    if (kna__level_always(c, KNA_GROUPS, at)) return EXPECT_INT(c->level[KNA_GROUPS].count[at], n);
    return n ? means_hold(index, k, v, head, &c->level[KNA_GROUPS], at, ids, n, &norm) : EXPECT_INT(c->level[KNA_GROUPS].count[at], 0);
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
        if (!EXPECT_THAT(n == c->level[KNA_CLUSTERS].count[at] && held <= rows, "slot %lld: %lld members", (long long)s, (long long)n)) return false;
        for (int64_t i = 0; i < n; i++) {
            bool fits = ids[i] >= row && ids[i] < row + rows && ids[i] >= KNA_FIRST_ROWS && (i == 0 || ids[i] > ids[i - 1]);
            fits = fits && !seen[ids[i] - row]++;
            if (!EXPECT_THAT(fits, "slot %lld, member %lld: row %d of unit %lld", (long long)s, (long long)i, ids[i],
                             (long long)row)) {
                return false;
            }
        }
        if (n && !c->always[at] && !cluster_holds(index, k, v, head, at, row, ids, n)) return false;
    }
    for (int64_t group = slot / KNA_GROUP_SLOTS; group < (slot + rows / KNA_PIECE * KNA_SLOTS) / KNA_GROUP_SLOTS; group++) {
        if (!group_holds(index, k, v, head, group)) return false;
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
