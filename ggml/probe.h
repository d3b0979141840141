/*
 * probe.h - passing llama.cpp's test of where flash attention would run.
 *
 * With "-fa auto", its default, llama.cpp lays out a graph of one token per sequence when a context is made, looks on which
 * device attention lands, and gives flash attention up when that is not the layer's own. Here it would land on another device
 * of the same memory, which is no loss; so until a graph of another shape comes, as it does next, attention is left to the CPU.
 * A program that asks for flash attention outright loses nothing: graphs are laid out several times before one is computed. Where all
 * graphs have one shape (batches of one token), the test is over when a graph is about to be computed.
 */
#ifndef KNNATTN_PROBE_H
#define KNNATTN_PROBE_H

#include <ggml.h>
#include <stdbool.h>

/* A context is being made: tests may come. */
void knnattn_probe_open(void);

/* A graph is about to be computed: the next one laid out is no test. */
void knnattn_probe_close(void);

/* Whether this FLASH_ATTN_EXT may belong to the test and must be left to the CPU. */
bool knnattn_probe_is_open(const struct ggml_tensor *op);

#endif
