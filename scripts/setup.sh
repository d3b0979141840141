#!/usr/bin/env bash
# The packages knnattn needs, installed when missing (Debian and its kin). A probe decides, so what came from elsewhere is fine too.
#
#   setup.sh build    to build library, plugin and command, and to fetch llama.cpp and the model (the default)
#   setup.sh test     the above and what the tests need
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

has() { command -v "$1" >/dev/null 2>&1; }
header() { [ -f "/usr/include/$1" ] || [ -f "/usr/local/include/$1" ] || echo "#include <$1>" | cc -E - >/dev/null 2>&1; }
any_python() { python3 -c "$1" >/dev/null 2>&1 || /usr/bin/python3 -c "$1" >/dev/null 2>&1; }

# package, then the probe that says it is there
wanted_build='
gcc             has gcc && header stdio.h
g++             has g++
make            has make
cmake           has cmake
ninja-build     has ninja
pkg-config      has pkg-config
python3         has python3
python3-pip     any_python "import pip"
ca-certificates [ -e /etc/ssl/certs/ca-certificates.crt ]
libcjson-dev    header cjson/cJSON.h
librandom123-dev header Random123/philox.h
libxxhash-dev   header xxhash.h
libsqlite3-dev  header sqlite3.h
libzip-dev      header zip.h
'
wanted_test='
python3-numpy   any_python "import numpy"
python3-jinja2  any_python "import numpy, jinja2"
python3-diskcache any_python "import numpy, diskcache"
python3-typing-extensions any_python "import numpy, typing_extensions"
clang           has clang
libclang-rt-dev echo "int main(void){return 0;}" | clang -fsanitize=thread -x c - -o /dev/null
ccache          has ccache
libomp-dev      clang -fopenmp -x c -E - </dev/null && ls /usr/lib/llvm-*/lib/libomp.so
'
wanted_arm64='
gcc-aarch64-linux-gnu   has aarch64-linux-gnu-gcc
libc6-dev-arm64-cross   [ -f /usr/aarch64-linux-gnu/include/stdio.h ]
qemu-user               has qemu-aarch64
'
case ${1:-build} in
    build) wanted=$wanted_build ;;
    test)
        wanted=$wanted_build$wanted_test
        [ "$(uname -m)" = aarch64 ] || wanted+=$wanted_arm64
        ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

missing=()
find_missing() {
    local package probe
    missing=()
    while read -r package probe; do
        [ -z "$package" ] || eval "$probe" >/dev/null 2>&1 || missing+=("$package")
    done <<<"$wanted"
}

as_root=()
install_missing() {
    has apt-get || die "these Debian packages (or what your system calls them) are missing: ${missing[*]}"
    if [ "$(id -u)" != 0 ]; then
        as_root=(sudo -n)
        sudo -n true 2>/dev/null || die "some packages are missing. Install them, then run this again:
    sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}"
    fi
    say "installing: ${missing[*]}"
    "${as_root[@]}" apt-get update -q >&2 || say "apt-get update failed; trying with the lists at hand"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >&2 ||
        die "apt-get could not install: ${missing[*]}"
}

find_missing
if [ ${#missing[@]} -gt 0 ]; then
    install_missing
    find_missing
    [ ${#missing[@]} -eq 0 ] || die "still missing after installing: ${missing[*]}"
fi
