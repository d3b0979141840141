/*
 * test.h - what the test programs share: expectations that count, a seed, random inputs, guarded memory. Include it first.
 *
 *     static void sums(void) { EXPECT(1 + 1 == 2); }
 *     int main(int argc, char **argv) { test_begin(argc, argv); TEST(sums); return test_end(); }
 *
 * A failed expectation prints file, line, test and values, and the test goes on; test_end() is the exit code. Options of every
 * program: --seed=N repeats a run, --test=NAME runs one test. The state is one per program (weak), also over several files.
 */
#ifndef TEST_H
#define TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define KNA_MAY_ALLOCATE /* internal headers poison malloc and free for the library, not for its tests */

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct test_state {
    const char *program, *only, *name;
    uint64_t seed, random;
    long checks, failures, tests;
};
__attribute__((weak)) struct test_state test_state = { "test", NULL, "", 0, 0, 0, 0, 0 };

static inline void test_begin(int argc, char **argv)
{
    test_state.program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    test_state.seed = (uint64_t)time(NULL) ^ (uint64_t)getpid() << 32;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--seed=", 7) == 0) test_state.seed = strtoull(argv[i] + 7, NULL, 0);
        if (strncmp(argv[i], "--test=", 7) == 0) test_state.only = argv[i] + 7;
    }
    test_state.random = test_state.seed;
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("%s: --seed=%llu\n", test_state.program, (unsigned long long)test_state.seed);
}

static inline void test_run(const char *name, void (*body)(void))
{
    if (test_state.only && strcmp(test_state.only, name) != 0) return;
    long before = test_state.failures;
    test_state.name = name;
    test_state.tests++;
    body();
    printf("%s %s\n", test_state.failures == before ? "ok  " : "FAIL", name);
}
#define TEST(body) test_run(#body, body)

static inline int test_end(void)
{
    printf("%s: %ld tests, %ld checks, %ld failed\n", test_state.program, test_state.tests, test_state.checks, test_state.failures);
    return test_state.failures != 0 || test_state.checks == 0; /* a run that checked nothing has not passed */
}

/* ---- expectations: each is an expression, true when it holds, so that a loop can stop at the first failure. */
__attribute__((format(printf, 4, 5))) static inline bool test_check(bool holds, const char *file, int line, const char *format, ...)
{
    test_state.checks++;
    if (holds) return true;
    va_list arguments;
    if (++test_state.failures <= 100) { /* enough to see what is wrong */
        fprintf(stdout, "%s:%d: %s: ", file, line, test_state.name);
        va_start(arguments, format);
        vfprintf(stdout, format, arguments);
        va_end(arguments);
        fputc('\n', stdout);
    }
    return false;
}
#define EXPECT(condition) test_check((condition), __FILE__, __LINE__, "%s", #condition)
/* EXPECT_THAT(a < b, "row %d: %g", r, a): the message says with what values. */
#define EXPECT_THAT(condition, ...) test_check((condition), __FILE__, __LINE__, __VA_ARGS__)
#define EXPECT_INT(got, want) test_int((long long)(got), (long long)(want), #got, __FILE__, __LINE__)
#define EXPECT_NEAR(got, want, bound) test_near((double)(got), (double)(want), (double)(bound), #got, __FILE__, __LINE__)
#define EXPECT_TEXT(got, want) test_text(got, want, #got, __FILE__, __LINE__)

static inline bool test_int(long long got, long long want, const char *what, const char *file, int line)
{
    return test_check(got == want, file, line, "%s = %lld, expected %lld", what, got, want);
}

static inline bool test_near(double got, double want, double bound, const char *what, const char *file, int line)
{
    bool holds = isfinite(want) ? fabs(got - want) <= bound : isnan(want) ? isnan(got) : got == want;
    return test_check(holds, file, line, "%s = %.9g, expected %.9g within %.3g", what, got, want, bound);
}

static inline bool test_text(const char *got, const char *want, const char *what, const char *file, int line)
{
    return test_check(got && strcmp(got, want) == 0, file, line, "%s = \"%s\", expected \"%s\"", what, got ? got : "(null)", want);
}

/* ---- random inputs: splitmix64, on purpose not the library's generator. */
static inline uint64_t test_random(void)
{
    uint64_t z = test_state.random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline size_t test_below(size_t limit)
{
    return (size_t)(test_random() % limit);
}

/* In (0,1). */
static inline double test_uniform(void)
{
    return ((double)(test_random() >> 12) + 0.5) * 0x1p-52;
}

static inline double test_normal(void)
{
    double radius = sqrt(-2 * log(test_uniform()));
    return radius * cos(6.283185307179586 * test_uniform());
}

/* ---- `bytes` of zeroed memory that end at a page nobody may touch: any step past the end crashes. */
static inline size_t test_pages(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static inline void *test_guarded(size_t bytes)
{
    size_t held = test_pages(bytes), page = test_pages(1);
    char *memory = mmap(NULL, held + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + held, page, PROT_NONE) != 0) abort();
    return memory + held - bytes;
}

static inline void test_guarded_free(void *memory, size_t bytes)
{
    munmap((char *)memory + bytes - test_pages(bytes), test_pages(bytes) + test_pages(1));
}

#endif
