/* npz.c - archives of arrays, checked against the families of a store. */
#define _GNU_SOURCE
#include "fuzz.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "store_source.h"

static char folder[64], path[100];
static store_target target;

static void end(void)
{
    char command[100];
    kna_store_close(target.store);
    kna_context_free(target.context);
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0) abort();
}

static void begin(void)
{
    static const kna_family families[] = { { "keys", KNA_F16, 4 }, { "hidden", KNA_I8, 3 }, { "text", KNA_BYTES, 1 } };
    char store[100];
    if (folder[0]) return;
    snprintf(folder, sizeof folder, "%s/kna-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(folder)) abort();
    snprintf(path, sizeof path, "%s/input.npz", folder);
    snprintf(store, sizeof store, "%s/store", folder);
    target.folder = folder;
    if (kna_context_new(&target.context, NULL) != KNA_OK || kna_store_create(target.context, store, families, 3, NULL) != KNA_OK ||
        kna_store_open(target.context, &target.store, store, NULL) != KNA_OK) abort();
    atexit(end);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    store_sources sources = { .items = NULL };
    begin();
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (fd < 0 || write(fd, bytes, count) != (ssize_t)count) abort();
    close(fd);
    if (store_sources_read(&sources, &target, path, NULL) == 0) {
        for (int i = 0; i < sources.count; i++) MUST(sources.items[i].array.shape[1] == sources.items[i].of.dim);
        store_sources_free(&sources);
    }
    return 0;
}
