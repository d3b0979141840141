# kna bench paper writes tables and pictures that hold together: the nulls are what they are, exact gradients where everything is read, learning learns.
set -eu
PYTHONPATH=$(dirname "$0") exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
from oracle import *
import csv
import xml.etree.ElementTree as tree

rng = np.random.default_rng(1)
os.mkdir(path("dump"))
for letter, heads, kind in (("q", 4, np.float32), ("k", 2, np.float16), ("v", 2, np.float16)):
    for layer in (0, 5):
        np.save(path(f"dump/{letter}.{layer}.npy"), rng.normal(size=(heads, 160, 8)).astype(kind))

done = subprocess.run([KNA, "bench", "paper", "--out", path("paper"), "-n", "96", "--heads", "2", "--dim", "8", "--steps", "300", "--dump", path("dump"), "--late", "16"], capture_output=True, text=True)
require(done.returncode == 0 and not done.stderr, done.stderr)

def table(name):
    if name != "growth":
        picture = tree.parse(path(f"paper/{name}.svg"))
        require(picture.getroot().tag.endswith("svg"), name)
    with open(path(f"paper/{name}.csv")) as file:
        rows = list(csv.DictReader(file))
    require(rows and rows[0]["series"] in done.stdout, f"{name}: {len(rows)} rows")
    return rows

errors = table("errors")
for row in errors:
    error, series = float(row["mean error"]), row["series"]
    require(np.isfinite(error), series)
    if series.startswith("zero"):
        require(error == 1, f"{series}: {error}")
    if series == "topk, B = 50" and int(row["k"]) >= 10:
        require(error < 0.01, f"{series}, k = {row['k']}: {error}")
series = {row["series"] for row in errors}
require(len(series) == 36, f"{len(series)} series")

gradients = table("gradients")
chain = [float(row["dq"]) for row in gradients if row["series"] == "chain, 32 nearest"]
require(all(a > b for a, b in zip(chain, chain[1:])) and 1.5 < chain[0] / chain[1] < 2.7, f"chain: {chain}")
require(any(row["series"] == "knn" and float(row["dk"]) < 1e-5 for row in gradients), "knn of everything is not exact")

for row in gradients:
    if row["series"] == "zero":
        require(all(float(row[x]) == 1 for x in ("dq", "dk", "dv")), f"zero: {row}")
    if row["series"] == "mean of values":
        require(float(row["dq"]) == 1 and float(row["dv"]) < 1, f"mean of values: {row}")
    require(row["note"] == ("has no gradients" if row["dq"] == "" else ""), f"note: {row}")

# Heads: the nulls; topk's errors fall with k; the means over the layers are means.
heads = table("heads")
of = lambda series: [float(row["mean error"]) for row in heads if row["series"] == series]
for layer in ("layer 0", "layer 5"):
    require(all(error == 1 for error in of(f"zero, {layer}")), f"zero, {layer}")
    errors = of(f"topk, {layer}")
    require(len(errors) >= 6 and errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0], f"topk, {layer}: {errors}")
    require(max(of(f"knn, {layer}")) < 1e-4, f"knn of few keys is not exact, {layer}")
for name in ("mean of values", "topk of 2k", "uniform, k and k", "gumbel, k draws"):
    a, b, both = of(f"{name}, layer 0"), of(f"{name}, layer 5"), of(f"{name}, all layers")
    require(len(a) and np.allclose((np.array(a) + b) / 2, both, rtol=1e-4), f"{name}: {a} {b} {both}")

# Times: what is over the budget says so, all else has a time; memory and growth are of the same calls.
times, memory, growth = table("times"), table("memory"), table("growth")
series = {row["series"] for row in times}
require({"exact", "exact, backward", "knn", "knn, backward", "performer"} <= series and len(times) == 4 * len(series), f"{len(times)} times")
require(all(0 < float(row["seconds"]) < 60 and np.isfinite(float(row["power of n"])) and not row["note"] for row in times), f"times: {times}")
require(len(memory) == len(times) and all(float(row["peak MiB"]) > 0 for row in memory), f"memory: {memory}")
index = [float(row["index MiB"]) for row in memory if row["series"] == "knn"]
require(all(a < b for a, b in zip(index, index[1:])), f"index of knn: {index}")
require({row["series"] for row in growth} == series and all(np.isfinite(float(row["power of n"])) for row in growth), f"growth: {growth}")

automatic = table("automatic")
require({row["series"] for row in automatic} == {"knn, eps and delta", "knn, best fixed k", "uniform, eps", "uniform, best fixed samples"}, f"automatic: {automatic}")
planned = None
for row in automatic:
    require(0 < float(row["share read"]) <= 1.0001 and float(row["mean error"]) >= 0, f"automatic: {row}")
    if row["series"] == "uniform, eps":
        planned = float(row["p95"])
    if row["series"] == "uniform, best fixed samples":
        require(row["note"] == "not enough" or float(row["p95"]) <= planned, f"{row}, planned {planned}")

losses = {}
for row in table("descent"):
    losses.setdefault(row["series"], []).append(float(row["loss"]))
require(len(losses) == 6, f"{losses.keys()}")
for name, loss in losses.items():
    require(loss[-1] < 0.6 * loss[0], f"{name}: {loss[0]} to {loss[-1]}")

done = subprocess.run([KNA, "bench", "paper"], capture_output=True, text=True)
require(done.returncode == 2 and "--out" in done.stderr, done.stderr)

# One experiment alone; a budget nothing keeps to; a dump that is none.
done = subprocess.run([KNA, "bench", "paper", "--out", path("alone"), "-n", "64", "--heads", "1", "--dim", "8", "--only", "times", "--max-n", "200", "--budget", "0"], capture_output=True, text=True)
require(done.returncode == 0 and sorted(os.listdir(path("alone"))) == ["growth.csv", "memory.csv", "memory.svg", "times.csv", "times.svg"], done.stderr)
with open(path("alone/times.csv")) as file:
    rows = list(csv.DictReader(file))
require({int(row["n"]) for row in rows} == {64, 128, 200}, f"sizes: {rows}")
require(all((row["note"] == "over the budget") == (row["n"] != "64") == (row["seconds"] == "") for row in rows), f"budget: {rows}")
done = subprocess.run([KNA, "bench", "paper", "--out", path("long"), "--only", "long", "--dump", path("dump")], capture_output=True, text=True)
require(done.returncode == 0, done.stderr)
with open(path("long/long.csv")) as file:
    rows = list(csv.DictReader(file))
require(len(rows) == 12 and rows[0]["series"] == "exact, layer 0" and rows[0]["k"] == "" and float(rows[0]["faster"]) == 1, f"long: {rows}")
require(all(float(row[x]) < 1e-5 for row in rows for x in ("mean error", "dq", "dk")), f"knn of few keys is not exact: {rows}")
# Heads made like those of a model: a sink, recency, the same twice; knn is near them with few keys, and nearer with more.
text = []
for name in ("text", "again"):
    done = subprocess.run([KNA, "bench", "paper", "--out", path(name), "--only", "long", "--data", "text", "-n", "3000", "--heads", "3", "--k-near", "16,64", "--threads", "1"],
                          capture_output=True, text=True)
    require(done.returncode == 0, done.stderr)
    with open(os.path.join(path(name), "long.csv")) as file:
        text.append([(row["series"], row["k"], row["mean error"], row["dq"], row["dk"]) for row in csv.DictReader(file)])
require(text[0] == text[1] and len(text[0]) == 3, f"text: {text}")
errors = [float(row[2]) for row in text[0]]
require(errors[0] == 0 and 0.1 > errors[1] > 1.5 * errors[2] > 0, f"text: {errors}")
done = subprocess.run([KNA, "bench", "paper", "--out", path("no"), "--only", "long", "--data", "text", "--heads", "4", "--kv-heads", "3"], capture_output=True, text=True)
require(done.returncode == 2 and "--kv-heads" in done.stderr, done.stderr)
done = subprocess.run([KNA, "bench", "paper", "--out", path("no"), "--only", "heads"], capture_output=True, text=True)
require(done.returncode == 2 and "--dump" in done.stderr, done.stderr)
done = subprocess.run([KNA, "bench", "paper", "--out", path("no"), "--dump", path("paper")], capture_output=True, text=True)
require(done.returncode == 2 and "kna dump" in done.stderr, done.stderr)
finish(300)
END
