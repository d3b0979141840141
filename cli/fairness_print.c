/*
 * fairness_print.c - figures as tables and as JSON.
 */
#include "fairness.h"

#include <inttypes.h>
#include <math.h>

/* ------------------------------------------------------------------ tables */

static void put_number(double value, int width, int digits)
{
    if (isnan(value)) printf(" %*s", width, "-");
    else printf(" %*.*f", width, digits, value);
}

static void print_groups(const fair_result *result)
{
    const fair_groups *g = result->groups;
    fair_figures f[FAIR_METHODS];
    for (int x = 0; x < result->method_count; x++) fair_figures_of(&f[x], &result->all, x, g->count);
    printf("%-24s %7s %9s", g->by == FAIR_BY_LABELS ? "label" : fair_by_names[g->by], "keys", "full");
    for (int x = 0; x < result->method_count; x++) printf(" %10s", kna_method_name(result->methods[x]));
    printf("\n");
    for (int i = 0; i < g->count; i++) {
        printf("%-24.24s %6.1f%% %9.4f", g->names[i], 100.0 * (double)g->keys[i] / (double)g->n, result->all.full.mass[i] / result->all.full.rows);
        for (int x = 0; x < result->method_count; x++) put_number(f[x].ratio[i], 10, 3);
        printf("%s\n", g->keys[i] ? "" : "  no keys");
    }
}

static void print_recall(const fair_result *result)
{
    const fair_groups *g = result->groups;
    fair_figures f[FAIR_METHODS];
    printf("\n%-42s", "of it in keys read in full");
    for (int x = 0; x < result->method_count; x++) {
        fair_figures_of(&f[x], &result->all, x, g->count);
        printf(" %10s", kna_method_name(result->methods[x]));
    }
    printf("\n");
    for (int i = 0; i < g->count; i++) {
        printf("%-42.24s", g->names[i]);
        for (int x = 0; x < result->method_count; x++) put_number(f[x].recall[i], 10, 3);
        printf("\n");
    }
}

static void print_loss(const fair_result *result, int x)
{
    const fair_loss *loss = &result->loss[x];
    if (!loss->is_known) return;
    printf("\n%-24s %7s %9s   what %s adds, in nats (95 %% interval)\n", "loss of tokens", "tokens", "full", kna_method_name(result->methods[x]));
    for (int i = 0; i < result->groups->count; i++) {
        const fair_interval *added = &loss->added[i];
        printf("%-24.24s %7" PRId64, result->groups->names[i], loss->tokens[i]);
        put_number(loss->full[i], 9, 4);
        if (isnan(added->value)) printf("   -\n");
        else if (isnan(added->low)) printf("   %+.4f (-)\n", added->value);
        else printf("   %+.4f (%+.4f .. %+.4f)\n", added->value, added->low, added->high);
    }
}

static const char *verdict(const fair_figures *f)
{
    static const char *const words[] = { "nothing to compare", "fails", "passes" };
    return words[fair_passes(f) + 1];
}

static void print_methods(const fair_result *result, const fair_layer_sums *sums, const char *title)
{
    printf("\n%-12s %10s %12s %12s %12s   %s\n", title, "impact", "parity gap", "variation", "error ratio", "four-fifths rule");
    for (int x = 0; x < result->method_count; x++) {
        fair_figures f;
        fair_figures_of(&f, sums, x, result->groups->count);
        printf("%-12s", kna_method_name(result->methods[x]));
        put_number(f.impact, 10, 3);
        put_number(f.gap, 12, 4);
        put_number(f.variation, 12, 4);
        put_number(f.error_ratio, 12, 2); /* unknown: some group is read exactly */
        printf("   %s\n", verdict(&f));
    }
}

void fair_print(const fair_result *result)
{
    printf("share of the softmax of each group under full attention, and with each method as a ratio to that\n\n");
    print_groups(result);
    print_recall(result);
    for (int i = 0; i < result->layer_count && result->layer_count > 1; i++) {
        char title[24];
        snprintf(title, sizeof title, "layer %d", result->layers[i].number);
        print_methods(result, &result->layers[i], title);
    }
    print_methods(result, &result->all, result->layer_count > 1 ? "all layers" : "method");
    for (int x = 0; x < result->method_count; x++) print_loss(result, x);
}

/* ------------------------------------------------------------------ JSON */

static void json_masses(cJSON *to, const fair_result *result, const fair_layer_sums *sums)
{
    const fair_groups *g = result->groups;
    cJSON *list = cli_json_array(to, "groups");
    for (int i = 0; i < g->count; i++) {
        cJSON *group = cli_json_object(list, NULL);
        cli_json_text(group, "name", g->names[i]);
        cli_json_int(group, "keys", g->keys[i]);
        cli_json_real(group, "mass", sums->full.mass[i] / sums->full.rows);
    }
}

static void json_loss(cJSON *to, const fair_loss *loss, int group)
{
    if (!loss) return;
    cJSON *object = cli_json_object(to, "loss");
    cli_json_int(object, "tokens", loss->tokens[group]);
    cli_json_real(object, "full", loss->full[group]);
    cli_json_real(object, "added", loss->added[group].value);
    cli_json_real(object, "low", loss->added[group].low);
    cli_json_real(object, "high", loss->added[group].high);
}

static void json_method(cJSON *list, const fair_result *result, const fair_layer_sums *sums, int x, const fair_loss *loss)
{
    fair_figures f;
    cJSON *method = cli_json_object(list, NULL);
    fair_figures_of(&f, sums, x, result->groups->count);
    cli_json_text(method, "method", kna_method_name(result->methods[x]));
    cli_json_real(method, "impact", f.impact);
    if (fair_passes(&f) < 0) cli_json_text(method, "four_fifths", NULL);
    else cli_json_bool(method, "four_fifths", fair_passes(&f));
    cli_json_real(method, "parity_gap", f.gap);
    cli_json_real(method, "total_variation", f.variation);
    cli_json_real(method, "error_ratio", f.error_ratio);
    cJSON *groups = cli_json_array(method, "groups");
    for (int i = 0; i < result->groups->count; i++) {
        cJSON *group = cli_json_object(groups, NULL);
        cli_json_real(group, "mass", f.mass[i]);
        cli_json_real(group, "ratio", f.ratio[i]);
        cli_json_real(group, "recall", f.recall[i]);
        cli_json_real(group, "error", f.error[i]);
        json_loss(group, loss, i);
    }
}

static void json_methods(cJSON *to, const fair_result *result, const fair_layer_sums *sums, int with_loss)
{
    cJSON *list = cli_json_array(to, "methods");
    for (int x = 0; x < result->method_count; x++)
        json_method(list, result, sums, x, with_loss && result->loss[x].is_known ? &result->loss[x] : NULL);
}

int fair_json(const fair_result *result)
{
    cJSON *root = cli_json_object(NULL, NULL);
    cli_json_text(root, "model", result->model);
    cli_json_text(root, "by", result->groups->by == FAIR_BY_LABELS ? "labels" : fair_by_names[result->groups->by]);
    cli_json_int(root, "keys", result->groups->n);
    cli_json_int(root, "queries", result->queries);
    json_masses(root, result, &result->all);
    json_methods(root, result, &result->all, 1);
    cJSON *layers = cli_json_array(root, "layers");
    for (int i = 0; i < result->layer_count && result->model; i++) {
        cJSON *layer = cli_json_object(layers, NULL);
        cli_json_int(layer, "layer", result->layers[i].number);
        json_masses(layer, result, &result->layers[i]);
        json_methods(layer, result, &result->layers[i], 0);
    }
    return cli_json_print(stdout, root);
}
