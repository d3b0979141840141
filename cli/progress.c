/*
 * progress.c - one line on the terminal for anything longer than a second.
 *
 * A thread of its own draws, so that one long call of the library shows life too. Invariant: while no progress runs there is no
 * thread and the line is wiped; if standard error is no terminal nothing is ever written.
 */
#define _GNU_SOURCE
#include "cli.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#define FIRST_S  1.0
#define REDRAW_S 0.2
#define BAR      24

static struct {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    pthread_t drawer;
    int running; /* set and cleared by the command's thread only */
    int stop;
    int drawn;
    const char *label;
    double start_s;
    double share;
} line = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void draw(void)
{
    const double elapsed_s = cli_now_s() - line.start_s;
    char bar[BAR + 1];
    if (line.share < 0) {
        fprintf(stderr, "\r%s %.0f s\033[K", line.label, elapsed_s);
    } else {
        for (int i = 0; i < BAR; i++) bar[i] = i < (int)(line.share * BAR) ? '#' : '.';
        bar[BAR] = '\0';
        fprintf(stderr, "\r%s [%s] %3.0f %%  %.0f s\033[K", line.label, bar, 100 * line.share, elapsed_s);
    }
    fflush(stderr);
    line.drawn = 1;
}

static void wait_until_s(double when_s)
{
    struct timespec when;
    when.tv_sec = (time_t)when_s;
    when.tv_nsec = (long)((when_s - (double)when.tv_sec) * 1e9);
    pthread_cond_timedwait(&line.ended, &line.lock, &when);
}

static void *draw_until_end(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&line.lock);
    for (double next_s = line.start_s + FIRST_S; !line.stop;) {
        wait_until_s(next_s);
        if (line.stop || cli_now_s() < next_s) continue;
        draw();
        next_s = cli_now_s() + REDRAW_S;
    }
    if (line.drawn) fprintf(stderr, "\r\033[K");
    fflush(stderr);
    pthread_mutex_unlock(&line.lock);
    return NULL;
}

void cli_progress_start(const char *label)
{
    pthread_condattr_t attributes;
    cli_progress_end();
    if (!isatty(STDERR_FILENO)) return;
    line.label = label;
    line.start_s = cli_now_s();
    line.share = -1;
    line.stop = line.drawn = 0;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC); /* the clock of cli_now_s() */
    pthread_cond_init(&line.ended, &attributes);
    pthread_condattr_destroy(&attributes);
    line.running = pthread_create(&line.drawer, NULL, draw_until_end, NULL) == 0; /* no thread: no progress, nothing worse */
}

void cli_progress_share(double share)
{
    pthread_mutex_lock(&line.lock);
    line.share = share > 1 ? 1 : share;
    pthread_mutex_unlock(&line.lock);
}

void cli_progress_end(void)
{
    if (!line.running) return;
    pthread_mutex_lock(&line.lock);
    line.stop = 1;
    pthread_cond_signal(&line.ended);
    pthread_mutex_unlock(&line.lock);
    pthread_join(line.drawer, NULL);
    pthread_cond_destroy(&line.ended);
    line.running = 0;
}
