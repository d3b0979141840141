/*
 * lm_tokens.c - text to tokens and back, and where to cut a text that is too long.
 *
 * Stage: text <-> tokens. Invariant: token counts stated here are those of the whole text tokenised at once, since tokens may
 * span any boundary one would cut at.
 */
#include "lm_internal.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Below this, the number of tokens always fits llama.cpp's 32-bit counts. */
#define TEXT_MAX_BYTES ((size_t)1 << 30)

/* Returns the number of tokens, or minus the room needed. */
static int32_t tokenize(lm_tokens *to, const lm_model *model, const char *text, size_t bytes, int32_t room, int flags)
{
    return llama_tokenize(model->vocab, text, (int32_t)bytes, to->ids, room, true, (flags & LM_TEXT_SPECIAL) != 0);
}

static int make_room(lm_tokens *tokens, int32_t room)
{
    free(tokens->ids);
    tokens->ids = malloc((size_t)room * sizeof *tokens->ids);
    return tokens->ids != NULL;
}

/* llama.cpp replaces bytes that are no UTF-8, but ends the program at what decodes to no code point: above U+10FFFF. */
static char *decodable(const char *text, size_t bytes)
{
    unsigned char *copy = malloc(bytes + 1);
    if (copy) {
        memcpy(copy, text, bytes);
        copy[bytes] = 0;
    }
    for (size_t i = 0; copy && i < bytes; i++) {
        copy[i] = copy[i] > 0xf4 || (copy[i] == 0xf4 && copy[i + 1] > 0x8f) ? '?' : copy[i];
    }
    return (char *)copy;
}

/* Tokens of a text that llama.cpp can decode, at most TEXT_MAX_BYTES. False: out of memory. */
static bool tokenize_all(lm_tokens *tokens, const lm_model *model, const char *text, size_t bytes, int flags)
{
    int32_t room = (int32_t)(bytes / 2) + 16;
    int32_t count = make_room(tokens, room) ? tokenize(tokens, model, text, bytes, room, flags) : INT32_MIN;
    if (count < 0 && count != INT32_MIN) {
        room = -count;
        count = make_room(tokens, room) ? tokenize(tokens, model, text, bytes, room, flags) : INT32_MIN;
    }
    tokens->count = count;
    return count >= 0;
}

int lm_tokenize(lm_tokens *tokens, const lm_model *model, const char *text, size_t bytes, int flags, lm_error *error)
{
    memset(tokens, 0, sizeof *tokens);
    if (bytes > TEXT_MAX_BYTES) {
        return lm__fail(error, LM_ELIMIT, "the text has %zu bytes, at most %zu can be read at once", bytes, TEXT_MAX_BYTES);
    }
    char *copy = decodable(text, bytes);
    bool done = copy && tokenize_all(tokens, model, copy, bytes, flags);
    free(copy);
    if (!done) {
        lm_tokens_free(tokens);
        return lm__fail(error, LM_ENOMEM, "out of memory while tokenising %zu bytes", bytes);
    }
    return LM_OK;
}

void lm_tokens_free(lm_tokens *tokens)
{
    free(tokens->ids);
    tokens->ids = NULL;
    tokens->count = 0;
}

int lm_piece(const lm_model *model, int32_t token, char *bytes, int size)
{
    int32_t length = llama_token_to_piece(model->vocab, token, bytes, size, 0, true);
    return length < 0 ? 0 : length;
}

/* ------------------------------------------------------------------ chat */

static int apply_template(const lm_model *model, const char *text, char *to, size_t size)
{
    const char *wording = llama_model_chat_template(model->llama, NULL);
    struct llama_chat_message message = { "user", text };
    return wording ? (int)llama_chat_apply_template(wording, &message, 1, true, to, (int32_t)size) : -1;
}

int lm_chat(char **out, const lm_model *model, const char *text, lm_error *error)
{
    size_t size = strlen(text) + 1024;
    *out = NULL;
    if (size > TEXT_MAX_BYTES) {
        return lm__fail(error, LM_ELIMIT, "the text has %zu bytes, at most %zu can be read at once", size, TEXT_MAX_BYTES);
    }
    char *wrapped = malloc(size);
    int length = wrapped ? apply_template(model, text, wrapped, size) : 0;
    if (length >= (int)size) { /* a template longer than the kilobyte set aside for it */
        size = (size_t)length + 1;
        free(wrapped);
        wrapped = malloc(size);
        length = wrapped ? apply_template(model, text, wrapped, size) : 0;
    }
    if (!wrapped) {
        return lm__fail(error, LM_ENOMEM, "out of memory");
    }
    if (length < 0) {
        free(wrapped);
        return lm__fail(error, LM_EMODEL, "this model has no chat template that llama.cpp knows");
    }
    wrapped[length] = '\0';
    *out = wrapped;
    return LM_OK;
}

/* ------------------------------------------------------------------ cutting */

static int count_tokens(int *count, const lm_model *model, const char *text, size_t bytes, lm_error *error)
{
    lm_tokens tokens;
    int status = lm_tokenize(&tokens, model, text, bytes, 0, error);
    *count = tokens.count;
    lm_tokens_free(&tokens);
    return status;
}

/* End of the last whole line within the first `bytes` bytes; 0: none. */
static size_t line_end(const char *text, size_t bytes)
{
    while (bytes > 0 && text[bytes - 1] != '\n') {
        bytes--;
    }
    return bytes;
}

/* A length whose text has more tokens than the limit, or bytes + 1 if the whole text does not. */
static int find_over(size_t *over, const lm_model *model, const char *text, size_t bytes, int limit, lm_error *error)
{
    size_t at = (size_t)limit * 4 + 64;
    for (;;) {
        int count = 0;
        at = at < bytes ? at : bytes;
        int status = count_tokens(&count, model, text, at, error);
        *over = count > limit ? at : bytes + 1;
        if (status != LM_OK || count > limit || at == bytes) {
            return status;
        }
        at *= 2;
    }
}

/* Bisection over bytes: the number of tokens grows with the prefix, up to a token or two at its very end. */
static int bisect(size_t *fits, size_t over, const lm_model *model, const char *text, int limit, lm_error *error)
{
    int status = LM_OK;
    *fits = 0;
    while (status == LM_OK && over - *fits > 1) {
        size_t at = *fits + (over - *fits) / 2;
        int count = 0;
        status = count_tokens(&count, model, text, at, error);
        *(count > limit ? &over : fits) = at;
    }
    return status;
}

int lm_cut(size_t *cut, const lm_model *model, const char *text, size_t bytes, int limit, lm_error *error)
{
    size_t over = 0;
    *cut = bytes;
    int status = find_over(&over, model, text, bytes, limit, error);
    if (status != LM_OK || over > bytes) {
        return status;
    }
    status = bisect(cut, over, model, text, limit, error);
    int count = limit + 1;
    *cut += 1;
    while (status == LM_OK && count > limit && *cut > 0) { /* the line end may cost a token that the middle of a line did not */
        *cut = line_end(text, *cut - 1);
        status = count_tokens(&count, model, text, *cut, error);
    }
    return status;
}
