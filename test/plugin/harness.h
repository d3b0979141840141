/*
 * harness.h - what the programs here share: ggml's CPU backend and the plugin, loaded as a llama.cpp program loads them; tensors
 * with random contents; running one graph on one backend.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include "test.h"

#include "knnattn.h"

#include <dlfcn.h>
#include <ggml-backend.h>
#include <ggml.h>
#include <libgen.h>
#include <math.h>

static ggml_backend_t cpu;
static ggml_backend_dev_t device;
static knnattn_configure_t configure;
static knnattn_report_get_t report_get;
static knnattn_report_reset_t report_reset;

static inline void *symbol_of(ggml_backend_reg_t reg, const char *name)
{
    void *symbol = ggml_backend_reg_get_proc_address(reg, name);
    if (symbol == NULL) {
        printf("the plugin has no %s\n", name);
        exit(1);
    }
    return symbol;
}

/* Threads that spin at a barrier starve each other on a busy machine; OpenMP reads this when the program starts, so start again. */
static inline void wait_without_spinning(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") == NULL) {
        setenv("OMP_WAIT_POLICY", "passive", 1);
        execv("/proc/self/exe", argv);
    }
}

/* ggml's backends lie beside its library. Exit code 77, "skipped", where the plugin was not built. */
static inline void harness_open(void)
{
    Dl_info info;
    char path[4096];
    const char *plugin = getenv("KNA_PLUGIN");
    if (plugin == NULL) {
        printf("skipped: KNA_PLUGIN is not set\n");
        exit(77);
    }
    void *symbol = NULL;
    *(ggml_backend_reg_t(**)(const char *)) & symbol = ggml_backend_load;
    if (dladdr(symbol, &info) == 0) exit(1);
    snprintf(path, sizeof(path), "%s", info.dli_fname);
    ggml_backend_load_all_from_path(dirname(path));
    cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, NULL);
    ggml_backend_reg_t reg = ggml_backend_load(plugin);
    if (cpu == NULL || reg == NULL) {
        printf("the CPU backend or the plugin could not be loaded\n");
        exit(1);
    }
    device = ggml_backend_reg_dev_get(reg, 0);
    *(void **)&configure = symbol_of(reg, "knnattn_configure");
    *(void **)&report_get = symbol_of(reg, "knnattn_report_get");
    *(void **)&report_reset = symbol_of(reg, "knnattn_report_reset");
}

/* On so many threads, as llama.cpp says before each graph it computes. */
static inline void on_threads(ggml_backend_t backend, int threads)
{
    void (*set_n_threads)(ggml_backend_t, int) = NULL;
    *(void **)&set_n_threads = symbol_of(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
    set_n_threads(backend, threads);
}

/* A backend of the plugin under these settings, which has computed nothing yet. */
static inline ggml_backend_t fresh_backend_with(const char *settings)
{
    char message[512] = "";
    if (configure(settings, message, sizeof(message)) != 0) {
        printf("%s: %s\n", settings, message);
        exit(1);
    }
    return ggml_backend_dev_init(device, NULL);
}

/* One that goes on, on two threads. */
static inline ggml_backend_t backend_with(const char *settings)
{
    ggml_backend_t backend = fresh_backend_with(settings);
    on_threads(backend, 2);
    return backend;
}

static inline struct knnattn_report report_of_slot(int slot)
{
    struct knnattn_report report = { .size = sizeof(report) };
    report_get(slot, &report);
    return report;
}

/* Rows near one of 8 points, for what lives on keys being alike. */
static bool fill_in_groups;

/* Memory for the structures of a graph of some tens of tensors; their data is allocated apart. */
static inline struct ggml_context *graph_context(void)
{
    struct ggml_init_params params = { 64 * ggml_tensor_overhead() + ggml_graph_overhead(), NULL, true };
    return ggml_init(params);
}

static inline void fill_rows(struct ggml_tensor *tensor, int64_t first, int64_t count, double spread)
{
    int64_t width = tensor->ne[0];
    size_t bytes = ggml_row_size(tensor->type, width);
    float *row = malloc((size_t)width * sizeof(float));
    char *packed = malloc((size_t)count * bytes);
    for (int64_t r = 0; r < count; r++) {
        int group = fill_in_groups ? 1 + (int)test_below(8) : 0;
        for (int64_t i = 0; i < width; i++) {
            double noise = test_normal();
            row[i] = (float)(spread * (group > 0 ? 1.4 * sin(7.3 * group * (double)(i + 1)) + 0.05 * noise : noise));
        }
        if (tensor->type == GGML_TYPE_F32)
            memcpy(packed + (size_t)r * bytes, row, bytes);
        else
            ggml_get_type_traits(tensor->type)->from_float_ref(row, packed + (size_t)r * bytes, width);
    }
    ggml_backend_tensor_set(tensor, packed, (size_t)first * bytes, (size_t)count * bytes);
    free(packed);
    free(row);
}

/* Random normal numbers in the tensor's type; the tensor is contiguous. */
static inline void fill(struct ggml_tensor *tensor, double spread)
{
    fill_rows(tensor, 0, ggml_nrows(tensor), spread);
}

/* All numbers of a contiguous tensor as f32. The caller frees them. */
static inline float *numbers_of(const struct ggml_tensor *tensor)
{
    int64_t count = ggml_nelements(tensor);
    float *numbers = malloc((size_t)count * sizeof(float));
    void *raw = malloc(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, raw, 0, ggml_nbytes(tensor));
    if (tensor->type == GGML_TYPE_F32)
        memcpy(numbers, raw, ggml_nbytes(tensor));
    else
        ggml_get_type_traits(tensor->type)->to_float(raw, numbers, count);
    free(raw);
    return numbers;
}

static inline struct ggml_cgraph *graph_of(struct ggml_context *ctx, struct ggml_tensor *result)
{
    struct ggml_cgraph *graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, result);
    return graph;
}

#endif
