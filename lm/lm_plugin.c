/*
 * lm_plugin.c - the one place of this room that talks to the plugin: find it, hand it settings, read its counters.
 *
 * Stage: beside every step of a session. The contract is ggml/knnattn.h. Invariant: while a plugin is registered, its settings are
 * those of the session that decodes; without one only LM_OFF is possible. Each session counts in a slot of its own.
 */
#define _GNU_SOURCE /* PATH_MAX */
#include "lm_internal.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLUGIN_FILE "libggml-knnattn.so"

/* Where an installation keeps what only kna needs, seen from the folder of kna; the build says so. */
#ifndef KNA_PRIVATE_FROM_BIN
#    define KNA_PRIVATE_FROM_BIN "../lib/knnattn"
#endif

static struct {
    ggml_backend_reg_t reg;
    char path[PATH_MAX];
    knnattn_configure_t configure;
    knnattn_report_get_t get;
    knnattn_report_reset_t reset;
    knnattn_observe_t observe;
    unsigned slots_taken; /* bit per slot; slot 0 is for contexts nobody configured */
} plugin = { .slots_taken = 1u };

const char *const lm_method_names[LM_METHOD_COUNT + 1] = { "off", "exact", "topk", "knn", NULL };

/* ------------------------------------------------------------------ find and load */

/* ISO C has no cast between object and function pointers. */
static int take_function(void *to, size_t size, ggml_backend_reg_t reg, const char *name)
{
    void *address = ggml_backend_reg_get_proc_address(reg, name);
    if (address) {
        memcpy(to, &address, size);
    }
    return address != NULL;
}

static int attach(ggml_backend_reg_t reg)
{
    int complete = take_function(&plugin.configure, sizeof plugin.configure, reg, "knnattn_configure") &&
                   take_function(&plugin.get, sizeof plugin.get, reg, "knnattn_report_get") &&
                   take_function(&plugin.reset, sizeof plugin.reset, reg, "knnattn_report_reset") &&
                   take_function(&plugin.observe, sizeof plugin.observe, reg, "knnattn_observe");
    plugin.reg = complete ? reg : NULL;
    return complete;
}

void lm__plugin_find(void)
{
    for (size_t i = 0; i < ggml_backend_reg_count(); i++) {
        ggml_backend_reg_t reg = ggml_backend_reg_get(i);
        if (attach(reg)) {
            const char *path = getenv("GGML_BACKEND_PATH");
            snprintf(plugin.path, sizeof plugin.path, "%s", path ? path : ggml_backend_reg_name(reg));
            return;
        }
    }
}

static int is_there(const char *path)
{
    return access(path, R_OK) == 0;
}

/* The file named by option or environment and no other, or else the places where builds and installations put it. */
static int locate(char *path, size_t size)
{
    const char *named = lm__plugin_wanted() ? lm__plugin_wanted() : getenv("KNA_PLUGIN");
    if (named && *named) {
        return snprintf(path, size, "%s", named) < (int)size;
    }
    if (lm__beside_executable(path, size, PLUGIN_FILE) && is_there(path)) {
        return 1;
    }
    return lm__beside_executable(path, size, KNA_PRIVATE_FROM_BIN "/" PLUGIN_FILE) && is_there(path);
}

static int load(lm_error *error)
{
    if (plugin.reg) {
        return LM_OK;
    }
    if (!locate(plugin.path, sizeof plugin.path)) {
        plugin.path[0] = '\0';
        return lm__fail(error, LM_EPLUGIN, "the attention plugin " PLUGIN_FILE " was not found; set KNA_PLUGIN to its path");
    }
    lm__log_reset();
    ggml_backend_reg_t reg = is_there(plugin.path) ? ggml_backend_load(plugin.path) : NULL;
    if (!reg || !attach(reg)) {
        const char *why = !is_there(plugin.path) ? "no such file" : (reg ? "it is another backend" : lm__log_last());
        return lm__fail(error, LM_EPLUGIN, "the attention plugin %s cannot be loaded: %s", plugin.path, why);
    }
    return LM_OK;
}

/* Registered it stays: its threads and what it writes at exit belong to the process. A second opening finds it again. */
void lm__plugin_close(void)
{
    memset(&plugin, 0, sizeof plugin);
    plugin.slots_taken = 1u;
}

const char *lm_runtime_plugin(void)
{
    return plugin.reg ? plugin.path : "";
}

/* ------------------------------------------------------------------ settings */

typedef struct line {
    char text[320];
    size_t used;
} line;

static void append(line *to, const char *format, ...) LM_PRINTF(2, 3);

static void append(line *to, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int wrote = vsnprintf(to->text + to->used, sizeof to->text - to->used, format, arguments);
    va_end(arguments);
    to->used += wrote > 0 ? (size_t)wrote : 0;
}

static void append_count(line *to, const char *name, int64_t value)
{
    if (value >= 0) {
        append(to, ",%s=%lld", name, (long long)value);
    }
}

/* Numbers are bounded in length, so the line cannot overflow: 10 settings of at most 30 characters. */
static void write_settings(line *to, const lm_attention *attention, int slot)
{
    append(to, "method=%s,slot=%d", lm_method_names[attention->method], slot);
    append_count(to, "k", attention->k_near);
    append_count(to, "sinks", attention->near_sinks);
    append_count(to, "window", attention->near_window);
    append_count(to, "exact_below", attention->exact_below);
    append_count(to, "full_every", attention->full_every);
    if (attention->eps >= 0.0) {
        append(to, ",eps=%.9g", attention->eps);
    }
    if (attention->delta >= 0.0) {
        append(to, ",delta=%.9g", attention->delta);
    }
    if (attention->audit >= 0.0) {
        append(to, ",audit=%.9g", attention->audit);
    }
}

int lm__plugin_set(const lm_attention *attention, int slot, lm_error *error)
{
    if (attention->method == LM_OFF && !plugin.reg) {
        return LM_OK;
    }
    int status = load(error);
    if (status != LM_OK) {
        return status;
    }
    line settings = { { 0 }, 0 };
    char message[300] = "";
    write_settings(&settings, attention, slot);
    if (plugin.configure(settings.text, message, sizeof message) != 0) {
        return lm__fail(error, LM_EINVAL, "the plugin refuses these settings: %s", message);
    }
    return LM_OK;
}

/* ------------------------------------------------------------------ counters */

int lm__slot_take(void)
{
    for (int slot = 0; slot < KNNATTN_SLOTS; slot++) {
        if (!(plugin.slots_taken >> slot & 1u)) {
            plugin.slots_taken |= 1u << slot;
            lm__plugin_reset(slot);
            return slot;
        }
    }
    return -1;
}

void lm__slot_give(int slot)
{
    if (slot > 0) {
        plugin.slots_taken &= ~(1u << slot);
    }
}

void lm__plugin_reset(int slot)
{
    if (plugin.reg) {
        plugin.reset(slot);
    }
}

void lm__plugin_observe(int slot, knnattn_observer_t observer, void *user)
{
    plugin.observe(slot, observer, user);
}

void lm__plugin_usage(int slot, lm_usage *usage)
{
    memset(usage, 0, sizeof *usage);
    usage->audit_mean = usage->audit_p95 = -1.0;
    if (!plugin.reg) {
        return;
    }
    struct knnattn_report report = { .size = sizeof report };
    plugin.get(slot, &report);
    usage->rows = report.rows;
    usage->rows_exact = report.rows_exact;
    usage->keys_seen = report.keys_seen;
    usage->keys_full = report.keys_full;
    usage->bytes_share = report.keys_touched;
    usage->tail_mass = report.tail_mass;
    usage->audited = report.audited;
    usage->audit_mean = report.audit_mean;
    usage->audit_p95 = report.audit_p95;
    usage->time_s = report.time_s;
    usage->index_s = report.index_s;
    usage->index_bytes = report.index_bytes;
    usage->stale_rows = report.stale_rows;
}
