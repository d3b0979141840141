#!/usr/bin/env bash
# llama.cpp, pinned: fetched from the source release of the Python package llama-cpp-python, built once into the cache.
#
#   fetch_llama.sh                 fetch and build what is missing; prints the folder of llama.cpp's programs
#   fetch_llama.sh --source DIR    the same with a source tree of yours; its build is kept in the cache, keyed by the path
#   fetch_llama.sh [..] --where    do nothing; print source folder, build folder, and "ready" or "absent"
#   fetch_llama.sh --python        print a folder for PYTHONPATH: that package's own Python files, for the libraries built here
#   fetch_llama.sh --python --where   only print that folder
#
# An interrupted build goes on where it stopped. The stamp in the build folder, written last, says what was built and how.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

version=0.3.36
sum=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
archive=llama_cpp_python-$version.tar.gz
inside=llama_cpp_python-$version/vendor/llama.cpp
programs=(llama-bench llama-perplexity llama-completion llama-server llama-tokenize)
options=(CMAKE_BUILD_TYPE=Release BUILD_SHARED_LIBS=ON GGML_BACKEND_DL=ON GGML_NATIVE=OFF GGML_CPU_ALL_VARIANTS=ON LLAMA_CURL=OFF
         LLAMA_OPENSSL=OFF LLAMA_BUILD_UI=OFF LLAMA_USE_PREBUILT_UI=OFF LLAMA_BUILD_TESTS=OFF LLAMA_BUILD_EXAMPLES=OFF)

given= where= python=
while [ $# -gt 0 ]; do
    case $1 in
        --source) given=${2:?--source needs a folder}; shift 2 ;;
        --where) where=1; shift ;;
        --python) python=1; shift ;;
        *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done

if [ -n "$given" ]; then
    src=$(cd "$given" && pwd) || die "--source $given: no such folder"
    [ -f "$src/include/llama.h" ] || die "--source $src: no llama.cpp source tree (include/llama.h is missing)"
    home=$cache/llama.cpp-at-$(printf '%s' "$src" | sha256sum | cut -c1-12)
    what="source $src"
else
    home=$cache/llama.cpp-$version
    src=$home/src
    what="llama-cpp-python $version $sum"
fi
build=$home/build
stamp=$build/knnattn.stamp
stamp_text="$what ${options[*]} ${programs[*]}"

is_ready() {
    local program
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$stamp_text" ] || return 1
    for program in "${programs[@]}"; do [ -x "$build/bin/$program" ] || return 1; done
}

# is_unpacked FOLDER
is_unpacked() { [ "$(cat "$1/.knnattn-source" 2>/dev/null)" = "$sum" ]; }

# unpack FOLDER DEPTH MEMBER - a part of the archive, less DEPTH leading folders. It appears whole or not at all; times are those of
# the archive, so unpacking again rebuilds nothing.
unpack() {
    local folder=$1 depth=$2 member=$3 file tmp
    if is_unpacked "$folder"; then return; fi
    file=$(pip_fetch "$archive" "$sum" "llama-cpp-python==$version" sdist)
    say "unpacking $(basename "$member")"
    mkdir -p "$home"
    tmp=$(mktemp -d "$home/tmp.XXXXXX")
    tar -xzf "$file" -C "$tmp" --strip-components="$depth" --no-same-owner "$member"
    printf '%s\n' "$sum" >"$tmp/.knnattn-source"
    chmod 755 "$tmp"
    if [ -e "$folder" ]; then mv "$folder" "$tmp.old"; fi
    mv "$tmp" "$folder"
    rm -rf "$tmp.old"
}

is_configured() {
    local option
    [ -f "$build/CMakeCache.txt" ] && { [ -f "$build/build.ninja" ] || [ -f "$build/Makefile" ]; } || return 1
    for option in "${options[@]}"; do
        grep -q "^${option%%=*}:[A-Z]*=${option#*=}\$" "$build/CMakeCache.txt" || return 1
    done
}

configure() {
    local generator=()
    if is_configured; then return; fi
    if [ ! -f "$build/CMakeCache.txt" ] && command -v ninja >/dev/null; then generator=(-G Ninja); fi
    cmake -S "$src" -B "$build" "${generator[@]}" "${options[@]/#/-D}" >&2 9>&-
}

# A compiler of llama.cpp takes up to 1.5 GB.
jobs_that_fit() {
    local by_memory
    by_memory=$(awk '/^MemAvailable/ { print int($2 / 1500000) }' /proc/meminfo)
    [ "$by_memory" -ge 1 ] || by_memory=1
    if [ "$by_memory" -lt "$(nproc)" ]; then echo "$by_memory"; else nproc; fi
}

# From what ninja or make print to a line that counts, on a terminal, or one now and then.
progress() {
    local terminal=0
    [ ! -t 2 ] || terminal=1
    awk -v terminal=$terminal '
        /^\[ *[0-9]+(\/[0-9]+|%)\]/ {
            step = substr($0, 2, index($0, "]") - 2)
            if (terminal) printf "\r  llama.cpp: %s ", step
            else if (n++ % 25 == 0) print "  llama.cpp: " step
            fflush()
        }
        END { if (terminal) print "" }' >&2
}

build_all() {
    local program variant
    mkdir -p "$home"
    # Variants set aside by check_llama.sh take part again; it will have to look again.
    for variant in "$build"/bin/*.so.refused; do
        if [ -e "$variant" ]; then mv "$variant" "${variant%.refused}"; fi
    done
    rm -f "$build/bin/knnattn.cpu"
    configure || die "llama.cpp could not be configured (see above); build folder: $build"
    say "building llama.cpp, once (about ten minutes on two cores): $build"
    if ! cmake --build "$build" --parallel "$(jobs_that_fit)" --target "${programs[@]}" 2>&1 9>&- | tee "$home/build.log" | progress; then
        tail -n 40 "$home/build.log" >&2
        die "llama.cpp could not be built (all of it: $home/build.log); run this again to go on: $0${given:+ --source $src}"
    fi
    for program in "${programs[@]}"; do
        [ -x "$build/bin/$program" ] || die "llama.cpp built without $build/bin/$program"
    done
    "$build/bin/llama-bench" --help >/dev/null 2>&1 || die "$build/bin/llama-bench was built but does not run"
    printf '%s\n' "$stamp_text" >"$stamp.tmp"
    mv "$stamp.tmp" "$stamp"
}

if [ -n "$python" ]; then
    [ -z "$given" ] || die "--python: a source tree of yours has bindings of its own, if any"
    if [ -z "$where" ] && ! is_unpacked "$home/python"; then
        hold_lock "$(basename "$home")"
        unpack "$home/python" 1 "llama_cpp_python-$version/llama_cpp"
    fi
    echo "$home/python"
    exit
fi
if [ -n "$where" ]; then
    printf '%s\n%s\n' "$src" "$build"
    if is_ready; then echo ready; else echo absent; fi
    exit
fi
if ! is_ready || [ -n "$given" ]; then
    hold_lock "$(basename "$home")"
    if ! is_ready || [ -n "$given" ]; then
        [ -n "$given" ] || unpack "$src" 3 "$inside"
        build_all
    fi
fi
echo "$build/bin"
