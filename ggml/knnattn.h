/*
 * knnattn.h - what a program in the same process may ask of the plugin libggml-knnattn.so, beyond what ggml asks of it.
 *
 * Every llama.cpp program loads the plugin by GGML_BACKEND_PATH and steers it by environment variables, read once when it
 * is loaded; a variable that is wrong or unknown is named on stderr and the plugin is not loaded. A program that holds
 * several contexts under different settings uses the functions below instead, found by name:
 *
 *     ggml_backend_reg_t reg = ggml_backend_load(".../libggml-knnattn.so");
 *     knnattn_configure_t configure = (knnattn_configure_t) ggml_backend_reg_get_proc_address(reg, "knnattn_configure");
 *
 * Settings, as environment variables and, in small letters without KNNATTN_, in knnattn_configure():
 *
 *     KNNATTN_METHOD       off | exact | topk | knn: who computes attention; off leaves it to llama.cpp      (knn)
 *     KNNATTN_K            topk: keys read; knn: clusters looked into, see k_near in kna.h                    (384)
 *     KNNATTN_EPS          knn: raise k until the estimated distance to softmax is at most this; 0: never   (0)
 *     KNNATTN_DELTA        knn: at most about this share of the rows is off by more than EPS; 0: EPS is of estimates (0)
 *     KNNATTN_SINKS        knn: first keys always read in full                                              (4)
 *     KNNATTN_WINDOW       knn: most recent keys always read in full                                        (64)
 *     KNNATTN_EXACT_BELOW  every key is read while the last query of a call sees fewer                      (1024)
 *     KNNATTN_FULL_EVERY   R: layers 0, R, 2 R .. of the cache read every key, and have no index; 1: all do      (none)
 *     KNNATTN_INDEX_KIB    most memory for the indexes of a context, in KiB; above, every key is read; 0: any (0)
 *     KNNATTN_AUDIT        share of rows also computed exactly, for the report                              (0)
 *     KNNATTN_CPU          best | ref | avx2 | avx512 | avx512vnni | neon                                   (best)
 *     KNNATTN_THREADS      threads; 0: as many as the program gives its CPU backend                         (0)
 *
 * only as variables:
 *
 *     KNNATTN_REPORT       file that gets what was done, as JSON, when a context is freed and at exit
 *     KNNATTN_SUMMARY      1: one line on stderr at exit
 *
 * and only in knnattn_configure():
 *
 *     slot                 0 .. KNNATTN_SLOTS - 1: where the work of these contexts is counted              (0)
 */
#ifndef KNNATTN_H
#define KNNATTN_H

#include "kna.h"

#include <stddef.h>
#include <stdint.h>

#define KNNATTN_SLOTS 16

/*
 * knnattn_configure() - settings for the contexts created from now on, e.g. "method=knn,k=256,slot=2".
 *
 * Each call starts again from the settings that the environment gave. A context keeps the settings it was created under.
 * Which operations the plugin takes (method off or not) is asked when a graph is built, that is, inside llama_decode():
 * a program that alternates between contexts configures each one's settings before each of its llama_decode() calls.
 * Returns 0, or -1 with a sentence in message (which may be NULL); nothing has changed then.
 */
typedef int (*knnattn_configure_t)(const char *settings, char *message, size_t message_bytes);

/* What the contexts of one slot did. A row is one (query, head) pair; a call is one layer of one batch and one stream. */
struct knnattn_report {
    size_t size; /* set to sizeof(struct knnattn_report) before the call */
    int64_t calls;
    int64_t calls_exact; /* of which every key was read: method exact, few cells, a layer of FULL_EVERY, or memory short or above
                            its limit */
    int64_t rows;
    int64_t rows_exact;  /* rows that took every key they see */
    double keys_seen;    /* sum over rows of the keys the mask allows */
    double keys_full;    /* sum over rows of the keys read in full */
    double keys_touched; /* bytes read / bytes exact attention reads; mean, weighted by keys seen */
    double tail_mass;    /* mean share of the softmax that was estimated (knn) or dropped (topk) */
    double error_est;    /* mean over the rows where it was estimated; negative: nowhere */
    double error_est_max;
    int64_t audited;      /* rows also computed exactly */
    double audit_mean;    /* relative error of those; negative: none */
    double audit_p95;     /* from above: the 95th percentile over rows of their call's 95th percentile; negative: none */
    double time_s;        /* in attention, index included */
    double index_s;       /* of which: bringing indexes up to date */
    int64_t rows_indexed; /* cache rows encoded, repeats included */
    size_t index_bytes;   /* most held at once by the indexes of one context */
    size_t scratch_bytes; /* most held at once by a call */
    int64_t stale_events; /* times the cache had changed without notice and was encoded again */
    int64_t stale_rows;   /* rows found changed on those occasions */
    int64_t fallbacks;    /* calls done exactly because memory for an index was short */
};

/* knnattn_report_get() - read the totals of a slot; a slot outside the range reads as empty. */
typedef void (*knnattn_report_get_t)(int slot, struct knnattn_report *report);

/* knnattn_report_reset() - let the totals of a slot start again from zero. */
typedef void (*knnattn_report_reset_t)(int slot);

/* One call of attention, of one stream, as it was computed. Everything pointed to is borrowed until the observer returns. */
struct knnattn_operands {
    size_t size;      /* sizeof(struct knnattn_operands) */
    int layer;        /* of the key-value cache; -1: the keys are no cache */
    int64_t stream;   /* of the call's streams */
    float scale;      /* logit = scale * <q,k>: queries come unscaled */
    kna_rows q;       /* (h,m,d), f32 */
    kna_rows k, v;    /* (h_kv,n,d), (h_kv,n,dv): the cells of the cache in view, unused ones included */
    kna_mask mask;    /* which query sees which cell */
    kna_out_rows out; /* (h,m,dv): what the call returned */
};

/* Called in the thread that computes the graph; must not call into ggml. */
typedef void (*knnattn_observer_t)(void *user, const struct knnattn_operands *operands);

/*
 * knnattn_observe() - show every call of the contexts of one slot to an observer, after it was computed; NULL: to nobody.
 *
 * A slot outside the range is ignored. An observer that is replaced while a graph is computed may be called once more.
 */
typedef void (*knnattn_observe_t)(int slot, knnattn_observer_t observer, void *user);

#endif
