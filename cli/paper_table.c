/* paper_table.c - tables as CSV, as SVG and in words; and what all experiments use. See paper.h. */
#include "paper.h"

#include "random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

paper_row *paper_add(paper_table *table, const char *series)
{
    if (table->count == table->room) {
        const int room = table->room ? 2 * table->room : 64;
        paper_row *rows = realloc(table->rows, (size_t)room * sizeof *rows);
        if (!rows) {
            cli_fail("out of memory: a table of %d rows", room);
            return NULL;
        }
        table->rows = rows;
        table->room = room;
    }
    paper_row *row = &table->rows[table->count++];
    memset(row, 0, sizeof *row);
    snprintf(row->series, sizeof row->series, "%s", series);
    return row;
}

void paper_free(paper_table *table)
{
    free(table->rows);
}

static uint64_t mix(uint64_t x)
{
    return cli_mix(x + CLI_GOLDEN);
}

double paper_uniform(uint64_t seed, uint64_t stream, uint64_t position)
{
    return ((double)(mix(mix(mix(seed) ^ stream) ^ position) >> 11) + 0.5) * 0x1p-53;
}

double paper_normal(uint64_t seed, uint64_t stream, uint64_t position)
{
    return sqrt(-2 * log(paper_uniform(seed, stream, 2 * position))) * cos(2 * acos(-1) * paper_uniform(seed, stream, 2 * position + 1));
}

double paper_distance(const float *x, const float *y, int64_t n)
{
    double off = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)x[i] - (double)y[i];
        off += d * d;
        norm += (double)y[i] * (double)y[i];
    }
    return norm > 0 ? sqrt(off / norm) : sqrt(off);
}

double paper_power(const paper_table *table, const char *series, int x, int y, double *at_one)
{
    double count = 0, a = 0, b = 0, aa = 0, ab = 0;
    for (int i = 0; i < table->count; i++) {
        const double *values = table->rows[i].values;
        if (strcmp(table->rows[i].series, series) != 0 || isnan(values[y])) continue;
        const double u = log(values[x]), w = log(values[y]);
        count++, a += u, b += w, aa += u * u, ab += u * w;
    }
    const double power = count > 1 ? (count * ab - a * b) / (count * aa - a * a) : NAN;
    *at_one = exp((b - power * a) / count);
    return power;
}

/* ------------------------------------------------------------------ CSV and words */

static FILE *open_in(const char *folder, const char *name, const char *ending)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s.%s", folder, name, ending) >= (int)sizeof path) {
        cli_refuse("%s: too long", folder);
        return NULL;
    }
    return cli_output_open(path);
}

static void write_csv(const paper_table *table, FILE *to)
{
    fprintf(to, "series");
    for (int c = 0; table->columns[c]; c++) fprintf(to, ",%s", table->columns[c]);
    fprintf(to, ",note\n");
    for (int i = 0; i < table->count; i++) {
        fprintf(to, "\"%s\"", table->rows[i].series);
        for (int c = 0; table->columns[c]; c++) {
            if (isnan(table->rows[i].values[c])) fprintf(to, ",");
            else fprintf(to, ",%.6g", table->rows[i].values[c]);
        }
        fprintf(to, ",%s\n", table->rows[i].note ? table->rows[i].note : "");
    }
}

static void print_words(const paper_table *table)
{
    printf("%s\n\n  %-28s", table->title, "");
    for (int c = 0; table->columns[c]; c++) printf(" %12s", table->columns[c]);
    printf("\n");
    for (int i = 0; i < table->count; i++) {
        printf("  %-28s", table->rows[i].series);
        for (int c = 0; table->columns[c]; c++) {
            if (isnan(table->rows[i].values[c])) printf(" %12s", "-");
            else printf(" %12.4g", table->rows[i].values[c]);
        }
        printf("%s%s\n", table->rows[i].note ? "  " : "", table->rows[i].note ? table->rows[i].note : "");
    }
    printf("\n");
}

/* ------------------------------------------------------------------ SVG */

enum { WIDTH = 760, HEIGHT = 440, LINE = 16, LEFT = 80, RIGHT = 210, TOP = 40, BOTTOM = 50, COLOURS = 8 };

static const char *const colours[COLOURS] = { "#1f6feb", "#c8285a", "#2a8f3c", "#b26a00", "#7a3fb5", "#00808a", "#555555", "#d4a000" };

typedef struct frame {
    double x_low, x_high, y_low, y_high;
} frame;

static int is_drawn(const paper_table *table, const paper_row *row)
{
    return !row->is_hidden && !isnan(row->values[table->y]);
}

/* Whether row i is the first of its series that is drawn. */
static int is_first(const paper_table *table, int i)
{
    for (int j = 0; j < i; j++) {
        if (is_drawn(table, &table->rows[j]) && strcmp(table->rows[j].series, table->rows[i].series) == 0) return 0;
    }
    return is_drawn(table, &table->rows[i]);
}

static double x_of(const paper_table *table, const paper_row *row)
{
    const double x = row->values[table->x];
    return table->x_is_linear ? x : log10(x);
}

/* Zeros have no logarithm: they stand at the foot of the picture. */
static double y_of(const paper_table *table, const paper_row *row)
{
    return log10(fmax(row->values[table->y], 1e-9));
}

static frame frame_of(const paper_table *table)
{
    frame f = { INFINITY, -INFINITY, INFINITY, -INFINITY };
    for (int i = 0; i < table->count; i++) {
        if (!is_drawn(table, &table->rows[i])) continue;
        f.x_low = fmin(f.x_low, x_of(table, &table->rows[i]));
        f.x_high = fmax(f.x_high, x_of(table, &table->rows[i]));
        f.y_low = fmin(f.y_low, floor(y_of(table, &table->rows[i])));
        f.y_high = fmax(f.y_high, ceil(y_of(table, &table->rows[i])));
    }
    if (!(f.x_high > f.x_low)) f.x_high = f.x_low + 1;
    if (!(f.y_high > f.y_low)) f.y_high = f.y_low + 1;
    return f;
}

static double across(const frame *f, double x)
{
    return LEFT + (x - f->x_low) / (f->x_high - f->x_low) * (WIDTH - LEFT - RIGHT);
}

static double down(const frame *f, double y)
{
    return TOP + (f->y_high - y) / (f->y_high - f->y_low) * (HEIGHT - TOP - BOTTOM);
}

static void draw_axes(const paper_table *table, const frame *f, FILE *to)
{
    fprintf(to, "<text x=\"%d\" y=\"20\" font-size=\"14\">%s</text>\n", LEFT, table->title);
    for (double y = f->y_low; y <= f->y_high; y++) {
        fprintf(to, "<path d=\"M%d %.1fH%d\" stroke=\"#dddddd\"/>\n", LEFT, down(f, y), WIDTH - RIGHT);
        fprintf(to, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", LEFT - 8, down(f, y) + 4, pow(10, y));
    }
    for (int i = 0; i < table->count; i++) {
        const double x = across(f, x_of(table, &table->rows[i]));
        int has_room = is_drawn(table, &table->rows[i]);
        for (int j = 0; j < i; j++) {
            has_room &= !is_drawn(table, &table->rows[j]) || fabs(across(f, x_of(table, &table->rows[j])) - x) > 40;
        }
        if (!has_room) continue;
        fprintf(to, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.4g</text>\n", x, HEIGHT - BOTTOM + 18, table->rows[i].values[table->x]);
    }
    fprintf(to, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, table->columns[table->x]);
    fprintf(to, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", LEFT - 8, TOP - 8, table->columns[table->y]);
}

/* A series from its first row on; its name in a list at the right. */
static void draw_series(const paper_table *table, const frame *f, int first, int number, FILE *to)
{
    const char *name = table->rows[first].series, *colour = colours[number % COLOURS];
    fprintf(to, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\"%s d=\"", colour, number < COLOURS ? "" : " stroke-dasharray=\"4 3\"");
    for (int i = first; i < table->count; i++) {
        if (!is_drawn(table, &table->rows[i]) || strcmp(table->rows[i].series, name) != 0) continue;
        fprintf(to, "%c%.1f %.1f", i == first ? 'M' : 'L', across(f, x_of(table, &table->rows[i])), down(f, y_of(table, &table->rows[i])));
    }
    fprintf(to, "\"/>\n<text x=\"%d\" y=\"%d\" fill=\"%s\">%s</text>\n", WIDTH - RIGHT + 12, TOP + 8 + LINE * number, colour, name);
}

static void write_svg(const paper_table *table, FILE *to)
{
    const frame f = frame_of(table);
    int number = 0, names = 0;
    for (int i = 0; i < table->count; i++) names += is_first(table, i);
    const int height = TOP + LINE * (names + 1) > HEIGHT ? TOP + LINE * (names + 1) : HEIGHT;
    fprintf(to, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\">\n", WIDTH, height);
    fprintf(to, "<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n", WIDTH, height);
    draw_axes(table, &f, to);
    for (int i = 0; i < table->count; i++) {
        if (is_first(table, i)) draw_series(table, &f, i, number++, to);
    }
    fprintf(to, "</svg>\n");
}

int paper_write(const paper_table *table, const char *folder)
{
    FILE *csv = open_in(folder, table->name, "csv");
    if (!csv) return CLI_FAILED;
    write_csv(table, csv);
    if (cli_output_finish() != CLI_OK) return CLI_FAILED;
    if (table->x < 0) {
        print_words(table);
        return CLI_OK;
    }
    FILE *svg = open_in(folder, table->name, "svg");
    if (!svg) return CLI_FAILED;
    write_svg(table, svg);
    print_words(table);
    return cli_output_finish();
}
