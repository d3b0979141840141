/*
 * totals.h - what attention calls did, summed per slot and per layer, and the report file made of it.
 *
 * Invariant: the sums of the layers are the sums of their slot; everything may be called from any thread.
 */
#ifndef KNNATTN_TOTALS_H
#define KNNATTN_TOTALS_H

#include "kna.h"
#include "knnattn.h"
#include "settings.h"

#include <stdbool.h>

#define KNNATTN_LAYERS 1024 /* layers told apart; further ones share the last entry */

/* One attention call, or work on an index between calls. layer is -1 where keys come from no cache. */
struct knnattn_done {
    int slot;
    int layer;
    const kna_report *report; /* NULL: no call */
    bool exact;               /* every key was asked for */
    bool fallback;            /* because memory for the index was short */
    double index_s;           /* spent on the index before the call */
    int64_t rows_indexed;
    int64_t stale_events;
    int64_t stale_rows;
    size_t layer_bytes; /* of the index used */
    size_t index_bytes; /* of all indexes of this context */
};

void knnattn_totals_add(const struct knnattn_done *done);
void knnattn_totals_get(int slot, struct knnattn_report *report);
void knnattn_totals_reset(int slot);

/* Writes settings->report (if one is asked for) so that a reader finds the old file or the whole new one. */
void knnattn_totals_write(const struct knnattn_settings *settings);

/* One line on stderr about everything done. */
void knnattn_totals_summary(const struct knnattn_settings *settings);

#endif
