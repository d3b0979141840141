# kna fairness on operands: shares of groups, what of them is read in full, and errors are those of attention in double precision; topk's
# ratios have a closed form; a sampled tail restores parity; the page says what the JSON says.
set -eu
PYTHONPATH=$(dirname "$0") exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
from oracle import *

random = np.random.default_rng(3)
h, h_kv, m, n, d, dv = 4, 2, 50, 600, 16, 8
q, k, v = [random.normal(size=shape).astype(np.float32) for shape in ((h, m, d), (h_kv, n, d), (h_kv, n, dv))]
labels = random.integers(0, 3, n).astype(np.float32)
k[:, labels == 1] *= 0.3   # many small weights
k[:, labels == 2] *= 2     # few large ones
for name, array in (("q", q), ("k", k), ("v", v), ("labels", labels)):
    np.save(path(name + ".npy"), array)

def run(*options, code=0):
    command = [KNA, "fairness", "--q", path("q.npy"), "--k", path("k.npy"), "--v", path("v.npy"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    require(done.returncode == code, f"{options}: exit {done.returncode}: {done.stderr}")
    return done

s = logits(q, k, causal=True)
p = np.exp(s - s.max(axis=2, keepdims=True))
p /= p.sum(axis=2, keepdims=True)
top = np.exp(keep_nearest(s, 60) - s.max(axis=2, keepdims=True))
top /= top.sum(axis=2, keepdims=True)
answer = json.loads(run("--labels", path("labels.npy"), "--causal", "--k-near", 60, "--samples", 200, "--json").stdout)
answer_of_labels = answer
topk, uniform, knn = answer["methods"]
require([x["method"] for x in answer["methods"]] == ["topk", "uniform", "knn"], "methods")
ratios = []
for group in range(3):
    full, kept = p[:, :, labels == group].sum(axis=2).mean(), top[:, :, labels == group].sum(axis=2).mean()
    require(answer["groups"][group]["keys"] == (labels == group).sum(), "keys")
    require(abs(answer["groups"][group]["mass"] - full) < 1e-5, f"full {group}: {answer['groups'][group]['mass']}, {full}")
    require(abs(topk["groups"][group]["mass"] - kept) < 1e-5, f"topk {group}")
    ratios.append(kept / full)
require(abs(topk["impact"] - min(ratios) / max(ratios)) < 1e-4, f"impact {topk['impact']}, {ratios}")
require(topk["impact"] < 0.8 and uniform["impact"] > 0.95, f"topk {topk['impact']}, uniform {uniform['impact']}")
require(abs(sum(x["mass"] for x in uniform["groups"]) - 1) < 1e-4 and abs(sum(x["mass"] for x in knn["groups"]) - 1) < 1e-3, "shares add up to 1")

every = json.loads(run("--buckets", 4, "--method", "topk", "--k-near", n, "--json").stdout)["methods"]
require(len(every) == 1 and every[0]["impact"] > 1 - 1e-5 and every[0]["total_variation"] < 1e-5, f"topk of everything: {every}")
require("group" in run().stdout, "a table")

# What of a group is read in full: by double precision of topk, which those that sample share; and the errors by the queries' groups.
kept = np.isfinite(keep_nearest(s, 60))
values = np.repeat(v, h // h_kv, axis=0).astype(np.float64)
error = np.linalg.norm(top @ values - p @ values, axis=2) / np.sqrt((v.astype(np.float64) ** 2).sum(axis=2).mean())
for group in range(3):
    want = np.where(kept, p, 0)[:, :, labels == group].sum() / p[:, :, labels == group].sum()
    for answered in (topk, uniform):
        got = answered["groups"][group]["recall"]
        require(abs(got - want) < 1e-5, f"{answered['method']}: of group {group} {got} is read in full, not {want}")
    want = error[:, labels[n - m:] == group].mean()
    require(abs(topk["groups"][group]["error"] - want) < 1e-5, f"error {group}: {topk['groups'][group]['error']}, {want}")
errors = [x["error"] for x in topk["groups"]]
require(abs(topk["error_ratio"] - max(errors) / min(errors)) < 1e-9, "error ratio")
require(topk["four_fifths"] is False and uniform["four_fifths"] is True, "the four-fifths rule")
window = json.loads(run("--labels", path("labels.npy"), "--causal", "--methods", "window,performer", "--near-sinks", 5, "--near-window", 40, "--json").stdout)["methods"]
at = np.arange(n - m, n)[:, None]
near = (np.arange(n)[None] < 5) | (np.arange(n)[None] > at - 40)
for group in range(3):
    want = np.where(near, p, 0)[:, :, labels == group].sum() / p[:, :, labels == group].sum()
    require(abs(window[0]["groups"][group]["recall"] - want) < 1e-5, f"window: {group}")
require(all(x["recall"] is None for x in window[1]["groups"]), "performer reads nothing in full")

# One query: with tails t_g of the groups and t of all, topk's ratios are (1 - t_g) / (1 - t).
np.save(path("q1.npy"), q[:1, :1])
np.save(path("k1.npy"), k[:1])
np.save(path("v1.npy"), v[:1])
weights = logits(q[:1, :1], k[:1])[0, 0]
weights = np.exp(weights - weights.max())
weights /= weights.sum()
for count in (7, 60, 300, n):
    one = json.loads(run("--q", path("q1.npy"), "--k", path("k1.npy"), "--v", path("v1.npy"), "--labels", path("labels.npy"), "--methods", "topk",
                         "--k-near", count, "--json").stdout)["methods"][0]
    head = np.argsort(-weights, kind="stable")[:count]
    inside = [weights[head][labels[head] == group].sum() / weights[labels == group].sum() for group in range(3)]
    closed = [x / weights[head].sum() for x in inside]
    for found, ratio, recall in zip(one["groups"], closed, inside):
        require(abs(found["ratio"] - ratio) < 1e-5 and abs(found["recall"] - recall) < 1e-5, f"k = {count}: {found}, {ratio}, {recall}")
    require(abs(one["impact"] - min(closed) / max(closed)) < 1e-5, f"k = {count}: impact")
require(abs(one["impact"] - 1) < 1e-6, "impact is 1 where every key is read")

# knn, where clusters stand for most keys: what it says it read in full adds up to what it did not estimate.
long, m7 = 6000, 1200
big = [np.cumsum(random.normal(size=shape), axis=1) * 0.02 + random.normal(size=shape) for shape in ((h, m7, d), (h_kv, long, d), (h_kv, long, dv))]
big = [x.astype(np.float32) for x in big]
files = [x for name in "qkv" for x in ("--" + name, path(name + "n.npy"))]
for name, array in zip("qkv", big):
    np.save(path(name + "n.npy"), array)
def measure_knn(*options):
    answer = json.loads(run(*files, "--causal", "--k-near", 24, "--methods", "knn", "--buckets", 5, *options, "--json").stdout)
    read = [x["recall"] * y["mass"] for x, y in zip(answer["methods"][0]["groups"], answer["groups"])]
    return answer["queries"], np.array([[x["mass"] for x in answer["methods"][0]["groups"]], read, [x["mass"] for x in answer["groups"]]])

_, lse, report = attend(*big, "--causal", "--k-near", 24, "--method", "knn")
_, full, _ = attend(*big, "--causal")
queries, everything = measure_knn()
want = (1 - report["tail_mass"]) * np.exp(lse - full).mean() # its weights add up to less than those of full attention
require(queries == m7 and 0.05 < want < 0.95 and abs(everything[1].sum() / want - 1) < 0.02, f"knn: read {everything[1].sum()}, not estimated {want}")

# Late queries come after others, from which knn has learned: with those before them they are all of them.
queries, late = measure_knn("--late", m7 - 768)
np.save(path("qn.npy"), big[0][:, :768])
_, early = measure_knn("--causal-shift", 768 - m7)
require(queries == m7 - 768 and np.abs((768 * early + (m7 - 768) * late) / m7 - everything).max() < 1e-6, f"late queries: {early}, {late}, {everything}")

# Groups that are empty, or have next to nothing, are there and have no ratio.
for name, array in (("q", q), ("k", k), ("v", v)): # attend() wrote others
    np.save(path(name + ".npy"), array)
np.save(path("labels2.npy"), labels * 2)
empty = json.loads(run("--labels", path("labels2.npy"), "--methods", "topk", "--json").stdout)
require([x["keys"] > 0 for x in empty["groups"]] == [True, False, True, False, True], "empty groups")
require(empty["groups"][1]["mass"] == 0 and empty["methods"][0]["groups"][1]["ratio"] is None, "an empty group has no mass and no ratio")
require(empty["methods"][0]["impact"] is not None and "no keys" in run("--labels", path("labels2.npy"), "--methods", "topk").stdout, "others are compared")
np.save(path("qh.npy"), np.abs(q))
np.save(path("kh.npy"), (np.where(np.arange(n)[None, :, None] < 300, -1, 5) * np.ones_like(k)).astype(np.float32))
none = json.loads(run("--q", path("qh.npy"), "--k", path("kh.npy"), "--buckets", 2, "--methods", "topk", "--json").stdout)
require(none["groups"][0]["mass"] < 1e-4 and none["methods"][0]["impact"] is None and none["methods"][0]["four_fifths"] is None, f"one group with mass: {none}")
typed = json.loads(run("--kv-type", "i8", "--labels", path("labels.npy"), "--causal", "--methods", "topk", "--json").stdout)
apart = [abs(x["mass"] - y["mass"]) for x, y in zip(typed["groups"], answer_of_labels["groups"])]
require(0 < max(apart) < 0.01, f"int8: {apart}")

# A mask goes with the queries it is of: causal by mask is causal.
np.save(path("mask.npy"), np.where(np.arange(n)[None] <= at, 0, -np.inf).astype(np.float32))
by_mask = json.loads(run("--mask", path("mask.npy"), "--late", 20, "--methods", "topk,knn", "--json").stdout)
by_flag = json.loads(run("--causal", "--late", 20, "--methods", "topk,knn", "--json").stdout)
require(all(abs(x["mass"] - y["mass"]) < 1e-6 for x, y in zip(by_mask["groups"], by_flag["groups"])), "masses by mask")
for one, other in zip(by_mask["methods"], by_flag["methods"]):
    require(all(abs(x["recall"] - y["recall"]) < 1e-5 for x, y in zip(one["groups"], other["groups"])), f"recall by mask: {one['method']}")

# The page.
sys.path.insert(0, os.path.join(os.environ["KNA_SOURCE_DIR"], "test", "lm"))
from page import Reader
run("--labels", path("labels.npy"), "--causal", "--k-near", 60, "--samples", 200, "--html", path("page.html"))
page = open(path("page.html"), encoding="utf-8").read()
reader = Reader(page)
require(reader.seen.count("svg") == 3 and reader.seen.count("rect") == 9 and "http" not in page, "bars")
require("topk fails the four-fifths rule" in reader.text and "uniform passes the four-fifths rule" in reader.text, "verdicts")
for answered in (topk, uniform, knn):
    for value in [f"{answered['impact']:.3f}"] + [f"{x['ratio']:.3f}" for x in answered["groups"]] + [f"{x['error']:.4f}" for x in answered["groups"]]:
        require(value in reader.text, f"page: {answered['method']} {value}")

# Heads and tails of the operator's options: quotas and strata go by the groups measured.
def methods(*options):
    return json.loads(run("--labels", path("labels.npy"), "--causal", "--k-near", 60, "--samples", 60, "--json", *options).stdout)["methods"]
plain, = methods("--methods", "topk")
owed, = methods("--methods", "topk", "--diverse", "quota", "--quota", 1)
kept, = methods("--methods", "topk", "--tail", "mean")
require(owed["impact"] > plain["impact"] + 0.05, f"quotas: impact {owed['impact']}, without {plain['impact']}")
require(abs(sum(x["mass"] for x in kept["groups"]) - 1) < 1e-3 and kept["impact"] > plain["impact"], f"a mean tail: {kept}")
require([x["recall"] for x in kept["groups"]] == [x["recall"] for x in plain["groups"]], "the head of topk is the head of topk")
all_of = methods("--methods", "topk,uniform,knn,window", "--diverse", "quota", "--stratify", "--landmarks", 8, "--tail", "mean")
require(len(all_of) == 4 and all(x["impact"] is not None for x in all_of), "each method takes what it has")

def refused(words, *options):
    done = run(*options, code=2)
    require(words in done.stderr, f"{words}: {done.stderr}")

for words, bad in (("599 labels for 600 keys", labels[1:]), ("1.5 at position 7", np.where(np.arange(n) == 7, 1.5, labels)),
                   ("one group: there is nothing to compare", labels * 0), ("nan at position 3", np.where(np.arange(n) == 3, np.nan, labels))):
    np.save(path("labels.npy"), bad.astype(np.float32))
    refused(words, "--labels", path("labels.npy"))
np.save(path("labels.npy"), labels)
refused("--labels and --buckets exclude each other", "--labels", path("labels.npy"), "--buckets", 3)
refused("--labels and --by exclude each other", "--labels", path("labels.npy"), "--by", "position")
refused("--buckets goes with --by position", "--by", "frequency", "--buckets", 3)
refused("--by frequency: operands on files have no tokens", "--by", "frequency")
refused("--by document: operands on files have no tokens", "--by", "document")
refused("'labels' is none of document, position, frequency", "--by", "labels")
refused("'nearest' is no method", "--methods", "topk,nearest")
refused("topk is there twice", "--methods", "topk,knn,topk")
refused("go with -m", "-f", path("labels.npy"))
refused("go with -m", "--layers", "3")
refused("do not go with -m", "-m", "model.gguf", "-f", "text.txt")
require("nowhere" in run("--html", "nowhere/page.html", code=1).stderr, "a page that cannot be written")
finish(130)
END
