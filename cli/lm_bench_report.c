/*
 * lm_bench_report.c - the figures of `kna bench model`, as lines or as JSON.
 *
 * Invariant: a ratio says how many times faster: the other's time divided by this one's.
 */
#include "lm_bench_model.h"

#define PART(share) (100.0 * (share))

static double share_of(double part, double whole)
{
    return whole > 0.0 ? part / whole : 0.0;
}

static const char *name_of(const bench_report *report, int contender)
{
    const lm_attention attention = bench_attention(report->request, contender);
    return lm_attention_name(&attention);
}

/* How many times faster than the faster of llama.cpp's two, and than our exact attention. */
typedef struct ratios {
    double llama, exact;
} ratios;

static ratios ratios_of(const double seconds[CONTENDERS], int contender)
{
    double llama = seconds[0] < seconds[1] ? seconds[0] : seconds[1];
    return (ratios){ llama / seconds[contender], seconds[OURS_EXACT] / seconds[contender] };
}

/* ------------------------------------------------------------------ start and end */

static void start_json(bench_report *report, const lm_model *model, int threads, double yarn)
{
    const bench_request *r = report->request;
    report->root = cli_json_object(NULL, NULL);
    cli_json_text(report->root, "model", lm_model_name(model));
    cli_json_int(report->root, "threads", threads);
    cli_json_int(report->root, "rounds", r->rounds);
    cli_json_int(report->root, "decode", r->decode);
    cli_json_int(report->root, "prefill", LM_STEP);
    cli_json_real(report->root, "yarn", yarn);
    report->rows = cli_json_array(report->root, "rows");
    report->fills = cli_json_array(report->root, "fills");
    report->prompts = cli_json_array(report->root, "prompts");
}

void report_start(bench_report *report, const bench_request *r, const lm_model *model, int threads, double yarn)
{
    *report = (bench_report){ .request = r };
    if (r->json) {
        start_json(report, model, threads, yarn);
        return;
    }
    printf("%s, %d threads, medians of %d rounds", lm_model_name(model), threads, (int)r->rounds);
    if (yarn > 1.0) {
        printf(", positions stretched up to %.4g times (YaRN)", yarn);
    }
    printf("\n");
}

int report_end(bench_report *report, int code)
{
    if (code == CLI_OK && report->root) {
        return cli_json_print(stdout, report->root);
    }
    cJSON_Delete(report->root);
    return code;
}

/* ------------------------------------------------------------------ depths */

static void json_row(bench_report *report, int depth, int c, const double decode_s[CONTENDERS], const double prefill_s[CONTENDERS])
{
    ratios decode = ratios_of(decode_s, c), prefill = ratios_of(prefill_s, c);
    cJSON *row = cli_json_object(report->rows, NULL);
    cli_json_int(row, "depth", depth);
    cli_json_text(row, "method", name_of(report, c));
    cli_json_real(row, "decode_tokens_per_s", lm_per_second(1, decode_s[c]));
    cli_json_real(row, "decode_ratio", decode.llama);
    cli_json_real(row, "decode_over_exact", decode.exact);
    cli_json_real(row, "prefill_tokens_per_s", lm_per_second(LM_STEP, prefill_s[c]));
    cli_json_real(row, "prefill_ratio", prefill.llama);
    cli_json_real(row, "prefill_over_exact", prefill.exact);
}

static void json_fill(bench_report *report, int depth, const lm_fill *fill)
{
    cJSON *to = cli_json_object(report->fills, NULL);
    cli_json_int(to, "depth", depth);
    cli_json_int(to, "tokens", fill->tokens);
    cli_json_real(to, "time_s", fill->time_s);
    cli_json_real(to, "index_s", fill->index_s);
    cli_json_int(to, "index_bytes", (int64_t)fill->index_bytes);
    cli_json_int(to, "cache_bytes", (int64_t)fill->cache_bytes);
    cli_json_bool(to, "shared", fill->is_shared);
}

static void print_row(const bench_report *report, int depth, int c, const double decode_s[CONTENDERS],
                      const double prefill_s[CONTENDERS])
{
    ratios decode = ratios_of(decode_s, c), prefill = ratios_of(prefill_s, c);
    printf("%7d  %-16s %10.1f %7.2fx %7.2fx %12.1f %7.2fx %7.2fx\n", depth, name_of(report, c), lm_per_second(1, decode_s[c]),
           decode.llama, decode.exact, lm_per_second(LM_STEP, prefill_s[c]), prefill.llama, prefill.exact);
}

static void print_fill(int depth, const lm_fill *fill)
{
    if (fill->tokens == 0) {
        return;
    }
    printf("%7d  filled by knn: %d tokens in %.1f s (%.1f tokens/s), %.1f %% of it for the index; index %.1f MB, %.1f %% of the "
           "cache\n",
           depth, fill->tokens, fill->time_s, lm_per_second(fill->tokens, fill->time_s),
           PART(share_of(fill->index_s, fill->time_s)), 1e-6 * (double)fill->index_bytes,
           PART(share_of((double)fill->index_bytes, (double)fill->cache_bytes)));
}

void report_depth(bench_report *report, int depth, const lm_fill *fill, const lm_speed speeds[CONTENDERS])
{
    double decode_s[CONTENDERS], prefill_s[CONTENDERS];
    for (int c = 0; c < CONTENDERS; c++) {
        decode_s[c] = speeds[c].decode_s;
        prefill_s[c] = speeds[c].prefill_s;
    }
    if (report->root) {
        json_fill(report, depth, fill);
    } else if (!report->has_rows++) {
        printf("  depth  attention        decode t/s  /llama  /exact  prefill t/s  /llama  /exact\n");
    }
    for (int c = 0; c < CONTENDERS; c++) {
        if (report->root) {
            json_row(report, depth, c, decode_s, prefill_s);
        } else {
            print_row(report, depth, c, decode_s, prefill_s);
        }
    }
    if (!report->root) {
        print_fill(depth, fill);
        fflush(stdout);
    }
}

/* ------------------------------------------------------------------ prompts */

static void json_prompt(bench_report *report, int tokens, int c, const double seconds[CONTENDERS], const lm_usage *knn)
{
    ratios faster = ratios_of(seconds, c);
    cJSON *row = cli_json_object(report->prompts, NULL);
    cli_json_int(row, "tokens", tokens);
    cli_json_text(row, "method", name_of(report, c));
    cli_json_real(row, "first_token_s", seconds[c]);
    cli_json_real(row, "tokens_per_s", lm_per_second(tokens, seconds[c]));
    cli_json_real(row, "ratio", faster.llama);
    cli_json_real(row, "over_exact", faster.exact);
    cli_json_real(row, "index_s", c == OURS_KNN ? knn->index_s : 0.0);
}

static void print_prompt(const bench_report *report, int tokens, int c, const double seconds[CONTENDERS])
{
    ratios faster = ratios_of(seconds, c);
    printf("%7d  %-16s %13.1f %10.1f %7.2fx %7.2fx\n", tokens, name_of(report, c), seconds[c], lm_per_second(tokens, seconds[c]),
           faster.llama, faster.exact);
}

void report_prompt(bench_report *report, int tokens, const double seconds[CONTENDERS], const lm_usage *knn)
{
    if (!report->root && !report->has_prompts++) {
        printf(" prompt  attention        first token s tokens/s  /llama  /exact\n");
    }
    for (int c = 0; c < CONTENDERS; c++) {
        if (report->root) {
            json_prompt(report, tokens, c, seconds, knn);
        } else {
            print_prompt(report, tokens, c, seconds);
        }
    }
    if (!report->root) {
        printf("%7d  knn: %.1f %% of its time for the index\n", tokens, PART(share_of(knn->index_s, seconds[OURS_KNN])));
        fflush(stdout);
    }
}
