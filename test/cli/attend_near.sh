# kna attend --method topk equals softmax over the true k largest logits, ties to the lower index; --method knn is exact where it must be,
# near where it can be, and its report tells the truth.
set -eu
PYTHONPATH=$(dirname "$0") exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
from oracle import *

random = np.random.default_rng(7)

def whole_numbers(h, h_kv, m, n, d):
    """Small integers: with a power of two as scale logits are exact in float32, and equal ones are many."""
    q = random.integers(-4, 5, size=(h, m, d)).astype(np.float32)
    k = random.integers(-4, 5, size=(h_kv, n, d)).astype(np.float32)
    return q, k, random.normal(size=(h_kv, n, d)).astype(np.float32)

def normals(h, h_kv, m, n, d):
    return [random.normal(size=shape).astype(np.float32) for shape in ((h, m, d), (h_kv, n, d), (h_kv, n, d))]

def topk(name, q, k, v, near, *options, mask=None, slopes=None, sinks=None, **meaning):
    out, lse, report = attend(q, k, v, "--method", "topk", "--k-near", near, *options, mask=mask, slopes=slopes, sinks=sinks)
    s = logits(q, k, mask=mask, slopes=slopes, **meaning)
    kept = keep_nearest(s, near)
    check(name, out, lse, *softmax(kept, v, sinks), v)
    sees = np.isfinite(s).any(axis=2)
    shares = np.exp(softmax(kept, v, sinks)[1][sees] - softmax(s, v, sinks)[1][sees])
    dropped = 1 - shares.mean() if sees.any() else 0
    require(abs(report["tail_mass"] - dropped) < 0.02, f"{name}: tail_mass {report['tail_mass']}, {dropped} was dropped")
    exact = np.isfinite(s).sum(axis=2).max() <= near
    require((report["certificate"] == "exact") == exact, f"{name}: certificate {report['certificate']}")

# Ties: most logits occur several times.
for d in (1, 3, 8, 16, 33, 64, 128):
    for near in (1, 2, 7, 64, 128):
        m, n = (1, 300) if near % 2 else (9, 200)
        topk(f"ties d {d} k {near}", *whole_numbers(6, 2, m, n, d), near, "--scale", 0.125, scale=0.125)
for near, n in ((1, 1), (5, 4), (1000, 400), (128, 128), (128, 129), (16, 17)):
    topk(f"k {near} n {n}", *whole_numbers(3, 3, 2, n, 24), near, "--scale", 0.25, scale=0.25)
topk("all keys equal", *(lambda q, k, v: (q, np.ones_like(k), v))(*whole_numbers(4, 1, 3, 90, 20)), 10)
topk("zero keys", *(lambda q, k, v: (q, np.zeros_like(k), v))(*whole_numbers(4, 1, 3, 90, 20)), 10)
for m, n in ((1, 400), (5, 400), (60, 200)):
    q, k, v = whole_numbers(8, 2, m, n, 32)
    mask = np.where(random.random(size=(m, n)) < 0.5, -np.inf, random.integers(-2, 3, size=(m, n))).astype(np.float32)
    mask[-1] = -np.inf
    at = f"m {m} n {n} "
    topk(at + "causal", q, k, v, 20, "--causal", "--scale", 0.25, causal=True, scale=0.25)
    topk(at + "causal shift", q, k, v, 20, "--causal", "--causal-shift", -30, "--scale", 0.25, causal=True, shift=-30, scale=0.25)
    topk(at + "window", q, k, v, 20, "--causal", "--window", 70, "--scale", 0.25, causal=True, window=70, scale=0.25)
    topk(at + "mask", q, k, v, 20, "--scale", 0.5, mask=mask, scale=0.5)
    topk(at + "sinks", q, k, v, 20, "--scale", 0.25, scale=0.25, sinks=np.linspace(-1, 4, 8).astype(np.float32))
    topk(at + "slopes", q, k, v, 20, "--causal", "--scale", 0.5, slopes=np.float32(0.5) ** np.arange(8, dtype=np.float32), causal=True, scale=0.5)

# Without ties, in the numbers of a model: the k-th and the next must be further apart than rounding to be told apart.
for near in (1, 16, 128):
    q, k, v = normals(8, 2, 12, 900, 64)
    order = -np.sort(-logits(q, k), axis=2)
    clear = (order[:, :, near - 1] - order[:, :, near] > 1e-5).all(axis=0)
    require(clear.sum() >= 6, f"only {clear.sum()} queries can be checked")
    topk(f"normal k {near}", q[:, clear], k, v, near)

# knn: every key in full is exact attention.
for h, h_kv, m, n, d in ((3, 1, 1, 100, 16), (8, 2, 7, 128, 33), (9, 3, 70, 70, 64), (4, 4, 2, 1, 5)):
    for causal in ([], ["--causal"]):
        q, k, v = normals(h, h_kv, m, n, d)
        out, lse, report = attend(q, k, v, "--method", "knn", "--k-near", n, *causal)
        check(f"knn k = n {h} {m} {n} {causal}", out, lse, *softmax(logits(q, k, causal=bool(causal)), v), v)
        require(report["certificate"] == "exact" and report["rows_exact"] == h * m, f"knn k = n: {report}")
# The default k is the one that the help states.
q, k, v = normals(1, 1, 1, 3000, 16)
usual = attend(q, k, v, "--method", "topk")[0]
require(np.array_equal(usual, attend(q, k, v, "--method", "topk", "--k-near", 384)[0]), "the default k is not 384")
require(not np.array_equal(usual, attend(q, k, v, "--method", "topk", "--k-near", 383)[0]), "k = 383 is as good as 384")
q, k, v = normals(4, 2, 3, 500, 32)
out, lse, report = attend(q, k, v, "--method", "knn", "--k-near", 1, "--near-window", 500)
check("knn window = n", out, lse, *softmax(logits(q, k), v), v)
out, lse, report = attend(q, k, v, "--method", "knn", "--k-near", 1, "--near-window", 0, "--near-sinks", 500)
check("knn sinks = n", out, lse, *softmax(logits(q, k), v), v)

# knn: the tail is exact, up to rounding, where keys come in groups of equal ones, whatever k is: clusters are parts of groups.
q, k, v = normals(6, 2, 5, 1600, 64)
alike = np.tile(k[:, :8], (1, 200, 1))
want, want_lse = softmax(logits(q, alike), v)
for near in (1, 20, 60):
    out, lse, report = attend(q, alike, v, "--method", "knn", "--k-near", near)
    check(f"knn alike {near}", out, lse, want, want_lse, v, tolerance=0.005)
    require(report["tail_mass"] > 0.05 and report["keys_touched"] < 0.9 and report["rows_exact"] == 0, f"knn alike: {report}")

# knn: nearer than topk with the same k, and the report is what was done.
for m, n in ((1, 2000), (20, 1500)):
    q, k, v = normals(9, 3, m, n, 64)
    v += 1  # a mean that a dropped tail misses
    want, want_lse = softmax(logits(q, k), v)
    apart = {}
    for method in ("topk", "knn"):
        out, lse, report = attend(q, k, v, "--method", method, "--k-near", 64, "--audit", 1)
        rows = np.linalg.norm(out - want, axis=2) / np.linalg.norm(want, axis=2)
        apart[method] = rows.mean()
        require(report["audited"] == 9 * m and report["certificate"] == "audited", f"{method}: {report}")
        require(abs(report["audit_mean"] - rows.mean()) < 1e-4 + 1e-3 * rows.mean(), f"{method}: audit_mean {report['audit_mean']}, {rows.mean()}")
        inside = np.sort(rows.ravel())[[int(0.9 * (rows.size - 1)), -1]]
        require(inside[0] - 1e-4 <= report["audit_p95"] <= inside[1] + 1e-4, f"{method}: audit_p95 {report['audit_p95']}, {inside}")
        least = 64 if method == "topk" else 64 + 64 + 16
        require(report["keys_full"] >= least * 9 * m and report["keys_seen"] == 9 * m * n, f"{method}: keys {report}")
        bytes = 3 * n * (64 if method == "topk" else 16)
        require(bytes < report["index_bytes"] < 3 * n * 128 and report["scratch_bytes"] > 0 and report["stale_rows"] == 0, f"{method}: {report}")
        require(0 < report["build_s"] <= report["time_s"], f"{method}: {report}")
    require(apart["knn"] < 0.5 * apart["topk"], f"errors {apart}")
    some = [attend(q, k, v, "--method", "knn", "--audit", 0.5, "--seed", seed)[2]["audited"] for seed in (1, 2, 3, 4)]
    require(all(0 < x < 9 * m for x in some) and len(set(some)) > 1, f"half of {9 * m} rows audited: {some}")

# eps: what is asked is kept, and costs keys.
q, k, v = normals(6, 2, 4, 3000, 64)
q *= 2
want, want_lse = softmax(logits(q, k), v)
keys = []
for eps in (0.2, 0.02, 0.002):
    out, lse, report = attend(q, k, v, "--method", "knn", "--k-near", 16, "--eps", eps)
    require(report["error_est_max"] <= eps * 1.0001, f"eps {eps}: {report}")
    error = np.linalg.norm(out - want, axis=2).mean() / np.linalg.norm(v, axis=2).mean()
    require(error <= 2 * eps, f"eps {eps}: mean error {error} of a value's length")
    keys.append(report["keys_full"])
require(keys[0] <= keys[1] <= keys[2] and keys[0] < keys[2], f"keys read for smaller eps: {keys}")
# eps with delta: rows that are off by more than eps are as rare as asked, as all rows say and as the drawn ones do.
q, k, v = normals(6, 2, 2500, 3200, 32)
want, want_lse = softmax(logits(q, k, causal=True), v)
keys = []
for eps, delta in ((0.8, 0.1), (0.5, 0.1), (0.5, 0.01)):
    out, lse, report = attend(q, k, v, "--method", "knn", "--causal", "--k-near", 32, "--eps", eps, "--delta", delta)
    error = np.linalg.norm(out - want, axis=2) / np.linalg.norm(want, axis=2)
    off = (error > eps).mean()
    require(off <= delta + 0.06, f"eps {eps} delta {delta}: {off} of the rows are off") # as 78 rows drawn of a KV head can tell
    require(100 < report["audited"] < 220 and abs(report["audit_over"] - off) < 0.12, f"eps {eps} delta {delta}: {off}, {report}")
    require(abs(report["audit_mean"] - error.mean()) <= 2 * report["audit_mean_off"], f"audit of {error.mean()}: {report}")
    require(report["error_est"] is None, f"estimates nobody asked for: {report}")
    keys.append(report["keys_full"])
require(keys[0] < keys[1] < keys[2], f"keys read for a stricter request: {keys}")
q, k, v = normals(6, 2, 4, 3000, 64)
out, lse, report = attend(q, k, v, "--method", "knn")
require(report["error_est"] is None and report["audit_mean"] is None, f"nothing was estimated: {report}")
finish(255)
END
