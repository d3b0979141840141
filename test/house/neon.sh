# The library as any arm64 compiler sees it, src/*/*.c and nothing else: no warnings, and the NEON level agrees with the reference
# under qemu. Quickly, for the arm64 configuration of scripts/test.sh runs the whole check.
set -eu
cc=aarch64-linux-gnu-gcc
if ! command -v $cc >/dev/null; then echo "skipped: $cc is missing (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross)"; exit 77; fi
if ! command -v qemu-aarch64 >/dev/null; then echo "skipped: qemu-aarch64 is missing (Debian: qemu-user)"; exit 77; fi
if [ ! -d /usr/include/Random123 ]; then echo "skipped: Random123 is missing (Debian: librandom123-dev)"; exit 77; fi
if [ ! -f /usr/include/xxhash.h ]; then echo "skipped: xxhash.h is missing (Debian: libxxhash-dev)"; exit 77; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Random123 and xxHash are headers only, the same on every machine; the rest of /usr/include is not.
mkdir "$work/include"
ln -s /usr/include/Random123 "$work/include/Random123"
ln -s /usr/include/xxhash.h "$work/include/xxhash.h"
warnings="-Wall -Wextra -Wconversion -Wshadow -Wundef -Wmissing-prototypes -Wvla -Werror -Wno-unknown-pragmas"
ccache=$(command -v ccache || true) # it takes one source at a time
(cd "$work" && printf '%s\0' "$KNA_SOURCE_DIR"/src/*/*.c | xargs -0 -n 1 $ccache $cc -std=gnu11 -O1 $warnings -isystem include -c)
$cc -std=gnu11 -O2 $warnings -static -o "$work/check" "$KNA_SOURCE_DIR"/test/check*.c "$work"/*.o -lm -lpthread
qemu-aarch64 "$work/check" --quick >"$work/out" || { cat "$work/out"; exit 1; }
tail -n 1 "$work/out"
grep -q 'neon ok' "$work/out" || { echo "the NEON level was not tested"; cat "$work/out"; exit 1; }
