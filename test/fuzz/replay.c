/*
 * replay.c - a fuzzer's inputs once more, without libFuzzer: each file of the folders given, and for each of them mutations drawn from
 * a seed. Whatever crashes a fuzzer ends this program too. --seed=N, --mutations=N (of each file; default 300).
 */
#include "fuzz.h"

#include "../test.h"

#include <dirent.h>

enum { MOST_BYTES = 1 << 20 };
static unsigned char input[MOST_BYTES], changed[MOST_BYTES];
static long most = 300;

static size_t mutate(size_t count)
{
    memcpy(changed, input, count);
    for (size_t times = 1 + test_below(4); times > 0; times--) {
        size_t at = count ? test_below(count) : 0, some = 1 + test_below(8);
        switch (test_below(5)) {
        case 0:
            if (count) changed[at] ^= (unsigned char)(1 << test_below(8));
            break;
        case 1:
            for (size_t i = at; i < at + some && i < count; i++) changed[i] = test_below(2) ? 0xff : (unsigned char)test_random();
            break;
        case 2: /* cut */
            count = at;
            break;
        case 3: /* a stretch goes elsewhere */
            for (size_t i = 0, to = count ? test_below(count) : 0; i < 4 * some && at + i < count && to + i < count; i++) changed[to + i] = changed[at + i];
            break;
        default: /* grown */
            for (size_t i = 0; i < some && count < MOST_BYTES; i++) changed[count++] = (unsigned char)test_random();
        }
    }
    return count;
}

/* From memory of its exact size, so that a step past the end is seen. */
static void try_one(const unsigned char *bytes, size_t count)
{
    unsigned char *exact = malloc(count ? count : 1);
    if (!exact) abort();
    memcpy(exact, bytes, count);
    EXPECT_INT(LLVMFuzzerTestOneInput(exact, count), 0);
    free(exact);
}

static long replay(const char *folder)
{
    DIR *all = opendir(folder);
    long files = 0;
    if (!all) return 0;
    for (struct dirent *e = readdir(all); e; e = readdir(all)) {
        char path[1000];
        snprintf(path, sizeof path, "%.600s/%.300s", folder, e->d_name);
        FILE *file = e->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (!file) continue;
        size_t count = fread(input, 1, MOST_BYTES, file);
        fclose(file);
        files++;
        try_one(input, count);
        for (long i = 0; i < most; i++) try_one(changed, mutate(count));
    }
    closedir(all);
    return files;
}

int main(int argc, char **argv)
{
    long files = 0;
    test_begin(argc, argv);
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--mutations=", 12) == 0) most = atol(argv[i] + 12);
    }
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-') files += replay(argv[i]);
    }
    EXPECT(files > 0);
    printf("  %ld inputs, %ld mutations of each\n", files, most);
    return test_end();
}
