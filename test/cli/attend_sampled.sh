# kna attend with methods that sample: the mean over seeds is exact attention, radii are kept, draws follow the softmax, reports tell the truth.
set -eu
PYTHONPATH=$(dirname "$0") exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
from oracle import *

random = np.random.default_rng(5)
q, k, v = [random.normal(size=shape).astype(np.float32) for shape in ((4, 40, 16), (2, 600, 16), (2, 600, 8))]
s = logits(q, k, causal=True)
truth, _ = softmax(s, v)
weights = np.exp(s - s.max(axis=2, keepdims=True))
weights /= weights.sum(axis=2, keepdims=True)

drawing = ("gumbel", "rejection")
for method in ("uniform", *drawing, "stratified", "centroid", "control"):
    outs = []
    for seed in range(20):
        out, lse, report = attend(q, k, v, "--causal", "--method", method, "--k-near", 50, "--samples", 100, "--seed", seed,
                                  *(["--draws", path("draws.npy")] if method in drawing else ["--radius", path("radius.npy")]))
        outs.append(out)
        require(report["method"] == method and (method in drawing or report["keys_full"] < 0.6 * report["keys_seen"]), f"{method}: {report}")
    mean, deviation = np.mean(outs, axis=0), np.std(outs, axis=0)
    off = np.abs(mean - truth) / (deviation / np.sqrt(20) + 1e-6)
    require(np.mean(off > 4) < 0.01, f"{method}: {np.mean(off > 4):.1%} of the numbers are more than four standard errors off")
    require(len({out.tobytes() for out in outs}) == 20, f"{method}: seeds give the same")
    if method in ("uniform", "centroid", "control"):
        require(report["certificate"] == "asymptotic" and 0 < report["radius"] <= report["radius_max"], f"{report}")
    elif method in drawing:
        draws = np.load(path("draws.npy"))
        require(draws.shape == (4, 40, 100) and draws.dtype == np.int64, f"draws {draws.shape} {draws.dtype}")
        means = np.stack([np.mean(v[head // 2][draws[head]], axis=1) for head in range(4)])
        require(np.abs(means - outs[-1]).max() < 1e-5, f"{method}: the output is not the mean of what was drawn")

for kind, wanted in (("asymptotic", 0.93), ("finite", 0.999), ("bernstein", 0.999), ("deterministic", 1)):
    kept = []
    for seed in range(10):
        out, _, report = attend(q, k, v, "--causal", "--method", "uniform", "--k-near", 60, "--samples", 120, "--delta", 0.05, "--certificate", kind,
                                "--radius", path("radius.npy"), "--seed", seed)
        require(report["certificate"] == kind, report["certificate"])
        kept.append(np.linalg.norm(out - truth, axis=2) <= np.load(path("radius.npy")) + 1e-6)
    require(np.mean(kept) >= wanted, f"{kind}: {np.mean(kept):.3f} within the radius")

# As near as asked; nothing short of everything will do for very little.
scale = np.sqrt(np.einsum("hmn,hn->hm", weights, np.repeat((v ** 2).sum(axis=2), 2, axis=0)))
out, _, some = attend(q, k, v, "--causal", "--method", "uniform", "--k-near", 50, "--eps", 0.1, "--delta", 0.05)
require(np.mean(np.linalg.norm(out - truth, axis=2) > 0.1 * scale) <= 0.05, "eps 0.1")
out, _, all = attend(q, k, v, "--causal", "--method", "uniform", "--k-near", 50, "--eps", 1e-6)
require(np.abs(out - truth).max() < 1e-5 and all["certificate"] == "exact" and some["keys_full"] < all["keys_full"], "eps 1e-6")

# Bounds of clusters, and a gap, change what is read and not what is drawn: sums of the softmax are as they were.
for bounds in (("--bounds", "clusters"), ("--gap", 0.5)):
    out, lse, report = attend(q, k, v, "--causal", "--method", "gumbel", "--k-near", 50, "--samples", 500, *bounds)
    _, sums = softmax(s, v)
    require(np.abs(lse - sums).max() < 0.3 and np.abs(np.mean(lse - sums)) < 0.02, f"{bounds}: lse off by {np.abs(lse - sums).max()}")
    require(np.abs(out - truth).max() < 0.3, f"{bounds}: {np.abs(out - truth).max()}")

# topk: its radius holds; an eps that it does not reach makes rows exact, and the report says how many.
out, _, report = attend(q, k, v, "--causal", "--method", "topk", "--k-near", 300, "--certificate", "deterministic", "--radius", path("radius.npy"))
require(np.all(np.linalg.norm(out - truth, axis=2) <= np.load(path("radius.npy")) + 1e-6) and report["rows_exact"] == 0, f"{report}")
out, _, report = attend(q, k, v, "--causal", "--method", "topk", "--k-near", 300, "--certificate", "deterministic", "--eps", 1e-4)
require(np.abs(out - truth).max() < 1e-5 and report["rows_exact"] == report["rows"] and report["certificate"] == "exact", f"{report}")

# Fewer samples than cells: the report says how much of the softmax stands by means.
_, _, report = attend(q, k, v, "--causal", "--method", "stratified", "--k-near", 50, "--samples", 8)
require(0 < report["by_means"] < 1, f"{report}")

out, _, _ = attend(q, k, v, "--method", "mom", "--k-near", 50, "--samples", 2000, "--groups", 9)
require(np.abs(out - softmax(logits(q, k), v)[0]).max() < 0.3, "median of means")
finish(90)
END
