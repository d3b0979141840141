/* check.c - the check of bytes: XXH3, which runs at the speed of memory. Not against forgers: whoever can write files can write checks. */
#define KNA_MAY_ALLOCATE /* xxhash.h has functions of its own that do */
#include "format.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t kna__check(const void *bytes, size_t count, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, count, seed);
}
