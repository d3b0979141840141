/*
 * output.c - files that appear under their names only when complete.
 *
 * Invariant: between cli_output_open() and cli_output_commit() a regular target is untouched; the bytes are in a file beside it,
 * which is removed if the command fails or is interrupted. No target is replaced before all outputs are written and flushed.
 */
#define _GNU_SOURCE
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OUTPUTS_MAX 4096 /* of all layers of a model, several each */

typedef struct output {
    FILE *file;   /* NULL once finished */
    char *path;   /* as the user wrote it, for messages */
    char *target; /* NULL: written directly */
    char *beside;
} output;

static output outputs[OUTPUTS_MAX];
static volatile sig_atomic_t output_count;
static const char *volatile made_folder; /* NULL: none */

static void remove_and_die(int number)
{
    for (int i = 0; i < output_count; i++)
        if (outputs[i].beside) unlink(outputs[i].beside);
    if (made_folder) rmdir(made_folder);
    signal(number, SIG_DFL);
    raise(number);
}

static void catch_signals(void)
{
    static const int numbers[] = { SIGINT, SIGTERM, SIGHUP, SIGPIPE };
    struct sigaction now;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (sigaction(numbers[i], NULL, &now) == 0 && now.sa_handler == SIG_DFL) signal(numbers[i], remove_and_die);
}

static int is_stdout(const char *path)
{
    return strcmp(path, "-") == 0;
}

/* 1: a device or pipe, to be written as it is; 0: a regular file or nothing yet; -1: a directory. */
static int is_special(const char *path)
{
    struct stat status;
    if (is_stdout(path)) return 1;
    if (stat(path, &status) != 0 || S_ISREG(status.st_mode)) return 0;
    return S_ISDIR(status.st_mode) ? -1 : 1;
}

/* The mode a new file gets: that of the file it replaces, else as usual. */
static mode_t mode_for(const char *target)
{
    struct stat status;
    if (stat(target, &status) == 0) return status.st_mode & 0777;
    const mode_t mask = umask(0);
    umask(mask);
    return 0666 & ~mask;
}

/* A link stays a link: what it points to is replaced. */
static char *resolve(const char *path)
{
    char *target = realpath(path, NULL);
    return target ? target : strdup(path);
}

static int open_beside(output *o)
{
    o->target = resolve(o->path);
    if (!o->target || asprintf(&o->beside, "%s.kna-XXXXXX", o->target) < 0) {
        o->beside = NULL;
        errno = ENOMEM;
        return -1;
    }
    const int file = mkstemp(o->beside);
    if (file < 0) {
        free(o->beside);
        o->beside = NULL;
        return -1;
    }
    fchmod(file, mode_for(o->target));
    return file;
}

static void forget(output *o)
{
    if (o->file && o->file != stdout) fclose(o->file);
    if (o->beside) unlink(o->beside);
    free(o->beside);
    free(o->target);
    free(o->path);
    memset(o, 0, sizeof *o);
}

static int open_output(output *o)
{
    const int special = is_special(o->path);
    if (special < 0) {
        errno = EISDIR;
        return 0;
    }
    if (special) {
        o->file = is_stdout(o->path) ? stdout : fopen(o->path, "wb");
        return o->file != NULL;
    }
    const int file = open_beside(o);
    if (file < 0) return 0;
    o->file = fdopen(file, "wb");
    return o->file != NULL;
}

FILE *cli_output_open(const char *path)
{
    if (output_count == OUTPUTS_MAX) {
        cli_fail("%s: more than %d output files at once", path, OUTPUTS_MAX);
        return NULL;
    }
    output *o = &outputs[output_count];
    memset(o, 0, sizeof *o);
    o->path = strdup(path);
    catch_signals();
    output_count++;
    if (o->path && open_output(o)) return o->file;
    cli_fail("%s: cannot write: %s", path, strerror(errno));
    forget(o);
    output_count--;
    return NULL;
}

static int flush(const output *o)
{
    if (!o->file) return CLI_OK;
    if (!ferror(o->file) && fflush(o->file) == 0 && (!o->beside || fsync(fileno(o->file)) == 0)) return CLI_OK;
    return cli_fail("%s: write failed: %s", o->path, strerror(errno ? errno : EIO));
}

int cli_output_finish(void)
{
    output *o = &outputs[output_count - 1];
    const int code = flush(o);
    if (o->file && o->file != stdout) fclose(o->file);
    o->file = NULL;
    return code;
}

static int put_in_place(output *o)
{
    if (o->beside && rename(o->beside, o->target) != 0) return cli_fail("%s: cannot write: %s", o->path, strerror(errno));
    free(o->beside);
    o->beside = NULL;
    return CLI_OK;
}

int cli_output_commit(void)
{
    int code = CLI_OK;
    for (int i = 0; i < output_count && code == CLI_OK; i++) code = flush(&outputs[i]);
    for (int i = 0; i < output_count && code == CLI_OK; i++) code = put_in_place(&outputs[i]);
    if (code == CLI_OK) made_folder = NULL;
    cli_output_abandon();
    return code;
}

void cli_output_abandon(void)
{
    for (int i = 0; i < output_count; i++) forget(&outputs[i]);
    output_count = 0;
    if (made_folder) rmdir(made_folder);
    made_folder = NULL;
}

int cli_output_folder(const char *path)
{
    struct stat status;
    catch_signals();
    if (mkdir(path, 0777) == 0) {
        made_folder = path;
        return CLI_OK;
    }
    const int why = errno;
    if (stat(path, &status) != 0 || (S_ISDIR(status.st_mode) && access(path, W_OK) != 0))
        return cli_fail("%s: cannot write: %s", path, strerror(why == EEXIST ? errno : why));
    return S_ISDIR(status.st_mode) ? CLI_OK : cli_fail("%s: not a folder", path);
}

int cli_output_check(const char *path)
{
    if (is_special(path) > 0) {
        if (is_stdout(path) || access(path, W_OK) == 0) return CLI_OK;
        return cli_fail("%s: cannot write: %s", path, strerror(errno));
    }
    if (!cli_output_open(path)) return CLI_FAILED;
    forget(&outputs[--output_count]);
    return CLI_OK;
}
