/*
 * indexing.h - keeping the index of a cache up to date with it.
 *
 * Invariant: what knnattn_index_ready() leaves describes the rows asked for as they were announced; what nobody announced is
 * found by comparing random rows.
 */
#ifndef KNNATTN_INDEXING_H
#define KNNATTN_INDEXING_H

#include "engine.h"
#include "totals.h"

/*
 * The record of the cache that an attention operation reads, whose writes are watched from now on. NULL where keys come from no
 * cache, or without memory.
 */
struct knnattn_record *knnattn_index_of(struct knnattn_engine *engine, const struct ggml_tensor *op, int64_t stream);

/* Brings the index up to date for the first n rows; some calls compare a few of them with the cache. A kna_status. */
int knnattn_index_ready(struct knnattn_engine *engine, struct knnattn_record *record, int64_t n, struct knnattn_done *done);

/* `stale` rows were found changed with no word of it: everything is encoded again. A kna_status. */
int knnattn_index_repair(struct knnattn_engine *engine, struct knnattn_record *record, int64_t n, int64_t stale,
                         struct knnattn_done *done);

/*
 * Bytes start .. start + bytes - 1 of a buffer (room) have been written from outside of any graph, as loading a state does. When
 * they complete many rows of a cache, these are encoded now, so that loading takes the time and not the next token.
 */
void knnattn_index_loaded(const void *start, size_t bytes, const void *room, size_t room_bytes);

#endif
