/*
 * watch.c - the write functions of a watched buffer, put in front of ggml's own (see watch.h).
 *
 * A buffer carries its table of functions by value, so exchanging four entries concerns this buffer alone. Only buffers
 * whose entries are those of a plain CPU buffer are taken: then the functions behind are known without any bookkeeping, and
 * nothing has to be undone when a buffer goes away. Writes past these functions (a program that keeps a pointer into the
 * cache) stay unseen here; the audit of random rows is there for them.
 */
#define _GNU_SOURCE
#include "watch.h"

#include "indexing.h"

#include <ggml-backend-impl.h>
#include <pthread.h>
#include <string.h>

static struct ggml_backend_buffer_i plain; /* of ggml's CPU buffers; all NULL when none could be made */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void learn_plain(void)
{
    ggml_backend_buffer_t sample = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), 64);

    if (sample != NULL) {
        plain = sample->iface;
        ggml_backend_buffer_free(sample);
    }
}

static void watched_memset(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, uint8_t value, size_t offset, size_t size)
{
    knnattn_touch((const char *)tensor->data + offset, size);
    plain.memset_tensor(buffer, tensor, value, offset, size);
}

/* A program that goes back to a state it had loaded before writes what is there: the index stays as good as it was. */
static void watched_set(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, const void *data, size_t offset, size_t size)
{
    if (memcmp((const char *)tensor->data + offset, data, size) == 0) {
        return;
    }
    knnattn_touch((const char *)tensor->data + offset, size);
    plain.set_tensor(buffer, tensor, data, offset, size);
    knnattn_index_loaded((const char *)tensor->data + offset, size, ggml_backend_buffer_get_base(buffer), buffer->size);
}

static bool watched_copy(ggml_backend_buffer_t buffer, const struct ggml_tensor *src, struct ggml_tensor *dst)
{
    knnattn_touch(dst->data, ggml_nbytes(dst));
    return plain.cpy_tensor(buffer, src, dst);
}

static void watched_clear(ggml_backend_buffer_t buffer, uint8_t value)
{
    knnattn_touch(ggml_backend_buffer_get_base(buffer), buffer->size);
    plain.clear(buffer, value);
}

void knnattn_watch(ggml_backend_buffer_t buffer)
{
    pthread_once(&once, learn_plain);
    if (buffer == NULL || plain.set_tensor == NULL) {
        return;
    }
    struct ggml_backend_buffer_i *iface = &buffer->iface;
    if (iface->set_tensor == plain.set_tensor && iface->memset_tensor == plain.memset_tensor &&
        iface->cpy_tensor == plain.cpy_tensor && iface->clear == plain.clear && iface->set_tensor_2d == NULL) {
        iface->set_tensor = watched_set;
        iface->memset_tensor = watched_memset;
        iface->cpy_tensor = watched_copy;
        iface->clear = watched_clear;
    }
}
