# kna store search, index and recall: what is found is what NumPy finds, with and without an index, of the documents asked for; rows added and
# documents removed after the index was made are seen and not seen; a damaged index costs no answer; what is wrong is refused.
# doc/read_store.py, which knows doc/format.md alone, finds index files as they should be, and damage in them.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${KNA_PYTHON:-/usr/bin/python3}" -B - "$KNA" "$KNA_SOURCE_DIR/doc/read_store.py" <<'PY'
import json, os, subprocess, sys
import numpy as np

kna, reader = sys.argv[1:]
random = np.random.default_rng(11)
checks = 0

def require(condition, what):
    global checks
    checks += 1
    if not condition:
        sys.exit("failed: %s" % what)

def run(*words, code=0, says=""):
    done = subprocess.run([kna, "store", *words], capture_output=True, text=True)
    require(done.returncode == code, f"{words}: exit {done.returncode}, not {code}: {done.stderr}")
    require(says in done.stderr, f"{words}: '{done.stderr}' does not say '{says}'")
    require(code == 0 or done.stderr.count("kna: ") >= 1, f"{words}: no message")
    return done.stdout

def ask(*words, **more):
    return json.loads(run(*words, "--json", **more))

def indexes(store, code=0):
    """What an independent reader says of them, their codes compared with the rows."""
    done = subprocess.run([sys.executable, "-B", reader, store, "--indexes"], capture_output=True, text=True)
    require(done.returncode == code, f"read_store.py {store} --indexes: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]

# ---- a store of 60 documents of 40 rows, in f32 and f16
d = 24
x = random.standard_normal((2400, d)).astype(np.float32)
q = random.standard_normal((5, d)).astype(np.float32)
np.save("x.npy", x)
np.save("q.npy", q)
np.save("half.npy", q.astype(np.float16))
with open("x.jsonl", "w") as file:
    for i in range(60):
        file.write(json.dumps({"uri": "d/%d" % i, "rows": 40, "tags": ["t%d" % (i % 3)], "tokens": i}) + "\n")
owner = np.repeat(np.arange(60), 40)

def truth(rows, queries, metric, allowed, k, beta=None):
    rows, queries = rows.astype(np.float64), queries.astype(np.float64)
    found = []
    for one in queries:
        s = rows @ one if metric != "l2" else -((rows - one) ** 2).sum(1)
        if metric == "cosine":
            s = s / np.linalg.norm(rows, axis=1) / np.linalg.norm(one)
        s = np.where(allowed, s, -np.inf)
        order = [r for r in np.lexsort((np.arange(len(s)), -s))[:k] if s[r] > -np.inf]
        found.append([(int(r), s[r]) for r in order if beta is None or s[r] >= s[order[0]] - beta])
    return found

def agrees(store, rows, queries, metric, allowed, *words, k=10, beta=None):
    answer = ask("search", store, queries, "--metric", metric, "-k", str(k), *words, *(["--beta", str(beta)] if beta else []))
    want = truth(rows, np.load(queries), metric, allowed, k, beta)
    for ours, theirs in zip(answer["queries"], want):
        require([h["row"] for h in ours["hits"]] == [r for r, _ in theirs], f"{metric} {words}: {ours['hits']} {theirs}")
        require(np.allclose([h["score"] for h in ours["hits"]], [s for _, s in theirs], rtol=1e-6, atol=1e-6), "scores")
        for h in ours["hits"]:
            if h["row"] < 2400:
                require((h["document"], h["place"], h["uri"]) == (owner[h["row"]] + 1, h["row"] % 40, "d/%d" % owner[h["row"]]), str(h))
        lse = np.log(np.sum(np.exp([s for _, s in theirs]))) if theirs else None
        require((ours["lse"] is None) if lse is None else abs(ours["lse"] - lse) < 1e-5, "lse")
    return answer

every = np.ones(len(x), bool)
for kind in ("f32", "f16"):
    store = "s-" + kind
    run("create", store, "--dim", str(d), "--type", kind)
    run("add", store, "x.npy", "--meta", "x.jsonl")
    rows = x if kind == "f32" else x.astype(np.float16)
    for metric in ("ip", "cosine", "l2"):
        require(agrees(store, rows, "q.npy", metric, every)["index"] == "none", "an index that is not there")
        info = ask("index", store, "--metric", metric)
        require((info["rows"], info["covered"], info["metric"]) == (2400, 2400, metric), str(info))
        require(indexes(store) == [{"name": "index-00000-flat", "family": "rows", "kind": "flat", "metric": metric, "covered": 2400,
                                    "rows": 2400, "lists": info["lists"]}], "another index than was made")
        used = agrees(store, rows, "q.npy", metric, every)
        require((used["index"], used["covered"], used["refused"]) == ("flat", 2400, None), str(used))
        require(used["rescored"] < 2400, "everything was scored")
        agrees(store, rows, "half.npy", metric, every, k=3)
        agrees(store, rows, "q.npy", metric, every, k=200, beta=0.3 if metric == "cosine" else 2)
        agrees(store, rows, "q.npy", metric, owner % 3 == 1, "--tag", "t1")
        agrees(store, rows, "q.npy", metric, owner < 30, "--filter", "tokens < 30")
        agrees(store, rows, "q.npy", metric, np.isin(owner, [5, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59]), "--uri-prefix", "d/5")
        few = agrees(store, rows, "q.npy", metric, owner == 7, "--filter", "tokens = 7", k=100)
        require(few["index"] == "none" and few["rows"] == 40, "few rows are looked at as they are")
        agrees(store, rows, "q.npy", metric, owner < 0, "--filter", "tokens < 0")
        require(agrees(store, rows, "q.npy", metric, every, "--no-index")["index"] == "none", "--no-index")
        other = "l2" if metric == "ip" else "ip"
        require(agrees(store, rows, "q.npy", other, every)["refused"] == "KNA_EFORMAT", "an index of another metric")

# ---- int8, where a row is what its codes say, and clusters, which --exact looks into all of
run("create", "s-int8", "--dim", str(d), "--type", "int8")
run("add", "s-int8", "x.npy", "--meta", "x.jsonl")
run("export", "s-int8", "--out", "as_i8.npy")
ask("index", "s-int8", "--metric", "l2")
ask("index", "s-int8", "--metric", "l2", "--kind", "clusters")
require([(i["kind"], i["rows"]) for i in indexes("s-int8")] == [("clusters", 2400), ("flat", 2400)], "two indexes")
used = agrees("s-int8", np.load("as_i8.npy"), "q.npy", "l2", every, "--exact")
require(used["index"] == "clusters" and used["lists_seen"] == 5 * used["lists"], str(used))
agrees("s-int8", np.load("as_i8.npy"), "q.npy", "l2", owner % 3 == 1, "--tag", "t1", "--exact")

# ---- .npy out
run("search", "s-f32", "q.npy", "-k", "3000", "--out", "rows.npy", "--scores", "scores.npy")
rows, scores = np.load("rows.npy"), np.load("scores.npy")
require(rows.shape == scores.shape == (5, 3000) and rows.dtype == np.int64 and scores.dtype == np.float32, "arrays")
require((rows[:, 2400:] == -1).all() and np.isnan(scores[:, 2400:]).all(), "more than there are")
require((np.sort(rows[:, :2400]) == np.arange(2400)).all() and (np.diff(scores[:, :2400]) <= 0).all(), "all of them")
require(run("search", "s-f32", "q.npy", "-k", "1").count("\n") == 7, "a line each")

# ---- what is added and removed after the index was made
ask("index", "s-f32", "--metric", "ip")
more = random.standard_normal((100, d)).astype(np.float32) * 3
np.save("more.npy", more)
run("add", "s-f32", "more.npy")
run("rm", "s-f32", "d/3", "d/40")
both = np.concatenate([x, more])
left = np.concatenate([~np.isin(owner, [3, 40]), np.ones(100, bool)])
used = agrees("s-f32", both, "q.npy", "ip", left)
require((used["index"], used["rows"], used["covered"]) == ("flat", 2420, 2320), str(used))
recall = ask("recall", "s-f32", "q.npy", "-k", "20")
require(recall["recall"] == 1 and recall["low"] > 0.5 and recall["high"] == 1 and recall["queries"] == 5, str(recall))
require(ask("recall", "s-f32", "--samples", "30", "--seed", "3")["queries"] == 30, "samples")
require("recall@10 1.0000" in run("recall", "s-f32", "q.npy"), "text")
run("compact", "s-f32", "--share", "0")
require(agrees("s-f32", both, "q.npy", "ip", left)["index"] == "flat", "after compaction")

# ---- damage costs the index, not the answer
path = "s-f32/index-00000-flat"
sound = open(path, "rb").read()
for at in (5, 20, 60, 4095, 4096 + 7, len(sound) // 2, len(sound) - 1):
    bad = bytearray(sound)
    bad[at] ^= 4
    open(path, "wb").write(bad)
    used = agrees("s-f32", both, "q.npy", "ip", left)
    require(used["index"] == "none" and used["refused"] in ("KNA_EDAMAGED", "KNA_EFORMAT"), f"byte {at}: {used['refused']}")
    indexes("s-f32", code=1)
    found = ask("verify", "s-f32", "--deep", code=1, says="make it anew: kna store index")
    require([found["sound"], found["damaged"]] == [False, []] and
            [(i["family"], i["kind"], i["sound"]) for i in found["indexes"]] == [("rows", "flat", False)], str(found))
    run("verify", "s-f32")
open(path, "wb").write(sound[:-9])
require(agrees("s-f32", both, "q.npy", "ip", left)["refused"] == "KNA_EDAMAGED", "cut short")
ask("index", "s-f16", "--metric", "ip")
open(path, "wb").write(open("s-f16/index-00000-flat", "rb").read())
require(agrees("s-f32", both, "q.npy", "ip", left)["refused"] == "KNA_EFORMAT", "another store's")
open(path + ".new", "wb").write(b"half")
require(ask("index", "s-f32")["rows"] == 2420 and not os.path.exists(path + ".new"), "made anew")
require(ask("verify", "s-f32", "--deep")["indexes"] == [{"family": "rows", "kind": "flat", "sound": True, "what": ""}], "verify")
require(ask("index", "s-f32", "--drop") == {"dropped": "flat"} and not os.path.exists(path), "--drop")
run("index", "s-f32", "--drop")

# ---- what is wrong
np.save("wide.npy", random.standard_normal((2, d + 1)).astype(np.float32))
np.save("flat.npy", q[0])
bad = q.copy()
bad[3, 7] = np.nan
np.save("nan.npy", bad)
np.save("none.npy", q[:0])
run("search", "s-f32", "wide.npy", code=2, says="wide.npy: queries of 25 numbers; rows of family rows of s-f32 have 24")
run("search", "s-f32", "flat.npy", code=2, says="flat.npy")
run("search", "s-f32", "nan.npy", code=2, says="nan.npy: NaN or infinity at row 3, column 7")
run("search", "s-f32", "gone.npy", code=1, says="gone.npy")
run("search", "s-f32", "q.npy", "--family", "keys", code=2, says="s-f32 has no family 'keys'")
run("search", "s-f32", "q.npy", "-k", "0", code=2, says="--k")
run("search", "s-f32", "q.npy", "--filter", "tokns", code=2, says="--filter")
run("search", "nowhere", "q.npy", code=1, says="nowhere")
run("index", "s-f32", "--family", "keys", code=2, says="no family")
run("recall", "s-f32", "none.npy", code=2, says="no queries")
require(ask("search", "s-f32", "none.npy")["queries"] == [], "no queries, no answers")
run("create", "empty", "--dim", str(d), "--type", "f32")
require(all(one["hits"] == [] and one["lse"] is None for one in ask("search", "empty", "q.npy")["queries"]), "an empty store")
require(ask("index", "empty")["rows"] == 0, "an index of nothing")
require(ask("search", "empty", "q.npy")["rows"] == 0, "an empty store with an index")
run("recall", "empty", code=2, says="no queries")
print(checks, "checks")
PY
