/*
 * message.c - what goes to standard error, and the clock.
 *
 * Invariant: every message is one line that starts with "kna: ", written at once.
 */
#define _GNU_SOURCE
#include "cli.h"

#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

static void say(const char *kind, const char *format, va_list arguments)
{
    char line[2048];
    vsnprintf(line, sizeof line, format, arguments);
    cli_progress_end();
    fflush(stdout); /* keeps the order of answer and complaint when both go to one place */
    fprintf(stderr, "kna: %s%s\n", kind, line);
}

int cli_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say("", format, arguments);
    va_end(arguments);
    return CLI_FAILED;
}

int cli_refuse(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say("", format, arguments);
    va_end(arguments);
    return CLI_REFUSED;
}

void cli_warn(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say("warning: ", format, arguments);
    va_end(arguments);
}

int cli_status(const kna_context *context, int status)
{
    const char *message = context ? kna_context_message(context) : "";
    if (message[0] == '\0') message = kna_status_text(status);
    if (status == KNA_ENOMEM || status == KNA_ESTALE) return cli_fail("%s", message);
    return cli_refuse("%s", message);
}

double cli_now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

double cli_median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, compare);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}
