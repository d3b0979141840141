/*
 * lm_model.c - open a model file and say what it is.
 *
 * Stage: file -> model. Invariant: a model that opened can decode text (it has a vocabulary and a decoder) on the CPU alone.
 */
#include "lm_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* llama.cpp's own words for these cases name neither the file nor the cause. */
static int check_file(const char *path, lm_error *error)
{
    struct stat facts;
    if (stat(path, &facts) != 0) {
        return lm__fail(error, LM_EFILE, "%s: %s", path, strerror(errno));
    }
    if (S_ISDIR(facts.st_mode)) {
        return lm__fail(error, LM_EFILE, "%s: is a folder, not a model file", path);
    }
    FILE *file = fopen(path, "rb");
    if (!file) {
        return lm__fail(error, LM_EFILE, "%s: %s", path, strerror(errno));
    }
    char magic[4] = { 0 };
    size_t got = fread(magic, 1, sizeof magic, file);
    fclose(file);
    if (got < sizeof magic || memcmp(magic, "GGUF", 4) != 0) {
        return lm__fail(error, LM_EMODEL, "%s: not a GGUF model: the file does not begin with \"GGUF\"", path);
    }
    return LM_OK;
}

static struct llama_model_params cpu_only(void)
{
    static ggml_backend_dev_t none[1]; /* an empty list: NULL would mean every device there is */
    struct llama_model_params params = llama_model_default_params();
    params.devices = none;
    params.n_gpu_layers = 0;
    return params;
}

static int check_kind(const lm_model *model, const char *path, lm_error *error)
{
    if (!llama_model_has_decoder(model->llama) || llama_model_has_encoder(model->llama)) {
        return lm__fail(error, LM_EMODEL, "%s: %s is not a decoder-only language model", path, model->name);
    }
    if (llama_vocab_type(model->vocab) == LLAMA_VOCAB_TYPE_NONE) {
        return lm__fail(error, LM_EMODEL, "%s: the model holds no vocabulary", path);
    }
    return LM_OK;
}

/* The file's name without folders and ".gguf": names inside the files are often those of a training run. */
static void name_model(lm_model *model, const char *path)
{
    const char *slash = strrchr(path, '/');
    snprintf(model->name, sizeof model->name, "%s", slash ? slash + 1 : path);
    size_t length = strlen(model->name);
    if (length > 5 && strcmp(model->name + length - 5, ".gguf") == 0) {
        model->name[length - 5] = '\0';
    }
}

int lm_model_open(lm_model **out, const char *path, lm_error *error)
{
    *out = NULL;
    int status = check_file(path, error);
    if (status != LM_OK) {
        return status;
    }
    lm_model *model = calloc(1, sizeof *model);
    if (!model) {
        return lm__fail(error, LM_ENOMEM, "out of memory");
    }
    lm__log_reset();
    model->llama = llama_model_load_from_file(path, cpu_only());
    if (!model->llama) {
        status = lm__fail(error, LM_EMODEL, "%s: llama.cpp cannot load this model: %s", path, lm__log_last());
        goto fail;
    }
    model->vocab = llama_model_get_vocab(model->llama);
    model->positions = llama_model_n_ctx_train(model->llama);
    name_model(model, path);
    status = check_kind(model, path, error);
    if (status != LM_OK) {
        goto fail;
    }
    *out = model;
    return LM_OK;
fail:
    lm_model_close(model);
    return status;
}

void lm_model_close(lm_model *model)
{
    if (model) {
        llama_model_free(model->llama);
        free(model);
    }
}

const char *lm_model_name(const lm_model *model)
{
    return model->name;
}

int lm_model_vocab(const lm_model *model)
{
    return llama_vocab_n_tokens(model->vocab);
}

int lm_model_positions(const lm_model *model)
{
    return model->positions;
}

double lm_model_yarn(const lm_model *model, int positions)
{
    return positions > model->positions ? (double)positions / model->positions : 1.0;
}

int lm_model_layers(const lm_model *model)
{
    return llama_model_n_layer(model->llama);
}

int32_t lm_model_bos(const lm_model *model)
{
    return llama_vocab_get_add_bos(model->vocab) ? llama_vocab_bos(model->vocab) : -1;
}

int lm_model_ends(const lm_model *model, int32_t token)
{
    return llama_vocab_is_eog(model->vocab, token);
}
