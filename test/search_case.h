/* search_case.h - stores to be searched, and what should be found in them: every row compared with every query, in double. */
#ifndef SEARCH_CASE_H
#define SEARCH_CASE_H

#include "store_case.h"

/* Rows of one family, as their type says them, and whose they are. */
typedef struct search_case {
    kna_context *context;
    kna_store *store;
    char folder[96];
    int type, metric;
    int64_t dim, rows, documents;
    double *x;      /* (rows, dim) */
    int64_t *owner; /* (rows) which document */
    int64_t *ids;   /* (documents) */
    bool *removed;  /* (documents) */
} search_case;

/* What the numbers of a document's rows are like. */
enum {
    NORMAL,
    ALIKE,    /* -1, 0 and 1: many rows score the same */
    LOPSIDED, /* some rows much larger or smaller, some zero */
    WILD,     /* some with NaN, infinity, or squares that f32 does not hold */
    KINDS
};

/* A new store with one family, in a place of its own; search_end() takes it away. */
search_case search_begin(kna_context *context, int type, int64_t dim, int metric);
void search_end(search_case *c);
/* A document of so many rows, committed; and removed, committed. */
void search_add(search_case *c, int64_t rows, int kind);
void search_remove(search_case *c, int64_t document);
/* An index of what there is. */
bool search_index(search_case *c, int kind);

/* Queries, (m,dim) of f32; free() them. */
float *search_queries(const search_case *c, int64_t m, int kind);

/* What should be found: rows that may be, best first. keep: by document, NULL: all there are. Returns how many. */
typedef struct truth {
    double score;
    int64_t row;
} truth;
int64_t search_truth(const search_case *c, const float *q, const bool *keep, truth *all);

/* Whether the hits are the first of the truth, but for rows whose scores differ by nothing but how doubles are added up. */
bool search_is_truth(const search_case *c, const float *q, const truth *all, int64_t there, const kna_hit *hits, int64_t count,
                     int64_t k, double beta);

/* A search of the case's metric, with this kna_search_index. */
kna_search *search_open(const search_case *c, kna_store *store, int index);

/* Hits of a few queries, and how they were found. */
enum { ANSWER_QUERIES = 3, ANSWER_K = 7 };
typedef struct answer {
    kna_hit hits[ANSWER_QUERIES * ANSWER_K];
    int64_t counts[ANSWER_QUERIES];
    kna_search_report report;
} answer;
/* The status of kna_search_run(). q (ANSWER_QUERIES, dim). */
int search_ask(kna_search *s, const search_case *c, const float *q, answer *to);
bool search_same(const answer *a, const answer *b);

#endif
