# kna ppl against llama-perplexity: the same figure from llama.cpp's own attention, and from the plugin in exact mode.
source "$(dirname "$0")/_prepare.sh"

head -c 9000 "$KNA_DOCUMENTS/filesystems/vfs.rst" >text.txt

# theirs FLASH CONTEXT WINDOWS - perplexity by llama-perplexity itself, as JSON.
theirs() {
    "$KNA_LLAMA/llama-perplexity" -m "$model" -f text.txt -t 1 -fa "$1" -c "$2" --chunks "$3" >log 2>&1 || { tail -5 log; return 1; }
    sed -n 's/.*Final estimate: PPL = \([0-9.]*\) +\/- \([0-9.]*\).*/{"ppl": \1, "error": \2}/p' log
}
ours() { "$KNA" ppl -m "$model" -f text.txt $one --json "$@"; }

same='abs(a["ppl"] / b["ppl"] - 1) < 5e-4'
GGML_BACKEND_PATH=$KNA_PLUGIN KNNATTN_METHOD=exact theirs on 256 1 >exact.json
ours -c 256 --chunks 1 --method exact --compare >ours_exact.json
holds "exact" "$same" ours_exact.json exact.json
holds "every key" 'a["attention"]["keys_full"] == 1 and a["attention"]["rows"] > 0' ours_exact.json
holds "close to full attention" 'a["compare"]["kl_divergence"] < 0.02 and abs(a["compare"]["ppl_ratio"] - 1) < 0.01' ours_exact.json
if [ -n "${KNA_SANITIZE:-}" ]; then # the rest is llama.cpp's own attention, which is not instrumented
    finish 3
    exit
fi

theirs off 128 2 >off.json
theirs on 128 2 >on.json
ours -c 128 --chunks 2 --method off --fa 0 --compare >ours_off.json
ours -c 128 --chunks 2 --method off --fa 1 >ours_on.json
holds "llama.cpp -fa 0" "$same" ours_off.json off.json
holds "llama.cpp -fa 1" "$same" ours_on.json on.json
holds "standard error" 'abs(a["ppl_error"] / b["error"] - 1) < 1e-3' ours_off.json off.json
holds "tokens" 'a["tokens"] == 2 * 63 and a["chunks"] == 2 and a["tokens_per_s"] > 0' ours_off.json
# Compared with itself full attention must agree to the last bit.
holds "itself" 'a["compare"]["kl_divergence"] == 0
    and a["compare"]["top_token_agreement"] == 1 and a["compare"]["ppl"] == a["ppl"]' ours_off.json
finish 8
