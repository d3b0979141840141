/*
 * random.h - numbers that are a function of their place, so that operands are the same on every machine and for any number of threads.
 */
#ifndef KNA_CLI_RANDOM_H
#define KNA_CLI_RANDOM_H

#include <stdint.h>

#define CLI_GOLDEN 0x9e3779b97f4a7c15u

/* SplitMix64's finaliser. */
static inline uint64_t cli_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

#endif /* KNA_CLI_RANDOM_H */
