/*
 * rival_performer.c - softmax as a product of positive random features (FAVOR+, Choromanski et al. 2021): phi(x) = exp(W x - |x|^2
 * / 2) / sqrt M, the M = `rank` rows of W Gaussian and orthogonal by blocks of d, so that <phi(q), phi(k)> is exp <q, k> in the
 * mean. Keys are then summed once: causal attention is a running sum. Time n M d; the variance grows with exp |q + k|^2.
 *
 * Largest exponents are taken out of features: of each query its own, of keys the largest so far, so that no row depends on a later
 * key. The paper's 1e-6 beside every feature is left out.
 */
#include "rivals.h"

enum { BLOCK = 64 /* keys, and queries, at a time */ };

typedef struct performer_job {
    const kna__problem *problem;
    int64_t rank;
    float *turned; /* (d, rank) W' */
    char *rooms;
    size_t room_bytes;
} performer_job;

typedef struct performer_room {
    float *k, *v;        /* (BLOCK, d), (BLOCK, dv) */
    float *q;            /* (BLOCK, d) */
    float *key_features; /* (BLOCK, rank) */
    float *features;     /* (BLOCK, rank) of queries */
    float *turned;       /* (rank, BLOCK) */
    float *pairs;        /* (BLOCK, BLOCK) */
    float *sums;         /* (rank, dv) of features times values */
    float *weights;      /* (rank) of features */
    float *out;          /* (BLOCK, dv) */
    float largest;       /* exponent of any key so far */
} performer_room;

static performer_room cut_room(const performer_job *job, char *base, size_t *bytes)
{
    const kna__problem *p = job->problem;
    kna__cutter cutter = { base, 0 };
    size_t rank = (size_t)job->rank, d = (size_t)p->d, dv = (size_t)p->dv;
    performer_room room;
    room.k = kna__cut(&cutter, BLOCK * d, sizeof(float));
    room.v = kna__cut(&cutter, BLOCK * dv, sizeof(float));
    room.q = kna__cut(&cutter, BLOCK * d, sizeof(float));
    room.key_features = kna__cut(&cutter, BLOCK * rank, sizeof(float));
    room.features = kna__cut(&cutter, BLOCK * rank, sizeof(float));
    room.turned = kna__cut(&cutter, BLOCK * rank, sizeof(float));
    room.pairs = kna__cut(&cutter, BLOCK * BLOCK, sizeof(float));
    room.sums = kna__cut(&cutter, rank * dv, sizeof(float));
    room.weights = kna__cut(&cutter, rank, sizeof(float));
    room.out = kna__cut(&cutter, BLOCK * dv, sizeof(float));
    room.largest = -INFINITY;
    *bytes = cutter.used;
    return room;
}

/* ---- features */

/* A row of W: Gaussian, made orthogonal to the `before` rows before it, as long as another Gaussian row is. */
static void draw_row(const kna__problem *p, int64_t row, int64_t before, double *w)
{
    double length = 0, norm = 0;
    for (int64_t c = 0; c < p->d; c++) {
        double other = kna__rival_normal(p, (uint64_t)(2 * row + 1), (uint64_t)c);
        w[c] = kna__rival_normal(p, (uint64_t)(2 * row), (uint64_t)c);
        length += other * other;
    }
    for (int64_t b = 1; b <= before; b++) {
        const double *to = w - b * p->d;
        double product = 0, square = 0;
        for (int64_t c = 0; c < p->d; c++) {
            product += w[c] * to[c];
            square += to[c] * to[c];
        }
        for (int64_t c = 0; c < p->d; c++) {
            w[c] -= product / square * to[c];
        }
    }
    for (int64_t c = 0; c < p->d; c++) {
        norm += w[c] * w[c];
    }
    for (int64_t c = 0; c < p->d; c++) {
        w[c] *= sqrt(length / norm);
    }
}

int64_t kna__performer_rank(const kna__problem *p)
{
    return p->options.rank ? p->options.rank : 256;
}

void kna__performer_draw(const kna__problem *p, double *rows, float *turned)
{
    int64_t rank = kna__performer_rank(p);
    for (int64_t row = 0; row < rank; row++) {
        draw_row(p, row, row % p->d, rows + row * p->d);
        for (int64_t c = 0; c < p->d; c++) {
            turned[c * rank + row] = (float)rows[row * p->d + c];
        }
    }
}

void kna__performer_exponents(const kna__problem *p, const float *turned, const float *x, int64_t n, float *out)
{
    size_t rank = (size_t)kna__performer_rank(p), d = (size_t)p->d;
    p->kernels->gemm(out, rank, x, d, turned, rank, (size_t)n, rank, d, false);
    for (int64_t i = 0; i < n; i++) {
        float half = kna__square(p->kernels, x + i * p->d, p->d) / 2;
        for (size_t f = 0; f < rank; f++) {
            out[(size_t)i * rank + f] -= half;
        }
    }
}

/* ---- keys */

static void read_keys(const performer_job *job, performer_room *room, int64_t kv_head, int64_t first, int64_t count)
{
    const kna__problem *p = job->problem;
    size_t numbers = (size_t)(count * job->rank);
    kna__rival_widen(p, &p->k, kv_head, first, count, room->k);
    kna__rival_widen(p, &p->v, kv_head, first, count, room->v);
    p->kernels->scale(room->k, sqrtf(p->scale), (size_t)(count * p->d));
    kna__performer_exponents(p, job->turned, room->k, count, room->key_features);
    float largest = fmaxf(room->largest, p->kernels->max(room->key_features, numbers));
    if (largest > room->largest) {
        float shrink = room->largest == -INFINITY ? 0 : expf(room->largest - largest);
        p->kernels->scale(room->sums, shrink, (size_t)(job->rank * p->dv));
        p->kernels->scale(room->weights, shrink, (size_t)job->rank);
        room->largest = largest;
    }
    p->kernels->exp_sum(room->key_features, room->largest, numbers);
}

static void sum_keys(const performer_job *job, performer_room *room, int64_t count)
{
    const kna__problem *p = job->problem;
    size_t rank = (size_t)job->rank, dv = (size_t)p->dv;
    p->kernels->transpose(room->turned, BLOCK, room->key_features, rank, (size_t)count, rank);
    p->kernels->gemm(room->sums, dv, room->turned, BLOCK, room->v, dv, rank, dv, (size_t)count, true);
    for (int64_t i = 0; i < count; i++) {
        p->kernels->axpy(room->weights, 1.0f, room->key_features + i * job->rank, rank);
    }
}

/* ---- queries */

/* Queries from .. of a head; the keys of the block in the room count as far as they are seen: keys: how many of them there are, 0: none. */
static void attend_queries(const performer_job *job, performer_room *room, int64_t head, int64_t query, int64_t count,
                           int64_t first, int64_t keys)
{
    const kna__problem *p = job->problem;
    size_t rank = (size_t)job->rank, dv = (size_t)p->dv;
    float top[BLOCK];
    for (int64_t i = 0; i < count; i++) {
        p->kernels->widen[p->q.type](room->q + i * p->d, (size_t)p->d, kna__span_at(&p->q, head, query + i), 1, (size_t)p->d);
    }
    p->kernels->scale(room->q, sqrtf(p->scale), (size_t)(count * p->d));
    kna__performer_exponents(p, job->turned, room->q, count, room->features);
    for (int64_t i = 0; i < count; i++) {
        top[i] = p->kernels->max(room->features + i * job->rank, rank);
        p->kernels->exp_sum(room->features + i * job->rank, top[i], rank);
    }
    p->kernels->gemm(room->out, dv, room->features, rank, room->sums, dv, (size_t)count, dv, rank, false);
    if (keys) {
        p->kernels->transpose(room->turned, BLOCK, room->key_features, rank, (size_t)keys, rank);
        p->kernels->gemm(room->pairs, BLOCK, room->features, rank, room->turned, BLOCK, (size_t)count, (size_t)keys, rank, false);
    }
    for (int64_t i = 0; i < count; i++) {
        kna__span weights = { (const char *)room->weights, 0, NULL };
        int64_t seen = query + i + p->shift - first + 1;
        float sum, *pairs = room->pairs + i * BLOCK;
        p->kernels->dot[KNA_F32](&sum, 1, room->features + i * job->rank, 0, 1, weights, 1, rank);
        seen = keys ? (seen < keys ? seen : keys) : 0;
        for (int64_t j = 0; j < seen; j++) {
            sum += pairs[j];
        }
        p->kernels->mix[KNA_F32](room->out + i * p->dv, dv, pairs, BLOCK, 1,
                                 (kna__span){ (const char *)room->v, dv * sizeof(float), NULL }, (size_t)seen, dv);
        float max = sum > 0 ? top[i] + room->largest - logf((float)job->rank) : -INFINITY;
        kna__state_write(p, head, query + i, (kna__state){ max, sum > 0 ? (double)sum : 0 }, room->out + i * p->dv);
    }
}

/* Queries from *query on whose position is below `end`, all heads. */
static void attend_until(const performer_job *job, performer_room *room, int64_t kv_head, int64_t *query, int64_t end,
                         int64_t first, int64_t keys)
{
    const kna__problem *p = job->problem;
    int64_t stop = end - p->shift < p->m ? end - p->shift : p->m;
    while (*query < stop) {
        int64_t count = stop - *query < BLOCK ? stop - *query : BLOCK;
        for (int64_t head = kv_head * p->g; head < (kv_head + 1) * p->g; head++) {
            attend_queries(job, room, head, *query, count, first, keys);
        }
        *query += count;
    }
}

static void attend_head(void *argument, int64_t kv_head, int worker)
{
    const performer_job *job = argument;
    const kna__problem *p = job->problem;
    size_t unused;
    int64_t query = 0;
    performer_room room = cut_room(job, job->rooms + (size_t)worker * job->room_bytes, &unused);
    memset(room.sums, 0, (size_t)(job->rank * p->dv) * sizeof *room.sums);
    memset(room.weights, 0, (size_t)job->rank * sizeof *room.weights);
    if (p->options.causal) {
        attend_until(job, &room, kv_head, &query, 0, 0, 0); /* those that see nothing */
    }
    for (int64_t first = 0; first < p->n; first += BLOCK) {
        int64_t count = p->n - first < BLOCK ? p->n - first : BLOCK;
        read_keys(job, &room, kv_head, first, count);
        if (p->options.causal) {
            attend_until(job, &room, kv_head, &query, first + count, first, count);
        }
        sum_keys(job, &room, count);
    }
    attend_until(job, &room, kv_head, &query, p->m + p->shift, 0, 0);
}

int kna__attend_performer(const kna__problem *p, kna_report *report)
{
    (void)report;
    performer_job job = { p, kna__performer_rank(p), NULL, NULL, 0 };
    size_t features = kna__size_product((size_t)job.rank, (size_t)p->d);
    cut_room(&job, NULL, &job.room_bytes);
    kna__cutter cutter = { NULL, 0 };
    for (int pass = 0; pass < 2; pass++) {
        cutter.used = 0;
        job.turned = kna__cut(&cutter, features, sizeof(float));
        double *rows = kna__cut(&cutter, features, sizeof(double));
        job.rooms = kna__cut(&cutter, (size_t)p->context->threads, job.room_bytes);
        if (pass == 0) {
            cutter.base = kna__scratch(p->context, cutter.used);
            if (!cutter.base) {
                return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch", cutter.used);
            }
        } else {
            kna__performer_draw(p, rows, job.turned);
        }
    }
    kna__parallel_for(p->context->threads, p->h_kv, attend_head, &job);
    return KNA_OK;
}
