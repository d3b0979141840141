/*
 * set_rows.h - new rows of a key-value cache, written here so that the index learns of them.
 *
 * Invariant: the cache gets the same bytes as from ggml's CPU backend.
 */
#ifndef KNNATTN_SET_ROWS_H
#define KNNATTN_SET_ROWS_H

#include <ggml.h>
#include <stdbool.h>

/* Whether this is a SET_ROWS into rows of a key-value cache that knnattn_set_rows() can write. */
bool knnattn_set_rows_supported(const struct ggml_tensor *op);

/* Writes the rows. False when an index is outside of the cache; the rows before it are written then. */
bool knnattn_set_rows(const struct ggml_tensor *op);

#endif
