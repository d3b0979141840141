# kna bench model: one row per depth and contender, ratios to the faster of llama.cpp's two; caches survive being cut back and
# refilled.
source "$(dirname "$0")/_prepare.sh"

depths=0,48
[ -z "${KNA_SANITIZE:-}" ] || depths=48
"$KNA" bench model -m "$model" -f "$KNA_DOCUMENTS/filesystems/vfs.rst" --depths $depths -n 2 --rounds 1 $one --json >rows.json
holds "rows" '[(r["depth"], r["method"]) for r in a["rows"]] ==
    [(d, m) for d in ('$depths',) for m in ("llama.cpp -fa 0", "llama.cpp -fa 1", "exact", "knn")]' rows.json
holds "ratios" 'all(abs(max(r[w + "_ratio"] for r in a["rows"][i:i + 2]) - 1) < 1e-9
    for i in range(0, len(a["rows"]), 4) for w in ("decode", "prefill"))' rows.json
holds "speeds" 'all(r[w + "_tokens_per_s"] > 0 for r in a["rows"] for w in ("decode", "prefill"))' rows.json
finish 3
