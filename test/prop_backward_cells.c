/*
 * prop_backward_cells.c - gradients of stratified, centroid and control: the test finds by itself, in double precision, which keys and
 * means of cells a row's estimate is made of and how many each stands for, holds that fixed, and takes central differences of it.
 *
 * Power: numbers of gradients drawn at random, held in the mean over all cases to 4e-7 of the length of the drawn ones of their kind, each
 * case to 3e-6 (f32 cancels). That sees a cell's mean left
 * out, keys of the head not taken out of it, and a sample that stands for one key more.
 */
#include "backward_case.h"

#include "../src/attend/strata.h"
#include "../src/base/base.h"

/* ---- a row, as what is held fixed */

/* `weight` keys with the mean key and the mean value of those listed. */
typedef struct term {
    double weight;
    int64_t first, count;
} term;

typedef struct frozen {
    term *terms;
    int32_t *ids;
    int64_t count, held;
    bool is_clear; /* rounding in f32 chooses alike */
} frozen;

typedef struct study {
    random_case *c;
    const oracle *o;
    kna__problem problem;
    kna__strata strata;
    frozen *rows; /* (h, m) */
} study;

static void add_term(frozen *f, double weight, const int32_t *ids, int64_t count)
{
    f->terms[f->count++] = (term){ weight, f->held, count };
    memcpy(f->ids + f->held, ids, (size_t)count * sizeof *ids);
    f->held += count;
}

/* A cell of a row: its keys outside the head are tail[first .. first + rest - 1]. */
typedef struct cell {
    int64_t first, rest;
    double mean, mass;
    int64_t share;
} cell;

typedef struct maker {
    study *t;
    frozen *f;
    int64_t head, query, lo, hi;
    double *logits;
    bool *in_head;
    int32_t *of, *tail;
    cell *cells;
    int64_t count, rest;
    uint64_t counter;
} maker;

static double draw(maker *m)
{
    const random_case *c = m->t->c;
    uint64_t position = (uint64_t)(m->query + c->shape.n - c->shape.m + c->options.causal_shift + KNA_MAX_ROWS);
    return kna__uniform(c->options.seed, (uint64_t)m->head << 40 | position, m->counter++);
}

static void shuffle(maker *m, int32_t *keys, int64_t n, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t other = i + (int64_t)(draw(m) * (double)(n - i));
        int32_t key = keys[other];
        keys[other] = keys[i];
        keys[i] = key;
    }
}

/* Keys to cells by the largest unit that is seen whole. */
static void use_units(maker *m, int level, int64_t first, int64_t end)
{
    const kna__strata *s = &m->t->strata;
    int64_t rows = kna__strata_rows(level), kv_head = m->head / m->t->o->g;
    for (; first < end; first += rows) {
        int64_t slot = level * s->cells + first / KNA_BLOCK;
        if (first >= m->lo && first + rows <= m->hi && first + rows <= s->cells * KNA_BLOCK && s->formed[slot]) {
            for (int64_t x = slot; x < slot + rows / KNA_BLOCK; x++) {
                int32_t members = s->count[kv_head * KNA_STRATA_LEVELS * s->cells + x];
                const int32_t *ids = kna__strata_members(s, kv_head, (int32_t)x);
                for (int32_t i = 0; i < members; i++) m->of[ids[i]] = (int32_t)m->count;
                m->cells[m->count] = (cell){ .first = m->rest };
                for (int32_t i = 0; i < members; i++) m->tail[m->rest++] = ids[i]; /* the head is taken out later */
                m->cells[m->count].rest = members;
                m->count += members > 0;
            }
        } else if (level > 0) {
            use_units(m, level - 1, first, first + rows < end ? first + rows : end);
        }
    }
}

static int by_logit(const void *a, const void *b)
{
    double x = **(const double *const *)a, y = **(const double *const *)b;
    return x > y ? -1 : x < y ? 1 : *(const double *const *)a < *(const double *const *)b ? -1 : 1;
}

/* The k nearest; and what is in no cell. */
static void find_head(maker *m)
{
    int64_t n = m->t->c->shape.n, k = m->t->c->options.k_near;
    double **order = calloc((size_t)n, sizeof *order);
    int64_t seen = 0;
    for (int64_t j = m->lo; j < m->hi; j++) order[seen++] = m->logits + j;
    qsort(order, (size_t)seen, sizeof *order, by_logit);
    for (int64_t i = 0; i < seen && i < k; i++) m->in_head[order[i] - m->logits] = true;
    if (seen > k) m->f->is_clear &= *order[k - 1] - *order[k] > 1e-4;
    for (int64_t j = m->lo; j < m->hi; j++) m->in_head[j] |= m->of[j] < 0 || seen <= k;
    for (int32_t j = 0; j < n; j++)
        if (m->in_head[j]) add_term(m->f, 1, &j, 1);
    free(order);
}

static void find_tail(maker *m)
{
    int64_t rest = 0;
    for (int64_t x = 0; x < m->count; x++) {
        int64_t from = m->cells[x].first, members = m->cells[x].rest;
        m->cells[x] = (cell){ .first = rest };
        for (int64_t i = from; i < from + members; i++) {
            if (m->in_head[m->tail[i]]) continue;
            m->cells[x].mean += m->logits[m->tail[i]];
            m->tail[rest++] = m->tail[i];
        }
        m->cells[x].rest = rest - m->cells[x].first;
        m->cells[x].mean = m->cells[x].rest ? m->cells[x].mean / (double)m->cells[x].rest : -(double)INFINITY;
        m->cells[x].mass = m->cells[x].rest ? (double)m->cells[x].rest * exp(m->cells[x].mean) : 0;
    }
    m->rest = rest;
}

static bool is_near(double x, double y, double off)
{
    return fabs(x - y) <= off * (fabs(x) + fabs(y));
}

/* Heaviest first: of the samples left a part in proportion to what is left of mass, rounded; one at least, none too many. */
static void deal(maker *m, int32_t *order, int64_t count)
{
    int64_t samples = m->t->c->options.samples;
    for (int64_t i = 0; i < count && samples > 0; i++) {
        cell *x = &m->cells[order[i]];
        double left = 0;
        for (int64_t y = i; y < count; y++) left += m->cells[order[y]].mass;
        double part = (double)samples * x->mass / left;
        int64_t most = samples >= count - i ? samples - (count - i - 1) : samples;
        m->f->is_clear &= fabs(part - floor(part) - 0.5) > 1e-3;
        x->share = llround(part);
        x->share = x->share < 1 ? 1 : x->share < most ? x->share : most;
        x->share = x->share < x->rest ? x->share : x->rest;
        samples -= x->share;
        if (i + 1 < count) m->f->is_clear &= !is_near(x->mass, m->cells[order[i + 1]].mass, 1e-5);
    }
    for (int64_t i = 0; i < count && samples > 0; i++) {
        cell *x = &m->cells[order[i]];
        int64_t more = x->rest - x->share < samples ? x->rest - x->share : samples;
        x->share += more;
        samples -= more;
    }
}

static void stratified(maker *m)
{
    int32_t *order = calloc((size_t)m->count + 1, sizeof *order);
    int64_t count = 0;
    for (int64_t x = 0; x < m->count; x++) {
        if (!m->cells[x].rest) continue;
        int64_t at = count++;
        for (; at > 0 && m->cells[order[at - 1]].mass < m->cells[x].mass; at--) order[at] = order[at - 1];
        order[at] = (int32_t)x;
    }
    deal(m, order, count);
    for (int64_t i = 0; i < count; i++) {
        const cell *x = &m->cells[order[i]];
        if (!x->share) add_term(m->f, (double)x->rest, m->tail + x->first, x->rest);
        shuffle(m, m->tail + x->first, x->rest, x->share);
        for (int64_t s = 0; s < x->share; s++) add_term(m->f, (double)x->rest / (double)x->share, m->tail + x->first + s, 1);
    }
    free(order);
}

static void centroid(maker *m)
{
    double most = -(double)INFINITY, all = 0;
    for (int64_t x = 0; x < m->count; x++) most = fmax(most, m->cells[x].mean);
    for (int64_t x = 0; x < m->count; x++) all += m->cells[x].mass * exp(-most);
    for (int64_t i = 0; i < m->t->c->options.samples; i++) {
        double at = draw(m) * all, sum = 0;
        int64_t x = 0;
        while (sum + m->cells[x].mass * exp(-most) <= at) sum += m->cells[x++].mass * exp(-most);
        double into = (at - sum) / (m->cells[x].mass * exp(-most));
        m->f->is_clear &= into > 1e-5 && into < 1 - 1e-5;
        int64_t place = (int64_t)(draw(m) * (double)m->cells[x].rest);
        double chance = m->cells[x].mass * exp(-most) / all / (double)m->cells[x].rest;
        add_term(m->f, 1 / chance / (double)m->t->c->options.samples, m->tail + m->cells[x].first + place, 1);
    }
}

static void control(maker *m)
{
    int64_t count = m->t->c->options.samples < m->rest ? m->t->c->options.samples : m->rest;
    double each = (double)m->rest / (double)count, tail = 0;
    frozen before = *m->f;
    int32_t *drawn = calloc((size_t)m->rest + 1, sizeof *drawn);
    memcpy(drawn, m->tail, (size_t)m->rest * sizeof *drawn);
    shuffle(m, drawn, m->rest, count);
    for (int64_t x = 0; x < m->count; x++) {
        double weight = (double)m->cells[x].rest;
        for (int64_t i = 0; i < count; i++) weight -= m->of[drawn[i]] == x ? each : 0;
        if (m->cells[x].rest) add_term(m->f, weight, m->tail + m->cells[x].first, m->cells[x].rest);
        if (m->cells[x].rest) tail += weight * exp(m->cells[x].mean);
    }
    for (int64_t i = 0; i < count; i++) {
        add_term(m->f, each, drawn + i, 1);
        tail += each * exp(m->logits[drawn[i]]);
    }
    m->f->is_clear &= fabs(tail) > 1e-6;
    if (tail <= 0) { /* the means alone */
        m->f->count = before.count, m->f->held = before.held;
        for (int64_t x = 0; x < m->count; x++)
            if (m->cells[x].rest) add_term(m->f, (double)m->cells[x].rest, m->tail + m->cells[x].first, m->cells[x].rest);
    }
    free(drawn);
}

static void make_row(study *t, int64_t row)
{
    int64_t n = t->c->shape.n;
    maker m = { .t = t, .f = &t->rows[row], .head = row / t->c->shape.m, .query = row % t->c->shape.m };
    kna__visible(&t->problem, m.query, &m.lo, &m.hi);
    m.logits = calloc((size_t)n, sizeof *m.logits), m.in_head = calloc((size_t)n, 1), m.of = calloc((size_t)n, sizeof *m.of);
    m.tail = calloc((size_t)n, sizeof *m.tail), m.cells = calloc((size_t)n, sizeof *m.cells);
    *m.f = (frozen){ calloc((size_t)(2 * n + t->c->options.samples), sizeof(term)),
                     calloc((size_t)(3 * n + t->c->options.samples), sizeof(int32_t)), 0, 0, true };
    oracle_logits(t->o, m.head, m.query, m.logits);
    for (int64_t j = 0; j < n; j++) m.of[j] = -1;
    use_units(&m, KNA_STRATA_LEVELS - 1, m.lo / KNA_SEGMENT * KNA_SEGMENT, m.hi);
    find_head(&m);
    find_tail(&m);
    if (m.rest && t->c->options.method == KNA_STRATIFIED) stratified(&m);
    if (m.rest && t->c->options.method == KNA_CENTROID) centroid(&m);
    if (m.rest && t->c->options.method == KNA_CONTROL) control(&m);
    free(m.logits), free(m.in_head), free(m.of), free(m.tail), free(m.cells);
}

/* ---- what it computes */

static double row_loss(const study *t, int64_t row, const double *dout)
{
    const oracle *o = t->o;
    const frozen *f = &t->rows[row];
    int64_t head = row / o->m, base = head / o->g * o->n;
    double sum = o->options.sinks ? exp((double)o->options.sinks[head]) : 0, loss = 0;
    for (int64_t i = 0; i < f->count; i++) {
        double logit = 0, value = 0, inverse = 1 / (double)f->terms[i].count;
        for (int64_t x = f->terms[i].first; x < f->terms[i].first + f->terms[i].count; x++) {
            for (int64_t c = 0; c < o->d; c++)
                logit += inverse * o->scale * o->q[row * o->d + c] * o->k[(base + f->ids[x]) * o->d + c];
            for (int64_t c = 0; c < o->dv; c++) value += inverse * dout[row * o->dv + c] * o->v[(base + f->ids[x]) * o->dv + c];
        }
        sum += f->terms[i].weight * exp(logit);
        loss += f->terms[i].weight * exp(logit) * value;
    }
    return sum != 0 ? loss / sum : 0;
}

static double loss_of(const study *t, const double *dout)
{
    double loss = 0;
    for (int64_t row = 0; row < t->c->shape.h * t->c->shape.m; row++) loss += row_loss(t, row, dout);
    return loss;
}

static double difference(const study *t, const double *dout, double *x)
{
    const double step = 1e-4, before = *x;
    *x = before + step;
    double up = loss_of(t, dout);
    *x = before - step;
    double down = loss_of(t, dout);
    *x = before;
    return (up - down) / (2 * step);
}

static double off_sum;
static int off_count;

static void expect_differences(const study *t, const double *dout, double *x, const float *got, int64_t count, const char *name)
{
    enum { TRIED = 240 / RANDOM_SHARE };
    double off = 0, all = 0;
    for (int i = 0; i < TRIED; i++) {
        int64_t at = (int64_t)test_below((size_t)count);
        double truth = difference(t, dout, x + at);
        off += (truth - (double)got[at]) * (truth - (double)got[at]);
        all += truth * truth;
    }
    off_sum += all > 0 ? sqrt(off / all) : 0;
    off_count++;
    EXPECT_THAT(sqrt(off) <= 3e-6 * sqrt(all) + 1e-9, "%s: off by %.3g of %.3g: %.3g; %s", name, sqrt(off), sqrt(all),
                sqrt(off / all), case_text(t->c));
}

/* ---- tests */

static void options_of(random_case *c, int round)
{
    c->options.method = KNA_STRATIFIED + round % 3;
    c->options.k_near = 1 + (int64_t)test_below(40);
    c->options.samples = 1 + (int64_t)test_below(round % 4 ? 60 : 400);
    c->options.seed = test_random();
    c->options.causal = test_below(2) > 0;
    if (test_below(3) == 0) c->options.window = 300 + (int64_t)test_below(400);
    if (test_below(3) == 0) case_per_head(c, &c->options.sinks, -1, 2);
}

/* The largest unit is a segment of 1,024 rows: sizes below and above it, and of pieces. */
static void frozen_forward(void)
{
    static const int64_t sizes[] = { 90, 400, 700, 1300 };
    int clear = 0, tried = rounds(48), with_means = 0;
    for (int i = 0; i < tried; i++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 3, sizes[i / 3 % 4], 5, 4 });
        case_rows(&c, &c.q, KNA_F32, (int)test_below(LAYOUT_COUNT), 1.5);
        case_rows(&c, &c.k, i % 5 == 4 ? KNA_F16 : KNA_F32, (int)test_below(LAYOUT_COUNT), 1);
        backward_case b = backward_begin(&c);
        options_of(&c, i);
        b.gradients.dsinks = c.options.sinks ? case_hold(&c, (size_t)c.shape.h * sizeof(float)) : NULL;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        study t = { .c = &c, .o = o, .rows = case_hold(&c, (size_t)(c.shape.h * c.shape.m) * sizeof(frozen)) };
        kna_index *index = NULL;
        EXPECT_INT(kna__problem_init(&t.problem, context_best(), &c.out, c.lse, &c.q, &c.k, &c.v, &c.options), KNA_OK);
        EXPECT_INT(kna_index_new(context_best(), &index, KNA_TOPK, 2, 5, 4), KNA_OK);
        EXPECT_INT(kna_index_update(context_best(), index, &c.k, &c.v, 0, c.shape.n), KNA_OK);
        EXPECT_INT(kna__strata_new(&t.problem, index, &t.strata), KNA_OK);
        bool is_clear = backward_both(&b, context_best());
        for (int64_t row = 0; row < c.shape.h * c.shape.m; row++) {
            make_row(&t, row);
            is_clear &= t.rows[row].is_clear;
            with_means += t.rows[row].held > t.rows[row].count;
        }
        clear += is_clear;
        if (is_clear) {
            float *got = backward_copy(&b.gradients, c.shape);
            int64_t of_q = c.shape.h * c.shape.m * 5, of_k = 2 * c.shape.n * 5;
            expect_differences(&t, b.dout_numbers, o->q, got, of_q, "dq");
            expect_differences(&t, b.dout_numbers, o->k, got + of_q, of_k, "dk");
            expect_differences(&t, b.dout_numbers, o->v, got + of_q + of_k, 2 * c.shape.n * 4, "dv");
            free(got);
        }
        for (int64_t row = 0; row < c.shape.h * c.shape.m; row++) free(t.rows[row].terms), free(t.rows[row].ids);
        kna__strata_free(&t.strata);
        kna_index_free(index);
        oracle_free(o);
        free(b.dout_numbers);
        case_end(&c);
    }
    EXPECT_THAT(clear > tried / 2, "only %d of %d had clear sets", clear, tried);
    EXPECT_THAT(off_sum <= 4e-7 * off_count, "off by %.3g in the mean of %d", off_sum / off_count, off_count);
    EXPECT_THAT(with_means > tried, "only %d rows had means of cells", with_means);
}

/* As many samples as there are keys leave nothing to means: of stratified and control, the gradients of exact attention. */
static void all_is_exact(void)
{
    for (int method = KNA_STRATIFIED; method <= KNA_CONTROL; method += 2) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 4, 2, 40, 600, 16, 8 });
        backward_case b = backward_begin(&c);
        c.options.causal = 1;
        oracle *o = oracle_new(&c.q, &c.k, &c.v, &c.options);
        gradient_oracle *truth = gradient_oracle_new(o, b.dout_numbers);
        c.options.method = method;
        c.options.k_near = 20;
        c.options.samples = 600;
        EXPECT(backward_both(&b, context_best()) && backward_matches(&b, truth));
        gradient_oracle_free(truth);
        oracle_free(o);
        free(b.dout_numbers);
        case_end(&c);
    }
}

/* Rows absent from the caller's index break up units, and leave more keys to no cell than there are otherwise. */
static void absent_rows(void)
{
    for (int method = KNA_STRATIFIED; method <= KNA_CONTROL; method++) {
        random_case c = { .guarded = false };
        case_begin(&c, (shape){ 2, 1, 6, 600, 8, 8 });
        backward_case b = backward_begin(&c);
        EXPECT_INT(kna_index_new(context_best(), &c.options.index, KNA_TOPK, 1, 8, 8), KNA_OK);
        EXPECT_INT(kna_index_update(context_best(), c.options.index, &c.k, &c.v, 0, 600), KNA_OK);
        for (int64_t row = 5; row < 600; row += 16)
            EXPECT_INT(kna_index_remove(context_best(), c.options.index, row, row < 300 ? 1 : 0), KNA_OK);
        c.options.method = method;
        c.options.k_near = 5;
        c.options.samples = 20;
        if (EXPECT(backward_both(&b, context_best()))) {
            for (int64_t row = 5; row < 300; row += 16) {
                EXPECT(b.gradients.dk.data[row * (b.gradients.dk.row_stride_bytes / 4)] == 0);
            }
        }
        kna_index_free(c.options.index);
        free(b.dout_numbers);
        case_end(&c);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(frozen_forward);
    TEST(all_is_exact);
    TEST(absent_rows);
    contexts_free();
    return test_end();
}
