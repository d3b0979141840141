/*
 * readers_store.c - reader processes beside a writer that adds, removes, replaces, compacts and begins again: each answer is that of a
 * committed prefix, whole; none older than what was acknowledged before it was asked for, none newer than what was being committed when
 * it was given, none older than the one before; and an answer that was given once stays what it is until the reader asks for a newer
 * one. Readers are killed with their snapshots, and others take their places. --seconds=N (default 3).
 */
#include "store_case.h"

#include "../src/store/format.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { READERS = 3, MOST_COMMITS = 1 << 20, LIVE = 60 };

/* What all see. The writer says what a commit will give before it makes it, and that it is made after. */
static struct shared {
    int64_t announced, acknowledged;
    long answers[READERS];
    uint64_t digest[MOST_COMMITS]; /* of the documents as of a transaction */
} *shared;

static kna_context *context;
static char home[128];
static int seconds = 3;

static uint64_t join(uint64_t digest, const void *bytes, size_t count)
{
    return count ? kna__check(bytes, count, digest) : digest + 1;
}

static uint64_t join_rows(uint64_t digest, const kna_rows *r)
{
    size_t row = (size_t)r->dim * (r->type == KNA_F32 ? 4 : r->type == KNA_F16 ? 2 : 1);
    digest = join(digest, r->data, (size_t)r->rows * row);
    return r->type == KNA_I8 ? join(digest, r->scales, (size_t)r->rows * sizeof(float)) : digest;
}

/* ---- the writer */

static uint64_t hashes[MODEL_MOST]; /* of the model's documents */

static uint64_t hash_of(int64_t id, uint32_t number)
{
    filled f;
    int64_t tokens = number;
    uint64_t digest = join(join(0, &id, sizeof id), &tokens, sizeof tokens);
    fill(&f, number);
    for (int i = 0; i < FAMILIES; i++) digest = join_rows(digest, &f.rows[i].rows);
    unfill(&f);
    return digest;
}

static void drop(model *m, int i)
{
    memmove(hashes + i, hashes + i + 1, (size_t)(m->count - i - 1) * sizeof hashes[0]);
    model_remove(m, i);
}

static void announce(kna_store *store, const model *m)
{
    kna_store_info info = { .size = sizeof info };
    WELL(context, kna_store_info_get(store, &info));
    if (info.transaction + 1 >= MOST_COMMITS) abort();
    shared->digest[info.transaction + 1] = join(0, hashes, (size_t)m->count * sizeof hashes[0]);
    __atomic_store_n(&shared->announced, info.transaction + 1, __ATOMIC_SEQ_CST);
}

static bool acknowledge(int status)
{
    if (!WELL(context, status)) return false;
    __atomic_store_n(&shared->acknowledged, shared->announced, __ATOMIC_SEQ_CST);
    return true;
}

static bool write_some(kna_store **store, model *m, uint32_t *number)
{
    int64_t id;
    int changes = 1 + (int)test_below(6);
    for (int i = 0; i < changes; i++) {
        if (m->count > LIVE || (m->count && test_below(3) == 0)) {
            int which = (int)test_below((size_t)m->count);
            if (!WELL(context, kna_store_remove(*store, m->ids[which]))) return false;
            drop(m, which);
            continue;
        }
        int old = model_named(m, ++*number);
        if (!WELL(context, add(*store, *number, 1, &id))) return false;
        if (old >= 0) drop(m, old);
        model_add(m, id, *number);
        hashes[m->count - 1] = hash_of(id, *number);
    }
    announce(*store, m);
    if (!acknowledge(kna_store_commit(*store))) return false;
    if (test_below(6) == 0) {
        announce(*store, m);
        if (!acknowledge(kna_store_compact(*store, (double)test_below(3) / 4))) return false;
    }
    if (test_below(50) == 0) {
        kna_store_close(*store);
        *store = open_store(context, home, 1, 20000 + (int64_t)test_below(200000));
    }
    return *store != NULL;
}

/* ---- a reader */

static uint64_t digest_of(kna_store *store)
{
    static uint64_t found[MODEL_MOST];
    kna_document d = { .id = 0 };
    size_t count = 0;
    while (kna_store_next(store, d.id, &d) == KNA_OK && count < MODEL_MOST) {
        uint64_t digest = join(join(0, &d.id, sizeof d.id), &d.tokens, sizeof d.tokens);
        for (int family = 0; family < FAMILIES; family++) {
            kna_store_rows rows;
            if (!WELL(context, kna_store_rows_of(store, d.id, family, &rows))) return 0;
            digest = join_rows(digest, &rows.rows);
        }
        found[count++] = digest;
    }
    return join(0, found, count * sizeof found[0]);
}

static bool answer(kna_store **store, int64_t *last)
{
    kna_store_info info = { .size = sizeof info };
    int64_t before = __atomic_load_n(&shared->acknowledged, __ATOMIC_SEQ_CST);
    int changed = -1;
    bool again = test_below(20) == 0;
    if (again) {
        kna_store_close(*store);
        *store = open_store(context, home, 0, 0);
        if (!*store) return false;
    } else if (!WELL(context, kna_store_refresh(*store, &changed))) {
        return false;
    }
    int64_t after = __atomic_load_n(&shared->announced, __ATOMIC_SEQ_CST), t;
    if (!WELL(context, kna_store_info_get(*store, &info))) return false;
    t = info.transaction;
    if (!EXPECT_THAT(t >= before && t <= after && t >= *last, "transaction %lld of %lld..%lld, %lld before", (long long)t, (long long)before,
                     (long long)after, (long long)*last)) return false;
    if (!again && !EXPECT_INT(changed, t != *last)) return false;
    *last = t;
    for (int look = test_below(8) == 0 ? 4 : 1; look-- > 0; usleep(look ? 3000 : 0)) { /* a snapshot stays what it is */
        if (!EXPECT_THAT(digest_of(*store) == shared->digest[t], "transaction %lld: other documents", (long long)t)) return false;
    }
    return true;
}

static void read_on(int number)
{
    kna_store *store = open_store(context, home, 0, 0);
    test_state.random += (uint64_t)(number + 1) * 7919;
    int64_t last = 0;
    kna_store_info info = { .size = sizeof info };
    if (store && WELL(context, kna_store_info_get(store, &info))) last = info.transaction;
    while (store && answer(&store, &last)) __atomic_fetch_add(&shared->answers[number], 1, __ATOMIC_RELAXED);
    _exit(9);
}

static pid_t start(int number)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) read_on(number);
    return child;
}

static void committed_prefixes(void)
{
    static model m;
    pid_t readers[READERS];
    long deaths = 0, commits = 0;
    uint32_t number = 0;
    int status;
    snprintf(home, sizeof home, "%s/store", fresh_place());
    WELL(context, kna_store_create(context, home, families, FAMILIES, NULL));
    kna_store *store = open_store(context, home, 1, 60000);
    announce(store, &m);
    shared->digest[shared->announced - 1] = shared->digest[shared->announced]; /* as created */
    for (int i = 0; i < READERS; i++) readers[i] = start(i);
    bool fine = true;
    for (time_t end = time(NULL) + seconds; fine && time(NULL) <= end; commits++) {
        fine = write_some(&store, &m, &number);
        if (fine && test_below(80) == 0) { /* one dies, wherever it is */
            int i = (int)test_below(READERS);
            kill(readers[i], SIGKILL);
            waitpid(readers[i], &status, 0);
            fine = EXPECT_THAT(WIFSIGNALED(status), "a reader ended by itself: %d", WEXITSTATUS(status));
            test_state.random++;
            readers[i] = start(i);
            deaths++;
        }
    }
    long answers = 0;
    for (int i = 0; i < READERS; i++) {
        kill(readers[i], SIGKILL);
        waitpid(readers[i], &status, 0);
        EXPECT_THAT(WIFSIGNALED(status), "a reader ended by itself: %d", WEXITSTATUS(status));
        EXPECT(shared->answers[i] > 0);
        answers += shared->answers[i];
    }
    kna_store_close(store);
    printf("  %ld answers of %d readers beside %ld commits; %ld of the readers killed\n", answers, READERS, commits, deaths);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--seconds=", 10) == 0) seconds = atoi(argv[i] + 10);
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || kna_context_new(&context, NULL) != KNA_OK) return 1;
    TEST(committed_prefixes);
    drop_place();
    kna_context_free(context);
    munmap(shared, sizeof *shared);
    return test_end();
}
