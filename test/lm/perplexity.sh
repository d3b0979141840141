# kna ppl against llama-perplexity: the same figure from llama.cpp's own attention, and from the plugin in exact mode.
source "$(dirname "$0")/_prepare.sh"

chunks=2
[ -z "${KNA_SANITIZE:-}" ] || chunks=1
head -c 9000 "$KNA_DOCUMENTS/filesystems/vfs.rst" >text.txt

# theirs FLASH - perplexity by llama-perplexity itself over windows of 512, as JSON.
theirs() {
    "$KNA_LLAMA/llama-perplexity" -m "$model" -f text.txt -c 512 --chunks $chunks -fa "$1" >log 2>&1 || { tail -5 log; return 1; }
    sed -n 's/.*Final estimate: PPL = \([0-9.]*\) +\/- \([0-9.]*\).*/{"ppl": \1, "error": \2}/p' log
}
ours() { "$KNA" ppl -m "$model" -f text.txt -c 512 --chunks $chunks --json "$@"; }

same='abs(a["ppl"] / b["ppl"] - 1) < 5e-4'
theirs off >off.json
theirs on >on.json
ours --method off --fa 0 --compare >ours_off.json
ours --method off --fa 1 >ours_on.json
holds "llama.cpp -fa 0" "$same" ours_off.json off.json
holds "llama.cpp -fa 1" "$same" ours_on.json on.json
holds "standard error" 'abs(a["ppl_error"] / b["error"] - 1) < 1e-3' ours_off.json off.json
holds "tokens" 'a["tokens"] == 255 * a["chunks"] == 255 * '$chunks' and a["tokens_per_s"] > 0' ours_off.json

# Compared with itself full attention must agree to the last bit.
holds "itself" 'a["compare"]["kl_divergence"] == 0
    and a["compare"]["top_token_agreement"] == 1 and a["compare"]["ppl"] == a["ppl"]' ours_off.json

GGML_BACKEND_PATH=$KNA_PLUGIN KNNATTN_METHOD=exact theirs on >exact.json
ours --method exact >ours_exact.json
holds "exact" "$same" ours_exact.json exact.json
holds "every key" 'a["attention"]["keys_full"] == 1 and a["attention"]["rows"] > 0' ours_exact.json
finish 7
