/*
 * engine.h - what one context of the program computes with.
 *
 * Invariant: used by one thread at a time; records.busy is held while a graph is computed.
 */
#ifndef KNNATTN_ENGINE_H
#define KNNATTN_ENGINE_H

#include "cache.h"
#include "kna.h"
#include "settings.h"

#include <stdint.h>

struct knnattn_engine {
    kna_context *kna;
    struct knnattn_settings settings;
    struct knnattn_records records;
    float *slopes; /* scratch for ALiBi, of slopes_count numbers */
    int64_t slopes_count;
    uint64_t calls; /* seeds audits */
    bool is_full;   /* indexes would take more than settings.index_kib: there are none any more */
};

static inline bool knnattn_is_over_limit(const struct knnattn_engine *engine)
{
    return engine->settings.index_kib > 0 && engine->records.bytes > (size_t)engine->settings.index_kib * 1024;
}

#endif
