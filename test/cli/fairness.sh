# kna fairness: the shares of groups are those of the softmax in double precision; topk's ratios have a closed form; a sampled tail restores parity.
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

def refused(words, *options):
    done = run(*options, code=2)
    require(words in done.stderr, f"{words}: {done.stderr}")

for words, bad in (("599 labels for 600 keys", labels[1:]), ("1.5 at position 7", np.where(np.arange(n) == 7, 1.5, labels)), ("group 1 has no keys", labels * 2),
                   ("one group", labels * 0), ("nan at position 3", np.where(np.arange(n) == 3, np.nan, labels))):
    np.save(path("labels.npy"), bad.astype(np.float32))
    refused(words, "--labels", path("labels.npy"))
refused("exclude each other", "--labels", path("labels.npy"), "--buckets", 3)
refused("'nearest' is no method", "--compare", "topk,nearest")
refused("--kv-type", "--kv-type", "i8")
finish(25)
END
