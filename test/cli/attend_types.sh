# kna attend on float16 files and with --kv-type: equals softmax in double over the numbers as they are after conversion, for every CPU
# level present; and the same bits for any number of threads and for repeated runs.
set -eu
PYTHONPATH=$(dirname "$0") exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
from oracle import *

random = np.random.default_rng(11)
levels = subprocess.run([KNA, "--version"], capture_output=True, text=True, check=True).stdout
levels = [line.split(":")[1].split() for line in levels.splitlines() if line.startswith("cpu levels:")][0]
require("ref" in levels, f"levels {levels}")

def bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)

def rounded(x, group, scale_type):
    """int8 with one scale per `group` numbers, to nearest even."""
    x = x.astype(np.float32).reshape(-1, group)
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale == 0, 0, np.rint(x * (np.float32(1) / scale)))
    return steps * scale.astype(scale_type).astype(np.float64)

CONVERT = {
    "f32": lambda x: x,
    "f16": lambda x: x.astype(np.float16),
    "bf16": bf16,
    "i8": lambda x: rounded(x, x.shape[-1], np.float32).reshape(x.shape),
    "q8_0": lambda x: rounded(x, 32, np.float16).reshape(x.shape),
}

# A step of int8 may fall to either side where x / scale is near a half: one step of one number, hence the wider bound.
TOLERANCE = {"f32": 1e-5, "f16": 1e-5, "bf16": 1e-5, "i8": 2e-3, "q8_0": 2e-3}

def operands(h, h_kv, m, n, d, dtype=np.float32):
    return [random.normal(size=shape).astype(dtype) for shape in ((h, m, d), (h_kv, n, d), (h_kv, n, d))]

for cpu in levels:
    for kv_type, convert in CONVERT.items():
        for h, h_kv, m, n, d in ((6, 2, 1, 150, 64), (4, 4, 40, 70, 96), (8, 1, 3, 33, 32), (3, 3, 5, 40, 17)):
            if kv_type == "q8_0" and d % 32:
                continue
            for dtype in (np.float32, np.float16):
                q, k, v = operands(h, h_kv, m, n, d, dtype)
                out, lse, report = attend(q, k, v, "--kv-type", kv_type, "--cpu", cpu, "--causal")
                want = softmax(logits(q, convert(k), causal=True), convert(v))
                check(f"{cpu} {kv_type} {dtype.__name__} {h} {m} {n} {d}", out, lse, *want, v, TOLERANCE[kv_type])
                require(report["kv_type"] == kv_type and report["cpu"] == cpu, f"{kv_type} {cpu}: {report}")
    q, k, v = operands(3, 1, 2, 50, 20, np.float16)
    check(f"{cpu} f16 as given", *attend(q, k, v, "--cpu", cpu)[:2], *softmax(logits(q, k), v), v)
    check(f"{cpu} mixed", *attend(q, k.astype(np.float32), v, "--cpu", cpu)[:2], *softmax(logits(q, k), v), v)

# Extreme halves: subnormal, largest, signed zero.
k = np.array([6e-8, -6e-8, 65504, -65504, 0.0, -0.0, 1e-5, 2049, 0.333, -1], np.float16).reshape(1, 10, 1)
q = np.array([1e-3], np.float32).reshape(1, 1, 1)
for kv_type in ("as-given", "f32", "f16"):
    check(f"halves {kv_type}", *attend(q, k, k, "--kv-type", kv_type)[:2], *softmax(logits(q, k), k), k)

# Threads and repeats.
def bits(*arguments):
    out, lse, report = attend(*arguments)
    return out.tobytes() + lse.tobytes()

for h, h_kv, m, n, d in ((9, 3, 1, 3000, 64), (9, 3, 100, 300, 64), (1, 1, 1, 5000, 33), (4, 1, 37, 37, 128), (8, 8, 3, 1000, 16)):
    q, k, v = operands(h, h_kv, m, n, d)
    for options in ([], ["--method", "topk"], ["--method", "knn", "--k-near", 40], ["--method", "knn", "--eps", 0.05, "--audit", 0.3]):
        first = bits(q, k, v, "--causal", "--threads", 1, *options)
        for threads in (1, 2, 3, 8):
            require(bits(q, k, v, "--causal", "--threads", threads, *options) == first, f"{threads} threads {h} {m} {n} {options}: other bits")
    _, _, report = attend(q, k, v, "--threads", 2)
    require(report["threads"] == 2, f"threads: {report}")
finish(110)
END
