# Greedy continuations of a text that the model knows by heart after some repetitions: in exact mode, with at least as many
# neighbours as keys, and with the plugin switched off, they are those of llama.cpp.
set -eu
. "$(dirname "$0")/_common.sh"
ferry 3 >"$tmp/text"
printf 'The ferry left the' >>"$tmp/text"
arguments=(-m "$KNA_MODEL" -t 2 -c 512 -n 16 -no-cnv --no-display-prompt --temp 0 -f "$tmp/text" -fa on)

plain llama-completion "${arguments[@]}" >"$tmp/want" 2>/dev/null </dev/null
grep -q "harbour at seven" "$tmp/want" || complain "llama.cpp itself does not continue the text: $(cat "$tmp/want")"

same() {
    local settings=$1
    shift
    plugin "$settings" llama-completion "${arguments[@]}" "$@" >"$tmp/got" 2>"$tmp/err" </dev/null || complain "$settings $*: failed"
    cmp -s "$tmp/want" "$tmp/got" || complain "$settings $*: $(cat "$tmp/got") instead of $(cat "$tmp/want")"
}

same "METHOD=off"
same "METHOD=exact"
same "METHOD=exact" -t 1
same "METHOD=exact" -ctk q8_0 -ctv q8_0
same "METHOD=exact" -ctk q8_0 -ctv bf16
same "METHOD=exact" -ctk q4_0 -ctv q4_0 # declined: llama.cpp computes
same "METHOD=knn K=100000 EXACT_BELOW=0"
same "METHOD=knn K=100000 EXACT_BELOW=0" -ctk q8_0 -ctv q8_0
same "METHOD=topk K=100000 EXACT_BELOW=0"
same "METHOD=knn K=64 EXACT_BELOW=0" -ub 64
exit $bad
