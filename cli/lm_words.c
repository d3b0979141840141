/*
 * lm_words.c - text in and figures out, for the commands that run a model.
 *
 * Invariant: text handed on is free of zero bytes; text for JSON or HTML is valid UTF-8 whatever the tokens were.
 */
#include "lm_common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX_BYTES ((size_t)1 << 30)

/* ------------------------------------------------------------------ reading */

/* Grow by doubling: standard input has no size. Returns CLI_OK or an exit code. */
static int read_stream(char **text, size_t *bytes, FILE *from, const char *path)
{
    size_t room = 0, got = 1;
    *text = NULL;
    for (*bytes = 0; got > 0 && *bytes <= TEXT_MAX_BYTES; *bytes += got) {
        if (room - *bytes < 2) {
            room = room ? 2 * room : (size_t)1 << 16;
            char *more = realloc(*text, room);
            if (!more) {
                return cli_fail("%s: out of memory", path);
            }
            *text = more;
        }
        got = fread(*text + *bytes, 1, room - *bytes - 1, from);
    }
    if (ferror(from)) {
        return cli_fail("%s: %s", path, strerror(errno));
    }
    return *bytes > TEXT_MAX_BYTES ? cli_refuse("%s: above the limit of %zu bytes", path, TEXT_MAX_BYTES) : CLI_OK;
}

static int check_text(const char *text, size_t bytes, const char *path)
{
    if (bytes == 0) {
        return cli_refuse("%s: the text is empty", path);
    }
    const char *zero = memchr(text, '\0', bytes);
    return zero ? cli_refuse("%s: not a text: zero byte at offset %zu", path, (size_t)(zero - text)) : CLI_OK;
}

int lm_read_text(char **text, size_t *bytes, const char *path)
{
    int is_stdin = strcmp(path, "-") == 0;
    FILE *from = is_stdin ? stdin : fopen(path, "rb");
    *text = NULL;
    if (!from) {
        return cli_fail("%s: %s", path, strerror(errno));
    }
    int code = read_stream(text, bytes, from, path);
    if (!is_stdin) {
        fclose(from);
    }
    if (code == CLI_OK) {
        *bytes -= *bytes > 0 && (*text)[*bytes - 1] == '\n';
        (*text)[*bytes] = '\0';
        code = check_text(*text, *bytes, path);
    }
    if (code != CLI_OK) {
        free(*text);
        *text = NULL;
    }
    return code;
}

int lm_read_tokens(lm_tokens *tokens, const lm_model *model, const char *path)
{
    lm_error error = { { 0 } };
    char *text = NULL;
    size_t bytes = 0;
    int code = lm_read_text(&text, &bytes, path);
    if (code == CLI_OK) {
        code = lm_failed(lm_tokenize(tokens, model, text, bytes, 0, &error), &error);
    }
    free(text);
    return code;
}

/* ------------------------------------------------------------------ UTF-8 */

/* Bytes of the well-formed character at s (RFC 3629), 0 if there is none. */
static size_t character(const unsigned char *s, size_t left)
{
    static const struct {
        unsigned char low, high, second_low, second_high;
        size_t length;
    } forms[] = {
        { 0x01, 0x7f, 0, 0, 1 },       { 0xc2, 0xdf, 0x80, 0xbf, 2 }, { 0xe0, 0xe0, 0xa0, 0xbf, 3 },
        { 0xe1, 0xec, 0x80, 0xbf, 3 }, { 0xed, 0xed, 0x80, 0x9f, 3 }, { 0xee, 0xef, 0x80, 0xbf, 3 },
        { 0xf0, 0xf0, 0x90, 0xbf, 4 }, { 0xf1, 0xf3, 0x80, 0xbf, 4 }, { 0xf4, 0xf4, 0x80, 0x8f, 4 },
    };
    for (size_t f = 0; f < sizeof forms / sizeof forms[0]; f++) {
        if (s[0] < forms[f].low || s[0] > forms[f].high) {
            continue;
        }
        if (forms[f].length > left || (forms[f].length > 1 && (s[1] < forms[f].second_low || s[1] > forms[f].second_high))) {
            return 0;
        }
        for (size_t i = 2; i < forms[f].length; i++) {
            if ((s[i] & 0xc0u) != 0x80u) {
                return 0;
            }
        }
        return forms[f].length;
    }
    return 0;
}

char *lm_clean(const char *bytes, size_t count)
{
    char *to = malloc(3 * count + 1), *at = to;
    for (size_t i = 0; to && i < count;) {
        size_t length = character((const unsigned char *)bytes + i, count - i);
        memcpy(at, length ? bytes + i : "\xef\xbf\xbd", length ? length : 3);
        at += length ? length : 3;
        i += length ? length : 1;
    }
    if (to) {
        *at = '\0';
    }
    return to;
}

char *lm_text_of(const lm_model *model, const int32_t *tokens, int count)
{
    enum { PIECE = 512 };
    char *bytes = malloc((size_t)count * PIECE + 1);
    size_t used = 0;
    for (int i = 0; bytes && i < count; i++) {
        used += (size_t)lm_piece(model, tokens[i], bytes + used, PIECE);
    }
    char *text = bytes ? lm_clean(bytes, used) : NULL;
    free(bytes);
    return text;
}

/* ------------------------------------------------------------------ figures */

void lm_machine_name(char *name, size_t size)
{
    char line[256];
    FILE *facts = fopen("/proc/cpuinfo", "r");
    snprintf(name, size, "this machine");
    while (facts && fgets(line, sizeof line, facts)) {
        const char *value = strchr(line, ':');
        if (value && (strncmp(line, "model name", 10) == 0 || strncmp(line, "Model", 5) == 0)) {
            snprintf(name, size, "%.*s", (int)strcspn(value + 2, "\n"), value + 2);
            break;
        }
    }
    if (facts) {
        fclose(facts);
    }
}

double lm_per_second(int64_t count, double seconds)
{
    return seconds > 0.0 ? (double)count / seconds : 0.0;
}

double lm_prefill_rate(const lm_timing *timing)
{
    return lm_per_second(timing->prefill_tokens, timing->prefill_s);
}

double lm_decode_rate(const lm_timing *timing)
{
    return lm_per_second(timing->decode_tokens, timing->decode_s);
}

void lm_print_usage(FILE *to, const lm_usage *usage)
{
    if (usage->rows == 0) {
        return;
    }
    fprintf(to, "attention  %.2f %% of the keys read in full, %.1f %% of the bytes of exact attention, tail mass %.2f %%\n",
            100.0 * lm_usage_full(usage), 100.0 * usage->bytes_share, 100.0 * usage->tail_mass);
    if (usage->audited > 0) {
        fprintf(to, "audit      %lld rows also computed exactly: relative error %.4f mean, %.4f at the 95th percentile\n",
                (long long)usage->audited, usage->audit_mean, usage->audit_p95);
    }
}

void lm_json_timing(cJSON *object, const lm_timing *timing)
{
    cli_json_int(object, "prefill_tokens", timing->prefill_tokens);
    cli_json_real(object, "prefill_s", timing->prefill_s);
    cli_json_real(object, "prefill_tokens_per_s", lm_prefill_rate(timing));
    cli_json_int(object, "decode_tokens", timing->decode_tokens);
    cli_json_real(object, "decode_s", timing->decode_s);
    cli_json_real(object, "decode_tokens_per_s", lm_decode_rate(timing));
}

void lm_json_usage(cJSON *object, const lm_usage *usage)
{
    if (usage->rows == 0) {
        cli_json_text(object, "attention", NULL);
        return;
    }
    cJSON *to = cli_json_object(object, "attention");
    cli_json_int(to, "rows", usage->rows);
    cli_json_int(to, "rows_exact", usage->rows_exact);
    cli_json_real(to, "keys_full", lm_usage_full(usage));
    cli_json_real(to, "keys_touched", usage->bytes_share);
    cli_json_real(to, "tail_mass", usage->tail_mass);
    cli_json_int(to, "audited", usage->audited);
    if (usage->audited > 0) {
        cli_json_real(to, "audit_mean", usage->audit_mean);
        cli_json_real(to, "audit_p95", usage->audit_p95);
    }
    cli_json_real(to, "time_s", usage->time_s);
    cli_json_real(to, "index_s", usage->index_s);
    cli_json_int(to, "index_bytes", (int64_t)usage->index_bytes);
    cli_json_int(to, "stale_rows", usage->stale_rows);
}

void lm_json_comparison(cJSON *object, const lm_score *score)
{
    cli_json_real(object, "kl_divergence", lm_mean_value(&score->divergence));
    cli_json_real(object, "kl_divergence_error", lm_mean_error(&score->divergence));
    cli_json_real(object, "top_token_agreement", lm_score_agreement(score));
}
