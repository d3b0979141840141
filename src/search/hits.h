/* hits.h - what kna_search_run() and kna_hits_merge() share. */
#ifndef KNA_HITS_H
#define KNA_HITS_H

#include "search.h"

enum { KNA_MAX_HITS = 1 << 24 };

int kna__how_check(kna_context *context, const kna_search_how *how);
/* log of the sum of exp(score / temperature); 0 is read as 1. */
double kna__hits_lse(const kna_hit *hits, int64_t count, double temperature);

#endif
