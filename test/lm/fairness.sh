# kna fairness with a model: the same figures as on dumped operands; groups by document, position and frequency are what labels would say; losses
# are those of kna ppl; what cannot be compared is refused.
source "$(dirname "$0")/_prepare.sh"

head -c 4000 "$KNA_DOCUMENTS/filesystems/vfs.rst" >"vfs & <b>.rst"
head -c 4000 "$KNA_DOCUMENTS/filesystems/path-lookup.rst" >path.rst
few="--k-near 8 --near-window 16 --samples 16"
fairness() { "$KNA" fairness -m "$model" -c 320 $one --json "$@"; }

# On files: the layer that kna dump writes. Its layer 0 tells tokens apart, so labels can say how frequent each is.
"$KNA" dump -m "$model" -f path.rst -c 320 --layers 0,17 --out dumped $one >/dev/null
"$python" -B - <<'END'
import numpy as np

values = np.load("dumped/v.0.npy").transpose(1, 0, 2).reshape(320, -1)
_, token, count = np.unique(values, axis=0, return_inverse=True, return_counts=True)
often = count[token.reshape(-1)]
labels = np.empty(320)
for c in np.unique(often): # where the middle of all that come as often falls
    before, here = (often > c).sum(), (often == c).sum()
    labels[often == c] = 3 * (2 * before + here - 1) // (2 * 320)
np.save("frequency.npy", labels.astype(np.float32))
np.save("turns.npy", (np.arange(320) // 80 % 2).astype(np.float32))
np.save("short.npy", np.zeros(319, np.float32))
END
"$KNA" fairness --q dumped/q.17.npy --k dumped/k.17.npy --v dumped/v.17.npy --causal $few --methods topk,knn --buckets 5 $one --json >files.json
fairness -f path.rst --layers 17 $few --methods topk,knn --buckets 5 --no-loss >position.json
holds "as on files" 'a["methods"] == b["methods"] == b["layers"][0]["methods"] and a["groups"] == b["groups"] and b["by"] == "position"
    and (b["layers"][0]["layer"], b["keys"], b["queries"]) == (17, 320, 320) and a["model"] is None and b["model"]' files.json position.json
fairness -f path.rst --layers 17 $few --methods topk --by frequency --no-loss >frequency.json
fairness -f path.rst --layers 17 $few --methods topk --labels frequency.npy --no-loss >labels.json
holds "frequency" '[{**x, "name": ""} for x in a["groups"]] == [{**x, "name": ""} for x in b["groups"]] and a["methods"] == b["methods"]
    and [x["name"] for x in a["groups"]] == ["frequent", "middle", "rare"] and all(x["keys"] > 60 for x in a["groups"])' frequency.json labels.json

# Two documents in turns, two layers; a tail dropped, sampled, estimated.
fairness -f path.rst -f "vfs & <b>.rst" --turns 2 --layers 3,17 $few --late 160 --html page.html >documents.json 2>/dev/null
fairness -f path.rst -f "vfs & <b>.rst" --turns 2 --layers 3,17 $few --late 160 --labels turns.npy --no-loss >turns.json
holds "documents" '[(x["name"], x["keys"]) for x in a["groups"]] == [("path.rst", 160), ("vfs & <b>.rst", 160)] and a["by"] == "document"
    and [x["mass"] for x in a["groups"]] == [x["mass"] for x in b["groups"]]
    and [x["impact"] for x in a["methods"]] == [x["impact"] for x in b["methods"]]' documents.json turns.json
holds "layers" '[x["layer"] for x in a["layers"]] == [3, 17] and all(abs(sum(x["mass"] for x in y["groups"]) - 1) < 1e-4 for y in [a] + a["layers"])
    and all(abs(sum(y["methods"][m]["groups"][g]["mass"] for y in a["layers"]) / 2 - a["methods"][m]["groups"][g]["mass"]) < 1e-9
            for m in range(3) for g in range(2))' documents.json
holds "tails" '[x["method"] for x in a["methods"]] == ["topk", "uniform", "knn"] and a["methods"][0]["impact"] < a["methods"][1]["impact"]
    and all(0 < y["recall"] < 1 for x in a["methods"][:2] for y in x["groups"])
    and all(y["recall"] == y["ratio"] == 1 and y["loss"]["added"] == 0 for y in a["methods"][2]["groups"])' documents.json # knn: so few keys are all read
holds "losses" '[("loss" in y) for x in a["methods"] for y in x["groups"]] == [True, True, False, False, True, True]
    and all(sum(y["loss"]["tokens"] for y in x["groups"]) == 159 for x in a["methods"][::2])
    and all(y["loss"]["low"] <= y["loss"]["added"] <= y["loss"]["high"] for x in a["methods"][::2] for y in x["groups"])
    and a["methods"][0]["groups"][0]["loss"]["full"] == a["methods"][2]["groups"][0]["loss"]["full"]' documents.json

# The second half of one window: what kna ppl scores.
fairness -f path.rst --layers 17 $few --late 160 --methods topk >late.json
"$KNA" ppl -m "$model" -f path.rst -c 320 --chunks 1 $one --method exact --json >exact.json
"$KNA" ppl -m "$model" -f path.rst -c 320 --chunks 1 $one --method topk --k-near 8 --exact-below 0 --json >topk.json
holds "as kna ppl" '(lambda groups, tokens: abs(sum(x["tokens"] * x["full"] for x in groups if x["tokens"]) / tokens - math.log(b["ppl"])) < 1e-9
    and abs(sum(x["tokens"] * (x["full"] + x["added"]) for x in groups if x["tokens"]) / tokens - math.log(c["ppl"])) < 1e-9
    and tokens == b["tokens"] == 159 and all(x["added"] is None for x in groups if not x["tokens"]))(
    [x["loss"] for x in a["methods"][0]["groups"]], sum(x["loss"]["tokens"] for x in a["methods"][0]["groups"]))' late.json exact.json topk.json

checks=$((checks + 1))
"$python" -B - page.html documents.json <<'END' || fail "page.html"
import json, sys
from page import Reader

page = open(sys.argv[1], encoding="utf-8").read()
figures = json.load(open(sys.argv[2]))
reader = Reader(page)
assert "http" not in page and "keys of vfs & <b>.rst" in reader.text and "Loss of tokens, knn" in reader.text
assert reader.seen.count("svg") == 3 and reader.seen.count("rect") == 6
for method in figures["methods"]:
    assert f'{method["method"]} {"passes" if method["four_fifths"] else "fails"} the four-fifths rule' in reader.text
    for group in method["groups"]:
        assert f'{group["ratio"]:.3f}' in reader.text and f'{group["recall"]:.3f}' in reader.text
        if "loss" in group:
            assert f'{group["loss"]["added"]:+.4f} ({group["loss"]["low"]:+.4f} .. {group["loss"]["high"]:+.4f})' in reader.text
for layer in figures["layers"]:
    assert f'{layer["methods"][0]["impact"]:.3f}' in reader.text
END

run="$KNA fairness -m $model -f path.rst $one"
refuses 2 "one group: there is nothing to compare" $run -c 40 --layers 0 --by document
refuses 2 "short.npy: 319 labels for 40 keys" $run -c 40 --layers 0 --labels short.npy
refuses 2 "--layers: 30, but the model has layers 0..29" $run -c 40 --layers 30
refuses 2 "fewer than its share of 50000 (-c 100000, 2 texts)" $run -f path.rst -c 100000
refuses 2 "option --file is missing" "$KNA" fairness -m "$model" -c 40
refuses 2 "do not go with -m" $run --kv-type i8
refuses 1 "nowhere" $run --html nowhere/page.html
finish 15
