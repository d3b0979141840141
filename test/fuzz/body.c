/*
 * body.c - bodies of records: the first byte says of what kind. What is accepted holds what later code relies on, and encodes to the
 * same bytes again.
 */
#define KNA_MAY_ALLOCATE
#include "fuzz.h"

#include "store/format.h"

static void document(const unsigned char *body, size_t count)
{
    kna__document d;
    if (!kna__document_decode(&d, body, count)) return;
    kna__part *parts = malloc(d.parts * sizeof *parts + 1);
    unsigned char *again = calloc(1, count);
    uint64_t pieces = 0;
    MUST(parts && again);
    for (uint32_t i = 0; i < d.parts; i++) {
        parts[i] = kna__part_at(body, &d, i);
        pieces += kna__part_pieces(&parts[i]);
    }
    MUST(strlen(d.uri) == d.uri_bytes && strlen(d.tags) == d.tags_bytes && strlen(d.attributes) == d.attributes_bytes);
    MUST(d.checks_at + 8 * pieces == count && kna__document_bytes(&d, pieces) == count);
    uint64_t *checks = malloc(8 * pieces + 1); /* the input need not be aligned */
    MUST(checks);
    memcpy(checks, body + d.checks_at, 8 * pieces);
    kna__document_encode(again, &d, parts, checks);
    MUST(memcmp(again, body, count) == 0);
    free(checks);
    free(again);
    free(parts);
}

static void note(const unsigned char *body, size_t count)
{
    kna__note n;
    if (!kna__note_decode(&n, body, count)) return;
    unsigned char *again = malloc(count);
    MUST(again && strlen(n.name) == n.name_bytes && strlen(n.text) == n.text_bytes && kna__note_bytes(&n) == count);
    kna__note_encode(again, &n);
    MUST(memcmp(again, body, count) == 0);
    free(again);
}

static void family(const unsigned char *body, size_t count)
{
    kna__family f;
    unsigned char again[KNA_FAMILY_BYTES];
    uint64_t bytes, scales_at;
    if (!kna__family_decode(&f, body, count)) return;
    kna__family_encode(again, &f);
    MUST(memcmp(again, body, count) == 0);
    MUST(kna__part_size(&bytes, &scales_at, f.type, f.dim, 3) && bytes >= 3);
}

static void others(const unsigned char *body, size_t count)
{
    kna__commit c;
    unsigned char again[KNA_COMMIT_BYTES];
    uint64_t id;
    if (kna__commit_decode(&c, body, count)) {
        kna__commit_encode(again, &c);
        MUST(memcmp(again, body, count) == 0);
    }
    if (kna__remove_decode(&id, body, count)) MUST(memcmp(&id, body, sizeof id) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    static void (*const decoders[])(const unsigned char *, size_t) = { document, note, family, others };
    if (!count) return 0;
    unsigned char *body = malloc(count); /* of its exact size, and aligned as in a log */
    MUST(body);
    memcpy(body, bytes + 1, count - 1);
    body = realloc(body, count > 1 ? count - 1 : 1);
    MUST(body);
    decoders[bytes[0] % 4](body, count - 1);
    free(body);
    return 0;
}
