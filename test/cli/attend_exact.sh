# kna attend --method exact equals softmax in double within 1e-5 max|v|: shapes, causality, and everything that changes the logits.
set -eu
PYTHONPATH=$(dirname "$0") exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
from oracle import *

random = np.random.default_rng(20240501)

def operands(h, h_kv, m, n, d, dv=None, spread=1.0, dtype=np.float32):
    q = random.normal(size=(h, m, d)) * spread
    k = random.normal(size=(h_kv, n, d))
    v = random.normal(size=(h_kv, n, dv or d))
    return [x.astype(dtype) for x in (q, k, v)]

def compare(name, q, k, v, *options, mask=None, slopes=None, sinks=None, **meaning):
    out, lse, report = attend(q, k, v, *options, mask=mask, slopes=slopes, sinks=sinks)
    s = logits(q, k, mask=mask, slopes=slopes, **meaning)
    want, want_lse = softmax(s, v, sinks)
    check(name, out, lse, want, want_lse, v)
    require(report["method"] == "exact" and report["certificate"] == "exact", f"{name}: report {report}")
    require(report["keys_seen"] == np.isfinite(s).sum(), f"{name}: keys_seen {report['keys_seen']}, {np.isfinite(s).sum()} are seen")

# Every dimension up to 256 would take minutes; these are all residues of the vector lengths and the ends.
dims = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 80, 95, 96, 127, 128, 129, 160, 191, 192, 255, 256]
for i, d in enumerate(dims):
    h_kv = (1, 2, 3)[i % 3]
    h = h_kv * (1, 3, 4, 8)[i % 4]
    m, n = [(1, 1), (1, 70), (5, 5), (17, 64), (33, 129), (2, 1), (64, 17)][i % 7]
    causal = ["--causal"] if i % 2 else []
    compare(f"h {h} {h_kv} m {m} n {n} d {d} {causal}", *operands(h, h_kv, m, n, d), *causal, causal=bool(causal))
for g in (1, 3, 4, 8):
    for m in (1, 2, 40):
        for n in (1, 3, 16, 257):
            compare(f"g {g} m {m} n {n}", *operands(2 * g, 2, m, n, 19), "--causal", causal=True)
for dv in (1, 7, 48, 200):
    compare(f"dv {dv}", *operands(4, 2, 3, 50, 24, dv), causal=False)
    compare(f"dv {dv} prefill", *operands(4, 2, 90, 100, 24, dv), "--causal", causal=True)
for h, m, n, d in ((9, 1, 3000, 64), (6, 300, 700, 64), (3, 130, 130, 128), (1, 1, 4097, 33)):
    compare(f"large {h} {m} {n} {d}", *operands(h, 3 if h % 3 == 0 else 1, m, n, d), "--causal", causal=True)
compare("peaked", *operands(3, 1, 20, 200, 64, spread=40.0), causal=False)
compare("1024", *operands(2, 1, 3, 40, 1024), causal=False)
compare("d = 1024 causal", *operands(2, 2, 30, 40, 1024), "--causal", causal=True)

# No key at all, and rows that see none.
q, k, v = operands(4, 2, 3, 0, 8)
compare("n = 0", q, k, v)
compare("n = 0 with sinks", q, k, v, sinks=np.float32([0.5, -1, 2, 0]))
q, k, v = operands(2, 1, 9, 4, 8)
compare("more queries than keys", q, k, v, "--causal", causal=True)

# What changes the logits, alone and together, for few and for many queries.
for m, n in ((1, 75), (6, 75), (70, 90)):
    h = 6
    q, k, v = operands(h, 2, m, n, 20, spread=2.0)
    slopes = (2.0 ** -np.arange(1, h + 1)).astype(np.float32)
    sinks = random.normal(size=h).astype(np.float32) * 3
    mask = random.normal(size=(m, n)).astype(np.float32)
    mask[random.random(size=(m, n)) < 0.3] = -np.inf
    if m > 2:
        mask[2] = -np.inf
    masks = random.normal(size=(h, m, n)).astype(np.float16)
    masks[random.random(size=(h, m, n)) < 0.5] = -np.inf
    at = f"m {m} n {n}: "
    compare(at + "scale", q, k, v, "--scale", 0.75, scale=0.75)
    compare(at + "window", q, k, v, "--window", 13, window=13)
    compare(at + "window causal", q, k, v, "--window", 13, "--causal", window=13, causal=True)
    compare(at + "window 1", q, k, v, "--window", 1, "--causal", window=1, causal=True)
    compare(at + "softcap", q, k, v, "--softcap", 1.5, softcap=1.5)
    compare(at + "softcap large", q, k, v, "--softcap", 50, "--causal", softcap=50, causal=True)
    compare(at + "slopes", q, k, v, "--causal", slopes=slopes, causal=True)
    compare(at + "sinks", q, k, v, sinks=sinks)
    compare(at + "mask", q, k, v, mask=mask)
    compare(at + "mask f16", q, k, v, mask=mask.astype(np.float16))
    compare(at + "mask per head", q, k, v, mask=masks)
    compare(at + "mask of one head", q, k, v, mask=masks[:1])
    compare(at + "mask, slopes", q, k, v, mask=mask, slopes=slopes)
    compare(at + "mask, causal, sinks", q, k, v, "--causal", mask=mask, sinks=sinks, causal=True)
    for shift in (-80, -7, 3, 200):
        compare(at + f"shift {shift}", q, k, v, "--causal", "--causal-shift", shift, causal=True, shift=shift)
        compare(at + f"shift {shift} window", q, k, v, "--causal-shift", shift, "--window", 9, window=9, shift=shift)
    compare(at + "all", q, k, v, "--causal", "--window", 40, "--softcap", 5, "--scale", 0.3, "--causal-shift", -2, slopes=slopes,
            sinks=sinks, causal=True, window=40, softcap=5, scale=0.3, shift=-2)
    compare(at + "all, mask", q, k, v, "--causal", "--window", 40, "--softcap", 5, slopes=slopes, sinks=sinks, mask=masks,
            causal=True, window=40, softcap=5)
finish(498)
END
