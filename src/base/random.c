/*
 * random.c - counter-based random numbers: Philox4x32-10 (Salmon et al. 2011), from the Random123 headers.
 *
 * No state: neither the number of threads nor the order of calls can change a result.
 */
#include <Random123/philox.h> /* before base.h, which poisons the allocator its headers mention */

#include "base.h"

uint64_t kna__random(uint64_t seed, uint64_t stream, uint64_t counter)
{
    philox4x32_key_t key = { { (uint32_t)seed, (uint32_t)(seed >> 32) } };
    philox4x32_ctr_t block = { { (uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)stream, (uint32_t)(stream >> 32) } };
    philox4x32_ctr_t out = philox4x32(block, key);
    return (uint64_t)out.v[0] | (uint64_t)out.v[1] << 32;
}

double kna__uniform(uint64_t seed, uint64_t stream, uint64_t counter)
{
    return ((double)(kna__random(seed, stream, counter) >> 11) + 0.5) * 0x1p-53;
}
