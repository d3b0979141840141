/*
 * lm_heads.c - operands of `kna bench heads` straight from a model.
 */
#include "heads.h"
#include "lm_take.h"

#include <stdlib.h>

static void describe(heads_layer *layer, const lm_operands *o, double scale)
{
    layer->number = o->layer;
    layer->scale = scale > 0 ? (float)scale : o->scale;
    layer->q = (kna_rows){ o->q, KNA_F32, o->heads, o->rows, o->dim, 0, 0, NULL };
    layer->k = (kna_rows){ o->k, o->k_type, o->kv_heads, o->rows, o->dim, 0, 0, NULL };
    layer->v = (kna_rows){ o->v, o->v_type, o->kv_heads, o->rows, o->value_dim, 0, 0, NULL };
}

int heads_take(heads_set *set, const heads_source *source)
{
    const lm_input input = { source->model, source->file, source->threads, 0 };
    const lm_take_request wanted = { &input, source->layers, source->context, !source->no_yarn, LM_TAKE_QKV, LM_ATTENTION, 0, 0 };
    lm_desk desk = { 0 };
    lm_taken *taken = calloc(1, sizeof *taken);
    set->source = taken;
    if (!taken) {
        return cli_fail("out of memory");
    }
    int code = lm_desk_open(&desk, &input);
    code = code == CLI_OK ? lm_take(taken, &desk, &wanted) : code;
    lm_desk_close(&desk);
    if (code == CLI_OK) {
        set->layers = calloc((size_t)taken->count, sizeof *set->layers);
        code = set->layers ? CLI_OK : cli_fail("out of memory: %d layers", taken->count);
    }
    for (int i = 0; code == CLI_OK && i < taken->count; i++) {
        describe(&set->layers[set->count++], &taken->operands[i], source->scale);
    }
    return code;
}

void heads_give_back(void *source)
{
    if (source) {
        lm_taken_free(source);
    }
    free(source);
}
