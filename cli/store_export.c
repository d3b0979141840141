/*
 * store_export.c - `kna store export`: rows of many documents as a .npy with a sidecar that `kna store add` reads, or as .safetensors.
 *
 * A .safetensors file is the length of a header (u64, little-endian), the header (JSON: for each tensor dtype, shape and where its
 * bytes are), and the bytes of all tensors one after the other.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "npy.h"
#include "store.h"

typedef struct request {
    const char *family, *out, *meta, *safetensors, *filter;
} request;

#define AT(member) offsetof(request, member)

static const cli_option options[] = {
    { "family", 0, CLI_TEXT, AT(family), 0, 0, NULL, "NAME", "whose rows (default: the only one; --safetensors: all)" },
    { "out", 0, CLI_TEXT, AT(out), 0, 0, NULL, "FILE", ".npy of all rows, (rows,dim)" },
    { "meta", 0, CLI_TEXT, AT(meta), 0, 0, NULL, "FILE", "sidecar for it, JSON lines, as for add" },
    { "safetensors", 0, CLI_TEXT, AT(safetensors), 0, 0, NULL, "FILE", "a tensor per family (int8: and FAMILY.scale)" },
    { "filter", 0, CLI_TEXT, AT(filter), 0, 0, NULL, "SQL", "only documents it is true of, as for ls" },
    { .name = NULL },
};

static const cli_usage usage = {
    "store export",
    "DIR --out all.npy --meta all.jsonl [options]",
    "Documents in the order of their numbers. In .npy f16 is float16 and int8 float32; in\n"
    ".safetensors rows are as they are kept. All files appear, or none.\n",
};

/* The documents meant, and of a family how many rows they have. */
typedef struct exported {
    const store_target *target;
    int64_t *ids;
    int64_t count;
} exported;

static int extent(const exported *e, int family, int64_t i, int64_t *rows)
{
    int64_t first = 0;
    const int status = kna_store_extent(e->target->store, e->ids[i], family, &first, rows);
    return status == KNA_OK ? CLI_OK : store_status(e->target, status);
}

static int total(const exported *e, int family, int64_t *rows)
{
    int code = CLI_OK;
    *rows = 0;
    for (int64_t i = 0; i < e->count && code == CLI_OK; i++) {
        int64_t here = 0;
        code = extent(e, family, i, &here);
        *rows += here;
    }
    return code;
}

/* What is written of the rows of each document. */
typedef int (*writer)(FILE *to, const kna_rows *rows);

static int write_all(FILE *to, const exported *e, int family, writer write)
{
    int code = CLI_OK;
    for (int64_t i = 0; i < e->count && code == CLI_OK; i++) {
        kna_store_rows rows;
        if (i + 1 < e->count) kna_store_prefetch(e->target->store, e->ids[i + 1], family);
        const int status = kna_store_rows_of(e->target->store, e->ids[i], family, &rows);
        code = status == KNA_OK ? write(to, &rows.rows) : store_status(e->target, status);
        cli_progress_share((double)(i + 1) / (double)e->count);
    }
    return code;
}

/* ------------------------------------------------------------------ .npy and sidecar */

static int write_npy(const exported *e, int family, const char *path)
{
    kna_family of;
    int64_t rows = 0;
    const int status = kna_store_family(e->target->store, family, &of);
    if (status != KNA_OK) return store_status(e->target, status);
    int code = total(e, family, &rows);
    if (code != CLI_OK) return code;
    if (rows > KNA_MAX_ROWS) return cli_refuse("--out: %" PRId64 " rows; at most %d, take --filter", rows, KNA_MAX_ROWS);
    FILE *to = cli_output_open(path);
    if (!to) return CLI_FAILED;
    npy_write_head(to, store_npy_type(of.type), 2, (const int64_t[]){ rows, of.dim });
    code = write_all(to, e, family, store_rows_write);
    return code == CLI_OK ? cli_output_finish() : code;
}

static int write_line(FILE *to, const exported *e, int family, int64_t i)
{
    kna_document document;
    int64_t rows = 0;
    const int status = kna_store_document(e->target->store, e->ids[i], &document);
    if (status != KNA_OK) return store_status(e->target, status);
    const int code = extent(e, family, i, &rows);
    if (code != CLI_OK) return code;
    cJSON *line = cli_json_object(NULL, NULL);
    store_document_json(line, &document);
    cli_json_int(line, "rows", rows);
    cli_json_int(line, "time", document.time_us);
    return cli_json_line(to, line);
}

static int write_sidecar(const exported *e, int family, const char *path)
{
    FILE *to = cli_output_open(path);
    int code = to ? CLI_OK : CLI_FAILED;
    for (int64_t i = 0; i < e->count && code == CLI_OK; i++) code = write_line(to, e, family, i);
    return code == CLI_OK ? cli_output_finish() : code;
}

/* ------------------------------------------------------------------ .safetensors */

static const char *tensor_type(int type)
{
    return type == KNA_F32 ? "F32" : type == KNA_F16 ? "F16" : type == KNA_BF16 ? "BF16" : type == KNA_I8 ? "I8" : "U8";
}

static int64_t row_bytes(const kna_family *family)
{
    return family->type == KNA_BYTES ? family->dim : (int64_t)kna_type_row_bytes(family->type, family->dim);
}

static int write_raw(FILE *to, const kna_rows *rows)
{
    const kna_family like = { NULL, rows->type, rows->dim };
    if (rows->rows) fwrite(rows->data, 1, (size_t)(rows->rows * row_bytes(&like)), to);
    return CLI_OK;
}

static int write_scales(FILE *to, const kna_rows *rows)
{
    if (rows->rows) fwrite(rows->scales, sizeof *rows->scales, (size_t)rows->rows, to);
    return CLI_OK;
}

/* One tensor in the header; *at goes behind its bytes. */
static void put_tensor(cJSON *header, const char *name, const char *dtype, int64_t rows, int64_t columns, int64_t bytes, int64_t *at)
{
    cJSON *tensor = cli_json_object(header, name);
    cJSON *shape;
    cJSON *offsets;
    cli_json_text(tensor, "dtype", dtype);
    shape = cli_json_array(tensor, "shape");
    cli_json_int(shape, NULL, rows);
    if (columns) cli_json_int(shape, NULL, columns);
    offsets = cli_json_array(tensor, "data_offsets");
    cli_json_int(offsets, NULL, *at);
    cli_json_int(offsets, NULL, *at += bytes);
}

static int put_family(cJSON *header, const exported *e, int i, int64_t *at)
{
    kna_family family;
    int64_t rows = 0;
    char scale[128];
    int status = kna_store_family(e->target->store, i, &family);
    if (status != KNA_OK) return store_status(e->target, status);
    const int code = total(e, i, &rows);
    if (code != CLI_OK) return code;
    /* Blocks of q8_0 have no type there: their bytes. */
    put_tensor(header, family.name, tensor_type(family.type), rows, family.type == KNA_Q8_0 ? row_bytes(&family) : family.dim,
               rows * row_bytes(&family), at);
    if (family.type != KNA_I8) return CLI_OK;
    snprintf(scale, sizeof scale, "%s.scale", family.name);
    if (kna_store_family_named(e->target->store, scale) >= 0)
        return cli_refuse("--safetensors: %s has a family '%s', as the scales of '%s' are called", e->target->folder, scale, family.name);
    put_tensor(header, scale, "F32", rows, 0, 4 * rows, at);
    return CLI_OK;
}

/* Padded so that the bytes begin at a multiple of 8, as the format recommends. */
static int write_header(FILE *to, cJSON *header)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&text, &bytes);
    if (!memory) return cli_fail("--safetensors: out of memory");
    int code = cli_json_line(memory, header); /* its newline is padding as good as a blank */
    if ((fclose(memory) != 0 || !text) && code == CLI_OK) code = cli_fail("--safetensors: out of memory");
    if (code == CLI_OK) {
        const uint64_t padded = (uint64_t)(bytes + 7) / 8 * 8;
        text[bytes - 1] = ' ';
        fwrite(&padded, sizeof padded, 1, to);
        fwrite(text, 1, bytes, to);
        fprintf(to, "%*s", (int)(padded - bytes), "");
    }
    free(text);
    return code;
}

static int write_safetensors(const exported *e, int first, int end, const char *path)
{
    int64_t at = 0;
    int code = CLI_OK;
    cJSON *header = cli_json_object(NULL, NULL);
    for (int i = first; i < end && code == CLI_OK; i++) code = put_family(header, e, i, &at);
    FILE *to = code == CLI_OK ? cli_output_open(path) : NULL;
    if (!to) cJSON_Delete(header);
    if (!to) return code == CLI_OK ? CLI_FAILED : code;
    code = write_header(to, header);
    for (int i = first; i < end && code == CLI_OK; i++) {
        kna_family family;
        const int status = kna_store_family(e->target->store, i, &family);
        code = status == KNA_OK ? write_all(to, e, i, write_raw) : store_status(e->target, status);
        if (code == CLI_OK && family.type == KNA_I8) code = write_all(to, e, i, write_scales);
    }
    return code == CLI_OK ? cli_output_finish() : code;
}

/* ------------------------------------------------------------------ the word */

static int export_all(const exported *e, const request *r)
{
    kna_store_info info = { .size = sizeof info };
    int family = 0;
    int code = CLI_OK;
    const int status = kna_store_info_get(e->target->store, &info);
    if (status != KNA_OK) return store_status(e->target, status);
    if (r->family || r->out) code = store_family(e->target, r->family, &family);
    cli_progress_start("store export");
    if (code == CLI_OK && r->out) code = write_npy(e, family, r->out);
    if (code == CLI_OK && r->meta) code = write_sidecar(e, family, r->meta);
    if (code == CLI_OK && r->safetensors)
        code = write_safetensors(e, r->family ? family : 0, r->family ? family + 1 : (int)info.families, r->safetensors);
    return code == CLI_OK ? cli_output_commit() : code;
}

static int check(const request *r)
{
    if (!r->out && !r->safetensors) return cli_refuse("store export: --out or --safetensors must be given, see 'kna store export --help'");
    if (r->meta && !r->out) return cli_refuse("--meta: it is for the rows of --out, which is missing");
    if (r->meta && strcmp(r->out, r->meta) == 0) return cli_refuse("--meta: %s is the file of --out", r->meta);
    if (r->safetensors && ((r->out && strcmp(r->out, r->safetensors) == 0) || (r->meta && strcmp(r->meta, r->safetensors) == 0)))
        return cli_refuse("--safetensors: %s is another output's file", r->safetensors);
    return CLI_GO_ON;
}

int store_cmd_export(int argc, char **argv)
{
    request r = { .family = NULL };
    store_target target = { .folder = NULL };
    exported e = { &target, NULL, 0 };
    const cli_group groups[] = { { "Rows", options, &r }, { NULL, NULL, NULL } };
    int rest = 0;
    int code = cli_parse(&usage, groups, argc, argv, &rest);
    if (code == CLI_GO_ON) code = store_operands(&usage, argc, argv, rest, 1, 1, "DIR");
    if (code == CLI_GO_ON) code = check(&r);
    if (code != CLI_GO_ON) return code;
    const store_choice choice = { .filter = r.filter };
    code = store_open(&target, argv[rest], 0);
    if (code == CLI_OK) code = store_choose(&target, &choice, &e.ids, &e.count);
    if (code == CLI_OK) code = export_all(&e, &r);
    free(e.ids);
    store_close(&target);
    return code;
}
