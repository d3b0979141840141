/* slot.c - slots of a manifest: as they are, and with their check made right, so that what is behind it is reached. */
#define KNA_MAY_ALLOCATE
#include "fuzz.h"

#include "store/format.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    unsigned char slot[KNA_SLOT_BYTES] = { 0 }, again[KNA_SLOT_BYTES];
    kna__slot decoded;
    memcpy(slot, bytes, count < sizeof slot ? count : sizeof slot);
    for (int right = 0; right < 2; right++) {
        if (kna__slot_decode(&decoded, slot) == KNA_SLOT_VALID) {
            kna__slot_encode(again, &decoded);
            MUST(memcmp(slot, again, sizeof slot) == 0);
        }
        uint64_t check = kna__check(slot, KNA_SLOT_BYTES - 8, 0);
        memcpy(slot + KNA_SLOT_BYTES - 8, &check, sizeof check);
    }
    return 0;
}
