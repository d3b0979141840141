/*
 * kmeans.c - a few hundred rows into groups of about 16 that lie close together.
 *
 * First a balanced tree: each node is cut in half at the median along the line between the means of its halves, starting from
 * two far rows; its leaves come in an order in which neighbours are near. Then three steps of Lloyd's algorithm, which may move
 * any row to any group, so groups end up of unequal size. Measured on real heads (segments of 2,048, 8,192 keys, error of
 * attention with 256 keys in full): tree alone 5.9 %, with 1, 2, 3 steps 5.2, 5.1, 4.9 %; six steps of plain k-means, which has no
 * tree, 5.0 %; segments of 1,024 the same as of 2,048.
 *
 * Sums are taken in row order, so a result is the same wherever and whenever it is computed.
 */
#include "clusters.h"

#include <math.h>

enum { LEAF = KNA_MEMBERS, HALVINGS = 2, STEPS = 3, TILE = 64 };

void kna__kmeans_cut(kna__kmeans_room *room, size_t rows, size_t dim, size_t clusters, kna__cutter *cutter)
{
    room->norm = kna__cut(cutter, rows, sizeof(float));
    room->at = kna__cut(cutter, rows, sizeof(float));
    room->copy = kna__cut(cutter, rows, sizeof(float));
    room->ones = kna__cut(cutter, rows, sizeof(float));
    room->order = kna__cut(cutter, rows, sizeof(int32_t));
    room->moved = kna__cut(cutter, rows, sizeof(int32_t));
    room->low = kna__cut(cutter, dim, sizeof(float));
    room->high = kna__cut(cutter, dim, sizeof(float));
    room->axis = kna__cut(cutter, dim, sizeof(float));
    room->centre = kna__cut(cutter, clusters * dim, sizeof(float));
    room->turned = kna__cut(cutter, clusters * dim, sizeof(float));
    room->product = kna__cut(cutter, TILE * clusters, sizeof(float));
    room->size = kna__cut(cutter, clusters, sizeof(float));
}

typedef struct tree {
    const kna__kernels *kernels;
    const kna__kmeans_room *room;
    const float *x;
    size_t dim;
} tree;

static kna__span rows_of(const tree *t)
{
    kna__span span = { (const char *)t->x, t->dim * sizeof(float), NULL };
    return span;
}

static void mean_of(const tree *t, float *mean, const int32_t *ids, int64_t n)
{
    memset(mean, 0, t->dim * sizeof *mean);
    t->kernels->mix_at[KNA_F32](mean, 0, t->room->ones, 0, 1, rows_of(t), ids, (size_t)n, t->dim);
    t->kernels->scale(mean, 1.0f / (float)n, t->dim);
}

/* The row farthest from a point. */
static int32_t farthest(const tree *t, const float *point, const int32_t *ids, int64_t n)
{
    int64_t best = 0;
    float most = -INFINITY;
    t->kernels->dot_at[KNA_F32](t->room->at, 0, point, 0, 1, rows_of(t), ids, (size_t)n, t->dim);
    for (int64_t i = 0; i < n; i++) {
        float away = t->room->norm[ids[i]] - 2 * t->room->at[i];
        if (away > most) {
            most = away;
            best = i;
        }
    }
    return ids[best];
}

/* The `low` rows with the smallest projections to the front, each side in the order it had. */
static void halve(const tree *t, int32_t *ids, int64_t n, int64_t low)
{
    const kna__kmeans_room *room = t->room;
    t->kernels->dot_at[KNA_F32](room->at, 0, room->axis, 0, 1, rows_of(t), ids, (size_t)n, t->dim);
    memcpy(room->copy, room->at, (size_t)n * sizeof(float));
    float border = kna__kth_largest(room->copy, (size_t)n, (size_t)(n - low)); /* the smallest of the high side */
    int64_t above = 0;
    for (int64_t i = 0; i < n; i++) {
        above += room->at[i] > border;
    }
    int64_t equal = n - low - above, front = 0, back = low; /* so many of the equal ones go high: the first */
    for (int64_t i = 0; i < n; i++) {
        bool is_high = room->at[i] > border || (room->at[i] == border && equal-- > 0);
        bool fits = is_high ? back < n : front < low;
        room->moved[(is_high == fits) ? back++ : front++] =
            ids[i]; /* NaN compares with nothing: there is always room on one side */
    }
    memcpy(ids, room->moved, (size_t)n * sizeof *ids);
}

static void divide(const tree *t, int32_t *ids, int64_t n)
{
    const kna__kmeans_room *room = t->room;
    if (n <= LEAF) {
        return;
    }
    int64_t low = LEAF;
    while (2 * low < n) {
        low *= 2;
    }
    mean_of(t, room->low, ids, n);
    memcpy(room->low, t->x + (size_t)farthest(t, room->low, ids, n) * t->dim, t->dim * sizeof(float));
    memcpy(room->high, t->x + (size_t)farthest(t, room->low, ids, n) * t->dim, t->dim * sizeof(float));
    for (int step = 0; step < HALVINGS; step++) {
        for (size_t c = 0; c < t->dim; c++) {
            room->axis[c] = room->high[c] - room->low[c];
        }
        halve(t, ids, n, low);
        mean_of(t, room->low, ids, low);
        mean_of(t, room->high, ids + low, n - low);
    }
    divide(t, ids, low);
    divide(t, ids + low, n - low);
}

/* Means of the groups; an empty one keeps the centre it had. */
static void centres_of(const tree *t, const int32_t *assigned, int64_t n, int64_t clusters)
{
    const kna__kmeans_room *room = t->room;
    float *members = room->size;
    memset(members, 0, (size_t)clusters * sizeof *members);
    for (int64_t i = 0; i < n; i++) {
        float *centre = room->centre + (size_t)assigned[i] * t->dim;
        if (members[assigned[i]]++ == 0) {
            memset(centre, 0, t->dim * sizeof *centre);
        }
        t->kernels->axpy(centre, 1.0f, t->x + (size_t)i * t->dim, t->dim);
    }
    for (int64_t c = 0; c < clusters; c++) {
        float *centre = room->centre + (size_t)c * t->dim;
        if (members[c] > 0) {
            t->kernels->scale(centre, 1.0f / members[c], t->dim);
        }
        room->size[c] = kna__square(t->kernels, centre, (int64_t)t->dim);
    }
}

static void assign(const tree *t, int32_t *assigned, int64_t n, int64_t clusters)
{
    const kna__kmeans_room *room = t->room;
    size_t groups = (size_t)clusters;
    t->kernels->transpose(room->turned, groups, room->centre, t->dim, groups, t->dim);
    for (int64_t first = 0; first < n; first += TILE) {
        int64_t rows = n - first < TILE ? n - first : TILE;
        t->kernels->gemm(room->product, groups, t->x + (size_t)first * t->dim, t->dim, room->turned, groups, (size_t)rows, groups,
                         t->dim, false);
        for (int64_t r = 0; r < rows; r++) {
            const float *product = room->product + r * clusters;
            float least = INFINITY;
            for (int64_t c = 0; c < clusters; c++) {
                float away = room->size[c] - 2 * product[c];
                if (away < least) {
                    least = away;
                    assigned[first + r] = (int32_t)c;
                }
            }
        }
    }
}

void kna__kmeans(const kna__kernels *kernels, int32_t *assigned, const float *x, int64_t n, int64_t dim, int64_t clusters,
                 const kna__kmeans_room *room)
{
    tree t = { kernels, room, x, (size_t)dim };
    for (int64_t i = 0; i < n; i++) {
        room->norm[i] = kna__square(kernels, x + i * dim, dim);
        room->ones[i] = 1;
        room->order[i] = (int32_t)i;
    }
    divide(&t, room->order, n);
    for (int64_t i = 0; i < n; i++) {
        int64_t leaf = i / LEAF;
        assigned[room->order[i]] = (int32_t)(leaf < clusters ? leaf : clusters - 1);
    }
    for (int step = 0; step < STEPS; step++) {
        centres_of(&t, assigned, n, clusters);
        assign(&t, assigned, n, clusters);
    }
}
