/* codes.c - the layout of scan_codes(): 32 columns of a row in 16 bytes, four rows side by side in a vector; one mask and one shift
 * then make bytes of them, in the order of the query's columns. */
#include "kernel.h"

enum { HALF = KNA_CODE_CHUNK / 2 };

void kna__pack_codes(uint8_t *quad, size_t r, const uint8_t *row, size_t chunks)
{
    for (size_t c = 0; c < chunks; c++) {
        for (size_t i = 0; i < HALF; i++) {
            quad[(c * KNA_QUAD + r) * HALF + i] = (uint8_t)(row[c * KNA_CODE_CHUNK + i] | row[c * KNA_CODE_CHUNK + HALF + i] << 4);
        }
    }
}

uint8_t kna__code_at(const uint8_t *quad, size_t r, size_t column)
{
    size_t c = column / KNA_CODE_CHUNK, i = column % KNA_CODE_CHUNK;
    uint8_t both = quad[(c * KNA_QUAD + r) * HALF + i % HALF];
    return i < HALF ? both & 15 : both >> 4;
}
