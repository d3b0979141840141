"""Search measured side by side: this project's store, FAISS, hnswlib and USearch over the same rows, queries and threads.

    search_peers.py --base ROWS.npy --queries QUERIES.npy --out DIR [options]

Called by scripts/bench_search.sh, which gets rows, queries and the packages. Contenders take turns; each turn answers all queries in one call
and then some one by one, at every setting of the contender; medians over rounds. Writes DIR/NAME.json, .csv and two .svg, prints tables.
"""
import argparse
import json
import os
import statistics
import sys
import time

RECALL = 0.95
TOTALS = (1_000, 10_000, 100_000, 1_000_000)


def options():
    p = argparse.ArgumentParser(description="Recall against queries per second: kna, FAISS, hnswlib, USearch.")
    p.add_argument("--base", help="rows (n, d), .npy")
    p.add_argument("--queries", help="queries (m, d), .npy")
    p.add_argument("--sample", default="", help="queries like these, but others (m, d), .npy: the store's clusters are made with them")
    p.add_argument("--rows", type=int, default=0, help="the first N rows alone")
    p.add_argument("--few", type=int, default=0, help="the first N queries alone")
    p.add_argument("--metric", choices=("ip", "cosine", "l2"), default="ip")
    p.add_argument("--k", type=int, default=10, help="neighbours (default 10)")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--single-s", type=float, default=0.5, help="seconds of single queries at a setting, 16 queries at least (default 0.5)")
    p.add_argument("--only", default="", help="contenders, as NAME,NAME: those whose name begins so")
    p.add_argument("--keep", default="", help="folder for built indexes, with the time they took; those that are there are used")
    p.add_argument("--kna", default="", help="the kna command; without it the peers are measured alone")
    p.add_argument("--build-only", action="store_true", help="build what --keep does not hold, measure nothing")
    p.add_argument("--out", help="folder for the results")
    p.add_argument("--name", default="search", help="of the results' files")
    p.add_argument("--title", default="", help="of the pictures")
    p.add_argument("--draw", default="", help="results of an earlier run, .json: tables and pictures again")
    return p.parse_args()


OPTIONS = options()
# Before numpy and the libraries are loaded: each brings its own threads.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(OPTIONS.threads)

try:
    import numpy as np
except ImportError:
    sys.exit("search_peers.py: the package numpy is missing; scripts/bench_search.sh gets what is needed")

import search_contenders
import search_kna
import search_report
import search_truth


class Task:
    def __init__(self, o, base, queries):
        self.options, self.base, self.queries = o, base, queries
        self.k, self.single_s, self.threads, self.metric = o.k, o.single_s, o.threads, o.metric


def say(text):
    print(text, file=sys.stderr, flush=True)


def load(path, count):
    rows = np.load(path)
    if rows.ndim == 3 and len(rows) == 1:
        rows = rows[0]
    if rows.ndim != 2:
        sys.exit(f"search_peers.py: {path} has shape {rows.shape}; rows (n, d) are needed")
    return np.ascontiguousarray(rows[:count] if count else rows, dtype=np.float32)


def contenders_of(o, n, d):
    all_of_them = search_contenders.peers(n, d, o.metric, o.threads)
    if o.kna:
        all_of_them = search_kna.contenders(o) + all_of_them
    wanted = [x.strip() for x in o.only.split(",") if x.strip()]
    chosen = [c for c in all_of_them if not wanted or any(c.name.lower().startswith(w.lower()) for w in wanted)]
    if not chosen:
        sys.exit(f"search_peers.py: --only {o.only} names none of " + ", ".join(c.name for c in all_of_them))
    return chosen


def build(contender, o, base):
    """Seconds it took, now or when it was kept."""
    path = os.path.join(o.keep, f"{o.name}.{len(base)}.{o.metric}.{contender.name.replace(' ', '_')}") if o.keep else ""
    if path and os.path.exists(path + ".s"):
        contender.load(path)
        return float(open(path + ".s").read())
    say(f"building {contender.name}")
    start = time.perf_counter()
    contender.build(base)
    seconds = getattr(contender, "build_s", time.perf_counter() - start)  # a store's rows are added before
    if path:
        contender.save(path)
        with open(path + ".s", "w") as file:
            file.write(f"{seconds}\n")
    return seconds


def truth_of(o, base, queries):
    say("finding the true neighbours")
    return search_truth.Truth(base, queries, o.metric, o.k)


def measure(task, contenders, truth, rounds):
    """{contender: {setting as JSON: {"recall":, "batch_s": [..], "single_s": [..]}}}"""
    results = {c.name: {} for c in contenders}
    for turn in range(rounds):
        for i in range(len(contenders)):
            contender = contenders[(turn + i) % len(contenders)]
            say(f"round {turn + 1} of {rounds}: {contender.name}")
            for setting, ids, batch_s, single_s in contender.measure(task):
                key = json.dumps(setting, sort_keys=True)
                cell = results[contender.name].setdefault(key, {"batch_s": [], "single_s": []})
                cell.setdefault("recall", truth.recall(ids))
                cell["batch_s"].append(batch_s)
                cell["single_s"].append(single_s)
    return results


def settings_of(cells, m):
    listed = []
    for key, cell in cells.items():
        batch, single = statistics.median(cell["batch_s"]), statistics.median(cell["single_s"])
        listed.append({"setting": json.loads(key), "recall": cell["recall"], "batch_qps": m / batch, "single_qps": 1 / single,
                       "batch_s": cell["batch_s"], "single_s": cell["single_s"]})
    return sorted(listed, key=lambda x: (x["recall"], -x["batch_qps"]))


def versions():
    from importlib.metadata import PackageNotFoundError, version
    found = {}
    for package in ("numpy", "faiss-cpu", "hnswlib", "usearch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


def run(o):
    absent = search_contenders.missing()
    if absent:
        sys.exit(f"search_peers.py: not there: {', '.join(absent)}; scripts/bench_search.sh gets them into the cache, or: "
                 "pip install --require-hashes -r bench/search_peers.txt")
    import faiss
    faiss.omp_set_num_threads(o.threads)
    base, queries = load(o.base, o.rows), load(o.queries, o.few)
    if base.shape[1] != queries.shape[1]:
        sys.exit(f"search_peers.py: rows of {base.shape[1]} numbers, queries of {queries.shape[1]}")
    if len(base) < o.k or not len(queries):
        sys.exit(f"search_peers.py: {len(base)} rows and {len(queries)} queries; {o.k} rows and one query are needed")
    for folder in (o.keep, o.out):
        if folder:
            os.makedirs(folder, exist_ok=True)
    contenders = contenders_of(o, *base.shape)
    task = Task(o, base, queries)
    built = {}
    for contender in list(contenders):
        try:
            built[contender.name] = build(contender, o, base)
        except search_contenders.LeftOut as why:
            say(f"{contender.name} is left out: {why}")
            contenders.remove(contender)
    if o.build_only:
        for name, seconds in built.items():
            say(f"{name}: {seconds:.1f} s")
        return None
    truth = truth_of(o, base, queries)
    measured = measure(task, contenders, truth, o.rounds)
    return {"name": o.name, "title": o.title or o.name, "n": len(base), "d": base.shape[1], "queries": len(queries), "k": o.k, "metric": o.metric,
            "threads": o.threads, "rounds": o.rounds, "versions": versions(),
            "contenders": [{"name": c.name, "kind": c.kind, "build_s": built[c.name], "bytes": c.bytes(),
                            "settings": settings_of(measured[c.name], len(queries))} for c in contenders]}


def main():
    o = OPTIONS
    if not o.draw and not (o.base and o.queries):
        sys.exit("search_peers.py: --base and --queries must be given")
    report = json.load(open(o.draw)) if o.draw else run(o)
    if report is None:
        return
    search_report.print_tables(report, RECALL, TOTALS)
    if o.out:
        os.makedirs(o.out, exist_ok=True)
        search_report.write(report, o.out)


main()
