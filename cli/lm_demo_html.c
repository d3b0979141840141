/*
 * lm_demo_html.c - a demo's figures as one page: bars, a table, the four continuations.
 *
 * Invariant: the page needs nothing but itself: no script, no font, no picture from elsewhere; it follows the reader's light or
 * dark setting and is readable on a phone. All text that is not ours passes page_text().
 */
#include "lm_demo.h"
#include "page.h"

#include <stdlib.h>
#include <string.h>

static const char *const style[] = {
    ":root{--peer:#a9a397;--exact:#6f93b8;--knn:#c2571a;--mark:#ffe0a3}\n"
    "@media(prefers-color-scheme:dark){:root{--peer:#726c62;--exact:#6d97c4;--knn:#ef8a4a;--mark:#6b4a12}}\n"
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1rem}\n"
    ".peer{fill:var(--peer)}.exact{fill:var(--exact)}.knn{fill:var(--knn)}\n",
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0 0;font:14px/1.45 ui-monospace,monospace}\n"
    "mark{background:var(--mark);color:inherit;border-radius:.15rem}\n.texts{display:grid;gap:1rem}\n",
    NULL,
};

/* ------------------------------------------------------------------ text */

static int put_tokens(FILE *page, const lm_model *model, const int32_t *tokens, int count)
{
    char *text = lm_text_of(model, tokens, count);
    if (text) {
        page_text(page, text);
    }
    free(text);
    return text ? CLI_OK : cli_fail("out of memory");
}

/* ------------------------------------------------------------------ bars */

typedef struct chart {
    const char *title, *unit, *sign; /* sign: after the number */
    int digits;                      /* behind the point */
    double (*value)(const demo_result *result, int i);
} chart;

static double decode_rate(const demo_result *result, int i)
{
    return lm_decode_rate(&result->entries[i].made);
}

static double prefill_rate(const demo_result *result, int i)
{
    return lm_prefill_rate(&result->entries[i].read);
}

static double keys_percent(const demo_result *result, int i)
{
    return 100.0 * lm_usage_full(&result->entries[i].made_usage);
}

static double perplexity(const demo_result *result, int i)
{
    return lm_score_perplexity(&result->entries[i].score);
}

static const chart charts[] = {
    { "Decode", "tokens per second, more is better", "", 1, decode_rate },
    { "Prefill", "tokens per second, more is better", "", 1, prefill_rate },
    { "Keys read in full", "% of the keys a decoded token sees, less is better", " %", 1, keys_percent },
    { "Perplexity", "of the last tokens, less is better", "", 3, perplexity },
};
#define CHARTS (sizeof charts / sizeof charts[0])

static const char *const bar_class[DEMO_CONTENDERS] = { "peer", "peer", "exact", "knn" };

#define BAR_WIDTH  250.0
#define ROW_HEIGHT 40

static void put_bar(FILE *page, const chart *c, const demo_result *result, int i, double most)
{
    double value = c->value(result, i), width = most > 0.0 ? BAR_WIDTH * value / most : 0.0;
    int y = 50 + i * ROW_HEIGHT;
    fprintf(page, "<text x=\"0\" y=\"%d\">", y + 11);
    page_text(page, result->entries[i].name);
    fprintf(page, "</text><rect class=\"%s\" x=\"0\" y=\"%d\" width=\"%.1f\" height=\"14\" rx=\"2\"/>", bar_class[i], y + 16,
            width);
    fprintf(page, "<text x=\"%.1f\" y=\"%d\">%.*f%s</text>\n", width + 6.0, y + 28, c->digits, value, c->sign);
}

static void put_chart(FILE *page, const chart *c, const demo_result *result)
{
    double most = 0.0;
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        most = c->value(result, i) > most ? c->value(result, i) : most;
    }
    fprintf(page, "<figure class=\"card\"><svg viewBox=\"0 0 320 %d\" role=\"img\" aria-label=\"%s, %s\">\n",
            54 + DEMO_CONTENDERS * ROW_HEIGHT, c->title, c->unit);
    fprintf(page, "<text class=\"title\" x=\"0\" y=\"15\">%s</text><text class=\"soft\" x=\"0\" y=\"34\">%s</text>\n", c->title,
            c->unit);
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        put_bar(page, c, result, i, most);
    }
    fputs("</svg></figure>\n", page);
}

/* ------------------------------------------------------------------ parts of the page */

static double off_full(const demo_result *result, int i)
{
    return lm_score_perplexity(&result->entries[i].score) / lm_score_perplexity(&result->entries[DEMO_FULL].score) - 1.0;
}

static void put_summary(FILE *page, const demo_result *result)
{
    const demo_entry *knn = &result->entries[DEMO_KNN], *flash = &result->entries[DEMO_FLASH];
    fputs("<h1>kNN attention inside a model, on one document</h1>\n", page);
    fprintf(page,
            "<p>Behind %d tokens of context, <strong>knn</strong> decodes %.1f tokens per second, <strong>%.2f times</strong> the "
            "faster "
            "of llama.cpp's two settings. It reads %.1f %% of the keys in full and estimates the rest from block means.</p>\n",
            result->tokens, lm_decode_rate(&knn->made), demo_decode_ratio(result, DEMO_KNN),
            100.0 * lm_usage_full(&knn->made_usage));
    fprintf(
        page,
        "<p>Measured from llama.cpp -fa 0, knn's perplexity is %+.2f %% off and its first %d of %d tokens are the same. For scale: "
        "llama.cpp -fa 1, which differs from it by rounding only, is %+.2f %% off, and the first %d tokens are the same.</p>\n",
        100.0 * off_full(result, DEMO_KNN), knn->equal, result->count, 100.0 * off_full(result, DEMO_FLASH), flash->equal);
    fputs("<p class=\"soft\">Model: ", page);
    page_text(page, lm_model_name(result->model));
    fputs(". Document: ", page);
    page_text(page, result->document);
    fputs(". Machine: ", page);
    page_text(page, result->machine);
    fprintf(page, ", %d threads.</p>\n", result->threads);
}

static void put_row(FILE *page, const demo_row *row, const demo_result *result)
{
    int is_detail = row->label[0] == ' ';
    fprintf(page, "<tr%s><td>", is_detail ? " class=\"detail\"" : "");
    page_text(page, row->label);
    fputs("</td>", page);
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        char text[32] = "";
        row->cell(text, sizeof text, result, i);
        fputs("<td>", page);
        page_text(page, text[0] ? text : "–");
        fputs("</td>", page);
    }
    fputs("</tr>\n", page);
}

static void put_table(FILE *page, const demo_result *result)
{
    fputs("<h2>Figures</h2>\n<div class=\"wide\"><table>\n<thead><tr><th></th>", page);
    for (int i = 0; i < DEMO_CONTENDERS; i++) {
        fputs("<th>", page);
        page_text(page, result->entries[i].name);
        fputs("</th>", page);
    }
    fputs("</tr></thead>\n<tbody>\n", page);
    for (const demo_row *row = demo_rows; row->label; row++) {
        put_row(page, row, result);
    }
    fprintf(
        page,
        "</tbody></table></div>\n<p class=\"soft\">All figures were measured in one run. The four contexts took turns, block by "
        "block while reading and token by token while making, in rotating order. Tail mass is the share of the softmax that was "
        "estimated instead of read. Perplexity, KL divergence (in nats) and most likely tokens are over the last %d tokens of the "
        "document. Tokens made are the most likely ones; end-of-text tokens are not taken.</p>\n",
        result->scored);
}

/* Runs of tokens that the reference has at the same place are plain, others marked. */
static int put_marked(FILE *page, const lm_model *model, const lm_tokens *tokens, const lm_tokens *reference)
{
    int code = CLI_OK;
    for (int from = 0, to; code == CLI_OK && from < tokens->count; from = to) {
        int differs = from >= reference->count || tokens->ids[from] != reference->ids[from];
        for (to = from + 1; to < tokens->count && differs == (to >= reference->count || tokens->ids[to] != reference->ids[to]);) {
            to++;
        }
        fputs(differs ? "<mark>" : "", page);
        code = put_tokens(page, model, tokens->ids + from, to - from);
        fputs(differs ? "</mark>" : "", page);
    }
    return code;
}

static int put_tail(FILE *page, const char *tail)
{
    char *text = lm_clean(tail, strlen(tail));
    if (text) {
        page_text(page, text);
    }
    free(text);
    return text ? CLI_OK : cli_fail("out of memory");
}

static int put_texts(FILE *page, const demo_result *result)
{
    int code = CLI_OK;
    fputs("<h2>Continuations</h2>\n<p>The document, as read, ends with</p>\n<div class=\"card\"><pre>\n", page);
    code = put_tail(page, result->tail);
    fputs("</pre></div>\n<p>and each attention goes on. Marked: tokens other than those of llama.cpp -fa 0 at the same place.</p>\n"
          "<div class=\"texts\">\n",
          page);
    for (int i = 0; code == CLI_OK && i < DEMO_CONTENDERS; i++) {
        fputs("<div class=\"card\"><strong>", page);
        page_text(page, result->entries[i].name);
        fputs("</strong>", page);
        if (i != DEMO_FULL) {
            fprintf(page, " <span class=\"soft\">first %d of %d tokens equal</span>", result->entries[i].equal, result->count);
        }
        fputs("<pre>\n", page);
        code = put_marked(page, result->model, &result->entries[i].tokens, &result->entries[DEMO_FULL].tokens);
        fputs("</pre></div>\n", page);
    }
    fputs("</div>\n", page);
    return code;
}

int demo_html(const demo_result *result, FILE *page)
{
    page_open(page, "kNN attention on one document", style);
    put_summary(page, result);
    fputs("<h2>Side by side</h2>\n<div class=\"charts\">\n", page);
    for (size_t i = 0; i < CHARTS; i++) {
        put_chart(page, &charts[i], result);
    }
    fputs("</div>\n", page);
    put_table(page, result);
    int code = put_texts(page, result);
    page_close(page, "kna demo");
    return code;
}
