/*
 * strata.h - the keys of a call divided into cells of about 16 alike, for methods that sample and for bounds that hold whatever
 * the head. strata.c makes them, once for a call; strata_row.c says what one row may use of them.
 *
 * Three divisions of the same rows stand side by side: blocks of 16 rows as they come, clusters of pieces of 256 rows, clusters of
 * segments of 1,024. A row uses a segment's where it sees all of it, else those of the pieces it sees whole, else the blocks; a key
 * in none of them is loose, and is read in full. So what a row computes depends on keys it sees alone, not on what came later, nor
 * on how many queries a call has. Clusters are formed as kNN attention forms them, in the plain metric: that of the queries would
 * depend on which ones the call has. An index of clusters, where one is given, brings its own.
 */
#ifndef KNA_STRATA_H
#define KNA_STRATA_H

#include "problem.h"

enum { KNA_STRATA_BLOCKS, KNA_STRATA_PIECES, KNA_STRATA_SEGMENTS, KNA_STRATA_LEVELS };

/* Cells are numbered by level, then by row / 16 as slots of clusters are: per KV head LEVELS * cells of them. */
typedef struct kna__strata {
    kna__heap *heap;
    char *block; /* all that follow */
    size_t bytes;
    int64_t cells;   /* of a level: n / 16 */
    uint8_t *formed; /* (levels, cells): at the first cell of a unit, whether there is one */
    float *key;      /* (h_kv, levels, cells, d) mean key */
    float *value;    /* (h_kv, levels, cells, dv) mean value */
    float *norm;     /* (h_kv, levels, cells) |mean key| */
    float *reach;    /* likewise: no member's key is farther from the mean, */
    float *stray;    /* no member's value */
    int32_t *count;  /* members */
    int32_t *first;  /* where they start in `member` of their level */
    int32_t *member; /* (h_kv, levels, cells * 16): rows */
} kna__strata;

static inline int64_t kna__strata_rows(int level)
{
    return level == KNA_STRATA_BLOCKS ? KNA_BLOCK : level == KNA_STRATA_PIECES ? KNA_PIECE : KNA_SEGMENT;
}

/* Of a cell of a KV head. */
static inline const int32_t *kna__strata_members(const kna__strata *s, int64_t kv_head, int32_t cell)
{
    int64_t level = cell / s->cells, base = kv_head * KNA_STRATA_LEVELS;
    return s->member + (base + level) * s->cells * KNA_BLOCK + s->first[base * s->cells + cell];
}

/*
 * `index`: which rows are present; one of KNA_KNN gives the clusters too. After an error nothing is held. Clobbers the context's
 * scratch.
 */
int kna__strata_new(const kna__problem *problem, const kna_index *index, kna__strata *strata);
void kna__strata_free(kna__strata *strata);

/* Whether a call needs them. */
bool kna__needs_strata(const kna_attend_options *options);

/* What a row uses. Logits and masses are less the sampler's shift once kna__cells_weigh() has been called. */
typedef struct kna__cells {
    int64_t count;
    int32_t *cell;  /* (count) as numbered in kna__strata */
    int32_t *of;    /* (ld): which of these a key is in, -1: none */
    int32_t *first; /* (count): its keys outside the head are tail[first .. first + rest - 1] */
    int32_t *rest;
    int32_t *share;        /* (count): samples allotted */
    double *mean;          /* (count): logit of the mean of these keys */
    double *lower, *upper; /* no logit of these keys is outside */
    double *mass;          /* what they weigh by their mean: count * exp(mean) */
    double *least, *most;  /* what they weigh is between */
    double *sums;          /* of weights to draw cells by, first to last */
    float *product;        /* (count) */
    float *lift;           /* (ld): what mask or slopes add to a key's logit; NULL: nothing */
    bool linear;           /* a logit is a product: nothing is added, no soft cap */
} kna__cells;

void kna__cells_cut(kna__cells *cells, const kna__problem *problem, int64_t ld, kna__cutter *cutter);

#endif
