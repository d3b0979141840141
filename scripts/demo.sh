#!/usr/bin/env bash
# kNN attention inside a real model on a real document: a table on the terminal and the same as a page, build/demo.html.
# Options are those of `kna demo`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
prepare_model
document=$(scripts/fetch_document.sh filesystems/path-lookup.rst)
exec "${BUILD:-build}/kna" demo -m "$model" -f "$document" --html "${BUILD:-build}/demo.html" "$@"
