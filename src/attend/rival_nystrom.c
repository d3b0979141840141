/*
 * rival_nystrom.c - attention as a product of three small ones by way of `rank` landmarks, the means of runs of queries and of keys
 * (Xiong et al. 2021): softmax(Q K~') Z softmax(Q~ K') V, Z the pseudo-inverse of softmax(Q~ K~') by their iteration, six steps.
 * Their convolution of the values is left out: it is learned. No log-sum-exp comes out of it: lse is NaN.
 */
#include "rivals.h"

typedef struct nystrom_job {
    const kna__problem *problem;
    int64_t rank;
    char *rooms;
    size_t room_bytes;
} nystrom_job;

/* L = rank. */
typedef struct nystrom_room {
    float *q, *k, *v;                          /* (m, d), (n, d), (n, dv) */
    float *landmark_q, *landmark_k, *turned_k; /* (L, d), (L, d), (d, L) */
    float *weights;                            /* (max(m, n) or L, L) in either order */
    float *mixed, *solved;                     /* (L, dv) */
    double *a, *z, *steps;                     /* (L, L), and three of that */
} nystrom_room;

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static nystrom_room cut_room(const nystrom_job *job, char *base, size_t *bytes)
{
    const kna__problem *p = job->problem;
    kna__cutter cutter = { base, 0 };
    size_t rank = (size_t)job->rank, d = (size_t)p->d, dv = (size_t)p->dv, longest = (size_t)larger(larger(p->m, p->n), job->rank);
    nystrom_room room;
    room.q = kna__cut(&cutter, kna__size_product((size_t)p->m, d), sizeof(float));
    room.k = kna__cut(&cutter, kna__size_product((size_t)p->n, d), sizeof(float));
    room.v = kna__cut(&cutter, kna__size_product((size_t)p->n, dv), sizeof(float));
    room.landmark_q = kna__cut(&cutter, rank * d, sizeof(float));
    room.landmark_k = kna__cut(&cutter, rank * d, sizeof(float));
    room.turned_k = kna__cut(&cutter, rank * d, sizeof(float));
    room.weights = kna__cut(&cutter, kna__size_product(longest, rank), sizeof(float));
    room.mixed = kna__cut(&cutter, rank * dv, sizeof(float));
    room.solved = kna__cut(&cutter, rank * dv, sizeof(float));
    room.a = kna__cut(&cutter, rank * rank, sizeof(double));
    room.z = kna__cut(&cutter, rank * rank, sizeof(double));
    room.steps = kna__cut(&cutter, 3 * rank * rank, sizeof(double));
    *bytes = cutter.used;
    return room;
}

/* softmax of each of `rows` rows of `count` numbers. */
void kna__nystrom_soften(const kna__problem *p, float *x, int64_t rows, int64_t count)
{
    for (int64_t r = 0; r < rows; r++) {
        kna__state state = kna__soften(p->kernels, x + r * count, count);
        p->kernels->scale(x + r * count, (float)(1 / state.sum), (size_t)count);
    }
}

/* ---- the pseudo-inverse */

/* out = x y, (n, n) each. */
static void multiply(double *out, const double *x, const double *y, int64_t n)
{
    memset(out, 0, (size_t)(n * n) * sizeof *out);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < n; k++) {
            for (int64_t j = 0; j < n; j++) {
                out[i * n + j] += x[i * n + k] * y[k * n + j];
            }
        }
    }
}

/* x = c I - x */
static void complement(double *x, double c, int64_t n)
{
    for (int64_t i = 0; i < n * n; i++) {
        x[i] = (i % (n + 1) == 0 ? c : 0) - x[i];
    }
}

/* One that makes the iteration converge: the transpose over the largest sums of rows and of columns. */
void kna__nystrom_guess(const double *a, double *z, int64_t n)
{
    double rows = 0, columns = 0;
    for (int64_t i = 0; i < n; i++) {
        double row = 0, column = 0;
        for (int64_t j = 0; j < n; j++) {
            row += fabs(a[i * n + j]);
            column += fabs(a[j * n + i]);
        }
        rows = fmax(rows, row);
        columns = fmax(columns, column);
    }
    for (int64_t i = 0; i < n * n; i++) {
        z[i] = a[i % n * n + i / n] / rows / columns;
    }
}

/* z (13 I - az (15 I - az (7 I - az))) / 4 */
void kna__nystrom_improve(const double *a, const double *z, double *better, double *room, int64_t n)
{
    double *az = room, *u = az + n * n, *other = u + n * n;
    multiply(az, a, z, n);
    memcpy(u, az, (size_t)(n * n) * sizeof *u);
    complement(u, 7, n);
    multiply(other, az, u, n);
    complement(other, 15, n);
    multiply(u, az, other, n);
    complement(u, 13, n);
    multiply(other, z, u, n);
    for (int64_t i = 0; i < n * n; i++) {
        better[i] = other[i] / 4;
    }
}

static void invert(const kna__problem *p, nystrom_room *room, int64_t n)
{
    float *a = room->weights;
    size_t d = (size_t)p->d, rank = (size_t)n;
    p->kernels->gemm(a, rank, room->landmark_q, d, room->turned_k, rank, rank, rank, d, false);
    kna__nystrom_soften(p, a, n, n);
    for (int64_t i = 0; i < n * n; i++) {
        room->a[i] = (double)a[i];
    }
    kna__nystrom_guess(room->a, room->z, n);
    for (int step = 0; step < KNA_NYSTROM_STEPS; step++) {
        kna__nystrom_improve(room->a, room->z, room->z, room->steps, n);
    }
}

/* ---- a head */

/* softmax(Q~ K') V: exact attention of the landmarks. */
static void mix_values(const kna__problem *p, nystrom_room *room, int64_t rank)
{
    size_t d = (size_t)p->d, dv = (size_t)p->dv, n = (size_t)p->n, landmarks = (size_t)rank;
    kna__span keys = { (const char *)room->k, d * sizeof(float), NULL },
              values = { (const char *)room->v, dv * sizeof(float), NULL };
    memset(room->mixed, 0, landmarks * dv * sizeof *room->mixed);
    p->kernels->dot[KNA_F32](room->weights, n, room->landmark_q, d, landmarks, keys, n, d);
    kna__nystrom_soften(p, room->weights, rank, p->n);
    p->kernels->mix[KNA_F32](room->mixed, dv, room->weights, n, landmarks, values, n, dv);
}

static void solve(const kna__problem *p, nystrom_room *room, int64_t rank)
{
    for (int64_t i = 0; i < rank; i++) {
        for (int64_t c = 0; c < p->dv; c++) {
            double sum = 0;
            for (int64_t j = 0; j < rank; j++) {
                sum += room->z[i * rank + j] * (double)room->mixed[j * p->dv + c];
            }
            room->solved[i * p->dv + c] = (float)sum;
        }
    }
}

static void write_rows(const kna__problem *p, nystrom_room *room, int64_t head, int64_t rank)
{
    size_t d = (size_t)p->d, dv = (size_t)p->dv;
    p->kernels->gemm(room->weights, (size_t)rank, room->q, d, room->turned_k, (size_t)rank, (size_t)p->m, (size_t)rank, d, false);
    kna__nystrom_soften(p, room->weights, p->m, rank);
    for (int64_t query = 0; query < p->m; query++) {
        p->kernels->gemm(kna__out_at(p, head, query), dv, room->weights + query * rank, (size_t)rank, room->solved, dv, 1, dv,
                         (size_t)rank, false);
        if (p->lse) {
            p->lse[head * p->m + query] = NAN;
        }
    }
}

static void attend_head(void *argument, int64_t head, int worker)
{
    const nystrom_job *job = argument;
    const kna__problem *p = job->problem;
    int64_t rank = job->rank;
    size_t unused;
    nystrom_room room = cut_room(job, job->rooms + (size_t)worker * job->room_bytes, &unused);
    kna__rival_widen(p, &p->q, head, 0, p->m, room.q);
    p->kernels->scale(room.q, p->scale, (size_t)(p->m * p->d));
    kna__rival_widen(p, &p->k, head / p->g, 0, p->n, room.k);
    kna__rival_widen(p, &p->v, head / p->g, 0, p->n, room.v);
    kna__rival_means(p->kernels, room.q, p->m, p->d, rank, room.landmark_q, NULL);
    kna__rival_means(p->kernels, room.k, p->n, p->d, rank, room.landmark_k, NULL);
    p->kernels->transpose(room.turned_k, (size_t)rank, room.landmark_k, (size_t)p->d, (size_t)rank, (size_t)p->d);
    invert(p, &room, rank);
    mix_values(p, &room, rank);
    solve(p, &room, rank);
    write_rows(p, &room, head, rank);
}

int64_t kna__nystrom_rank(const kna__problem *p)
{
    int64_t rank = p->options.rank ? p->options.rank : 64;
    rank = rank < p->n ? rank : p->n;
    return rank < p->m ? rank : p->m;
}

int kna__attend_nystrom(const kna__problem *p, kna_report *report)
{
    (void)report;
    nystrom_job job = { p, kna__nystrom_rank(p), NULL, 0 };
    cut_room(&job, NULL, &job.room_bytes);
    job.rooms = kna__scratch(p->context, kna__size_product(job.room_bytes, (size_t)p->context->threads));
    if (!job.rooms) {
        return KNA_FAIL(p->context, KNA_ENOMEM, "out of memory for %zu bytes of scratch per thread", job.room_bytes);
    }
    kna__parallel_for(p->context->threads, p->h, attend_head, &job);
    return KNA_OK;
}
