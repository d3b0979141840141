"""Attention in double precision with NumPy, and how the tests in this folder call kna.

Nothing here is taken from the library: the formulas are those of include/kna.h, written down a second time.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

KNA = os.environ["KNA"]
FOLDER = tempfile.mkdtemp(prefix="kna-test-")
failures = 0
checks = 0


def complain(text):
    global failures
    failures += 1
    if failures <= 20:
        print(text)


def finish(least):
    """End the script: exit code 1 after a failure, or if fewer checks ran than were meant to."""
    import shutil
    shutil.rmtree(FOLDER)
    print(f"{checks} checks, {failures} failed")
    sys.exit(failures > 0 or checks < least)


def path(name):
    return os.path.join(FOLDER, name)


def attend(q, k, v, *options, mask=None, slopes=None, sinks=None):
    """out, lse and report of one `kna attend`."""
    arrays = {"q": q, "k": k, "v": v, "mask": mask, "slopes": slopes, "sinks": sinks}
    command = [KNA, "attend"]
    for name, array in arrays.items():
        if array is not None:
            np.save(path(name + ".npy"), array)
            command += ["--" + name, path(name + ".npy")]
    for name in ("out", "lse"):
        command += ["--" + name, path(name + ".npy")]
    done = subprocess.run(command + ["--json", *map(str, options)], capture_output=True, text=True)
    if done.returncode != 0 or done.stderr:
        raise RuntimeError(f"{' '.join(command)} {options}: exit {done.returncode}: {done.stderr}")
    return np.load(path("out.npy")), np.load(path("lse.npy")), json.loads(done.stdout)


def logits(q, k, scale=None, causal=False, shift=0, window=0, softcap=0, slopes=None, mask=None):
    """(h,m,n) in double; -inf where a query does not see a key."""
    q, k = q.astype(np.float64), k.astype(np.float64)
    h, m, d = q.shape
    n = k.shape[1]
    k = np.repeat(k, h // k.shape[0], axis=0)
    s = np.einsum("hmd,hnd->hmn", q, k) * (1 / np.sqrt(d) if scale is None else scale)
    if softcap:
        s = softcap * np.tanh(s / softcap)
    p = np.arange(m)[:, None] + (n - m) + shift
    j = np.arange(n)[None, :]
    if mask is not None:
        bias = np.broadcast_to(mask.astype(np.float64), (h, m, n))
        with np.errstate(invalid="ignore"):
            s = s + (bias if slopes is None else np.where(np.isinf(bias), bias, bias * slopes[:, None, None].astype(np.float64)))
    elif slopes is not None:
        s = s + slopes[:, None, None].astype(np.float64) * (j - p)
    seen = np.ones((m, n), bool)
    if causal:
        seen &= j <= p
    if window:
        seen &= j > p - window
    return np.where(seen, s, -np.inf)


def keep_nearest(s, k):
    """Logits with all but the k largest of each row forbidden; among equals the lower index stays."""
    order = np.argsort(-s, axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(s.shape[-1]), s.shape), axis=-1)
    return np.where(rank < k, s, -np.inf)


def softmax(s, v, sinks=None):
    """out (h,m,dv) and lse (h,m) of logits over values."""
    h, m, n = s.shape
    v = np.repeat(v.astype(np.float64), h // v.shape[0], axis=0)
    sink = np.full((h, 1, 1), -np.inf) if sinks is None else sinks.astype(np.float64)[:, None, None]
    s = np.concatenate([s, np.broadcast_to(sink, (h, m, 1))], axis=2)
    top = s.max(axis=2, keepdims=True)
    top = np.where(np.isinf(top), 0, top)
    weights = np.exp(s - top)
    total = weights.sum(axis=2, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[:, :, 0]
    return np.einsum("hmn,hnd->hmd", weights[:, :, :n] / np.where(total == 0, 1, total), v), lse


def check(name, out, lse, want, want_lse, v, tolerance=1e-5):
    """|out - want| <= tolerance * max|v|, and lse alike where it is finite."""
    global checks
    checks += 1
    size = np.abs(v).max() if v.size else 1.0
    error = np.abs(out - want).max() / max(size, 1e-30)
    if not error <= tolerance:
        complain(f"{name}: out differs by {error:.3g} max|v|, {tolerance:.3g} is allowed")
    if not np.array_equal(np.isinf(lse), np.isinf(want_lse)):
        complain(f"{name}: lse is infinite in the wrong places")
        return
    there = np.isfinite(want_lse)
    apart = np.abs(lse[there] - want_lse[there]) / np.maximum(1, np.abs(want_lse[there]))
    if there.any() and not apart.max() <= tolerance:
        complain(f"{name}: lse differs by {apart.max():.3g}, {tolerance:.3g} is allowed")


def require(condition, text):
    global checks
    checks += 1
    if not condition:
        complain(text)
