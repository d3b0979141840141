/*
 * rival_lsh.c - keys sampled by locality-sensitive hashing (Chen et al. 2024, MagicPIG, arXiv 2410.16179): L tables of K bits, a bit being
 * the sign of a random projection of the key; a key is looked at if its K bits are the query's in two tables or more. That has a
 * known probability, by the angle t between query and key: with c = 1 - t / pi and x = c^K,
 *   p = 1 - (1 - x)^L - L x (1 - x)^(L - 1)
 * and a key looked at counts for 1 / p: the sums of the softmax come out right in the mean, their ratio nearly. First and recent
 * keys are read in full, as window reads them.
 *
 * Keys are hashed less a centre, as they lie in a cone otherwise: that changes every logit by the same, as far as softmax goes, and p is
 * that of the key less its centre. Theirs is the mean of the prompt; here, where queries have an order, the mean of the whole
 * blocks of keys before the key's own, so that nothing depends on later ones.
 *
 * Cost: hashing, K L d multiplications for each key and query; bucket by bucket about n L / 2^K keys met per row, where the logits'
 * n d are saved. 6 n L bytes of tables, one KV head at a time.
 */
#include "lists.h"
#include "report.h"
#include "rivals.h"

#include <math.h>

enum {
    PIECE = 64,       /* keys, or rows of queries, hashed at a time */
    CENTRED = 256,    /* keys that share a centre */
    ENTRIES = 1 << 22 /* of lists for gradients, unless one query has more */
};

typedef struct lsh_job {
    const kna__problem *problem;
    int64_t bits, tables, buckets, hashes; /* hashes: bits * tables */
    int64_t kv_head;
    float *turned;   /* (d, hashes) */
    float *centres;  /* (n / CENTRED rounded up, d) */
    float *lengths;  /* (n) of keys less their centres */
    uint16_t *codes; /* (tables, n) */
    int32_t *first;  /* (tables, buckets + 1) */
    int32_t *keys;   /* (tables, n) by code */
    int32_t *full;   /* (h, m) keys looked at */
    char *rooms;
    size_t room_bytes;

    const kna__lists *lists; /* for gradients, of a block; NULL: outputs */
    kna__lists_block block;
} lsh_job;

typedef struct lsh_room {
    float *x, *hashed;      /* (PIECE, d), (PIECE, hashes) */
    float *by_centre;       /* (blocks of CENTRED) */
    uint16_t *met;          /* (n) in how many tables so far; 0 between rows */
    int32_t *touched, *ids; /* (n) */
    float *logits, *out;
} lsh_room;

static int64_t blocks_of(int64_t n)
{
    return (n + CENTRED - 1) / CENTRED;
}

static lsh_room cut_room(const lsh_job *job, int worker, size_t *bytes)
{
    const kna__problem *p = job->problem;
    kna__cutter cutter = { job->rooms ? job->rooms + (size_t)worker * job->room_bytes : NULL, 0 };
    size_t n = (size_t)p->n;
    lsh_room room;
    room.x = kna__cut(&cutter, PIECE * (size_t)p->d, sizeof(float));
    room.hashed = kna__cut(&cutter, PIECE * (size_t)job->hashes, sizeof(float));
    room.by_centre = kna__cut(&cutter, (size_t)blocks_of(p->n), sizeof(float));
    room.met = kna__cut(&cutter, n, sizeof(uint16_t));
    room.touched = kna__cut(&cutter, n, sizeof(int32_t));
    room.ids = kna__cut(&cutter, n, sizeof(int32_t));
    room.logits = kna__cut(&cutter, n, sizeof(float));
    room.out = kna__cut(&cutter, (size_t)p->dv, sizeof(float));
    *bytes = cutter.used;
    return room;
}

static size_t cut_job(lsh_job *job, char *base)
{
    const kna__problem *p = job->problem;
    kna__cutter cutter = { base, 0 };
    size_t n = (size_t)p->n, d = (size_t)p->d, tables = (size_t)job->tables, hashes = (size_t)job->hashes;
    job->turned = kna__cut(&cutter, hashes * d, sizeof(float));
    job->centres = kna__cut(&cutter, kna__size_product((size_t)blocks_of(p->n), d), sizeof(float));
    job->lengths = kna__cut(&cutter, n, sizeof(float));
    job->codes = kna__cut(&cutter, kna__size_product(tables, n), sizeof(uint16_t));
    job->first = kna__cut(&cutter, tables * ((size_t)job->buckets + 1), sizeof(int32_t));
    job->keys = kna__cut(&cutter, kna__size_product(tables, n), sizeof(int32_t));
    job->full = kna__cut(&cutter, kna__size_product((size_t)p->h, (size_t)p->m), sizeof(int32_t));
    job->rooms = NULL;
    cut_room(job, 0, &job->room_bytes);
    job->rooms = kna__cut(&cutter, (size_t)p->context->threads, job->room_bytes);
    return cutter.used;
}

/* ---- tables of a KV head */

static void draw_projection(void *argument, int64_t hash, int worker)
{
    const lsh_job *job = argument;
    const kna__problem *p = job->problem;
    (void)worker;
    for (int64_t c = 0; c < p->d; c++) {
        job->turned[c * job->hashes + hash] = (float)kna__rival_normal(p, UINT64_C(1) << 61 | (uint64_t)hash, (uint64_t)c);
    }
}

/* Means of what is before each block, or of all where there is no order. */
static void find_centres(const lsh_job *job, lsh_room *room)
{
    const kna__problem *p = job->problem;
    double sum[KNA_MAX_DIM] = { 0 };
    for (int64_t first = 0; first < p->n; first += PIECE) {
        int64_t count = p->n - first < PIECE ? p->n - first : PIECE;
        for (int64_t c = 0; first % CENTRED == 0 && c < p->d; c++) {
            job->centres[first / CENTRED * p->d + c] = first ? (float)(sum[c] / (double)first) : 0;
        }
        kna__rival_widen(p, &p->k, job->kv_head, first, count, room->x);
        for (int64_t i = 0; i < count * p->d; i++) {
            sum[i % p->d] += (double)room->x[i];
        }
    }
    for (int64_t i = 0; !p->options.causal && i < blocks_of(p->n) * p->d; i++) {
        job->centres[i] = (float)(sum[i % p->d] / (double)p->n);
    }
}

static uint16_t code_of(const lsh_job *job, const float *hashed, int64_t table)
{
    unsigned code = 0;
    for (int64_t bit = 0; bit < job->bits; bit++) {
        code |= (unsigned)(hashed[table * job->bits + bit] > 0) << bit;
    }
    return (uint16_t)code;
}

static void hash(const lsh_job *job, lsh_room *room, int64_t count)
{
    const kna__problem *p = job->problem;
    size_t hashes = (size_t)job->hashes, d = (size_t)p->d;
    p->kernels->gemm(room->hashed, hashes, room->x, d, job->turned, hashes, (size_t)count, hashes, d, false);
}

static void hash_keys(void *argument, int64_t piece, int worker)
{
    const lsh_job *job = argument;
    const kna__problem *p = job->problem;
    size_t unused;
    lsh_room room = cut_room(job, worker, &unused);
    int64_t first = piece * PIECE, count = p->n - first < PIECE ? p->n - first : PIECE;
    kna__rival_widen(p, &p->k, job->kv_head, first, count, room.x);
    for (int64_t j = 0; j < count; j++) {
        p->kernels->axpy(room.x + j * p->d, -1.0f, job->centres + first / CENTRED * p->d, (size_t)p->d);
        job->lengths[first + j] = sqrtf(kna__square(p->kernels, room.x + j * p->d, p->d));
    }
    hash(job, &room, count);
    for (int64_t table = 0; table < job->tables; table++) {
        for (int64_t j = 0; j < count; j++) {
            job->codes[table * p->n + first + j] = code_of(job, room.hashed + j * job->hashes, table);
        }
    }
}

/* Keys by code, in order within one. */
static void fill_table(void *argument, int64_t table, int worker)
{
    const lsh_job *job = argument;
    int64_t n = job->problem->n;
    const uint16_t *codes = job->codes + table * n;
    int32_t *first = job->first + table * (job->buckets + 1), *keys = job->keys + table * n;
    (void)worker;
    memset(first, 0, ((size_t)job->buckets + 1) * sizeof *first);
    for (int64_t j = 0; j < n; j++) {
        first[codes[j] + 1]++;
    }
    for (int64_t code = 0; code < job->buckets; code++) {
        first[code + 1] += first[code];
    }
    for (int64_t j = n - 1; j >= 0; j--) { /* ends move down to beginnings: first[code + 1] is then where `code` begins */
        keys[--first[codes[j] + 1]] = (int32_t)j;
    }
    memmove(first, first + 1, (size_t)job->buckets * sizeof *first);
    first[job->buckets] = (int32_t)n;
}

static void make_tables(lsh_job *job, int64_t kv_head)
{
    const kna__problem *p = job->problem;
    size_t unused;
    lsh_room room = cut_room(job, 0, &unused);
    job->kv_head = kv_head;
    find_centres(job, &room);
    kna__parallel_for(p->context->threads, (p->n + PIECE - 1) / PIECE, hash_keys, job);
    kna__parallel_for(p->context->threads, job->tables, fill_table, job);
}

/* ---- a row */

/* Logarithm of the probability that two tables or more agree. */
static double log_probability(const lsh_job *job, double cosine)
{
    double c = 1 - acos(fmax(-1, fmin(1, cosine))) / acos(-1), tables = (double)job->tables;
    double x = fmax(pow(c, (double)job->bits), 1e-30), miss = log1p(-x);
    if (tables * x < 1e-3) { /* what cancels below: two tables, or three */
        return log(tables * (tables - 1) / 2) + 2 * log(x) + (tables - 2) * miss + log1p((tables - 2) / 3 * x);
    }
    return x >= 1 ? 0 : log(-expm1(tables * miss) - tables * x * exp((tables - 1) * miss));
}

/* Keys of from .. end - 1 that agree in two tables, as they are met. Returns how many. */
static int64_t look_up(const lsh_job *job, lsh_room *room, const float *hashed, int64_t from, int64_t end, int32_t *ids)
{
    int64_t n = job->problem->n, touched = 0, found = 0;
    for (int64_t table = 0; table < job->tables && from < end; table++) {
        const int32_t *first = job->first + table * (job->buckets + 1) + code_of(job, hashed, table), *keys = job->keys + table * n;
        for (int32_t i = first[0]; i < first[1] && keys[i] < end; i++) {
            int32_t key = keys[i];
            if (key < from) {
                continue;
            }
            uint16_t met = ++room->met[key];
            if (met == 1) {
                room->touched[touched++] = key;
            } else if (met == 2) {
                ids[found++] = key;
            }
        }
    }
    for (int64_t i = 0; i < touched; i++) {
        room->met[room->touched[i]] = 0;
    }
    return found;
}

/* What the keys met stand for, added to their logits. */
static void weigh(const lsh_job *job, lsh_room *room, const float *q, const int32_t *ids, float *logits, int64_t count)
{
    const kna__problem *p = job->problem;
    kna__span centres = { (const char *)job->centres, (size_t)p->d * sizeof(float), NULL };
    double length = sqrt((double)kna__square(p->kernels, q, p->d));
    p->kernels->dot[KNA_F32](room->by_centre, (size_t)blocks_of(p->n), q, (size_t)p->d, 1, centres, (size_t)blocks_of(p->n),
                             (size_t)p->d);
    for (int64_t i = 0; i < count; i++) {
        double both = length * (double)job->lengths[ids[i]],
               product = (double)logits[i] - (double)room->by_centre[ids[i] / CENTRED];
        logits[i] -= (float)log_probability(job, both > 0 ? product / both : 0);
    }
}

/* First and recent keys into room->ids, then those met; returns how many, *near of which are read whatever the hashes. */
static int64_t choose(const lsh_job *job, lsh_room *room, const float *hashed, int64_t query, int64_t *near)
{
    const kna_attend_options *o = &job->problem->options;
    int64_t lo, hi, count = 0;
    kna__visible(job->problem, query, &lo, &hi);
    int64_t from = o->near_sinks < hi ? o->near_sinks : hi, end = hi - o->near_window > from ? hi - o->near_window : from;
    for (int64_t j = 0; j < from; j++) {
        room->ids[count++] = (int32_t)j;
    }
    for (int64_t j = end; j < hi; j++) {
        room->ids[count++] = (int32_t)j;
    }
    *near = count;
    return count + look_up(job, room, hashed, from, end, room->ids + count);
}

static void keep_list(const lsh_job *job, const lsh_room *room, int64_t head, int64_t query, double sum, int64_t count)
{
    int64_t row = (head - job->block.kv_head * job->problem->g) * job->block.queries + query - job->block.query;
    int64_t at = job->lists->first[row];
    job->lists->fixed[row] = job->lists->count[row] = count;
    memcpy(job->lists->keys + at, room->ids, (size_t)count * sizeof *room->ids);
    for (int64_t i = 0; i < count; i++) {
        job->lists->shares[at + i] = (float)((double)room->logits[i] / sum);
    }
}

static void attend_row(const lsh_job *job, lsh_room *room, const float *q, const float *hashed, int64_t head, int64_t query)
{
    const kna__problem *p = job->problem;
    int64_t near, count = choose(job, room, hashed, query, &near);
    p->kernels->dot_at[p->k.type](room->logits, 0, q, 0, 1, kna__span_at(&p->k, job->kv_head, 0), room->ids, (size_t)count,
                                  (size_t)p->d);
    weigh(job, room, q, room->ids + near, room->logits + near, count - near);
    kna__state state = kna__soften(p->kernels, room->logits, count);
    if (job->lists) {
        keep_list(job, room, head, query, state.sum, count);
        return;
    }
    job->full[head * p->m + query] = (int32_t)count;
    memset(room->out, 0, (size_t)p->dv * sizeof *room->out);
    p->kernels->mix_at[p->v.type](room->out, 0, room->logits, 0, 1, kna__span_at(&p->v, job->kv_head, 0), room->ids, (size_t)count,
                                  (size_t)p->dv);
    kna__state_write(p, head, query, state, room->out);
}

/* Rows of the block, PIECE at a time. */
static void attend_piece(void *argument, int64_t piece, int worker)
{
    const lsh_job *job = argument;
    const kna__problem *p = job->problem;
    size_t unused;
    lsh_room room = cut_room(job, worker, &unused);
    int64_t first = job->block.query * p->g + piece * PIECE, end = (job->block.query + job->block.queries) * p->g;
    int64_t count = end - first < PIECE ? end - first : PIECE;
    kna__queries_read(p, room.x, job->kv_head, first, count);
    hash(job, &room, count);
    for (int64_t r = 0; r < count; r++) {
        int64_t head = job->kv_head * p->g + (first + r) % p->g;
        attend_row(job, &room, room.x + r * p->d, room.hashed + r * job->hashes, head, (first + r) / p->g);
    }
}

static void attend_block(lsh_job *job, kna__lists_block block)
{
    const kna__problem *p = job->problem;
    job->block = block;
    kna__parallel_for(p->context->threads, (block.queries * p->g + PIECE - 1) / PIECE, attend_piece, job);
}

/* ---- calls */

static lsh_job job_of(const kna__problem *p)
{
    lsh_job job = { .problem = p, .bits = p->options.hash_bits, .tables = p->options.hash_tables };
    job.buckets = INT64_C(1) << job.bits;
    job.hashes = job.bits * job.tables;
    return job;
}

/* Memory of a job, from the heap: gradients use the scratch besides. */
static int begin(lsh_job *job, char **held, size_t *bytes)
{
    const kna__problem *p = job->problem;
    size_t unused;
    *bytes = cut_job(job, NULL);
    *held = kna__allocate(&p->context->heap, *bytes);
    if (!*held) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of hash tables", *bytes);
    }
    cut_job(job, *held);
    for (int worker = 0; worker < p->context->threads; worker++) {
        memset(cut_room(job, worker, &unused).met, 0, (size_t)p->n * sizeof(uint16_t));
    }
    kna__parallel_for(p->context->threads, job->hashes, draw_projection, job);
    return KNA_OK;
}

int kna__attend_lsh(const kna__problem *p, kna_report *report)
{
    lsh_job job = job_of(p);
    char *held;
    size_t bytes;
    KNA_TRY(begin(&job, &held, &bytes));
    for (int64_t kv_head = 0; kv_head < p->h_kv; kv_head++) {
        make_tables(&job, kv_head);
        attend_block(&job, (kna__lists_block){ kv_head, 1, 0, p->m });
    }
    for (int64_t row = 0; row < p->h * p->m; row++) {
        report->keys_full += job.full[row];
    }
    kna__release(&p->context->heap, held, bytes);
    return KNA_OK;
}

/* ---- gradients: what keys are looked at and what each stands for held fixed */

static void differentiate_head(const kna__backward *b, lsh_job *job, kna__lists *lists, int64_t kv_head, int64_t together)
{
    const kna__problem *p = job->problem;
    make_tables(job, kv_head);
    for (int64_t query = 0; query < p->m; query += together) {
        kna__lists_block block = { kv_head, 1, query, p->m - query < together ? p->m - query : together };
        for (int64_t row = 0; row <= p->g * block.queries; row++) {
            lists->first[row] = row * p->n;
        }
        for (int64_t row = 0; row < p->g * block.queries; row++) {
            lists->weight[row] = 1;
        }
        attend_block(job, block);
        kna__lists_differentiate(b, lists, block);
    }
}

int kna__backward_lsh(const kna__backward *b)
{
    const kna__problem *p = &b->problem;
    lsh_job job = job_of(p);
    kna__lists lists;
    kna__cutter cutter = { NULL, 0 };
    int64_t together = ENTRIES / (p->n * p->g) < 1 ? 1 : ENTRIES / (p->n * p->g);
    together = together < p->m ? together : p->m;
    kna__lists_cut(&lists, p->g * together, p->g * together * p->n, &cutter);
    cutter = (kna__cutter){ kna__scratch(p->context, cutter.used), 0 };
    if (!cutter.base) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for lists of %lld keys", (long long)(p->g * together * p->n));
    }
    kna__lists_cut(&lists, p->g * together, p->g * together * p->n, &cutter);
    char *held;
    size_t bytes;
    KNA_TRY(begin(&job, &held, &bytes));
    job.lists = &lists;
    for (int64_t kv_head = 0; kv_head < p->h_kv; kv_head++) {
        differentiate_head(b, &job, &lists, kv_head, together);
    }
    kna__release(&p->context->heap, held, bytes);
    return KNA_OK;
}
