/*
 * settings.h - what the user asked for, from the environment or from a line of text.
 *
 * Invariant: a struct knnattn_settings that leaves here is valid; whatever is not valid leaves as a sentence instead.
 */
#ifndef KNNATTN_SETTINGS_H
#define KNNATTN_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KNNATTN_MESSAGE_BYTES 512
#define KNNATTN_PATH_BYTES    4096

enum knnattn_method { KNNATTN_OFF, KNNATTN_EXACT, KNNATTN_TOPK, KNNATTN_KNN };

struct knnattn_settings {
    enum knnattn_method method;
    int64_t k, sinks, window, exact_below, full_every, index_kib;
    float eps, delta, audit;
    int cpu, threads, slot, summary;
    char report[KNNATTN_PATH_BYTES];
};

/* The name of a method, "off" to "knn". */
const char *knnattn_method_text(enum knnattn_method method);

/* Defaults overlaid by the variables KNNATTN_*; false with a sentence in message when one is wrong. */
bool knnattn_settings_from_environment(struct knnattn_settings *settings, char message[KNNATTN_MESSAGE_BYTES]);

/* Overlays "name=value,name=value"; false with a sentence in message, and *settings as before, when one is wrong. */
bool knnattn_settings_from_text(struct knnattn_settings *settings, const char *text, char message[KNNATTN_MESSAGE_BYTES]);

#endif
