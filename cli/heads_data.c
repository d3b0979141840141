/*
 * heads_data.c - operands of `kna bench heads` from a folder that `kna dump` wrote.
 */
#define _GNU_SOURCE /* PATH_MAX */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "heads.h"
#include "layers.h"
#include "npy.h"

#define LAYERS_MAX 4096

/* ------------------------------------------------------------------ which layers */

/* Marks the L of all q.L.npy. */
static int look_into(unsigned char *found, const char *folder)
{
    DIR *dir = opendir(folder);
    if (!dir) return cli_fail("%s: cannot read: %s", folder, strerror(errno));
    for (const struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        int layer = 0;
        int end = 0;
        if (sscanf(entry->d_name, "q.%4d.npy%n", &layer, &end) == 1 && end > 0 && !entry->d_name[end] && layer >= 0 &&
            layer < LAYERS_MAX)
            found[layer] = 1;
    }
    closedir(dir);
    return CLI_OK;
}

static int choose_layers(heads_set *set, const heads_source *source)
{
    unsigned char wanted[LAYERS_MAX] = { 0 };
    long largest = 0;
    int code = source->layers ? layers_read(wanted, LAYERS_MAX, source->layers, &largest) : look_into(wanted, source->dump);
    if (code == CLI_OK && largest >= LAYERS_MAX) code = cli_refuse("--layers: %ld, above %d", largest, LAYERS_MAX - 1);
    for (int layer = 0; layer < LAYERS_MAX; layer++) set->count += wanted[layer];
    if (code == CLI_OK && set->count == 0) code = cli_refuse("%s: no q.L.npy of any layer L; 'kna dump' writes them", source->dump);
    if (code != CLI_OK) {
        set->count = 0;
        return code;
    }
    set->layers = calloc((size_t)set->count, sizeof *set->layers);
    if (!set->layers) return cli_fail("out of memory: %d layers", set->count);
    for (int layer = 0, at = 0; layer < LAYERS_MAX; layer++)
        if (wanted[layer]) set->layers[at++].number = layer;
    return CLI_OK;
}

/* ------------------------------------------------------------------ files */

static int read_rows(kna_rows *rows, void **owned, const char *folder, char letter, int layer)
{
    const npy_want want = { 3, 3, letter != 'q', letter == 'q' ? "(h, n, d)" : "(h_kv, n, d)" };
    npy_array array = { 0 };
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%c.%d.npy", folder, letter, layer) >= (int)sizeof path)
        return cli_refuse("--dump: the name of the folder is too long");
    const int code = npy_read(&array, path, &want);
    *owned = array.data;
    *rows = (kna_rows){ array.data, array.type, array.shape[0], array.shape[1], array.shape[2], 0, 0, NULL };
    return code;
}

/* Only the first tokens of each head, packed. */
static void cut(kna_rows *rows, void *data, int64_t tokens)
{
    const size_t row_bytes = kna_type_row_bytes(rows->type, rows->dim);
    const size_t from = (size_t)rows->rows * row_bytes;
    const size_t to = (size_t)tokens * row_bytes;
    for (int64_t head = 1; head < rows->heads; head++)
        memmove((char *)data + (size_t)head * to, (char *)data + (size_t)head * from, to);
    rows->rows = tokens;
}

static int cut_layer(heads_layer *layer, int64_t tokens)
{
    kna_rows *const all[3] = { &layer->q, &layer->k, &layer->v };
    for (int x = 0; x < 3; x++) {
        if (all[x]->rows < tokens)
            return cli_refuse("layer %d: %" PRId64 " tokens, fewer than --ctx %" PRId64, layer->number, all[x]->rows, tokens);
        cut(all[x], layer->owned[x], tokens);
    }
    return CLI_OK;
}

static int read_layer(heads_layer *layer, const heads_source *source)
{
    int code = read_rows(&layer->q, &layer->owned[0], source->dump, 'q', layer->number);
    if (code == CLI_OK) code = read_rows(&layer->k, &layer->owned[1], source->dump, 'k', layer->number);
    if (code == CLI_OK) code = read_rows(&layer->v, &layer->owned[2], source->dump, 'v', layer->number);
    if (code == CLI_OK && source->context > 0) code = cut_layer(layer, source->context);
    layer->scale = (float)(source->scale > 0 ? source->scale : 1 / sqrt((double)layer->q.dim));
    return code;
}

int heads_read(heads_set *set, const heads_source *source)
{
    int code = choose_layers(set, source);
    cli_progress_start("reading");
    for (int i = 0; i < set->count && code == CLI_OK; i++) {
        code = read_layer(&set->layers[i], source);
        cli_progress_share((double)(i + 1) / set->count);
    }
    cli_progress_end();
    return code;
}

void heads_free(heads_set *set)
{
    for (int i = 0; i < set->count; i++)
        for (int x = 0; x < 3; x++) free(set->layers[i].owned[x]);
    free(set->layers);
    heads_give_back(set->source);
}

/* ------------------------------------------------------------------ what was read */

static int check_layer(const heads_layer *l, const heads_layer *first, int64_t late)
{
    if (l->q.heads < 1 || l->k.heads < 1 || l->q.heads % l->k.heads != 0)
        return cli_refuse("layer %d: %" PRId64 " query heads are not a multiple of %" PRId64 " key heads", l->number, l->q.heads,
                          l->k.heads);
    if (l->k.rows != l->q.rows || l->v.rows != l->q.rows || l->v.heads != l->k.heads || l->k.dim != l->q.dim)
        return cli_refuse("layer %d: queries (%" PRId64 ", %" PRId64 ", %" PRId64 "), keys (%" PRId64 ", %" PRId64 ", %" PRId64
                          ") and values (%" PRId64 ", %" PRId64 ", %" PRId64 ") are not of one layer",
                          l->number, l->q.heads, l->q.rows, l->q.dim, l->k.heads, l->k.rows, l->k.dim, l->v.heads, l->v.rows,
                          l->v.dim);
    if (l->q.dim < 1 || l->q.dim > KNA_MAX_DIM || l->v.dim < 1 || l->v.dim > KNA_MAX_DIM)
        return cli_refuse("layer %d: dimensions %" PRId64 " and %" PRId64 ", outside 1..%d", l->number, l->q.dim, l->v.dim, KNA_MAX_DIM);
    if (l->q.rows < late)
        return cli_refuse("layer %d: %" PRId64 " tokens, fewer than --late %" PRId64, l->number, l->q.rows, late);
    if (l->q.heads != first->q.heads || l->k.heads != first->k.heads || l->q.rows != first->q.rows || l->q.dim != first->q.dim ||
        l->v.dim != first->v.dim)
        return cli_refuse("layer %d: shapes other than those of layer %d", l->number, first->number);
    return CLI_OK;
}

/* Once, so that the calls need not look again. */
static int check_finite(const heads_layer *l, const kna_rows *rows, const char *name)
{
    float row[KNA_MAX_DIM];
    for (int64_t i = 0; i < rows->heads * rows->rows; i++) {
        convert_load(row, rows, i);
        for (int64_t x = 0; x < rows->dim; x++)
            if (!isfinite(row[x]))
                return cli_refuse("layer %d: NaN or infinity in the %s: head %" PRId64 ", row %" PRId64 ", column %" PRId64, l->number,
                                  name, i / rows->rows, i % rows->rows, x);
    }
    return CLI_OK;
}

int heads_check(const heads_set *set, int64_t late)
{
    int code = CLI_OK;
    for (int i = 0; i < set->count && code == CLI_OK; i++) {
        const heads_layer *l = &set->layers[i];
        code = check_layer(l, &set->layers[0], late);
        if (code == CLI_OK) code = check_finite(l, &l->q, "queries");
        if (code == CLI_OK) code = check_finite(l, &l->k, "keys");
        if (code == CLI_OK) code = check_finite(l, &l->v, "values");
    }
    return code;
}
