# What is visible from outside: of libkna.so exactly the functions of kna.h; of the plugin only what ggml looks for.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

exported() { nm -D --defined-only "$1" | awk '{ print $NF }' | sed 's/@.*//' | LC_ALL=C sort -u; }

# A declaration starts with KNA_API at the start of a line; the name is the word before its first parenthesis.
cat "$KNA_SOURCE_DIR"/include/*.h | tr '\n' ' ' | sed 's/;/;\n/g' | grep -o 'KNA_API [^;(]*(' | grep -o 'kna_[a-z0-9_]*(' | tr -d '(' |
    LC_ALL=C sort -u >"$work/declared"
[ "$(wc -l <"$work/declared")" -ge 20 ] || { echo "too few declarations found in kna.h; does this test still read it?"; exit 1; }

exported "$KNA_BUILD_DIR/libkna.so" >"$work/exported"
diff -u "$work/declared" "$work/exported" || { echo "kna.h (-) and the exported symbols of libkna.so (+) differ"; exit 1; }

if [ -n "${KNA_PLUGIN:-}" ]; then
    exported "$KNA_PLUGIN" >"$work/plugin"
    grep -qx ggml_backend_init "$work/plugin" || { echo "the plugin does not export ggml_backend_init"; exit 1; }
    if grep -vxE 'ggml_backend_(init|score)' "$work/plugin"; then echo "the plugin exports the above"; exit 1; fi
fi
