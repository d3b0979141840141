/* pack.c - the interleaved layout of scan(): 16 rows side by side, four numbers of each, so that one vector holds the same
 * four columns of all 16 and no sum across lanes is ever needed. Bytes are offset by 128 because VNNI multiplies unsigned
 * by signed, and the offset then costs one constant per query instead of one per key. */
#include "kernel.h"

void kna__pack_row(uint8_t *block, size_t r, const int8_t *row, size_t d, size_t d4)
{
    for (size_t c = 0; c < 4 * d4; c++) {
        int value = c < d ? row[c] : 0;
        block[(c / 4 * KNA_BLOCK + r) * 4 + c % 4] = (uint8_t)(value + 128);
    }
}

void kna__unpack_row(int8_t *row, const uint8_t *block, size_t r, size_t d)
{
    for (size_t c = 0; c < d; c++) {
        row[c] = (int8_t)((int)block[(c / 4 * KNA_BLOCK + r) * 4 + c % 4] - 128);
    }
}
