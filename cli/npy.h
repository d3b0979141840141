/*
 * npy.h - NumPy's .npy files: format 1.0 and 2.0, C order, little-endian float32 and float16 in; format 1.0 out.
 *
 * The reader is strict: whatever is not exactly that is refused with a message naming the file and what was found.
 */
#ifndef KNA_CLI_NPY_H
#define KNA_CLI_NPY_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define NPY_RANK_MAX 8

typedef struct npy_array {
    const char *path; /* as given to npy_read(), for messages */
    int type;         /* KNA_F32 or KNA_F16 */
    int rank;
    int64_t shape[NPY_RANK_MAX]; /* each >= 0 */
    void *data;                  /* owned; NULL while nothing is read */
    size_t data_bytes;
} npy_array;

/* What a reader wants: a rank in low..high whose axes are called `axes` in messages; float16 or only float32. */
typedef struct npy_want {
    int rank_low, rank_high;
    int takes_f16;
    const char *axes;
} npy_want;

/* npy_read() - read a file whole. Returns CLI_OK, or, having printed why, CLI_FAILED (cannot be read, no memory) or CLI_REFUSED. */
int npy_read(npy_array *array, const char *path, const npy_want *want);

/* npy_read_from() - the same from an open stream, which stays open. bytes: its length, to compare with before anything is allocated; -1: that of
 * the file behind it, if it has one. */
int npy_read_from(npy_array *array, FILE *file, int64_t bytes, const char *path, const npy_want *want);

/* npy_free() - free the data. An array of zeros is fine. */
void npy_free(npy_array *array);

/* npy_shape() - "(3, 4, 5)" into text, which is returned. */
#define NPY_SHAPE_TEXT 192
const char *npy_shape(char text[NPY_SHAPE_TEXT], const npy_array *array);

/* npy_write() - header and float32 numbers. Errors stay in the stream; cli_output_commit() finds them. */
void npy_write(FILE *to, int rank, const int64_t *shape, const float *data);

/* npy_write_head() - the header alone, for numbers of a type: KNA_F32, KNA_F16 or KNA_BYTES (uint8). They must follow. */
void npy_write_head(FILE *to, int type, int rank, const int64_t *shape);

/* npy_write_as() - header and numbers of a type, KNA_F32 or KNA_F16. */
void npy_write_as(FILE *to, int type, int rank, const int64_t *shape, const void *data);

/* npy_write_head_i64() - the header alone, for int64 that must follow. */
void npy_write_head_i64(FILE *to, int rank, const int64_t *shape);

/* npy_write_ids() - header and the numbers as int64. */
void npy_write_ids(FILE *to, int rank, const int64_t *shape, const int32_t *ids);

#endif /* KNA_CLI_NPY_H */
