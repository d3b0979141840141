# KL divergence and agreement of kna ppl --compare against llama-perplexity --kl-divergence, on an attention that is far off: few
# keys, the rest dropped. llama.cpp keeps the reference's log-probabilities in 16 bits, hence a tolerance.
source "$(dirname "$0")/_prepare.sh"
[ -z "${KNA_SANITIZE:-}" ] || { echo "no memory of ours is handled here that other tests do not handle: skipped"; exit 77; }

head -c 9000 "$KNA_DOCUMENTS/filesystems/vfs.rst" >text.txt
perplexity() {
    "$KNA_LLAMA/llama-perplexity" -m "$model" -f text.txt -t 1 -c 256 -b 256 --chunks 1 \
        --kl-divergence-base base.bin "$@" >log 2>&1 ||
        { tail -5 log; exit 1; }
}

perplexity -fa off
GGML_BACKEND_PATH=$KNA_PLUGIN KNNATTN_METHOD=topk KNNATTN_K=3 KNNATTN_EXACT_BELOW=0 perplexity -fa on --kl-divergence
{
    sed -n 's/^Mean *KLD: *\([0-9.]*\) .*/{"kld": \1,/p' log
    sed -n 's/^Same top p: *\([0-9.]*\) .*/"same": \1}/p' log
} >theirs.json
"$KNA" ppl -m "$model" -f text.txt $one -c 256 --chunks 1 --method topk --k-near 3 --exact-below 0 --compare --json >ours.json
holds "far off" 'a["kld"] > 0.1' theirs.json
holds "divergence" 'abs(a["compare"]["kl_divergence"] / b["kld"] - 1) < 0.02' ours.json theirs.json
holds "agreement" 'abs(100 * a["compare"]["top_token_agreement"] - b["same"]) < 1' ours.json theirs.json
holds "dropped" '0 < a["attention"]["tail_mass"] < 1 and a["attention"]["keys_full"] < 0.2' ours.json

# Every fourth of 30 layers reads every key: eight of them, each 9 heads of 256 queries; of the others what sees no more than 3 keys does.
"$KNA" ppl -m "$model" -f text.txt $one -c 256 --chunks 1 --method topk --k-near 3 --exact-below 0 --full-every 4 --compare --json >full.json
holds "full layers" 'a["attention"]["rows"] == 30 * 9 * 256 and a["attention"]["rows_exact"] == 8 * 9 * 256 + 22 * 9 * 3' full.json
holds "nearer" 'a["compare"]["kl_divergence"] < b["compare"]["kl_divergence"] and a["attention"]["index_bytes"] < b["attention"]["index_bytes"]' full.json ours.json
refuses 2 "--full-every: '0' is not an integer in 1.." "$KNA" ppl -m "$model" -f text.txt --full-every 0
finish 7
