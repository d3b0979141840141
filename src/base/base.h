/*
 * base.h - what every room stands on: status, memory with accounting, threads, random numbers.
 *
 * Invariant: nothing here knows rows, keys or attention. All memory of the library passes through kna__allocate(), which
 * counts it; malloc and free are poisoned everywhere but in alloc.c, so a slip does not compile.
 */
#ifndef KNA_BASE_H
#define KNA_BASE_H

#include "../../include/kna.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define KNA_MESSAGE_BYTES 256
#define KNA_ALIGNMENT 64

/* The only macro with control flow: hand an error to the caller. */
#define KNA_TRY(expression)                     \
    do {                                        \
        int kna_try_status_ = (expression);     \
        if (kna_try_status_ != KNA_OK) {        \
            return kna_try_status_;             \
        }                                       \
    } while (0)

/* Who holds how much. Lives inside the context; indexes point to it, so that their memory is counted too. */
typedef struct kna__heap {
    kna_allocator allocator;
    size_t now_bytes, peak_bytes;
    uint64_t allocations;
} kna__heap;

/* alloc.c - uninitialised memory aligned to KNA_ALIGNMENT, or NULL. Zero bytes give a valid pointer too. */
void kna__heap_init(kna__heap *heap, const kna_allocator *allocator);
void *kna__allocate(kna__heap *heap, size_t bytes);
void kna__release(kna__heap *heap, void *memory, size_t bytes);
/* rows * bytes that saturates, so that an overflow becomes a failed allocation and never a short one. */
size_t kna__size_product(size_t a, size_t b);

/* status.c - format the context's message and return the status. */
int kna__fail(char message[KNA_MESSAGE_BYTES], int status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/*
 * threads.c - run task(argument, index, worker) for index 0 .. count - 1 on up to `threads` threads. Tasks are handed out
 * one by one; worker (0 .. threads - 1) tells whose scratch to use. A task's result must depend on its index only.
 */
typedef void (*kna__task)(void *argument, int64_t index, int worker);
void kna__parallel_for(int threads, int64_t count, kna__task task, void *argument);

/*
 * Steps that build on each other, with the threads woken once: how many tasks a step has is asked when the step before it is
 * done, by one thread.
 */
typedef struct kna__step {
    kna__task task;
    int64_t (*tasks)(void *argument);
} kna__step;
void kna__parallel_steps(int threads, const kna__step *steps, int count, void *argument);
int kna__processors(void);

/* clock.c - monotonic seconds. */
double kna__seconds(void);

/* random.c - counter-based: the same (seed, stream, counter) gives the same number on every machine and thread. */
uint64_t kna__random(uint64_t seed, uint64_t stream, uint64_t counter);
double kna__uniform(uint64_t seed, uint64_t stream, uint64_t counter); /* in (0,1) */

#ifndef KNA_MAY_ALLOCATE
#pragma GCC poison malloc calloc realloc free
#endif

#endif
