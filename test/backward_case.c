/* backward_case.c - see backward_case.h. */
#include "test.h"

#include "backward_case.h"

/* Rows with some numbers between them, which nobody may touch. */
static kna_out_rows padded(random_case *c, int64_t heads, int64_t rows, int64_t dim)
{
    int64_t stride = dim + (int64_t)test_below(3) * 3, head = stride * rows + (int64_t)test_below(2) * 5;
    float *data = case_hold(c, (size_t)(heads * head + stride + 1) * sizeof *data);
    for (int64_t i = 0; i < heads * head + stride; i++) data[i] = 7;
    return (kna_out_rows){ data, head * 4, stride * 4 };
}

static float *number_at(const kna_out_rows *rows, int64_t head, int64_t row, int64_t column)
{
    return rows->data + head * (rows->head_stride_bytes / 4) + row * (rows->row_stride_bytes / 4) + column;
}

backward_case backward_begin(random_case *c)
{
    shape s = c->shape;
    backward_case b = { .c = c };
    c->options.method = KNA_EXACT;
    b.dout = (kna_rows){ NULL, KNA_F32, s.h, s.m, s.dv, 0, 0, NULL };
    case_rows(c, &b.dout, random_query_type(), (int)test_below(LAYOUT_COUNT), 1);
    b.dout_numbers = calloc((size_t)(s.h * s.m * s.dv) + 1, sizeof(double));
    for (int64_t i = 0; i < s.h * s.m * s.dv; i++) {
        b.dout_numbers[i] = oracle_number(&b.dout, i / s.dv / s.m, i / s.dv % s.m, i % s.dv);
    }
    b.out = (kna_rows){ c->out.data, KNA_F32, s.h, s.m, s.dv, c->out.head_stride_bytes, c->out.row_stride_bytes, NULL };
    b.gradients.dq = padded(c, s.h, s.m, s.d);
    b.gradients.dk = padded(c, s.h_kv, s.n, s.d);
    b.gradients.dv = padded(c, s.h_kv, s.n, s.dv);
    b.gradients.dsinks = c->options.sinks ? case_hold(c, (size_t)s.h * sizeof(float)) : NULL;
    return b;
}

int backward_run(const backward_case *b, kna_context *context, const kna_gradients *gradients)
{
    const random_case *c = b->c;
    return kna_attend_backward(context, gradients, &b->dout, &b->out, c->lse, &c->q, &c->k, &c->v, &c->options);
}

static bool rows_match(const backward_case *b, const kna_out_rows *rows, int64_t heads, int64_t count, int64_t dim,
                       const double *wanted, const double *slack, const char *name)
{
    for (int64_t i = 0; i < heads * count; i++) { /* one expectation a row: there are millions of numbers */
        const float *got = number_at(rows, i / count, i % count, 0);
        bool good = true;
        int64_t c = 0;
        for (; c < dim && good; c++) good = fabs((double)got[c] - wanted[i * dim + c]) <= slack[i * dim + c] + 1e-30;
        if (!test_check(good, __FILE__, __LINE__, "%s[%lld,%lld,%lld]: %.9g, expected %.9g +- %.2g; %s", name,
                        (long long)(i / count), (long long)(i % count), (long long)c - 1, (double)got[c - 1],
                        wanted[i * dim + c - 1], slack[i * dim + c - 1], case_text(b->c))) {
            return false;
        }
        for (; c < rows->row_stride_bytes / 4 && good; c++) good = got[c] == 7.0f; /* what is between the rows */
        if (!EXPECT(good)) return false;
    }
    return true;
}

bool backward_matches(const backward_case *b, const gradient_oracle *g)
{
    shape s = b->c->shape;
    bool good = rows_match(b, &b->gradients.dq, s.h, s.m, s.d, g->dq, g->dq_slack, "dq") &&
                rows_match(b, &b->gradients.dk, s.h_kv, s.n, s.d, g->dk, g->dk_slack, "dk") &&
                rows_match(b, &b->gradients.dv, s.h_kv, s.n, s.dv, g->dv, g->dv_slack, "dv");
    for (int64_t head = 0; head < s.h && good && b->gradients.dsinks; head++) {
        good = EXPECT_NEAR((double)b->gradients.dsinks[head], g->dsinks[head], g->dsinks_slack[head] + 1e-30);
    }
    return good;
}

int64_t backward_numbers(shape s)
{
    return s.h * s.m * s.d + s.h_kv * s.n * (s.d + s.dv);
}

bool backward_both(const backward_case *b, kna_context *context)
{
    bool good = EXPECT_INT(case_attend(b->c, context, NULL), KNA_OK) && EXPECT_INT(backward_run(b, context, &b->gradients), KNA_OK);
    if (!good) printf("  on cpu %s: %s\n", kna_cpu_name(kna_context_cpu(context)), kna_context_message(context));
    return good;
}

float *backward_copy(const kna_gradients *g, shape s)
{
    int64_t dims[] = { s.d, s.d, s.dv }, counts[] = { s.m, s.n, s.n }, heads[] = { s.h, s.h_kv, s.h_kv };
    const kna_out_rows *rows[] = { &g->dq, &g->dk, &g->dv };
    float *copy = calloc((size_t)backward_numbers(s) + 1, sizeof *copy), *at = copy;
    for (int x = 0; x < 3; x++) {
        for (int64_t i = 0; i < heads[x] * counts[x] * dims[x]; i++) {
            *at++ = *number_at(rows[x], i / dims[x] / counts[x], i / dims[x] % counts[x], i % dims[x]);
        }
    }
    return copy;
}

void backward_expect_same_bits(const backward_case *b)
{
    static const int threads[] = { 1, 2, 3, 7 };
    shape s = b->c->shape;
    float *first = NULL;
    size_t bytes = (size_t)backward_numbers(s) * sizeof(float);
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        kna_context_options options = KNA_CONTEXT_OPTIONS;
        kna_context *context;
        options.threads = threads[i];
        EXPECT_INT(kna_context_new(&context, &options), KNA_OK);
        EXPECT_INT(case_attend(b->c, context, NULL), KNA_OK);
        EXPECT_INT(backward_run(b, context, &b->gradients), KNA_OK);
        float *now = backward_copy(&b->gradients, s);
        if (first) EXPECT(memcmp(first, now, bytes) == 0);
        if (first) free(now);
        first = first ? first : now;
        kna_context_free(context);
    }
    free(first);
}

/* Weights of a row add up to 1, so the gradients of values add up to those of the outputs. */
void backward_expect_values_add_up(const backward_case *b)
{
    shape s = b->c->shape;
    int64_t rows = s.h / s.h_kv * s.m;
    for (int64_t i = 0; i < s.h_kv * s.dv; i++) {
        int64_t head = i / s.dv, column = i % s.dv;
        double in = 0, out = 0;
        for (int64_t row = 0; row < rows; row++) in += b->dout_numbers[(head * rows + row) * s.dv + column];
        for (int64_t row = 0; row < s.n; row++) out += (double)*number_at(&b->gradients.dv, head, row, column);
        EXPECT_NEAR(out, in, 1e-3);
    }
}

void backward_expect_one_at_a_time(const backward_case *b)
{
    shape s = b->c->shape;
    if (!backward_both(b, context_best())) return;
    float *together = backward_copy(&b->gradients, s);
    for (int x = 0; x < 3; x++) {
        kna_gradients one = { .dsinks = NULL };
        if (x == 0) one.dq = b->gradients.dq;
        if (x == 1) one.dk = b->gradients.dk;
        if (x == 2) one.dv = b->gradients.dv;
        memset(x == 0 ? one.dq.data : x == 1 ? one.dk.data : one.dv.data, 0, sizeof(float));
        EXPECT_INT(backward_run(b, context_best(), &one), KNA_OK);
    }
    float *apart = backward_copy(&b->gradients, s);
    EXPECT(memcmp(together, apart, (size_t)backward_numbers(s) * sizeof(float)) == 0);
    free(together);
    free(apart);
}

void backward_expect_refused(const backward_case *b, int status, const char *words)
{
    EXPECT_INT(backward_run(b, context_best(), &b->gradients), status);
    EXPECT_THAT(strstr(kna_context_message(context_best()), words) != NULL, "message: %s", kna_context_message(context_best()));
}

/* ---- central differences */

static double difference(const oracle *o, double *x, const double *dout, const double *extra, double h)
{
    double kept = *x;
    *x = kept + h;
    double above = gradient_oracle_loss_with(o, dout, extra);
    *x = kept - h;
    double below = gradient_oracle_loss_with(o, dout, extra);
    *x = kept;
    return (above - below) / (2 * h);
}

/* All numbers, relative to the largest. */
static void agree(const oracle *o, double *x, const double *gradient, int64_t n, const double *dout, const double *extra,
                  double tolerance, const char *name)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(gradient[i]));
    for (int64_t i = 0; i < n; i++) {
        double by_difference = difference(o, x + i, dout, extra, 3e-5);
        if (!test_check(fabs(by_difference - gradient[i]) <= tolerance * most, __FILE__, __LINE__,
                        "%s[%lld]: %.10g, by differences %.10g", name, (long long)i, gradient[i], by_difference)) {
            return;
        }
    }
}

void oracle_expect_differences(oracle *o, const double *dout, const double *extra, double tolerance)
{
    gradient_oracle *g = gradient_oracle_with(o, dout, extra);
    agree(o, o->q, g->dq, o->h * o->m * o->d, dout, extra, tolerance, "dq");
    agree(o, o->k, g->dk, o->h_kv * o->n * o->d, dout, extra, tolerance, "dk");
    agree(o, o->v, g->dv, o->h_kv * o->n * o->dv, dout, extra, tolerance, "dv");
    gradient_oracle_free(g);
}
