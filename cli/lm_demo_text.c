/*
 * lm_demo_text.c - a demo's figures as a table on a terminal, and as JSON.
 *
 * Invariant: one row per figure, one column per attention; a figure that does not apply is a dash in the table and null in JSON.
 */
#include "lm_demo.h"

#include <stdlib.h>

/* ------------------------------------------------------------------ table */

/* A figure of one attention as text; an empty text becomes a dash. */
typedef void (*demo_cell)(char *text, size_t size, const demo_result *result, int i);

static void prefill(char *text, size_t size, const demo_result *result, int i)
{
    snprintf(text, size, "%.1f", lm_prefill_rate(&result->entries[i].read));
}

static void prefill_ratio(char *text, size_t size, const demo_result *result, int i)
{
    snprintf(text, size, "%.2fx", demo_prefill_ratio(result, i));
}

static void decode(char *text, size_t size, const demo_result *result, int i)
{
    snprintf(text, size, "%.1f", lm_decode_rate(&result->entries[i].made));
}

static void decode_ratio(char *text, size_t size, const demo_result *result, int i)
{
    snprintf(text, size, "%.2fx", demo_decode_ratio(result, i));
}

static void prefill_keys(char *text, size_t size, const demo_result *result, int i)
{
    snprintf(text, size, "%.1f %%", 100.0 * lm_usage_full(&result->entries[i].read_usage));
}

static void decode_keys(char *text, size_t size, const demo_result *result, int i)
{
    snprintf(text, size, "%.1f %%", 100.0 * lm_usage_full(&result->entries[i].made_usage));
}

static void decode_bytes(char *text, size_t size, const demo_result *result, int i)
{
    const lm_usage *usage = &result->entries[i].made_usage;
    snprintf(text, size, "%.1f %%", usage->rows > 0 ? 100.0 * usage->bytes_share : 100.0);
}

static void tail_mass(char *text, size_t size, const demo_result *result, int i)
{
    snprintf(text, size, "%.1f %%", 100.0 * result->entries[i].made_usage.tail_mass);
}

static void perplexity(char *text, size_t size, const demo_result *result, int i)
{
    snprintf(text, size, "%.3f", lm_score_perplexity(&result->entries[i].score));
}

static void perplexity_ratio(char *text, size_t size, const demo_result *result, int i)
{
    const double full = lm_score_perplexity(&result->entries[DEMO_FULL].score);
    if (i != DEMO_FULL) {
        snprintf(text, size, "%+.2f %%", 100.0 * (lm_score_perplexity(&result->entries[i].score) / full - 1.0));
    }
}

static void divergence(char *text, size_t size, const demo_result *result, int i)
{
    if (i != DEMO_FULL) {
        snprintf(text, size, "%.5f", lm_mean_value(&result->entries[i].score.divergence));
    }
}

static void agreement(char *text, size_t size, const demo_result *result, int i)
{
    if (i != DEMO_FULL) {
        snprintf(text, size, "%.1f %%", 100.0 * lm_score_agreement(&result->entries[i].score));
    }
}

static void equal(char *text, size_t size, const demo_result *result, int i)
{
    if (i != DEMO_FULL) {
        snprintf(text, size, "%d of %d", result->entries[i].equal, result->count);
    }
}

const demo_row demo_rows[] = {
    { "prefill, tokens/s", prefill },
    { "  to the faster llama.cpp", prefill_ratio },
    { "decode, tokens/s", decode },
    { "  to the faster llama.cpp", decode_ratio },
    { "keys read in full, prefill", prefill_keys },
    { "keys read in full, decode", decode_keys },
    { "bytes read, decode", decode_bytes },
    { "tail mass, decode", tail_mass },
    { "perplexity", perplexity },
    { "  to llama.cpp -fa 0", perplexity_ratio },
    { "KL divergence from it", divergence },
    { "same most likely token", agreement },
    { "equal leading tokens", equal },
    { NULL, NULL },
};

static void print_row(const demo_row *row, const demo_result *result)
{
    printf("%-27s", row->label);
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        char text[32] = "";
        row->cell(text, sizeof text, result, i);
        printf(" %15s", text[0] ? text : "-");
    }
    putchar('\n');
}

static int print_continuations(const demo_result *result)
{
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        const lm_tokens *tokens = &result->entries[i].tokens;
        char *text = lm_text_of(result->model, tokens->ids, tokens->count);
        if (!text) {
            return cli_fail("out of memory");
        }
        printf("\n--- %s continues:\n%s\n", result->entries[i].name, text);
        free(text);
    }
    return CLI_OK;
}

int demo_print(const demo_result *result)
{
    printf("%s on %s, %d threads\n", lm_model_name(result->model), result->machine, result->threads);
    printf("%s: %d tokens read, perplexity and divergence over the last %d, %d more made by each\n\n", result->document,
           result->tokens, result->scored, result->count);
    printf("%-27s", "");
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        printf(" %15s", result->entries[i].name);
    }
    putchar('\n');
    for (const demo_row *row = demo_rows; row->label; row++) {
        print_row(row, result);
    }
    return print_continuations(result);
}

/* ------------------------------------------------------------------ JSON */

static int json_entry(cJSON *list, const demo_result *result, int i)
{
    const demo_entry *entry = &result->entries[i];
    cJSON *to = cli_json_object(list, NULL);
    char *text = lm_text_of(result->model, entry->tokens.ids, entry->tokens.count);
    cli_json_text(to, "attention", entry->name);
    cli_json_real(to, "prefill_tokens_per_s", lm_prefill_rate(&entry->read));
    cli_json_real(to, "prefill_ratio", demo_prefill_ratio(result, i));
    cli_json_real(to, "decode_tokens_per_s", lm_decode_rate(&entry->made));
    cli_json_real(to, "decode_ratio", demo_decode_ratio(result, i));
    cli_json_real(to, "ppl", lm_score_perplexity(&entry->score));
    cli_json_real(to, "ppl_error", lm_score_perplexity_error(&entry->score));
    if (i != DEMO_FULL) {
        lm_json_comparison(to, &entry->score);
    }
    cli_json_int(to, "equal_tokens", entry->equal);
    lm_json_usage(cli_json_object(to, "prefill"), &entry->read_usage);
    lm_json_usage(cli_json_object(to, "decode"), &entry->made_usage);
    cli_json_text(to, "text", text ? text : "");
    int code = text ? CLI_OK : cli_fail("out of memory");
    free(text);
    return code;
}

int demo_json(const demo_result *result)
{
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_text(root, "model", lm_model_name(result->model));
    cli_json_text(root, "machine", result->machine);
    cli_json_int(root, "threads", result->threads);
    cli_json_text(root, "document", result->document);
    cli_json_int(root, "tokens", result->tokens);
    cli_json_int(root, "scored", result->scored);
    cli_json_int(root, "made", result->count);
    cJSON *list = cli_json_array(root, "entries");
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        int code = json_entry(list, result, i);
        if (code != CLI_OK) {
            cJSON_Delete(root);
            return code;
        }
    }
    return cli_json_print(stdout, root);
}
