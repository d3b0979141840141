/*
 * parallel.h - a loop over OpenMP threads where the compiler has OpenMP, else a plain loop.
 */
#ifndef KNA_CLI_PARALLEL_H
#define KNA_CLI_PARALLEL_H

#ifdef _OPENMP
#    define KNA_PRAGMA(text) _Pragma(#    text)
#    define PARALLEL_FOR(threads) KNA_PRAGMA(omp parallel for num_threads(threads) schedule(static))
#else
#    define PARALLEL_FOR(threads)
#endif

#endif /* KNA_CLI_PARALLEL_H */
