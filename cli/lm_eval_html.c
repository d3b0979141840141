/*
 * lm_eval_html.c - an evaluation's figures as one page: tables, and for each task heat maps of length x depth.
 *
 * Invariant: colour only repeats what a number in the same place says; it is one hue of varying opacity, so that it reads on light
 * and on dark.
 */
#include "lm_eval.h"
#include "page.h"

#include <math.h>
#include <string.h>

static const char *const style[] = {
    ":root{--hue:#5b8fc7;--worse:#d9702b;--better:#4d9a5b}\n"
    "@media(prefers-color-scheme:dark){:root{--hue:#3f74ad;--worse:#b85a1c;--better:#377a45}}\n"
    ".maps{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:1rem;margin:.6rem 0}\n"
    ".hue{fill:var(--hue)}.worse{fill:var(--worse)}.better{fill:var(--better)}.frame{fill:none;stroke:var(--line)}\n"
    "svg .cell{text-anchor:middle;font-size:12px;font-variant-numeric:tabular-nums}\n"
    "svg .axis{fill:var(--soft);font-size:11px}svg .right{text-anchor:end}svg .middle{text-anchor:middle}\n"
    "caption{text-align:left;color:var(--soft);padding:.3rem 0}h3{font-size:1rem;margin:1.6rem 0 .3rem}\n",
    NULL,
};

static const char *const measure_titles[LM_MEASURES] = {
    [LM_MATCH] = "match",
    [LM_ACCURACY] = "accuracy",
    [LM_LOGPROB] = "log-probability",
};

static const char *const task_words[LM_TASK_COUNT] = {
    [LM_TASK_PASSKEY] = "One five-digit number hidden in real text, asked for at the end.",
    [LM_TASK_NEEDLES] = "Seven-digit numbers under two-word names, hidden in real text; one of them is asked for.",
    [LM_TASK_KV] = "A JSON object of random keys and values; the value of one key is asked for.",
    [LM_TASK_REPEAT] = "Passages of made-up words in real text; one of them is to be copied word for word.",
    [LM_TASK_TRACKING] =
        "Two chains of variables, each assigned the one before it, scattered over real text: which have this value?",
    [LM_TASK_COMMON] = "A list of words, five of them far more often than all others: which?",
    [LM_TASK_FREQUENT] = "A text in made-up words of falling frequency: which three lead?",
};

/* ------------------------------------------------------------------ tables */

static void put_header(FILE *page, const char *const *cells)
{
    fputs("<thead><tr>", page);
    for (; *cells; cells++) {
        fputs("<th>", page);
        page_text(page, *cells);
        fputs("</th>", page);
    }
    fputs("</tr></thead>\n<tbody>\n", page);
}

/* The interval stands below the value, so that many columns fit. */
static void put_interval(FILE *page, const lm_interval *interval, const eval_format *format)
{
    char text[128];
    eval_write(text, sizeof text, interval, format);
    char *range = strchr(text, '(');
    range[-1] = '\0';
    fprintf(page, "<td>%s<br><span class=\"soft\">%s</span></td>", text, range);
}

static void put_texts(FILE *page, const eval_result *result)
{
    const char *const header[] = { "",           "tokens scored", "perplexity, full", "perplexity",
                                   "difference", "KL divergence", "same top token",   NULL };
    if (result->text_count == 0) {
        return;
    }
    fprintf(page, "<h2>Texts</h2>\n<div class=\"wide\"><table>\n<caption>Windows of %d tokens, the second half of each is scored.",
            result->context);
    fputs(" In parentheses: 95 % interval, resampled by blocks of 64 tokens. Divergence in nats.</caption>\n", page);
    put_header(page, header);
    for (int i = 0; i < result->text_count; i++) {
        const eval_text *text = &result->texts[i];
        fputs("<tr><td>", page);
        page_text(page, text->name);
        fprintf(page, "</td><td>%lld</td><td>%.3f</td><td>%.3f</td>", (long long)text->tokens, text->ppl[EVAL_FULL],
                text->ppl[EVAL_CHOSEN]);
        put_interval(page, &text->ppl_ratio, &eval_as_change);
        put_interval(page, &text->divergence, &eval_as_divergence);
        put_interval(page, &text->agreement, &eval_as_share);
        fputs("</tr>\n", page);
    }
    fputs("</tbody></table></div>\n", page);
}

static int put_task_row(FILE *page, const eval_result *result, int task)
{
    eval_figure figure;
    fprintf(page, "<tr><td>%s</td>", task >= 0 ? lm_task_names[result->tasks[task].task] : "all");
    for (int m = 0; m < LM_MEASURES; m++) {
        if (eval_figure_of(&figure, result, (eval_choice){ task, -1, -1 }, m) != LM_OK) {
            return cli_fail("out of memory");
        }
        if (m == 0) {
            fprintf(page, "<td>%d</td>", figure.questions);
        }
        fprintf(page, "<td>%.3f</td><td>%.3f</td>", figure.means[EVAL_FULL], figure.means[EVAL_CHOSEN]);
        put_interval(page, &figure.difference, &eval_as_difference);
    }
    fputs("</tr>\n", page);
    return CLI_OK;
}

static int put_task_table(FILE *page, const eval_result *result)
{
    const char *const header[] = {
        "",         "asked",      "match, full",           "match",           "difference", "accuracy, full",
        "accuracy", "difference", "log-probability, full", "log-probability", "difference", NULL
    };
    int code = CLI_OK;
    fputs(
        "<h2>Tasks</h2>\n<p class=\"soft\">Match: what the model says by itself is the right answer; of a set of words, the share "
        "of them that it says. Accuracy: share of the right answer's tokens that are the most likely one, the right ones before "
        "given. Log-probability: mean over those tokens. A small model fails many tasks with any attention; the difference is what "
        "counts.</p>\n<div class=\"wide\"><table>\n<caption>All lengths and depths together. In parentheses: 95 % interval, "
        "resampled by prompts; from less than about six prompts it is an indication.</caption>\n",
        page);
    put_header(page, header);
    for (int t = 0; code == CLI_OK && t < result->task_count; t++) {
        code = put_task_row(page, result, t);
    }
    if (code == CLI_OK && result->task_count > 1) {
        code = put_task_row(page, result, -1);
    }
    fputs("</tbody></table></div>\n", page);
    return code;
}

/* ------------------------------------------------------------------ heat maps */

enum { LEFT = 46, TOP = 44, CELL_WIDTH = 62, CELL_HEIGHT = 32 };

typedef struct map {
    const eval_result *result;
    int task, measure;
    int shown; /* EVAL_FULL, EVAL_CHOSEN, or EVAL_SESSIONS: their difference */
} map;

/* 0..1: full colour is certainty, or a difference of 0.2 in a share, of 1 nat in a log-probability. */
static double strength(const map *m, double value)
{
    double full = m->measure == LM_LOGPROB ? 1.0 : 0.2;
    double share = m->shown == EVAL_SESSIONS ? fabs(value) / full : (m->measure == LM_LOGPROB ? exp(value) : value);
    return share < 1.0 ? share : 1.0;
}

static void put_cell(FILE *page, const map *m, int column, int row, double figure)
{
    const double value = figure + 0.0; /* no "-0" */
    const char *hue = m->shown != EVAL_SESSIONS ? "hue" : (value < 0.0 ? "worse" : "better");
    int x = LEFT + column * CELL_WIDTH, y = TOP + row * CELL_HEIGHT;
    fprintf(page, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill-opacity=\"%.3f\"/>", hue, x + 1, y + 1,
            CELL_WIDTH - 2, CELL_HEIGHT - 2, 0.9 * strength(m, value));
    fprintf(page, "<text class=\"cell\" x=\"%d\" y=\"%d\">%s%.3f</text>\n", x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2 + 4,
            m->shown == EVAL_SESSIONS && value >= 0.0 ? "+" : "", value);
}

static int put_cells(FILE *page, const map *m, int rows)
{
    for (int i = 0; i < rows * m->result->length_count; i++) {
        int row = i / m->result->length_count, column = i % m->result->length_count;
        eval_figure figure;
        if (eval_figure_of(&figure, m->result, (eval_choice){ m->task, column, row }, m->measure) != LM_OK) {
            return cli_fail("out of memory");
        }
        put_cell(page, m, column, row, m->shown == EVAL_SESSIONS ? figure.difference.value : figure.means[m->shown]);
    }
    return CLI_OK;
}

static void put_axes(FILE *page, const map *m, int rows)
{
    const eval_result *result = m->result;
    int has_depth = lm_task_has_depth(result->tasks[m->task].task);
    for (int l = 0; l < result->length_count; l++) {
        fprintf(page, "<text class=\"axis middle\" x=\"%d\" y=\"%d\">%d</text>", LEFT + l * CELL_WIDTH + CELL_WIDTH / 2, TOP - 6,
                result->lengths[l]);
    }
    for (int d = 0; d < rows; d++) {
        int y = TOP + d * CELL_HEIGHT + CELL_HEIGHT / 2 + 4;
        if (has_depth) {
            fprintf(page, "<text class=\"axis right\" x=\"%d\" y=\"%d\">%d %%</text>", LEFT - 6, y, result->depths[d]);
        } else {
            fprintf(page, "<text class=\"axis right\" x=\"%d\" y=\"%d\">all</text>", LEFT - 6, y);
        }
    }
    fputs("\n", page);
}

static int put_map(FILE *page, const map *m)
{
    const eval_result *result = m->result;
    const char *name = m->shown == EVAL_SESSIONS ? "difference" : result->names[m->shown];
    int rows = result->tasks[m->task].depths, width = LEFT + CELL_WIDTH * result->length_count;
    fprintf(page, "<figure class=\"card\"><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s, %s of %s\">\n",
            width < 250 ? 250 : width, TOP + rows * CELL_HEIGHT + 4, lm_task_names[result->tasks[m->task].task],
            measure_titles[m->measure], name);
    fprintf(page, "<text class=\"title\" x=\"0\" y=\"15\">%s, %s</text>\n", measure_titles[m->measure], name);
    put_axes(page, m, rows);
    int code = put_cells(page, m, rows);
    fputs("</svg></figure>\n", page);
    return code;
}

static int put_task_maps(FILE *page, const eval_result *result, int task)
{
    static const int shown[] = { LM_ACCURACY, LM_LOGPROB };
    int id = result->tasks[task].task, code = CLI_OK;
    fprintf(page, "<h3>%s</h3>\n<p class=\"soft\">%s Columns: tokens of the prompt. Rows: %s</p>\n<div class=\"maps\">\n",
            lm_task_names[id], task_words[id],
            lm_task_has_depth(id) ? "where in it the answer lies." : "one, the answer lies everywhere.");
    for (int i = 0; code == CLI_OK && i < 6; i++) {
        const map m = { result, task, shown[i / 3], i % 3 };
        code = put_map(page, &m);
    }
    fputs("</div>\n", page);
    return code;
}

/* ------------------------------------------------------------------ page */

static void put_summary(FILE *page, const eval_result *result)
{
    const lm_usage *usage = &result->usage[EVAL_CHOSEN];
    fputs("<h1>What the attention ", page);
    page_text(page, result->names[EVAL_CHOSEN]);
    fputs(" costs a model</h1>\n<p>Every text and every question was read by both, token for token the same: <strong>", page);
    page_text(page, result->names[EVAL_CHOSEN]);
    fputs("</strong> and full attention, <strong>", page);
    page_text(page, result->names[EVAL_FULL]);
    fputs("</strong>. Differences are the first less the second.", page);
    if (usage->rows > 0) {
        fprintf(page, " It read %.1f %% of the keys in full; %.1f %% of the softmax was estimated or dropped.",
                100.0 * lm_usage_full(usage), 100.0 * usage->tail_mass);
    }
    fputs("</p>\n<p class=\"soft\">Model: ", page);
    page_text(page, result->model);
    fputs(". Machine: ", page);
    page_text(page, result->machine);
    fprintf(page, ". Threads: %d. Seed: %llu. Prompts of each length: %d.</p>\n", result->threads, (unsigned long long)result->seed,
            result->samples);
}

int eval_html(const eval_result *result, FILE *page)
{
    int code = CLI_OK;
    page_open(page, "What an attention costs a model", style);
    put_summary(page, result);
    put_texts(page, result);
    if (result->task_count > 0) {
        code = put_task_table(page, result);
        fputs("<h2>Length and depth</h2>\n", page);
    }
    for (int t = 0; code == CLI_OK && t < result->task_count; t++) {
        code = put_task_maps(page, result, t);
    }
    page_close(page, "kna eval");
    return code;
}
