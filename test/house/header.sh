# kna.h stands alone: C99, C11 and C++17, pedantic, first and only include.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '#include <kna.h>\nint main(void) { kna_attend_options o = KNA_ATTEND_OPTIONS; kna_context_options c = KNA_CONTEXT_OPTIONS; return o.size != sizeof o || c.size != sizeof c; }\n' >"$work/a.c"
cp "$work/a.c" "$work/a.cpp"
flags="-pedantic -Wall -Wextra -Wundef -Werror -I$KNA_SOURCE_DIR/include"
for compiler in gcc clang; do
    command -v $compiler >/dev/null || continue
    for standard in c99 c11; do
        $compiler -std=$standard $flags "$work/a.c" -o "$work/a"
        "$work/a"
    done
done
g++ -std=c++17 $flags "$work/a.cpp" -o "$work/a"
"$work/a"
