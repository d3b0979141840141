/*
 * lm_room.c - would a context of this size, or so many bytes, fit into the machine's memory?
 *
 * Stage: before much memory is taken. llama.cpp writes the whole cache once, and a system that promises more memory than it has
 * ends processes then instead of saying no. Invariant: the estimate is that of an f16 cache; where the
 * system tells nothing, all fits.
 */
#include "lm_internal.h"

#include <stdio.h>

/* Keys and values of one position over all layers, 2 bytes a number. */
static double cache_bytes(const struct llama_model *model)
{
    double heads = llama_model_n_head(model), width = heads > 0.0 ? llama_model_n_embd(model) / heads : 0.0;
    return 2.0 * 2.0 * width * llama_model_n_head_kv(model) * llama_model_n_layer(model);
}

/* Without flash attention the logits of a batch over all positions exist at once, for the layer at work. */
static double logit_bytes(const lm_session *session)
{
    return lm__is_flash(&session->attention) ? 0.0 : 4.0 * llama_model_n_head(session->model->llama) * session->batch_size;
}

/* Memory that can be had without taking it from anybody; negative: not known. */
static double available_bytes(void)
{
    char line[128];
    double kilobytes = -1.0;
    FILE *facts = fopen("/proc/meminfo", "r");
    while (facts && kilobytes < 0.0 && fgets(line, sizeof line, facts)) {
        if (sscanf(line, "MemAvailable: %lf", &kilobytes) != 1) {
            kilobytes = -1.0;
        }
    }
    if (facts) {
        fclose(facts);
    }
    return kilobytes < 0.0 ? -1.0 : 1024.0 * kilobytes;
}

int lm__check_bytes(double needed, const char *what, lm_error *error)
{
    double available = available_bytes();
    if (available >= 0.0 && needed > available) {
        return lm__fail(error, LM_ENOMEM, "%s takes %.1f GB, %.1f GB of memory are available", what, 1e-9 * needed,
                        1e-9 * available);
    }
    return LM_OK;
}

int lm__check_room(const lm_session *session, lm_error *error)
{
    char what[80];
    double position_bytes = cache_bytes(session->model->llama) + logit_bytes(session);
    snprintf(what, sizeof what, "the cache of a context of %d positions", session->positions);
    return lm__check_bytes(position_bytes * session->positions, what, error);
}
