/*
 * clusters.h - the part of a kna_index that kNN attention reads: per KV head, rows cut into pieces of 256 consecutive ones, and
 * each piece, or four of them together (a segment), divided into clusters of about 16 keys whose logits and values are alike.
 *
 * A unit is a piece alone or a whole segment. Clusters are numbered by slot: 16 slots per piece, so that slot / 16 is a piece of
 * the unit; a unit may leave slots empty (count 0). Eight neighbouring clusters, which lie near each other, are also a group, with
 * means of its own. The first 16 rows of all belong to no cluster: keys there take so much of
 * the softmax (attention sinks) that no mean may hold them. Of every member is kept, in 4 bits a column, how far its key is from
 * the mean: enough to tell which members matter without going to the cache, where they lie apart.
 *
 * Invariant: a piece that is not open describes its rows as they were when it was formed, but for clusters marked `always`,
 * of which a member has been written since: those are read in full from the cache, whatever the query.
 */
#ifndef KNA_CLUSTERS_H
#define KNA_CLUSTERS_H

#include "../kernel/context.h"

enum {
    KNA_PIECE = 256,
    KNA_SLOTS = 16,                      /* clusters per piece */
    KNA_MEMBERS = KNA_PIECE / KNA_SLOTS, /* keys per cluster, in the mean */
    KNA_GROUP_SLOTS = 8,                 /* neighbouring clusters in a group */
    KNA_PIECE_GROUPS = KNA_SLOTS / KNA_GROUP_SLOTS,
    KNA_SEGMENT_PIECES = 4,
    KNA_SEGMENT = KNA_PIECE * KNA_SEGMENT_PIECES,
    KNA_FIRST_ROWS = 16 /* never in a cluster */
};

enum { KNA_PIECE_OPEN, KNA_PIECE_ALONE, KNA_PIECE_MERGED };

/* Clusters, and groups of KNA_GROUP_SLOTS of them side by side: what stands for their members. A group's number is slot / 8. */
enum { KNA_CLUSTERS, KNA_GROUPS, KNA_LEVELS };

typedef struct kna__level {
    uint16_t *key;    /* (heads, slots, d) f16: mean key */
    uint16_t *value;  /* (heads, slots, dv) f16: mean value */
    float *spread;    /* (heads, slots): variance of the members' logits, over |q|^2 */
    float *deviation; /* (heads, slots): root mean square of |value - mean value| */
    uint16_t *count;  /* (heads, slots): members */
} kna__level;

typedef struct kna__clusters {
    char *block;      /* all that follow */
    size_t bytes;     /* of it */
    int64_t capacity; /* pieces */
    kna__level level[KNA_LEVELS];
    float *norm;      /* (heads, slots): |mean key| */
    uint16_t *first;  /* (heads, slots): where they start in `member`, from the unit's first row on */
    uint16_t *member; /* (heads, rows): a member's row, counted from the unit's first row */
    float *step;      /* (heads, slots): from one code of a member to the next */
    uint8_t *
        code; /* (heads, quads of rows, 64 * chunks): keys less their mean key, as scan_codes() has them, in the order of `member` */
    uint8_t *always;  /* (heads, slots) */
    uint8_t *state;   /* (pieces) */
    uint8_t *touched; /* (pieces): rows written since it was formed */
} kna__clusters;

static inline int64_t kna__level_at(const kna__clusters *c, int level, int64_t head, int64_t slot)
{
    return head * c->capacity * (level == KNA_GROUPS ? KNA_PIECE_GROUPS : KNA_SLOTS) + slot;
}

static inline int64_t kna__cluster_slot(const kna__clusters *c, int64_t head, int64_t slot)
{
    return kna__level_at(c, KNA_CLUSTERS, head, slot);
}

/* Chunks of columns that the codes of a key take. */
static inline size_t kna__code_chunks(int64_t d)
{
    return ((size_t)d + KNA_CODE_CHUNK - 1) / KNA_CODE_CHUNK;
}

/* Whether a cluster, or one of a group's, is read in full always; `at` as above. */
static inline bool kna__level_always(const kna__clusters *c, int level, int64_t at)
{
    uint64_t group;
    if (level == KNA_CLUSTERS) {
        return c->always[at];
    }
    memcpy(&group, c->always + at * KNA_GROUP_SLOTS, sizeof group);
    return group != 0;
}

/* First row of the unit that holds a piece, and its rows. */
static inline int64_t kna__unit_row(const kna__clusters *c, int64_t piece)
{
    bool merged = c->state[piece] == KNA_PIECE_MERGED;
    return (merged ? piece / KNA_SEGMENT_PIECES * KNA_SEGMENT_PIECES : piece) * KNA_PIECE;
}

static inline int64_t kna__unit_rows(const kna__clusters *c, int64_t piece)
{
    return c->state[piece] == KNA_PIECE_MERGED ? KNA_SEGMENT : KNA_PIECE;
}

/* Rows of a cluster into ids, ascending; returns how many. */
int64_t kna__cluster_rows(const kna__clusters *clusters, int64_t head, int64_t slot, int32_t *ids);

/* clusters.c - life. */
size_t kna__clusters_bytes(const kna_index *index);
void kna__clusters_release(kna_index *index);
int kna__clusters_reserve(kna_context *context, kna_index *index, int64_t rows);
/* Rows first .. first + count - 1 have been written: few of a piece mark their clusters, many open it. */
void kna__clusters_touch(kna_index *index, int64_t first, int64_t count);
/* They are gone: their pieces are open. */
void kna__clusters_remove(kna_index *index, int64_t first, int64_t count);
/* Whether a cluster's means are, bit for bit, those of its members in the cache now. */
bool kna__cluster_is_stale(const kna__kernels *kernels, const kna_index *index, const kna_rows *k, const kna_rows *v, int64_t head,
                           int64_t slot);

/* metric.c - the queries' second moment per KV head, in which keys are compared. */
size_t kna__metric_bytes(const kna_index *index);
int kna__metric_reserve(kna_context *context, kna_index *index);
void kna__metric_release(kna_index *index);
/* Add rows of one head's queries, (rows,d) at ldq floats; heads may be added by different threads. */
void kna__metric_add(kna_index *index, const kna__kernels *kernels, int64_t head, const float *q, int64_t rows, int64_t ldq);
/* Whether it waits for a first query; never beyond KNA_METRIC_DIM columns, where it learns nothing. */
bool kna__metric_is_empty(const kna_index *index);
/*
 * The factor L, (d,d) lower triangle of S = L L', so that |(k - k') L|^2 is what the logits of k and k' differ by, squared, in
 * the mean over queries; *trace is tr S. Few queries are mixed with the identity. Beyond KNA_METRIC_DIM columns L is the identity.
 */
void kna__metric_factor(const kna_index *index, int64_t head, float *factor, double *trace);
enum { KNA_METRIC_DIM = 256 };

/* kmeans.c - divide rows x (n,dim) into `clusters` groups: assigned[i] < clusters. */
typedef struct kna__kmeans_room {
    float *norm;              /* n */
    float *at;                /* n */
    float *copy;              /* n */
    float *ones;              /* n, all 1 */
    int32_t *order;           /* n */
    int32_t *moved;           /* n */
    float *low, *high, *axis; /* dim */
    float *centre;            /* (clusters, dim) */
    float *turned;            /* (dim, clusters) */
    float *product;           /* (rows of a tile, clusters) */
    float *size;              /* clusters: |centre|^2 */
} kna__kmeans_room;
/* Room for at most so many rows, columns and groups, cut off a block. */
void kna__kmeans_cut(kna__kmeans_room *room, size_t rows, size_t dim, size_t clusters, kna__cutter *cutter);
void kna__kmeans(const kna__kernels *kernels, int32_t *assigned, const float *x, int64_t n, int64_t dim, int64_t clusters,
                 const kna__kmeans_room *room);

/*
 * residual.c - the codes of a unit's members, slots from `slot` on: k (rows of the unit from `origin` on, d) are its keys, residual has
 * room for as many numbers as k, codes for as many bytes. A cluster whose keys are not finite is read in full always.
 */
void kna__clusters_encode(kna_index *index, const kna__kernels *kernels, int64_t head, int64_t slot, int64_t slots, const float *k,
                          int64_t origin, float *residual, int8_t *codes);

/* form.c - form units: `pieces` are the first pieces, merged[i] whether the whole segment. Rows must be present in k and v. */
typedef struct kna__unit {
    int64_t piece;
    bool merged;
} kna__unit;
int kna__clusters_form(kna_context *context, kna_index *index, const kna_rows *k, const kna_rows *v, const kna__unit *units,
                       int64_t count);
/*
 * All units that end at or before row `limit`, a whole segment `late` rows later, a piece a quarter of that: those of which every
 * row is present and `sees` says yes (NULL: to all). Four pieces become a segment where they can.
 */
typedef bool (*kna__sees)(const void *argument, int64_t first, int64_t count);
int kna__clusters_form_ready(kna_context *context, kna_index *index, const kna_rows *k, const kna_rows *v, int64_t limit,
                             int64_t late, kna__sees sees, const void *argument);

#endif
