/*
 * kill_store.c - a writer killed at random moments (SIGKILL), hundreds of times, one after another on the same store; also while it
 * recovers, compacts and begins new segments. Beside it a reader that goes on reading. What the writer was told is kept is there each
 * time, and no document half, none that was removed.
 *
 * The writer says what it is about to commit, and that it has, through a pipe: whatever got into that happened. --kills=N (default 150).
 */
#include "store_case.h"

#include <signal.h>
#include <sys/wait.h>

enum { SEGMENT_BYTES = 150000, MOST_DOCUMENTS = 150 };
static kna_context *context;
static char home[128];
static model acknowledged, coming;
static long most_kills = 150;

/* ---- the writer */

typedef struct message { /* added: number, document; removed: document; then one of the others */
    enum { ADDED, REMOVED, COMMITTING, COMMITTED } what;
    uint32_t number;
    int64_t id;
} message;

static void say(int pipe, message m)
{
    if (write(pipe, &m, sizeof m) != (ssize_t)sizeof m) _exit(3);
}

static void be_sure(int status)
{
    if (status == KNA_OK) return;
    fprintf(stderr, "writer: %s: %s\n", kna_status_name(status), kna_context_message(context));
    _exit(4);
}

/* Until it is killed. */
static void write_on(int pipe, uint64_t seed)
{
    kna_store *store = NULL;
    kna_store_options o = KNA_STORE_OPTIONS;
    test_state.random = seed;
    o.write = 1;
    o.segment_bytes = SEGMENT_BYTES;
    be_sure(kna_store_open(context, &store, home, &o));
    for (uint32_t number = (uint32_t)(seed % 100000);;) {
        int changes = 1 + (int)test_below(4);
        for (int i = 0; i < changes; i++) {
            int64_t id;
            if (coming.count > MOST_DOCUMENTS || (coming.count && test_below(4) == 0)) {
                int which = (int)test_below((size_t)coming.count);
                be_sure(kna_store_remove(store, coming.ids[which]));
                say(pipe, (message){ REMOVED, 0, coming.ids[which] });
                model_remove(&coming, which);
            } else {
                int old = model_named(&coming, ++number);
                be_sure(add(store, number, 1, &id));
                say(pipe, (message){ ADDED, number, id });
                if (old >= 0) {
                    say(pipe, (message){ REMOVED, 0, coming.ids[old] });
                    model_remove(&coming, old);
                }
                model_add(&coming, id, number);
            }
        }
        say(pipe, (message){ .what = COMMITTING });
        be_sure(kna_store_commit(store));
        say(pipe, (message){ .what = COMMITTED });
        if (test_below(8) == 0) be_sure(kna_store_compact(store, 0.2));
    }
}

/* ---- the reader: every answer is that of some commit */

static void read_on(int pipe)
{
    kna_store *store = NULL;
    be_sure(kna_store_open(context, &store, home, NULL));
    for (int64_t last = 0;;) {
        kna_store_info info = { .size = sizeof info };
        kna_document d = { .id = 0 };
        be_sure(kna_store_refresh(store, NULL));
        be_sure(kna_store_info_get(store, &info));
        int64_t count = 0;
        bool fine = info.transaction >= last; /* never back */
        last = info.transaction;
        for (; kna_store_next(store, d.id, &d) == KNA_OK; count++) fine = fine && is_document(store, context, d.id, (uint32_t)d.tokens);
        if (!fine || count != info.documents) {
            fprintf(stderr, "reader: transaction %lld, %lld documents, %lld found\n", (long long)last, (long long)info.documents, (long long)count);
            _exit(5);
        }
        char one = 0;
        if (write(pipe, &one, 1) != 1) _exit(0);
    }
}

/* ---- the judge */

static void hear(int pipe, bool *committing)
{
    message m;
    *committing = false;
    while (read(pipe, &m, sizeof m) == (ssize_t)sizeof m) {
        switch (m.what) {
        case ADDED:
            model_add(&coming, m.id, m.number);
            break;
        case REMOVED:
            for (int i = 0; i < coming.count; i++) {
                if (coming.ids[i] == m.id) model_remove(&coming, i--);
            }
            break;
        case COMMITTING:
            *committing = true;
            break;
        case COMMITTED:
            *committing = false;
            acknowledged = coming;
        }
    }
}

static bool judge(bool committing)
{
    kna_store *store = open_store(context, home, 0, 0);
    int64_t damaged;
    if (!store) return false;
    bool new = committing && has_ids_of(store, &coming), fine = EXPECT(new || has_ids_of(store, &acknowledged));
    if (new) acknowledged = coming;
    coming = acknowledged;
    fine = fine && is_model(store, context, &acknowledged);
    (void)!kna_store_verify(store, &damaged, NULL, NULL); /* a receipt cut off is no damage */
    fine = fine && EXPECT_INT(damaged, 0);
    kna_store_close(store);
    return fine;
}

static pid_t start(int *pipe_end, bool reader, uint64_t seed)
{
    int ends[2];
    if (pipe(ends) != 0) abort();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        if (reader) read_on(ends[1]); else write_on(ends[1], seed);
    }
    close(ends[1]);
    *pipe_end = ends[0];
    return child;
}

static void killed(void)
{
    long commits = 0;
    int reader_pipe, status;
    snprintf(home, sizeof home, "%s/store", fresh_place());
    WELL(context, kna_store_create(context, home, families, FAMILIES, NULL));
    pid_t reader = start(&reader_pipe, true, 0);
    for (long kill_number = 0; kill_number < most_kills; kill_number++) {
        int end;
        bool committing;
        int before = acknowledged.count;
        pid_t writer = start(&end, false, test_random());
        usleep((useconds_t)(test_below(4) ? test_below(12000) : test_below(1500)));
        kill(writer, SIGKILL);
        waitpid(writer, &status, 0);
        if (!EXPECT_THAT(WIFSIGNALED(status), "the writer ended by itself: %d", WEXITSTATUS(status))) break;
        hear(end, &committing);
        close(end);
        commits += acknowledged.count != before;
        if (!judge(committing)) break;
        char many[4096];
        if (kill_number % 16 == 0 && !EXPECT(read(reader_pipe, many, sizeof many) > 0)) break; /* it is alive */
    }
    kill(reader, SIGKILL);
    waitpid(reader, &status, 0);
    EXPECT_THAT(WIFSIGNALED(status), "the reader ended by itself: %d", WEXITSTATUS(status));
    close(reader_pipe);
    EXPECT(commits > most_kills / 10);
    printf("  %ld kills, %d documents at the end\n", most_kills, acknowledged.count);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--kills=", 8) == 0) most_kills = atol(argv[i] + 8);
    }
    signal(SIGPIPE, SIG_IGN);
    if (kna_context_new(&context, NULL) != KNA_OK) return 1;
    TEST(killed);
    drop_place();
    kna_context_free(context);
    return test_end();
}
