/*
 * json.c - JSON answers over cJSON.
 *
 * Invariant: if any allocation failed on the way, `incomplete` is set and nothing is printed: no field is ever silently missing.
 */
#define _GNU_SOURCE
#include "cli.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int incomplete;

/* Put item where it belongs; a root has no parent. */
static cJSON *place(cJSON *parent, const char *name, cJSON *item, int is_root)
{
    if (item && is_root) return item;
    if (item && parent && (name ? cJSON_AddItemToObject(parent, name, item) : cJSON_AddItemToArray(parent, item))) return item;
    cJSON_Delete(item);
    incomplete = 1;
    return NULL;
}

cJSON *cli_json_object(cJSON *parent, const char *name)
{
    return place(parent, name, cJSON_CreateObject(), !parent && !name);
}

cJSON *cli_json_array(cJSON *parent, const char *name)
{
    return place(parent, name, cJSON_CreateArray(), !parent && !name);
}

void cli_json_real(cJSON *object, const char *name, double value)
{
    place(object, name, isfinite(value) ? cJSON_CreateNumber(value) : cJSON_CreateNull(), 0);
}

/* Raw text: cJSON's own numbers are doubles, printed with 15 digits. */
void cli_json_int(cJSON *object, const char *name, int64_t value)
{
    char digits[32];
    snprintf(digits, sizeof digits, "%" PRId64, value);
    place(object, name, cJSON_CreateRaw(digits), 0);
}

void cli_json_text(cJSON *object, const char *name, const char *value)
{
    place(object, name, value ? cJSON_CreateString(value) : cJSON_CreateNull(), 0);
}

void cli_json_raw(cJSON *object, const char *name, const char *json)
{
    place(object, name, cJSON_CreateRaw(json), 0);
}

void cli_json_bool(cJSON *object, const char *name, int value)
{
    place(object, name, cJSON_CreateBool(value), 0);
}

/* What stands behind the numbers: nothing was left out; some rows were compared with exact attention; rows have a radius; nothing. */
static const char *certificate(const kna_report *report)
{
    if (report->method == KNA_EXACT || report->rows_exact == report->rows) return "exact";
    if (report->audited > 0) return "audited";
    if (report->radius < 0) return "none";
    return cli_certificate_names[report->certificate];
}

/* The library says "not estimated" with a negative number; JSON has null for that. */
static double known(double value)
{
    return value < 0 ? (double)NAN : value;
}

void cli_json_report(cJSON *object, const kna_report *report)
{
    cli_json_text(object, "method", kna_method_name(report->method));
    cli_json_real(object, "time_s", report->time_s);
    cli_json_real(object, "build_s", report->build_s);
    cli_json_int(object, "rows", report->rows);
    cli_json_int(object, "rows_exact", report->rows_exact);
    cli_json_real(object, "keys_seen", report->keys_seen);
    cli_json_real(object, "keys_full", report->keys_full);
    cli_json_real(object, "keys_touched", report->keys_touched);
    cli_json_real(object, "tail_mass", report->tail_mass);
    cli_json_real(object, "error_est", known(report->error_est));
    cli_json_real(object, "error_est_max", known(report->error_est_max));
    cli_json_text(object, "certificate", certificate(report));
    cli_json_int(object, "audited", report->audited);
    cli_json_real(object, "audit_mean", known(report->audit_mean));
    cli_json_real(object, "audit_mean_off", known(report->audit_mean_off));
    cli_json_real(object, "audit_p95", known(report->audit_p95));
    cli_json_real(object, "audit_p95_low", known(report->audit_p95_low));
    cli_json_real(object, "audit_p95_high", known(report->audit_p95_high));
    cli_json_real(object, "audit_over", known(report->audit_over));
    cli_json_real(object, "radius", known(report->radius));
    cli_json_real(object, "radius_max", known(report->radius_max));
    cli_json_real(object, "by_means", report->by_means);
    cli_json_int(object, "stale_rows", report->stale_rows);
    cli_json_int(object, "index_bytes", (int64_t)report->index_bytes);
    cli_json_int(object, "scratch_bytes", (int64_t)report->scratch_bytes);
}

static int print(FILE *to, cJSON *root, char *(*as_text)(const cJSON *))
{
    char *text = incomplete ? NULL : as_text(root);
    cJSON_Delete(root);
    if (!text) return cli_fail("out of memory while writing JSON");
    const int good = fputs(text, to) >= 0 && fputc('\n', to) != EOF;
    const int code = good ? CLI_OK : cli_fail("cannot write JSON: %s", strerror(errno));
    cJSON_free(text);
    return code;
}

int cli_json_line(FILE *to, cJSON *root)
{
    return print(to, root, cJSON_PrintUnformatted);
}

int cli_json_print(FILE *to, cJSON *root)
{
    const int code = print(to, root, cJSON_Print);
    return code != CLI_OK || fflush(to) == 0 ? code : cli_fail("cannot write JSON: %s", strerror(errno));
}
