/*
 * backward_nystrom.c - gradients of attention by landmarks (rival_nystrom.c): O = F Z B V with F = softmax(Q K~'), B = softmax(Q~ K'),
 * Z the iteration's inverse of A = softmax(Q~ K~'), Q~ and K~ means of runs of queries and of keys. All of it is differentiated: the
 * softmaxes, the means, the six steps of the iteration and its start.
 *
 * A step z' = z (13 I - w (15 I - w (7 I - w))) / 4 with w = a z, u1 = 7 I - w, u2 = 15 I - w u1, u3 = 13 I - w u2, given G = dz':
 *   du3 = z' G / 4    du2 = -w' du3    du1 = -w' du2    dw = -du3 u2' - du2 u1' - du1    dz = G u3' / 4 + a' dw    da += dw z'
 * (' on the right a transpose). The start is a' over the largest sums of rows and of columns: rows of a softmax add up to 1, so
 * the first is a constant; the second belongs to the column that has it.
 *
 * Invariant: a KV head is one task, its query heads in order, so sums of dK and dV do not depend on the threads.
 */
#include "backward.h"
#include "rivals.h"

enum { Z_COUNT = KNA_NYSTROM_STEPS + 1, ROOMS = 9 };

typedef struct nystrom_back {
    const kna__backward *b;
    int64_t rank;
    char *rooms;
    size_t room_bytes;
} nystrom_back;

/* L = rank. */
typedef struct nystrom_room {
    float *q, *k, *v, *dout;                         /* (m, d) scaled, (n, d), (n, dv), (m, dv) */
    float *queries, *keys, *dqueries, *dkeys;        /* landmarks (L, d) and their gradients */
    float *far, *dfar, *back, *dback;                /* (m, L) and (L, n): F and B */
    float *turned;                                   /* (max(m, n, L), max(L, d, dv)) */
    float *mixed, *solved, *dmixed, *dsolved;        /* (L, dv): B V, Z B V */
    float *dq;                                       /* (m, d) */
    float *small;                                    /* (L, L) */
    double *a, *da, *z[Z_COUNT], *dz, *rooms[ROOMS]; /* (L, L) */
    double *steps;                                   /* three of that, for the forward call */
} nystrom_room;

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static nystrom_room cut_room(const nystrom_back *job, char *base, size_t *bytes)
{
    const kna__problem *p = &job->b->problem;
    kna__cutter cutter = { base, 0 };
    size_t rank = (size_t)job->rank, d = (size_t)p->d, dv = (size_t)p->dv, m = (size_t)p->m, n = (size_t)p->n;
    size_t longest = (size_t)larger(larger(p->m, p->n), job->rank), widest = (size_t)larger(larger(p->d, p->dv), job->rank);
    nystrom_room room;
    float **of_d[] = { &room.queries, &room.keys, &room.dqueries, &room.dkeys };
    float **of_dv[] = { &room.mixed, &room.solved, &room.dmixed, &room.dsolved };
    room.q = kna__cut(&cutter, kna__size_product(m, d), sizeof(float));
    room.dq = kna__cut(&cutter, kna__size_product(m, d), sizeof(float));
    room.k = kna__cut(&cutter, kna__size_product(n, d), sizeof(float));
    room.v = kna__cut(&cutter, kna__size_product(n, dv), sizeof(float));
    room.dout = kna__cut(&cutter, kna__size_product(m, dv), sizeof(float));
    for (int i = 0; i < 4; i++) {
        *of_d[i] = kna__cut(&cutter, rank * d, sizeof(float));
        *of_dv[i] = kna__cut(&cutter, rank * dv, sizeof(float));
    }
    room.far = kna__cut(&cutter, kna__size_product(m, rank), sizeof(float));
    room.dfar = kna__cut(&cutter, kna__size_product(m, rank), sizeof(float));
    room.back = kna__cut(&cutter, kna__size_product(n, rank), sizeof(float));
    room.dback = kna__cut(&cutter, kna__size_product(n, rank), sizeof(float));
    room.turned = kna__cut(&cutter, kna__size_product(longest, widest), sizeof(float));
    room.small = kna__cut(&cutter, rank * rank, sizeof(float));
    room.a = kna__cut(&cutter, rank * rank, sizeof(double));
    room.da = kna__cut(&cutter, rank * rank, sizeof(double));
    room.dz = kna__cut(&cutter, rank * rank, sizeof(double));
    for (int i = 0; i < Z_COUNT; i++) {
        room.z[i] = kna__cut(&cutter, rank * rank, sizeof(double));
    }
    for (int i = 0; i < ROOMS; i++) {
        room.rooms[i] = kna__cut(&cutter, rank * rank, sizeof(double));
    }
    room.steps = kna__cut(&cutter, 3 * rank * rank, sizeof(double));
    *bytes = cutter.used;
    return room;
}

/* c (rows, columns) at ldc (+)= a b; a (rows, inner), b (inner, columns), both packed. */
static void multiply(const kna__problem *p, float *c, int64_t ldc, const float *a, const float *b, int64_t rows, int64_t columns,
                     int64_t inner, bool accumulate)
{
    p->kernels->gemm(c, (size_t)ldc, a, (size_t)inner, b, (size_t)columns, (size_t)rows, (size_t)columns, (size_t)inner,
                     accumulate);
}

/* x (rows, columns) turned, into the room. */
static const float *turn(const kna__problem *p, const nystrom_room *room, const float *x, int64_t rows, int64_t columns)
{
    p->kernels->transpose(room->turned, (size_t)rows, x, (size_t)columns, (size_t)rows, (size_t)columns);
    return room->turned;
}

/* dP to dS, in place: P (dP - <P, dP>) row by row. */
static void slope(const kna__problem *p, const float *weights, float *slopes, int64_t rows, int64_t count)
{
    for (int64_t r = 0; r < rows; r++) {
        double delta = 0;
        for (int64_t j = 0; j < count; j++) {
            delta += (double)weights[r * count + j] * (double)slopes[r * count + j];
        }
        p->kernels->tilt(slopes + r * count, weights + r * count, (float)delta, (size_t)count);
    }
}

/* ---- (L, L) in double */

/* out (+)= factor x y, or with x or y turned. */
typedef struct product {
    const double *x, *y;
    bool turns_x, turns_y;
    double factor;
} product;

static void add_product(double *out, product of, int64_t n, bool accumulate)
{
    if (!accumulate) {
        memset(out, 0, (size_t)(n * n) * sizeof *out);
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < n; k++) {
            double x = of.factor * (of.turns_x ? of.x[k * n + i] : of.x[i * n + k]);
            for (int64_t j = 0; j < n; j++) {
                out[i * n + j] += x * (of.turns_y ? of.y[j * n + k] : of.y[k * n + j]);
            }
        }
    }
}

/* c I - x */
static void complement(double *out, const double *x, double c, int64_t n)
{
    for (int64_t i = 0; i < n * n; i++) {
        out[i] = (i % (n + 1) == 0 ? c : 0) - x[i];
    }
}

/* One step back: dz of z[step + 1] becomes that of z[step]; adds to da. */
static void differentiate_step(const nystrom_room *room, int step, int64_t n)
{
    double *const *r = room->rooms, *w = r[0], *u1 = r[1], *u2 = r[2], *u3 = r[3], *du3 = r[4], *du2 = r[5], *du1 = r[6],
                  *dw = r[7];
    const double *z = room->z[step];
    add_product(w, (product){ room->a, z, false, false, 1 }, n, false);
    complement(u1, w, 7, n);
    add_product(r[8], (product){ w, u1, false, false, 1 }, n, false);
    complement(u2, r[8], 15, n);
    add_product(r[8], (product){ w, u2, false, false, 1 }, n, false);
    complement(u3, r[8], 13, n);
    add_product(du3, (product){ z, room->dz, true, false, 0.25 }, n, false);
    add_product(du2, (product){ w, du3, true, false, -1 }, n, false);
    add_product(du1, (product){ w, du2, true, false, -1 }, n, false);
    add_product(dw, (product){ du3, u2, false, true, -1 }, n, false);
    add_product(dw, (product){ du2, u1, false, true, -1 }, n, true);
    for (int64_t i = 0; i < n * n; i++) {
        dw[i] -= du1[i];
    }
    add_product(r[8], (product){ room->dz, u3, false, true, 0.25 }, n, false);
    add_product(r[8], (product){ room->a, dw, true, false, 1 }, n, true);
    memcpy(room->dz, r[8], (size_t)(n * n) * sizeof *r[8]);
    add_product(room->da, (product){ dw, z, false, true, 1 }, n, true);
}

/* z = a' / rows / columns, of which only the largest sum of a column varies. */
static void differentiate_guess(const nystrom_room *room, int64_t n)
{
    const double *z = room->z[0];
    double factor = 0, most = 0, along = 0;
    int64_t largest = 0;
    for (int64_t j = 0; j < n; j++) {
        double column = 0;
        for (int64_t i = 0; i < n; i++) {
            column += room->a[i * n + j];
        }
        largest = column > most ? j : largest;
        most = fmax(most, column);
    }
    for (int64_t i = 0; i < n * n; i++) {
        double a = room->a[i % n * n + i / n];
        factor = a > 0 ? z[i] / a : factor;
        along += room->dz[i] * z[i];
    }
    for (int64_t i = 0; i < n * n; i++) {
        room->da[i] += factor * room->dz[i % n * n + i / n] - (i % n == largest ? along / most : 0);
    }
}

/* dz to da, through the iteration. */
static void differentiate_inverse(const nystrom_room *room, int64_t n)
{
    memset(room->da, 0, (size_t)(n * n) * sizeof *room->da);
    for (int step = KNA_NYSTROM_STEPS - 1; step >= 0; step--) {
        differentiate_step(room, step, n);
    }
    differentiate_guess(room, n);
}

/* x (L, columns) times z or its transpose. */
static void by_inverse(const nystrom_room *room, bool turns, const float *x, float *out, int64_t rank, int64_t columns)
{
    const double *z = room->z[KNA_NYSTROM_STEPS];
    for (int64_t i = 0; i < rank; i++) {
        for (int64_t c = 0; c < columns; c++) {
            double sum = 0;
            for (int64_t j = 0; j < rank; j++) {
                sum += (turns ? z[j * rank + i] : z[i * rank + j]) * (double)x[j * columns + c];
            }
            out[i * columns + c] = (float)sum;
        }
    }
}

/* ---- a head */

/* The forward call again, all of it kept. */
static void attend(const kna__problem *p, nystrom_room *room, int64_t rank)
{
    kna__rival_means(p->kernels, room->q, p->m, p->d, rank, room->queries, NULL);
    kna__rival_means(p->kernels, room->k, p->n, p->d, rank, room->keys, NULL);
    const float *turned = turn(p, room, room->keys, rank, p->d);
    multiply(p, room->far, rank, room->q, turned, p->m, rank, p->d, false);
    multiply(p, room->small, rank, room->queries, turned, rank, rank, p->d, false);
    multiply(p, room->back, p->n, room->queries, turn(p, room, room->k, p->n, p->d), rank, p->n, p->d, false);
    kna__nystrom_soften(p, room->far, p->m, rank);
    kna__nystrom_soften(p, room->small, rank, rank);
    kna__nystrom_soften(p, room->back, rank, p->n);
    for (int64_t i = 0; i < rank * rank; i++) {
        room->a[i] = (double)room->small[i];
    }
    kna__nystrom_guess(room->a, room->z[0], rank);
    for (int step = 0; step < KNA_NYSTROM_STEPS; step++) {
        kna__nystrom_improve(room->a, room->z[step], room->z[step + 1], room->steps, rank);
    }
    multiply(p, room->mixed, p->dv, room->back, room->v, rank, p->dv, p->n, false);
    by_inverse(room, false, room->mixed, room->solved, rank, p->dv);
}

/* From dout to dF, dZ and dB. */
static void differentiate_mixes(const kna__problem *p, nystrom_room *room, int64_t rank)
{
    multiply(p, room->dfar, rank, room->dout, turn(p, room, room->solved, rank, p->dv), p->m, rank, p->dv, false);
    multiply(p, room->dsolved, p->dv, turn(p, room, room->far, p->m, rank), room->dout, rank, p->dv, p->m, false);
    multiply(p, room->small, rank, room->dsolved, turn(p, room, room->mixed, rank, p->dv), rank, rank, p->dv, false);
    for (int64_t i = 0; i < rank * rank; i++) {
        room->dz[i] = (double)room->small[i];
    }
    by_inverse(room, true, room->dsolved, room->dmixed, rank, p->dv);
    multiply(p, room->dback, p->n, room->dmixed, turn(p, room, room->v, p->n, p->dv), rank, p->n, p->dv, false);
}

/* dS of the small softmax, as f32, from da. */
static void slope_small(const nystrom_room *room, int64_t rank)
{
    for (int64_t i = 0; i < rank; i++) {
        double delta = 0;
        for (int64_t j = 0; j < rank; j++) {
            delta += room->a[i * rank + j] * room->da[i * rank + j];
        }
        for (int64_t j = 0; j < rank; j++) {
            room->small[i * rank + j] = (float)(room->a[i * rank + j] * (room->da[i * rank + j] - delta));
        }
    }
}

/* Logits to queries, keys and landmarks. */
static void differentiate_products(const kna__problem *p, nystrom_room *room, int64_t rank)
{
    slope(p, room->far, room->dfar, p->m, rank);
    slope(p, room->back, room->dback, rank, p->n);
    slope_small(room, rank);
    multiply(p, room->dq, p->d, room->dfar, room->keys, p->m, p->d, rank, false);
    multiply(p, room->dqueries, p->d, room->small, room->keys, rank, p->d, rank, false);
    multiply(p, room->dqueries, p->d, room->dback, room->k, rank, p->d, p->n, true);
    multiply(p, room->dkeys, p->d, turn(p, room, room->small, rank, rank), room->queries, rank, p->d, rank, false);
    multiply(p, room->dkeys, p->d, turn(p, room, room->dfar, p->m, rank), room->q, rank, p->d, p->m, true);
}

/* A mean's gradient to the rows of its run, in equal parts. */
static void spread(const kna__problem *p, const float *from, int64_t rank, const kna_out_rows *to, int64_t head, int64_t rows)
{
    for (int64_t part = 0; part < rank; part++) {
        int64_t first = part * rows / rank, end = (part + 1) * rows / rank;
        for (int64_t row = first; row < end; row++) {
            p->kernels->axpy(kna__gradient_at(to, head, row), 1 / (float)(end - first), from + part * p->d, (size_t)p->d);
        }
    }
}

static void write_queries(const kna__backward *b, const nystrom_room *room, int64_t head, int64_t rank)
{
    const kna__problem *p = &b->problem;
    if (!b->dq.data) {
        return;
    }
    for (int64_t query = 0; query < p->m; query++) {
        memcpy(kna__gradient_at(&b->dq, head, query), room->dq + query * p->d, (size_t)p->d * sizeof(float));
    }
    spread(p, room->dqueries, rank, &b->dq, head, p->m);
    for (int64_t query = 0; query < p->m; query++) {
        p->kernels->scale(kna__gradient_at(&b->dq, head, query), p->scale, (size_t)p->d);
    }
}

static void differentiate_head(const nystrom_back *job, nystrom_room *room, int64_t head)
{
    const kna__backward *b = job->b;
    const kna__problem *p = &b->problem;
    int64_t rank = job->rank, kv_head = head / p->g, number = (int64_t)sizeof(float);
    kna__rival_widen(p, &p->q, head, 0, p->m, room->q);
    p->kernels->scale(room->q, p->scale, (size_t)(p->m * p->d));
    kna__rival_widen(p, &b->dout, head, 0, p->m, room->dout);
    attend(p, room, rank);
    differentiate_mixes(p, room, rank);
    differentiate_inverse(room, rank);
    differentiate_products(p, room, rank);
    write_queries(b, room, head, rank);
    if (b->dk.data) {
        multiply(p, kna__gradient_at(&b->dk, kv_head, 0), b->dk.row_stride_bytes / number, turn(p, room, room->dback, rank, p->n),
                 room->queries, p->n, p->d, rank, true);
        spread(p, room->dkeys, rank, &b->dk, kv_head, p->n);
    }
    if (b->dv.data) {
        multiply(p, kna__gradient_at(&b->dv, kv_head, 0), b->dv.row_stride_bytes / number, turn(p, room, room->back, rank, p->n),
                 room->dmixed, p->n, p->dv, rank, true);
    }
}

static void differentiate_kv_head(void *argument, int64_t kv_head, int worker)
{
    const nystrom_back *job = argument;
    const kna__problem *p = &job->b->problem;
    size_t unused;
    nystrom_room room = cut_room(job, job->rooms + (size_t)worker * job->room_bytes, &unused);
    kna__rival_widen(p, &p->k, kv_head, 0, p->n, room.k);
    kna__rival_widen(p, &p->v, kv_head, 0, p->n, room.v);
    for (int64_t head = kv_head * p->g; head < (kv_head + 1) * p->g; head++) {
        differentiate_head(job, &room, head);
    }
}

int kna__backward_nystrom(const kna__backward *b)
{
    const kna__problem *p = &b->problem;
    nystrom_back job = { b, kna__nystrom_rank(p), NULL, 0 };
    cut_room(&job, NULL, &job.room_bytes);
    job.rooms = kna__scratch(p->context, kna__size_product(job.room_bytes, (size_t)p->context->threads));
    if (!job.rooms) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch per thread", job.room_bytes);
    }
    kna__parallel_for(p->context->threads, p->h_kv, differentiate_kv_head, &job);
    return KNA_OK;
}
