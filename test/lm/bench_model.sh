# kna bench model: one row per depth and contender, ratios to the faster of llama.cpp's two and to exact, what filling the cache
# took, whole prompts; caches survive being cut back and filled further.
source "$(dirname "$0")/_prepare.sh"

depths=0,96
[ -z "${KNA_SANITIZE:-}" ] || depths=48,
methods='("llama.cpp -fa 0", "llama.cpp -fa 1", "exact", "knn")'
bench() { "$KNA" bench model -m "$model" -f "$KNA_DOCUMENTS/filesystems/vfs.rst" $one --json "$@"; }

bench --depths ${depths%,} -n 2 --rounds 1 --exact-below 0 >rows.json
holds "rows" '[(r["depth"], r["method"]) for r in a["rows"]] == [(d, m) for d in ('$depths') for m in '"$methods"']' rows.json
holds "ratios" 'all(abs(max(r[w + "_ratio"] for r in a["rows"][i:i + 2]) - 1) < 1e-9
    and abs(a["rows"][i + 2][w + "_over_exact"] - 1) < 1e-9
    and all(abs(r[w + "_tokens_per_s"] / a["rows"][i + 2][w + "_tokens_per_s"] / r[w + "_over_exact"] - 1) < 1e-9
        for r in a["rows"][i:i + 4])
    for i in range(0, len(a["rows"]), 4) for w in ("decode", "prefill"))' rows.json
holds "speeds" 'all(r[w + "_tokens_per_s"] > 0 for r in a["rows"] for w in ("decode", "prefill"))' rows.json
holds "fills" '[f["depth"] for f in a["fills"]] == ['$depths'] and sum(f["tokens"] for f in a["fills"]) == a["fills"][-1]["depth"]
    and all(f["depth"] == 0 or (f["shared"] and 0 < f["index_s"] < f["time_s"] and f["index_bytes"] > 0
        and 0 <= f["cache_bytes"] - f["depth"] * 30 * 2 * 192 * 2 < 4096 + 64 * f["depth"]) for f in a["fills"])' rows.json
holds "nothing else" 'a["yarn"] == 1 and a["prompts"] == []' rows.json

if [ -z "${KNA_SANITIZE:-}" ]; then
    bench --prompts 40,600 --exact-below 0 --k-near 16 >prompts.json
    holds "prompts" '[(r["tokens"], r["method"]) for r in a["prompts"]] == [(n, m) for n in (40, 600) for m in '"$methods"']
        and a["rows"] == [] and a["fills"] == []' prompts.json
    holds "first token" 'all(r["first_token_s"] > 0 and abs(r["tokens_per_s"] * r["first_token_s"] / r["tokens"] - 1) < 1e-9
        and (r["index_s"] > 0) == (r["method"] == "knn") for r in a["prompts"])' prompts.json

    refuses 2 "the list must ascend" bench --prompts 64,32
    refuses 2 "fewer than the prompt of 9000000" bench --prompts 9000000
fi
finish 5 # four more without a sanitizer
