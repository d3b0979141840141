#!/usr/bin/env bash
# A second model inside unmodified llama.cpp: Gemma 3 270M, three layers of full attention among fifteen with a sliding window of 512,
# head size 256, one KV head. Quality by llama-perplexity on kernel documentation, against llama.cpp without flash attention; then
# speed by llama-bench. Takes minutes, and 2 GB of disk for the logits.
#
#   bench_gemma.sh [quality|speed]..     both unless said
#
# WINDOWS="4096 8192" and DEPTHS="8192 32768" choose lengths.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

[ $# -gt 0 ] || set -- quality speed
prepare_model
model=$(scripts/fetch_model.sh gemma3)
plugin=$(cd "${BUILD:-build}" && pwd)/libggml-knnattn.so
[ -f "$plugin" ] || die "$plugin is missing; build it with: make"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_WAIT_POLICY=passive
unset GGML_BACKEND_PATH

# under MODE PROGRAM ARGS.. - MODE is -fa0, -fa1 (llama.cpp), exact or knn (the plugin).
under() {
    local mode=$1 program=$2
    shift 2
    case $mode in
        -fa*) "$programs/$program" "$@" -fa "${mode#-fa}" ;;
        *) GGML_BACKEND_PATH=$plugin KNNATTN_METHOD=$mode KNNATTN_REPORT=$tmp/report "$programs/$program" "$@" -fa 1 ;;
    esac
}

# The row of a table from what llama-perplexity printed.
quality_row() {
    python3 - "$1" "$2" "$tmp/out" "$tmp/report" <<'END'
import json, os, re, sys
window, mode, out, report = sys.argv[1:]
text = open(out, errors="replace").read()
def figure(pattern):
    found = re.search(pattern, text)
    return found[1] if found else "-"
ppl = figure(r"Mean PPL\(Q\) +: +([0-9.]+)")
if ppl == "-": sys.exit(f"llama-perplexity printed no divergence: {text[-600:]}")
ratio, error = re.search(r"Mean PPL\(Q\)/PPL\(base\) +: +([0-9.]+) ± +([0-9.]+)", text).groups()
full = "-"
if mode in ("exact", "knn"):
    layers = {layer["layer"]: layer for layer in json.load(open(report))["layers"]}
    full = " / ".join(f"{100 * sum(l['keys_full'] for l in ls) / sum(l['keys_seen'] for l in ls):.0f} %"
                      for ls in ([l for n, l in layers.items() if n % 6 == 5], [l for n, l in layers.items() if n % 6 != 5]))
print(f"| {window} | {mode} | {float(ppl):.4f} | {100 * (float(ratio) - 1):+.3f} ± {100 * float(error):.3f} % | "
      f"{figure(r'Mean +KLD: +([0-9.e+-]+)')} | {figure(r'Same top p: +([0-9.]+)')} % | {full} |")
END
}

quality() {
    local window mode
    cat "$(scripts/fetch_document.sh)"/process/*.rst >"$tmp/text"
    echo "| window | attention | perplexity | against -fa 0 | KL divergence | same top token | keys in full, full / sliding layers |"
    echo "|---|---|---|---|---|---|---|"
    for window in ${WINDOWS:-4096 8192}; do
        local arguments=(llama-perplexity -m "$model" -t 2 -c "$window" --chunks 1 -f "$tmp/text" --kl-divergence-base "$tmp/base")
        under -fa0 "${arguments[@]}" >"$tmp/out" 2>&1 || die "llama-perplexity failed: $(tail -5 "$tmp/out")"
        for mode in -fa1 exact knn; do
            under "$mode" "${arguments[@]}" --kl-divergence >"$tmp/out" 2>&1 || die "llama-perplexity failed: $(tail -5 "$tmp/out")"
            quality_row "$window" "$mode"
        done
        rm -f "$tmp/base"
    done
}

speed() {
    local depth mode
    echo "| depth | attention | prefill of 512, tokens/s | decode of 64, tokens/s |"
    echo "|---|---|---|---|"
    for depth in ${DEPTHS:-8192 32768}; do
        for mode in -fa0 -fa1 exact knn; do
            under "$mode" llama-bench -m "$model" -t 2 -p 512 -n 64 -d "$depth" -r "${ROUNDS:-3}" -o json >"$tmp/out" 2>/dev/null ||
                die "llama-bench failed"
            python3 - "$depth" "$mode" "$tmp/out" <<'END'
import json, sys
depth, mode, out = sys.argv[1:]
prefill, decode = (f"{row['avg_ts']:.1f} ± {row['stddev_ts']:.1f}" for row in json.load(open(out)))
print(f"| {depth} | {mode} | {prefill} | {decode} |")
END
        done
    done
}

for part in "$@"; do
    case $part in quality | speed) "$part" ;; *) die "no part $part: quality or speed" ;; esac
done
