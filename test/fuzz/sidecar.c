/* sidecar.c - JSON lines that say what documents are. What is accepted is text that a store may keep. */
#define _GNU_SOURCE
#include "fuzz.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    static const char *const names[] = { "rows", "hidden" };
    char path[64];
    store_sidecar sidecar = { .path = NULL };
    int fd = memfd_create("sidecar", 0);
    if (fd < 0 || write(fd, bytes, count) != (ssize_t)count) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    for (int families = 1; families <= 2; families++) {
        if (store_sidecar_read(&sidecar, path, names, families) != 0) continue;
        for (int64_t i = 0; i < sidecar.count; i++) {
            const store_line *line = &sidecar.lines[i];
            MUST((!line->uri || store_is_text(line->uri)) && line->tokens >= 0);
            for (int family = 0; family < families; family++) MUST(line->rows[family] >= -1);
        }
        store_sidecar_free(&sidecar);
    }
    close(fd);
    return 0;
}
