# kna bench paper writes tables and pictures that hold together: the nulls are what they are, exact gradients where everything is read, learning learns.
set -eu
PYTHONPATH=$(dirname "$0") exec "${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
from oracle import *
import csv
import xml.etree.ElementTree as tree

done = subprocess.run([KNA, "bench", "paper", "--out", path("paper"), "-n", "96", "--heads", "2", "--dim", "8", "--steps", "300"], capture_output=True, text=True)
require(done.returncode == 0 and not done.stderr, done.stderr)

def table(name):
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
chain = [float(row["dq"]) for row in gradients if row["series"].startswith("chain")]
require(all(a > b for a, b in zip(chain, chain[1:])) and 1.5 < chain[0] / chain[1] < 2.7, f"chain: {chain}")
require(any(row["series"] == "knn" and float(row["dk"]) < 1e-5 for row in gradients), "knn of everything is not exact")

times = table("times")
require(len({row["series"] for row in times}) == 10 and len(times) == 40, f"{len(times)} times")
require(all(0 < float(row["seconds"]) < 60 and np.isfinite(float(row["power of n"])) for row in times), f"times: {times}")

losses = {}
for row in table("descent"):
    losses.setdefault(row["series"], []).append(float(row["loss"]))
require(len(losses) == 6, f"{losses.keys()}")
for name, loss in losses.items():
    require(loss[-1] < 0.6 * loss[0], f"{name}: {loss[0]} to {loss[-1]}")

done = subprocess.run([KNA, "bench", "paper"], capture_output=True, text=True)
require(done.returncode == 2 and "--out" in done.stderr, done.stderr)
finish(260)
END
