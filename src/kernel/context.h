/*
 * context.h - inside a kna_context: the memory account, the kernel table, threads, and one scratch block kept between calls.
 *
 * A call works out all the scratch it needs, reserves it once, and cuts it up; nothing is allocated in a loop.
 */
#ifndef KNA_CONTEXT_H
#define KNA_CONTEXT_H

#include "kernel.h"

struct kna_context {
    kna__heap heap;
    const kna__kernels *kernels;
    int threads;
    int64_t indexes;     /* made so far */
    char *scratch;
    size_t scratch_bytes;
    size_t scratch_used; /* most reserved since the call began: for reports */
    char message[KNA_MESSAGE_BYTES];
};

/* The scratch block, at least `bytes` long, aligned to KNA_ALIGNMENT; what it held is lost. NULL: out of memory. */
char *kna__scratch(kna_context *context, size_t bytes);

/* Cut an aligned piece off a block: returns *cursor and moves it. With a NULL base the cursor counts bytes only. */
typedef struct kna__cutter {
    char *base;
    size_t used;
} kna__cutter;
void *kna__cut(kna__cutter *cutter, size_t count, size_t bytes);

#define KNA_FAIL(context, ...) kna__fail((context)->message, __VA_ARGS__)

#endif
