/*
 * store_source.c - reading .npy and .npz for a store, and refusing what it could not hold before anything is written.
 *
 * A .npz is a zip archive of .npy files, stored or deflated (numpy.savez, numpy.savez_compressed); "keys.npy" is of the family keys.
 */
#define _GNU_SOURCE
#include "store_source.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zip.h>

#include "convert.h"

static const npy_want want = { 2, 2, 1, "(rows, dim)" };

/* ------------------------------------------------------------------ checks */

static float type_limit(int type)
{
    if (type == KNA_F16) return 65519.99f;
    if (type == KNA_BF16) return 3.3895313892515355e38f;
    if (type == KNA_Q8_0) return 65504.0f * 127.0f;
    return 3.402823466e38f;
}

static int check_numbers(const store_source *source)
{
    const int64_t d = source->array.shape[1];
    const kna_rows rows = { source->array.data, source->array.type, 1, source->array.shape[0], d, 0, 0, NULL };
    const float limit = type_limit(source->of.type);
    float *x = malloc((size_t)d * sizeof *x);
    if (!x) return cli_fail("%s: out of memory", source->label);
    int code = CLI_OK;
    for (int64_t row = 0; row < rows.rows && code == CLI_OK; row++) {
        convert_load(x, &rows, row);
        for (int64_t i = 0; i < d && code == CLI_OK; i++) {
            if (fabsf(x[i]) <= limit) continue;
            const char *what = isnan(x[i]) ? "NaN" : isinf(x[i]) ? "infinity" : "a number too large for ";
            code = cli_refuse("%s: %s%s at row %" PRId64 ", column %" PRId64, source->label, what,
                              isfinite(x[i]) ? store_type_name(source->of.type) : "", row, i);
        }
    }
    free(x);
    return code;
}

static int check_source(store_source *source, const store_target *target, const char *family)
{
    int code = store_family(target, family, &source->family);
    if (code != CLI_OK) return code;
    const int status = kna_store_family(target->store, source->family, &source->of);
    if (status != KNA_OK) return store_status(target, status);
    source->name = strdup(source->of.name);
    if (!source->name) return cli_fail("%s: out of memory", source->label);
    if (source->of.type == KNA_BYTES)
        return cli_refuse("%s: family %s is of bytes, which come from programs, not from arrays", source->label, source->of.name);
    if (source->array.shape[1] != source->of.dim)
        return cli_refuse("%s: rows of %" PRId64 " numbers; family %s of %s has %" PRId64, source->label, source->array.shape[1],
                          source->of.name, target->folder, source->of.dim);
    return check_numbers(source);
}

/* ------------------------------------------------------------------ .npz */

static int refuse_member(zip_t *archive, const char *name)
{
    int (*say)(const char *, ...) CLI_PRINTF(1, 2) = errno == ENOMEM ? cli_fail : cli_refuse; /* zlib's want of it is ZIP_ER_ZLIB there */
    return say("%s: cannot be read: %s", name, zip_strerror(archive));
}

/* npy.c asks how far it has read; a stream that cannot go back answers that alone. */
typedef struct member {
    zip_file_t *file;
    off64_t at;
} member;

static ssize_t read_on(void *cookie, char *to, size_t bytes)
{
    member *m = cookie;
    const ssize_t got = (ssize_t)zip_fread(m->file, to, bytes);
    if (got > 0) m->at += got;
    if (got < 0) errno = EIO;
    return got;
}

static int seek_nowhere(void *cookie, off64_t *offset, int whence)
{
    member *m = cookie;
    if (whence != SEEK_CUR || *offset != 0) return -1;
    *offset = m->at;
    return 0;
}

static int read_member(store_source *source, zip_t *archive, zip_uint64_t index, int64_t bytes)
{
    errno = 0;
    member m = { zip_fopen_index(archive, index, 0), 0 };
    if (!m.file) return refuse_member(archive, source->label);
    FILE *stream = fopencookie(&m, "r", (cookie_io_functions_t){ read_on, NULL, seek_nowhere, NULL });
    const int code = stream ? npy_read_from(&source->array, stream, bytes, source->label, &want) : cli_fail("%s: out of memory", source->label);
    if (stream) fclose(stream);
    zip_fclose(m.file);
    return code;
}

static int take_member(store_sources *sources, const store_target *target, const char *path, zip_t *archive, zip_uint64_t index)
{
    zip_stat_t about;
    char family[256];
    errno = 0;
    if (zip_stat_index(archive, index, 0, &about) != 0 || !(about.valid & ZIP_STAT_NAME) || !(about.valid & ZIP_STAT_SIZE))
        return refuse_member(archive, path);
    const size_t length = strlen(about.name);
    if (length < 5 || strcmp(about.name + length - 4, ".npy") != 0 || length - 4 >= sizeof family)
        return cli_refuse("%s: member '%s' is not called FAMILY.npy", path, about.name);
    snprintf(family, sizeof family, "%.*s", (int)length - 4, about.name);
    store_source *source = &sources->items[sources->count++];
    if (asprintf(&source->label, "%s:%s", path, about.name) < 0) {
        source->label = NULL;
        return cli_fail("%s: out of memory", path);
    }
    if (about.size > INT64_MAX) return cli_refuse("%s: too large", source->label);
    if (kna_store_family_named(target->store, family) < 0)
        return cli_refuse("%s: %s has no family '%s', see 'kna store stat'", source->label, target->folder, family);
    const int code = read_member(source, archive, index, (int64_t)about.size);
    return code == CLI_OK ? check_source(source, target, family) : code;
}

static int check_twins(const store_sources *sources)
{
    for (int i = 0; i < sources->count; i++)
        for (int j = 0; j < i; j++)
            if (sources->items[i].family == sources->items[j].family) return cli_refuse("%s: is there twice", sources->items[i].label);
    return CLI_OK;
}

static int read_archive(store_sources *sources, const store_target *target, const char *path)
{
    int why = 0;
    errno = 0;
    zip_t *archive = zip_open(path, ZIP_RDONLY | ZIP_CHECKCONS, &why);
    if (!archive) {
        const int no_memory = errno == ENOMEM; /* libzip says of some that it is no archive then */
        zip_error_t error;
        zip_error_init_with_code(&error, why);
        const int code = why == ZIP_ER_OPEN || why == ZIP_ER_NOENT || why == ZIP_ER_READ || why == ZIP_ER_MEMORY || no_memory
                             ? cli_fail("%s: cannot read: %s", path, zip_error_strerror(&error))
                             : cli_refuse("%s: not a .npz file: %s", path, zip_error_strerror(&error));
        zip_error_fini(&error);
        return code;
    }
    const zip_int64_t count = zip_get_num_entries(archive, 0);
    int code = CLI_OK;
    if (count < 1 || count > KNA_MAX_FAMILIES) code = cli_refuse("%s: %" PRId64 " members; 1..%d can be read", path, (int64_t)count, KNA_MAX_FAMILIES);
    if (code == CLI_OK) sources->items = calloc((size_t)count, sizeof *sources->items);
    if (code == CLI_OK && !sources->items) code = cli_fail("%s: out of memory", path);
    for (zip_int64_t i = 0; i < count && code == CLI_OK; i++) code = take_member(sources, target, path, archive, (zip_uint64_t)i);
    zip_discard(archive);
    return code == CLI_OK ? check_twins(sources) : code;
}

/* ------------------------------------------------------------------ either */

static int read_array(store_sources *sources, const store_target *target, const char *path, const char *family)
{
    store_source *source = sources->items = calloc(1, sizeof *sources->items);
    if (!source) return cli_fail("%s: out of memory", path);
    sources->count = 1;
    source->label = strdup(path);
    if (!source->label) return cli_fail("%s: out of memory", path);
    const int code = npy_read(&source->array, source->label, &want);
    return code == CLI_OK ? check_source(source, target, family) : code;
}

int store_sources_read(store_sources *sources, const store_target *target, const char *path, const char *family)
{
    const size_t length = strlen(path);
    const int is_archive = length > 4 && strcmp(path + length - 4, ".npz") == 0;
    *sources = (store_sources){ .items = NULL };
    if (is_archive && family) return cli_refuse("--family: the members of %s are called as theirs", path);
    const int code = is_archive ? read_archive(sources, target, path) : read_array(sources, target, path, family);
    if (code != CLI_OK) store_sources_free(sources);
    return code;
}

void store_sources_free(store_sources *sources)
{
    for (int i = 0; i < sources->count; i++) {
        npy_free(&sources->items[i].array);
        free(sources->items[i].label);
        free(sources->items[i].name);
    }
    free(sources->items);
    *sources = (store_sources){ .items = NULL };
}
