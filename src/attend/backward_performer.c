/*
 * backward_performer.c - gradients of attention by random features (rival_performer.c), features held fixed. With e(x) = W x - |x|^2 / 2,
 * M features, and the lse of the forward call, a pair weighs P_ij = sum_f exp(e_f(q_i) + e_f(k_j) - lse_i) / M, and with T_ij =
 * <dout_i, v_j> - Delta_i what its feature f adds to the gradient of either exponent is the f-th term of P_ij times T_ij:
 *   de_f(q_i) = exp(e_f(q_i) - lse_i) / M  sum_j exp(e_f(k_j)) (<dout_i, v_j> - Delta_i)
 *   de_f(k_j) = exp(e_f(k_j))  sum_i exp(e_f(q_i) - lse_i) / M (<dout_i, v_j> - Delta_i)       dv_j = sum_i P_ij dout_i
 * and dx = W' de - x sum_f de_f, times the root of the scale, which is in x. The sums over j are running ones over keys in order, those
 * over i over queries from the last one back: time (n + m) M (d + dv), as forward.
 *
 * Sums are kept relative to the largest exponent of each feature so far, so that no product of theirs exceeds M (what a row sees is
 * at most all of it). Exponents that a block's unseen rows would push above 80 are cut there: the forward call has none left of such
 * rows. What is taken out for range cancels: it has no gradient.
 *
 * Invariant: a KV head is one task, blocks and query heads in order, so the result does not depend on the threads.
 */
#include "backward.h"
#include "rivals.h"

enum { BLOCK = 64, HIGHEST = 80 };

typedef struct performer_back {
    const kna__backward *b;
    int64_t rank;
    float *w, *turned; /* (rank, d), (d, rank) */
    char *rooms;
    size_t room_bytes;
} performer_back;

/* Rows of dv + 1 columns end in 1, -Delta or the like. */
typedef struct performer_room {
    float *k, *q;           /* (BLOCK, d) times the root of the scale */
    float *v, *dout;        /* (BLOCK, dv + 1) */
    float *ek, *eq;         /* (BLOCK, rank) exponents, then features */
    float *slopes;          /* (BLOCK, rank) */
    float *pairs, *weights; /* (BLOCK, BLOCK) T and P */
    float *sums;            /* (dv + 1, rank) */
    float *top;             /* (rank) the largest exponents in sums */
    float *turned;          /* (max(rank, BLOCK, dv + 1), max(BLOCK, dv + 1)) */
    float *dx;              /* (BLOCK, max(d, dv + 1)) */
} performer_room;

static performer_room cut_room(const performer_back *job, char *base, size_t *bytes)
{
    const kna__problem *p = &job->b->problem;
    kna__cutter cutter = { base, 0 };
    size_t rank = (size_t)job->rank, d = (size_t)p->d, wide = (size_t)p->dv + 1, long_side = wide > BLOCK ? wide : BLOCK;
    performer_room room;
    room.k = kna__cut(&cutter, BLOCK * d, sizeof(float));
    room.q = kna__cut(&cutter, BLOCK * d, sizeof(float));
    room.v = kna__cut(&cutter, BLOCK * wide, sizeof(float));
    room.dout = kna__cut(&cutter, BLOCK * wide, sizeof(float));
    room.ek = kna__cut(&cutter, BLOCK * rank, sizeof(float));
    room.eq = kna__cut(&cutter, BLOCK * rank, sizeof(float));
    room.slopes = kna__cut(&cutter, BLOCK * rank, sizeof(float));
    room.pairs = kna__cut(&cutter, BLOCK * BLOCK, sizeof(float));
    room.weights = kna__cut(&cutter, BLOCK * BLOCK, sizeof(float));
    room.sums = kna__cut(&cutter, wide * rank, sizeof(float));
    room.top = kna__cut(&cutter, rank, sizeof(float));
    room.turned = kna__cut(&cutter, (rank > long_side ? rank : long_side) * long_side, sizeof(float));
    room.dx = kna__cut(&cutter, BLOCK * (d > wide ? d : wide), sizeof(float));
    *bytes = cutter.used;
    return room;
}

/* ---- sums relative to the largest exponents so far */

static void clear_sums(const performer_back *job, performer_room *room)
{
    memset(room->sums, 0, (size_t)((job->b->problem.dv + 1) * job->rank) * sizeof *room->sums);
    for (int64_t f = 0; f < job->rank; f++) {
        room->top[f] = -INFINITY;
    }
}

/* The exponents of `count` rows are among them. */
static void lift_top(const performer_back *job, performer_room *room, const float *exponents, int64_t count)
{
    int64_t rank = job->rank;
    for (int64_t f = 0; f < rank; f++) {
        float top = room->top[f];
        for (int64_t i = 0; i < count; i++) {
            top = fmaxf(top, exponents[i * rank + f]);
        }
        if (top > room->top[f]) {
            float shrink = room->top[f] > -INFINITY ? expf(room->top[f] - top) : 0;
            for (int64_t c = 0; c <= job->b->problem.dv; c++) {
                room->sums[c * rank + f] *= shrink;
            }
            room->top[f] = top;
        }
    }
}

/* Exponents to features: exp(e - top), or exp(e + top), whose largest is cut. Where nothing is summed yet they are 0. */
static void to_features(const performer_back *job, const performer_room *room, float *exponents, int64_t count, float sign)
{
    int64_t rank = job->rank;
    for (int64_t i = 0; i < count * rank; i++) {
        float top = room->top[i % rank], e = exponents[i] + sign * top;
        exponents[i] = top > -INFINITY ? fminf(e, HIGHEST) : -INFINITY;
    }
    job->b->problem.kernels->exp_sum(exponents, 0, (size_t)(count * rank));
}

/* sums += y' x: y (count, dv + 1), x (count, rank) features. */
static void add_to_sums(const performer_back *job, performer_room *room, const float *y, const float *x, int64_t count)
{
    const kna__problem *p = &job->b->problem;
    size_t wide = (size_t)p->dv + 1, rank = (size_t)job->rank;
    p->kernels->transpose(room->turned, BLOCK, y, wide, (size_t)count, wide);
    p->kernels->gemm(room->sums, rank, room->turned, BLOCK, x, rank, wide, rank, (size_t)count, true);
}

/* ---- rows of a block */

static void read_keys(const performer_back *job, performer_room *room, int64_t kv_head, int64_t first, int64_t count, float last)
{
    const kna__problem *p = &job->b->problem;
    kna__rival_widen(p, &p->k, kv_head, first, count, room->k);
    p->kernels->scale(room->k, sqrtf(p->scale), (size_t)(count * p->d));
    kna__performer_exponents(p, job->turned, room->k, count, room->ek);
    p->kernels->widen[p->v.type](room->v, (size_t)p->dv + 1, kna__span_at(&p->v, kv_head, first), (size_t)count, (size_t)p->dv);
    for (int64_t j = 0; j < count; j++) {
        room->v[j * (p->dv + 1) + p->dv] = last;
    }
}

/* Exponents less lse and log M; rows of dout end in sign * Delta. What a row that sees nothing says is -inf, and 0. */
static void read_queries(const performer_back *job, performer_room *room, int64_t head, int64_t query, int64_t count, float sign)
{
    const kna__backward *b = job->b;
    const kna__problem *p = &b->problem;
    size_t dv = (size_t)p->dv, wide = dv + 1;
    float out[KNA_MAX_DIM];
    kna__rival_widen(p, &p->q, head, query, count, room->q);
    p->kernels->scale(room->q, sqrtf(p->scale), (size_t)(count * p->d));
    kna__performer_exponents(p, job->turned, room->q, count, room->eq);
    for (int64_t i = 0; i < count; i++) {
        float *dout = room->dout + (size_t)i * wide, lse = b->lse[head * p->m + query + i], *e = room->eq + i * job->rank;
        p->kernels->widen[b->dout.type](dout, wide, kna__span_at(&b->dout, head, query + i), 1, dv);
        p->kernels->widen[b->out.type](out, dv, kna__span_at(&b->out, head, query + i), 1, dv);
        p->kernels->dot[KNA_F32](dout + dv, 1, out, 0, 1, (kna__span){ (const char *)dout, 0, NULL }, 1, dv);
        dout[dv] *= sign;
        float less = lse + logf((float)job->rank);
        for (int64_t f = 0; f < job->rank; f++) {
            e[f] = lse > -INFINITY ? e[f] - less : -INFINITY;
        }
    }
}

/* dx of a block from the slopes of its exponents; to (.., d) rows, added to or not. */
static void write_rows(const performer_back *job, performer_room *room, const float *x, const kna_out_rows *to, int64_t head,
                       int64_t first, int64_t count)
{
    const kna__problem *p = &job->b->problem;
    size_t d = (size_t)p->d, rank = (size_t)job->rank;
    if (!to->data) {
        return;
    }
    p->kernels->gemm(room->dx, d, room->slopes, rank, job->w, d, (size_t)count, d, rank, false);
    for (int64_t i = 0; i < count; i++) {
        double sum = 0;
        for (size_t f = 0; f < rank; f++) {
            sum += (double)room->slopes[(size_t)i * rank + f];
        }
        p->kernels->axpy(room->dx + (size_t)i * d, (float)-sum, x + (size_t)i * d, d);
        p->kernels->axpy(kna__gradient_at(to, head, first + i), sqrtf(p->scale), room->dx + (size_t)i * d, d);
    }
}

/* Keys of the block that query `at` of it sees; keys: how many there are. */
static int64_t seen_of(const kna__problem *p, int64_t query, int64_t first, int64_t keys)
{
    int64_t seen = query + p->shift - first + 1;
    return seen < 0 ? 0 : seen < keys ? seen : keys;
}

/* T of the block's pairs, 0 where a query does not see the key: (queries, BLOCK). Delta ends dout with a minus, or v does. */
static void pair_slopes(const performer_back *job, performer_room *room, int64_t query, int64_t queries, int64_t first,
                        int64_t keys)
{
    const kna__problem *p = &job->b->problem;
    size_t wide = (size_t)p->dv + 1;
    p->kernels->transpose(room->turned, BLOCK, room->v, wide, (size_t)keys, wide);
    p->kernels->gemm(room->pairs, BLOCK, room->dout, wide, room->turned, BLOCK, (size_t)queries, (size_t)keys, wide, false);
    for (int64_t i = 0; i < queries; i++) {
        int64_t seen = seen_of(p, query + i, first, keys);
        memset(room->pairs + i * BLOCK + seen, 0, (size_t)(keys - seen) * sizeof(float));
    }
}

/* ---- dq: keys in order */

/* Queries query .. of a head: all sums, and of the block's `keys` keys (0: none) those they see. */
static void differentiate_queries(const performer_back *job, performer_room *room, int64_t head, int64_t query, int64_t queries,
                                  int64_t first, int64_t keys)
{
    const kna__problem *p = &job->b->problem;
    size_t rank = (size_t)job->rank, wide = (size_t)p->dv + 1;
    read_queries(job, room, head, query, queries, -1);
    to_features(job, room, room->eq, queries, 1);
    p->kernels->gemm(room->slopes, rank, room->dout, wide, room->sums, rank, (size_t)queries, rank, wide, false);
    if (keys) {
        pair_slopes(job, room, query, queries, first, keys);
        p->kernels->gemm(room->slopes, rank, room->pairs, BLOCK, room->ek, rank, (size_t)queries, rank, (size_t)keys, true);
    }
    for (size_t i = 0; i < (size_t)queries * rank; i++) {
        room->slopes[i] *= room->eq[i];
    }
    write_rows(job, room, room->q, &job->b->dq, head, query, queries);
}

/* Queries from *query on whose position is below `end`, all heads. */
static void queries_until(const performer_back *job, performer_room *room, int64_t kv_head, int64_t *query, int64_t end,
                          int64_t first, int64_t keys)
{
    const kna__problem *p = &job->b->problem;
    int64_t stop = end - p->shift < p->m ? end - p->shift : p->m;
    while (*query < stop) {
        int64_t count = stop - *query < BLOCK ? stop - *query : BLOCK;
        for (int64_t head = kv_head * p->g; head < (kv_head + 1) * p->g; head++) {
            differentiate_queries(job, room, head, *query, count, first, keys);
        }
        *query += count;
    }
}

static void go_through_keys(const performer_back *job, performer_room *room, int64_t kv_head)
{
    const kna__problem *p = &job->b->problem;
    int64_t query = p->options.causal && p->shift < 0 ? -p->shift : 0; /* those before it see nothing */
    clear_sums(job, room);
    for (int64_t first = 0; first < p->n; first += BLOCK) {
        int64_t count = p->n - first < BLOCK ? p->n - first : BLOCK;
        read_keys(job, room, kv_head, first, count, 1);
        lift_top(job, room, room->ek, count);
        to_features(job, room, room->ek, count, -1);
        if (p->options.causal) {
            queries_until(job, room, kv_head, &query, first + count, first, count);
        }
        add_to_sums(job, room, room->v, room->ek, count);
    }
    queries_until(job, room, kv_head, &query, p->m + p->shift, 0, 0);
}

/* ---- dk and dv: queries from the last one back */

static void add_queries(const performer_back *job, performer_room *room, int64_t kv_head, int64_t query, int64_t queries)
{
    const kna__problem *p = &job->b->problem;
    for (int64_t head = kv_head * p->g; head < (kv_head + 1) * p->g; head++) {
        read_queries(job, room, head, query, queries, 1);
        lift_top(job, room, room->eq, queries);
        to_features(job, room, room->eq, queries, -1);
        add_to_sums(job, room, room->dout, room->eq, queries);
    }
}

/* Queries from `until` up to *query, from the last one back. */
static void queries_from(const performer_back *job, performer_room *room, int64_t kv_head, int64_t *query, int64_t until)
{
    until = until < 0 ? 0 : until;
    while (*query > until) {
        int64_t count = *query - until < BLOCK ? *query - until : BLOCK;
        *query -= count;
        add_queries(job, room, kv_head, *query, count);
    }
}

/* What the sums say of a block of keys: slopes (before their features), and dv without the block's own queries. */
static void keys_by_sums(const performer_back *job, performer_room *room, int64_t keys)
{
    const kna__problem *p = &job->b->problem;
    size_t rank = (size_t)job->rank, wide = (size_t)p->dv + 1;
    p->kernels->gemm(room->slopes, rank, room->v, wide, room->sums, rank, (size_t)keys, rank, wide, false);
    p->kernels->transpose(room->turned, wide, room->sums, rank, wide, rank);
    p->kernels->gemm(room->dx, wide, room->ek, rank, room->turned, wide, (size_t)keys, wide, rank, false);
}

/* The block's own queries of a head: T' to slopes, P' dout to dv. */
static void keys_by_pairs(const performer_back *job, performer_room *room, int64_t head, int64_t query, int64_t queries,
                          int64_t first, int64_t keys)
{
    const kna__problem *p = &job->b->problem;
    size_t rank = (size_t)job->rank, wide = (size_t)p->dv + 1, some = (size_t)queries;
    read_queries(job, room, head, query, queries, 1);
    to_features(job, room, room->eq, queries, -1);
    pair_slopes(job, room, query, queries, first, keys);
    p->kernels->transpose(room->turned, BLOCK, room->ek, rank, (size_t)keys, rank);
    p->kernels->gemm(room->weights, BLOCK, room->eq, rank, room->turned, BLOCK, some, (size_t)keys, rank, false);
    for (int64_t i = 0; i < queries; i++) {
        int64_t seen = seen_of(p, query + i, first, keys);
        memset(room->weights + i * BLOCK + seen, 0, (size_t)(keys - seen) * sizeof(float));
    }
    p->kernels->transpose(room->turned, BLOCK, room->pairs, BLOCK, some, (size_t)keys);
    p->kernels->gemm(room->slopes, rank, room->turned, BLOCK, room->eq, rank, (size_t)keys, rank, some, true);
    p->kernels->transpose(room->turned, BLOCK, room->weights, BLOCK, some, (size_t)keys);
    p->kernels->gemm(room->dx, wide, room->turned, BLOCK, room->dout, wide, (size_t)keys, wide, some, true);
}

/* Largest exponents first: those of the block's own queries, of all heads. */
static void lift_by_queries(const performer_back *job, performer_room *room, int64_t kv_head, int64_t query, int64_t queries)
{
    const kna__problem *p = &job->b->problem;
    for (int64_t head = kv_head * p->g; head < (kv_head + 1) * p->g; head++) {
        read_queries(job, room, head, query, queries, 1);
        lift_top(job, room, room->eq, queries);
    }
}

/* A block of keys; query .. query + queries - 1 stand on it. */
static void differentiate_keys(const performer_back *job, performer_room *room, int64_t kv_head, int64_t query, int64_t queries,
                               int64_t first, int64_t keys)
{
    const kna__backward *b = job->b;
    const kna__problem *p = &b->problem;
    size_t rank = (size_t)job->rank, wide = (size_t)p->dv + 1;
    lift_by_queries(job, room, kv_head, query, queries);
    read_keys(job, room, kv_head, first, keys, -1);
    to_features(job, room, room->ek, keys, 1);
    keys_by_sums(job, room, keys);
    for (int64_t head = kv_head * p->g; queries && head < (kv_head + 1) * p->g; head++) {
        keys_by_pairs(job, room, head, query, queries, first, keys);
    }
    for (int64_t j = 0; b->dv.data && j < keys; j++) {
        memcpy(kna__gradient_at(&b->dv, kv_head, first + j), room->dx + (size_t)j * wide, (size_t)p->dv * sizeof(float));
    }
    for (size_t i = 0; i < (size_t)keys * rank; i++) {
        room->slopes[i] *= room->ek[i];
    }
    write_rows(job, room, room->k, &b->dk, kv_head, first, keys);
}

static void go_back_through_queries(const performer_back *job, performer_room *room, int64_t kv_head)
{
    const kna__problem *p = &job->b->problem;
    int64_t query = p->m, blocks = (p->n + BLOCK - 1) / BLOCK, above = p->options.causal ? p->n - p->shift : 0;
    clear_sums(job, room);
    queries_from(job, room, kv_head, &query, above < p->m ? above : p->m); /* those that see all */
    for (int64_t block = blocks - 1; block >= 0; block--) {
        int64_t first = block * BLOCK, count = p->n - first < BLOCK ? p->n - first : BLOCK, from = query;
        if (p->options.causal) {
            from = first - p->shift < 0 ? 0 : first - p->shift < query ? first - p->shift : query;
        }
        differentiate_keys(job, room, kv_head, from, query - from, first, count);
        queries_from(job, room, kv_head, &query, from);
    }
}

/* ---- all */

static void differentiate_head(void *argument, int64_t kv_head, int worker)
{
    const performer_back *job = argument;
    size_t unused;
    performer_room room = cut_room(job, job->rooms + (size_t)worker * job->room_bytes, &unused);
    if (job->b->dq.data) {
        go_through_keys(job, &room, kv_head);
    }
    if (job->b->dk.data || job->b->dv.data) {
        go_back_through_queries(job, &room, kv_head);
    }
}

int kna__backward_performer(const kna__backward *b)
{
    const kna__problem *p = &b->problem;
    performer_back job = { .b = b, .rank = kna__performer_rank(p) };
    size_t features = kna__size_product((size_t)job.rank, (size_t)p->d);
    double *rows = NULL;
    cut_room(&job, NULL, &job.room_bytes);
    for (char *base = NULL;;) {
        kna__cutter cutter = { base, 0 };
        job.turned = kna__cut(&cutter, features, sizeof(float));
        job.w = kna__cut(&cutter, features, sizeof(float));
        rows = kna__cut(&cutter, features, sizeof(double));
        job.rooms = kna__cut(&cutter, (size_t)p->context->threads, job.room_bytes);
        if (base) {
            break;
        }
        base = kna__scratch(p->context, cutter.used);
        if (!base) {
            return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch", cutter.used);
        }
    }
    kna__performer_draw(p, rows, job.turned);
    for (size_t i = 0; i < features; i++) {
        job.w[i] = (float)rows[i];
    }
    kna__parallel_for(p->context->threads, p->h_kv, differentiate_head, &job);
    return KNA_OK;
}
