/*
 * lm_runtime.c - bring llama.cpp up: find its backends, keep its log quiet but remember its last complaint.
 *
 * Stage: before everything else of the room. Invariant: after lm_runtime_open() a CPU backend is registered, so that loading a
 * model fails only because of the model.
 */
#define _GNU_SOURCE /* dladdr, sched_getaffinity */
#include "lm_internal.h"

#include <dlfcn.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    int is_open;
    int verbose;
    char *plugin;
    char last[400];
} runtime;

int lm__fail(lm_error *error, int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return status;
}

/* ------------------------------------------------------------------ log */

void lm__log_reset(void)
{
    runtime.last[0] = '\0';
}

const char *lm__log_last(void)
{
    return runtime.last;
}

/* "function: what is wrong\n" -> "what is wrong". A complaint is often followed by vaguer ones: the first is kept. */
static void remember(const char *text)
{
    const char *colon = strstr(text, ": ");
    const char *space = strchr(text, ' ');
    if (colon && space == colon + 1) {
        text = colon + 2;
    }
    snprintf(runtime.last, sizeof runtime.last, "%s", text);
    runtime.last[strcspn(runtime.last, "\r\n")] = '\0';
}

static void on_log(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (runtime.verbose) {
        fputs(text, stderr);
    }
    if (level == GGML_LOG_LEVEL_ERROR && runtime.last[0] == '\0') {
        remember(text);
    }
}

/* ------------------------------------------------------------------ folders */

static int folder_of(char *folder, size_t size, const char *file)
{
    char real[PATH_MAX];
    if (!realpath(file, real)) {
        return 0;
    }
    char *slash = strrchr(real, '/');
    if (!slash) {
        return 0;
    }
    *slash = '\0';
    return snprintf(folder, size, "%s", real) < (int)size;
}

int lm__beside_executable(char *path, size_t size, const char *name)
{
    char folder[PATH_MAX];
    if (!folder_of(folder, sizeof folder, "/proc/self/exe")) {
        return 0;
    }
    return snprintf(path, size, "%s/%s", folder, name) < (int)size;
}

static int have_cpu(void)
{
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) != NULL;
}

/* Where the libllama this process runs came from; its backends usually lie beside it. */
static int llama_folder(char *folder, size_t size)
{
    Dl_info info;
    void (*symbol)(void) = llama_backend_init;
    void *address;
    memcpy(&address, &symbol, sizeof address); /* ISO C has no cast from function to object pointer */
    return dladdr(address, &info) && info.dli_fname && folder_of(folder, size, info.dli_fname);
}

/* The folder asked for and no other, or else every place where backends are known to lie. */
static int load_backends(const char *asked, lm_error *error)
{
    char folder[PATH_MAX];
    const char *from = asked ? asked : getenv("KNA_LLAMA_DIR");
    if (from && *from) {
        ggml_backend_load_all_from_path(from);
        return have_cpu() ? LM_OK
                          : lm__fail(error, LM_EFILE, "%s: no CPU backend of llama.cpp (libggml-cpu*.so) in this folder", from);
    }
    if (!have_cpu() && llama_folder(folder, sizeof folder)) {
        ggml_backend_load_all_from_path(folder);
    }
    if (!have_cpu()) {
        ggml_backend_load_all();
    }
    return have_cpu() ? LM_OK
                      : lm__fail(error, LM_EFILE,
                                 "no CPU backend of llama.cpp (libggml-cpu*.so) found; "
                                 "set KNA_LLAMA_DIR to the folder that holds it");
}

/* ------------------------------------------------------------------ open and close */

static char *copy_text(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = malloc(bytes);
    return copy ? memcpy(copy, text, bytes) : NULL;
}

int lm_runtime_open(const lm_runtime_options *options, lm_error *error)
{
    if (runtime.is_open) {
        return LM_OK;
    }
    runtime.verbose = options && options->verbose;
    llama_log_set(on_log, NULL);
    if (options && options->fatal) {
        ggml_set_abort_callback(options->fatal);
    }
    if (options && options->plugin) {
        runtime.plugin = copy_text(options->plugin);
        if (!runtime.plugin) {
            return lm__fail(error, LM_ENOMEM, "out of memory");
        }
    }
    int status = load_backends(options ? options->llama_dir : NULL, error);
    if (status != LM_OK) {
        return status;
    }
    llama_backend_init();
    lm__plugin_find();
    runtime.is_open = 1;
    return LM_OK;
}

void lm_runtime_close(void)
{
    if (runtime.is_open) {
        lm__plugin_close();
        llama_backend_free();
    }
    free(runtime.plugin);
    runtime.plugin = NULL;
    runtime.is_open = 0;
}

const char *lm__plugin_wanted(void)
{
    return runtime.plugin;
}

int lm_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        return CPU_COUNT(&set);
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}
