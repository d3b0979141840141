/*
 * kna.h - kNN attention: the one public header of libkna.
 *
 * Attention mixes value rows by softmax(scale * <query,key>). Exact attention reads every key and value. kNN attention
 * reads the few keys with the largest inner product in full and estimates the rest from summaries of blocks of keys, so
 * that its cost hardly grows with the context. This header is the tour: read it from top to bottom.
 *
 *   1. Version and status codes        what can go wrong, one sentence each
 *   2. Context                         threads, CPU level, allocator, memory accounting, last message
 *   3. Rows and masks                  how operands are described
 *   4. Attention                       the operator, its options and its report; its gradients; merge of partial results
 *   5. Index                           what makes repeated calls on a growing key-value cache cheap
 *   6. Store                           documents and their rows in files, that survive
 *   7. Search                          the nearest rows of a store: in kna_search.h, which this header ends with
 *
 * Letters: h query heads, h_kv key/value heads, g = h / h_kv query heads per KV head, m queries, n keys, d dimension of
 * keys, dv dimension of values, k neighbours. Shapes are written (h,m,d) and are row-major. A score is a logit: larger is
 * nearer. Names ending in _bytes and _s are in bytes and seconds.
 *
 * Argument order: context, outputs, inputs, options. Every function that can fail returns an int: KNA_OK (0) or one
 * negative code of KNA_STATUS_LIST; after an error the outputs are unspecified unless said otherwise. The library never
 * prints, never exits and never reads the environment.
 *
 * Threads: a kna_context serves one call at a time. Different contexts may be used from different threads at once.
 * Results do not depend on the number of threads: the same bits for 1, 2 or more, and for repeated runs on one machine.
 * Between CPU levels results differ by rounding only.
 */
#ifndef KNA_H
#define KNA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define KNA_API __attribute__((visibility("default")))
#define KNA_CHECKED __attribute__((warn_unused_result))
#else
#define KNA_API
#define KNA_CHECKED
#endif

/* ------------------------------------------------------------------ 1. Version and status codes */

#define KNA_VERSION_MAJOR 0
#define KNA_VERSION_MINOR 1
#define KNA_VERSION_PATCH 0
#define KNA_VERSION_STRING "0.1.0"

/*
 * Every status a function of this library can return: name, number, one sentence.
 * More words about the failed call (which operand, which index, which limit) are in kna_context_message().
 */
#define KNA_STATUS_LIST(X)                                                                     \
    X(KNA_OK, 0, "success")                                                                    \
    X(KNA_EINVAL, -1, "an argument is outside its documented range")                           \
    X(KNA_ESHAPE, -2, "the shapes of the operands disagree")                                   \
    X(KNA_EVALUE, -3, "an operand holds NaN or infinity")                                      \
    X(KNA_ETYPE, -4, "the operation does not take this number type")                           \
    X(KNA_ELIMIT, -5, "a size is above the library's limit")                                   \
    X(KNA_ENOMEM, -6, "out of memory")                                                         \
    X(KNA_ECPU, -7, "this machine or build lacks the requested CPU level")                     \
    X(KNA_ESTALE, -8, "the index does not describe the given rows")                            \
    X(KNA_EIO, -9, "reading or writing a file failed")                                         \
    X(KNA_EBUSY, -10, "another writer has the store")                                          \
    X(KNA_EDAMAGED, -11, "a file is not as it was written")                                    \
    X(KNA_EFORMAT, -12, "not a store, or one of another version or model")                     \
    X(KNA_ENONE, -13, "there is no such thing")                                                \
    X(KNA_EEXISTS, -14, "there is one already")

typedef enum kna_status {
#define KNA_STATUS_ENUM(name, number, text) name = number,
    KNA_STATUS_LIST(KNA_STATUS_ENUM)
#undef KNA_STATUS_ENUM
} kna_status;

/* kna_version() - "MAJOR.MINOR.PATCH" of the library that is linked, for comparison with KNA_VERSION_STRING. */
KNA_API const char *kna_version(void);

/* kna_status_name() - "KNA_ESHAPE" for -2; "KNA_E?" for a number that is no status. Never NULL, static. */
KNA_API const char *kna_status_name(int status);

/* kna_status_text() - the sentence of KNA_STATUS_LIST for a status. Never NULL, static. */
KNA_API const char *kna_status_text(int status);

/* Limits: larger values are refused with KNA_ELIMIT (the CLI and the plugin inherit them). */
#define KNA_MAX_DIM 1024            /* d and dv */
#define KNA_MAX_HEADS 65536         /* h and h_kv */
#define KNA_MAX_ROWS 0x7fffffff     /* m and n: 2^31 - 1 */
#define KNA_MAX_THREADS 1024
#define KNA_MAX_RANK 16384          /* of rivals */
#define KNA_MAX_HASH_BITS 16        /* of a table of KNA_LSH */
#define KNA_MAX_KEY_GROUPS 4096
#define KNA_MAX_LANDMARKS 64

/* ------------------------------------------------------------------ 2. Context */

/* A context holds what calls share: the kernels chosen for this CPU, threads, scratch memory and the last message. */
typedef struct kna_context kna_context;

/*
 * CPU levels, narrowest first. KNA_CPU_BEST takes the widest that this machine and this build have.
 * KNA_CPU_REF is the scalar reference with double accumulation: slow, and what every other level is tested against.
 */
typedef enum kna_cpu {
    KNA_CPU_BEST = 0,
    KNA_CPU_REF = 1,
    KNA_CPU_AVX2 = 2,        /* AVX2 + FMA + F16C */
    KNA_CPU_AVX512 = 3,      /* AVX-512 F, BW, DQ, VL */
    KNA_CPU_AVX512VNNI = 4,  /* the same plus VNNI for int8 products */
    KNA_CPU_NEON = 5         /* arm64 Advanced SIMD */
} kna_cpu;
#define KNA_CPU_COUNT 6

/* kna_cpu_name() - "best", "ref", "avx2", "avx512", "avx512vnni", "neon"; NULL for a number that is no level. */
KNA_API const char *kna_cpu_name(int cpu);

/* kna_cpu_is_present() - 1 where this machine and this build can run the level, else 0. BEST and REF always can. */
KNA_API int kna_cpu_is_present(int cpu);

/*
 * An allocator of the caller's. Both functions or neither must be set.
 *   allocate  returns at least `bytes` bytes aligned to 64, or NULL (the call then fails with KNA_ENOMEM, changing nothing)
 *   release   takes back what allocate returned; never called with NULL
 * Threads: called only from the thread that called the library.
 */
typedef struct kna_allocator {
    void *(*allocate)(void *user, size_t bytes);
    void (*release)(void *user, void *memory, size_t bytes);
    void *user;
} kna_allocator;

/* Options of a context. KNA_CONTEXT_OPTIONS sets `size`; every other field may stay zero, its default. */
typedef struct kna_context_options {
    size_t size;             /* sizeof(kna_context_options); a larger one is accepted if the rest is zero */
    int threads;             /* 1..KNA_MAX_THREADS; 0: as many as there are processors (1 in a build without OpenMP) */
    int cpu;                 /* a kna_cpu; 0: the best present */
    kna_allocator allocator; /* zero: the C library's */
} kna_context_options;
#define KNA_CONTEXT_OPTIONS { sizeof(kna_context_options), 0, 0, { NULL, NULL, NULL } }

/*
 * kna_context_new() - make a context.
 *
 * Out:     *context  the new context, NULL after an error.
 * In:      options   NULL: all defaults. Borrowed for the call; the allocator's user pointer must outlive the context.
 * Returns: KNA_OK, KNA_EINVAL (size, threads, half an allocator), KNA_ECPU (level absent), KNA_ENOMEM.
 * Owner:   the caller; give back with kna_context_free().
 * Cost:    a few hundred bytes; no threads are started.
 */
KNA_API KNA_CHECKED int kna_context_new(kna_context **context, const kna_context_options *options);

/* kna_context_free() - free a context and its scratch. NULL is fine. Free every index made with it first. */
KNA_API void kna_context_free(kna_context *context);

/* kna_context_message() - what the last failed call complained of, e.g. "keys: NaN at head 0, row 17, column 3".
 * "" after a success. Valid until the next call with this context. */
KNA_API const char *kna_context_message(const kna_context *context);

/* kna_context_cpu() - the level in use, a kna_cpu other than KNA_CPU_BEST. */
KNA_API int kna_context_cpu(const kna_context *context);

/* kna_context_threads() - the number of threads in use. */
KNA_API int kna_context_threads(const kna_context *context);

/* kna_context_set_threads() - as the option. Returns KNA_OK or KNA_EINVAL. */
KNA_API KNA_CHECKED int kna_context_set_threads(kna_context *context, int threads);

/* Memory of a context: everything it and the indexes made with it hold through its allocator. */
typedef struct kna_memory {
    size_t now_bytes;      /* held now */
    size_t peak_bytes;     /* most ever held, or since kna_context_reset_peak() */
    uint64_t allocations;  /* successful calls of the allocator */
} kna_memory;

/* kna_context_memory() - read the account. Costs nothing. */
KNA_API void kna_context_memory(const kna_context *context, kna_memory *memory);

/* kna_context_reset_peak() - let the peak start again from what is held now. */
KNA_API void kna_context_reset_peak(kna_context *context);

/* kna_context_trim() - free the scratch kept between calls; the next call allocates it again. */
KNA_API void kna_context_trim(kna_context *context);

/* ------------------------------------------------------------------ 3. Rows and masks */

/* Number types of rows. */
typedef enum kna_type {
    KNA_F32 = 0,
    KNA_F16 = 1,    /* IEEE binary16 */
    KNA_BF16 = 2,   /* the upper half of a binary32 */
    KNA_I8 = 3,     /* int8 with one f32 scale per row: x = scale * i */
    KNA_Q8_0 = 4    /* ggml's q8_0: blocks of 32 numbers, each an f16 scale and 32 int8 (34 bytes); d a multiple of 32 */
} kna_type;
#define KNA_TYPE_COUNT 5

/* kna_type_name() - "f32", "f16", "bf16", "i8", "q8_0"; NULL for a number that is no type. */
KNA_API const char *kna_type_name(int type);

/* kna_type_row_bytes() - bytes of a packed row of d numbers; 0 where the type has no row of that length. */
KNA_API size_t kna_type_row_bytes(int type, int64_t d);

/*
 * Rows: `heads` groups of `rows` rows of `dim` numbers, borrowed. Rows of one head are row_stride_bytes apart, heads are
 * head_stride_bytes apart; 0 means packed, (heads, rows, dim) row-major. Numbers within a row are contiguous. No alignment
 * beyond that of the number type is needed, and nothing outside the rows is ever read.
 */
typedef struct kna_rows {
    const void *data;
    int type;                   /* a kna_type */
    int64_t heads, rows, dim;
    int64_t head_stride_bytes;
    int64_t row_stride_bytes;
    const float *scales;        /* KNA_I8 only: (heads, rows) row-major, packed; else NULL */
} kna_rows;

/* Output rows, f32, described likewise. */
typedef struct kna_out_rows {
    float *data;
    int64_t head_stride_bytes;  /* 0: packed (h,m,dv) */
    int64_t row_stride_bytes;
} kna_out_rows;

/*
 * A per-query additive mask in ggml's layout: (heads, m, n), f32 or f16, added to the logit; -INFINITY forbids the pair.
 * heads = 1 serves all query heads; otherwise head x of the queries takes mask head x % heads. Strides as in kna_rows.
 */
typedef struct kna_mask {
    const void *data;           /* NULL: no mask */
    int type;                   /* KNA_F32 or KNA_F16 */
    int64_t heads;              /* 0 is read as 1 */
    int64_t head_stride_bytes;  /* 0: packed */
    int64_t row_stride_bytes;   /* 0: n numbers */
} kna_mask;

/*
 * kna_quantize_i8() - rows of f32 to int8 with one scale per row, round to nearest even, scale = max|x| / 127.
 *
 * Shapes:  x, out (n,d); scales (n).
 * Error:   |x - scale * out| <= scale / 2 (+ rounding of f32). A row of zeros gets scale 0.
 * Returns: KNA_OK, KNA_EINVAL, KNA_EVALUE (NaN or infinity), KNA_ELIMIT.
 */
KNA_API KNA_CHECKED int kna_quantize_i8(kna_context *context, int8_t *out, float *scales, const float *x, int64_t n, int64_t d);

/* ------------------------------------------------------------------ 4. Attention */

typedef struct kna_index kna_index;

/* Methods. */
typedef enum kna_method {
    KNA_EXACT = 0,  /* every key */
    KNA_TOPK = 1,   /* the k keys with the largest logit, found exactly; all others get weight 0 */
    KNA_KNN = 2,    /* sinks and recent keys in full, the keys that matter of the clusters that matter, all else by means of clusters */

    /* Estimates from samples: the k nearest keys, found exactly, and of all others a sample. Unbiased, or nearly. */
    KNA_UNIFORM = 3,    /* the nearest in full; a uniform sample stands for the rest */
    KNA_GUMBEL = 4,     /* mean of the values of keys drawn by softmax: lazy Gumbel sampling */
    KNA_REJECTION = 5,  /* the same, keys drawn by rejection */
    KNA_MOM = 6,        /* keys drawn as by gumbel, in groups; of the groups' means the median, column by column */
    KNA_STRATIFIED = 7, /* the nearest in full; of every cell of keys alike some, in proportion to what its mean key says it weighs. A
                           cell that gets none stands by its mean key and mean value (report: by_means), which is biased */
    KNA_CENTROID = 8,   /* the nearest in full; keys drawn by what the mean key of their cell weighs, and weighted back */
    KNA_CONTROL = 9,    /* the nearest in full; cells by their mean keys, and a uniform sample of what keys weigh beside that. Where the
                           sum comes out negative the means stand alone (report: by_means) */

    /* Rivals, to compare with; each as its paper has it, as far as that needs no training. No mask, slopes, window, index, eps or audit;
       causal only window, performer and lsh; softcap and sinks only window. */
    KNA_WINDOW = 10,    /* the first near_sinks and the last near_window keys that a query sees, all others dropped (StreamingLLM) */
    KNA_LINFORMER = 11, /* keys and values projected to `rank` rows: by project_k and project_v, or means of runs of rows */
    KNA_NYSTROM = 12,   /* `rank` landmarks, means of runs of queries and of keys. lse is NaN */
    KNA_PERFORMER = 13, /* `rank` positive random features, orthogonal by blocks (FAVOR+) */
    KNA_LSH = 14        /* keys whose hashes agree with the query's, by importance; near_sinks and near_window as window (MagicPIG) */
} kna_method;
#define KNA_METHOD_COUNT 15

/* kna_method_name() - "exact", "topk", "knn", "uniform", "gumbel", "rejection", "mom", "stratified", "centroid", "control", "window",
 * "linformer", "nystrom", "performer", "lsh"; NULL for a number that is no method. */
KNA_API const char *kna_method_name(int method);

/* What stands behind a radius: ||out - exact|| <= radius with a probability of at least 1 - delta. */
typedef enum kna_certificate {
    KNA_CERTIFICATE_ASYMPTOTIC = 0,   /* normal distribution of the sample's mean: about 1 - delta, if it met all that matters. uniform,
                                         centroid, control */
    KNA_CERTIFICATE_FINITE = 1,       /* samples of any size, any values: at least 1 - delta. Several times as wide. uniform */
    KNA_CERTIFICATE_BERNSTEIN = 2,    /* likewise, by empirical variances and without replacement where that is less. uniform */
    KNA_CERTIFICATE_DETERMINISTIC = 3 /* always, whatever delta: by how far the keys of a cell are from their mean. On heads of real
                                         models little better than knowing nothing, unless k is large. topk, uniform, stratified,
                                         centroid, control */
} kna_certificate;
#define KNA_CERTIFICATE_COUNT 4

/* How it is known that no key outside the head has a larger logit than some bound. Draws by softmax are exact where bounds hold. */
typedef enum kna_bounds {
    KNA_BOUNDS_HEAD = 0,    /* the least logit of the k nearest (of a diverse head: the largest of all others), and `gap` more */
    KNA_BOUNDS_CLUSTERS = 1 /* for each cell its own: logit of the mean key and |q| times the largest distance from it. Holds for any head */
} kna_bounds;
#define KNA_BOUNDS_COUNT 2

/* Gradients by keys drawn: who takes how many draws. */
typedef enum kna_chain {
    KNA_CHAIN_ROWS = 0,   /* every query `samples` */
    KNA_CHAIN_JOINT = 1,  /* samples * m per query head, in pairs: queries in proportion to |dout| (1 + |q|), by systematic sampling */
    KNA_CHAIN_SIGNED = 2, /* samples * m per query head and column of dout, queries in proportion to its |numbers|: of values only */
    KNA_CHAIN_TAIL = 3    /* every query `samples` of the keys beyond its k nearest, and these as they are */
} kna_chain;
#define KNA_CHAIN_COUNT 4

/* kna_chain_name() - "rows", "joint", "signed", "tail"; NULL for a number that is none. */
KNA_API const char *kna_chain_name(int chain);

/*
 * Which keys are the head of a row where it is to be k of the nearest, but not all alike (KNA_TOPK, and those that
 * sample, without an index of KNA_KNN). z~: logits scaled to 0 .. 1 over the pool, which is so many nearest keys, found exactly.
 */
typedef enum kna_diverse {
    KNA_DIVERSE_NONE = 0,  /* the k nearest */
    KNA_DIVERSE_MMR = 1,   /* of a pool, one by one, the key with the largest lambda z~ - (1 - lambda) (its largest cosine with one taken) */
    KNA_DIVERSE_DPP = 2,   /* of a pool, one by one, the key that adds most to the determinant of diag(e^theta z~) C diag(e^theta z~), C the
                              keys' cosines; at most d of them, the rest by logit */
    KNA_DIVERSE_QUOTA = 3  /* of every group of keys a share of its size, the rest by logit. KNA_KNN: of clusters, see quota */
} kna_diverse;
#define KNA_DIVERSE_COUNT 4

/* kna_diverse_name() - "none", "mmr", "dpp", "quota"; NULL for another number. */
KNA_API const char *kna_diverse_name(int diverse);

/* What KNA_TOPK makes of the keys that are not in its head. */
typedef enum kna_tail {
    KNA_TAIL_DROP = 0, /* nothing */
    KNA_TAIL_MEAN = 1  /* their mean value stands for them, with the mass that the int8 scan tells (KNA_KNN: many means, of clusters) */
} kna_tail;
#define KNA_TAIL_COUNT 2

/* kna_tail_name() - "drop", "mean"; NULL for another number. */
KNA_API const char *kna_tail_name(int tail);

/*
 * Options of kna_attend(). KNA_ATTEND_OPTIONS sets `size`; every other field may stay zero, its default.
 *
 * The position of query i is p = i + (n - m) + causal_shift: the last query stands on the last key. It matters to causal,
 * window, and slopes without a mask.
 */
typedef struct kna_attend_options {
    size_t size;
    int method;               /* a kna_method */

    /* What attention means here. */
    float scale;              /* logit = scale * <q,k>; 0: 1/sqrt(d) */
    int causal;               /* 1: query i sees keys j <= p */
    int64_t causal_shift;     /* moves every p, e.g. for a cache with unused rows at its end */
    int64_t window;           /* sliding window: query i sees keys j > p - window (and j <= p if causal); 0: no window */
    float softcap;            /* logit = softcap * tanh(logit / softcap), before mask and slopes; 0: none */
    const float *slopes;      /* ALiBi, (h): with a mask, the mask of head x is multiplied by slopes[x], which must be positive
                                 (ggml: the mask then holds minus distances); without one, slopes[x] * (j - p) is added.
                                 NULL: none */
    const float *sinks;       /* (h): the logit of one further key per head whose value is zero. NULL: none */
    kna_mask mask;            /* added to the logit; data NULL: none */

    /* Which keys are read (KNA_TOPK, KNA_KNN). */
    int64_t k_near;           /* k; 0: 384. topk: k >= the keys a query sees: exact. knn: how many clusters are looked into. In
                                 prefill those that hold 4 k keys, read in full, which a tile of neighbouring queries shares, chosen by
                                 its first one and 16 before it; and 3 k keys that the query heads of a KV head choose for
                                 themselves (1.5 k where there is one). While decoding 12 k keys that the query heads of a KV head
                                 share (6 k where there is one). All but a tile's are weighed by 4-bit codes, and only what matters
                                 is read */
    int64_t near_sinks;       /* KNA_KNN: the first keys a query sees, always read in full; 0: 4; negative: none */
    int64_t near_window;      /* KNA_KNN: the last keys a query sees (in row order), likewise; 0: 64; negative: none */
    float eps;                /* KNA_KNN: double the clusters read in full until the estimated total variation distance between
                                 the weights used and softmax is at most eps or none is left: in the mean over the heads of a
                                 query that share a KV head; 0: k as given. With a delta, see there */
    float delta;              /* KNA_KNN, above 0: at most about this share of the rows shall have ||out - exact|| / ||exact|| above
                                 eps, each KV head by itself. k follows what rows drawn at random and computed exactly say (1 in
                                 96, of few queries 1 in 64; they are in the report as audited), from one block of 64 queries to
                                 the next: of T rows drawn of a KV head at most 3/4 delta T + log2(k now / k_near) were off. It starts
                                 with k_near, is kept in the index from call to call, and reads every key where nothing less
                                 does. Of the estimates that eps means without a delta none is used. 0: none */

    int differentiable;       /* KNA_KNN, 1: as kna_attend_backward() differentiates it: the members of clusters are read in full, not by
                                 their codes (a query's own are 2 k instead of 3 k, or 1 k instead of 1.5 k), for few queries too */

    /* What is known. */
    kna_index *index;         /* an index over exactly these keys and values, made for this method (KNA_TOPK for those that sample, or
                                 KNA_KNN, see bounds); NULL: one is built for this call. knn learns from the queries of a call and forms
                                 clusters as needed; others take the clusters there are */

    /* What is checked. */
    float audit;              /* share of (query, head) rows also computed exactly, for the report; 0: none, 1: all */
    uint64_t seed;            /* chooses the audited rows */
    int unchecked;            /* 1: do not look for NaN and infinity in q, k and v (one pass over them otherwise) */

    /* Samples (KNA_UNIFORM to KNA_CONTROL). k_near is their head; seed chooses the samples, the same ones for a query in a batch or by
       itself, for any number of threads. */
    int64_t samples;          /* keys of the rest looked at (uniform, stratified, centroid, control), or keys drawn, per row; 0: as many
                                 as k_near. uniform with an eps: as many as it takes for a radius of at most eps times the root mean
                                 square of ||v|| under the softmax, up to all, with probability 1 - delta (0: 0.05). topk with an eps and
                                 a deterministic certificate: rows whose radius is larger read every key */
    int64_t groups;           /* KNA_MOM: of draws; 0: 8 log(1 / delta), delta 0 being 0.05. At most as many as samples */
    int certificate;          /* a kna_certificate, for the radius. finite, bernstein: a pilot of 32 keys or a fiftieth of the rest is
                                 looked at besides */
    float *radius;            /* (h,m): as certified; 0 where all keys were looked at; negative: none (other methods). NULL: not wanted */
    int bounds;               /* a kna_bounds: KNA_GUMBEL, KNA_REJECTION, KNA_MOM; KNA_UNIFORM for certificates finite and bernstein.
                                 With an index of KNA_KNN no key is scanned: the head are the k nearest of the keys in the clusters with
                                 the nearest means, 4 k of them, so that nearer ones may be missed. Then a gap or bounds of clusters are
                                 needed wherever bounds are */
    float gap;                /* KNA_BOUNDS_HEAD, at least 0: no logit of the rest is more than so much above the least of the head. Where
                                 that is not so, draws are off by at most the softmax of the keys above, in total variation */
    int64_t rank;             /* KNA_LINFORMER: rows (0: 256); KNA_NYSTROM: landmarks (0: 64); KNA_PERFORMER: features (0: 256) */
    const float *project_k;   /* KNA_LINFORMER: (rank,n), both or neither: learned projections */
    const float *project_v;
    int32_t *draws;           /* (h,m,samples): KNA_GUMBEL, KNA_REJECTION, KNA_MOM: the keys drawn, in order; -1 in rows that see none. NULL: not wanted */

    /* Heads that are not simply the nearest keys, and global context. Whatever the head, what samples stands for the rest: the bound that
       draws and the finite certificate need is the largest logit not in the head, so these cost more draws, not correctness. */
    int diverse;              /* a kna_diverse */
    int64_t pool;             /* mmr, dpp: keys to choose from, at least k_near; 0: 4 k_near. Their logits and cosines cost about
                                 k pool d flops a row (dpp: twice that, at most d times), and room of pool 2 d floats a thread */
    float mmr_lambda;         /* in (0, 1]; 0: 0.7. 1 is the k nearest */
    float dpp_theta;          /* above 0; 0: 4. How much nearness counts */
    float quota;              /* beta, in (0, 1]; 0: 0.2. Of a group with n_g of the n keys a row sees the ceil(beta k n_g / n) nearest are in
                                 the head, or all n_g. Where these are more than k, the head is larger than k: by less than key_group_count.
                                 KNA_KNN: a cluster is of the group that most of its members are of. Of N clusters looked into (shared by
                                 the heads of a KV head, or the rows of a tile; or a row's own), ceil(beta N c_g / c) have the
                                 largest scores of group g, which has c_g of the c clusters worth a look, or all c_g are; no gradients */
    const int32_t *key_groups; /* (n): the group of each key, 0 .. key_group_count - 1, the same for all heads; NULL: none. Groups may be
                                 empty; one group changes nothing */
    int64_t key_group_count;  /* 1..KNA_MAX_KEY_GROUPS, with key_groups */
    int stratify;             /* KNA_UNIFORM, 1: the sample of the rest is divided over its groups, in proportion to their sizes, at least 4
                                 keys of each, which weigh as many as they stand for. Asymptotic certificates only */
    int64_t landmarks;        /* KNA_TOPK and those that sample: so many keys (at most KNA_MAX_LANDMARKS, below k_near) with the most
                                 softmax of all queries of a head (of every 16th) are in its every row's head, as far as it sees them. Where
                                 queries have an order, those of each block of 64 queries go by the queries of the call before it:
                                 the first block has none. Costs a 16th of exact attention's logits. 0: none */
    int tail;                 /* KNA_TOPK: a kna_tail */
    int chain;                /* KNA_GUMBEL, KNA_REJECTION: a kna_chain, for kna_attend_backward() */
    int64_t hash_bits;        /* KNA_LSH: K, bits of a hash; 0: 10 */
    int64_t hash_tables;      /* KNA_LSH: L, tables; 0: 150. A key is looked at that has the query's K bits in two or more. L K at most
                                 KNA_MAX_RANK; seed draws the projections that bits are signs of */
} kna_attend_options;
#define KNA_ATTEND_OPTIONS { sizeof(kna_attend_options), 0, 0.0f, 0, 0, 0, 0.0f, NULL, NULL, { NULL, 0, 0, 0, 0 }, 0, 0, 0, 0.0f, 0.0f, 0, NULL, 0.0f, 0, 0, 0, 0, 0, NULL, 0, 0.0f, 0, NULL, NULL, NULL, 0, 0, 0.0f, 0.0f, 0.0f, NULL, 0, 0, 0, 0, 0, 0, 0 }

/*
 * What a call did. A "row" is one (query, head) pair. Means are over the rows that see at least one key.
 */
typedef struct kna_report {
    size_t size;              /* set to sizeof(kna_report) before the call */
    int method;               /* as asked */
    double time_s;            /* wall time of the call, index build included */
    double build_s;           /* of which: building an index for this call */
    int64_t rows;             /* m * h */
    int64_t rows_exact;       /* rows that took every key they see (short contexts, eps not reached, many masked blocks) */
    double keys_seen;         /* sum over rows of keys that mask, causality and window allow */
    double keys_full;         /* sum over rows of keys whose logit was computed from the key itself, not estimated; as often as it was */
    double keys_touched;      /* bytes of keys, values and index read / bytes exact attention reads for the same rows */
    double tail_mass;         /* mean share of the softmax that was estimated (knn) or dropped (topk, from the scan) */
    double error_est;         /* mean total variation distance between weights used and softmax, estimated from the scan
                                 (knn: only when eps > 0 or for audited rows; else negative: not estimated) */
    double error_est_max;
    int64_t audited;          /* rows also computed exactly */
    double audit_mean;        /* of ||out - exact|| / ||exact|| over the audited rows; negative: none audited */
    double audit_mean_off;    /* 95 % confidence: the mean over all rows is within audit_mean -+ this; negative: under 2 rows */
    double audit_p95;
    double audit_p95_low;     /* 95 % confidence: that over all rows is between these; negative: too few rows to tell */
    double audit_p95_high;
    double audit_over;        /* share of the audited rows whose error is above eps; negative: none audited, or eps is 0 */
    int certificate;          /* a kna_certificate: what stands behind the radii, if there are any */
    double radius;            /* mean of the rows' radii; negative: none */
    double radius_max;
    double by_means;          /* stratified, control: mean share of the softmax that stands by mean keys alone, unsampled: what may be
                                 biased */
    int64_t stale_rows;       /* keys (topk) read, or clusters (knn) with keys read, that the index describes otherwise: it is out of date */
    size_t index_bytes;       /* of the index used */
    size_t scratch_bytes;     /* most scratch held during the call */
} kna_report;

/*
 * kna_attend() - attention of m queries per head over n keys.
 *
 * Shapes:  q (h,m,d) f32, f16 or bf16; k (h_kv,n,d) and v (h_kv,n,dv) of any type, each its own; out (h,m,dv) f32;
 *          lse (h,m) f32, may be NULL. h a multiple of h_kv: query head x reads KV head x / (h / h_kv).
 * Units:   lse = log of the sum of exp(logit) over the keys seen (and the sink logit), as estimated by the method.
 *          A row that sees no key gets out = 0, lse = -INFINITY (the sink's logit if there are sinks). n = 0 is allowed.
 * Out:     report, may be NULL. out must not overlap an input.
 * Returns: KNA_OK; KNA_EINVAL (an option), KNA_ESHAPE, KNA_ETYPE, KNA_ELIMIT, KNA_EVALUE (NaN or infinity in q, k or v: which
 *          and where is in the message; NaN or +infinity in the mask likewise), KNA_ENOMEM, KNA_ESTALE (the index covers
 *          fewer than n rows or other shapes).
 * Threads: one call per context and per index at a time.
 * Order:   where queries have one (causal, window or mask), no row depends on a later query, nor on a key it does not see.
 *          (KNA_KNN, many queries: a row may depend on how many queries come after it in the call, for the last tile is cut smaller,
 *          never on what they are.)
 *          Among equal logits top-k takes the lower key index. Work is cut by fixed row counts, never by thread count.
 * Cost:    exact: 2 m h n (d + dv) flops, keys and values read once per KV head for few queries (decode) and once per tile
 *          of queries otherwise. topk: an int8 scan of n keys (n d bytes per KV head for few queries) and k rows in full.
 *          knn: n / 16 mean keys and mean values (or n / 128 of groups and those of a fixed number of clusters, which is
 *          less from about 10 k clusters on, few queries 12 k), recent and first rows, rows since the last whole 256, and the chosen clusters in
 *          full; few queries leave out values that carry less than 2e-4 of the softmax (and mean values of clusters below
 *          5e-4), for which the mean of their cluster (of its group) stands, unless eps is asked for. Scratch is kept in the
 *          context and reused.
 * Limits:  knn uses a cluster only where all heads of the query see all of its unit's 256 or 1,024 rows with nothing added to
 *          their logits: a query that sees every second row is answered exactly, and so is ALiBi.
 *          window: (near_sinks + near_window) keys a row. linformer, nystrom, performer: about (n + m) rank (d + dv) per head, and nystrom
 *          rank^3; linformer and nystrom hold the KV head (and queries) as f32. lsh: K L d flops to hash each key and query, then about
 *          n L / 2^K keys met in tables and those looked at; 6 n L bytes.
 *          uniform, gumbel, rejection, mom: as topk, and the keys sampled: of n keys a draw looks at less than n / (k + 1) in the mean.
 *          With a gap a draw looks at n a / (1 + a), a = exp(least logit of the head + gap) over the head's sum; with bounds of clusters
 *          at the sum of such over the cells; where that would be more than all keys together, all are read once.
 *          stratified, centroid, control, bounds of clusters, certificate deterministic: cells of about 16 keys: clusters of segments of
 *          1,024 rows that a query sees whole (no matter how many queries a call has), else of pieces of 256, else 16 rows in a run; keys
 *          in none, at most some 30 where nothing is masked, are read in full. Without an index of KNA_KNN clusters are formed for the
 *          call: about 2 us per row and KV head; means, and how far members are from them, take one pass over keys and values, n / 16
 *          products a row, and 3 (d + dv) / 4 floats of memory per row of a KV head.
 * Source:  online softmax: Milakov & Gimelshein 2018; tiling: Dao et al. 2022. Clusters and their masses: doc/flow.md. Sampling: lazy
 *          Gumbel, Mussmann, Levy & Ermon 2017, as used for attention by Haris 2024 (arXiv 2411.04013); certificates: Pinelis 1994,
 *          Chernoff's bound, Bardenet & Maillard 2015 (src/attend/certificate.h), bounds of clusters (src/attend/strata_row.c). Rivals: Xiao et al. 2023, Wang et al. 2020, Xiong et al. 2021, Choromanski
 *          et al. 2021, Chen et al. 2024 (src/attend/rival_*.c say where we depart).
 */
KNA_API KNA_CHECKED int kna_attend(kna_context *context, const kna_out_rows *out, float *lse, kna_report *report,
                                   const kna_rows *q, const kna_rows *k, const kna_rows *v,
                                   const kna_attend_options *options);

/* Where gradients go, f32, laid out like what they are gradients of; data NULL: not wanted. Strides are multiples of 4. */
typedef struct kna_gradients {
    kna_out_rows dq;            /* (h,m,d) */
    kna_out_rows dk;            /* (h_kv,n,d): summed over the query heads of a KV head */
    kna_out_rows dv;            /* (h_kv,n,dv) */
    float *dsinks;              /* (h), where the options have sinks; NULL: not wanted */
    float *dproject_k;          /* (rank,n), where the options have projections: summed over all heads; NULL: not wanted */
    float *dproject_v;
} kna_gradients;

/*
 * kna_attend_backward() - gradients of a sum over <dout, out>, out being what kna_attend() gave.
 *
 * Shapes:  dout, out (h,m,dv) f32, f16 or bf16; lse (h,m); q, k, v and options as for that call, with out and lse as it wrote them.
 * Units:   gradients of q, k and v themselves: the scale is in them. Keys and values of any type: of int8 and q8_0 ones the gradient is
 *          that of the numbers they stand for.
 * Methods: KNA_EXACT. KNA_KNN, with option differentiable set in both calls and neither eps, an index nor quotas: the exact gradients of what
 *          was computed, with the sets held fixed (which clusters were looked into, and how far members stray from their means); the
 *          gradient of a mean goes in equal parts to its members. The index is built anew, so the call repeats the one before it.
 *          KNA_TOPK, KNA_UNIFORM, KNA_STRATIFIED, KNA_CENTROID, KNA_CONTROL: the exact gradients of what was computed, the sets held
 *          fixed, and what each key sampled and each mean of a cell stands for; that of a mean goes in equal parts to its members. The
 *          call is repeated: with the same seed the sets are the same. What a key does by being among the k nearest or not has no
 *          gradient, nor what it does to the chance that a key was drawn with: so those of centroid and control are right in the mean where
 *          their sums are. The last three without mask, slopes and softcap.
 *          KNA_GUMBEL, KNA_REJECTION: unbiased estimates of the exact gradients, from keys drawn, `samples` per row or as option
 *          chain says (rows: those of the forward call with the same seed): a Markov chain of one step. No sinks, no softcap; out and
 *          lse are not looked at. signed gives dv only (dq and dk must be NULL). tail: what the tail weighs is taken from the
 *          int8 scan, corrected by the draws, and its keys are drawn by that scan and accepted by their logits.
 *          Of these an index is one of KNA_TOPK; no landmarks, no bounds of clusters, no deterministic certificate, and of topk no tail but
 *          drop. A gap is followed. KNA_MOM: none.
 *          Rivals: the exact gradients of what they compute, lse and out as the forward call wrote them. linformer: of its projections too.
 *          nystrom: through the three softmaxes and the six steps of the iteration; where two columns of its small matrix tie
 *          for the largest sum, that of one. lsh: which keys are looked at, and for how much, held fixed; out and lse are not
 *          looked at. performer: its features held fixed; the exponents it takes out for range are
 *          no part of the result, and so of no gradient.
 * Out:     what of gradients is wanted; written, not added to. They must not overlap one another or an input.
 * Returns: as kna_attend(); KNA_EVALUE also for NaN and infinity in dout and out, and for NaN and +infinity in lse; KNA_EINVAL for
 *          other methods.
 * Threads: as kna_attend(): the same bits for any number.
 * Cost:    10 m h n d flops (d = dv) over the pairs seen, 6 without dq and dk; logits are computed anew. Scratch 17 * 768 * d floats
 *          for a KV head, as many at a time as keep the threads busy. No gradient of mask and slopes. knn: about three times its
 *          forward call; d + dv floats per 16 keys and KV head, and, below 8 KV heads, 7 / h_kv more gradients of keys and values.
 *          topk, uniform to control and by keys drawn: the forward call, and 8 (d + dv) flops for each key of a row's list and each cell
 *          that stands by its mean, read and written at random, and for cells 3 (d + dv) / 4 floats of memory per row of a KV head; 12 bytes of each, of 256 queries or a million keys at a time. signed besides: 4 h m dv bytes.
 *          Rivals: two to three times their forward calls. nystrom holds 2 (m + n) rank + 14 rank^2 numbers besides, per thread.
 * Source:  Dao 2023 (FlashAttention-2), equations of its section 2; the covariance form dq_i = scale * cov(k, <dout_i, v>) over
 *          softmax(i) says the same. src/attend/backward.h spells it out.
 */
KNA_API KNA_CHECKED int kna_attend_backward(kna_context *context, const kna_gradients *gradients, const kna_rows *dout,
                                            const kna_rows *out, const float *lse, const kna_rows *q, const kna_rows *k,
                                            const kna_rows *v, const kna_attend_options *options);

/*
 * kna_merge() - join attention over two disjoint sets of keys into attention over both, in place: a := a + b.
 *
 * Shapes:  a, b (rows,dv) f32 packed; a_lse, b_lse (rows).
 * Units:   lse as kna_attend() returns it; -INFINITY means "no key".
 * Returns: KNA_OK, KNA_EINVAL (negative or NULL).
 * Source:  softmax over a union is the mean of the parts weighted by exp(lse); any order gives the same up to rounding.
 */
KNA_API KNA_CHECKED int kna_merge(kna_context *context, float *a, float *a_lse, const float *b, const float *b_lse,
                                  int64_t rows, int64_t dv);

/* ------------------------------------------------------------------ 5. Index */

/*
 * An index summarises the keys and values of all KV heads of one cache so that kna_attend() need not look at all of them. It
 * serves one method. KNA_TOPK: keys as int8 (one scale per row), in blocks of 16 consecutive rows. KNA_KNN: clusters of about
 * 16 keys alike in the logits they get and in their values, formed per piece of 256 rows, later per segment of 1,024; of each,
 * mean key, mean value, members, and how far these stray. It does not own the rows. Rows not marked present take no part. After
 * rows of the cache change, say so with kna_index_update(); kna_index_audit() finds changes nobody announced. Keys and values
 * read in full are always read from the cache itself.
 */

/*
 * kna_index_new() - an empty index.
 *
 * In:      method KNA_TOPK or KNA_KNN; h_kv heads, d and dv dimensions.
 * Returns: KNA_OK, KNA_EINVAL, KNA_ELIMIT, KNA_ENOMEM.
 * Owner:   the caller; free before the context. Memory grows with the highest row given: per row and KV head d + 4 bytes (topk),
 *          (d + dv) / 8 + d / 2 + 4 (knn: a fifth of an f16 cache), and 4 d * d per KV head (knn, d <= 256).
 */
KNA_API KNA_CHECKED int kna_index_new(kna_context *context, kna_index **index, int method, int64_t heads, int64_t d,
                                      int64_t dv);

/* kna_index_free() - free an index. NULL is fine. */
KNA_API void kna_index_free(kna_index *index);

/*
 * kna_index_update() - rows first .. first + count - 1 have been written: mark them present and describe them anew.
 *
 * In:      k (h_kv, >= first+count, d), v (h_kv, >= first+count, dv).
 * Returns: KNA_OK, KNA_ESHAPE, KNA_EINVAL, KNA_ENOMEM (the index is as before).
 *          KNA_TOPK: rows holding NaN or infinity are encoded as zero.
 * Threads: parallel over blocks; not during a kna_attend() with this index.
 * Cost:    KNA_TOPK: one pass over the keys given. KNA_KNN: next to nothing; clusters with a row written are read in full from then
 *          on, a piece with many is formed again when it is needed.
 */
KNA_API KNA_CHECKED int kna_index_update(kna_context *context, kna_index *index, const kna_rows *k, const kna_rows *v,
                                         int64_t first, int64_t count);

/*
 * kna_index_form() - KNA_KNN: form clusters of all whole pieces among the first `rows` rows now, not when they are needed.
 *
 * In:      k, v as for kna_index_update(); rows must have been updated. Before any query was seen nothing is done: clusters are
 *          formed in the metric of the queries (for d > 256 there is none, and nothing to wait for).
 * Returns: KNA_OK, KNA_ESHAPE, KNA_EINVAL, KNA_ENOMEM (the index is as before; queries read open rows in full).
 * Threads: parallel over pieces and heads; not during a kna_attend() with this index.
 * Cost:    about 1 us per row and KV head at d = dv = 64.
 */
KNA_API KNA_CHECKED int kna_index_form(kna_context *context, kna_index *index, const kna_rows *k, const kna_rows *v,
                                       int64_t rows);

/* kna_index_remove() - rows first .. first + count - 1 are no longer present. Rows never present are fine. */
KNA_API KNA_CHECKED int kna_index_remove(kna_context *context, kna_index *index, int64_t first, int64_t count);

/* kna_index_rows() - rows covered: one past the highest row ever updated. */
KNA_API int64_t kna_index_rows(const kna_index *index);

/* kna_index_bytes() - memory held. */
KNA_API size_t kna_index_bytes(const kna_index *index);

/*
 * kna_index_audit() - compare `samples` random present rows, of those given, with the cache, bit for bit as they would be
 * described now: a row's int8 (KNA_TOPK), the means of a cluster (KNA_KNN).
 *
 * Out:     *stale  how many differ (0: none of the sampled).
 * In:      seed    chooses the rows; vary it from call to call.
 * Cost:    `samples` keys and their blocks' values are read.
 */
KNA_API KNA_CHECKED int kna_index_audit(kna_context *context, int64_t *stale, const kna_index *index, const kna_rows *k,
                                        const kna_rows *v, int64_t samples, uint64_t seed);

/*
 * kna_index_clusters() - KNA_KNN: which cluster each of the first `rows` rows is in, for those who study an index.
 *
 * Shapes:  cluster, spread (rows).
 * Out:     cluster  a number from 0 on; -1: in none, read in full by every query. spread  of the logits within the row's cluster:
 *          their variance over |scale * q|^2.
 * Returns: KNA_OK, KNA_EINVAL (no index of clusters, or no such head).
 * Cost:    one pass over the members.
 */
KNA_API KNA_CHECKED int kna_index_clusters(kna_context *context, int32_t *cluster, float *spread, const kna_index *index,
                                           int64_t head, int64_t rows);

/* ------------------------------------------------------------------ 6. Store */

/*
 * A store is a folder that holds documents and the rows that belong to them: keys and values of chosen layers and heads, hidden
 * states, any vectors, any bytes. doc/format.md has every byte of it.
 *
 * What is promised. When kna_store_commit() has returned KNA_OK, what was added and removed since the commit before is kept whatever
 * happens next: the process is killed, the system crashes, the power fails (on a device that does what it says when it is told to
 * flush). Before that, all of it or none of it is. Damage is detected when it is met, and nothing damaged is ever given out: rows are
 * compared with their checks the first time they are touched. A document removed is in no later answer.
 *
 * One process writes at a time (a second one is told so at once: KNA_EBUSY), any number read. A reader sees the store as of its
 * kna_store_open() or last kna_store_refresh(), whatever is written meanwhile. Not for file systems of other machines (NFS).
 *
 * fork(): a child may go on reading through a store that its parent opened, as of then (a reader's also with kna_store_refresh()), and
 * close it; it writes through none (KNA_EINVAL), and what it closes is its own: the parent's transaction and lock stay as they are. A
 * child that neither closes nor runs another program keeps the lock of a parent that dies, so until it ends there is no next writer.
 *
 * Read-only media: a reader writes nothing, and needs no lock file. Descriptors 0 to 2 are never used for a store.
 *
 * Threads: a kna_store serves one call at a time, through the context it was opened with.
 * After a commit or a compaction has failed in a flush or behind it, the store takes no more: KNA_EIO until it is opened again, because
 * what a failed flush has lost cannot be known; the next writer writes the receipt anew (Rebello et al. 2020).
 */
typedef struct kna_store kna_store;

#define KNA_BYTES 16                 /* a row type of stores alone: rows of dim bytes, for token numbers and text */
#define KNA_MAX_STORED_DIM 65536     /* numbers in a stored row */
#define KNA_MAX_BYTES_DIM 0x40000000 /* bytes in a row of KNA_BYTES */
#define KNA_MAX_FAMILIES 4096

/* A family: rows alike, numbered from 0 on in the order they were added; a number is never given again. */
typedef struct kna_family {
    const char *name; /* 1 to 64 bytes */
    int type;         /* KNA_F32, KNA_F16, KNA_BF16, KNA_I8, KNA_Q8_0 or KNA_BYTES */
    int64_t dim;
} kna_family;

/* A document. Texts are UTF-8 and end with a NUL; NULL is read as "". */
typedef struct kna_document {
    int64_t id;               /* from 1 on, never given again; kna_store_add() fills it */
    const char *uri;          /* its name: no two documents of a store have one; "": none */
    const char *tags;         /* separated by newlines */
    const char *attributes;   /* JSON, or "" */
    unsigned char hash[32];   /* of what it was made from, as the caller has it; zero: none */
    int64_t time_us;          /* microseconds since 1970; 0 when adding: now */
    int64_t tokens;
} kna_document;

/* Rows of a family that belong to one document. */
typedef struct kna_store_rows {
    int family;       /* number, in the order of families */
    int64_t first;    /* number of the first row in its family */
    kna_rows rows;    /* heads 1; of KNA_BYTES: type KNA_BYTES, data and sizes as they are */
} kna_store_rows;

typedef struct kna_store_options {
    size_t size;
    int write;                /* 1: as the one writer */
    const char *model;        /* create: kept with the store. open: must be the same, else KNA_EFORMAT; NULL: any */
    int64_t segment_bytes;    /* writer: rows go to a new file from this size on; 0: 1 GiB */
} kna_store_options;
#define KNA_STORE_OPTIONS { sizeof(kna_store_options), 0, NULL, 0 }

/* What a store holds. */
typedef struct kna_store_info {
    size_t size;              /* set to sizeof(kna_store_info) before the call */
    unsigned char uuid[16];
    int64_t transaction;      /* commits so far */
    int64_t documents, families;
    int64_t removed;          /* documents removed, their rows still in the files */
    int64_t bytes;            /* of rows of documents there are */
    int64_t dead_bytes;       /* of removed ones since the last compaction */
    int64_t log_bytes, segments;
    int64_t verified_pieces;  /* of 64 KiB, compared with their checks so far */
} kna_store_info;

/*
 * kna_store_create() - a new store in a folder that does not exist or is empty.
 *
 * In:      families  count of them; more can be added later.
 * Returns: KNA_OK; KNA_EINVAL (a family, an option), KNA_EEXISTS (there is a store already, or other files), KNA_EIO, KNA_ENOMEM. After
 *          an error nothing that passes for a store is left.
 */
KNA_API KNA_CHECKED int kna_store_create(kna_context *context, const char *folder, const kna_family *families, int count,
                                         const kna_store_options *options);

/*
 * kna_store_open() - open a store as a reader or as the writer.
 *
 * Out:     *store, NULL after an error. Give back with kna_store_close(), before the context.
 * Returns: KNA_OK; KNA_ENONE (no such folder), KNA_EFORMAT (no store; another version, byte order or model), KNA_EBUSY (write: another
 *          process is writing), KNA_EDAMAGED, KNA_EIO, KNA_ENOMEM, KNA_EINVAL.
 * Cost:    the log is read: about 200 bytes and 8 per 64 KiB of rows for each document; rows are mapped, not read.
 */
KNA_API KNA_CHECKED int kna_store_open(kna_context *context, kna_store **store, const char *folder, const kna_store_options *options);

/* kna_store_close() - what was not committed is dropped. NULL is fine. */
KNA_API void kna_store_close(kna_store *store);

/* kna_store_refresh() - a reader: go on to what is committed now. *changed (may be NULL): whether that is anything new. Pointers given
 * out before are void. Never back: KNA_OK and no change where there is nothing newer. Returns KNA_OK, KNA_EDAMAGED, KNA_EIO,
 * KNA_ENOMEM; after an error it is to be closed, and opened again. */
KNA_API KNA_CHECKED int kna_store_refresh(kna_store *store, int *changed);

/* kna_store_info_get() - what it holds. Costs a look at a byte per 64 KiB of rows. KNA_OK or KNA_EINVAL. */
KNA_API KNA_CHECKED int kna_store_info_get(const kna_store *store, kna_store_info *info);

/* Families. kna_store_family(): KNA_OK or KNA_EINVAL; the name is valid until the store is closed. kna_store_family_named(): its
 * number, or -1. kna_store_family_rows(): one past the highest row number committed. */
KNA_API KNA_CHECKED int kna_store_family(const kna_store *store, int family, kna_family *out);
KNA_API int kna_store_family_named(const kna_store *store, const char *name);
KNA_API int64_t kna_store_family_rows(const kna_store *store, int family);

/*
 * kna_store_add_family(), kna_store_add(), kna_store_remove(), kna_store_note() - the writer: one more family, one more document, one
 * less, a named text kept with the store ("" removes it). Nothing of it is seen before kna_store_commit().
 *
 * kna_store_add(): rows go to the files now, with the document's name when it is committed.
 *   In:      document  copied; id and time_us 0 are filled in. replace: 1: a document of the same uri is removed by the same commit.
 *            rows      `count` groups of at most one per family, of their family's type and dimension; heads 1 (kna_rows.heads).
 *   Returns: KNA_OK; KNA_EINVAL, KNA_ESHAPE, KNA_ETYPE; KNA_EEXISTS (the uri is taken); KNA_EIO (a full disk: what was added since the last
 *            commit can be rolled back, the store goes on); KNA_ENOMEM. After an error that document is not added, those before it are.
 * kna_store_remove(): KNA_ENONE: no such document, or removed already.
 */
KNA_API KNA_CHECKED int kna_store_add_family(kna_store *store, const kna_family *family);
KNA_API KNA_CHECKED int kna_store_add(kna_store *store, kna_document *document, const kna_store_rows *rows, int count, int replace);
KNA_API KNA_CHECKED int kna_store_remove(kna_store *store, int64_t id);
KNA_API KNA_CHECKED int kna_store_note(kna_store *store, const char *name, const char *text);

/*
 * kna_store_commit() - what was added and removed is kept from now on, and seen. Pointers given out before are void.
 *
 * Returns: KNA_OK (nothing to do is fine); KNA_EIO, KNA_ENOMEM: none of it is kept, or all of it (a crash's choice); see above.
 * Cost:    three flushes, whatever the number of documents.
 */
KNA_API KNA_CHECKED int kna_store_commit(kna_store *store);

/* kna_store_rollback() - drop what was not committed. */
KNA_API void kna_store_rollback(kna_store *store);

/*
 * Reading. Documents there are, in the order of their ids: kna_store_next() gives the first with an id above `after` (0: the first);
 * kna_store_document() the one with the id; kna_store_find() the one with the uri. KNA_OK or KNA_ENONE. Texts are valid until the
 * next commit, refresh, compaction or close. kna_store_note_text(): the text, or NULL.
 */
KNA_API KNA_CHECKED int kna_store_next(const kna_store *store, int64_t after, kna_document *document);
KNA_API KNA_CHECKED int kna_store_document(const kna_store *store, int64_t id, kna_document *document);
KNA_API KNA_CHECKED int kna_store_find(const kna_store *store, const char *uri, kna_document *document);
KNA_API const char *kna_store_note_text(const kna_store *store, const char *name);

/*
 * kna_store_rows_of() - rows of a document, where they lie in the mapped file.
 *
 * Out:     *rows: 0 rows where the document has none of the family. Valid as texts are.
 * Returns: KNA_OK, KNA_ENONE (no such document), KNA_EINVAL (no such family), KNA_EDAMAGED (they are not what was written), KNA_EIO (they
 *          cannot be read).
 * Cost:    the first time their pieces are read and compared with their checks (about 10 GB/s where they are in memory).
 */
KNA_API KNA_CHECKED int kna_store_rows_of(kna_store *store, int64_t id, int family, kna_store_rows *rows);

/* kna_store_extent() - which rows of a family a document has: the number of the first, and how many (0: none, and *first 0). Nothing is
 * read. KNA_OK, KNA_ENONE (no such document), KNA_EINVAL (no such family). */
KNA_API KNA_CHECKED int kna_store_extent(const kna_store *store, int64_t id, int family, int64_t *first, int64_t *rows);

/* kna_store_prefetch() - ask the system to read a document's rows of a family ahead of kna_store_rows_of(). */
KNA_API void kna_store_prefetch(kna_store *store, int64_t id, int family);

/* kna_store_owner() - the document that a row of a family belongs to, and its place there. KNA_OK; KNA_ENONE: to none, or to one removed. */
KNA_API KNA_CHECKED int kna_store_owner(const kna_store *store, int family, int64_t row, int64_t *id, int64_t *place);

/*
 * kna_store_verify() - compare everything with its checks: manifest, log, and the rows of all documents (of removed ones too).
 *
 * Out:     *damaged  how many documents have rows that are not as they were written; each is told to `tell` (may be NULL).
 *                    NULL: manifest and log only, no rows are read. Indexes are not looked at: see kna_store_index_get().
 * Returns: KNA_OK where nothing is damaged, KNA_EDAMAGED, KNA_EIO.
 */
KNA_API KNA_CHECKED int kna_store_verify(kna_store *store, int64_t *damaged,
                                         void (*tell)(void *user, int64_t id, const char *what), void *user);

/*
 * kna_store_compact() - the writer: write anew files of which at least `share` (0 to 1) belongs to no document any more, and the log;
 * then remove the old ones. Rows and documents keep their numbers. Readers go on with what they have open.
 *
 * Returns: as kna_store_commit(); KNA_EDAMAGED: a document to be kept is damaged (kna_store_repair() leaves it out); KNA_ELIMIT: 1,048,576
 *          files were begun in the life of the store.
 */
KNA_API KNA_CHECKED int kna_store_compact(kna_store *store, double share);

/*
 * kna_store_repair() - of a store that does not open, or has damaged documents: keep what is sound, drop what is not, and say so.
 *
 * What was never committed is not taken up, and what was removed stays removed, also where the record of the removal is the damaged one;
 * but of removals damaged together, one after the other, only those of documents that were replaced.
 *
 * Out:     *kept, *lost  documents.
 * Returns: KNA_OK; KNA_ENONE (no such folder), KNA_EFORMAT, KNA_EDAMAGED (no log is left), KNA_EBUSY, KNA_EIO (also a log that the device
 *          cannot read), KNA_ENOMEM.
 */
KNA_API KNA_CHECKED int kna_store_repair(kna_context *context, const char *folder, int64_t *kept, int64_t *lost);

#ifdef __cplusplus
}
#endif

#include "kna_search.h"

#endif /* KNA_H */
