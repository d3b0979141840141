/*
 * control.c - steering the plugin from within a process: settings as text and their messages, several contexts under different
 * settings, slots, totals.
 */
#include "harness.h"

#define DIM   32
#define CELLS 256

struct question {
    struct ggml_context *ctx;
    ggml_backend_buffer_t buffer;
    struct ggml_cgraph *graph;
};

/* One query of two heads over CELLS keys of no cache, of which it sees so many, the last ones, behind a mask; 0: all, without one. */
static struct question question_behind(int seen)
{
    struct question q = { .ctx = graph_context() };
    struct ggml_tensor *query = ggml_new_tensor_3d(q.ctx, GGML_TYPE_F32, DIM, 1, 2),
                       *k = ggml_new_tensor_3d(q.ctx, GGML_TYPE_F16, DIM, CELLS, 1);
    struct ggml_tensor *v = ggml_new_tensor_3d(q.ctx, GGML_TYPE_F16, DIM, CELLS, 1);
    struct ggml_tensor *mask = seen > 0 ? ggml_new_tensor_2d(q.ctx, GGML_TYPE_F16, CELLS, 1) : NULL;
    q.graph = graph_of(q.ctx, ggml_flash_attn_ext(q.ctx, query, k, v, mask, 0.5f, 0.0f, 0.0f));
    q.buffer = ggml_backend_alloc_ctx_tensors(q.ctx, cpu);
    fill(query, 1.0);
    fill(k, 1.0);
    fill(v, 1.0);
    for (size_t i = 0; mask != NULL && i < CELLS; i++) {
        ggml_fp16_t entry = ggml_fp32_to_fp16(i + (size_t)seen < CELLS ? -INFINITY : 0.0f);
        ggml_backend_tensor_set(mask, &entry, i * sizeof(entry), sizeof(entry));
    }
    return q;
}

static struct question question_new(void)
{
    return question_behind(0);
}

static void question_free(struct question *q)
{
    ggml_backend_buffer_free(q->buffer);
    ggml_free(q->ctx);
}

static void refused(const char *settings, const char *words)
{
    char message[512] = "";
    EXPECT_THAT(configure(settings, message, sizeof(message)) == -1, "taken: %s", settings);
    EXPECT_THAT(strstr(message, words) != NULL, "%s: \"%s\" does not say \"%s\"", settings, message, words);
}

static void messages(void)
{
    refused("method=fast", "method=fast: must be one of off, exact, topk, knn");
    refused("k=0", "k=0: must be a whole number from 1 to 2147483647");
    refused("k=12x", "k=12x: must be a whole number");
    refused("k=", "k=: must be a whole number");
    refused("k=99999999999999999999", "must be a whole number");
    refused("eps=1.5", "eps=1.5: must be a number from 0 to below 1");
    refused("eps=nan", "eps=nan: must be a number from 0 to below 1");
    refused("eps=1", "eps=1: must be a number from 0 to below 1");
    refused("eps=0.1,delta=-1", "delta=-1: must be a number from 0 to below 1");
    refused("delta=0.05", "delta=0.05: the share of rows above eps, and eps is 0");
    refused("eps=0,5", "5: name=value is expected");
    refused("audit=-0.1", "audit=-0.1: must be a number from 0 to 1");
    refused("sinks=-1", "sinks=-1: must be a whole number from 0");
    refused("window=many", "window=many: must be a whole number from 0");
    refused("exact_below=-5", "exact_below=-5");
    refused("full_every=0", "full_every=0: must be a whole number from 1");
    refused("full_every=-2", "full_every=-2: must be a whole number from 1");
    refused("full_every=few", "full_every=few: must be a whole number from 1");
    refused("index_kib=-1", "index_kib=-1: must be a whole number from 0 (no limit)");
    refused("index_kib=0.5", "index_kib=0.5: must be");
    refused("threads=1025", "threads=1025: must be a whole number from 0");
    refused("cpu=z80", "cpu=z80: must be one of best, ref");
    refused("slot=16", "slot=16: must be a whole number from 0 to 15");
    refused("speed=9", "speed: no such setting; there are method, k, eps");
    refused("report=x.json", "report: no such setting");
    refused("method", "method: name=value is expected");
    refused("method=knn,k=-3", "k=-3");
    EXPECT_INT(configure("k=-3", NULL, 0), -1);
    EXPECT_INT(configure("", NULL, 0), 0);
    EXPECT_INT(configure("method=topk,k=5,eps=0.25,sinks=0,window=0,exact_below=0,full_every=4,audit=1,cpu=ref,threads=3,slot=7", NULL, 0), 0);
    EXPECT_INT(configure("", NULL, 0), 0);
}

/* Each context keeps what it was created under, however they alternate and in whatever order they go. */
static void slots(void)
{
    struct question q = question_new();
    ggml_backend_t exact = backend_with("method=exact,slot=8"),
                   near = backend_with("method=topk,k=10,exact_below=256,audit=1,slot=9");
    ggml_backend_t below = backend_with("method=knn,k=10,exact_below=257,slot=10");
    for (int i = 0; i < 3; i++) {
        EXPECT_INT(ggml_backend_graph_compute(exact, q.graph), GGML_STATUS_SUCCESS);
        EXPECT_INT(ggml_backend_graph_compute(near, q.graph), GGML_STATUS_SUCCESS);
        EXPECT_INT(ggml_backend_graph_compute(below, q.graph), GGML_STATUS_SUCCESS);
    }
    ggml_backend_free(near);
    ggml_backend_free(exact);
    ggml_backend_free(below);
    question_free(&q);

    struct knnattn_report e = report_of_slot(8), n = report_of_slot(9), b = report_of_slot(10);
    EXPECT(e.calls == 3 && e.calls_exact == 3 && e.rows == 6 && e.rows_exact == 6);
    EXPECT_NEAR(e.keys_seen, 6 * CELLS, 0);
    EXPECT_NEAR(e.keys_full, 6 * CELLS, 0);
    EXPECT(e.audited == 0 && e.audit_mean < 0 && e.audit_p95 < 0);
    EXPECT(n.calls == 3 && n.calls_exact == 0 && n.rows == 6 && n.rows_exact == 0);
    EXPECT_NEAR(n.keys_seen, 6 * CELLS, 0);
    EXPECT(n.keys_full >= 60 && n.keys_full < 6 * CELLS / 2);
    EXPECT(n.tail_mass > 0 && n.tail_mass < 1);
    EXPECT(n.audited == 6 && n.audit_mean > 0 && n.audit_p95 > 0 && n.audit_p95 < 10);
    EXPECT(n.index_bytes > 0 && n.stale_events == 0 && n.fallbacks == 0 && n.time_s > 0);
    EXPECT(b.calls == 3 && b.calls_exact == 3 && b.tail_mass == 0);
}

/* What the mask hides does not count: in a sliding window every key is read, and there is no index, however large the cache. */
static void windows(void)
{
    for (int seen = 99; seen <= 100; seen++) {
        struct question q = question_behind(seen);
        ggml_backend_t backend = backend_with("method=topk,k=10,exact_below=100,slot=12");
        report_reset(12);
        EXPECT_INT(ggml_backend_graph_compute(backend, q.graph), GGML_STATUS_SUCCESS);
        struct knnattn_report r = report_of_slot(12);
        EXPECT_INT(r.calls_exact, seen < 100);
        EXPECT_NEAR(r.keys_seen, 2 * seen, 0);
        EXPECT(seen < 100 ? r.index_bytes == 0 && r.keys_full >= r.keys_seen : r.keys_full < r.keys_seen);
        ggml_backend_free(backend);
        question_free(&q);
    }
}

static void resets(void)
{
    struct question q = question_new();
    ggml_backend_t backend = backend_with("method=exact,slot=11");
    EXPECT_INT(ggml_backend_graph_compute(backend, q.graph), GGML_STATUS_SUCCESS);
    EXPECT_INT(report_of_slot(11).calls, 1);
    report_reset(11);
    EXPECT_INT(report_of_slot(11).calls, 0);
    EXPECT_INT(ggml_backend_graph_compute(backend, q.graph), GGML_STATUS_SUCCESS);
    EXPECT_INT(report_of_slot(11).calls, 1);
    report_reset(-1);
    report_reset(99);
    EXPECT_INT(report_of_slot(-1).calls, 0);
    EXPECT_INT(report_of_slot(99).calls, 0);
    ggml_backend_free(backend);
    question_free(&q);
}

struct seen {
    const struct ggml_tensor *op;
    int calls;
    float first;
};

static void on_call(void *user, const struct knnattn_operands *call)
{
    struct seen *seen = user;
    const struct ggml_tensor *op = seen->op;
    seen->calls++;
    seen->first = call->out.data[0];
    EXPECT(call->size == sizeof(*call) && call->layer == -1 && call->stream == 0 && call->mask.data == NULL);
    EXPECT(call->q.data == op->src[0]->data && call->k.data == op->src[1]->data && call->v.data == op->src[2]->data);
    EXPECT(call->q.type == KNA_F32 && call->q.heads == 2 && call->q.rows == 1 && call->q.dim == DIM);
    EXPECT(call->k.type == KNA_F16 && call->k.heads == 1 && call->k.rows == CELLS && call->k.row_stride_bytes == 2 * DIM);
    EXPECT(call->out.data == op->data && call->scale == 0.5f);
}

/* An observer sees its own slot, after the call, until it is taken away. */
static void observers(void)
{
    struct question q = question_new();
    ggml_backend_t backend = backend_with("method=exact,slot=11"), other = backend_with("method=exact,slot=12");
    struct seen seen = { .op = ggml_graph_node(q.graph, -1) };
    knnattn_observe_t observe = NULL;
    *(void **)&observe = symbol_of(ggml_backend_dev_backend_reg(device), "knnattn_observe");
    observe(11, on_call, &seen);
    observe(-1, on_call, &seen);
    observe(KNNATTN_SLOTS, on_call, &seen);
    EXPECT_INT(ggml_backend_graph_compute(other, q.graph), GGML_STATUS_SUCCESS);
    EXPECT_INT(seen.calls, 0);
    EXPECT_INT(ggml_backend_graph_compute(backend, q.graph), GGML_STATUS_SUCCESS);
    EXPECT_INT(seen.calls, 1);
    float *out = numbers_of(seen.op);
    EXPECT(seen.first == out[0] && out[0] != 0.0f);
    free(out);
    observe(11, NULL, NULL);
    EXPECT_INT(ggml_backend_graph_compute(backend, q.graph), GGML_STATUS_SUCCESS);
    EXPECT_INT(seen.calls, 1);
    ggml_backend_free(other);
    ggml_backend_free(backend);
    question_free(&q);
}

/* A program built against a shorter report gets that much and no more. */
static void shorter_report(void)
{
    struct knnattn_report report;
    memset(&report, 0x55, sizeof(report));
    report.size = offsetof(struct knnattn_report, rows);
    report_get(8, &report);
    EXPECT_INT(report.size, offsetof(struct knnattn_report, rows));
    EXPECT(report.calls != 0x5555555555555555);
    EXPECT_INT(report.rows, 0x5555555555555555);
}

static void without_work(void)
{
    for (int i = 0; i < 5; i++) {
        ggml_backend_t backend = backend_with("method=knn");
        EXPECT_TEXT(ggml_backend_name(backend), "kNN attention");
        ggml_backend_free(backend);
    }
    EXPECT(ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "something_else") == NULL);
    EXPECT(ggml_backend_load(getenv("KNA_PLUGIN")) == ggml_backend_dev_backend_reg(device));
}

int main(int argc, char **argv)
{
    wait_without_spinning(argv);
    test_begin(argc, argv);
    harness_open();
    TEST(messages);
    TEST(slots);
    TEST(windows);
    TEST(resets);
    TEST(observers);
    TEST(shorter_report);
    TEST(without_work);
    ggml_backend_free(cpu);
    return test_end();
}
