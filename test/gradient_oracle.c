/* gradient_oracle.c - see gradient_oracle.h. */
#include "test.h"

#include "gradient_oracle.h"

#define U 0x1p-24

static void logits_of(const oracle *o, int64_t head, int64_t query, const double *extra, double *logits)
{
    oracle_logits(o, head, query, logits);
    for (int64_t j = 0; extra && j < o->n; j++) logits[j] += extra[(head * o->m + query) * o->n + j];
}

double gradient_oracle_loss_with(const oracle *o, const double *dout, const double *extra)
{
    double *logits = malloc((size_t)(o->n + 1) * sizeof *logits), *out = malloc((size_t)o->dv * sizeof *out), loss = 0;
    for (int64_t row = 0; row < o->h * o->m; row++) {
        logits_of(o, row / o->m, row % o->m, extra, logits);
        oracle_mix(o, row / o->m, logits, out);
        for (int64_t c = 0; c < o->dv; c++) loss += dout[row * o->dv + c] * out[c];
    }
    free(logits);
    free(out);
    return loss;
}

double gradient_oracle_loss(const oracle *o, const double *dout)
{
    return gradient_oracle_loss_with(o, dout, NULL);
}

static double *numbers(int64_t n)
{
    return calloc((size_t)n + 1, sizeof(double));
}

/* One query row and what it adds to the gradients. */
typedef struct one_row {
    int64_t head, query;
    const double *q, *dout;
    double *logits, *out;
    double lse, delta, delta_most; /* <dout, out>, and a bound of what it is made of */
    double slack;                  /* relative error of a weight in f32 */
} one_row;

static double dot(const double *a, const double *b, int64_t n, double *most)
{
    double sum = 0;
    *most = 0;
    for (int64_t c = 0; c < n; c++) {
        sum += a[c] * b[c];
        *most += fabs(a[c] * b[c]);
    }
    return sum;
}

/* The derivative of a logit by its product, from the logit's capped value. */
static double cap_slope(const oracle *o, const one_row *row, int64_t key)
{
    double cap = (double)o->options.softcap, unused;
    if (!(cap > 0)) return 1;
    const double *k = o->k + (row->head / o->g * o->n + key) * o->d;
    double t = tanh(o->scale * dot(row->q, k, o->d, &unused) / cap);
    return 1 - t * t;
}

static void add_pair(const oracle *o, gradient_oracle *g, const one_row *row, int64_t key)
{
    int64_t kv_row = row->head / o->g * o->n + key, q_row = row->head * o->m + row->query;
    const double *k = o->k + kv_row * o->d, *v = o->v + kv_row * o->dv;
    double most, weight = exp(row->logits[key] - row->lse), product = dot(row->dout, v, o->dv, &most);
    double slope = weight * (product - row->delta) * cap_slope(o, row, key) * o->scale;
    double slack = weight * (most + row->delta_most) * row->slack * fabs(o->scale);
    for (int64_t c = 0; c < o->dv; c++) {
        g->dv[kv_row * o->dv + c] += weight * row->dout[c];
        g->dv_slack[kv_row * o->dv + c] += weight * fabs(row->dout[c]) * row->slack;
    }
    for (int64_t c = 0; c < o->d; c++) {
        g->dq[q_row * o->d + c] += slope * k[c];
        g->dq_slack[q_row * o->d + c] += slack * fabs(k[c]);
        g->dk[kv_row * o->d + c] += slope * row->q[c];
        g->dk_slack[kv_row * o->d + c] += slack * fabs(row->q[c]);
    }
}

static void add_row(const oracle *o, gradient_oracle *g, one_row *row, const double *extra)
{
    logits_of(o, row->head, row->query, extra, row->logits);
    row->lse = oracle_mix(o, row->head, row->logits, row->out);
    if (row->lse == -(double)INFINITY) return;
    double unused;
    row->delta = dot(row->dout, row->out, o->dv, &unused);
    row->delta_most = 0;
    for (int64_t c = 0; c < o->dv; c++) row->delta_most += fabs(row->dout[c]) * o->v_most[row->head / o->g];
    row->slack = 2e-5 + 3 * (oracle_product_slack(o, row->head, row->query, row->logits) +
                             oracle_finish_slack(o, row->head, row->query, row->logits) + U * fabs(row->lse));
    for (int64_t key = 0; key < o->n; key++) {
        if (row->logits[key] > -(double)INFINITY) add_pair(o, g, row, key);
    }
    if (o->options.sinks) {
        double share = exp((double)o->options.sinks[row->head] - row->lse);
        g->dsinks[row->head] -= share * row->delta;
        g->dsinks_slack[row->head] += share * row->delta_most * row->slack;
    }
}

gradient_oracle *gradient_oracle_empty(const oracle *o)
{
    gradient_oracle *g = calloc(1, sizeof *g);
    int64_t q = o->h * o->m * o->d, k = o->h_kv * o->n * o->d, v = o->h_kv * o->n * o->dv;
    *g = (gradient_oracle){ numbers(q), numbers(k), numbers(v), numbers(o->h), numbers(q), numbers(k), numbers(v), numbers(o->h) };
    return g;
}

gradient_oracle *gradient_oracle_new(const oracle *o, const double *dout)
{
    return gradient_oracle_with(o, dout, NULL);
}

gradient_oracle *gradient_oracle_with(const oracle *o, const double *dout, const double *extra)
{
    gradient_oracle *g = gradient_oracle_empty(o);
    one_row row = { .logits = numbers(o->n), .out = numbers(o->dv) };
    for (int64_t i = 0; i < o->h * o->m; i++) {
        row.head = i / o->m;
        row.query = i % o->m;
        row.q = o->q + i * o->d;
        row.dout = dout + i * o->dv;
        add_row(o, g, &row, extra);
    }
    free(row.logits);
    free(row.out);
    return g;
}

void gradient_oracle_free(gradient_oracle *g)
{
    double *const all[] = { g->dq, g->dk, g->dv, g->dsinks, g->dq_slack, g->dk_slack, g->dv_slack, g->dsinks_slack };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    free(g);
}
