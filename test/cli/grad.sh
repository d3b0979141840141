# kna grad equals differences of attention in double precision, writes all files or none, and refuses what disagrees.
set -eu
PYTHONPATH=$(dirname "$0") exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
from oracle import *

random = np.random.default_rng(11)
h, h_kv, m, n, d, dv = 4, 2, 30, 45, 8, 6
q, k, v, dout = [random.normal(size=shape).astype(np.float32) for shape in ((h, m, d), (h_kv, n, d), (h_kv, n, dv), (h, m, dv))]
sinks = random.normal(size=h).astype(np.float32)
for name, array in (("q", q), ("k", k), ("v", v), ("dout", dout), ("sinks", sinks)):
    np.save(path(name + ".npy"), array)

def run(*options, out="gradients"):
    command = [KNA, "grad"]
    for name in ("q", "k", "v", "dout"):
        command += ["--" + name, path(name + ".npy")]
    return subprocess.run(command + ["--out-dir", path(out), *map(str, options)], capture_output=True, text=True)

def loss(q, k, v, meaning, sinks):
    out, _ = softmax(logits(q, k, **meaning), v, sinks)
    return (out * dout).sum()

for options, meaning, with_sinks in (((), {}, False), (("--causal", "--window", 20), {"causal": True, "window": 20}, False),
                                     (("--softcap", 1.5, "--scale", 0.7), {"softcap": 1.5, "scale": 0.7}, True)):
    done = run("--json", *options, *(["--sinks", path("sinks.npy")] if with_sinks else []))
    require(done.returncode == 0, f"{options}: {done.stderr}")
    require(json.loads(done.stdout)["n"] == n, "shapes in the report")
    used = [x.astype(np.float64) for x in (q, k, v)]
    for at, name in enumerate(("dq", "dk", "dv")):
        gradient = np.load(path("gradients/" + name + ".npy"))
        require(gradient.shape == used[at].shape and gradient.dtype == np.float32, f"{name}: {gradient.shape} {gradient.dtype}")
        for _ in range(8):
            place = tuple(random.integers(size) for size in used[at].shape)
            losses = []
            for step in (1e-5, -1e-5):
                moved = [x.copy() for x in used]
                moved[at][place] += step
                losses.append(loss(*moved, meaning, sinks if with_sinks else None))
            wanted = (losses[0] - losses[1]) / 2e-5
            require(abs(gradient[place] - wanted) <= 2e-5 * (1 + abs(wanted)), f"{options} {name}{place}: {gradient[place]}, by differences {wanted}")
    require(os.path.exists(path("gradients/dsinks.npy")) == with_sinks, "dsinks.npy")

# Everything looked at: as exact; what is drawn is near; a signed chain has values only.
def gradients(*options, names=("dq", "dk", "dv")):
    done = run(*options, out="near")
    require(done.returncode == 0, f"{options}: {done.stderr}")
    return {name: np.load(path("near/" + name + ".npy")).astype(np.float64) for name in names}

def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)

exact = gradients("--causal")
for method in ("topk", "uniform"):
    for name, x in gradients("--causal", "--method", method, "--k-near", n).items():
        require(distance(x, exact[name]) < 1e-5, f"{method} of everything: {name}")
    near = gradients("--causal", "--method", method, "--k-near", 25, "--samples", 10)
    require(1e-4 < distance(near["dv"], exact["dv"]) < 0.5, f"{method}: dv")
for chain in ("rows", "joint", "tail"):
    few, many = [gradients("--causal", "--method", "chain", "--chain", chain, "--k-near", 4, "--samples", s) for s in (8, 2048)]
    for name in exact:
        require(distance(many[name], exact[name]) < 0.2 < distance(few[name], exact[name]) * 4, f"chain {chain}: {name}: {distance(many[name], exact[name])}")
for method, options in (("window", ("--causal", "--near-window", n)), ("linformer", ("--rank", n)), ("nystrom", ("--rank", 5)), ("performer", ("--causal",))):
    near = gradients("--method", method, *options)
    require(all(np.isfinite(x).all() and x.any() for x in near.values()), f"{method}: not finite")
    if method in ("window", "linformer"):
        full = gradients(*options[:1]) if method == "window" else gradients()
        require(all(distance(gradients("--method", method, *options)[name], full[name]) < 1e-5 for name in full), f"{method} of everything is not exact")
for name in ("dq", "dk"):
    os.remove(path("near/" + name + ".npy"))
walk = gradients("--causal", "--method", "chain", "--chain", "signed", "--samples", 500, names=("dv",))
require(distance(walk["dv"], exact["dv"]) < 0.2, "chain signed: dv")
require(not os.path.exists(path("near/dq.npy")), "chain signed wrote dq")

def refused(words, *options, code=2):
    done = run(*options, out="refused")
    require(done.returncode == code and words in done.stderr, f"{words}: exit {done.returncode}: {done.stderr}")
    require(not os.path.exists(path("refused")), f"{words}: a folder was left behind")

np.save(path("dout.npy"), dout[:, :-1])
refused("m = 29")
bad = dout.copy()
bad[1, 2, 3] = np.nan
np.save(path("dout.npy"), bad)
refused("dout.npy: NaN or infinity at head 1, row 2, column 3")
np.save(path("dout.npy"), dout)
refused("--chain: goes with", "--chain", "tail")
refused("at least 2 draws", "--method", "chain", "--samples", 1)
finish(110)
END
