/* search_case.c - see search_case.h. */
#include "search_case.h"

#include "../src/kernel/half.h"
#include "../src/store/format.h"
#include "oracle.h"

#include <float.h>

search_case search_begin(kna_context *context, int type, int64_t dim, int metric)
{
    search_case c = { .context = context, .type = type, .dim = dim, .metric = metric };
    kna_family family = { "rows", type, dim };
    snprintf(c.folder, sizeof c.folder, "%s/store", fresh_place());
    WELL(context, kna_store_create(context, c.folder, &family, 1, NULL));
    c.store = open_store(context, c.folder, 1, 0);
    return c;
}

void search_end(search_case *c)
{
    kna_store_close(c->store);
    drop_place();
    free(c->x);
    free(c->owner);
    free(c->ids);
    free(c->removed);
}

/* ---- numbers */

static double scale_of(int kind)
{
    if (kind == WILD && test_below(30) == 0) return test_below(2) ? 1e25 : 1e-25;
    return kind == LOPSIDED && test_below(4) == 0 ? pow(10, (double)test_below(9) - 4) : 1;
}

static void draw(float *row, int64_t dim, int kind)
{
    double scale = scale_of(kind);
    bool is_zero = kind == LOPSIDED && test_below(20) == 0;
    for (int64_t i = 0; i < dim; i++) {
        row[i] = (float)(kind == ALIKE ? (double)(int)test_below(3) - 1 : is_zero ? 0 : scale * test_normal());
    }
    if (kind == WILD && test_below(40) == 0) row[test_below((size_t)dim)] = test_below(2) ? NAN : INFINITY;
}

static void put_half(char *at, int type, float x)
{
    float most = isfinite(x) && type == KNA_F16 ? 65000 : INFINITY;
    float clamped = x > most ? most : x < -most ? -most : x;
    uint16_t half = type == KNA_F16 ? kna__float_to_f16(clamped) : kna__float_to_bf16(clamped);
    memcpy(at, &half, sizeof half);
}

/* int8 and q8_0 are drawn as they are; NaN and infinity can be in their scales alone. */
static void put_row(const search_case *c, char *at, float *scale, const float *row)
{
    bool is_wild = !isfinite(row[0]);
    float size = fabsf(row[0]) > 1e-9f && fabsf(row[0]) < 100 ? fabsf(row[0]) / 100 : 0.01f;
    *scale = is_wild ? row[0] : size;
    for (int64_t i = 0; i < c->dim; i++) {
        if (c->type == KNA_F32) memcpy(at + 4 * i, &row[i], sizeof row[i]);
        if (c->type == KNA_F16 || c->type == KNA_BF16) put_half(at + 2 * i, c->type, row[i]);
        if (c->type == KNA_I8) at[i] = (char)((int)test_below(255) - 127);
        if (c->type == KNA_Q8_0 && i % 32 == 0) put_half(at + i / 32 * 34, KNA_F16, is_wild ? row[0] : size);
        if (c->type == KNA_Q8_0) at[i / 32 * 34 + 2 + i % 32] = (char)((int)test_below(255) - 127);
    }
}

/* ---- documents */

static void grow(search_case *c, const kna_rows *rows)
{
    c->x = realloc(c->x, (size_t)((c->rows + rows->rows) * c->dim + 1) * sizeof *c->x);
    c->owner = realloc(c->owner, (size_t)(c->rows + rows->rows + 1) * sizeof *c->owner);
    c->ids = realloc(c->ids, (size_t)(c->documents + 1) * sizeof *c->ids);
    c->removed = realloc(c->removed, (size_t)(c->documents + 1) * sizeof *c->removed);
    kna_rows packed = *rows;
    packed.row_stride_bytes = (int64_t)kna__stored_row_bytes((uint32_t)c->type, (uint64_t)c->dim);
    for (int64_t r = 0; r < rows->rows; r++) {
        for (int64_t i = 0; i < c->dim; i++) c->x[(c->rows + r) * c->dim + i] = oracle_number(&packed, 0, r, i);
        c->owner[c->rows + r] = c->documents;
    }
}

void search_add(search_case *c, int64_t rows, int kind)
{
    size_t bytes = (size_t)kna__stored_row_bytes((uint32_t)c->type, (uint64_t)c->dim);
    char *data = malloc((size_t)rows * bytes + 1);
    float *scales = malloc((size_t)(rows + 1) * sizeof *scales), *row = malloc((size_t)c->dim * sizeof *row);
    for (int64_t r = 0; r < rows; r++) {
        draw(row, c->dim, kind);
        put_row(c, data + (size_t)r * bytes, &scales[r], row);
    }
    kna_store_rows of = { 0, 0, { .data = data, .type = c->type, .heads = 1, .rows = rows, .dim = c->dim } };
    of.rows.scales = c->type == KNA_I8 ? scales : NULL;
    char tags[32];
    snprintf(tags, sizeof tags, "%lld", (long long)c->documents);
    kna_document d = { .tags = tags };
    if (WELL(c->context, kna_store_add(c->store, &d, &of, 1, 0)) && WELL(c->context, kna_store_commit(c->store))) {
        grow(c, &of.rows);
        c->ids[c->documents] = d.id;
        c->removed[c->documents++] = false;
        c->rows += rows;
    }
    free(data);
    free(scales);
    free(row);
}

void search_remove(search_case *c, int64_t document)
{
    WELL(c->context, kna_store_remove(c->store, c->ids[document]));
    WELL(c->context, kna_store_commit(c->store));
    c->removed[document] = true;
}

bool search_index(search_case *c, int kind)
{
    kna_store_index_options o = KNA_STORE_INDEX_OPTIONS;
    o.kind = kind;
    o.metric = c->metric;
    return WELL(c->context, kna_store_index(c->store, 0, &o));
}

float *search_queries(const search_case *c, int64_t m, int kind)
{
    float *q = malloc((size_t)(m * c->dim + 1) * sizeof *q);
    for (int64_t i = 0; i < m; i++) {
        draw(q + i * c->dim, c->dim, kind);
        bool is_row = c->rows && test_below(4) == 0; /* a row itself: the nearest there can be, and distances of 0 */
        for (int64_t j = 0, row = is_row ? (int64_t)test_below((size_t)c->rows) : 0; is_row && j < c->dim; j++) {
            double x = c->x[row * c->dim + j];
            q[i * c->dim + j] = isfinite(x) ? (float)x : 1;
        }
    }
    return q;
}

/* ---- the truth */

static double score_of(const search_case *c, const float *q, const double *x)
{
    double inner = 0, qq = 0, xx = 0, way = 0;
    for (int64_t i = 0; i < c->dim; i++) {
        inner += (double)q[i] * x[i];
        qq += (double)q[i] * (double)q[i];
        xx += x[i] * x[i];
        way += ((double)q[i] - x[i]) * ((double)q[i] - x[i]);
    }
    if (!isfinite(xx)) return NAN;
    return c->metric == KNA_L2 ? -way : c->metric == KNA_IP ? inner : qq > 0 && xx > 0 ? inner / sqrt(qq) / sqrt(xx) : 0;
}

/* How far a score may be off for how it was added up; int8 is scaled in f32. */
static double doubt(const search_case *c, const float *q, int64_t row)
{
    double qq = 0, xx = 0, u = c->type == KNA_I8 || c->type == KNA_Q8_0 ? 0x1p-23 : 0x1p-50;
    for (int64_t i = 0; i < c->dim; i++) {
        qq += (double)q[i] * (double)q[i];
        xx += c->x[row * c->dim + i] * c->x[row * c->dim + i];
    }
    u *= c->type == KNA_I8 || c->type == KNA_Q8_0 ? 1 : (double)c->dim;
    double sizes = c->metric == KNA_L2 ? qq + xx : c->metric == KNA_IP ? sqrt(qq) * sqrt(xx) : 1;
    return 4 * u * sizes + DBL_MIN;
}

static int nearer(const void *a, const void *b)
{
    const truth *x = a, *y = b;
    return x->score != y->score ? (x->score < y->score) - (x->score > y->score) : (x->row > y->row) - (x->row < y->row);
}

int64_t search_truth(const search_case *c, const float *q, const bool *keep, truth *all)
{
    int64_t count = 0;
    for (int64_t r = 0; r < c->rows; r++) {
        int64_t d = c->owner[r];
        double score = score_of(c, q, c->x + r * c->dim);
        if (!c->removed[d] && (!keep || keep[d]) && !isnan(score)) all[count++] = (truth){ score, r };
    }
    qsort(all, (size_t)count, sizeof *all, nearer);
    return count;
}

static bool is_place(const search_case *c, const kna_hit *hit)
{
    int64_t first = hit->row;
    if (hit->row < 0 || hit->row >= c->rows) return false;
    while (first > 0 && c->owner[first - 1] == c->owner[hit->row]) first--;
    return hit->document == c->ids[c->owner[hit->row]] && hit->place == hit->row - first && hit->source == 0;
}

bool search_is_truth(const search_case *c, const float *q, const truth *all, int64_t there, const kna_hit *hits, int64_t count,
                     int64_t k, double beta)
{
    int64_t want = there < k ? there : k;
    double slack = 0;
    for (int64_t i = 0; i < want; i++) slack = fmax(slack, doubt(c, q, all[i].row));
    while (beta > 0 && want && all[want - 1].score < all[0].score - beta - slack) want--;
    int64_t least = want;
    while (beta > 0 && least && all[least - 1].score < all[0].score - beta + slack) least--;
    if (!EXPECT_THAT(count <= want && count >= least, "%lld hits, expected %lld", (long long)count, (long long)want)) return false;
    for (int64_t i = 0; i < count; i++) {
        double score = is_place(c, &hits[i]) ? score_of(c, q, c->x + hits[i].row * c->dim) : NAN;
        double rounding = 0x1p-23 * fabs(score) + 0x1p-149;
        double reported = fmin(fmax(score, -(double)FLT_MAX), (double)FLT_MAX);
        if (!EXPECT_THAT(fabs((double)hits[i].score - reported) <= slack + rounding, "hit %lld: row %lld, score %.9g, truly %.9g",
                         (long long)i, (long long)hits[i].row, (double)hits[i].score, score))
            return false;
        if (!EXPECT_THAT(hits[i].row == all[i].row || fabs(all[i].score - score) <= 2 * slack,
                         "hit %lld: row %lld with %.17g, expected row %lld with %.17g", (long long)i, (long long)hits[i].row, score,
                         (long long)all[i].row, all[i].score))
            return false;
        bool is_new = true;
        for (int64_t j = 0; j < i; j++) is_new = is_new && hits[j].row != hits[i].row;
        if (!EXPECT(is_new)) return false;
    }
    return true;
}

/* ---- asking */

kna_search *search_open(const search_case *c, kna_store *store, int index)
{
    kna_search *s = NULL;
    kna_search_options o = KNA_SEARCH_OPTIONS;
    o.metric = c->metric;
    o.index = index;
    WELL(c->context, kna_search_open(c->context, &s, store, 0, &o));
    return s;
}

int search_ask(kna_search *s, const search_case *c, const float *q, answer *to)
{
    kna_search_how how = KNA_SEARCH_HOW;
    kna_rows queries = { .data = q, .type = KNA_F32, .heads = 1, .rows = ANSWER_QUERIES, .dim = c->dim };
    memset(to, 0, sizeof *to);
    to->report.size = sizeof to->report;
    how.k = ANSWER_K;
    how.exact = 1;
    return kna_search_run(s, to->hits, to->counts, &queries, &how, &to->report);
}

bool search_same(const answer *a, const answer *b)
{
    return memcmp(a->hits, b->hits, sizeof a->hits) == 0 && memcmp(a->counts, b->counts, sizeof a->counts) == 0;
}
