/* lloyd.h - centers of lists: find them in a sample, and say which is nearest to a row, or which are to a query. */
#ifndef KNA_LLOYD_H
#define KNA_LLOYD_H

#include "../kernel/context.h"

/* Centers as int8 in packed blocks, so that a product with all of them costs a byte each number. */
typedef struct kna__packed {
    uint8_t *codes;
    float *steps; /* of 16 blocks; 0 in the last block's rest */
    float *bias;  /* added to the product with a row; far below all others in the last block's rest */
    uint64_t lists, blocks, d4, dim;
    size_t bytes; /* of all of it */
} kna__packed;

/* Borrows nothing. bias 0. KNA_OK or KNA_ENOMEM. Give back with kna__packed_free(). */
int kna__packed_make(kna_context *context, kna__packed *packed, const float *centers, uint64_t lists, uint64_t dim);
void kna__packed_free(kna_context *context, kna__packed *packed);
/* bias := -|c|^2 / 2: then the largest sum is that of the nearest center. */
void kna__packed_by_distance(const kna__kernels *kernels, kna__packed *packed, const float *centers);

/* A worker's own, for ASSIGN_ROWS rows at a time. */
size_t kna__assign_room(const kna__packed *packed);
/* to[i] = the list whose center is nearest to row i of x (n, dim), n any number; as int8 products tell. */
void kna__assign(const kna__kernels *kernels, uint32_t *to, const kna__packed *packed, const float *x, uint64_t n, void *room);

/* centers (lists, dim) of the sample x (n, dim), lists <= n: Lloyd's algorithm. KNA_OK or KNA_ENOMEM. */
int kna__lloyd(kna_context *context, float *centers, uint64_t lists, const float *x, uint64_t n, uint64_t dim);

/* Rows by the list they are in: order holds the numbers 0 .. n - 1, those of list l from first[l] to first[l + 1] - 1, ascending. */
void kna__sort_by_list(uint64_t *first, uint32_t *order, const uint32_t *to, uint64_t n, uint64_t lists);

#endif
