/*
 * crash_store.c - a store after a crash: at random moments of a random life, thousands of times, the folder is what a disk that keeps
 * any part of what was not flushed may have kept; and every commit that was acknowledged is there, none half, none that was removed.
 *
 * Now and then a flush fails, and what it was to flush is lost while the system still shows it; the writer is closed and opened again.
 * Some of these folders become the store that life goes on with, so crashes come while the store recovers from one, too. --states=N
 * sets how many (default 1500; 5000 and more for a long run).
 */
#include "store_case.h"

#include "disk.h"

#include <sys/stat.h>

static kna_context *context, *checker;
static char home[80], crashed[80];
static model acknowledged, coming; /* coming: what the commit being made would give */
static bool committing, adopt, killed;
static long states, most_states, found_new, adopted, kills, lost;
static kna_store *store;

/* A crash now: what is left is opened, compared, written to, and opened again. */
static void crash_here(void)
{
    kna_store *left = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    int64_t damaged = 0, id;
    remove_folder(crashed);
    if (mkdir(crashed, 0777) != 0) abort();
    disk_crash(crashed);
    states++;
    o.write = (int)test_below(2);
    if (!WELL(checker, kna_store_open(checker, &left, crashed, &o))) return;
    bool new = committing && has_ids_of(left, &coming), old = has_ids_of(left, &acknowledged);
    found_new += new && !old;
    if (EXPECT_THAT(new || old, "state %ld: neither what was acknowledged nor what was coming", states)) {
        is_model(left, checker, new ? &coming : &acknowledged);
        (void)!kna_store_verify(left, &damaged, NULL, NULL); /* a torn receipt is what a crash leaves */
        EXPECT_INT(damaged, 0);
    }
    if (o.write && states % 8 == 0) { /* and it goes on from there */
        WELL(checker, add(left, 900000, 1, &id));
        WELL(checker, kna_store_commit(left));
        is_document(left, checker, id, 900000);
        kna_store_close(left);
        if (WELL(checker, kna_store_open(checker, &left, crashed, NULL))) is_document(left, checker, id, 900000);
    }
    kna_store_close(left);
}

static void moment(void)
{
    if (killed || states >= most_states || test_state.failures > 5 || test_below(4)) return;
    disk_pause(true);
    crash_here();
    disk_pause(false);
    adopt = test_below(60) == 0;
    if (!adopt && test_below(60) == 0) {
        killed = true;
        disk_die(true);
    }
}

/* A flush that is to be lost and was not. */
static bool losing;
static bool give_up_losing(void)
{
    disk_lose_flush(NULL);
    losing = false;
    return true;
}

/* Opened, however often it is killed in the middle of that. */
static kna_store *open_again(int64_t segment_bytes)
{
    kna_store *opened = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    int status;
    o.write = 1;
    o.segment_bytes = segment_bytes;
    do {
        killed = false;
        disk_die(false);
        status = kna_store_open(context, &opened, home, &o);
        kills += killed;
        if (killed) kna_store_close(opened);
    } while (killed || (losing && status == KNA_EIO && give_up_losing()));
    (void)give_up_losing();
    WELL(context, status);
    return opened;
}

/* The live store falls over: its folder becomes a crash of itself, and the writer that recovers it is recorded as well. */
static void fall_over(int64_t segment_bytes)
{
    char other[96];
    remove_folder(crashed);
    if (mkdir(crashed, 0777) != 0) abort();
    disk_pause(true);
    disk_crash(crashed);
    kna_store_close(store);
    disk_end();
    remove_folder(home);
    snprintf(other, sizeof other, "%s", crashed);
    if (rename(other, home) != 0) abort();
    disk_begin(home, moment);
    adopted++;
    store = open_again(segment_bytes);
    if (!store) return;
    if (!has_ids_of(store, &acknowledged)) { /* then what was coming has come */
        EXPECT(committing && has_ids_of(store, &coming));
        acknowledged = coming;
    }
    committing = false;
    coming = acknowledged;
}

/* Killed in the middle of a call, or told that a flush failed: the next writer finds what was written, flushed or not; and crashes come on top of that. */
static void come_back(int64_t segment_bytes)
{
    kna_store_close(store);
    kills += killed;
    store = open_again(segment_bytes);
    if (store && !has_ids_of(store, &acknowledged)) {
        EXPECT(committing && has_ids_of(store, &coming));
        acknowledged = coming;
    }
    committing = false;
    coming = acknowledged;
}

static void a_life(void)
{
    static const kna_family some[] = { { "keys", KNA_F16, 64 }, { "hidden", KNA_F32, 24 }, { "codes", KNA_I8, 40 }, { "text", KNA_BYTES, 1 } };
    uint32_t number = (uint32_t)test_below(1000);
    int64_t segment_bytes = 20000 + (int64_t)test_below(200000);
    char *base = (char *)(uintptr_t)fresh_place();
    snprintf(home, sizeof home, "%s/home", base);
    snprintf(crashed, sizeof crashed, "%s/crashed", base);
    acknowledged.count = coming.count = 0;
    committing = adopt = killed = false;
    WELL(context, kna_store_create(context, home, some, FAMILIES, NULL));
    disk_begin(home, moment);
    store = open_again(segment_bytes);
    for (int step = 0; step < 150 && store && states < most_states && test_state.failures <= 5; step++) {
        uint32_t what = (uint32_t)test_below(100);
        int64_t id;
        bool failed = false;
        losing = test_below(40) == 0;
        if (losing) disk_lose_flush(test_below(2) ? "" : "manifest");
        if (what < 50) {
            int old = model_named(&coming, ++number), status = add(store, number, 1, &id);
            if (!killed && WELL(context, status)) {
                if (old >= 0) model_remove(&coming, old);
                model_add(&coming, id, number);
            }
        } else if (what < 62 && coming.count) {
            int which = (int)test_below((size_t)coming.count);
            WELL(context, kna_store_remove(store, coming.ids[which]));
            model_remove(&coming, which);
        } else if (what < 84) {
            committing = true;
            int status = kna_store_commit(store);
            failed = losing && status == KNA_EIO;
            if ((!killed && !failed) || status == KNA_OK) {
                if (!WELL(context, status)) break;
                committing = false;
                acknowledged = coming;
            }
        } else if (what < 88) {
            kna_store_rollback(store);
            coming = acknowledged;
            int status = what < 86 ? kna_store_compact(store, 0.3) : KNA_OK;
            failed = losing && status == KNA_EIO;
            if (!killed && !failed) WELL(context, status);
        } else if (what < 92) {
            kna_store_close(store);
            coming = acknowledged;
            store = open_again(segment_bytes);
        }
        lost += failed;
        if (killed || failed) come_back(segment_bytes);
        (void)give_up_losing();
        if (adopt && store) {
            adopt = false;
            fall_over(segment_bytes);
        }
    }
    kna_store_close(store);
    disk_end();
}

static void lives(void)
{
    int count = 0;
    for (; states < most_states && test_state.failures <= 5; count++) a_life();
    printf("  %ld states of %d lives; in %ld a commit not yet acknowledged was there; %ld times life went on from one, %ld times after a kill, %ld times after a flush was lost\n",
           states, count, found_new, adopted, kills, lost);
    EXPECT(found_new > 0 && adopted > 0 && kills > 0 && lost > 0);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    most_states = 1500;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--states=", 9) == 0) most_states = atol(argv[i] + 9);
    }
    if (kna_context_new(&context, NULL) != KNA_OK || kna_context_new(&checker, NULL) != KNA_OK) return 1;
    TEST(lives);
    drop_place();
    kna_context_free(context);
    kna_context_free(checker);
    return test_end();
}
