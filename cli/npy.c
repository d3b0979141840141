/*
 * npy.c - reading and writing .npy, after NumPy's own description (numpy.lib.format).
 *
 * A file is: 6 bytes magic, 2 bytes version, the header's length (2 bytes little-endian in 1.0, 4 in 2.0), the header, the data.
 * The header is the text of a Python dict with exactly the keys descr, fortran_order and shape, followed by blanks.
 * Invariant: nothing is allocated from a size in the file before that size was compared with the file's length, where it has one.
 */
#define _GNU_SOURCE
#include "npy.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"

#define MAGIC_BYTES      6
#define HEADER_MAX_BYTES 65536 /* NumPy writes 118 */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are read and written as they lie in memory");

static const unsigned char magic[MAGIC_BYTES] = { 0x93, 'N', 'U', 'M', 'P', 'Y' };

/* ------------------------------------------------------------------ header text */

typedef struct header {
    const char *path;
    const char *at, *end;
    char descr[32];
    int fortran;
    npy_array *array;
    int has_descr, has_order, has_shape;
} header;

static int malformed(const header *h, const char *what)
{
    return cli_refuse("%s: malformed .npy header: %s", h->path, what);
}

static void skip_blanks(header *h)
{
    while (h->at < h->end && isspace((unsigned char)*h->at)) h->at++;
}

/* Take one character if it is next, after blanks. */
static int take(header *h, char wanted)
{
    skip_blanks(h);
    if (h->at == h->end || *h->at != wanted) return 0;
    h->at++;
    return 1;
}

static int take_word(header *h, const char *word)
{
    const size_t length = strlen(word);
    skip_blanks(h);
    if ((size_t)(h->end - h->at) < length || memcmp(h->at, word, length) != 0) return 0;
    h->at += length;
    return 1;
}

static int take_string(header *h, char *to, size_t size)
{
    skip_blanks(h);
    if (h->at == h->end || (*h->at != '\'' && *h->at != '"')) return 0;
    const char quote = *h->at;
    const char *close = memchr(h->at + 1, quote, (size_t)(h->end - h->at - 1));
    if (!close || (size_t)(close - h->at) > size) return 0;
    for (const char *at = h->at + 1; at < close; at++)
        if (!isprint((unsigned char)*at) || *at == '\\') return 0;
    memcpy(to, h->at + 1, (size_t)(close - h->at - 1));
    to[close - h->at - 1] = '\0';
    h->at = close + 1;
    return 1;
}

static int parse_dimension(header *h)
{
    int64_t value = 0;
    skip_blanks(h);
    if (h->at < h->end && *h->at == '-') return cli_refuse("%s: a negative dimension in the shape", h->path);
    if (h->at == h->end || !isdigit((unsigned char)*h->at)) return malformed(h, "the shape is not a tuple of integers");
    for (; h->at < h->end && isdigit((unsigned char)*h->at); h->at++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, *h->at - '0', &value))
            return cli_refuse("%s: a dimension in the shape does not fit 64 bits", h->path);
    if (h->array->rank == NPY_RANK_MAX) return cli_refuse("%s: more than %d dimensions", h->path, NPY_RANK_MAX);
    h->array->shape[h->array->rank++] = value;
    return CLI_OK;
}

static int parse_shape(header *h)
{
    if (!take(h, '(')) return malformed(h, "the shape is not a tuple");
    while (!take(h, ')')) {
        const int code = parse_dimension(h);
        if (code != CLI_OK) return code;
        const int comma = take(h, ',');
        if (!comma && h->array->rank == 1) return malformed(h, "the shape is not a tuple"); /* Python reads "(3)" as a number */
        if (!comma && (h->at == h->end || *h->at != ')')) return malformed(h, "the shape is not a tuple of integers");
    }
    return CLI_OK;
}

static int parse_order(header *h)
{
    if (take_word(h, "True"))
        h->fortran = 1;
    else if (!take_word(h, "False"))
        return malformed(h, "fortran_order is neither True nor False");
    return CLI_OK;
}

static int parse_descr(header *h)
{
    skip_blanks(h);
    if (h->at < h->end && *h->at == '[') return cli_refuse("%s: a structured array; plain numbers are needed", h->path);
    return take_string(h, h->descr, sizeof h->descr) ? CLI_OK : malformed(h, "descr is not a string");
}

static int parse_entry(header *h)
{
    char key[32];
    if (!take_string(h, key, sizeof key) || !take(h, ':')) return malformed(h, "a key is not a string followed by ':'");
    if (strcmp(key, "descr") == 0 && !h->has_descr++) return parse_descr(h);
    if (strcmp(key, "fortran_order") == 0 && !h->has_order++) return parse_order(h);
    if (strcmp(key, "shape") == 0 && !h->has_shape++) return parse_shape(h);
    return cli_refuse("%s: malformed .npy header: unknown or repeated key '%s'", h->path, key);
}

static int parse_header(header *h)
{
    if (!take(h, '{')) return malformed(h, "no '{' at the start");
    while (!take(h, '}')) {
        const int code = parse_entry(h);
        if (code != CLI_OK) return code;
        skip_blanks(h);
        if (!take(h, ',') && (h->at == h->end || *h->at != '}')) return malformed(h, "no ',' or '}' after a value");
    }
    skip_blanks(h);
    if (h->at != h->end) return malformed(h, "text after '}'");
    if (!h->has_descr) return malformed(h, "descr is missing");
    if (!h->has_order) return malformed(h, "fortran_order is missing");
    return h->has_shape ? CLI_OK : malformed(h, "shape is missing");
}

/* ------------------------------------------------------------------ what the header says */

static int check_type(const header *h, const npy_want *want)
{
    const char *needed = want->takes_f16 ? "'<f4' (float32) or '<f2' (float16)" : "'<f4' (float32)";
    if (strcmp(h->descr, "<f4") == 0)
        h->array->type = KNA_F32;
    else if (strcmp(h->descr, "<f2") == 0 && want->takes_f16)
        h->array->type = KNA_F16;
    else if (h->descr[0] == '>')
        return cli_refuse("%s: big-endian numbers ('%s'); %s is needed", h->path, h->descr, needed);
    else
        return cli_refuse("%s: numbers of type '%s'; %s is needed", h->path, h->descr, needed);
    return CLI_OK;
}

static int check_rank(const npy_array *array, const npy_want *want)
{
    char shape[NPY_SHAPE_TEXT];
    if (array->rank >= want->rank_low && array->rank <= want->rank_high) return CLI_OK;
    return cli_refuse("%s: shape %s; %s is needed", array->path, npy_shape(shape, array), want->axes);
}

static int check_size(npy_array *array)
{
    char shape[NPY_SHAPE_TEXT];
    int64_t bytes = array->type == KNA_F32 ? 4 : 2;
    for (int i = 0; i < array->rank; i++)
        if (__builtin_mul_overflow(bytes, array->shape[i], &bytes) || array->shape[i] > KNA_MAX_ROWS)
            return cli_refuse("%s: shape %s is too large", array->path, npy_shape(shape, array));
    array->data_bytes = (size_t)bytes;
    return CLI_OK;
}

const char *npy_shape(char text[NPY_SHAPE_TEXT], const npy_array *array)
{
    size_t used = (size_t)snprintf(text, NPY_SHAPE_TEXT, "(");
    for (int i = 0; i < array->rank; i++)
        used += (size_t)snprintf(text + used, NPY_SHAPE_TEXT - used, "%s%" PRId64, i ? ", " : "", array->shape[i]);
    snprintf(text + used, NPY_SHAPE_TEXT - used, array->rank == 1 ? ",)" : ")");
    return text;
}

/* ------------------------------------------------------------------ the file */

static int cannot_read(const char *path)
{
    return cli_fail("%s: cannot read: %s", path, strerror(errno));
}

/* Read exactly `bytes`; 1 if they were there. */
static int read_all(FILE *file, void *to, size_t bytes)
{
    return fread(to, 1, bytes, file) == bytes;
}

/* Magic, version and length. *bytes becomes the length of the header's text. */
static int read_prefix(FILE *file, const char *path, size_t *bytes)
{
    unsigned char start[MAGIC_BYTES + 2] = { 0 };
    unsigned char size[4] = { 0, 0, 0, 0 };
    if (!read_all(file, start, MAGIC_BYTES) && ferror(file)) return cannot_read(path);
    if (memcmp(start, magic, MAGIC_BYTES) != 0) return cli_refuse("%s: not a .npy file", path);
    if (!read_all(file, start + MAGIC_BYTES, 2)) return cli_refuse("%s: the .npy header is truncated", path);
    const int major = start[MAGIC_BYTES];
    const int minor = start[MAGIC_BYTES + 1];
    if ((major != 1 && major != 2) || minor != 0)
        return cli_refuse("%s: .npy format %d.%d; 1.0 and 2.0 can be read", path, major, minor);
    if (!read_all(file, size, major == 1 ? 2 : 4)) return cli_refuse("%s: the .npy header is truncated", path);
    *bytes = (size_t)size[0] | (size_t)size[1] << 8 | (size_t)size[2] << 16 | (size_t)size[3] << 24;
    if (*bytes > HEADER_MAX_BYTES)
        return cli_refuse("%s: a .npy header of %zu bytes; at most %d can be read", path, *bytes, HEADER_MAX_BYTES);
    return CLI_OK;
}

static int read_header(FILE *file, npy_array *array, const npy_want *want)
{
    size_t bytes = 0;
    int code = read_prefix(file, array->path, &bytes);
    if (code != CLI_OK) return code;
    char *text = malloc(bytes + 1);
    if (!text) return cli_fail("%s: out of memory", array->path);
    header h = { array->path, text, text + bytes, "", 0, array, 0, 0, 0 };
    code = read_all(file, text, bytes) ? parse_header(&h) : cli_refuse("%s: the .npy header is truncated", array->path);
    if (code == CLI_OK) code = check_type(&h, want);
    if (code == CLI_OK && h.fortran)
        code = cli_refuse("%s: Fortran order; C order is needed (numpy.ascontiguousarray)", array->path);
    free(text);
    if (code == CLI_OK) code = check_rank(array, want);
    return code == CLI_OK ? check_size(array) : code;
}

static int refuse_length(const npy_array *array, int64_t found)
{
    char shape[NPY_SHAPE_TEXT];
    return cli_refuse("%s: %" PRId64 " bytes of data; shape %s needs %zu", array->path, found, npy_shape(shape, array),
                      array->data_bytes);
}

/* A file with a length is compared before anything is allocated. */
static int check_length(FILE *file, int64_t bytes, const npy_array *array)
{
    struct stat status;
    if (bytes >= 0) {
        const int64_t left = bytes - (int64_t)ftello(file);
        return left == (int64_t)array->data_bytes ? CLI_OK : refuse_length(array, left);
    }
    if (fstat(fileno(file), &status) != 0) return cannot_read(array->path);
    if (!S_ISREG(status.st_mode)) return CLI_OK;
    const int64_t found = (int64_t)status.st_size - (int64_t)ftello(file);
    return found == (int64_t)array->data_bytes ? CLI_OK : refuse_length(array, found);
}

static int read_data(FILE *file, int64_t bytes, npy_array *array)
{
    const int code = check_length(file, bytes, array);
    if (code != CLI_OK) return code;
    array->data = malloc(array->data_bytes ? array->data_bytes : 1);
    if (!array->data) return cli_fail("%s: out of memory: %zu bytes", array->path, array->data_bytes);
    const size_t found = fread(array->data, 1, array->data_bytes, file);
    if (ferror(file)) return cannot_read(array->path);
    if (found != array->data_bytes) return refuse_length(array, (int64_t)found);
    if (getc(file) != EOF) return cli_refuse("%s: more bytes follow the data", array->path);
    return ferror(file) ? cannot_read(array->path) : CLI_OK;
}

int npy_read_from(npy_array *array, FILE *file, int64_t bytes, const char *path, const npy_want *want)
{
    memset(array, 0, sizeof *array);
    array->path = path;
    int code = read_header(file, array, want);
    if (code == CLI_OK) code = read_data(file, bytes, array);
    if (code != CLI_OK) npy_free(array);
    return code;
}

int npy_read(npy_array *array, const char *path, const npy_want *want)
{
    memset(array, 0, sizeof *array);
    FILE *file = fopen(path, "rb");
    if (!file) return cannot_read(path);
    const int code = npy_read_from(array, file, -1, path, want);
    fclose(file);
    return code;
}

void npy_free(npy_array *array)
{
    free(array->data);
    array->data = NULL;
}

/* Magic, version and header; the numbers follow. */
static void write_header(FILE *to, const char *descr, int rank, const int64_t *shape)
{
    char dict[NPY_SHAPE_TEXT + 64];
    char text[NPY_SHAPE_TEXT];
    npy_array array = { NULL, 0, rank, { 0 }, NULL, 0 };
    for (int i = 0; i < rank; i++) array.shape[i] = shape[i];
    const int length =
        snprintf(dict, sizeof dict, "{'descr': '%s', 'fortran_order': False, 'shape': %s, }", descr, npy_shape(text, &array));
    const int unpadded = MAGIC_BYTES + 4 + length + 1;
    const int padding = (64 - unpadded % 64) % 64; /* the data start at a multiple of 64 */
    const int bytes = length + padding + 1;
    const unsigned char prefix[4] = { 1, 0, (unsigned char)(bytes & 0xff), (unsigned char)(bytes >> 8) };
    fwrite(magic, 1, MAGIC_BYTES, to);
    fwrite(prefix, 1, sizeof prefix, to);
    fprintf(to, "%s%*s\n", dict, padding, "");
}

static size_t count_numbers(int rank, const int64_t *shape)
{
    size_t count = 1;
    for (int i = 0; i < rank; i++) count *= (size_t)shape[i];
    return count;
}

void npy_write(FILE *to, int rank, const int64_t *shape, const float *data)
{
    npy_write_as(to, KNA_F32, rank, shape, data);
}

void npy_write_head(FILE *to, int type, int rank, const int64_t *shape)
{
    write_header(to, type == KNA_F32 ? "<f4" : type == KNA_BYTES ? "|u1" : "<f2", rank, shape);
}

void npy_write_as(FILE *to, int type, int rank, const int64_t *shape, const void *data)
{
    npy_write_head(to, type, rank, shape);
    fwrite(data, type == KNA_F32 ? 4 : 2, count_numbers(rank, shape), to);
}

void npy_write_head_i64(FILE *to, int rank, const int64_t *shape)
{
    write_header(to, "<i8", rank, shape);
}

void npy_write_ids(FILE *to, int rank, const int64_t *shape, const int32_t *ids)
{
    const size_t count = count_numbers(rank, shape);
    npy_write_head_i64(to, rank, shape);
    for (size_t i = 0; i < count; i++) {
        const int64_t id = ids[i];
        fwrite(&id, sizeof id, 1, to);
    }
}
