/* rivals.c - what the rivals share, and what they refuse. See rivals.h. */
#include "rivals.h"

#define LL(x) ((long long)(x))

static const char *option_in_the_way(const kna__problem *p)
{
    const kna_attend_options *o = &p->options;
    bool is_window = o->method == KNA_WINDOW;
    if (o->mask.data) return "mask";
    if (o->slopes) return "slopes";
    if (o->window > 0) return "window";
    if (o->index) return "index";
    if (o->eps > 0) return "eps";
    if (o->audit > 0) return "audit";
    if (o->causal && o->method != KNA_PERFORMER && o->method != KNA_LSH && !is_window) return "causal";
    if (o->softcap > 0 && !is_window) return "softcap";
    if (o->sinks && !is_window) return "sinks";
    if (o->method == KNA_PERFORMER && !(p->scale > 0)) return "scale below 0";
    return NULL;
}

int kna__rival_check(const kna__problem *p)
{
    const kna_attend_options *o = &p->options;
    const char *name = option_in_the_way(p);
    if (name) {
        return KNA_FAIL(p->context, KNA_EINVAL, "%s: %s cannot follow it", name, kna_method_name(o->method));
    }
    if ((o->project_k || o->project_v) && o->method != KNA_LINFORMER) {
        return KNA_FAIL(p->context, KNA_EINVAL, "projection: %s has none", kna_method_name(o->method));
    }
    if (!o->project_k != !o->project_v) {
        return KNA_FAIL(p->context, KNA_EINVAL, "projection: keys and values need one each");
    }
    return KNA_OK;
}

double kna__rival_normal(const kna__problem *p, uint64_t stream, uint64_t column)
{
    double u = kna__uniform(p->options.seed, stream, 2 * column), v = kna__uniform(p->options.seed, stream, 2 * column + 1);
    return sqrt(-2 * log(u)) * cos(2 * acos(-1) * v);
}

void kna__rival_widen(const kna__problem *p, const kna_rows *rows, int64_t head, int64_t first, int64_t count, float *out)
{
    size_t dim = (size_t)rows->dim;
    p->kernels->widen[rows->type](out, dim, kna__span_at(rows, head, first), (size_t)count, dim);
}

void kna__rival_means(const kna__kernels *kernels, const float *x, int64_t rows, int64_t dim, int64_t parts, float *means,
                      float *counts)
{
    memset(means, 0, (size_t)(parts * dim) * sizeof *means);
    for (int64_t i = 0; i < parts; i++) {
        int64_t first = i * rows / parts, end = (i + 1) * rows / parts;
        for (int64_t row = first; row < end; row++) {
            kernels->axpy(means + i * dim, 1 / (float)(end - first), x + row * dim, (size_t)dim);
        }
        if (counts) {
            counts[i] = (float)(end - first);
        }
    }
}
