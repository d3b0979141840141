/* unit_base.c - src/base: the status list, memory and its account, threads, random numbers. */
#include "test.h"

#include "../src/base/base.h"

/* ---- status */
static const struct {
    int number;
    const char *name, *text;
} listed[] = {
#define LISTED(name, number, text) { number, #name, text },
    KNA_STATUS_LIST(LISTED)
#undef LISTED
};
#define LISTED_COUNT (sizeof listed / sizeof listed[0])

static void status_list(void)
{
    EXPECT_INT(listed[0].number, 0);
    for (size_t i = 0; i < LISTED_COUNT; i++) {
        EXPECT_TEXT(kna_status_name(listed[i].number), listed[i].name);
        EXPECT_TEXT(kna_status_text(listed[i].number), listed[i].text);
        EXPECT(i == 0 || listed[i].number < 0);
        for (size_t j = 0; j < i; j++) {
            EXPECT_THAT(listed[i].number != listed[j].number, "%s and %s share a number", listed[i].name, listed[j].name);
            EXPECT_THAT(strcmp(listed[i].text, listed[j].text) != 0, "%s and %s share a text", listed[i].name, listed[j].name);
        }
    }
}

static void status_unknown(void)
{
    static const int unknown[] = { 1, -(int)LISTED_COUNT, -1000, INT32_MAX, INT32_MIN };
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        EXPECT_TEXT(kna_status_name(unknown[i]), "KNA_E?");
        EXPECT_TEXT(kna_status_text(unknown[i]), "unknown status");
    }
}

static void status_message(void)
{
    char message[KNA_MESSAGE_BYTES + 1], long_text[2 * KNA_MESSAGE_BYTES];
    EXPECT_INT(kna__fail(message, KNA_EVALUE, "%s: NaN at row %d", "keys", 17), KNA_EVALUE);
    EXPECT_TEXT(message, "keys: NaN at row 17");

    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = 0;
    message[KNA_MESSAGE_BYTES] = '!';
    kna__fail(message, KNA_EINVAL, "%s", long_text);
    EXPECT_INT(strlen(message), KNA_MESSAGE_BYTES - 1);
    EXPECT_INT(message[KNA_MESSAGE_BYTES], '!');
}

static void version(void)
{
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", KNA_VERSION_MAJOR, KNA_VERSION_MINOR, KNA_VERSION_PATCH);
    EXPECT_TEXT(KNA_VERSION_STRING, text);
    EXPECT_TEXT(kna_version(), text);
}

/* ---- memory */
typedef struct ledger {
    size_t held, calls, fail_at;
    size_t last_bytes;
} ledger;

static void *ledger_allocate(void *user, size_t bytes)
{
    ledger *l = user;
    if (++l->calls == l->fail_at) {
        return NULL;
    }
    l->held += bytes;
    l->last_bytes = bytes;
    return aligned_alloc(KNA_ALIGNMENT, (bytes + KNA_ALIGNMENT - 1) / KNA_ALIGNMENT * KNA_ALIGNMENT);
}

static void ledger_release(void *user, void *memory, size_t bytes)
{
    ledger *l = user;
    EXPECT(memory != NULL);
    l->held -= bytes;
    free(memory);
}

static void heap_default(void)
{
    kna__heap heap;
    kna__heap_init(&heap, NULL);
    for (size_t bytes = 0; bytes < 200; bytes++) {
        char *memory = kna__allocate(&heap, bytes);
        if (!EXPECT(memory != NULL)) {
            return;
        }
        EXPECT_INT((uintptr_t)memory % KNA_ALIGNMENT, 0);
        memset(memory, 1, bytes);
        kna__release(&heap, memory, bytes);
    }
    EXPECT_INT(heap.now_bytes, 0);
    EXPECT_INT(heap.allocations, 200);

    /* An allocator that is all zeros means the same. */
    kna_allocator none = { NULL, NULL, NULL };
    kna__heap_init(&heap, &none);
    void *memory = kna__allocate(&heap, 100);
    EXPECT(memory != NULL);
    kna__release(&heap, memory, 100);
}

static void heap_account(void)
{
    ledger l = { 0, 0, 0, 0 };
    kna_allocator allocator = { ledger_allocate, ledger_release, &l };
    kna__heap heap;
    kna__heap_init(&heap, &allocator);
    void *a = kna__allocate(&heap, 1000), *b = kna__allocate(&heap, 500);
    EXPECT_INT(heap.now_bytes, 1500);
    EXPECT_INT(heap.now_bytes, l.held);
    kna__release(&heap, a, 1000);
    EXPECT_INT(heap.now_bytes, 500);
    EXPECT_INT(heap.peak_bytes, 1500);
    void *c = kna__allocate(&heap, 0); /* counts as what is asked of the allocator, which is never 0 */
    EXPECT(c != NULL);
    EXPECT(l.last_bytes > 0);
    EXPECT_INT(heap.now_bytes, l.held);
    EXPECT_INT(heap.allocations, 3);
    kna__release(&heap, NULL, 77);
    kna__release(&heap, c, 0);
    kna__release(&heap, b, 500);
    EXPECT_INT(heap.now_bytes, 0);
    EXPECT_INT(l.held, 0);
    EXPECT_INT(heap.peak_bytes, 1500);
}

static void heap_failure(void)
{
    ledger l = { 0, 0, 2, 0 };
    kna_allocator allocator = { ledger_allocate, ledger_release, &l };
    kna__heap heap;
    kna__heap_init(&heap, &allocator);
    void *a = kna__allocate(&heap, 100);
    EXPECT(kna__allocate(&heap, 100) == NULL);
    EXPECT_INT(heap.now_bytes, 100);
    EXPECT_INT(heap.peak_bytes, 100);
    EXPECT_INT(heap.allocations, 1);

    /* A saturated product never reaches the allocator. */
    size_t calls = l.calls;
    EXPECT(kna__allocate(&heap, SIZE_MAX) == NULL);
    EXPECT(kna__allocate(&heap, SIZE_MAX / 2) == NULL);
    EXPECT_INT(l.calls, calls);
    kna__release(&heap, a, 100);
    EXPECT_INT(l.held, 0);
}

static void size_product(void)
{
    EXPECT(kna__size_product(0, SIZE_MAX) == 0);
    EXPECT(kna__size_product(12, 34) == 408);
    EXPECT(kna__size_product(SIZE_MAX, 1) == SIZE_MAX);
    EXPECT(kna__size_product(SIZE_MAX, 2) == SIZE_MAX);
    EXPECT(kna__size_product(SIZE_MAX / 2 + 1, 2) == SIZE_MAX);
    EXPECT(kna__size_product(SIZE_MAX / 2, 2) == SIZE_MAX - 1);
    EXPECT(kna__size_product((size_t)1 << 32, (size_t)1 << 31) == (size_t)1 << 63);
    EXPECT(kna__size_product((size_t)1 << 32, (size_t)1 << 32) == SIZE_MAX);
}

/* ---- threads */
#define MOST_TASKS 1000

typedef struct tally {
    int runs[MOST_TASKS];
    int workers, bad_workers;
    int active[KNA_MAX_THREADS]; /* a worker runs one task at a time: its scratch is its own */
} tally;

static void count_task(void *argument, int64_t index, int worker)
{
    tally *t = argument;
    if (worker < 0 || worker >= t->workers || __atomic_fetch_add(&t->active[worker], 1, __ATOMIC_SEQ_CST) != 0) {
        __atomic_fetch_add(&t->bad_workers, 1, __ATOMIC_SEQ_CST);
        return;
    }
    __atomic_fetch_add(&t->runs[index], 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_sub(&t->active[worker], 1, __ATOMIC_SEQ_CST);
}

static void parallel_once(int threads, int64_t count)
{
    static tally t;
    memset(&t, 0, sizeof t);
    t.workers = threads;
    kna__parallel_for(threads, count, count_task, &t);
    EXPECT_THAT(t.bad_workers == 0, "%d threads, %lld tasks: %d bad workers", threads, (long long)count, t.bad_workers);
    for (int64_t i = 0; i < MOST_TASKS; i++) {
        if (!EXPECT_THAT(t.runs[i] == (i < count), "%d threads, %lld tasks: task %lld ran %d times", threads, (long long)count,
                         (long long)i, t.runs[i])) {
            return;
        }
    }
}

static void parallel_for(void)
{
    static const int64_t counts[] = { 0, 1, 2, 3, 7, 8, 9, 100, MOST_TASKS };
    for (int threads = 1; threads <= 5; threads++) {
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
            parallel_once(threads, counts[i]);
        }
    }
    EXPECT(kna__processors() >= 1);
    EXPECT(kna__processors() <= KNA_MAX_THREADS);
}

static void clock_is_monotonic(void)
{
    double last = kna__seconds();
    for (int i = 0; i < 1000; i++) {
        double now = kna__seconds();
        EXPECT(now >= last);
        last = now;
    }
    usleep(20000);
    EXPECT_NEAR(kna__seconds() - last, 10.01, 9.99); /* seconds: at least the 20 ms slept, on a machine however busy */
}

/* ---- random numbers */

/* The published known answers of Philox4x32-10 (Random123, kat_vectors): counter words 0..3, key words 0..1, first two of the
 * four result words. */
static void random_known_answers(void)
{
    static const struct {
        uint32_t counter[4], key[2], out[2];
    } known[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d } },
        { { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff }, { 0xffffffff, 0xffffffff }, { 0x408f276d, 0x41c83b0e } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 }, { 0xd16cfe09, 0x94fdcceb } },
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        uint64_t seed = known[i].key[0] | (uint64_t)known[i].key[1] << 32;
        uint64_t counter = known[i].counter[0] | (uint64_t)known[i].counter[1] << 32;
        uint64_t stream = known[i].counter[2] | (uint64_t)known[i].counter[3] << 32;
        uint64_t want = known[i].out[0] | (uint64_t)known[i].out[1] << 32;
        uint64_t got = kna__random(seed, stream, counter);
        EXPECT_THAT(got == want, "vector %zu: %016llx, expected %016llx", i, (unsigned long long)got, (unsigned long long)want);
    }
}

/* Mean and variance within six standard errors, each half-interval, and every argument matters. */
static void random_uniform(void)
{
    enum { DRAWS = 100000 };
    uint64_t seed = test_random();
    double sum = 0, squares = 0, least = 1, most = 0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        double x = kna__uniform(seed, 3, i);
        sum += x;
        squares += (x - 0.5) * (x - 0.5);
        least = x < least ? x : least;
        most = x > most ? x : most;
        EXPECT_THAT(x > 0 && x < 1, "uniform = %.17g", x);
    }
    EXPECT_NEAR(sum / DRAWS, 0.5, 6 * sqrt(1.0 / 12 / DRAWS));
    EXPECT_NEAR(squares / DRAWS, 1.0 / 12, 6 * sqrt(1.0 / 180 / DRAWS));
    EXPECT(least < 1e-3);
    EXPECT(most > 1 - 1e-3);
    EXPECT(kna__random(seed, 3, 0) != kna__random(seed + 1, 3, 0));
    EXPECT(kna__random(seed, 3, 0) != kna__random(seed + ((uint64_t)1 << 32), 3, 0));
    EXPECT(kna__random(seed, 3, 0) != kna__random(seed, 4, 0));
    EXPECT(kna__random(seed, 3, 0) != kna__random(seed, 3 + ((uint64_t)1 << 32), 0));
    EXPECT(kna__random(seed, 3, 0) != kna__random(seed, 3, (uint64_t)1 << 32));
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    TEST(status_list);
    TEST(status_unknown);
    TEST(status_message);
    TEST(version);
    TEST(heap_default);
    TEST(heap_account);
    TEST(heap_failure);
    TEST(size_product);
    TEST(parallel_for);
    TEST(clock_is_monotonic);
    TEST(random_known_answers);
    TEST(random_uniform);
    return test_end();
}
