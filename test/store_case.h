/*
 * store_case.h - stores in tests: a folder of the test's own, documents whose rows follow from a number, and a model in memory of
 * which documents there should be.
 */
#ifndef STORE_CASE_H
#define STORE_CASE_H

#include "test.h"

#include "kna.h"

enum { KEYS, HIDDEN, CODES, TEXT, FAMILIES };
extern const kna_family families[FAMILIES];

/* An empty folder; the one before goes. drop_place() at the end. In memory where there is such a place. */
const char *fresh_place(void);
void drop_place(void);
/* Everything in a folder, and the folder. */
void remove_folder(const char *folder);

/* Whether the call went well; else what it said. */
bool went_well(kna_context *context, int status, const char *file, int line);
#define WELL(context, call) went_well(context, call, __FILE__, __LINE__)

kna_store *open_store(kna_context *context, const char *folder, int write, int64_t segment_bytes);

/* Rows of document `number`: as many of each family as the number says, none of some. Free with unfill(). */
typedef struct filled {
    kna_store_rows rows[FAMILIES];
    void *data[FAMILIES];
    float *scales;
    int count;
} filled;
void fill(filled *f, uint32_t number);
void unfill(filled *f);

/* Document `number` into the store: as kna_store_add(). Its uri, of 300 different ones or none. */
int add(kna_store *store, uint32_t number, int replace, int64_t *id);
void name_of(char name[32], uint32_t number);

/* Whether a document is what add() made of the number, rows and owners of rows included. */
bool is_document(kna_store *store, kna_context *context, int64_t id, uint32_t number);

/* Which documents there should be, in the order of their ids. */
enum { MODEL_MOST = 3000 };
typedef struct model {
    int64_t ids[MODEL_MOST];
    uint32_t numbers[MODEL_MOST];
    int count;
} model;
int model_named(const model *m, uint32_t number); /* the document that has this one's uri, or -1 */
void model_remove(model *m, int i);
void model_add(model *m, int64_t id, uint32_t number);
/* The ids of the store are the model's: nothing is expected, nothing printed. */
bool has_ids_of(kna_store *store, const model *m);
/* And so are the documents. */
bool is_model(kna_store *store, kna_context *context, const model *m);

#endif
