/*
 * watch.h - learning of writes to a cache that no graph announces: loaded states, copies between sequences, clearing.
 *
 * Invariant: a watched buffer behaves as before; what passes through its write functions is also told to knnattn_touch().
 */
#ifndef KNNATTN_WATCH_H
#define KNNATTN_WATCH_H

#include <ggml-backend.h>

/* Watches a buffer of ggml's CPU kind for as long as it lives; any other kind, and NULL, is left as it is. */
void knnattn_watch(ggml_backend_buffer_t buffer);

#endif
