/*
 * backend.c - the plugin as ggml sees it: a registration with one device of type ACCEL whose backends compute attention.
 *
 * All memory is the CPU's, so ggml's scheduler hands over the nodes that supports_op() claims and copies nothing. Each
 * context of a program makes a backend of its own, with the settings in force at that moment; the device is shared, so
 * supports_op() answers by the settings in force when it is asked.
 * Invariant: a setting that cannot be followed keeps the plugin from loading: nobody computes with other settings than asked.
 */
#define _GNU_SOURCE
#include "cache.h"
#include "flash_attn.h"
#include "kna.h"
#include "knnattn.h"
#include "observe.h"
#include "probe.h"
#include "set_rows.h"
#include "settings.h"
#include "totals.h"

#include <ggml-backend-impl.h>
#include <ggml-backend.h>
#include <ggml.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct knnattn_settings asked;   /* by the environment, fixed once the plugin is loaded */
static struct knnattn_settings current; /* for backends made from now on, under the lock */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ggml_backend_device device;
static atomic_bool attention_asked; /* some graph of this process has flash attention */

static struct knnattn_settings current_settings(void)
{
    pthread_mutex_lock(&lock);
    struct knnattn_settings settings = current;
    pthread_mutex_unlock(&lock);
    return settings;
}

static enum knnattn_method current_method(void)
{
    pthread_mutex_lock(&lock);
    enum knnattn_method method = current.method;
    pthread_mutex_unlock(&lock);
    return method;
}

/* The first failure is told; a program that goes on after it would repeat it for every layer. */
static void complain(const char *what, const char *detail)
{
    static atomic_flag told = ATOMIC_FLAG_INIT;

    if (!atomic_flag_test_and_set(&told)) {
        fprintf(stderr, "knnattn: %s%s%s\n", what, detail[0] != '\0' ? ": " : "", detail);
    }
}

/* ---- backend */

static const char *backend_name(ggml_backend_t backend)
{
    (void)backend;
    return "kNN attention";
}

static void engine_free(struct knnattn_engine *engine)
{
    if (engine != NULL) {
        knnattn_records_close(&engine->records);
        kna_context_free(engine->kna);
        free(engine->slopes);
        free(engine);
    }
}

static void backend_free(ggml_backend_t backend)
{
    engine_free(backend->context);
    free(backend);
    knnattn_totals_write(&asked);
}

static enum ggml_status compute_attention(struct knnattn_engine *engine, const struct ggml_tensor *node)
{
    int status = knnattn_flash_attend(engine, node);

    if (status == KNA_OK) {
        return GGML_STATUS_SUCCESS;
    }
    const char *detail = kna_context_message(engine->kna);
    complain("attention failed", detail[0] != '\0' ? detail : kna_status_text(status));
    return status == KNA_ENOMEM ? GGML_STATUS_ALLOC_FAILED : GGML_STATUS_FAILED;
}

static enum ggml_status compute_node(struct knnattn_engine *engine, const struct ggml_tensor *node)
{
    switch (node->op) {
    case GGML_OP_FLASH_ATTN_EXT:
        return compute_attention(engine, node);
    case GGML_OP_SET_ROWS:
        if (knnattn_set_rows(node)) {
            return GGML_STATUS_SUCCESS;
        }
        complain("a row to be written lies outside of the cache", node->name);
        return GGML_STATUS_FAILED;
    case GGML_OP_NONE:
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
        return GGML_STATUS_SUCCESS;
    default:
        complain("an operation was handed over that was not claimed", ggml_op_desc(node));
        return GGML_STATUS_FAILED;
    }
}

static enum ggml_status backend_graph_compute(ggml_backend_t backend, struct ggml_cgraph *graph)
{
    struct knnattn_engine *engine = backend->context;
    enum ggml_status status = GGML_STATUS_SUCCESS;

    pthread_mutex_lock(&engine->records.busy);
    for (int i = 0; status == GGML_STATUS_SUCCESS && i < ggml_graph_n_nodes(graph); i++) {
        const struct ggml_tensor *node = ggml_graph_node(graph, i);
        if (node->flags & GGML_TENSOR_FLAG_COMPUTE) {
            status = compute_node(engine, node);
        }
    }
    pthread_mutex_unlock(&engine->records.busy);
    return status;
}

static void backend_set_n_threads(ggml_backend_t backend, int threads)
{
    struct knnattn_engine *engine = backend->context;
    int most = threads < KNA_MAX_THREADS ? threads : KNA_MAX_THREADS;

    knnattn_probe_close(); /* llama.cpp says how many before each graph it computes */
    if (engine->settings.threads == 0 && kna_context_set_threads(engine->kna, most) != KNA_OK) {
        complain("the number of threads was not taken", kna_context_message(engine->kna));
    }
}

static struct knnattn_engine *engine_new(void)
{
    struct knnattn_engine *engine = calloc(1, sizeof(*engine));

    if (engine == NULL) {
        return NULL;
    }
    engine->settings = current_settings();
    kna_context_options options = KNA_CONTEXT_OPTIONS;
    options.cpu = engine->settings.cpu;
    options.threads = engine->settings.threads;
    int status = kna_context_new(&engine->kna, &options);
    if (status != KNA_OK) {
        complain("no context", kna_status_text(status));
        free(engine);
        return NULL;
    }
    knnattn_records_open(&engine->records, engine);
    return engine;
}

static ggml_guid_t backend_guid(void)
{
    static ggml_guid guid = { 0x6b, 0x6e, 0x6e, 0x61, 0x74, 0x74, 0x6e, 0x00, 0x9c, 0x41, 0x4e, 0x0d, 0x8b, 0x52, 0x77, 0xe3 };
    return &guid;
}

static ggml_backend_t device_init_backend(ggml_backend_dev_t dev, const char *params)
{
    struct ggml_backend *backend = calloc(1, sizeof(*backend));
    struct knnattn_engine *engine = engine_new();

    (void)params;
    if (backend == NULL || engine == NULL) {
        engine_free(engine);
        free(backend);
        return NULL;
    }
    knnattn_probe_open();
    *backend = (struct ggml_backend){
        .guid = backend_guid(),
        .iface = { .get_name = backend_name, .free = backend_free, .graph_compute = backend_graph_compute },
        .device = dev,
        .context = engine,
    };
    return backend;
}

/* ---- device */

static const char *device_name(ggml_backend_dev_t dev)
{
    (void)dev;
    return "KNNATTN";
}

static const char *device_description(ggml_backend_dev_t dev)
{
    (void)dev;
    return "kNN attention on the CPU";
}

static void device_memory(ggml_backend_dev_t dev, size_t *free_bytes, size_t *total_bytes)
{
    (void)dev;
    *free_bytes = 0;
    *total_bytes = 0;
}

static enum ggml_backend_dev_type device_type(ggml_backend_dev_t dev)
{
    (void)dev;
    return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

static void device_props(ggml_backend_dev_t dev, struct ggml_backend_dev_props *props)
{
    memset(props, 0, sizeof(*props));
    props->name = device_name(dev);
    props->description = device_description(dev);
    props->type = device_type(dev);
    props->caps.buffer_from_host_ptr = true;
}

static ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t dev)
{
    (void)dev;
    return ggml_backend_cpu_buffer_type();
}

static ggml_backend_buffer_t device_buffer_from_host_ptr(ggml_backend_dev_t dev, void *ptr, size_t size, size_t max_tensor_size)
{
    (void)dev;
    (void)max_tensor_size;
    return ggml_backend_cpu_buffer_from_ptr(ptr, size);
}

/* An operation that others will do: when it writes into a cache in place (a context shift does), indexes must know. */
static void note_declined(const struct ggml_tensor *op)
{
    const struct ggml_tensor *root = op->view_src;

    if (root != NULL && root->data != NULL && knnattn_cache_layer(root) >= 0) {
        knnattn_touch(root->data, ggml_nbytes(root));
    }
}

static bool claims_attention(const struct ggml_tensor *op, enum knnattn_method method)
{
    if (method == KNNATTN_OFF || !knnattn_flash_supported(op)) {
        return false;
    }
    attention_asked = true;
    return !knnattn_probe_is_open(op);
}

/*
 * Rows are written here for the sake of an index. A program without flash attention has none, and handing its rows over and
 * back would only cost it time; programs lay out their graphs before the first one is computed, so nothing is missed.
 */
static bool claims_rows(const struct ggml_tensor *op, enum knnattn_method method)
{
    return attention_asked && (method == KNNATTN_TOPK || method == KNNATTN_KNN) && knnattn_set_rows_supported(op);
}

static bool claims(const struct ggml_tensor *op)
{
    switch (op->op) {
    case GGML_OP_NONE:
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
        return true;
    case GGML_OP_FLASH_ATTN_EXT:
        return claims_attention(op, current_method());
    case GGML_OP_SET_ROWS:
        return claims_rows(op, current_method());
    default:
        return false;
    }
}

static bool device_supports_op(ggml_backend_dev_t dev, const struct ggml_tensor *op)
{
    (void)dev;
    if (claims(op)) {
        return true;
    }
    note_declined(op);
    return false;
}

static bool device_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft)
{
    (void)dev;
    return ggml_backend_buft_is_host(buft);
}

/* ---- registration */

static const char *reg_name(ggml_backend_reg_t reg)
{
    (void)reg;
    return "KNNATTN";
}

static size_t reg_device_count(ggml_backend_reg_t reg)
{
    (void)reg;
    return 1;
}

static ggml_backend_dev_t reg_device(ggml_backend_reg_t reg, size_t index)
{
    (void)reg;
    return index == 0 ? &device : NULL;
}

static int configure(const char *text, char *message, size_t message_bytes)
{
    struct knnattn_settings settings = asked;
    char complaint[KNNATTN_MESSAGE_BYTES] = "";

    if (!knnattn_settings_from_text(&settings, text, complaint)) {
        if (message != NULL && message_bytes > 0) {
            snprintf(message, message_bytes, "%s", complaint);
        }
        return -1;
    }
    pthread_mutex_lock(&lock);
    current = settings;
    pthread_mutex_unlock(&lock);
    return 0;
}

/* ISO C keeps functions and objects apart; POSIX, which dlsym() stands on, does not. */
union symbol {
    void *object;
    void (*set_n_threads)(ggml_backend_t backend, int threads);
    knnattn_configure_t configure;
    knnattn_report_get_t report_get;
    knnattn_report_reset_t report_reset;
    knnattn_observe_t observe;
};

static void *reg_proc_address(ggml_backend_reg_t reg, const char *name)
{
    union symbol symbol = { NULL };

    (void)reg;
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) {
        symbol.set_n_threads = backend_set_n_threads;
    } else if (strcmp(name, "knnattn_configure") == 0) {
        symbol.configure = configure;
    } else if (strcmp(name, "knnattn_report_get") == 0) {
        symbol.report_get = knnattn_totals_get;
    } else if (strcmp(name, "knnattn_report_reset") == 0) {
        symbol.report_reset = knnattn_totals_reset;
    } else if (strcmp(name, "knnattn_observe") == 0) {
        symbol.observe = knnattn_observe;
    }
    return symbol.object;
}

static void at_exit(void)
{
    knnattn_totals_write(&asked);
    if (asked.summary) {
        knnattn_totals_summary(&asked);
    }
}

static struct ggml_backend_reg reg = {
    .api_version = GGML_BACKEND_API_VERSION,
    .iface = {
        .get_name = reg_name,
        .get_device_count = reg_device_count,
        .get_device = reg_device,
        .get_proc_address = reg_proc_address,
    },
};

static struct ggml_backend_device device = {
    .iface = {
        .get_name = device_name,
        .get_description = device_description,
        .get_memory = device_memory,
        .get_type = device_type,
        .get_props = device_props,
        .init_backend = device_init_backend,
        .get_buffer_type = device_buffer_type,
        .buffer_from_host_ptr = device_buffer_from_host_ptr,
        .supports_op = device_supports_op,
        .supports_buft = device_supports_buft,
    },
    .reg = &reg,
};

/* The one symbol ggml looks for. Programs may load it twice: the answer stays that of the first time. */
__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void);
ggml_backend_reg_t ggml_backend_init(void)
{
    static bool decided;
    static bool accepted;
    char message[KNNATTN_MESSAGE_BYTES] = "";

    if (decided) {
        return accepted ? &reg : NULL;
    }
    decided = true;
    accepted = knnattn_settings_from_environment(&asked, message);
    if (!accepted) {
        fprintf(stderr, "knnattn: %s; the plugin is not loaded\n", message);
        return NULL;
    }
    current = asked;
    if (asked.summary || asked.report[0] != '\0') {
        atexit(at_exit);
    }
    return &reg;
}
