/* pack.c - the interleaved layout of scan(): 16 rows side by side, four numbers of each, so that one vector holds the same
 * four columns of all 16 and no sum across lanes is ever needed. Bytes are offset by 128 because VNNI multiplies unsigned
 * by signed, and the offset then costs one constant per query instead of one per key. */
#include "kernel.h"

void kna__pack_row(uint8_t *block, size_t r, const int8_t *row, size_t d, size_t d4)
{
    for (size_t group = 0; group < d4; group++) {
        uint32_t four = 0;
        memcpy(&four, row + 4 * group, d - 4 * group < 4 ? d - 4 * group : 4);
        four ^= UINT32_C(0x80808080); /* + 128 in each byte */
        memcpy(block + (group * KNA_BLOCK + r) * 4, &four, sizeof four);
    }
}

void kna__pack_block(const kna__kernels *kernels, uint8_t *block, uint32_t *rows, size_t d4)
{
    for (size_t i = 0; i < KNA_BLOCK * d4; i++) {
        rows[i] ^= UINT32_C(0x80808080);
    }
    kernels->transpose((float *)(void *)block, KNA_BLOCK, (const float *)(const void *)rows, d4, KNA_BLOCK, d4);
}

void kna__unpack_row(int8_t *row, const uint8_t *block, size_t r, size_t d)
{
    for (size_t c = 0; c < d; c++) {
        row[c] = (int8_t)((int)block[(c / 4 * KNA_BLOCK + r) * 4 + c % 4] - 128);
    }
}
