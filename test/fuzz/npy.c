/* npy.c - arrays of NumPy, as the command reads them: from a stream of known length, as within a .npz. */
#include "fuzz.h"

#include <string.h>

#include "npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    static const npy_want want = { 1, 4, 1, "(rows, dim)" };
    npy_array array;
    FILE *stream = count ? fmemopen((void *)(uintptr_t)bytes, count, "rb") : NULL;
    if (!stream) return 0;
    if (npy_read_from(&array, stream, (int64_t)count, "input.npy", &want) == 0) {
        size_t numbers = 1;
        for (int i = 0; i < array.rank; i++) numbers *= (size_t)array.shape[i];
        MUST(array.data_bytes % 2 == 0 && numbers * (array.type == 0 ? 4 : 2) == array.data_bytes);
        npy_free(&array);
    }
    fclose(stream);
    return 0;
}
