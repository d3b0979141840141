/*
 * set_rows.c - GGML_OP_SET_ROWS into cache tensors (see set_rows.h).
 *
 * Source rows are f32 or f16, destinations f32, f16, bf16 or q8_0. ggml's reference conversions give the CPU backend's bytes
 * for all but q8_0, where its SIMD code multiplies by a reciprocal taken elsewhere and rounds halves to even; that is
 * repeated here. Runs of neighbouring rows are announced as one write.
 */
#define _GNU_SOURCE
#include "set_rows.h"

#include "cache.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define Q8_0_ROW 32

struct q8_0_block {
    uint16_t scale;
    int8_t values[Q8_0_ROW];
};

bool knnattn_set_rows_supported(const struct ggml_tensor *op)
{
    const struct ggml_tensor *rows = op->src[0];
    const struct ggml_tensor *indices = op->src[1];
    bool types = op->type == GGML_TYPE_F32 || op->type == GGML_TYPE_F16 || op->type == GGML_TYPE_BF16 || op->type == GGML_TYPE_Q8_0;

    /* Rows of one number are a transposed value cache: no flash attention there. */
    return op->view_src != NULL && knnattn_cache_layer(op->view_src) >= 0 && types && op->ne[0] > 1 &&
           (rows->type == GGML_TYPE_F32 || (rows->type == GGML_TYPE_F16 && op->type == GGML_TYPE_F16)) &&
           (indices->type == GGML_TYPE_I64 || indices->type == GGML_TYPE_I32) && ggml_is_contiguous_rows(op) &&
           ggml_is_contiguous_rows(rows);
}

/* Which of ggml's q8_0 conversions its CPU backend runs on this machine. */
static bool reciprocal_of_maximum(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx") != 0;
#else
    return false;
#endif
}

static bool rounds_to_even(void)
{
#if defined(__aarch64__)
    return true;
#else
    return reciprocal_of_maximum();
#endif
}

static void to_q8_0(const float *from, void *to, int64_t count)
{
    struct q8_0_block *block = to;

    for (int64_t i = 0; i < count; i += Q8_0_ROW, block++) {
        float largest = 0.0f;
        for (int j = 0; j < Q8_0_ROW; j++) {
            largest = fmaxf(largest, fabsf(from[i + j]));
        }
        float scale = largest / 127.0f;
        float inverse = reciprocal_of_maximum() ? 127.0f / largest : 1.0f / scale;
        block->scale = ggml_fp32_to_fp16(scale);
        for (int j = 0; j < Q8_0_ROW; j++) {
            /* The bounds also turn NaN, which only a masked cell may hold, into some number. */
            block->values[j] = largest > 0.0f ? (int8_t)fminf(fmaxf(rintf(from[i + j] * inverse), -127.0f), 127.0f) : 0;
        }
    }
}

static void write_row(const struct ggml_tensor *op, const char *from, char *to)
{
    if (op->src[0]->type == op->type) {
        memcpy(to, from, ggml_row_size(op->type, op->ne[0]));
    } else if (op->type == GGML_TYPE_Q8_0 && rounds_to_even()) {
        to_q8_0((const float *)(const void *)from, to, op->ne[0]);
    } else {
        ggml_get_type_traits(op->type)->from_float_ref((const float *)(const void *)from, to, op->ne[0]);
    }
}

/* The row that source row (i, i2, i3) goes to. */
static int64_t target_of(const struct ggml_tensor *op, int64_t i, int64_t i2, int64_t i3)
{
    const struct ggml_tensor *indices = op->src[1];
    const char *at = (const char *)indices->data + (size_t)i * indices->nb[0] + (size_t)(i2 % indices->ne[1]) * indices->nb[1] +
                     (size_t)(i3 % indices->ne[2]) * indices->nb[2];

    return indices->type == GGML_TYPE_I64 ? *(const int64_t *)(const void *)at : *(const int32_t *)(const void *)at;
}

static bool set_plane(const struct ggml_tensor *op, int64_t i2, int64_t i3)
{
    const struct ggml_tensor *rows = op->src[0];
    const char *from = (const char *)rows->data + (size_t)i2 * rows->nb[2] + (size_t)i3 * rows->nb[3];
    char *to = (char *)op->data + (size_t)i2 * op->nb[2] + (size_t)i3 * op->nb[3];
    int64_t run_first = 0;
    int64_t run_end = 0;
    bool inside = true;

    for (int64_t i = 0; i < rows->ne[1] && inside; i++) {
        int64_t row = target_of(op, i, i2, i3);
        inside = row >= 0 && row < op->ne[1];
        if (!inside) {
            break;
        }
        if (row != run_end) {
            knnattn_touch(to + (size_t)run_first * op->nb[1], (size_t)(run_end - run_first) * op->nb[1]);
            run_first = row;
        }
        run_end = row + 1;
        write_row(op, from + (size_t)i * rows->nb[1], to + (size_t)row * op->nb[1]);
    }
    knnattn_touch(to + (size_t)run_first * op->nb[1], (size_t)(run_end - run_first) * op->nb[1]);
    return inside;
}

bool knnattn_set_rows(const struct ggml_tensor *op)
{
    for (int64_t i3 = 0; i3 < op->src[0]->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < op->src[0]->ne[2]; i2++) {
            if (!set_plane(op, i2, i3)) {
                return false;
            }
        }
    }
    return true;
}
