# kna demo: figures that fit together, a page that is whole, self-contained and escapes what it quotes.
source "$(dirname "$0")/_prepare.sh"

{
    head -c 2500 "$KNA_DOCUMENTS/filesystems/vfs.rst"
    printf '\n<script>alert("&")</script>\nThe last line \xff of <b>this</b> document.\n'
} >document.txt
demo() { "$KNA" demo -m "$model" -f document.txt --tokens 700 -n 6 --exact-below 0 --k-near 4 --near-window 8 $one "$@"; }
demo --json --html page.html >demo.json 2>err
holds "document" 'a["document"] == "document.txt" and 600 < a["tokens"] <= 700
    and a["scored"] == a["tokens"] // 2 and a["made"] == 6' demo.json
holds "attentions" '[e["attention"] for e in a["entries"]] == ["llama.cpp -fa 0", "llama.cpp -fa 1", "exact", "knn"]' demo.json
holds "speeds" 'all(e[f"{w}_tokens_per_s"] > 0 for e in a["entries"] for w in ("prefill", "decode"))' demo.json
holds "reference" 'a["entries"][0]["equal_tokens"] == 6 and "kl_divergence" not in a["entries"][0]' demo.json
holds "perplexity" 'all(abs(e["ppl"] / a["entries"][0]["ppl"] - 1) < (0.2 if e["attention"] == "knn" else 0.02)
    for e in a["entries"])' demo.json
holds "divergence" '0 < a["entries"][2]["kl_divergence"] < a["entries"][3]["kl_divergence"] < 0.5' demo.json
holds "keys" '[bool(e["decode"]["attention"]) for e in a["entries"]] == [False, False, True, True]
    and a["entries"][2]["decode"]["attention"]["keys_full"] == 1
    and a["entries"][3]["decode"]["attention"]["keys_full"] < 0.4' demo.json

checks=$((checks + 1))
"$python" -B - page.html demo.json <<'END' || fail "page.html"
import json, re, sys
from page import Reader

page = open(sys.argv[1], encoding="utf-8").read()
figures = json.load(open(sys.argv[2]))

reader = Reader(page)
assert '<script>alert("&")</script>' in reader.text and "<b>this</b>" in reader.text and "The last line \ufffd of" in reader.text
assert reader.seen.count("svg") == 4 and reader.seen.count("rect") == 16
assert "http" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)
for entry in figures["entries"]:
    for value in (f'{entry["ppl"]:.3f}', f'{entry["decode_tokens_per_s"]:.1f}', f'{entry["prefill_tokens_per_s"]:.1f}'):
        assert value in reader.text, (entry["attention"], value)
END

# The table, and a failure that leaves no page behind.
demo --tokens 100 -n 2 >table.txt 2>/dev/null
for label in "prefill, tokens/s" "decode, tokens/s" "keys read in full, decode" "tail mass, decode" "perplexity" \
    "KL divergence from it" "equal leading tokens"; do
    checks=$((checks + 1))
    [ "$(grep -c "^$label  " table.txt)" = 1 ] || fail "table: $label"
done
[ "$(ls -A | tr '\n' ' ')" = "demo.json document.txt err page.html table.txt " ] || fail "files left behind: $(ls -A)"
finish 15
