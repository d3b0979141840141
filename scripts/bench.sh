#!/usr/bin/env bash
# The benchmarks: operators on arrays, then the model, each beside its rivals in one run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
kna=${BUILD:-build}/kna
"$kna" bench decode
"$kna" bench prefill
if [ "${LLAMA:-ON}" != OFF ]; then
    prepare_model
    "$kna" bench model -m "$model" -f "$documents/filesystems/path-lookup.rst"
fi
