/*
 * state.c - turning a saved cache from rows of values into columns: made-up states of every shape, and ones that are none, cut
 * short or changed anywhere.
 */
#include "test.h"

#include "lm_internal.h"

#include <ggml.h>

typedef struct blob {
    unsigned char bytes[1 << 16];
    size_t used;
} blob;

static void put(blob *to, const void *from, size_t bytes)
{
    memcpy(to->bytes + to->used, from, bytes);
    to->used += bytes;
}

static void put32(blob *to, uint32_t value)
{
    put(to, &value, sizeof value);
}

static void put64(blob *to, uint64_t value)
{
    put(to, &value, sizeof value);
}

/* Number (cell, w) of a layer: different for all. */
static uint16_t number(uint32_t layer, uint32_t cell, uint32_t w, int is_value)
{
    return (uint16_t)(10007u * layer + 331u * cell + 7u * w + 3u * (uint32_t)is_value);
}

static void put_keys(blob *to, uint32_t layer, uint32_t cells, uint32_t width)
{
    put32(to, GGML_TYPE_F16);
    put64(to, 2u * width);
    for (uint32_t c = 0; c < cells; c++)
        for (uint32_t w = 0; w < width; w++) {
            uint16_t x = number(layer, c, w, 0);
            put(to, &x, sizeof x);
        }
}

static void put_values(blob *to, uint32_t layer, uint32_t cells, uint32_t width, int turned)
{
    put32(to, GGML_TYPE_F16);
    if (turned) {
        put32(to, 2);
        put32(to, width);
    } else {
        put64(to, 2u * width);
    }
    for (uint32_t i = 0; i < cells * width; i++) {
        uint32_t c = turned ? i % cells : i / width, w = turned ? i / cells : i % width;
        uint16_t x = number(layer, c, w, 1);
        put(to, &x, sizeof x);
    }
}

static void put_cache(blob *to, uint32_t layers, uint32_t cells, uint32_t width, int turned)
{
    put32(to, 1);
    put32(to, cells);
    if (cells == 0) return;
    for (uint32_t c = 0; c < cells; c++) {
        put32(to, c);
        put32(to, 1);
        put32(to, 0);
    }
    put32(to, (uint32_t)turned);
    put32(to, layers);
    for (uint32_t i = 0; i < layers; i++) put_keys(to, i, cells, width + 1);
    for (uint32_t i = 0; i < layers; i++) put_values(to, i, cells, width, turned);
}

static void start(blob *to)
{
    to->used = 0;
    put32(to, 0x6767a1b2u);
    put32(to, 0);
}

static void turned(void)
{
    static blob rows, columns;
    static const uint32_t shapes[][3] = { { 1, 1, 1 }, { 2, 3, 4 }, { 3, 32, 8 }, { 2, 33, 5 }, { 1, 100, 64 }, { 1, 0, 4 } };
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        start(&rows);
        start(&columns);
        for (int caches = 0; caches < 2; caches++) {
            put_cache(&rows, shapes[s][0], shapes[s][1], shapes[s][2], 0);
            put_cache(&columns, shapes[s][0], shapes[s][1], shapes[s][2], 1);
            blob got = rows;
            EXPECT(rows.used == columns.used);
            EXPECT(lm__state_transpose(got.bytes, got.used));
            EXPECT_THAT(memcmp(got.bytes, columns.bytes, got.used) == 0, "shape %zu, %d caches", s, caches + 1);
        }
    }
}

/* Every length but the whole one; every field that says what follows. */
static void refused(void)
{
    static blob whole, got;
    start(&whole);
    put_cache(&whole, 2, 3, 4, 0);
    for (size_t used = 0; used < whole.used; used++) {
        unsigned char *exact = malloc(used + 1); /* so that reading past the end is noticed */
        memcpy(exact, whole.bytes, used);
        EXPECT_THAT(!lm__state_transpose(exact, used), "cut to %zu of %zu bytes", used, whole.used);
        free(exact);
    }
    static const size_t fields[] = {
        8, 12, 20, 52, 56, 60, 64, 68
    }; /* streams, cells, sequences, transposed, layers, type, bytes */
    for (size_t f = 0; f < sizeof fields / sizeof fields[0]; f++) {
        static const uint32_t values[] = { 0x7fffffffu, 0xffffffffu, 1000u };
        for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
            got = whole;
            memcpy(got.bytes + fields[f], &values[v], 4);
            EXPECT_THAT(!lm__state_transpose(got.bytes, got.used), "field at %zu set to %u", fields[f], values[v]);
        }
    }
    start(&got);
    put_cache(&got, 2, 3, 4, 1);
    EXPECT(!lm__state_transpose(got.bytes, got.used)); /* turned already */
    got = whole;
    put32(&got, 7);
    EXPECT(!lm__state_transpose(got.bytes, got.used));
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(turned);
    TEST(refused);
    return test_end();
}
