/*
 * bench_draw.c - times of a bench against n, both axes logarithmic, so that a power of n is a straight line. Each line is named at its
 * right end, with the power that fits it.
 */
#include <math.h>

#include "bench_print.h"
#include "page.h"

enum { WIDTH = 720, HEIGHT = 420, LEFT = 70, RIGHT = 130, TOP = 24, BOTTOM = 48 };

static const char *const colours[BENCH_CONTENDERS] = { "#777777", "#1f6feb", "#b26a00", "#c8285a" };

typedef struct frame {
    double n_low, n_high, ms_low, ms_high; /* logarithms; of times whole powers of ten */
} frame;

static double log_ms(const bench_cell *cell, int who)
{
    return log10(1e3 * cell->results[who].median_s);
}

static frame frame_of(const bench_run *run)
{
    frame f = { INFINITY, -INFINITY, INFINITY, -INFINITY };
    for (int i = 0; i < run->cell_count; i++) {
        const bench_cell *cell = &run->cells[i];
        f.n_low = fmin(f.n_low, log10((double)cell->plan.shape.n));
        f.n_high = fmax(f.n_high, log10((double)cell->plan.shape.n));
        for (int who = 0; who < BENCH_CONTENDERS; who++) {
            if (!cell->plan.enabled[who]) continue;
            f.ms_low = fmin(f.ms_low, floor(log_ms(cell, who)));
            f.ms_high = fmax(f.ms_high, ceil(log_ms(cell, who)));
        }
    }
    if (f.n_high <= f.n_low) f.n_high = f.n_low + 1;
    if (f.ms_high <= f.ms_low) f.ms_high = f.ms_low + 1;
    return f;
}

static double across(const frame *f, double log_n)
{
    return LEFT + (log_n - f->n_low) / (f->n_high - f->n_low) * (WIDTH - LEFT - RIGHT);
}

static double down(const frame *f, double log_time)
{
    return TOP + (f->ms_high - log_time) / (f->ms_high - f->ms_low) * (HEIGHT - TOP - BOTTOM);
}

static void draw_axes(const bench_run *run, const frame *f, FILE *to)
{
    for (double power = f->ms_low; power <= f->ms_high; power++) {
        const double y = down(f, power);
        fprintf(to, "<path d=\"M%d %.1fH%d\" stroke=\"#dddddd\"/>\n", LEFT, y, WIDTH - RIGHT);
        fprintf(to, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g ms</text>\n", LEFT - 8, y + 4, pow(10, power));
    }
    for (int i = 0; i < run->cell_count; i++) {
        const long long n = (long long)run->cells[i].plan.shape.n;
        const double x = across(f, log10((double)n));
        fprintf(to, "<path d=\"M%.1f %dV%d\" stroke=\"#eeeeee\"/>\n", x, TOP, HEIGHT - BOTTOM);
        const int in_k = n % 1024 == 0;
        fprintf(to, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%lld%s</text>\n", x, HEIGHT - BOTTOM + 18, in_k ? n / 1024 : n,
                in_k ? "K" : "");
    }
    fprintf(to, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">keys</text>\n", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8);
}

static void draw_line(const bench_run *run, const frame *f, int who, FILE *to)
{
    double x = 0, y = 0;
    fprintf(to, "<path fill=\"none\" stroke-width=\"2\" stroke=\"%s\" d=\"", colours[who]);
    for (int i = 0; i < run->cell_count; i++) {
        x = across(f, log10((double)run->cells[i].plan.shape.n));
        y = down(f, log_ms(&run->cells[i], who));
        fprintf(to, "%s%.1f %.1f", i ? "L" : "M", x, y);
    }
    fprintf(to, "\"/>\n<text x=\"%.1f\" y=\"%.1f\" fill=\"%s\">%s", x + 8, y + 4, colours[who], bench_names[who]);
    if (isfinite(bench_growth(run, who))) fprintf(to, ", n^%.2f", bench_growth(run, who));
    fputs("</text>\n", to);
}

static int draw(const void *result, FILE *to)
{
    const bench_run *run = result;
    const frame f = frame_of(run);
    fprintf(to, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"time of kna bench %s by keys\" ", WIDTH,
            HEIGHT, run->name);
    fputs("font-family=\"system-ui,sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n", to);
    draw_axes(run, &f, to);
    for (int who = 0; who < BENCH_CONTENDERS; who++)
        if (run->cells[0].plan.enabled[who]) draw_line(run, &f, who, to);
    fputs("</svg>\n", to);
    return CLI_OK;
}

int bench_draw(const bench_run *run, const char *path)
{
    return page_write(path, draw, run);
}
