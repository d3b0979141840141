#!/usr/bin/env bash
# Attention by sampling on heads that `kna dump` wrote: errors of all estimators that read about as many keys, and what each certificate
# promises, keeps and costs. Two tables in Markdown (doc/bench.md, "Radii of sampled attention").
#
#   scripts/bench_sampled.sh DUMP [LAYER..]     KNA: the command (build/kna); LATE: last queries of the text (40); SEEDS (3)
set -euo pipefail
if [ $# -lt 1 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
KNA=${KNA:-build/kna} LATE=${LATE:-40} SEEDS=${SEEDS:-3} exec "${KNA_PYTHON:-python3}" - "$@" <<'END'
import glob, json, os, re, subprocess, sys, tempfile
import numpy as np

dump, layers = sys.argv[1], sys.argv[2:]
layers = layers or sorted((re.search(r"q\.(\d+)\.npy$", name).group(1) for name in glob.glob(os.path.join(dump, "q.*.npy"))), key=int)
late, seeds = int(os.environ["LATE"]), int(os.environ["SEEDS"])

def attend(folder, *options):
    files = [part for name in "qkv" for part in ("--" + name, f"{folder}/{name}.npy")]
    done = subprocess.run([os.environ["KNA"], "attend", *files, "--causal", "--json", "--out", f"{folder}/out.npy", "--lse", f"{folder}/lse.npy",
                           "--radius", f"{folder}/radius.npy", *map(str, options)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return [np.load(f"{folder}/{name}.npy") for name in ("out", "lse", "radius")] + [json.loads(done.stdout)]

def runs(*options):
    """Over layers and seeds: errors and radii over |exact|, errors of lse, share of keys read in full, shares of all bytes, by_means."""
    for layer in layers:
        out, lse, _, _ = exact[layer]
        size = np.linalg.norm(out, axis=-1)
        for seed in range(seeds):
            got, sums, radius, report = attend(f"{folder}/{layer}", *options, "--seed", seed)
            yield (np.linalg.norm(got - out, axis=-1) / size, radius / size, np.abs(sums - lse), report["keys_full"] / report["keys_seen"],
                   report["keys_touched"], report["by_means"])

with tempfile.TemporaryDirectory() as folder:
    exact = {}
    for layer in layers:
        os.mkdir(f"{folder}/{layer}")
        for name in "qkv":
            x = np.load(os.path.join(dump, f"{name}.{layer}.npy")).astype(np.float32)
            np.save(f"{folder}/{layer}/{name}.npy", np.ascontiguousarray(x[:, -late:] if name == "q" else x))
        exact[layer] = attend(f"{folder}/{layer}", "--method", "exact")
    print("| k, s | method | error / \\|out\\| | root mean square | 95th percentile | \\|lse off\\| | keys read | bytes read | by means |\n|" + "---|" * 9)
    for k in (64, 256):
        for method in ("topk", "uniform", "gumbel", "rejection", "mom", "stratified", "centroid", "control", "knn"):
            found = list(runs("--method", method, "--k-near", k, *(() if method in ("topk", "knn") else ("--samples", k))))
            error, lse = np.concatenate([f[0].ravel() for f in found]), np.mean([f[2] for f in found])
            read, touched, means = (100 * np.mean([f[i] for f in found]) for i in (3, 4, 5))
            print(f"| {k} | {method} | {error.mean():.4f} | {np.sqrt((error ** 2).mean()):.4f} | {np.quantile(error, 0.95):.4f} | {lse:.4f} | "
                  f"{read:.1f} % | {touched:.1f} % | {means:.1f} % |", flush=True)
    print("\n| certificate | method | k, s | rows within | worst layer and seed | radius / \\|out\\| | error / \\|out\\| | radius below \\|out\\| | "
          "keys read |\n|" + "---|" * 9)
    ways = [("asymptotic", m) for m in ("uniform", "centroid", "control")] + [("finite", "uniform"), ("bernstein", "uniform")]
    ways += [("deterministic", m) for m in ("topk", "uniform", "stratified")]
    for kind, method in ways:
        for k, s in ((64, 64), (256, 256), (512, 1024), (1024, 2048)):
            found = list(runs("--method", method, "--k-near", k, "--delta", 0.05, "--certificate", kind,
                              *(() if method == "topk" else ("--samples", s))))
            error, radius = np.stack([f[0] for f in found]), np.stack([f[1] for f in found])
            within = (error <= radius + 1e-6).mean(axis=(1, 2))
            print(f"| {kind} | {method} | {k}, {s} | {100 * within.mean():.1f} % | {100 * within.min():.1f} % | {radius.mean():.3f} | {error.mean():.3f} | "
                  f"{100 * (radius < 1).mean():.0f} % | {100 * np.mean([f[3] for f in found]):.1f} % |", flush=True)
END
