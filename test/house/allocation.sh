# Memory of the library comes from one place: src/base/alloc.c. Nobody else under src/ calls the C library's allocator,
# not even through a function that allocates.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && ar x "$KNA_BUILD_DIR/libkna.a")
bad=0
for object in "$work"/*.o; do
    case $object in */alloc.c.o) continue ;; esac
    calls=$(nm -u "$object" | awk '{ print $NF }' | grep -xE 'malloc|calloc|realloc|reallocarray|free|aligned_alloc|posix_memalign|memalign|strdup|strndup|v?asprintf|getline' || true)
    [ -z "$calls" ] || { echo "$(basename "$object" .o) calls" $calls; bad=1; }
done
[ -f "$work/alloc.c.o" ] || { echo "src/base/alloc.c is not in libkna.a"; bad=1; }
exit $bad
