/*
 * search.h - the nearest rows of a store's family: an index file of int8 lists, the rows themselves, and how both are looked through.
 *
 * Scores. Larger is nearer: ip <q,x>; cosine <q,x> / |q||x| (0 where either is 0); l2 -|q-x|^2. A row's score is computed in double from the
 * row as it lies in the store, wherever it was found; what lists say are bounds of it. So what is found does not depend on how the work
 * was cut, nor on how far an index goes.
 *
 * Invariant: an index is derived. Row numbers below `covered` that have a document in the snapshot it was made from are in exactly one
 * list; all others are scanned as they are. Nothing of an index is believed before its check was compared.
 */
#ifndef KNA_SEARCH_H
#define KNA_SEARCH_H

#include "../store/store.h"

/* ---- rows.c - which rows of a family there are, and where */

/* Rows of one document. */
typedef struct kna__run {
    uint64_t first, rows; /* numbers in the family */
    uint64_t part;        /* of all parts of the store */
} kna__run;

/* The rows that may be found: of documents there are and that the filter keeps. */
typedef struct kna__rows {
    kna_store *store;
    int family;
    uint32_t type;
    uint64_t dim;
    uint64_t seen;  /* one past the highest number committed */
    uint64_t there; /* how many may be found */
    kna__run *runs; /* ascending */
    uint64_t count, room;
    uint64_t *bits; /* a bit per number below seen; NULL: not made */
    size_t bits_bytes;
} kna__rows;

int kna__rows_init(kna__rows *rows, kna_store *store, int family);
/* As of now; keep NULL: all documents. */
int kna__rows_fill(kna__rows *rows, int (*keep)(void *user, const kna_document *document), void *user);
void kna__rows_free(kna__rows *rows);
static inline bool kna__rows_have(const kna__rows *rows, uint64_t row)
{
    return row < rows->seen && (rows->bits[row / 64] >> row % 64 & 1);
}
const kna__run *kna__rows_run(const kna__rows *rows, uint64_t row); /* NULL: none has it */
/* `count` rows from `first` on, all of the run, where they lie. data NULL: they are not as written, or cannot be read. Any thread. */
kna__span kna__rows_at(const kna__rows *rows, const kna__run *run, uint64_t first, uint64_t count);
/* The message for rows that kna__rows_at() had no data of, which leaves none. KNA_EDAMAGED, KNA_EIO; never KNA_OK, for what was to be done
 * with them has not been. */
int kna__rows_damaged(const kna__rows *rows, const kna__run *run);
/* All rows that can be in a list, ascending, to ids (`there`); those with NaN or infinity cannot. */
int kna__rows_list(const kna__rows *rows, uint32_t *ids, uint64_t *count);
/* A row as f32; KNA_OK, KNA_ENONE (it is not among them), KNA_EDAMAGED, KNA_EVALUE (it holds NaN or infinity). No message, any thread. */
int kna__rows_read(const kna__rows *rows, uint64_t row, float *out);
int kna__rows_take(const kna__rows *rows, uint64_t row, float *out); /* likewise, whatever numbers it holds */

/* ---- index_file.c */

enum { KNA_INDEX_VERSION = 1, KNA_INDEX_HEAD_BYTES = 4096, KNA_AIMS = 8, KNA_DEPTHS = 3 };

typedef struct kna__index_head {
    unsigned char uuid[16];
    uint64_t transaction; /* of the store when it was made */
    uint32_t family, type, kind, metric;
    uint64_t dim;
    uint64_t covered; /* row numbers below this are in a list or were of no document */
    uint64_t rows;    /* in all lists */
    uint64_t lists, centers;
    uint64_t table_at, centers_at, bytes; /* bytes: of the file */
    uint64_t table_check, centers_check;
    uint32_t probes[KNA_DEPTHS]
                   [KNA_AIMS]; /* clusters: lists that a recall takes (kna__aim()), of the 10, 100, 1000 nearest; 0: not measured */
    float alpha;               /* clusters.h */
} kna__index_head;

/* A list in the table. Sums and products of what is in it are bounded by its maxima. */
typedef struct kna__list_entry {
    uint64_t at, rows, blocks, check;
    float extra_most, error_most, norm_most;
    float spread; /* of its rows' scores about the center's, for a query of length 1; clusters alone */
} kna__list_entry;

#define KNA_ROUNDING (12 * 0x1p-24f) /* of a list: what scan() rounds, extra and base as f32, and the bounds themselves */

/*
 * What a list says of its rows. A row y (for cosine after it was scaled to length 1) is center + r, and r is step * codes + an error, whose
 * length is at most `error`; `norm` is the length of step * codes. With q' = q (ip), q / |q| (cosine), 2 q (l2) the score is
 *     base + <q', r> - extra    base: <q', center>, for l2 -|q - center|^2;    extra: 0, for l2 2 <center, r> + |r|^2
 * so <q', step * codes> for <q', r> is off by at most |q'| error. A row that is too large for this has step 0 and error INFINITY.
 */
typedef struct kna__list_view {
    uint64_t rows, blocks;
    const uint32_t *ids;
    const float *steps, *extra, *errors, *norms;
    const uint8_t *codes; /* NULL: rows as they are, whose products are with q' and not with its codes */
    const float *center;
    float extra_most, error_most, norm_most;
    float rounding; /* of f32, of all sizes that are added up */
} kna__list_view;

typedef struct kna__index_file {
    kna_context *context;
    const unsigned char *map;
    kna__index_head head;
    const kna__list_entry *table;
    const float *centers;
    unsigned char *compared; /* per list */
} kna__index_file;

/* The file of a family and kind; its header, table and centers compared. KNA_OK, KNA_ENONE, KNA_EDAMAGED, KNA_EFORMAT (another version, store
 * or family), KNA_ESTALE (made from a later commit than this store shows), KNA_EIO, KNA_ENOMEM. */
int kna__index_open(kna__index_file *file, kna_store *store, int family, int kind);
void kna__index_close(kna__index_file *file);
/* A list, compared with its check the first time; false: it is not as written. Any thread. */
bool kna__index_list(const kna__index_file *file, uint64_t list, kna__list_view *view);

/* Make one: begin, each list in order, finish; or abandon, which is fine after finish or a failed begin too. head: kind, metric, family, covered,
 * lists and centers (lists, or 1 for all of them); the rest is filled in. center: (centers, dim), borrowed until the end. */
typedef struct kna__index_writer {
    kna_store *store;
    const kna__rows *rows;
    kna__index_head head;
    const float *center;
    kna__file file;
    kna__list_entry *table;
    uint64_t list, at;
    char name[40], temporary[48];
} kna__index_writer;
int kna__index_begin(kna__index_writer *writer, const kna__rows *rows, const kna__index_head *head, const float *center);
int kna__index_put_list(kna__index_writer *writer, const uint32_t *ids, uint64_t count); /* rows by their numbers, all finite */
int kna__index_finish(kna__index_writer *writer);
void kna__index_abandon(kna__index_writer *writer);
void kna__index_name(char name[40], int family, int kind);

/* ---- candidates.c - the best of a stream of bounds */

/* Of one query, kept by one worker: rows whose score is between lower and upper. None that is among the k best is ever dropped. */
typedef struct kna__candidates {
    float *upper, *lower;
    uint32_t *rows;
    uint64_t count, due; /* weeded when they are so many */
    float floor;         /* rows below are not wanted: k score at least this, or one is better by beta */
} kna__candidates;

/* A row and its score. */
typedef struct kna__scored {
    double score;
    uint64_t row;
} kna__scored;

/* ---- the call */

/* A query, prepared. */
typedef struct kna__query {
    const float *q;      /* (dim) */
    const int8_t *codes; /* of q' */
    float step;          /* of the codes */
    double square;       /* |q|^2 */
    double factor;       /* q' = factor * q */
    double length;       /* |q'| */
    double error;        /* |q' - step codes| */
    float base, slack;   /* where there is one center for all lists */
} kna__query;

/* One list for one query. base: see kna__list_view; slack: how far that may be off. */
typedef struct kna__look {
    uint32_t query;
    float base, slack;
} kna__look;

/* Which lists are looked into, for which queries of the block: by list. */
typedef struct kna__looks {
    bool every;      /* all lists, for all queries, with their own base and slack */
    uint64_t *first; /* (lists + 1) places in `looks` */
    kna__look *looks;
    uint64_t *active; /* those lists that any query looks into */
    uint64_t active_count;
    uint64_t count;
} kna__looks;

/* A worker's own. */
typedef struct kna__search_room {
    float *out;    /* (KNA_SECTION_QUERIES, KNA_SECTION_ROWS) sums of a section */
    int32_t *ids;  /* (KNA_SECTION_ROWS) */
    int8_t *codes; /* (KNA_SECTION_QUERIES, 4 d4) of its queries, side by side */
    float *steps;  /* of these */
    float *rows;   /* (row_section, dim) rows as f32 */
    uint32_t *row_ids;
    float *extra, *errors, *norms, *inverse; /* of these rows */
    float *row;                              /* (dim) */
    float *values;                           /* (candidate_room) */
    kna__scored *scored;                     /* (candidate_room) */
    uint64_t rescored, scanned;              /* rows so far */
} kna__search_room;

enum { KNA_SECTION_ROWS = 1024, KNA_SECTION_QUERIES = 32 };

/* A block of queries against everything. */
typedef struct kna__search_job {
    kna_context *context;
    const kna__kernels *kernels;
    const kna__rows *rows;
    int metric;
    uint64_t dim, d4;
    uint64_t k;
    double beta; /* INFINITY: none */
    kna__query *queries;
    float *scan_q; /* (queries, dim): q' */
    uint64_t count;
    const kna__index_file *index; /* NULL: none */
    kna__looks looks;
    uint64_t covered;            /* rows from here on are scanned as they are */
    uint64_t row_section;        /* so many at a time */
    kna__candidates *candidates; /* (workers, most) */
    uint64_t most;               /* queries of a block */
    uint64_t candidate_room;     /* of a query's candidates */
    kna__search_room *rooms;     /* (workers) */
    int bad_list;                /* atomic: a list is not as written */
    uint64_t bad_row;            /* atomic: one past the number of a row that is not */
} kna__search_job;

/* candidates.c */
void kna__candidates_clear(const kna__search_job *job, uint64_t query);
/* Rows at, at + 1 .. of a view, whose sums the scan has left in out: to the query's candidates if they may be of the k best. */
void kna__sieve(const kna__search_job *job, const kna__list_view *view, const kna__look *look, uint64_t at, uint64_t count,
                const float *out, int worker);
/* The k best of all workers' candidates, best first, into this worker's `scored`. Returns how many. */
uint64_t kna__candidates_settle(const kna__search_job *job, uint64_t query, int worker);

/* rescore.c - a row's score, in double. -INFINITY: it has none (NaN or infinity; or the row is not as written: job->bad_row). */
double kna__score(const kna__search_job *job, uint64_t query, uint64_t row, int worker);
/* The k best to the front, best first, of equal ones the lower row; k at most count. */
void kna__scored_best(kna__scored *scored, uint64_t count, uint64_t k);

/* list_scan.c, rows_scan.c - tasks of kna__parallel_for; the list is the one of that place among those looked into */
void kna__scan_list(void *job, int64_t place, int worker);
void kna__scan_rows(void *job, int64_t section, int worker);

/* build_flat.c */
int kna__build_flat(const kna__rows *rows, int metric, const uint32_t *ids, uint64_t count); /* ids: as kna__rows_list() has them */

/* query.c */
/* KNA_ESHAPE, KNA_ETYPE, KNA_EINVAL, or KNA_EVALUE where one is not finite. */
int kna__queries_check(kna_context *context, const kna_rows *queries, uint64_t dim);
void kna__query_prepare(const kna__search_job *job, kna__query *query, const float *q, float *scan_q, int8_t *codes);
/* base of a list with this center; NULL: zeros. */
double kna__base_of(int metric, const kna__query *query, const float *center, uint64_t dim);

#endif
