# Gemma 3 270M through the plugin: layers with a sliding window beside layers without, keys of 256 numbers, one KV head. Its licence
# must be agreed to, so it is only tested where somebody has fetched it.
set -eu
. "$(dirname "$0")/_common.sh"
if [ ! -e "${KNA_GEMMA:-}" ]; then
    echo "skipped: ${KNA_GEMMA:-the model} is not there; scripts/fetch_model.sh gemma3 fetches it (253 MB, under the Gemma Terms of Use)"
    exit 77
fi

# Half of a window longer than the sliding one is scored; of 262,144 logits per token.
prose >"$tmp/text"
arguments=(llama-perplexity -m "$KNA_GEMMA" -t 2 -c 768 -b 768 --chunks 1 -f "$tmp/text")
against=("${arguments[@]}" -fa on --kl-divergence-base "$tmp/base" --kl-divergence)
plain "${arguments[@]}" -fa off --kl-divergence-base "$tmp/base" >"$tmp/out" 2>&1
plain "${against[@]}" >"$tmp/own" 2>&1
plugin "METHOD=exact REPORT=$tmp/exact.json" "${against[@]}" >"$tmp/exact" 2>&1 || complain "exact failed"
near "exact" "$tmp/exact" 1.5 0.0005 4
plugin "METHOD=knn K=16 WINDOW=16 EXACT_BELOW=600 REPORT=$tmp/knn.json" "${against[@]}" >"$tmp/knn" 2>&1 || complain "knn failed"
near "knn, k = 16" "$tmp/knn" 1 0.05 100

# Every sixth layer is a full one. The others never see 600 keys: they are read in full and have no index.
"$python" - "$tmp/exact.json" "$tmp/knn.json" <<'END' || bad=1
import json, sys
exact, knn = ({layer["layer"]: layer for layer in json.load(open(path))["layers"]} for path in sys.argv[1:])
if sorted(exact) != list(range(18)) or sorted(knn) != list(range(18)): sys.exit(f"FAIL: layers {sorted(exact)}, {sorted(knn)}")
for number, layer in knn.items():
    is_full = number % 6 == 5
    print(number, {name: layer[name] for name in ("calls", "calls_exact", "keys_seen", "keys_full", "index_bytes", "stale_events")})
    if layer["keys_seen"] != exact[number]["keys_seen"] or layer["stale_events"] or layer["fallbacks"]: sys.exit(f"FAIL: layer {number}: {layer}")
    if is_full and not (layer["keys_full"] < layer["keys_seen"] and layer["index_bytes"] > 0): sys.exit(f"FAIL: layer {number} has no index at work")
    if not is_full and not (layer["calls_exact"] == layer["calls"] and layer["index_bytes"] == 0): sys.exit(f"FAIL: window layer {number} has an index")
if not knn[0]["keys_seen"] < 0.95 * knn[5]["keys_seen"]: sys.exit("FAIL: the windows hide nothing")
END

ferry 9 >"$tmp/text"
printf 'The ferry left the' >>"$tmp/text"
arguments=(-m "$KNA_GEMMA" -t 2 -c 1024 -n 16 -no-cnv --no-display-prompt --temp 0 -f "$tmp/text" -fa on)
plain llama-completion "${arguments[@]}" >"$tmp/want" 2>/dev/null </dev/null
grep -q "harbour at seven" "$tmp/want" || complain "llama.cpp itself does not continue the text: $(cat "$tmp/want")"
for settings in "METHOD=exact" "METHOD=knn K=16 EXACT_BELOW=600"; do
    plugin "$settings" llama-completion "${arguments[@]}" >"$tmp/got" 2>"$tmp/err" </dev/null || complain "$settings: failed"
    cmp -s "$tmp/want" "$tmp/got" || complain "$settings: $(cat "$tmp/got") instead of $(cat "$tmp/want")"
done
exit $bad
