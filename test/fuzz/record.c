/* record.c - frames of records of the log: as they are, and with their check made right. */
#define KNA_MAY_ALLOCATE
#include "fuzz.h"

#include "store/format.h"

static void decode(const unsigned char *bytes, size_t count)
{
    kna__record record;
    for (size_t at = 0; at < count && kna__record_decode(&record, bytes + at, count - at); at += record.bytes) {
        MUST(record.bytes <= count - at && record.body + record.body_bytes <= bytes + count);
        unsigned char *again = malloc(record.bytes);
        MUST(again && kna__record_encode(again, record.kind, record.body, record.body_bytes, record.check_before) == record.check);
        MUST(memcmp(again, bytes + at, record.bytes) == 0);
        free(again);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    uint64_t body, check;
    decode(bytes, count);
    if (count < KNA_RECORD_HEAD_BYTES + KNA_RECORD_TAIL_BYTES) return 0;
    memcpy(&body, bytes + 8, sizeof body);
    body = body < count - KNA_RECORD_HEAD_BYTES - KNA_RECORD_TAIL_BYTES ? body : count - KNA_RECORD_HEAD_BYTES - KNA_RECORD_TAIL_BYTES;
    unsigned char *copy = malloc(count);
    MUST(copy);
    memcpy(copy, bytes, count);
    check = kna__check(copy, KNA_RECORD_HEAD_BYTES + body, 0);
    memcpy(copy + KNA_RECORD_HEAD_BYTES + body, &check, sizeof check);
    decode(copy, count);
    free(copy);
    return 0;
}
