/*
 * bench_print.c - the table and the JSON of a bench.
 *
 * A rate counts what the call touched, as its report tells it (bytes), or what exact attention has to compute (operations); the
 * near methods compute less, so they have no rate in operations.
 */
#include "bench_print.h"

#include <inttypes.h>
#include <math.h>

#define MIB 1048576.0

static double yardstick(const bench_run *run)
{
    return run->counts_bytes ? run->copy_rate : run->fma_rate;
}

/* Bytes or operations per second; NaN where the word has no meaning. */
static double rate(const bench_run *run, const bench_cell *cell, int who)
{
    const bench_result *r = &cell->results[who];
    if (!run->counts_bytes) return who < BENCH_TOPK ? bench_flops(&cell->plan) / r->median_s : (double)NAN;
    if (who == BENCH_NAIVE) return (double)NAN; /* reads float32 copies */
    return r->report.keys_touched * bench_kv_bytes(&cell->plan) / r->median_s;
}

static double speedup(const bench_cell *cell, int who)
{
    return cell->plan.enabled[BENCH_EXACT] ? cell->results[BENCH_EXACT].median_s / cell->results[who].median_s : (double)NAN;
}

/* ------------------------------------------------------------------ growth */

double bench_growth(const bench_run *run, int who)
{
    double sums[4] = { 0 }; /* of x, y, xx, xy */
    const double count = run->cell_count;
    for (int i = 0; i < run->cell_count; i++) {
        const double x = log((double)run->cells[i].plan.shape.n);
        const double y = log(run->cells[i].results[who].median_s);
        sums[0] += x;
        sums[1] += y;
        sums[2] += x * x;
        sums[3] += x * y;
    }
    const double spread = count * sums[2] - sums[0] * sums[0];
    return spread > 1e-9 ? (count * sums[3] - sums[0] * sums[1]) / spread : (double)NAN;
}

/* ------------------------------------------------------------------ table */

static void print_number(int width, int digits, double value, const char *unit)
{
    if (isfinite(value))
        printf(" %*.*f%s", width, digits, value, unit);
    else
        printf(" %*s", width + (unit[0] != '\0'), "-");
}

static void print_row(const bench_run *run, const bench_cell *cell, int who)
{
    const bench_result *r = &cell->results[who];
    const int has_report = r->report.size != 0;
    const double per_s = rate(run, cell, who);
    printf("%8" PRId64 "  %-6s", cell->plan.shape.n, bench_names[who]);
    print_number(6, 0, who >= BENCH_TOPK ? (double)r->k : (double)NAN, "");
    print_number(9, 3, 1e3 * r->median_s, "");
    print_number(8, 3, 1e3 * r->low_s, "");
    print_number(8, 3, 1e3 * r->high_s, "");
    print_number(7, 2, speedup(cell, who), "x");
    print_number(7, 1, 1e-9 * per_s, "");
    print_number(5, 0, 100 * per_s / yardstick(run), "%");
    print_number(7, 1, has_report ? 100 * r->report.keys_touched : (double)NAN, "%");
    print_number(6, 2, has_report ? 100 * r->report.tail_mass : (double)NAN, "%");
    if (isfinite(r->error))
        printf(" %8.1e", r->error);
    else
        printf(" %8s", "-");
    print_number(8, 2, 1e3 * r->build_s, "");
    print_number(8, 2, who >= BENCH_TOPK ? (double)r->report.index_bytes / MIB : (double)NAN, "");
    printf("\n");
}

static void print_head(const bench_run *run)
{
    const bench_plan *plan = &run->cells[0].plan;
    const bench_shape *s = &plan->shape;
    printf("bench %s: %" PRId64 " heads on %" PRId64 ", dim %" PRId64 ", %s", run->name, s->h, s->h_kv, s->d,
           kna_type_name(s->type));
    if (s->m != s->n || run->cell_count == 1) printf(", %" PRId64 " quer%s", s->m, s->m == 1 ? "y" : "ies");
    printf("%s, %" PRId64 " layer%s\n", plan->causal ? ", causal" : "", plan->layers, plan->layers == 1 ? "" : "s");
    printf("%s, %d thread%s; times of one layer, median of %" PRId64 " rounds taken in turn\n",
           kna_cpu_name(kna_context_cpu(run->context)), kna_context_threads(run->context),
           kna_context_threads(run->context) == 1 ? "" : "s", plan->rounds);
    if (run->counts_bytes)
        printf("memory copy: %.1f GB/s, bytes read and bytes written\n", 1e-9 * run->copy_rate);
    else
        printf("multiply-add peak: %.1f GFLOP/s\n", 1e-9 * run->fma_rate);
    printf("\n%8s  %-6s %6s %9s %8s %8s %8s %7s %6s %8s %7s %8s %8s %8s\n", "n", "method", "k", "ms", "least", "most", "speed",
           run->counts_bytes ? "GB/s" : "GFLOP/s", run->counts_bytes ? "copy" : "peak", "touched", "tail", "error", "build ms",
           "idx MiB");
}

int bench_print_table(const bench_run *run)
{
    print_head(run);
    for (int i = 0; i < run->cell_count; i++)
        for (int who = 0; who < BENCH_CONTENDERS; who++)
            if (run->cells[i].plan.enabled[who]) print_row(run, &run->cells[i], who);
    if (run->cell_count < 2) return CLI_OK;
    printf("\ntime grows as n to the power of");
    for (int who = 0; who < BENCH_CONTENDERS; who++)
        if (run->cells[0].plan.enabled[who]) printf("  %s %.2f", bench_names[who], bench_growth(run, who));
    printf("\n");
    return CLI_OK;
}

/* ------------------------------------------------------------------ JSON */

static void add_result(cJSON *list, const bench_run *run, const bench_cell *cell, int who)
{
    const bench_result *r = &cell->results[who];
    const double per_s = rate(run, cell, who);
    cJSON *object = cli_json_object(list, NULL);
    cli_json_int(object, "n", cell->plan.shape.n);
    cli_json_int(object, "m", cell->plan.shape.m);
    cli_json_text(object, "method", bench_names[who]);
    if (who >= BENCH_TOPK) cli_json_int(object, "k", r->k);
    cli_json_real(object, "time_s", r->median_s);
    cli_json_real(object, "time_min_s", r->low_s);
    cli_json_real(object, "time_max_s", r->high_s);
    cli_json_real(object, "speed_over_exact", speedup(cell, who));
    cli_json_real(object, run->counts_bytes ? "bytes_per_s" : "flops_per_s", per_s);
    cli_json_real(object, run->counts_bytes ? "share_of_copy" : "share_of_peak", per_s / yardstick(run));
    cli_json_real(object, "error", r->error);
    cli_json_real(object, "build_s", r->build_s);
    if (r->report.size == 0) return;
    cli_json_real(object, "keys_touched", r->report.keys_touched);
    cli_json_real(object, "tail_mass", r->report.tail_mass);
    cli_json_int(object, "index_bytes", (int64_t)r->report.index_bytes);
    cli_json_int(object, "scratch_bytes", (int64_t)r->report.scratch_bytes);
}

int bench_print_json(const bench_run *run)
{
    const bench_plan *plan = &run->cells[0].plan;
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_text(root, "bench", run->name);
    cli_json_int(root, "h", plan->shape.h);
    cli_json_int(root, "h_kv", plan->shape.h_kv);
    cli_json_int(root, "d", plan->shape.d);
    cli_json_text(root, "type", kna_type_name(plan->shape.type));
    cli_json_bool(root, "causal", plan->causal);
    cli_json_int(root, "layers", plan->layers);
    cli_json_int(root, "rounds", plan->rounds);
    cli_json_bool(root, "time_includes_build", !plan->keeps_index);
    cli_json_text(root, "cpu", kna_cpu_name(kna_context_cpu(run->context)));
    cli_json_int(root, "threads", kna_context_threads(run->context));
    cli_json_real(root, run->counts_bytes ? "copy_bytes_per_s" : "fma_flops_per_s", yardstick(run));
    cJSON *growth = cli_json_object(root, "growth");
    for (int who = 0; who < BENCH_CONTENDERS; who++)
        if (plan->enabled[who]) cli_json_real(growth, bench_names[who], bench_growth(run, who));
    cJSON *list = cli_json_array(root, "results");
    for (int i = 0; i < run->cell_count; i++)
        for (int who = 0; who < BENCH_CONTENDERS; who++)
            if (run->cells[i].plan.enabled[who]) add_result(list, run, &run->cells[i], who);
    return cli_json_print(stdout, root);
}
