/*
 * threads.c - parallel-for over OpenMP, or a plain loop where the compiler has none.
 *
 * OpenMP and not threads of our own: inside llama.cpp, which uses OpenMP too, both then share one pool and never
 * oversubscribe the processors.
 */
#include "base.h"

#ifdef _OPENMP
#include <omp.h>

int kna__processors(void)
{
    int count = omp_get_num_procs();
    return count < 1 ? 1 : count > KNA_MAX_THREADS ? KNA_MAX_THREADS : count;
}

void kna__parallel_for(int threads, int64_t count, kna__task task, void *argument)
{
    int team = count < threads ? (int)count : threads;
    if (team <= 1) {
        for (int64_t i = 0; i < count; i++) {
            task(argument, i, 0);
        }
        return;
    }
    /* The team always has `threads` members: libgomp re-creates its pool when the size changes from call to call. */
#pragma omp parallel num_threads(threads)
    {
        int worker = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t i = 0; i < count; i++) {
            task(argument, i, worker);
        }
    }
}

void kna__parallel_steps(int threads, const kna__step *steps, int count, void *argument)
{
    if (threads <= 1) {
        for (int step = 0; step < count; step++) {
            for (int64_t i = 0, tasks = steps[step].tasks(argument); i < tasks; i++) {
                steps[step].task(argument, i, 0);
            }
        }
        return;
    }
    int64_t tasks = 0;
#pragma omp parallel num_threads(threads)
    {
        int worker = omp_get_thread_num();
        for (int step = 0; step < count; step++) {
#pragma omp single
            tasks = steps[step].tasks(argument);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < tasks; i++) {
                steps[step].task(argument, i, worker);
            }
        }
    }
}

#else

int kna__processors(void)
{
    return 1;
}

void kna__parallel_for(int threads, int64_t count, kna__task task, void *argument)
{
    (void)threads;
    for (int64_t i = 0; i < count; i++) {
        task(argument, i, 0);
    }
}

void kna__parallel_steps(int threads, const kna__step *steps, int count, void *argument)
{
    (void)threads;
    for (int step = 0; step < count; step++) {
        for (int64_t i = 0, tasks = steps[step].tasks(argument); i < tasks; i++) {
            steps[step].task(argument, i, 0);
        }
    }
}

#endif
