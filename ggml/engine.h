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
};

#endif
