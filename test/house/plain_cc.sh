# The library needs no build system: a compiler and its sources, with or without OpenMP.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/main.c" <<'END'
#include <kna.h>
#include <math.h>
int main(void)
{
    float q[4] = { 1, 0, 0, 0 }, k[8] = { 1, 0, 0, 0, 0, 1, 0, 0 }, v[8] = { 1, 1, 1, 1, 3, 3, 3, 3 }, o[4];
    kna_rows qs = { q, KNA_F32, 1, 1, 4, 0, 0, NULL }, ks = { k, KNA_F32, 1, 2, 4, 0, 0, NULL }, vs = { v, KNA_F32, 1, 2, 4, 0, 0, NULL };
    kna_out_rows out = { o, 0, 0 };
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    kna_context *context;
    if (kna_context_new(&context, NULL) || kna_attend(context, &out, NULL, NULL, &qs, &ks, &vs, &options)) {
        return 1;
    }
    kna_context_free(context);
    double w = 1 / (1 + exp(-0.5)); /* scores 1/2 and 0 */
    return fabs(o[0] - (w + 3 * (1 - w))) > 1e-6;
}
END
include="-I$KNA_SOURCE_DIR/include"
warnings="-Wall -Wextra -Wconversion -Wshadow -Wundef -Wmissing-prototypes -Wvla -Wno-unknown-pragmas -Werror"
ccache=$(command -v ccache || true) # it takes one source at a time
for compiler in gcc clang; do
    command -v $compiler >/dev/null || continue
    # gcc with OpenMP is how the library is built every day.
    threads=
    [ $compiler = gcc ] || threads=-fopenmp
    (mkdir -p "$work/o" && cd "$work/o" && rm -f ./*.o && printf '%s\0' "$KNA_SOURCE_DIR"/src/*/*.c | xargs -0 -n 1 $ccache $compiler -O1 $warnings $threads $include -c)
    $compiler $threads $include "$work/main.c" "$work"/o/*.o -lm -o "$work/main"
    "$work/main" || { echo "$compiler $threads: a wrong result"; exit 1; }
done
