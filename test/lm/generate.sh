# kna generate: the same text for the same request, figures that fit together, comparison with full attention.
source "$(dirname "$0")/_prepare.sh"

head -c 2000 "$KNA_DOCUMENTS/filesystems/vfs.rst" >text.txt
generate() { "$KNA" generate -m "$model" $one "$@"; }
same_file() { checks=$((checks + 1)); cmp -s "$1" "$2" || { fail "$3"; head -c 500 "$1" "$2"; }; }
other_file() { checks=$((checks + 1)); ! cmp -s "$1" "$2" || fail "$3"; }

# Runs repeat, whatever the number of threads; the text printed is the text in the JSON.
knn="-f text.txt -n 16 --method knn --exact-below 0 --k-near 16 --ignore-eos"
generate $knn >one.txt 2>one.err
generate $knn --threads 2 >two.txt 2>/dev/null
generate $knn --json --compare >three.json
same_file one.txt two.txt "knn: another run, on two threads, made another text"
"$python" -c 'import json; print(json.load(open("three.json"))["text"])' >three.txt
same_file one.txt three.txt "knn: the text in JSON is another"
holds "figures" 'a["made_tokens"] == 16 and a["decode_tokens"] == 15
    and a["prefill_tokens"] == a["prompt_tokens"] and not a["ended"]' three.json
holds "attention" '0 < a["attention"]["keys_full"] < 1 and 0 < a["attention"]["tail_mass"] < 0.5' three.json
holds "comparison" '0 <= a["compare"]["equal_tokens"] <= 16 and a["compare"]["kl_divergence"] > 0' three.json
checks=$((checks + 1))
grep -q '^knn  *prefill [0-9]* tokens at [0-9.]* tokens/s, decode 15 tokens' one.err &&
    grep -q '% of the keys read in full' one.err ||
    { fail "figures on standard error"; cat one.err; }

# Full attention beside itself: every token equal, divergence exactly zero.
generate -f text.txt -n 12 --method off --fa 0 --compare --ignore-eos --json >full.json
holds "full beside full" 'a["compare"]["equal_tokens"] == 12 and a["compare"]["kl_divergence"] == 0
    and a["attention"] is None' full.json

if [ -n "${KNA_SANITIZE:-}" ]; then # the rest goes through the same code with other words
    finish 7
    exit
fi

# Temperature: by seed; a question in the model's chat template ends by itself.
hot="-p Once -n 12 --method off --temp 1.5 --ignore-eos"
generate $hot --seed 1 >a.txt 2>/dev/null
generate $hot --seed 1 >b.txt 2>/dev/null
generate $hot --seed 2 >c.txt 2>/dev/null
same_file a.txt b.txt "the same seed made another text"
other_file a.txt c.txt "another seed made the same text"
generate --chat -p "What is the capital of France? Answer with one word." -n 64 --method exact --json >chat.json
holds "chat" '"Paris" in a["text"] and a["ended"] and a["made_tokens"] < 64' chat.json

# A prompt from standard input; bytes that are no UTF-8 do no harm.
generate -f - -n 4 --method off <text.txt >stdin.txt 2>/dev/null
generate -f text.txt -n 4 --method off >file.txt 2>/dev/null
same_file stdin.txt file.txt "standard input is not the same text"
head -c 300 /dev/urandom | tr -d '\0' >noise.txt
generate -f noise.txt -n 8 --method off --temp 3 --json >noise.json
holds "noise" 'a["made_tokens"] >= 1 and isinstance(a["text"], str)' noise.json
printf 'Once \367\277\277\277 \364\237\277\277 \365\200\200\200 \377\376 upon' >beyond.txt # above U+10FFFF, and no UTF-8
generate -f beyond.txt -n 4 --method off --json >beyond.json
holds "beyond" 'a["made_tokens"] >= 1 and a["prompt_tokens"] >= 8' beyond.json
finish 13
