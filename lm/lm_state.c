/*
 * lm_state.c - the cache of one session into others, so that a long text is read once.
 *
 * Stage: a filled cache -> more of them. llama.cpp saves and loads the cache of a context with flash attention and of one without,
 * but not the one into the other: values lie row by row in the first, number by number in the second. That is turned here, in
 * the saved state. Invariant: a state is turned only if every field of it is what this file expects, down to the last byte; the
 * layout, by llama.cpp's llama_kv_cache::state_write(), is
 *
 *     magic u32, sequence i32, then for each cache of the model, up to the end:
 *     streams u32 = 1, cells n u32; if n > 0:
 *         n times: position i32, sequences u32 = 1, sequence i32
 *         transposed u32 = 0, layers u32
 *         per layer, keys:    type i32, row bytes u64, n rows
 *         per layer, values:  type i32, row bytes u64, n rows    transposed: type i32, number bytes u32, width u32, width rows of n
 */
#include "lm_internal.h"

#include <ggml.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ turning */

typedef struct cursor {
    unsigned char *at, *end;
} cursor;

/* The next `bytes` bytes, NULL if there are not so many. */
static unsigned char *take(cursor *c, size_t bytes)
{
    unsigned char *taken = c->at;
    if ((size_t)(c->end - c->at) < bytes) {
        return NULL;
    }
    c->at += bytes;
    return taken;
}

static int take_u32(cursor *c, uint32_t *value)
{
    unsigned char *from = take(c, sizeof *value);
    if (from) {
        memcpy(value, from, sizeof *value);
    }
    return from != NULL;
}

static int take_u64(cursor *c, uint64_t *value)
{
    unsigned char *from = take(c, sizeof *value);
    if (from) {
        memcpy(value, from, sizeof *value);
    }
    return from != NULL;
}

/* The entries of the cells, each of one sequence. */
static int take_cells(cursor *c, uint32_t cells)
{
    for (uint32_t i = 0; i < cells; i++) {
        uint32_t position = 0, sequences = 0, sequence = 0;
        if (!take_u32(c, &position) || !take_u32(c, &sequences) || !take_u32(c, &sequence) || sequences != 1) {
            return 0;
        }
    }
    return 1;
}

/* One layer's rows with their heading. */
static unsigned char *take_rows(cursor *c, uint32_t cells, uint32_t *type, uint64_t *row_bytes)
{
    if (!take_u32(c, type) || *type >= (uint32_t)GGML_TYPE_COUNT || !take_u64(c, row_bytes)) {
        return NULL;
    }
    if (*row_bytes == 0 || *row_bytes > (size_t)(c->end - c->at) / cells) {
        return NULL;
    }
    return take(c, (size_t)(cells * *row_bytes));
}

/* (cells, width) numbers to (width, cells), by tiles that fit the first cache. */
static void transpose(unsigned char *to, const unsigned char *from, size_t cells, size_t width, size_t number_bytes)
{
    enum { TILE = 32 };
    for (size_t c0 = 0; c0 < cells; c0 += TILE) {
        size_t c1 = c0 + TILE < cells ? c0 + TILE : cells;
        for (size_t w = 0; w < width; w++) {
            for (size_t c = c0; c < c1; c++) {
                memcpy(to + (w * cells + c) * number_bytes, from + (c * width + w) * number_bytes, number_bytes);
            }
        }
    }
}

static int turn_values(cursor *c, uint32_t cells)
{
    unsigned char *heading = c->at;
    uint32_t type = 0;
    uint64_t row_bytes = 0;
    unsigned char *rows = take_rows(c, cells, &type, &row_bytes);
    if (!rows || ggml_blck_size((enum ggml_type)type) != 1) {
        return 0;
    }
    uint32_t number_bytes = (uint32_t)ggml_type_size((enum ggml_type)type), width = (uint32_t)(row_bytes / number_bytes);
    unsigned char *turned = row_bytes % number_bytes == 0 ? malloc((size_t)(cells * row_bytes)) : NULL;
    if (!turned) {
        return 0;
    }
    transpose(turned, rows, cells, width, number_bytes);
    memcpy(rows, turned, (size_t)(cells * row_bytes));
    free(turned);
    memcpy(heading + sizeof type, &number_bytes, sizeof number_bytes);
    memcpy(heading + sizeof type + sizeof number_bytes, &width, sizeof width);
    return 1;
}

static int turn_cache(cursor *c)
{
    const uint32_t one = 1;
    uint32_t streams = 0, cells = 0, transposed = 0, layers = 0, type = 0;
    uint64_t row_bytes = 0;
    if (!take_u32(c, &streams) || streams != 1 || !take_u32(c, &cells)) {
        return 0;
    }
    if (cells == 0) {
        return 1;
    }
    if (!take_cells(c, cells) || !take_u32(c, &transposed) || transposed != 0 || !take_u32(c, &layers)) {
        return 0;
    }
    memcpy(c->at - 2 * sizeof one, &one, sizeof one);
    for (uint32_t i = 0; i < layers; i++) {
        if (!take_rows(c, cells, &type, &row_bytes)) {
            return 0;
        }
    }
    for (uint32_t i = 0; i < layers; i++) {
        if (!turn_values(c, cells)) {
            return 0;
        }
    }
    return 1;
}

int lm__state_transpose(void *state, size_t bytes)
{
    cursor c = { state, (unsigned char *)state + bytes };
    uint32_t magic = 0, sequence = 0;
    int understood = take_u32(&c, &magic) && take_u32(&c, &sequence) && c.at < c.end;
    while (understood && c.at < c.end) {
        understood = turn_cache(&c);
    }
    return understood;
}

/* ------------------------------------------------------------------ sharing */

size_t lm_session_cache_bytes(const lm_session *session)
{
    return llama_state_seq_get_size(session->llama, 0);
}

static int check_share(lm_session *const *to, int count, const lm_session *from, lm_error *error)
{
    if (!lm__is_flash(&from->attention)) {
        return lm__fail(error, LM_EINVAL, "a cache is shared by a session with flash attention only");
    }
    for (int i = 0; i < count; i++) {
        if (to[i]->positions < from->count) {
            return lm__fail(error, LM_ELIMIT, "%d tokens do not fit into a context of %d", from->count, to[i]->positions);
        }
    }
    return LM_OK;
}

static int save(void **state, size_t *bytes, const lm_session *from, lm_error *error)
{
    *bytes = lm_session_cache_bytes(from);
    int status = lm__check_bytes((double)*bytes, "a copy of the cache", error);
    if (status != LM_OK) {
        return status;
    }
    *state = malloc(*bytes);
    if (!*state) {
        return lm__fail(error, LM_ENOMEM, "out of memory for a copy of the cache of %zu bytes", *bytes);
    }
    lm__log_reset();
    if (llama_state_seq_get_data(from->llama, *state, *bytes, 0) != *bytes) {
        return lm__fail(error, LM_EMODEL, "llama.cpp cannot save the cache: %s", lm__log_last());
    }
    return LM_OK;
}

static int load(lm_session *to, const void *state, size_t bytes, int tokens, lm_error *error)
{
    lm__log_reset();
    to->count = to->last_scored = 0;
    if (llama_state_seq_set_data(to->llama, state, bytes, 0) != bytes) {
        llama_memory_seq_rm(llama_get_memory(to->llama), 0, -1, -1);
        return lm__fail(error, LM_EMODEL, "llama.cpp cannot load the cache: %s", lm__log_last());
    }
    to->count = tokens;
    return LM_OK;
}

/* Into those sessions that have flash attention, or into those that have not. */
static int load_into(lm_session *const *to, int count, int flash, const void *state, size_t bytes, int tokens, lm_error *error)
{
    int status = LM_OK;
    for (int i = 0; status == LM_OK && i < count; i++) {
        if (lm__is_flash(&to[i]->attention) == flash) {
            status = load(to[i], state, bytes, tokens, error);
        }
    }
    return status;
}

int lm_session_share(lm_session *const *to, int count, const lm_session *from, lm_error *error)
{
    void *state = NULL;
    size_t bytes = 0;
    int status = check_share(to, count, from, error);
    if (status == LM_OK) {
        status = save(&state, &bytes, from, error);
    }
    if (status == LM_OK) {
        status = load_into(to, count, 1, state, bytes, from->count, error);
    }
    if (status == LM_OK && !lm__state_transpose(state, bytes)) {
        status = lm__fail(error, LM_EMODEL, "the cache of this model is of a kind that cannot be turned for llama.cpp's -fa 0");
    }
    if (status == LM_OK) {
        status = load_into(to, count, 0, state, bytes, from->count, error);
    }
    free(state);
    return status;
}
