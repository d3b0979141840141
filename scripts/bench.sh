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
    document=$(scripts/fetch_document.sh filesystems/path-lookup.rst)
    "$kna" bench model -m "$model" -f "$document"
fi
