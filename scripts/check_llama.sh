#!/usr/bin/env bash
# Does the build of llama.cpp run on this machine? It carries one variant per kind of CPU and takes the best that the CPU claims to
# have; some virtual machines claim AMX, then refuse its instructions. A variant that dies of an illegal instruction is set aside
# (renamed to *.so.refused), so that the programs take the next best.
#
#   check_llama.sh PROGRAMS MODEL     asks once per build and kind of CPU; silent when all is well
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

programs=${1:?folder of llama.cpp\'s programs}
model=${2:?a GGUF model}
stamp=$programs/knnattn.cpu
cpu=$(grep -m2 -E '^(model name|flags)' /proc/cpuinfo | sha256sum | cut -c1-16)
[ "$(cat "$stamp" 2>/dev/null)" = "$cpu" ] && exit 0

hold_lock "$(basename "$(dirname "$(dirname "$programs")")").cpu"
[ "$(cat "$stamp" 2>/dev/null)" = "$cpu" ] && exit 0
for refused in "$programs"/*.so.refused; do # another CPU may take what the last one refused
    [ -e "$refused" ] && mv "$refused" "${refused%.refused}"
done
for try in 1 2 3 4 5 6 7 8; do
    status=0
    log=$({ env -u GGML_BACKEND_PATH "$programs/llama-bench" -m "$model" -p 64 -n 2 -r 1 -t 2 >/dev/null; } 2>&1 9>&-) || status=$?
    if [ "$status" = 0 ]; then
        printf '%s\n' "$cpu" >"$stamp"
        exit 0
    fi
    variant=$(sed -n 's/^load_backend: loaded CPU backend from //p' <<<"$log" | tail -n 1)
    [ "$status" = 132 ] && [ -n "$variant" ] || die "llama-bench fails on this machine (exit code $status): $log"
    say "$(basename "$variant") needs instructions this machine refuses; it is set aside ($variant.refused)"
    mv "$variant" "$variant.refused"
done
die "no CPU variant in $programs runs on this machine"
