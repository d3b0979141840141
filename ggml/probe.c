/*
 * probe.c - until when attention is left to the CPU (see probe.h).
 *
 * The test ends with the first attention of another number of queries or streams, or when a graph is computed.
 */
#define _GNU_SOURCE
#include "probe.h"

#include "cache.h"

#include <pthread.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    bool is_open, is_asked; /* asked: the first attention gave queries and streams */
    int64_t queries, streams;
} probe;

void knnattn_probe_open(void)
{
    pthread_mutex_lock(&lock);
    probe.is_open = true;
    probe.is_asked = false;
    pthread_mutex_unlock(&lock);
}

void knnattn_probe_close(void)
{
    pthread_mutex_lock(&lock);
    probe.is_open = false;
    pthread_mutex_unlock(&lock);
}

bool knnattn_probe_is_open(const struct ggml_tensor *op)
{
    const struct ggml_tensor *q = op->src[0];
    const struct ggml_tensor *root = op->src[1]->view_src;

    if (root == NULL || knnattn_cache_layer(root) < 0) {
        return false;
    }
    pthread_mutex_lock(&lock);
    if (!probe.is_asked) {
        probe.is_asked = true;
        probe.queries = q->ne[1];
        probe.streams = q->ne[3];
    }
    if (probe.queries != q->ne[1] || probe.streams != q->ne[3]) {
        probe.is_open = false;
    }
    bool is_open = probe.is_open;
    pthread_mutex_unlock(&lock);
    return is_open;
}
