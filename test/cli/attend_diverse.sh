# kna attend with heads that are not the nearest keys, labels, landmarks, strata and a mean for the tail: what they promise, and what is refused.
set -eu
PYTHONPATH=$(dirname "$0") exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
from oracle import *

random = np.random.default_rng(11)
n, m, K = 300, 100, 30
q, k = [random.normal(size=shape).astype(np.float32) for shape in ((4, m, 16), (2, n, 16))]
v = np.repeat(np.eye(n, dtype=np.float32)[None], 2, axis=0)   # an output is the weight of every key
labels = (np.arange(n) % 10 > 7).astype(np.float32) + (np.arange(n) > 280)
np.save(path("labels.npy"), labels)
label = ("--labels", path("labels.npy"))

def run(*options):
    return attend(q, k, v, "--causal", "--k-near", K, *options)

def heads(out):
    return out > 0

s = logits(q, k, causal=True)
plain, plain_lse, report = run("--method", "topk")
want = softmax(keep_nearest(s, K), v)
check("topk", plain, plain_lse, *want, v)
same, _, _ = run("--method", "topk", "--diverse", "mmr", "--mmr-lambda", 1)
require(same.tobytes() == plain.tobytes(), "mmr with lambda 1 is topk")
for kind in ("mmr", "dpp"):
    out, _, report = run("--method", "topk", "--diverse", kind, "--pool", 90)
    require((heads(out).sum(axis=2) == K).all() and (heads(out) != heads(plain)).any(), f"{kind}: heads of {K} others")
    require(report["keys_full"] == 90 * 4 * m, f"{kind}: {report['keys_full']} keys, those of the pool")
    require((heads(out) <= heads(softmax(keep_nearest(s, 90), v)[0])).all(), f"{kind}: of the pool")

out, _, _ = run("--method", "topk", "--diverse", "quota", "--quota", 0.5, *label)
for group in range(3):
    members = (np.isfinite(s) & (labels == group)).sum(axis=2)
    quota = np.minimum(members, np.ceil(0.5 * K * members / np.isfinite(s).sum(axis=2) - 1e-6))
    require((heads(out)[:, :, labels == group].sum(axis=2) >= quota).all(), f"group {group} has its quota")
out, _, _ = run("--method", "topk", "--landmarks", 8)
require((heads(out)[:, :64] == heads(plain)[:, :64]).all() and (heads(out)[:, 64:] != heads(plain)[:, 64:]).any(), "landmarks from the second block on")
common = heads(out)[:, 64:].all(axis=1).sum(axis=1)
require((common >= 8).all(), f"keys in every head: {common}")
out, lse, report = run("--method", "topk", "--tail", "mean")
check("a mean tail", out, lse, *want, v, tolerance=1)
require(np.allclose(out.sum(axis=2), 1, atol=1e-4) and np.abs(lse - softmax(s, v)[1]).max() < 0.1 < np.abs(plain_lse - softmax(s, v)[1]).max(), "a mean tail keeps the mass")

def deviation(*options):
    return np.std([[run("--method", "uniform", "--samples", 40, "--seed", seed, *options)[0][:, :, labels == g].sum(axis=2) for g in (0, 1, 2)] for seed in range(30)], axis=0).mean(axis=(1, 2))
loose, tight = deviation(*label), deviation("--stratify", *label)
require((tight < loose).all(), f"deviations of groups {loose}, in strata {tight}")

def refused(words, *options):
    done = subprocess.run([KNA, "attend", "--q", path("q.npy"), "--k", path("k.npy"), "--v", path("v.npy"), "--out", path("x.npy"), "--k-near", str(K), *map(str, options)],
                          capture_output=True, text=True)
    require(done.returncode == 2 and words in done.stderr and not os.path.exists(path("x.npy")), f"{words}: {done.returncode} {done.stderr}")

refused("--labels is missing: --diverse quota", "--method", "topk", "--diverse", "quota")
refused("--labels is missing: --stratify", "--method", "uniform", "--stratify")
refused("exact has no head", "--diverse", "mmr")
refused("pool: 20 is below k_near, 30", "--method", "topk", "--diverse", "mmr", "--pool", 20)
refused("landmarks: 30 is not below k_near, 30", "--method", "topk", "--landmarks", 30)
refused("'65' is not an integer in 1..64", "--method", "topk", "--landmarks", 65)
refused("uniform drops none", "--method", "uniform", "--tail", "mean")
refused("no finite certificate", "--method", "uniform", "--stratify", "--certificate", "finite", *label)
for words, bad in (("299 labels for 300 keys", labels[1:]), ("1.5 at position 7", np.where(np.arange(n) == 7, 1.5, labels)), ("nan at position 3", np.where(np.arange(n) == 3, np.nan, labels)),
                   ("-1 at position 0", labels - 1), ("4096 at position 5", np.where(np.arange(n) == 5, 4096, labels))):
    np.save(path("labels.npy"), bad.astype(np.float32))
    refused(words, "--method", "topk", "--diverse", "quota", *label)
finish(25)
END
