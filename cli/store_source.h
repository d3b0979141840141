/*
 * store_source.h - arrays whose rows go into families of a store: one .npy, or the members of a .npz.
 */
#ifndef KNA_CLI_STORE_SOURCE_H
#define KNA_CLI_STORE_SOURCE_H

#include "npy.h"
#include "store.h"

typedef struct store_source {
    npy_array array; /* (rows, dim), f32 or f16 */
    char *label;     /* file and member, for messages; owned */
    char *name;      /* of the family; owned */
    int family;
    kna_family of;
    int64_t next; /* row not yet dealt out */
} store_source;

typedef struct store_sources {
    store_source *items;
    int count;
} store_sources;

/* store_sources_read() - read and check all: shapes, and numbers the family's type cannot hold. family: of a .npy; NULL: the only one. */
int store_sources_read(store_sources *sources, const store_target *target, const char *path, const char *family);
void store_sources_free(store_sources *sources);

#endif /* KNA_CLI_STORE_SOURCE_H */
