/*
 * kna_search.h - section 7 of kna.h, which includes it: the nearest rows of a store.
 */
#ifndef KNA_SEARCH_PUBLIC_H
#define KNA_SEARCH_PUBLIC_H

#include "kna.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------ 7. Search */

/*
 * The rows of a family that are nearest to a query, of the documents there are, or of those a filter keeps.
 *
 * A family may have an index: a file of int8 codes in the store's folder, made by kna_store_index(). It can be missing, older than the
 * rows, damaged or another store's: that costs time, and the report says so, but never an answer, for rows it does not cover are
 * looked at as they are. Scores are computed in double from the rows themselves, whatever found them. A row that holds NaN or infinity is
 * in no answer. Families of KNA_BYTES cannot be searched (KNA_ETYPE), nor those with 2^32 - 1 rows or more (KNA_ELIMIT).
 */
typedef struct kna_search kna_search;

typedef enum kna_metric {
    KNA_IP = 0,     /* <q,x> */
    KNA_COSINE = 1, /* <q,x> / |q||x|; 0 where one of them is 0 */
    KNA_L2 = 2      /* -|q - x|^2: as for the others, more is nearer */
} kna_metric;
#define KNA_METRIC_COUNT 3

/* Indexes of a family. */
typedef enum kna_search_index {
    KNA_SEARCH_AUTO = 0,    /* searches: clusters where there are, else flat, else none */
    KNA_SEARCH_NONE = 1,    /* the rows themselves */
    KNA_SEARCH_FLAT = 2,    /* int8 codes of all rows; those that could be among the best, by what the codes may be off, are scored */
    KNA_SEARCH_CLUSTERS = 3 /* rows by clusters, of which a query looks into some */
} kna_search_index;
#define KNA_SEARCH_INDEX_COUNT 4

/* "ip", "cosine", "l2"; "auto", "none", "flat", "clusters"; NULL for a number that is none. */
KNA_API const char *kna_metric_name(int metric);
KNA_API const char *kna_search_index_name(int index);

typedef struct kna_search_options {
    size_t size;
    int metric; /* a kna_metric */
    int index;  /* a kna_search_index; one made for another metric is not used */
} kna_search_options;
#define KNA_SEARCH_OPTIONS { sizeof(kna_search_options), KNA_IP, KNA_SEARCH_AUTO }

/* A row that was found. */
typedef struct kna_hit {
    float score;
    int32_t source;           /* 0; after kna_hits_merge(): which of the parts it came from */
    int64_t row;              /* its number in the family */
    int64_t document, place;  /* whose it is, and which of that document's rows of the family */
} kna_hit;

typedef struct kna_search_how {
    size_t size;
    int64_t k;          /* hits per query, 1 to 2^24; fewer where fewer rows may be found */
    double beta;        /* only hits whose score is at least that of the best less this; 0: no such limit */
    int64_t probes;     /* clusters: so many are looked into, whether or not k rows are there; 0: as many as `recall` needs */
    double recall;      /* the share of the true k nearest aimed at; 0: 0.95. By what the index has measured of the 10, 100 and 1,000 nearest,
                           more for more in proportion; k that a filter keeps are taken for the k / share nearest of all rows. Where it keeps
                           what is far from a query, less may be found, but k rows are: for queries with fewer all clusters are looked into */
    int exact;          /* 1: the true k nearest: all clusters are looked into. Flat and none always give these */
    double temperature; /* of lse; 0: 1 */
    double *lse;        /* (m) out: log of the sum over the hits of exp(score / temperature); -INFINITY where there are none. NULL: not asked */
} kna_search_how;
#define KNA_SEARCH_HOW { sizeof(kna_search_how), 10, 0, 0, 0, 0, 0, NULL }

typedef struct kna_search_report {
    size_t size;        /* set before the call */
    int index;          /* what was used: KNA_SEARCH_NONE, _FLAT or _CLUSTERS */
    int refused;        /* why an index was not: KNA_ENONE (there is none), KNA_EDAMAGED, KNA_ESTALE (of a later commit than this store shows),
                           KNA_EFORMAT (another store's, version's or metric's), KNA_EIO; else KNA_OK */
    int64_t rows;       /* that may be found: of documents there are and the filter keeps */
    int64_t covered;    /* of these, those in the index that was used */
    int64_t lists;      /* of the index */
    int64_t lists_seen; /* looked into, by all queries together */
    int64_t scanned;    /* sums of a query and a row, by codes or as they are */
    int64_t rescored;   /* scores in double; may differ from run to run where there are threads */
    double seconds;
} kna_search_report;

/*
 * kna_search_open() - get ready to search a family of a store of the same context.
 *
 * Out:     *search, NULL after an error. Give back with kna_search_close() (NULL is fine), before the store.
 * Returns: KNA_OK, whether or not there is an index; KNA_EINVAL, KNA_ETYPE, KNA_ELIMIT, KNA_ENOMEM.
 * Cost:    a look at each document; the index is mapped, not read. Lists are compared with their checks when first looked into. Memory: 24 bytes
 *          for each document, a bit for each row, and dim + 16 bytes for each cluster.
 */
KNA_API KNA_CHECKED int kna_search_open(kna_context *context, kna_search **search, kna_store *store, int family,
                                        const kna_search_options *options);
KNA_API void kna_search_close(kna_search *search);

/*
 * kna_search_filter() - which documents may be found from now on.
 *
 * In:      keep   asked once for each document there is, and again after the store has changed; not 0: it may be found. NULL: all may.
 *                 It must not use the store or the search.
 * Returns: KNA_OK, KNA_ENOMEM.
 * Cost:    one pass over the documents. Where the rows left are less than an eighth of those whose codes would be looked at, they are looked at
 *          as they are, without the index.
 */
KNA_API KNA_CHECKED int kna_search_filter(kna_search *search, int (*keep)(void *user, const kna_document *document), void *user);

/*
 * kna_search_run() - the nearest rows of each query, in what the store shows now.
 *
 * Shapes:  queries (1,m,dim), of any type; hits (m,k); counts (m).
 * Out:     hits   best first, of equal scores the lower row; the rest of the k is not written. counts  how many. report  may be NULL.
 * Returns: KNA_OK; KNA_EINVAL, KNA_ESHAPE, KNA_EVALUE (a query holds NaN or infinity), KNA_ETYPE, KNA_ENOMEM; KNA_EDAMAGED (a row that had to be
 *          looked at is not as it was written); KNA_EIO (it could not be read).
 * Cost:    flat: d + 4 bytes of each row, once for up to 1,024 queries; none: all of each row; clusters: as flat, of the lists looked into, and
 *          d bytes of each center. Memory, the context's: 80 MiB at most, and for each thread 1.3 MiB and 80 k bytes; where 48 k bytes for each
 *          thread are above 64 MiB, these.
 */
KNA_API KNA_CHECKED int kna_search_run(kna_search *search, kna_hit *hits, int64_t *counts, const kna_rows *queries,
                                       const kna_search_how *how, kna_search_report *report);

/*
 * kna_hits_merge() - the best of several searches for the same queries, in other stores or families, as one answer.
 *
 * Shapes:  hits (m,k); counts (m); part_hits: `parts` pointers to (m,k); part_counts: `parts` pointers to (m).
 * In:      how  k, beta, temperature and lse as for kna_search_run(), the same k for all parts.
 * Out:     hits  of equal scores by part, then as the part had them; source is the number of the part.
 * Returns: KNA_OK, KNA_EINVAL, KNA_ENOMEM.
 */
KNA_API KNA_CHECKED int kna_hits_merge(kna_context *context, kna_hit *hits, int64_t *counts, const kna_hit *const *part_hits,
                                       const int64_t *const *part_counts, int parts, int64_t m, const kna_search_how *how);

typedef struct kna_store_index_options {
    size_t size;
    int kind;   /* KNA_SEARCH_FLAT or KNA_SEARCH_CLUSTERS; KNA_SEARCH_AUTO is read as flat */
    int metric; /* a kna_metric: it serves that one alone */
    int64_t lists;           /* clusters: so many; 0: about 4 sqrt(rows). 32 rows each at least, 65,536 lists at most */
    const kna_rows *queries; /* clusters: (1,m,dim), queries like those that will come, of any type; or NULL. By 4,096 of them, evenly spread,
                                rows are clustered as queries see them (ip); by 256 it is measured how many clusters a recall takes. Without
                                them rows serve as queries, each for rows other than itself: where queries are unlike rows, as in attention, too
                                few clusters are looked into then */
} kna_store_index_options;
#define KNA_STORE_INDEX_OPTIONS { sizeof(kna_store_index_options), KNA_SEARCH_FLAT, KNA_IP, 0, NULL }

/*
 * kna_store_index() - the writer: make the family's index of this kind, in place of the one there is. It covers the rows committed now; those
 * that come later are looked at as they are, until it is made again. A search that is open goes on with the file it has.
 *
 * Returns: KNA_OK; KNA_EINVAL, KNA_ETYPE, KNA_ELIMIT; KNA_EDAMAGED (a row is not as it was written); KNA_EIO, KNA_ENOMEM. After an error the
 *          index there was is still there.
 * Cost:    flat: all rows are read twice, and about d + 20 bytes written for each. Clusters: all rows are compared with all centers, and with 256
 *          queries. Memory: 4 bytes for each row; clusters: 16, and for each list 33 rows as f32, which for 10 million rows of 128 numbers
 *          are 380 MB in all; with queries for ip, 12 dim^2 bytes, and time as dim^3.
 */
KNA_API KNA_CHECKED int kna_store_index(kna_store *store, int family, const kna_store_index_options *options);

/* What an index file says of itself. */
typedef struct kna_store_index_info {
    size_t size;         /* set before the call */
    int kind, metric;
    int64_t transaction; /* it was made from this commit */
    int64_t covered;     /* row numbers below this are in it, or were of no document */
    int64_t rows, lists, bytes;
    int64_t probes;      /* clusters: how many a recall of 0.95 of the 10 nearest takes, as measured when it was made */
} kna_store_index_info;

/* kna_store_index_get() - of a family's index of a kind, compared with all its checks. KNA_OK, KNA_ENONE (there is none), KNA_EDAMAGED,
 * KNA_EFORMAT, KNA_ESTALE, KNA_EINVAL, KNA_EIO, KNA_ENOMEM.
 * kna_store_index_drop() - the writer: remove it. KNA_OK also where there is none; KNA_EINVAL, KNA_EIO. */
KNA_API KNA_CHECKED int kna_store_index_get(kna_store *store, int family, int kind, kna_store_index_info *info);
KNA_API KNA_CHECKED int kna_store_index_drop(kna_store *store, int family, int kind);

#ifdef __cplusplus
}
#endif

#endif /* KNA_SEARCH_PUBLIC_H */
