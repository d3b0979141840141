/*
 * tasks.c - the prompts of lm_task*.c: each is read again here from its text alone, and its answer worked out a second time.
 */
#include "test.h"

#include "lm_task.h"

/* Four bytes to a token: any count that grows evenly with the text will do. */
static int count_bytes(void *user, const char *text, size_t bytes)
{
    (void)user, (void)text;
    return (int)((bytes + 3) / 4);
}

static int count_fails(void *user, const char *text, size_t bytes)
{
    int *left = user;
    return (*left)-- > 0 ? count_bytes(NULL, text, bytes) : LM_ENOMEM;
}

static char *make_text(size_t bytes)
{
    static const char *const words[] = {
        "kernel", "memory", "a", "directory", "of", "inode", "Lookup", "pathname", "cache", "lock"
    };
    char *text = malloc(bytes + 64);
    size_t used = 0;
    while (used < bytes) {
        used += (size_t)sprintf(text + used, "%s%s", words[test_below(10)], test_below(12) == 0 ? ".\n" : " ");
    }
    return text;
}

static char *filler_text;
static lm_filler filler;
static const int depths[] = { 0, 30, 100 };
enum { DEPTHS = 3 };

static lm_case_plan plan_of(int task, int length, uint64_t seed)
{
    return (lm_case_plan){ task, length, depths, DEPTHS, seed, &filler, count_bytes, NULL };
}

static lm_case case_of(int task, int length, uint64_t seed)
{
    const lm_case_plan plan = plan_of(task, length, seed);
    lm_case made;
    lm_error error = { "" };
    EXPECT_THAT(lm_case_make(&made, &plan, &error) == LM_OK, "%s: %s", lm_task_names[task], error.text);
    return made;
}

static int occurrences(const char *text, size_t bytes, const char *what)
{
    int count = 0;
    for (const char *at = text; (at = strstr(at, what)) && at + strlen(what) <= text + bytes; at++) count++;
    return count;
}

/* The answer of a prompt, the place of `what` in its context as a share, and whether it is there once. */
static void answer_of(char *answer, const lm_prompt *p)
{
    sprintf(answer, "%.*s", (int)(p->bytes - p->asked), p->text + p->asked);
}

static void expect_once(const lm_prompt *p, const char *what, double share, double within)
{
    const char *at = strstr(p->text, what);
    if (!EXPECT_THAT(at && occurrences(p->text, p->asked, what) == 1, "'%s' is there %d times", what,
                     occurrences(p->text, p->asked, what)))
        return;
    EXPECT_NEAR((double)(at - p->text) / (double)p->asked, share, within);
}

/* ---- all tasks */
static void lengths(void)
{
    const int all[] = { 600, 1000, 5000 };
    for (int task = 0; task < LM_TASK_COUNT; task++) {
        for (int l = 0; l < 3; l++) {
            lm_case made = case_of(task, all[l], test_random());
            int most = 0;
            for (int i = 0; i < made.count; i++) {
                int tokens = count_bytes(NULL, made.prompts[i].text, made.prompts[i].bytes);
                most = tokens > most ? tokens : most;
                EXPECT(strlen(made.prompts[i].text) == made.prompts[i].bytes && made.prompts[i].asked < made.prompts[i].bytes);
            }
            int line = 64; /* real text comes in whole lines */
            EXPECT_THAT(most <= all[l] && most >= 0.97 * all[l] - line, "%s: %d tokens for %d", lm_task_names[task], most, all[l]);
            lm_case_free(&made);
        }
    }
}

static int same(const lm_case *a, const lm_case *b)
{
    int equal = a->count == b->count;
    for (int i = 0; equal && i < a->count; i++) equal = strcmp(a->prompts[i].text, b->prompts[i].text) == 0;
    return equal;
}

static void seeds(void)
{
    for (int task = 0; task < LM_TASK_COUNT; task++) {
        lm_case a = case_of(task, 900, 5), other = case_of(task, 900, 6), b = case_of(task, 900, 5);
        EXPECT_THAT(same(&a, &b), "%s: another text from the same seed", lm_task_names[task]);
        EXPECT_THAT(!same(&a, &other), "%s: the same text from another seed", lm_task_names[task]);
        EXPECT(a.count == (lm_task_has_depth(task) ? DEPTHS : a.count) && a.count >= 1);
        lm_case_free(&a), lm_case_free(&b), lm_case_free(&other);
    }
}

/* Questions on one context share all of it; passkeys the text before the shallower of two. */
static void shared(void)
{
    for (int task = 0; task < LM_TASK_COUNT; task++) {
        lm_case made = case_of(task, 2000, test_random());
        for (int i = 1; i < made.count; i++) {
            const lm_prompt *a = &made.prompts[i - 1], *b = &made.prompts[i];
            size_t equal = 0;
            while (a->text[equal] && a->text[equal] == b->text[equal]) equal++;
            double expected = task == LM_TASK_PASSKEY ? depths[b->depth] / 100.0 - 0.05 : 0.9;
            EXPECT_THAT((double)equal > expected * (double)b->asked, "%s: %zu of %zu bytes shared", lm_task_names[task], equal, b->asked);
        }
        lm_case_free(&made);
    }
}

static void refused(void)
{
    lm_error error = { "" };
    lm_case made;
    const int outside[] = { 101 };
    for (int task = 0; task < LM_TASK_COUNT; task++) {
        lm_case_plan plan = plan_of(task, 40, 1);
        EXPECT_INT(lm_case_make(&made, &plan, &error), LM_ELIMIT);
        EXPECT_THAT(strstr(error.text, lm_task_names[task]) && strstr(error.text, "40"), "%s", error.text);
        EXPECT(made.prompts == NULL);
        plan = plan_of(task, 900, 1);
        plan.depths = outside;
        plan.depth_count = 1;
        EXPECT_INT(lm_case_make(&made, &plan, &error), lm_task_has_depth(task) ? LM_EINVAL : LM_OK);
        lm_case_free(&made);
        for (int fails = 0; fails < 6; fails++) { /* a counter that gives up after so many texts */
            int left = fails;
            plan = plan_of(task, 5000, 1);
            plan.counter = count_fails;
            plan.user = &left;
            int status = lm_case_make(&made, &plan, &error);
            EXPECT(status == LM_ENOMEM || (status == LM_OK && left >= 0));
            lm_case_free(&made);
        }
    }
}

/* ---- one place */
static void passkey(void)
{
    lm_case made = case_of(LM_TASK_PASSKEY, 3000, test_random());
    for (int i = 0; i < made.count; i++) {
        const lm_prompt *p = &made.prompts[i];
        char answer[64], needle[128];
        answer_of(answer, p);
        EXPECT(p->depth == DEPTHS - 1 - i && strlen(answer) == 6 && strspn(answer + 1, "0123456789") == 5);
        sprintf(needle, "The pass key is%s. Remember it.", answer);
        expect_once(p, needle, depths[p->depth] / 100.0, 0.04);
    }
    lm_case_free(&made);
}

static void needles(void)
{
    lm_case made = case_of(LM_TASK_NEEDLES, 3000, test_random());
    for (int i = 0; i < made.count; i++) {
        const lm_prompt *p = &made.prompts[i];
        char answer[64], needle[128], name[64] = "";
        answer_of(answer, p);
        sscanf(strstr(p->text + p->asked - 60, "? The magic number of the ") + 26, "%60[a-z ]", name);
        name[strlen(name) - 4] = '\0'; /* " is " */
        sprintf(needle, "The magic number of the %s is%s.", name, answer);
        EXPECT(p->depth == i);
        expect_once(p, needle, depths[i] / 100.0, 0.08);
        EXPECT_INT(occurrences(p->text, p->asked, "The magic number of the "), DEPTHS + 4 + 1);
    }
    lm_case_free(&made);
}

static void kv(void)
{
    lm_case made = case_of(LM_TASK_KV, 3000, test_random());
    for (int i = 0; i < made.count; i++) {
        const lm_prompt *p = &made.prompts[i];
        char answer[64], entry[128], key[16];
        answer_of(answer, p);
        sprintf(key, "%.8s", p->text + p->asked - 12);
        sprintf(entry, "\"%s\": \"%s", key, answer);
        EXPECT(p->depth == i && strlen(answer) == 9 && strlen(key) == 8);
        expect_once(p, entry, depths[i] / 100.0, 0.04);
    }
    lm_case_free(&made);
}

static void repeat(void)
{
    lm_case made = case_of(LM_TASK_REPEAT, 3000, test_random());
    for (int i = 0; i < made.count; i++) {
        const lm_prompt *p = &made.prompts[i];
        char answer[512], song[600];
        answer_of(answer, p);
        const char *name = strrchr(p->text, '.') ? strstr(p->text + p->asked - 60, "word for word. ") : NULL;
        if (!EXPECT(name)) continue;
        sprintf(song, "%.*s%s.\n", (int)(p->text + p->asked - name - 15), name + 15, answer);
        EXPECT_INT(occurrences(answer, strlen(answer), " "), 24);
        expect_once(p, song, depths[i] / 100.0, 0.12);
    }
    lm_case_free(&made);
}

/* ---- everywhere */

/* Word w of a set, without the blank before it. */
static void word_of(char *word, const lm_prompt *p, int w)
{
    EXPECT(p->text[p->word[w]] == ' ');
    sprintf(word, "%.*s", (int)strcspn(p->text + p->word[w] + 1, ","), p->text + p->word[w] + 1);
}

static void tracking(void)
{
    lm_case made = case_of(LM_TASK_TRACKING, 3000, test_random());
    EXPECT_INT(made.count, 2);
    for (int i = 0; i < made.count; i++) {
        const lm_prompt *p = &made.prompts[i];
        int value = 0;
        const char *before = NULL;
        char word[64], last[64] = "", line[128];
        EXPECT(sscanf(strstr(p->text, "have the value "), "have the value %d", &value) == 1 && p->words == 5 && p->depth == -1);
        for (int w = 0; w < p->words; w++) { /* each is assigned once, behind the one it takes its value from */
            word_of(word, p, w);
            if (w == 0)
                sprintf(line, "VAR %s = %d\n", word, value);
            else
                sprintf(line, "VAR %s = VAR %s\n", word, last);
            const char *at = strstr(p->text, line);
            EXPECT_THAT(at && at > before && occurrences(p->text, p->asked, line) == 1, "%s", line);
            before = at;
            strcpy(last, word);
        }
        EXPECT_INT(occurrences(p->text, p->asked, "VAR ") - occurrences(p->text, p->asked, "= VAR "), 10);
    }
    lm_case_free(&made);
}

/* How often a word stands in the list of a prompt, between its first empty line and the next. */
static int times_listed(const lm_prompt *p, const char *word)
{
    const char *list = strstr(p->text, "\n\n") + 2, *end = strstr(list, "\n\n");
    int count = 0;
    for (const char *at = list; at < end;) {
        size_t length = strcspn(at, " \n");
        count += length == strlen(word) && strncmp(at, word, length) == 0;
        at += length + 1;
    }
    return count;
}

/* The words asked for are the most frequent ones: no other word of the list comes half as often as the rarest of them. */
static void expect_leaders(const lm_prompt *p, int words)
{
    char word[64];
    int least = 1 << 30;
    EXPECT_INT(p->words, words);
    for (int w = 0; w < p->words; w++) {
        word_of(word, p, w);
        int times = times_listed(p, word);
        least = times < least ? times : least;
    }
    EXPECT(least >= 2);
    for (const char *at = strstr(p->text, "\n\n") + 2; *at != '\n'; at += strcspn(at, " \n") + 1) {
        int asked = 0;
        sprintf(word, "%.*s", (int)strcspn(at, " \n"), at);
        for (int w = 0; w < p->words; w++) {
            char other[64];
            word_of(other, p, w);
            asked = asked || strcmp(word, other) == 0;
        }
        EXPECT_THAT(asked || times_listed(p, word) <= 0.67 * least, "%s: %d times", word, times_listed(p, word));
    }
}

static void lists(void)
{
    const int all[] = { 300, 1000, 3000 };
    for (int l = 0; l < 3; l++) {
        lm_case made = case_of(LM_TASK_COMMON, all[l], test_random());
        EXPECT_INT(made.count, 1);
        expect_leaders(&made.prompts[0], 5);
        lm_case_free(&made);
        made = case_of(LM_TASK_FREQUENT, all[l], test_random());
        expect_leaders(&made.prompts[0], 3);
        lm_case_free(&made);
    }
}

/* ---- filler */

/* Lines cover the text without a gap, none is long, none begins inside a character. */
static void expect_cover(const char *text, size_t bytes)
{
    lm_filler lines;
    lm_error error = { "" };
    EXPECT_INT(lm_filler_make(&lines, text, bytes, count_bytes, NULL, &error), LM_OK);
    size_t at = 0;
    for (int i = 0; i < lines.count; i++) {
        EXPECT(lines.lines[i].offset == at && lines.lines[i].bytes > 0 && lines.lines[i].bytes <= 256);
        EXPECT(((unsigned char)text[at] & 0xc0) != 0x80);
        at += (size_t)lines.lines[i].bytes;
    }
    EXPECT(at == bytes);
    lm_filler_free(&lines);
}

static void cuts(void)
{
    char text[3001];
    lm_error error = { "" };
    lm_filler none;
    expect_cover(filler_text, strlen(filler_text));
    memset(text, 'x', 3000); /* no blank anywhere */
    expect_cover(text, 3000);
    for (int i = 0; i < 3000; i++) text[i] = i % 7 == 6 ? ' ' : 'y'; /* one endless line */
    expect_cover(text, 3000);
    for (int i = 0; i < 3000; i++) text[i] = i % 3 == 0 ? '\xe2' : '\x82'; /* three bytes to a character */
    expect_cover(text, 3000);
    memset(text, '\n', 3000);
    expect_cover(text, 3000);
    EXPECT_INT(lm_filler_make(&none, "too short", 9, count_bytes, NULL, &error), LM_ELIMIT);
    EXPECT_THAT(strstr(error.text, ": 3 tokens") && !none.lines, "%s", error.text);
    int left = 3;
    EXPECT_INT(lm_filler_make(&none, filler_text, strlen(filler_text), count_fails, &left, &error), LM_ENOMEM);
}

/* A filler that holds no plain words, and less than the prompt takes, still serves. */
static void poor_filler(void)
{
    char text[400];
    lm_error error = { "" };
    lm_filler kept = filler;
    memset(text, '7', sizeof text);
    text[200] = '\n';
    EXPECT_INT(lm_filler_make(&filler, text, sizeof text, count_bytes, NULL, &error), LM_OK);
    for (int task = 0; task < LM_TASK_COUNT; task++) {
        lm_case made = case_of(task, 2000, 1);
        lm_case_free(&made);
    }
    lm_filler_free(&filler);
    filler = kept;
}

int main(int argc, char **argv)
{
    lm_error error = { "" };
    test_begin(argc, argv);
    filler_text = make_text(30000);
    if (lm_filler_make(&filler, filler_text, strlen(filler_text), count_bytes, NULL, &error) != LM_OK) return 1;
    TEST(lengths);
    TEST(seeds);
    TEST(shared);
    TEST(refused);
    TEST(passkey);
    TEST(needles);
    TEST(kv);
    TEST(repeat);
    TEST(tracking);
    TEST(lists);
    TEST(cuts);
    TEST(poor_filler);
    lm_filler_free(&filler);
    free(filler_text);
    return test_end();
}
