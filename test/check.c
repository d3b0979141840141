/*
 * check.c - kernels of every level against the contract in kernel.h.
 *
 *   --seed=N        repeat a run
 *   --function=P    only kernels that match the pattern: dot, dot_f16, 'mix*'
 *   --cpu=LEVEL     only this level (and the reference, which the others are compared with)
 *   --quick         one size in eight, drawn: for machines that are emulated
 *   --bench         time the calls instead, levels side by side
 *
 * For each kernel and row type, sizes are swept over 0..67 and around powers of two in each dimension, the others drawn; so are
 * kind of input, strides, and where operands lie. A level that crashes is reported with the sizes and the address, and the rest
 * goes on.
 */
#include "check.h"

#include <fnmatch.h>
#include <setjmp.h>
#include <signal.h>

#define MOST_CELLS ((size_t)1 << 20)
#define MOST_REPORTS 3 /* of one kernel at one level */

const kna__kernels *check_levels[KNA_CPU_COUNT];
static const char *only_function, *only_cpu;
static bool is_bench, is_quick;

/* ---- crashes */
static sigjmp_buf escape;
static volatile sig_atomic_t is_calling;
static const void *volatile crash_address;

static void on_crash(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (!is_calling) { /* the test itself, or what has no levels: name it and let it die */
        fprintf(stderr, "%s: %s\n", test_state.name, strsignal(number));
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    crash_address = info->si_addr;
    siglongjmp(escape, number);
}

static void catch_crashes(void)
{
    static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE };
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_crash;
    action.sa_flags = SA_SIGINFO;
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        sigaction(signals[i], &action, NULL);
    }
}

/* ---- one set of operands at one level */
static const char *describe(const job *j, char text[160])
{
    static const char *const flavours[FLAVOURS] = { "normal",    "lognormal", "cancelling", "denormal",
                                                    "zeros",     "large",     "infinite",   "nan" };
    snprintf(text, 160, "%s: g %zu, n %zu, d %zu, ldo %zu, ld_left %zu, row_bytes %zu, a %g, %s", kna_cpu_name(j->kernels->cpu),
             j->g, j->n, j->d, j->ldo, j->ld_left, j->rows.row_bytes, (double)j->a, flavours[j->flavour]);
    return text;
}

/* The call, or its pieces; false after a crash. */
static bool guarded(job *j, void (*body)(job *))
{
    char text[160], where[80];
    int number = sigsetjmp(escape, 1);
    if (number == 0) {
        is_calling = 1;
        body(j);
    }
    is_calling = 0;
    return EXPECT_THAT(number == 0, "%s: %s, %s", describe(j, text), strsignal(number), check_where(crash_address, where));
}

static bool is_within(double got, double want, double bound)
{
    return isnan(want) ? isnan(got) : isinf(want) ? got == want : fabs(got - want) <= bound;
}

static void judge(job *j)
{
    char text[160];
    for (size_t i = 0; j->is_judged && i < j->out_rows; i++) {
        for (size_t c = 0; c < j->out_cols; c++) {
            double got = (double)((const float *)j->out)[i * j->ldo + c];
            double want = j->want[i * j->out_cols + c], bound = j->bound[i * j->out_cols + c];
            if (!is_within(got, want, bound)) {
                EXPECT_THAT(false, "%s: out[%zu][%zu] = %.9g, expected %.9g within %.3g", describe(j, text), i, c, got, want,
                            bound);
                return;
            }
        }
    }
    EXPECT_THAT(is_within(j->returned, j->want_returned, j->bound_returned), "%s: returned %.9g, expected %.9g within %.3g",
                describe(j, text), j->returned, j->want_returned, j->bound_returned);
}

static size_t out_bytes(const job *j)
{
    return j->out_rows ? ((j->out_rows - 1) * j->ldo + j->out_cols) * j->out_unit : 0;
}

/* The reference's output, and the value it returned. */
static char *reference_out;
static double reference_returned;

static void compare_with_reference(job *j)
{
    char text[160];
    if (j->kernels->cpu == KNA_CPU_REF) {
        memcpy(reference_out, j->out, out_bytes(j));
        reference_returned = j->returned;
        return;
    }
    EXPECT_THAT(memcmp(reference_out, j->out, out_bytes(j)) == 0 && j->returned == reference_returned,
                "%s: not the reference's bits (returned %g and %g)", describe(j, text), j->returned, reference_returned);
}

/* Results must not depend on how the work is cut: what makes them independent of threads. */
static void compare_pieces(job *j)
{
    static char *whole;
    char text[160];
    whole = whole ? whole : malloc(MOST_CELLS * sizeof(float));
    if (!whole) {
        return;
    }
    memcpy(whole, j->out, out_bytes(j));
    check_restore_out(j);
    if (guarded(j, j->check->pieces)) {
        EXPECT_THAT(memcmp(whole, j->out, out_bytes(j)) == 0, "%s: in pieces other bits come out", describe(j, text));
    }
}

static void run_level(job *j)
{
    char text[160];
    check_restore_out(j);
    check_seal();
    bool is_alive = guarded(j, j->check->call);
    if (is_alive) {
        judge(j);
        EXPECT_THAT(check_touched(OUT) == 0, "%s: wrote around out", describe(j, text));
        EXPECT_THAT(check_padding(j) == 0, "%s: wrote between the rows of out", describe(j, text));
        if (j->check->exact) {
            compare_with_reference(j);
        }
        if (j->check->verify) {
            j->check->verify(j);
        }
        if (j->check->pieces && j->kernels->cpu != KNA_CPU_REF) {
            compare_pieces(j);
        }
    }
    check_unseal();
}

/* ---- sizes */
static const size_t around_powers[] = { 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024 };
#define SWEEP (68 + sizeof around_powers / sizeof around_powers[0])

static size_t swept(size_t i)
{
    return i < 68 ? i : around_powers[i - 68];
}

/* Mostly small; now and then anything of the sweep. */
static size_t drawn_size(void)
{
    return test_below(8) ? test_below(20) : swept(test_below(SWEEP));
}

static void draw_sizes(job *j, char dim, size_t size)
{
    do {
        j->g = 1 + test_below(9);
        j->n = dim == 'n' ? size : drawn_size();
        j->d = dim == 'd' ? size : drawn_size();
        if (j->check->per_type && j->type == KNA_Q8_0) {
            j->d = (dim == 'd' ? size % 33 : j->d % 9) * KNA_Q8_BLOCK;
        }
    } while (j->g * j->n * j->d > 60000);
    if (dim == 'g') {
        j->g = 1 + size % 16;
    }
}

static void run_job(job *j, long *failed)
{
    j->returned = j->want_returned = j->bound_returned = 0;
    j->is_judged = false;
    j->rows = (kna__span){ NULL, 0, NULL };
    j->ld_left = 0;
    j->a = 0;
    j->check->make(j);
    j->check->expect(j);
    check_save_out(j);
    for (size_t l = 0; check_levels[l]; l++) {
        if (failed[l] < MOST_REPORTS && !check_is_inherited(j->check, j->type, check_levels[l])) {
            long before = test_state.failures;
            j->kernels = check_levels[l];
            run_level(j);
            failed[l] += test_state.failures - before;
        }
    }
}

static void entry_name(const check *c, int type, char name[40])
{
    snprintf(name, 40, c->per_type ? "%s_%s" : "%s", c->name, kna_type_name(type));
}

static void print_outcome(const char *name, const check *c, int type, const long *failed)
{
    printf("%-14s", name);
    for (size_t l = 0; check_levels[l]; l++) {
        const char *outcome = failed[l] ? "FAIL" : check_is_inherited(c, type, check_levels[l]) ? "inherited" : "ok";
        printf("  %s %s", kna_cpu_name(check_levels[l]->cpu), outcome);
    }
    printf("\n");
}

static void run_entry(const check *c, int type)
{
    static job j;
    char name[40];
    long failed[KNA_CPU_COUNT] = { 0 };
    if (!j.want) {
        j.want = malloc(MOST_CELLS * sizeof(double));
        j.bound = malloc(MOST_CELLS * sizeof(double));
        j.numbers = malloc(MOST_CELLS * sizeof(double));
        reference_out = malloc(MOST_CELLS * sizeof(float));
    }
    if (!j.want || !j.bound || !j.numbers || !reference_out) {
        perror("check: malloc");
        exit(1);
    }
    entry_name(c, type, name);
    test_state.name = name;
    test_state.tests++;
    j.check = c;
    j.type = type;
    for (j.flavour = 0; j.flavour < FLAVOURS; j.flavour++) {
        for (const char *dim = c->dims; *dim; dim++) {
            for (size_t i = is_quick ? test_below(8) : 0; i < SWEEP; i += is_quick ? 1 + test_below(15) : 1) {
                draw_sizes(&j, *dim, swept(i));
                run_job(&j, failed);
            }
        }
    }
    print_outcome(name, c, type, failed);
}

/* ---- which kernels, which levels */
bool check_is_inherited(const check *c, int type, const kna__kernels *level)
{
    size_t at = c->entry + (c->per_type ? (size_t)type * sizeof(void (*)(void)) : 0);
    for (size_t l = 0; check_levels[l] != level; l++) {
        if (memcmp((const char *)check_levels[l] + at, (const char *)level + at, sizeof(void (*)(void))) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_wanted(const check *c, int type)
{
    char name[40];
    entry_name(c, type, name);
    return !only_function || fnmatch(only_function, name, 0) == 0 || strcmp(only_function, c->name) == 0;
}

static void run_list(const check *list)
{
    for (const check *c = list; c->name; c++) {
        for (int type = 0; type < (c->per_type ? KNA_TYPE_COUNT : 1); type++) {
            if (is_wanted(c, type)) {
                /* Each starts from the seed alone, so that --function repeats what the whole run did. */
                test_state.random = test_state.seed + (uint64_t)(c->entry * 8 + (size_t)type);
                (is_bench ? check_bench : run_entry)(c, type);
            }
        }
    }
}

static bool find_levels(void)
{
    size_t count = 0;
    for (int cpu = KNA_CPU_REF; cpu < KNA_CPU_COUNT; cpu++) {
        bool is_asked = !only_cpu || strcmp(only_cpu, kna_cpu_name(cpu)) == 0 || cpu == KNA_CPU_REF;
        if (kna_cpu_is_present(cpu) && is_asked) {
            check_levels[count++] = kna__kernels_get(cpu);
        }
    }
    return !only_cpu || count > 1 || strcmp(only_cpu, "ref") == 0;
}

static bool read_options(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--function=", 11) == 0) {
            only_function = argv[i] + 11;
        } else if (strncmp(argv[i], "--cpu=", 6) == 0) {
            only_cpu = argv[i] + 6;
        } else if (strcmp(argv[i], "--bench") == 0) {
            is_bench = true;
        } else if (strcmp(argv[i], "--quick") == 0) {
            is_quick = true;
        } else if (strncmp(argv[i], "--seed=", 7) != 0) {
            fprintf(stderr, "check: unknown option %s (--seed=N --function=PATTERN --cpu=LEVEL --quick --bench)\n", argv[i]);
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    if (!read_options(argc, argv)) {
        return 2;
    }
    if (!find_levels()) {
        fprintf(stderr, "check: --cpu=%s is no level of this machine and build\n", only_cpu);
        return 2;
    }
    test_begin(argc, argv);
    catch_crashes();
    run_list(checks_rows);
    run_list(checks_dense);
    run_list(checks_vector);
    run_list(checks_int8);
    if (is_bench) {
        return 0;
    }
    check_plain(only_function);
    return test_end();
}
