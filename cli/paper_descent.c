/*
 * paper_descent.c - gradient descent with gradients that are estimates. Operands as in the paper: n = 100, d = 3, all N(0, 2^2), a label and
 * a fixed direction; queries, keys and values are learned.
 */
#include "paper.h"

#include <math.h>
#include <string.h>

/* Binary cross-entropy of <out, w> against the labels, or half its squared distance from 2 label - 1; into dout its gradient. */
static double loss_of(paper_head *h, const paper_setup *s, int is_squared)
{
    double loss = 0;
    for (int64_t i = 0; i < h->n; i++) {
        const double label = paper_uniform(s->seed, 20, (uint64_t)i) < 0.5 ? 0 : 1;
        double z = 0;
        for (int64_t c = 0; c < h->d; c++) z += (double)h->out[i * h->d + c] * paper_normal(s->seed, 21, (uint64_t)c);
        const double p = 1 / (1 + exp(-z)), off = is_squared ? z - (2 * label - 1) : p - label;
        loss += is_squared ? off * off / 2 : log1p(exp(-fabs(z))) + (label > 0 ? fmax(-z, 0) : fmax(z, 0));
        for (int64_t c = 0; c < h->d; c++) h->dout[i * h->d + c] = (float)(off / (double)h->n * paper_normal(s->seed, 21, (uint64_t)c));
    }
    return loss / (double)h->n;
}

static void step(float *x, const float *by, double rate, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] -= (float)rate * by[i];
}

/* The loss is always that of exact attention: it is what is learned that counts. */
static int descend(paper_table *table, paper_head *h, const paper_setup *s, const char *series, const kna_attend_options *how, int is_squared)
{
    const kna_attend_options exact = KNA_ATTEND_OPTIONS;
    kna_attend_options options = *how;
    paper_head_fill(h->q, h, s->seed, 22, 2);
    paper_head_fill(h->k, h, s->seed, 23, 2);
    paper_head_fill(h->v, h, s->seed, 24, 2);
    for (int64_t i = 0; i <= s->steps; i++) {
        int code = paper_head_attend(h, s, &exact);
        if (code != CLI_OK) return code;
        const double loss = loss_of(h, s, is_squared);
        if (i % (s->steps / 30 > 0 ? s->steps / 30 : 1) == 0) {
            paper_row *row = paper_add(table, series);
            if (!row) return CLI_FAILED;
            row->values[0] = (double)i;
            row->values[1] = loss;
        }
        options.seed = s->seed + (uint64_t)i;
        const int status = paper_head_differentiate(h, s, &options);
        if (status != KNA_OK) return cli_status(s->context, status);
        step(h->q, h->dq, 0.5, h->n * h->d);
        step(h->k, h->dk, 0.5, h->n * h->d);
        step(h->v, h->dv, 0.5, h->n * h->d);
    }
    return CLI_OK;
}

int paper_descent(paper_table *table, const paper_setup *s)
{
    static const int64_t draws[] = { 0, 4, 32 };
    paper_head h;
    int code = paper_head_new(&h, 100, 3);
    for (int is_squared = 0; is_squared < 2 && code == CLI_OK; is_squared++) {
        const char *of = is_squared ? "squared" : "cross-entropy";
        for (int i = 0; i < 3 && code == CLI_OK; i++) {
            const int64_t samples = draws[i];
            kna_attend_options options = KNA_ATTEND_OPTIONS;
            char series[PAPER_NAME];
            options.method = samples ? KNA_GUMBEL : KNA_EXACT;
            options.k_near = 10;
            options.samples = samples;
            snprintf(series, sizeof series, samples ? "%s, chain of %d" : "%s, exact", of, (int)samples);
            code = descend(table, &h, s, series, &options, is_squared);
        }
    }
    paper_head_free(&h);
    return code;
}
