# llama-perplexity through the plugin, four sequences to a batch. Its logits are compared with those of llama.cpp without flash
# attention. Activations are quantised between layers, so that any two ways of adding up the same attention differ by a few
# thousandths of a nat in the end (and their perplexities over 250 tokens by a few tenths of a percent): llama.cpp's own two
# ways say how much, and exact attention must not be further off than they are from each other.
set -eu
. "$(dirname "$0")/_common.sh"
prose >"$tmp/text"
arguments=(llama-perplexity -m "$KNA_MODEL" -t 2 -c 128 -b 512 --chunks 4 -f "$tmp/text")
against=("${arguments[@]}" -fa on --kl-divergence-base "$tmp/base" --kl-divergence)

plain "${arguments[@]}" -fa off --kl-divergence-base "$tmp/base" >"$tmp/out" 2>&1
plain "${against[@]}" >"$tmp/own" 2>&1

near "llama.cpp's own flash attention" "$tmp/own" 1 0 4
plugin "METHOD=off" "${against[@]}" >"$tmp/off" 2>&1 || complain "off failed"
for file in own off; do grep -E "^(Mean|Maximum|Same)" "$tmp/$file" >"$tmp/$file.figures" || true; done
[ -s "$tmp/own.figures" ] && cmp -s "$tmp/own.figures" "$tmp/off.figures" || complain "switched off, it is not plain llama.cpp"
plugin "METHOD=exact" "${against[@]}" >"$tmp/exact" 2>&1 || complain "exact failed"
near "exact" "$tmp/exact" 1.5 0.0005 4
plugin "METHOD=knn K=100000 EXACT_BELOW=0" "${against[@]}" >"$tmp/all" 2>&1 || complain "knn with every key failed"
near "knn, k above n" "$tmp/all" 1.5 0.0005 4
plugin "METHOD=knn K=32 SINKS=2 WINDOW=16 EXACT_BELOW=0" "${against[@]}" >"$tmp/few" 2>&1 || complain "knn failed"
near "knn, k = 32" "$tmp/few" 1 0.03 100
exit $bad
