/* check_bench.c - the time of a call: levels in turn within each round, the median of the rounds, so that drift hits all alike. */
#include "check.h"

#include "../src/base/base.h"

#define ROUNDS 9
#define ROUND_S 4e-4

static double seconds_of(job *j, long repeats)
{
    double from = kna__seconds();
    for (long i = 0; i < repeats; i++) {
        j->check->call(j);
    }
    return (kna__seconds() - from) / (double)repeats;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void time_levels(job *j, double *seconds)
{
    double times[KNA_CPU_COUNT][ROUNDS];
    long repeats[KNA_CPU_COUNT];
    for (int round = -1; round < ROUNDS; round++) {
        for (size_t l = 0; check_levels[l]; l++) {
            j->kernels = check_levels[l];
            if (check_is_inherited(j->check, j->type, j->kernels)) {
                continue;
            }
            if (round < 0) {
                seconds_of(j, 1);
                repeats[l] = 1 + (long)(ROUND_S / (seconds_of(j, 3) + 1e-9));
            } else {
                times[l][round] = seconds_of(j, repeats[l]);
            }
        }
    }
    for (size_t l = 0; check_levels[l]; l++) {
        qsort(times[l], ROUNDS, sizeof times[l][0], by_value);
        seconds[l] = times[l][ROUNDS / 2];
    }
}

static void print_times(const job *j, const double *seconds)
{
    char name[64];
    int length = snprintf(name, sizeof name, j->check->per_type ? "%s_%s" : "%s", j->check->name, kna_type_name(j->type));
    for (const char *dim = j->check->dims; *dim; dim++) {
        size_t size = *dim == 'g' ? j->g : *dim == 'n' ? j->n : j->d;
        length += snprintf(name + length, sizeof name - (size_t)length, " %c%zu", *dim, size);
    }
    printf("%-30s", name);
    double work = j->check->work(j);
    for (size_t l = 0; check_levels[l]; l++) {
        if (!check_is_inherited(j->check, j->type, check_levels[l])) {
            printf("  %s %9.1f ns %6.2f G%s/s", kna_cpu_name(check_levels[l]->cpu), seconds[l] * 1e9, work / seconds[l] * 1e-9,
                   j->check->unit);
        }
    }
    printf("\n");
}

void check_bench(const check *c, int type)
{
    static double numbers[1 << 20];
    job j;
    double seconds[KNA_CPU_COUNT];
    for (size_t i = 0; i < 4 && c->bench[i][1]; i++) {
        memset(&j, 0, sizeof j);
        j.check = c;
        j.type = type;
        j.bench = true;
        j.g = c->bench[i][0];
        j.n = c->bench[i][1];
        j.d = c->bench[i][2];
        j.numbers = numbers;
        c->make(&j);
        time_levels(&j, seconds);
        print_times(&j, seconds);
    }
}
