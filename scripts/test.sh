#!/usr/bin/env bash
# Every test in every configuration, and one closing line: N passed, N failed. With CI set, warnings are errors.
#
#   test.sh            all configurations
#   test.sh NAME..     some of: release asan tsan arm64
#
# release  everything, with the real model and llama.cpp's programs
# asan     the same again under AddressSanitizer and UndefinedBehaviorSanitizer, without the tests of the house itself and a few long ones
# tsan     the library's tests under ThreadSanitizer, without those that start no thread or are about chance; built by clang: its OpenMP
#          runtime reports barriers to the sanitizer (archer), gcc's does not and every parallel loop would be a false alarm
# arm64    the kernels' check and the units, cross-compiled and run by qemu (twenty times slower than the machine)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

[ $# -gt 0 ] || set -- release asan tsan arm64
scripts/setup.sh test
llama=${LLAMA:-ON}
if [ "$llama" != OFF ]; then
    prepare_model
    [ -n "${LLAMA_SOURCE_DIR:-}" ] || scripts/fetch_llama.sh --python >/dev/null
    KNA_DOCUMENTS=$(scripts/fetch_document.sh)
    export KNA_MODEL=$model KNA_DOCUMENTS
fi

jobs=$(nproc)
# What was compiled once is not compiled again, in whatever folder the checkout lies.
export CCACHE_DIR=$cache/ccache CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=1G
library_tests="unit|prop|check|fail"
passed=0 failed=0 skipped=0
failures=()

# count NAME FOLDER - add up ctest's own report.
count() {
    local name=$1 report=$2/ctest.xml status test
    while read -r status test; do
        case $status in
            run) passed=$((passed + 1)) ;;
            skip) skipped=$((skipped + 1)) ;;
            *) failed=$((failed + 1)); failures+=("$name: $test") ;;
        esac
    done < <(awk '
        /<testcase /  { if (test != "") print status, test; match($0, /name="[^"]*"/); test = substr($0, RSTART + 6, RLENGTH - 7)
                        status = ($0 ~ /status="run"/) ? "run" : ($0 ~ /status="notrun"/) ? "notrun" : "fail" }
        /<skipped /   { if ($0 ~ /SKIP_RETURN_CODE/) status = "skip" }
        END           { if (test != "") print status, test }' "$report")
}

# Tests run beside each other, so threads that wait must not spin.
# configuration NAME FOLDER CTEST-OPTIONS -- CMAKE-OPTIONS: configure, build, test. A build that fails counts as one failed test.
configuration() {
    local name=$1 folder=$2 select=() generator=() start=$SECONDS
    shift 2
    while [ "$1" != -- ]; do select+=("$1"); shift; done
    shift
    say "== $name"
    [ -f "$folder/CMakeCache.txt" ] || generator=(-G Ninja)
    rm -f "$folder/ctest.xml"
    if ! cmake -S . -B "$folder" "${generator[@]}" --log-level=WARNING -DCMAKE_C_COMPILER_LAUNCHER=ccache -DKNA_WERROR="$([ -n "${CI:-}" ] && echo ON || echo OFF)" "$@" ||
            ! cmake --build "$folder" --parallel "$jobs"; then
        failed=$((failed + 1)); failures+=("$name: build")
        return
    fi
    OMP_WAIT_POLICY=passive ctest --test-dir "$folder" --parallel "$jobs" --output-on-failure --no-tests=error --output-junit ctest.xml \
        "${select[@]}" || true
    if [ -f "$folder/ctest.xml" ]; then count "$name" "$folder"; else failed=$((failed + 1)); failures+=("$name: ctest"); fi
    say "== $name: $((SECONDS - start)) s"
}

with_llama=(-DKNA_LLAMA="$llama" -DLLAMA_SOURCE_DIR="${LLAMA_SOURCE_DIR:-}")
for name in "$@"; do
    case $name in
        release) configuration release build -- -DCMAKE_BUILD_TYPE=Release "${with_llama[@]}" ;;
        asan)
            # Thirteen that take up to a minute each go through code that the others go through too.
            configuration asan build-asan -LE house -E 'cli_bench$|cli_bench_heads|lm_bench_model|lm_demo|lm_dump|lm_eval|lm_fairness|lm_share|plugin_gemma|plugin_perplexity|plugin_programs|plugin_python|plugin_same_text' -- -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DKNA_SANITIZE=address,undefined" "${with_llama[@]}"
            ;;
        tsan)
            configuration tsan build-tsan -L "$library_tests" -E '^check$|^fail|prop_backward_sampled|prop_certificate|prop_sampled|prop_strata' -- -DCMAKE_BUILD_TYPE=RelWithDebInfo -DKNA_SANITIZE=thread \
                -DCMAKE_C_COMPILER=clang -DKNA_LLAMA=OFF
            ;;
        arm64)
            if [ "$(uname -m)" = aarch64 ]; then say "== arm64: this machine"; continue; fi
            configuration arm64 build-arm64 -L "check|unit" -- -DCMAKE_BUILD_TYPE=Release --toolchain cmake/arm64.cmake -DKNA_LLAMA=OFF
            ;;
        *) die "no configuration $name: release, asan, tsan or arm64" ;;
    esac
done

if [ ${#failures[@]} -gt 0 ]; then printf 'FAILED %s\n' "${failures[@]}"; fi
if [ $skipped -gt 0 ]; then echo "$skipped skipped"; fi
echo "$passed passed, $failed failed"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
