/*
 * fuzz.h - what the fuzzers share. Each takes any bytes; whatever they are, a decoder refuses them or gives what can be used. They are
 * programs of libFuzzer (KNA_FUZZ, clang), and replayed in every build (replay.c).
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

/* What must hold of any input. */
#define MUST(condition) ((condition) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition), abort()))

#endif
