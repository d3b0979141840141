/* oracle.c - see oracle.h. */
#include "test.h"

#include "oracle.h"

#define U 0x1p-24

double oracle_f16(uint16_t bits)
{
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double sign = bits >> 15 ? -1.0 : 1.0;
    if (exponent == 31) return fraction ? (double)NAN : sign * (double)INFINITY;
    return sign * (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
}

/* By search: the neighbour with the smaller distance, the even one of two equally near. */
uint16_t oracle_to_f16(float x)
{
    double magnitude = fabs((double)x);
    unsigned low = 0, high = 0x7bff;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (oracle_f16((uint16_t)middle) <= magnitude) {
            low = middle;
        } else {
            high = middle;
        }
    }
    double below = magnitude - oracle_f16((uint16_t)low), above = oracle_f16((uint16_t)high) - magnitude;
    unsigned nearest = below < above || (below == above && low % 2 == 0) ? low : high;
    return (uint16_t)(nearest | (signbit(x) ? 0x8000u : 0u));
}

static double number_f32(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

double oracle_number(const kna_rows *rows, int64_t head, int64_t row, int64_t column)
{
    int64_t row_bytes = rows->row_stride_bytes ? rows->row_stride_bytes : (int64_t)kna_type_row_bytes(rows->type, rows->dim);
    int64_t head_bytes = rows->head_stride_bytes ? rows->head_stride_bytes : row_bytes * rows->rows;
    const unsigned char *at = (const unsigned char *)rows->data + head * head_bytes + row * row_bytes;
    uint32_t word = 0;
    uint16_t half = 0;
    switch (rows->type) {
    case KNA_F32:
        memcpy(&word, at + 4 * column, sizeof word);
        return number_f32(word);
    case KNA_F16:
        memcpy(&half, at + 2 * column, sizeof half);
        return oracle_f16(half);
    case KNA_BF16:
        memcpy(&half, at + 2 * column, sizeof half);
        return number_f32((uint32_t)half << 16);
    case KNA_I8:
        return (double)rows->scales[head * rows->rows + row] * (double)(signed char)at[column];
    default: /* KNA_Q8_0 */
        memcpy(&half, at + column / 32 * 34, sizeof half);
        return oracle_f16(half) * (double)(signed char)at[column / 32 * 34 + 2 + column % 32];
    }
}

static double *read_all(const kna_rows *rows)
{
    double *numbers = malloc((size_t)(rows->heads * rows->rows * rows->dim + 1) * sizeof *numbers), *at = numbers;
    for (int64_t head = 0; head < rows->heads; head++) {
        for (int64_t row = 0; row < rows->rows; row++) {
            for (int64_t column = 0; column < rows->dim; column++) *at++ = oracle_number(rows, head, row, column);
        }
    }
    return numbers;
}

oracle *oracle_new(const kna_rows *q, const kna_rows *k, const kna_rows *v, const kna_attend_options *options)
{
    oracle *o = calloc(1, sizeof *o);
    o->h = q->heads;
    o->h_kv = k->heads;
    o->g = o->h / o->h_kv;
    o->m = q->rows;
    o->n = k->rows;
    o->d = q->dim;
    o->dv = v->dim;
    o->options = *options;
    o->scale = options->scale != 0 ? (double)options->scale : 1 / sqrt((double)o->d);
    o->q = read_all(q);
    o->k = read_all(k);
    o->v = read_all(v);
    o->v_most = calloc((size_t)o->h_kv, sizeof *o->v_most);
    for (int64_t i = 0; i < o->h_kv * o->n * o->dv; i++) {
        double most = o->v_most[i / (o->n * o->dv)], x = fabs(o->v[i]);
        if (isfinite(x) && x > most) o->v_most[i / (o->n * o->dv)] = x;
    }
    return o;
}

void oracle_free(oracle *o)
{
    if (!o) return;
    free(o->q);
    free(o->k);
    free(o->v);
    free(o->v_most);
    free(o);
}

int64_t oracle_position(const oracle *o, int64_t query)
{
    return query + (o->n - o->m) + o->options.causal_shift;
}

double oracle_mask(const oracle *o, int64_t head, int64_t query, int64_t key)
{
    const kna_mask *mask = &o->options.mask;
    if (!mask->data) return 0;
    int64_t number = mask->type == KNA_F32 ? 4 : 2;
    int64_t row_bytes = mask->row_stride_bytes ? mask->row_stride_bytes : number * o->n;
    int64_t head_bytes = mask->head_stride_bytes ? mask->head_stride_bytes : row_bytes * o->m;
    int64_t heads = mask->heads ? mask->heads : 1;
    const char *at = (const char *)mask->data + head % heads * head_bytes + query * row_bytes + key * number;
    if (mask->type == KNA_F32) {
        float x;
        memcpy(&x, at, sizeof x);
        return (double)x;
    }
    uint16_t half;
    memcpy(&half, at, sizeof half);
    return oracle_f16(half);
}

bool oracle_sees(const oracle *o, int64_t head, int64_t query, int64_t key)
{
    int64_t position = oracle_position(o, query);
    if (o->absent && o->absent[key]) return false;
    if (o->options.causal && key > position) return false;
    if (o->options.window > 0 && !((double)key > (double)position - (double)o->options.window)) return false;
    return oracle_mask(o, head, query, key) > -(double)INFINITY;
}

double oracle_finish(const oracle *o, int64_t head, int64_t query, int64_t key, double product)
{
    double logit = product, cap = (double)o->options.softcap;
    if (cap > 0) logit = cap * tanh(logit / cap);
    double slope = o->options.slopes ? (double)o->options.slopes[head] : 1;
    if (o->options.mask.data) return logit + slope * oracle_mask(o, head, query, key);
    if (o->options.slopes) return logit + slope * (double)(key - oracle_position(o, query));
    return logit;
}

static double product(const oracle *o, int64_t head, int64_t query, int64_t key)
{
    const double *q = o->q + (head * o->m + query) * o->d, *k = o->k + (head / o->g * o->n + key) * o->d;
    double sum = 0;
    for (int64_t c = 0; c < o->d; c++) sum += q[c] * k[c];
    return o->scale * sum;
}

void oracle_logits(const oracle *o, int64_t head, int64_t query, double *logits)
{
    for (int64_t j = 0; j < o->n; j++) {
        bool seen = oracle_sees(o, head, query, j);
        logits[j] = seen ? oracle_finish(o, head, query, j, product(o, head, query, j)) : -(double)INFINITY;
    }
}

double oracle_mix(const oracle *o, int64_t head, const double *logits, double *out)
{
    double most = o->options.sinks ? (double)o->options.sinks[head] : -(double)INFINITY, sum = 0;
    const double *v = o->v + head / o->g * o->n * o->dv;
    for (int64_t j = 0; j < o->n; j++) most = fmax(most, logits[j]);
    for (int64_t c = 0; c < o->dv; c++) out[c] = 0;
    if (most == -(double)INFINITY) return most;
    if (o->options.sinks) sum = exp((double)o->options.sinks[head] - most);
    for (int64_t j = 0; j < o->n; j++) {
        if (logits[j] == -(double)INFINITY) continue;
        double weight = exp(logits[j] - most);
        sum += weight;
        for (int64_t c = 0; c < o->dv; c++) out[c] += weight * v[j * o->dv + c];
    }
    for (int64_t c = 0; c < o->dv; c++) out[c] /= sum;
    return most + log(sum);
}

static int larger_first(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

double oracle_keep_largest(double *logits, int64_t n, int64_t k)
{
    if (k >= n) return (double)INFINITY;
    double *sorted = malloc((size_t)n * sizeof *sorted);
    memcpy(sorted, logits, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, larger_first);
    double threshold = k ? sorted[k - 1] : (double)INFINITY, next = sorted[k];
    int64_t equal = k;
    for (int64_t i = 0; i < k; i++) equal -= sorted[i] > threshold;
    free(sorted);
    for (int64_t j = 0; j < n; j++) {
        bool kept = logits[j] > threshold || (logits[j] == threshold && equal-- > 0);
        if (!kept) logits[j] = -(double)INFINITY;
    }
    return next == -(double)INFINITY ? (double)INFINITY : threshold - next;
}

/* Keys whose weight is below e^-20 of the largest do not matter. */
static bool matters(double logit, double most)
{
    return logit > -(double)INFINITY && logit > most - 20;
}

static double largest(const oracle *o, const double *logits)
{
    double most = -(double)INFINITY;
    for (int64_t j = 0; j < o->n; j++) most = fmax(most, logits[j]);
    return most;
}

double oracle_finish_slack(const oracle *o, int64_t head, int64_t query, const double *logits)
{
    double most = largest(o, logits), slack = 0;
    double slope = o->options.slopes ? fabs((double)o->options.slopes[head]) : 1;
    for (int64_t j = 0; j < o->n; j++) {
        if (!matters(logits[j], most)) continue;
        double bias = o->options.mask.data ? slope * fabs(oracle_mask(o, head, query, j))
                      : o->options.slopes  ? slope * fabs((double)(j - oracle_position(o, query)))
                                           : 0;
        slack = fmax(slack, U * (8 * (double)o->options.softcap + 2 * bias + fabs(logits[j])));
    }
    return slack;
}

double oracle_product_slack(const oracle *o, int64_t head, int64_t query, const double *logits)
{
    double most = largest(o, logits), slack = 0;
    for (int64_t j = 0; j < o->n; j++) {
        if (!matters(logits[j], most)) continue;
        const double *q = o->q + (head * o->m + query) * o->d, *k = o->k + (head / o->g * o->n + j) * o->d;
        double sum = 0;
        for (int64_t c = 0; c < o->d; c++) sum += fabs(q[c] * k[c]);
        slack = fmax(slack, (double)(o->d + 8) * U * fabs(o->scale) * sum);
    }
    return slack;
}
