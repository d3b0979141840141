/*
 * fairness_html.c - the figures as one page: verdicts in words, bars for each method, tables.
 *
 * Invariant: colour only repeats what a number in the same place says.
 */
#include "fairness.h"
#include "page.h"

#include <inttypes.h>
#include <math.h>

static const char *const style[] = {
    ":root{--fair:#4d9a5b;--unfair:#d9702b}\n@media(prefers-color-scheme:dark){:root{--fair:#377a45;--unfair:#b85a1c}}\n"
    ".bars{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem;margin:.6rem 0}\n"
    ".fair{fill:var(--fair)}.unfair{fill:var(--unfair)}.one{stroke:var(--ink);stroke-dasharray:3 3}\n"
    "svg .number{font-size:12px;font-variant-numeric:tabular-nums}caption{text-align:left;color:var(--soft);padding:.3rem 0}\n",
    NULL,
};

typedef struct sheet {
    const fair_result *result;
    fair_figures figures[FAIR_METHODS];
} sheet;

static const char *method_of(const sheet *s, int x)
{
    return kna_method_name(s->result->methods[x]);
}

static void put_number(FILE *page, const char *format, double value)
{
    fputs("<td>", page);
    if (isnan(value)) fputs("-", page);
    else fprintf(page, format, value + 0.0);
    fputs("</td>", page);
}

/* ------------------------------------------------------------------ words */

/* A group as it is spoken of, what being "keys" or "tokens": "keys 0-1023", "keys of a.txt", "frequent tokens". */
static void put_group(FILE *page, const fair_groups *g, int group, const char *what)
{
    static const char *const between[] = { " of ", " ", "", " of group " };
    if (g->by != FAIR_BY_FREQUENCY) fprintf(page, "%s%s", what, between[g->by]);
    page_text(page, g->names[group]);
    if (g->by == FAIR_BY_FREQUENCY) fputs(" tokens", page);
}

static void put_masses(FILE *page, const sheet *s, int x)
{
    const fair_figures *f = &s->figures[x];
    const int passes = fair_passes(f);
    fprintf(page, "<p><strong>%s</strong> ", method_of(s, x));
    if (passes < 0) {
        fputs("cannot be judged: fewer than two groups have a ten-thousandth of the attention or more.", page);
        return;
    }
    fprintf(page, "<strong>%s</strong> the four-fifths rule: ", passes ? "passes" : "fails");
    if (f->impact > 0.9995) {
        fputs("every group gets the share that full attention gives it, to a thousandth.", page);
        return;
    }
    put_group(page, s->result->groups, f->least, "keys");
    fprintf(page, " %s %.3f times the attention that full attention gives them, ", passes ? "get" : "get only", f->ratio[f->least]);
    put_group(page, s->result->groups, f->most, "keys");
    fprintf(page, " %.3f times; the one is %.3f of the other.", f->ratio[f->most], f->impact);
}

/* Which groups' tokens cost more, beyond doubt, and which most. */
static void put_costs(FILE *page, const sheet *s, int x)
{
    const fair_loss *loss = &s->result->loss[x];
    int most = -1, least = -1;
    for (int i = 0; i < s->result->groups->count && loss->is_known; i++) {
        if (isnan(loss->added[i].low)) continue;
        if (most < 0 || loss->added[i].value > loss->added[most].value) most = i;
        if (least < 0 || loss->added[i].value < loss->added[least].value) least = i;
    }
    if (most < 0 || most == least) return;
    fputs(" Inside the model, ", page);
    put_group(page, s->result->groups, most, "tokens");
    fprintf(page, " cost %+.4f nats each (%+.4f to %+.4f), ", loss->added[most].value, loss->added[most].low, loss->added[most].high);
    put_group(page, s->result->groups, least, "tokens");
    fprintf(page, " %+.4f (%+.4f to %+.4f)%s", loss->added[least].value, loss->added[least].low, loss->added[least].high,
            loss->added[most].low > loss->added[least].high ? ": more than chance." : "; the intervals overlap.");
}

static void put_summary(FILE *page, const sheet *s)
{
    static const char *const what[] = { "the document they are from", "their position in the text", "how frequent their token is in it", "the labels given" };
    const fair_result *r = s->result;
    fputs("<h1>What approximate attention does to groups of keys</h1>\n<p>Every method was given the same queries, keys and values as full "
          "attention. Keys are grouped by ", page);
    fprintf(page, "%s. A method that is fair gives each group the share of the attention that full attention gives it; by the four-fifths rule "
                  "the group worst off must get at least 0.8 of what the group best off gets, each compared with its own share.</p>\n",
            what[r->groups->by]);
    for (int x = 0; x < r->method_count; x++) {
        put_masses(page, s, x);
        put_costs(page, s, x);
        fputs("</p>\n", page);
    }
    fprintf(page, "<p class=\"soft\">%s%" PRId64 " keys, %" PRId64 " queries of each head; ", r->model ? "Tokens of a text: " : "", r->groups->n, r->queries);
    if (r->model) {
        fputs("model ", page);
        page_text(page, r->model);
        fprintf(page, ", %s", r->layer_count > 1 ? "layers" : "layer");
        for (int i = 0; i < r->layer_count; i++) fprintf(page, "%s %d", i ? "," : "", r->layers[i].number);
    } else {
        fputs("operands on files", page);
    }
    fputs(".</p>\n", page);
}

/* ------------------------------------------------------------------ bars */

enum { LEFT = 130, WIDTH = 420, RIGHT = 50, TOP = 30, STEP = 20 };

static double largest_ratio(const sheet *s)
{
    double most = 1.25;
    for (int x = 0; x < s->result->method_count; x++)
        if (s->figures[x].most >= 0) most = fmax(most, s->figures[x].ratio[s->figures[x].most]);
    return most;
}

static void put_bar(FILE *page, const sheet *s, int x, int group, double scale)
{
    const fair_figures *f = &s->figures[x];
    const double ratio = f->ratio[group];
    const int y = TOP + group * STEP;
    char name[21];
    fprintf(page, "<text class=\"soft\" x=\"%d\" y=\"%d\" text-anchor=\"end\">", LEFT - 6, y + 14);
    fair_name(name, sizeof name, s->result->groups->names[group]);
    page_text(page, name);
    fputs("</text>", page);
    if (!isnan(ratio))
        fprintf(page, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>", ratio >= 0.8 && ratio <= 1.25 ? "fair" : "unfair", LEFT,
                y + 3, ratio * scale, STEP - 5);
    fprintf(page, "<text class=\"number\" x=\"%.1f\" y=\"%d\">", LEFT + (isnan(ratio) ? 0 : ratio * scale) + 5, y + 14);
    if (isnan(ratio)) fprintf(page, "%s</text>\n", s->result->groups->keys[group] ? "next to no attention" : "no keys");
    else fprintf(page, "%.3f</text>\n", ratio);
}

static void put_bars(FILE *page, const sheet *s, int x)
{
    const int groups = s->result->groups->count;
    const double scale = (WIDTH - LEFT - RIGHT) / largest_ratio(s);
    fprintf(page, "<figure class=\"card\"><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"ratio of attention by group, %s\">\n", WIDTH,
            TOP + groups * STEP + 4, method_of(s, x));
    fprintf(page, "<text class=\"title\" x=\"0\" y=\"15\">%s</text>\n", method_of(s, x));
    fprintf(page, "<path class=\"one\" d=\"M%.1f %dV%d\"/>\n", LEFT + scale, TOP - 2, TOP + groups * STEP);
    for (int i = 0; i < groups; i++) put_bar(page, s, x, i, scale);
    fputs("</svg></figure>\n", page);
}

/* ------------------------------------------------------------------ tables */

static void open_table(FILE *page, const char *title, const char *caption, const char *first)
{
    fprintf(page, "<h2>%s</h2>\n<div class=\"wide\"><table>\n<caption>%s</caption>\n<thead><tr><th>%s</th>", title, caption, first);
}

static void close_table(FILE *page)
{
    fputs("</tbody></table></div>\n", page);
}

static void put_group_cell(FILE *page, const sheet *s, int group)
{
    fputs("<tr><td>", page);
    page_text(page, s->result->groups->names[group]);
    fputs("</td>", page);
}

static void put_groups(FILE *page, const sheet *s)
{
    const fair_result *r = s->result;
    open_table(page, "Groups",
               "Ratio: the group's share of the attention over that under full attention. In full: the part of its full share that lies in keys read in "
               "full. Error: the mean distance of the outputs of queries on the group's tokens from full attention, over the length of the values.",
               "group");
    fputs("<th>keys</th><th>full share</th>", page);
    for (int x = 0; x < r->method_count; x++) fprintf(page, "<th>%s: ratio</th><th>in full</th><th>error</th>", method_of(s, x));
    fputs("</tr></thead>\n<tbody>\n", page);
    for (int i = 0; i < r->groups->count; i++) {
        put_group_cell(page, s, i);
        fprintf(page, "<td>%" PRId64 "</td>", r->groups->keys[i]);
        put_number(page, "%.4f", r->all.full.mass[i] / r->all.full.rows);
        for (int x = 0; x < r->method_count; x++) {
            put_number(page, "%.3f", s->figures[x].ratio[i]);
            put_number(page, "%.3f", s->figures[x].recall[i]);
            put_number(page, "%.4f", s->figures[x].error[i]);
        }
        fputs("</tr>\n", page);
    }
    close_table(page);
}

static void put_methods(FILE *page, const sheet *s)
{
    open_table(page, "Methods",
               "Impact: the least ratio over the largest. Parity gap: the largest difference of shares. Variation: half their sum. Error ratio: the "
               "largest error of a group over the least; none where a group is read exactly.",
               "method");
    fputs("<th>impact</th><th>four-fifths rule</th><th>parity gap</th><th>variation</th><th>error ratio</th></tr></thead>\n<tbody>\n", page);
    for (int x = 0; x < s->result->method_count; x++) {
        const fair_figures *f = &s->figures[x];
        fprintf(page, "<tr><td>%s</td>", method_of(s, x));
        put_number(page, "%.3f", f->impact);
        fprintf(page, "<td>%s</td>", fair_passes(f) < 0 ? "-" : fair_passes(f) ? "passes" : "fails");
        put_number(page, "%.4f", f->gap);
        put_number(page, "%.4f", f->variation);
        put_number(page, "%.2f", f->error_ratio);
        fputs("</tr>\n", page);
    }
    close_table(page);
}

static void put_layers(FILE *page, const sheet *s)
{
    const fair_result *r = s->result;
    if (r->layer_count < 2) return;
    open_table(page, "Layers", "Impact within each layer alone; below 0.8 fails the four-fifths rule.", "layer");
    for (int x = 0; x < r->method_count; x++) fprintf(page, "<th>%s</th>", method_of(s, x));
    fputs("</tr></thead>\n<tbody>\n", page);
    for (int i = 0; i < r->layer_count; i++) {
        fprintf(page, "<tr><td>%d</td>", r->layers[i].number);
        for (int x = 0; x < r->method_count; x++) {
            fair_figures f;
            fair_figures_of(&f, &r->layers[i], x, r->groups->count);
            put_number(page, "%.3f", f.impact);
        }
        fputs("</tr>\n", page);
    }
    close_table(page);
}

static void put_loss(FILE *page, const sheet *s, int x)
{
    const fair_loss *loss = &s->result->loss[x];
    char title[64];
    if (!loss->is_known) return;
    snprintf(title, sizeof title, "Loss of tokens, %s", method_of(s, x));
    open_table(page, title, "Mean negative log-probability, in nats, with full attention, and what the method inside the model adds to it, token by token. "
                            "In parentheses: 95 % interval, resampled by blocks of 64 tokens.", "group of the token");
    fputs("<th>tokens</th><th>full</th><th>added</th></tr></thead>\n<tbody>\n", page);
    for (int i = 0; i < s->result->groups->count; i++) {
        const fair_interval *added = &loss->added[i];
        put_group_cell(page, s, i);
        fprintf(page, "<td>%" PRId64 "</td>", loss->tokens[i]);
        put_number(page, "%.4f", loss->full[i]);
        if (isnan(added->value)) fputs("<td>-</td></tr>\n", page);
        else if (isnan(added->low)) fprintf(page, "<td>%+.4f (-)</td></tr>\n", added->value);
        else fprintf(page, "<td>%+.4f (%+.4f .. %+.4f)</td></tr>\n", added->value, added->low, added->high);
    }
    close_table(page);
}

int fair_html(const void *result, FILE *page)
{
    sheet s = { .result = result };
    for (int x = 0; x < s.result->method_count; x++) fair_figures_of(&s.figures[x], &s.result->all, x, s.result->groups->count);
    page_open(page, "What approximate attention does to groups of keys", style);
    put_summary(page, &s);
    fputs("<h2>Share of the attention, as a ratio to full attention</h2>\n<p class=\"soft\">Dashed: one, what full attention gives. Another colour: below 0.8 or "
          "above 1.25 times that.</p>\n<div class=\"bars\">\n",
          page);
    for (int x = 0; x < s.result->method_count; x++) put_bars(page, &s, x);
    fputs("</div>\n", page);
    put_methods(page, &s);
    put_groups(page, &s);
    put_layers(page, &s);
    for (int x = 0; x < s.result->method_count; x++) put_loss(page, &s, x);
    page_close(page, "kna fairness");
    return CLI_OK;
}
