/*
 * flash_attn.h - GGML_OP_FLASH_ATTN_EXT as calls of kna_attend().
 *
 * Invariant: an operation that knnattn_flash_supported() accepts is computed; whatever else ggml can express is declined
 * there, so that the CPU backend does it.
 */
#ifndef KNNATTN_FLASH_ATTN_H
#define KNNATTN_FLASH_ATTN_H

#include "engine.h"

#include <ggml.h>
#include <stdbool.h>

bool knnattn_flash_supported(const struct ggml_tensor *op);

/* Computes the operation; a kna_status, with words in kna_context_message(engine->kna). */
int knnattn_flash_attend(struct knnattn_engine *engine, const struct ggml_tensor *op);

#endif
