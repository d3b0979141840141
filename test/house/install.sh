# An installed knnattn, moved elsewhere even, is found by pkg-config; a program of twenty lines runs with it, shared and static.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
DESTDIR="$work/stage" cmake --install "$KNA_BUILD_DIR" --prefix /opt/knnattn >"$work/log" || { cat "$work/log"; exit 1; }
mv "$work/stage/opt/knnattn" "$work/prefix"
prefix=$work/prefix
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name knnattn.pc)")
export PKG_CONFIG_PATH

cat >"$work/main.c" <<'END'
#include <kna.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    float q[8] = { 1, 0, 0, 0, 0, 0, 0, 0 }, k[16] = { 1 }, v[16], o[8];
    kna_rows queries = { q, KNA_F32, 1, 1, 8, 0, 0, NULL };
    kna_rows keys = { k, KNA_F32, 1, 2, 8, 0, 0, NULL };
    kna_rows values = { v, KNA_F32, 1, 2, 8, 0, 0, NULL };
    kna_out_rows out = { o, 0, 0 };
    kna_attend_options options = KNA_ATTEND_OPTIONS;
    kna_context *context = NULL;
    for (int i = 0; i < 16; i++) { v[i] = 2.0f; }
    int status = kna_context_new(&context, NULL);
    if (status == KNA_OK) { status = kna_attend(context, &out, NULL, NULL, &queries, &keys, &values, &options); }
    printf("%s %s %.3f\n", kna_version(), kna_status_name(status), (double)o[7]);
    kna_context_free(context);
    return strcmp(kna_version(), KNA_VERSION_STRING) != 0;
}
END
expected="$(pkg-config --modversion knnattn) KNA_OK 2.000"
check() { [ "$1" = "$expected" ] || { echo "$2: expected '$expected', got '$1'"; exit 1; }; }

cc "$work/main.c" $(pkg-config --cflags --libs knnattn) -o "$work/shared"
libdir=$(pkg-config --variable=libdir knnattn)
check "$(LD_LIBRARY_PATH=$libdir "$work/shared")" shared
readelf -d "$work/shared" | grep -q 'NEEDED.*libkna\.so\.' || { echo "the program does not need libkna.so with its version"; exit 1; }

mkdir "$work/only"
cp "$libdir/libkna.a" "$work/only/"
cc "$work/main.c" $(pkg-config --cflags knnattn) -L"$work/only" $(pkg-config --libs --static knnattn | sed "s|-L[^ ]*||") -o "$work/static"
check "$("$work/static")" static

# What was installed runs from there: neither this build nor the cache is asked.
[ -x "$prefix/bin/kna" ] || exit 0
for file in share/man/man1/kna.1 share/bash-completion/completions/kna share/doc/knnattn/LICENSE; do
    [ -f "$prefix/$file" ] || { echo "$file was not installed"; exit 1; }
done
"$prefix/bin/kna" --version | grep -q "$(pkg-config --modversion knnattn)"
[ -n "${KNA_LLAMA:-}" ] || exit 0
elsewhere=$(ldd "$prefix/bin/kna" | grep -E 'llama|ggml' | grep -vF "$prefix/" || true)
[ -z "$elsewhere" ] || { echo "the installed kna takes these from elsewhere:"; echo "$elsewhere"; exit 1; }
[ -f "${KNA_MODEL:-}" ] || exit 0
printf 'One two three four five six seven eight nine ten eleven twelve.\n%.0s' 1 2 3 4 5 6 7 8 9 10 >"$work/text"
answer=$(env -u KNA_PLUGIN LD_DEBUG=libs "$prefix/bin/kna" ppl -m "$KNA_MODEL" -f "$work/text" -c 64 --method exact --json 2>"$work/loaded") ||
    { grep -v 'calling\|trying\|search' "$work/loaded"; exit 1; }
echo "$answer" | grep -q ppl
sed -n 's/.*calling init: //p' "$work/loaded" | grep -E 'llama|ggml' >"$work/libraries"
grep "$prefix/" "$work/libraries" | grep -q '/libggml-knnattn.so$' || { echo "the installed plugin was not loaded"; exit 1; }
elsewhere=$(grep -vF "$prefix/" "$work/libraries" || true)
[ -z "$elsewhere" ] || { echo "the installed kna loads these from elsewhere:"; echo "$elsewhere"; exit 1; }
