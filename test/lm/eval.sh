# kna eval: exact attention in two guises differs from full attention by rounding only, a crippled one by much; the same seed repeats,
# whatever else is asked; the page is whole and says what the JSON says; bad input is refused before the work begins.
source "$(dirname "$0")/_prepare.sh"

head -c 6000 "$KNA_DOCUMENTS/filesystems/vfs.rst" >"vfs & <b>.rst"
head -c 9000 "$KNA_DOCUMENTS/filesystems/path-lookup.rst" >path.rst
eval_() { "$KNA" eval -m "$model" -f path.rst $one --json "$@" 2>err || { cat err >&2; exit 1; }; }

# Every key within k: knn is exact attention, and all its differences vanish but for rounding.
eval_ --method knn --k-near 100000 --exact-below 0 --reference exact --tasks repeat,frequent --lengths 240 --depths 50 \
    --samples 1 >near.json
holds "tasks asked" '[(t["task"], t["questions"]) for t in a["tasks"]] ==
    [("repeat", 1), ("frequent", 1)] and a["all_tasks"]["questions"] == 2' near.json
holds "knn with every key" 'all(abs(t[m]["difference"]["value"]) < 0.02 for t in a["tasks"] for m in ("accuracy", "logprob"))
    and a["method"] == "knn" and a["reference"] == "exact" and a["attention"]["keys_full"] == 1' near.json
holds "one sample, no interval" 'all(t[m]["difference"]["low"] is None for t in a["tasks"] for m in ("match", "accuracy", "logprob"))' near.json
holds "measures" 'all(0 <= t[m][w] <= 1 for t in a["tasks"] for m in ("match", "accuracy") for w in ("full", "chosen"))
    and all(-9 < t["logprob"][w] < 0 for t in a["tasks"] for w in ("full", "chosen"))' near.json
holds "copying is easy" 'a["tasks"][0]["accuracy"]["full"] > 0.5' near.json

# Exact attention beside llama.cpp's: rounding. kna ppl must say the same of the text.
eval_ --method exact --tasks text,passkey -c 128 --chunks 1 --lengths 160 --depths 50,100 --samples 1 >exact.json
"$KNA" ppl -m "$model" -f path.rst $one --json -c 128 --chunks 1 --method exact --compare >ppl.json
holds "text" 'abs(a["texts"][0]["ppl"] / b["ppl"] - 1) < 1e-9 and abs(a["texts"][0]["ppl_full"] / b["compare"]["ppl"] - 1) < 1e-9
    and abs(a["texts"][0]["kl_divergence"]["value"] / b["compare"]["kl_divergence"] - 1) < 1e-6
    and a["texts"][0]["top_token_agreement"]["value"] == b["compare"]["top_token_agreement"]
    and abs(a["texts"][0]["ppl_change"]["value"] - (b["compare"]["ppl_ratio"] - 1)) < 1e-9
    and (a["texts"][0]["text"], a["texts"][0]["chunks"], a["texts"][0]["tokens"]) == ("path.rst", 1, b["tokens"])' exact.json ppl.json
holds "exact" 'abs(a["texts"][0]["ppl_change"]["value"]) < 0.02 and a["texts"][0]["kl_divergence"]["value"] < 0.05
    and all(abs(t["logprob"]["difference"]["value"]) < 0.15 for t in a["tasks"])' exact.json
holds "passkey" 'a["tasks"][0]["match"]["full"] == 1 and a["tasks"][0]["accuracy"]["chosen"] > 0.8
    and [(c["length"], c["depth"], c["questions"]) for c in a["tasks"][0]["cells"]] == [(160, 50, 1), (160, 100, 1)]' exact.json
holds "no depths" 'a["tasks"][1]["cells"] == [] and a["tasks"][1]["lengths"][0]["length"] == 240' near.json
holds "contexts are shared" '60 < b["tokens_shared"] < 160 and b["tokens_read"] < 2 * 160 - 60 and a["tokens_shared"] == 0' near.json exact.json

# Two keys of all and the rest dropped: everything must show it, with intervals that hold the difference; and the page.
crippled="--method topk --k-near 2 --exact-below 0 --depths 20,80 --samples 2"
eval_ -f "vfs & <b>.rst" $crippled --tasks text,needles -c 64 --chunks 2 --lengths 188,212 --html page.html >topk.json
holds "crippled texts" '[t["text"] for t in a["texts"]] == ["path.rst", "vfs & <b>.rst"] and all(t["ppl_change"]["value"] > 0.1
    and t["kl_divergence"]["value"] > 0.1 and t["top_token_agreement"]["value"] < 0.9 for t in a["texts"])' topk.json
holds "crippled needles" 'a["tasks"][0]["logprob"]["difference"]["high"] < -0.3 and a["tasks"][0]["questions"] == 8' topk.json
holds "intervals" 'all(i["low"] - 1e-9 <= i["value"] <= i["high"] + 1e-9 for i in
    [t[m] for t in a["texts"] for m in ("ppl_change", "kl_divergence", "top_token_agreement")]
    + [t[m]["difference"] for t in a["tasks"] + a["tasks"][0]["cells"] + a["tasks"][0]["lengths"]
       for m in ("match", "accuracy", "logprob")])' topk.json
holds "cells and lengths add up" 'all(abs(sum(c[m][w] for c in part) / len(part) - a["tasks"][0][m][w]) < 1e-9
    for part in (a["tasks"][0]["cells"], a["tasks"][0]["lengths"]) for m in ("match", "accuracy", "logprob")
    for w in ("full", "chosen")) and len(a["tasks"][0]["cells"]) == 4' topk.json
grep -q "repeat them" err && fail "a warning that the filler repeats although it does not"
checks=$((checks + 1))

eval_ -f "vfs & <b>.rst" $crippled --tasks needles --lengths 188 >again.json
holds "the same seed repeats" 'a["tasks"][0]["lengths"][0] == b["tasks"][0]["lengths"][0]
    and a["tasks"][0]["cells"][:2] == b["tasks"][0]["cells"]' topk.json again.json

checks=$((checks + 1))
"$python" -B - page.html topk.json <<'END' || fail "page.html"
import json, sys
from page import Reader

page = open(sys.argv[1], encoding="utf-8").read()
figures = json.load(open(sys.argv[2]))

reader = Reader(page)
assert "http" not in page
assert "vfs & <b>.rst" in reader.text and "prefers-color-scheme:dark" in page
assert reader.seen.count("svg") == 6 and reader.seen.count("rect") == 6 * 4
task = figures["tasks"][0]
for cell in task["cells"]:
    for measure in ("accuracy", "logprob"):
        for value in (f'{cell[measure]["full"]:.3f}', f'{cell[measure]["chosen"]:.3f}', f'{cell[measure]["difference"]["value"]:+.3f}'):
            assert value in reader.text, (cell["length"], cell["depth"], measure, value)
low, high = (task["logprob"]["difference"][end] for end in ("low", "high"))
assert f'({low:+.3f} .. {high:+.3f})' in reader.text
for text in figures["texts"]:
    assert f'{text["ppl"]:.3f}' in reader.text and f'{text["kl_divergence"]["value"]:.5f}' in reader.text
END

# The table.
"$KNA" eval -m "$model" -f path.rst $one --tasks text,passkey --method off --fa 0 -c 64 --chunks 1 --lengths 128 --depths 50 --samples 1 >table.txt
checks=$((checks + 1))
grep -Eq '^path.rst +31 .* \+0\.00 % .* 0\.00000 .* 100\.0 %' table.txt && grep -Eq '^passkey +128 +1 .* \+0\.000 \(-\)' table.txt ||
    { fail "full attention beside itself"; cat table.txt; }

# Refused before a model reads anything.
run="$KNA eval -m $model -f path.rst"
refuses 2 "'spelling' is none of text, passkey" $run --tasks text,spelling
refuses 2 "--lengths: the list must ascend, 256 comes after 512" $run --lengths 512,256
refuses 2 "--depths: the list must ascend" $run --depths 50,50
refuses 2 "--depths: '101' is not an integer in 0..100" $run --depths 101
refuses 2 "task repeat takes at least" $run --lengths 64 --tasks repeat
refuses 2 "tokens, fewer than one window of 100000 (-c)" $run -c 100000
refuses 2 "the texts: 2 tokens" "$KNA" eval -m "$model" -f <(printf 'Short') --tasks passkey
refuses 2 "--reference: 'knn' is none of off, exact" $run --reference knn
refuses 1 "nowhere" $run --html nowhere/page.html
refuses 2 "a text is missing: give one by -f FILE" env KNA_DOCUMENTS="$work/none" "$KNA" eval -m "$model"
[ "$(ls -A | tr '\n' ' ')" = "again.json err exact.json near.json out page.html path.rst ppl.json table.txt topk.json vfs & <b>.rst " ] ||
    fail "files left behind: $(ls -A)"
finish 28
