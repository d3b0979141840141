#!/usr/bin/env bash
# Long contexts: decode and prefill at depth beside llama.cpp, on the kernel's documentation. The figures of the README and of doc/bench.md
# come from here. 8,192 and 32,768 take a quarter of an hour together, 131,072 another half.
#
#   bench_contexts.sh [DEPTH]..      8192 and 32768 unless said
#
# ROUNDS, COUNT: as --rounds and --count of kna bench model (3 and 16; at depths of 100,000 and more 1 and 8).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

[ $# -gt 0 ] || set -- 8192 32768
prepare_model
kna=${BUILD:-build}/kna
[ -x "$kna" ] || die "$kna is missing; build it with: make"
documents=$(scripts/fetch_document.sh)
text=$(mktemp)
trap 'rm -f "$text"' EXIT
cat "$documents"/{admin-guide/mm,process,filesystems,core-api,scheduler,networking}/*.rst >"$text"

for depth in "$@"; do # each by itself: positions are stretched for the deepest of a run, and so for all
    case $depth in '' | *[!0-9]*) die "no depth: '$depth'" ;; esac
    rounds=${ROUNDS:-3} count=${COUNT:-16}
    if [ "$depth" -ge 100000 ]; then rounds=${ROUNDS:-1} count=${COUNT:-8}; fi
    "$kna" bench model -m "$model" -f "$text" --depths "$depth" --rounds "$rounds" --count "$count"
done
