/*
 * flash_attn.h - GGML_OP_FLASH_ATTN_EXT as calls of kna_attend().
 *
 * Invariant: an operation that knnattn_flash_supported() accepts is computed; whatever else ggml can express is declined
 * there, so that the CPU backend does it.
 */
#ifndef KNNATTN_FLASH_ATTN_H
#define KNNATTN_FLASH_ATTN_H

#include "cache.h"
#include "kna.h"
#include "settings.h"

#include <ggml.h>
#include <stdbool.h>

/* What one context of the program computes with. */
struct knnattn_engine {
    kna_context *kna;
    struct knnattn_settings settings;
    struct knnattn_records records;
    float *slopes; /* scratch for ALiBi, of slopes_count numbers */
    int64_t slopes_count;
    uint64_t calls; /* seeds audits */
};

bool knnattn_flash_supported(const struct ggml_tensor *op);

/* Computes the operation; a kna_status, with words in kna_context_message(engine->kna). */
int knnattn_flash_attend(struct knnattn_engine *engine, const struct ggml_tensor *op);

#endif
