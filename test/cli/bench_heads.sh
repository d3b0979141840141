# kna bench heads on a small synthetic dump: tail mass, errors and oracles as NumPy finds them from the same files; what must hold of
# all methods; refusals.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
import json, os, subprocess
import numpy as np

KNA = os.environ["KNA"]
H, H_KV, N, D, DV, LATE = 4, 2, 2400, 32, 24, 352  # 2,400 - 352 = 4 * 512: the late queries are a block of their own in any call
SINKS, WINDOW, KS = 4, 64, [16, 64, N]

def run(*arguments, code=0):
    done = subprocess.run([KNA, "bench", "heads", *map(str, arguments), "--threads", "1"], capture_output=True, text=True)
    assert done.returncode == code, (arguments, done)
    return done.stdout if code == 0 else done.stderr

# Keys in clumps, queries that ask for some: few keys carry much, and the rest is not nothing.
random = np.random.default_rng(7)
os.mkdir("dump")
for layer, sharp in ((2, 1.0), (11, 2.5)):
    topics = random.normal(size=(H_KV, 60, D))
    of = random.integers(0, 60, size=N)
    k = 0.7 * topics[:, of] + 0.7 * random.normal(size=(H_KV, N, D))
    v = random.normal(size=(H_KV, 60, DV))[:, of] + random.normal(size=(H_KV, N, DV))
    q = sharp * (np.repeat(topics, H // H_KV, axis=0)[:, random.integers(0, 60, size=N)] + 0.5 * random.normal(size=(H, N, D)))
    np.save(f"dump/q.{layer}.npy", q.astype(np.float32))
    np.save(f"dump/k.{layer}.npy", k.astype(np.float16))
    np.save(f"dump/v.{layer}.npy", v.astype(np.float32))

def near(name, got, want, share=1e-4):
    assert abs(got - want) <= share * abs(want) + 1e-6, (name, got, want)

def p95(x):
    return np.sort(x.ravel())[x.size - 1 - x.size // 20]

class Layer:
    def __init__(self, number):
        q, k, v = (np.load(f"dump/{x}.{number}.npy").astype(np.float64) for x in "qkv")
        self.number, self.v = number, np.repeat(v, H // H_KV, axis=0)
        logits = q[:, N - LATE:] @ np.repeat(k, H // H_KV, axis=0).transpose(0, 2, 1) / np.sqrt(D)
        position = np.arange(N - LATE, N)[:, None]
        key = np.arange(N)[None]
        logits[:, key > position] = -np.inf
        self.weights = np.exp(logits - logits.max(2, keepdims=True))
        self.weights /= self.weights.sum(2, keepdims=True)
        self.kept = np.broadcast_to((key < SINKS) | ((key <= position) & (key > position - WINDOW)), logits.shape)
        self.exact = self.weights @ self.v

    def largest(self, k, among):
        scores = np.where(among, self.weights, -1)
        order = np.argsort(-scores, axis=2, kind="stable")[:, :, :k]
        chosen = np.zeros(scores.shape, bool)
        np.put_along_axis(chosen, order, True, axis=2)
        return chosen & among

    def error(self, out):
        return np.linalg.norm(out - self.exact, axis=2) / np.linalg.norm(self.exact, axis=2)

    def only(self, read):
        weights = self.weights * read
        return self.error(weights @ self.v / weights.sum(2, keepdims=True))

report = json.loads(run("--dump", "dump", "--late", LATE, "--k", ",".join(map(str, KS)), "--audit", 1, "--rounds", 0, "--json"))
assert [report[x] for x in ("h", "h_kv", "n", "d", "dv", "late", "near_sinks", "near_window")] == [H, H_KV, N, D, DV, LATE, SINKS, WINDOW]
assert "times" not in report and [x["layer"] for x in report["layers"]] == [2, 11]
for given in report["layers"]:
    layer = Layer(given["layer"])
    everything = np.ones(layer.weights.shape, bool)

    # Mass that is left falls with k, and is what sorting says.
    near("first", given["mass"]["first"], layer.weights[:, :, :SINKS].sum(2).mean())
    near("recent", given["mass"]["first_and_recent"], (layer.weights * layer.kept).sum(2).mean())
    masses = [x["mass"] for x in given["tails"]]
    assert [x["k"] for x in given["tails"]] == [16, 32, 64, 128, 256, 512] and all(a > b > 0 for a, b in zip(masses, masses[1:])), masses
    for x in given["tails"]:
        read = layer.kept | layer.largest(x["k"], ~layer.kept)
        near(f"tail {x['k']}", x["mass"], 1 - (layer.weights * read).sum(2).mean())

    errors = {(x["method"], x["k"]): x for x in given["errors"]}
    assert set(errors) == {(m, k) for m in ("topk", "drop", "oracle", "knn own", "knn decode", "knn prefill") for k in KS}
    for (method, k), x in errors.items():
        near(f"{method}: heads", np.mean(x["head_errors"]), x["error_mean"])
        assert len(x["head_errors"]) == H and 0 < x["touched"] < 1.2, x
        if k == N:
            assert x["error_p95"] < 1e-5, (method, x)
        else:
            assert 1e-4 < x["error_mean"] < x["error_p95"] and errors[method, N]["error_mean"] < x["error_mean"], (method, x)
    for method in ("topk", "drop", "oracle", "knn own", "knn decode", "knn prefill"):
        assert errors[method, 64]["error_mean"] < errors[method, 16]["error_mean"], method
    for k in KS[:2]:
        for method, error in (("topk", layer.only(layer.largest(k, everything))),
                              ("drop", layer.only(layer.kept | layer.largest(k, ~layer.kept)))):
            near(f"{method} {k}", errors[method, k]["error_mean"], error.mean(), 1e-3)
            near(f"{method} {k} p95", errors[method, k]["error_p95"], p95(error), 1e-2)
        means = {method: x["error_mean"] for (method, at), x in errors.items() if at == k}
        assert means["oracle"] < means["drop"] and means["oracle"] < means["knn own"], means
        assert means["knn decode"] < means["knn own"], means

        # The same queries through kna attend, all the text in one call: there the first tile has queries before it that choose too.
        subprocess.run([KNA, "attend", "--causal", "--method", "knn", "--k-near", str(k), "--out", "o.npy", "--threads", "1"] +
                       [x for name in "qkv" for x in (f"--{name}", f"dump/{name}.{layer.number}.npy")], check=True)
        error = layer.error(np.load("o.npy")[:, N - LATE:])
        x = errors["knn prefill", k]
        near(f"knn prefill {k}", x["error_mean"], error.mean(), 5e-2)
        near(f"knn prefill {k} p95", x["error_p95"], p95(error), 1e-1)
        assert x["audited"] == H * LATE and 0 < x["estimated"] <= x["estimated_max"] < 1, x
        near("audit of all rows", x["audit_mean"], x["error_mean"], 1e-3)
        near("audit of all rows, p95", x["audit_p95"], x["error_p95"], 1e-2)

    assert [(x["method"], x["eps"]) for x in given["asked"]] == [(m, e) for m in ("knn decode", "knn prefill") for e in (0.2, 0.1, 0.05, 0.02)]
    for some in given["asked"][:4], given["asked"][4:]:
        assert all(a["touched"] <= b["touched"] for a, b in zip(some, some[1:])) and some[0]["error_mean"] > some[3]["error_mean"], some
        for x in some:
            assert x["estimated_max"] <= x["eps"] * 1.0001 and 0 <= x["above_eps"] <= 1, x
            near("audit of what was asked", x["audit_mean"], x["error_mean"], 1e-3)

# Some layers, tables, times.
timed = json.loads(run("--dump", "dump", "--layers", "11", "--late", 40, "--k", "16,64", "--rounds", 2, "--json"))
assert [(x["what"], x["method"], x.get("k")) for x in timed["times"]] == \
    [(w, *m) for w in ("decode", "prefill") for m in (("exact", None), ("topk", 16), ("topk", 64), ("knn", 16), ("knn", 64))] + \
    [("text", "exact", None), ("text", "topk", 384), ("text", "knn", 384)], timed["times"]
for x in timed["times"]:
    assert 0 < x["time_min_s"] <= x["time_s"] <= x["time_max_s"] and x["speed_over_exact"] > 0, x
assert 0 < timed["build_s"] < timed["times"][-1]["time_s"] and timed["index_bytes"] > 0
table = run("--dump", "dump", "--late", 5, "--k", 32, "--rounds", 1).splitlines()
assert table[0] == f"bench heads: 2 layers, {H} heads on {H_KV}, dim {D}, {N} tokens, late queries {N - 5}..{N - 1}", table[0]
assert sum(line.startswith("all ") for line in table) == 7 and sum(line.startswith("worst ") for line in table) == 6, table

# The beginning of a longer dump is a shorter one.
os.mkdir("cut")
for name in "qkv":
    np.save(f"cut/{name}.11.npy", np.load(f"dump/{name}.11.npy")[:, :2000])
shared = ("--layers", 11, "--late", 40, "--k", "16,64", "--rounds", 0, "--json")
assert run("--dump", "dump", "-c", 2000, *shared) == run("--dump", "cut", *shared) != run("--dump", "dump", *shared)

# Refusals.
def refused(text, *arguments, code=2):
    assert text in (said := run(*arguments, code=code)) and said.startswith("kna: ") and said.count("\n") == 1, (text, said)

refused("--dump, or --model and --file, must be given")
refused("not both", "--dump", "dump", "-m", "x.gguf")
refused("must be given", "-m", "x.gguf")
refused(f"layer 2: {N} tokens, fewer than --ctx {N + 1}", "--dump", "dump", "-c", N + 1)
refused("layer 2: 255 tokens, fewer than --late 256", "--dump", "dump", "-c", 255)
refused("nowhere: cannot read", "--dump", "nowhere", code=1)
refused("q.10.npy", "--dump", "dump", "--layers", "10-11", code=1)
refused("is not a list of layers", "--dump", "dump", "--layers", "2-")
refused("--k: 16 after 32", "--dump", "dump", "--k", "32,16")
refused("--late", "--dump", "dump", "--late", 513)
os.mkdir("empty")
refused("no q.L.npy", "--dump", "empty")
for name, shape in (("q", (H, 90, D)), ("k", (H_KV, 90, D)), ("v", (H_KV, 90, DV))):
    np.save(f"empty/{name}.0.npy", random.normal(size=shape).astype(np.float32))
refused("layer 0: 90 tokens, fewer than --late 256", "--dump", "empty")
run("--dump", "empty", "--late", 90, "--rounds", 1)
np.save("empty/v.0.npy", np.full((H_KV, 90, DV), np.nan, np.float32))
refused("layer 0: NaN or infinity in the values: head 0, row 0, column 0", "--dump", "empty", "--late", 9)
np.save("empty/v.0.npy", np.zeros((H_KV, 91, DV), np.float32))
refused("are not of one layer", "--dump", "empty", "--late", 9)
END
