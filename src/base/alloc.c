/* alloc.c - the library's memory: one hook, one account. The only file that may call the C library's allocator. */
#define _POSIX_C_SOURCE 200112L
#define KNA_MAY_ALLOCATE
#include "base.h"

static void *default_allocate(void *user, size_t bytes)
{
    (void)user;
    void *memory = NULL;
    return posix_memalign(&memory, KNA_ALIGNMENT, bytes) == 0 ? memory : NULL;
}

static void default_release(void *user, void *memory, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(memory);
}

void kna__heap_init(kna__heap *heap, const kna_allocator *allocator)
{
    memset(heap, 0, sizeof *heap);
    if (allocator && allocator->allocate) {
        heap->allocator = *allocator;
    } else {
        heap->allocator.allocate = default_allocate;
        heap->allocator.release = default_release;
    }
}

void *kna__allocate(kna__heap *heap, size_t bytes)
{
    size_t held = bytes ? bytes : 1;
    if (held > SIZE_MAX / 2 - heap->now_bytes) {
        return NULL;
    }
    void *memory = heap->allocator.allocate(heap->allocator.user, held);
    if (!memory) {
        return NULL;
    }
    heap->allocations++;
    heap->now_bytes += held;
    if (heap->now_bytes > heap->peak_bytes) {
        heap->peak_bytes = heap->now_bytes;
    }
    return memory;
}

void kna__release(kna__heap *heap, void *memory, size_t bytes)
{
    if (!memory) {
        return;
    }
    size_t held = bytes ? bytes : 1;
    heap->now_bytes -= held;
    heap->allocator.release(heap->allocator.user, memory, held);
}

size_t kna__size_product(size_t a, size_t b)
{
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}
