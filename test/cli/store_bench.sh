# kna store bench: flat and plain searches find all there is to find, by every metric; what was found is what NumPy finds; JSON and words
# agree; an index is made, used and named; and bench/search_peers.py says what it lacks.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${KNA_PYTHON:-/usr/bin/python3}" -B - "$KNA" "$KNA_SOURCE_DIR" <<'END'
import json, os, subprocess, sys
import numpy as np

kna, source = sys.argv[1:]
random = np.random.default_rng(5)
checks = 0

def require(condition, what):
    global checks
    checks += 1
    if not condition:
        sys.exit("failed: %s" % what)

def run(*words, code=0, says=""):
    done = subprocess.run([kna, "store", *map(str, words)], capture_output=True, text=True)
    require(done.returncode == code, f"{words}: exit {done.returncode}, not {code}: {done.stderr}")
    require(says in done.stderr, f"{words}: '{done.stderr}' does not say '{says}'")
    require(code == 0 or not done.stdout, f"{words}: an answer and an error")
    return done.stdout

rows, queries = (random.standard_normal((n, 24)).astype(np.float32) for n in (3000, 50))
np.save("rows.npy", rows)
np.save("queries.npy", queries)
with open("rows.jsonl", "w") as file:
    for i in range(30):
        file.write(json.dumps({"uri": f"d{i}", "rows": 100}) + "\n")
run("create", "s", "--dim", 24, "--type", "f32")
run("add", "s", "rows.npy", "--meta", "rows.jsonl")

x, q = rows.astype(float), queries.astype(float)
scores = {"ip": q @ x.T, "cosine": q @ x.T / np.linalg.norm(x, axis=1), "l2": -((q[:, None] - x[None]) ** 2).sum(2)}
for metric in "ip", "cosine", "l2":
    truth = np.argsort(-scores[metric], axis=1, kind="stable")[:, :7]
    for index, build in ("none", ()), ("flat", ("--build",)):
        told = json.loads(run("bench", "s", "queries.npy", "--metric", metric, "--index", index, *build, "-k", 7, "--rounds", 2, "--single-s", 0, "--hits", "hits.npy",
                              "--threads", 2, "--json"))
        require((told["queries"], told["dim"], told["k"], told["metric"], told["threads"]) == (50, 24, 7, metric, 2), told)
        require(("build_s" in told) == bool(build) and len(told["settings"]) == 1, told)
        one = told["settings"][0]
        require(one["index"] == index and one["recall"] == 1 and one["rows"] == 3000 and one["covered"] == (3000 if build else 0), one)
        require(len(one["batch_s"]) == len(one["single_s"]) == 2 and min(one["batch_s"] + one["single_s"]) > 0, one)
        require(abs(one["batch_qps"] - 50 / np.median(one["batch_s"])) < 1e-3 * one["batch_qps"], one)
        require(abs(one["single_qps"] - 1 / np.median(one["single_s"])) < 1e-3 * one["single_qps"], one)
        hits = np.load("hits.npy")
        require(hits.dtype == np.int64 and hits.shape == (1, 50, 7) and (hits[0] == truth).all(), f"{metric}, {index}: hits")

# An index of another metric is not used, and that is told; more hits than rows; float16 queries; words.
one = json.loads(run("bench", "s", "queries.npy", "--metric", "ip", "--index", "flat", "--rounds", 1, "--single-s", 0, "--no-recall", "--json"))["settings"][0]
require(one["index"] == "none" and one["refused"] == "KNA_EFORMAT" and one["recall"] is None, one)
np.save("half.npy", queries[:3].astype(np.float16))
run("bench", "s", "half.npy", "-k", 3005, "--rounds", 1, "--single-s", 0, "--hits", "all.npy")
everything = np.load("all.npy")[0]
require((np.sort(everything[:, :3000], axis=1) == np.arange(3000)).all() and (everything[:, 3000:] == -1).all(), "all rows")
words = run("bench", "s", "queries.npy", "--build", "--rounds", 1, "--single-s", 0).split("\n")
require(words[0].startswith("built in ") and words[1].split()[0] == "index" and words[2].split()[:3] == ["flat", "0", "1.0000"] and len(words) == 4, words)

# What is wrong.
np.save("narrow.npy", queries[:, :23])
np.save("none.npy", queries[:0])
run("bench", "s", "narrow.npy", code=2, says="narrow.npy: queries of 23 numbers; the family's rows have 24")
run("bench", "s", "none.npy", code=2, says="none.npy: it holds no query")
run("bench", "s", code=2, says="DIR and QUERIES.npy must be given")
run("bench", "absent", "queries.npy", code=1, says="absent")
run("bench", "s", "queries.npy", "--index", "none", "--build", code=2, says="--build")
run("bench", "s", "queries.npy", "-k", 0, code=2, says="--k")
np.save("many.npy", np.zeros((128, 24), np.float32))
run("bench", "s", "many.npy", "-k", 1 << 24, code=2, says="128 queries by -k 16777216: at most 2147483647 hits")
run("bench", "s", "queries.npy", "--family", "x", code=2, says="no family 'x'")
run("bench", "s", "queries.npy", "--probes", "1,x", code=2, says="--probes")
broken = queries.copy()
broken[1, 2] = np.nan
np.save("broken.npy", broken)
run("bench", "s", "broken.npy", code=2, says="NaN")

# Beside the peers: without them, what is missing; with stand-ins for them, truth and recall.
done = subprocess.run([sys.executable, "-B", source + "/bench/search_peers.py", "--base", "rows.npy", "--queries", "queries.npy", "--out", "out"],
                      capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
have = all(subprocess.run([sys.executable, "-c", "import " + package], capture_output=True).returncode == 0 for package in ("faiss", "hnswlib", "usearch"))
require(have or (done.returncode == 1 and "not there: faiss" in done.stderr and "search_peers.txt" in done.stderr), done.stderr)
sys.path.insert(0, source + "/bench")
import search_report
import search_truth
for metric in scores:
    expected = np.argsort(-scores[metric], axis=1, kind="stable")[:, :7]
    truth = search_truth.Truth(rows, queries, metric, 7)
    require((truth.ids == expected).all() and truth.recall(expected) == 1, f"truth of {metric}")
    require(truth.recall(np.repeat(expected[:, :1], 7, axis=1)) == 1 / 7, f"recall of one row named seven times, {metric}")
    require(truth.recall(np.argsort(scores[metric], axis=1)[:, :7]) == 0, f"recall of the farthest, {metric}")
report = {"name": "r", "title": "r", "n": 3000, "d": 24, "queries": 50, "k": 7, "metric": "ip", "threads": 1, "rounds": 1,
          "contenders": [{"name": "a", "kind": "lists", "build_s": 2.0, "bytes": 10, "settings": [
              {"setting": {"p": p}, "recall": r, "batch_qps": 100 / p, "single_qps": 50 / p} for p, r in ((1, 0.6), (2, 0.96), (4, 0.99))]}]}
require(search_report.best(report["contenders"][0], 0.95, "batch_qps")["setting"] == {"p": 2}, "the cheapest that finds enough")
require(search_report.total_s(report["contenders"][0], 0.95, 1000) == 22, "building and 1,000 queries")
search_report.write(report, ".")
import xml.etree.ElementTree as tree
for name in "r.batch.svg", "r.single.svg":
    circles = [x for x in tree.parse(name).iter() if x.tag.endswith("circle")]
    require(len(circles) == 3, f"{name}: {len(circles)} points")
require(len(open("r.csv").read().splitlines()) == 4, "csv")
print(checks, "checks")
END
