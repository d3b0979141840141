/* audit.c - single rows computed exactly, key by key as they see them, and how far the results of others are from that. */
#include "report.h"

enum { CHUNK = 512 };

/* The next keys that a row sees, from *first on: at most CHUNK. Returns how many and moves *first to them. */
static int64_t next_seen(const kna__problem *p, const kna_index *index, int64_t head, int64_t query, int64_t *first, int64_t end)
{
    int64_t row = *first, present = row - 1;
    while (present != row) {
        present = kna__index_next(index, row, end, true);
        row = kna__mask_next(p, head, query, present, end, true);
    }
    int64_t stop = kna__index_next(index, row, end - row < CHUNK ? end : row + CHUNK, false);
    *first = row;
    return kna__mask_next(p, head, query, row, stop, false) - row;
}

kna__state kna__exact_row(const kna__problem *p, const kna_index *index, int64_t head, int64_t query, const float *q, float *values)
{
    float s[CHUNK], part[KNA_MAX_DIM];
    int64_t first, end, count, kv_head = head / p->g;
    kna__state state = { -INFINITY, 0 };
    memset(values, 0, (size_t)p->dv * sizeof *values);
    kna__visible(p, query, &first, &end);
    for (; (count = next_seen(p, index, head, query, &first, end)) > 0; first += count) {
        p->kernels->dot[p->k.type](s, CHUNK, q, (size_t)p->d, 1, kna__span_at(&p->k, kv_head, first), (size_t)count, (size_t)p->d);
        kna__logits_finish(p, head, query, first, s, count);
        kna__state chunk = kna__soften(p->kernels, s, count);
        memset(part, 0, (size_t)p->dv * sizeof *part);
        p->kernels->mix[p->v.type](part, (size_t)p->dv, s, CHUNK, 1, kna__span_at(&p->v, kv_head, first), (size_t)count,
                                   (size_t)p->dv);
        kna__state_join(p->kernels, &state, values, chunk, part, p->dv);
    }
    return state;
}

static float error_of(const kna__problem *p, const kna_index *index, int64_t head, int64_t query)
{
    float q[KNA_MAX_DIM], values[KNA_MAX_DIM];
    kna__queries_read(p, q, head / p->g, query * p->g + head % p->g, 1);
    kna__state state = kna__exact_row(p, index, head, query, q, values);
    double all = state.sum + kna__sink_weight(p, head, state.max), difference = 0, norm = 0;
    const float *out = kna__out_at(p, head, query);
    for (int64_t c = 0; c < p->dv; c++) {
        double truth = state.sum > 0 ? (double)values[c] / all : 0, off = (double)out[c] - truth;
        difference += off * off;
        norm += truth * truth;
    }
    return (float)(norm > 0 ? sqrt(difference / norm) : sqrt(difference));
}

typedef struct audit_job {
    const kna__problem *problem;
    const kna_index *index;
    kna__row_stats *stats;
    int64_t query;
    kna__draw draw;
} audit_job;

static bool is_drawn(const kna__problem *p, kna__draw draw, int64_t row)
{
    return draw.share > 0 && kna__uniform(p->options.seed, draw.stream, (uint64_t)row) < draw.share;
}

static void audit_row(void *argument, int64_t task, int worker)
{
    const audit_job *job = argument;
    const kna__problem *p = job->problem;
    int64_t head = task % p->h, query = job->query + task / p->h, row = query * p->h + head;
    kna__row_stats *stats = &job->stats[row];
    (void)worker;
    stats->drawn = is_drawn(p, job->draw, row);
    if (stats->audit_error < 0 && (stats->drawn || kna__is_audited(p, head, query))) {
        stats->audit_error = error_of(p, job->index, head, query);
    }
}

void kna__audit_rows(const kna__problem *p, const kna_index *index, kna__row_stats *stats, int64_t query, int64_t queries,
                     kna__draw draw)
{
    audit_job job = { p, index, stats, query, draw };
    if (p->options.audit > 0 || draw.share > 0) {
        kna__parallel_for(p->context->threads, queries * p->h, audit_row, &job);
    }
}
