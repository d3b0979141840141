"""This project's store as contenders of search_peers.py, through the kna command: the rows as they are, an index of lists that are all scanned, and one of
clusters.

Documents of 512 rows go into a store, f32; the time to build is that of the index, with its file written and flushed. Adding is not in it, as the peers' reading of rows into memory is not: it is told by itself. `kna store bench` opens the store
once and times batches and single queries in its own process, so that they pay for no Python.
"""
import json
import os
import shutil
import subprocess
import tempfile
import time

import numpy as np

from search_contenders import LeftOut

DOCUMENT = 512
PROBES = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def call(*words):
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True)
    if done.returncode == 2:
        raise LeftOut("refused, as kna has said")
    if done.returncode != 0:
        raise SystemExit(f"search_peers.py: {' '.join(map(str, words))} ended with {done.returncode}")
    return done.stdout


def add(kna, folder, base):
    """A store of these rows; the seconds of adding them."""
    with tempfile.TemporaryDirectory() as scratch:
        rows, lines = os.path.join(scratch, "rows.npy"), os.path.join(scratch, "rows.jsonl")
        np.save(rows, base)
        with open(lines, "w") as file:
            for at in range(0, len(base), DOCUMENT):
                file.write(json.dumps({"uri": f"document {at // DOCUMENT}", "rows": min(DOCUMENT, len(base) - at)}) + "\n")
        call(kna, "store", "create", folder, "--dim", base.shape[1], "--type", "f32")
        start = time.perf_counter()
        call(kna, "store", "add", folder, rows, "--meta", lines)
        return time.perf_counter() - start


class Kna:
    def __init__(self, kind, o):
        self.kind = "lists" if kind == "clusters" else "exact"
        self.name, self.index, self.o = f"kna {kind}", kind, o
        self.settings = [{"probes": p} for p in PROBES] if kind == "clusters" else [{}]
        self.folder = ""

    def build(self, base):
        self.scratch = tempfile.TemporaryDirectory()
        self.folder = os.path.join(self.scratch.name, "store")
        self.add_s = add(self.o.kna, self.folder, base)
        self.build_s = 0
        if self.index != "none":
            sample = ["--sample", self.o.sample] if self.index == "clusters" and self.o.sample else []
            self.build_s = self.bench(base[:1], self.o.metric, self.o.threads, "--build", *sample, "--no-recall", "--rounds", 1, "--single-s", 0)["build_s"]

    def bench(self, queries, metric, threads, *options):
        with tempfile.TemporaryDirectory() as scratch:
            path = os.path.join(scratch, "queries.npy")
            np.save(path, queries)
            return json.loads(call(self.o.kna, "store", "bench", self.folder, path, "--index", self.index, "--metric", metric, "--threads", threads,
                                   "--json", *options))

    def bytes(self):
        return sum(os.path.getsize(os.path.join(self.folder, name)) for name in os.listdir(self.folder))

    def save(self, path):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.folder, path)

    def load(self, path):
        self.folder = path

    def measure(self, task):
        with tempfile.TemporaryDirectory() as scratch:
            hits = os.path.join(scratch, "hits.npy")
            probes = ["--probes", ",".join(str(s["probes"]) for s in self.settings)] if self.index == "clusters" else []
            told = self.bench(task.queries, task.metric, task.threads, "-k", task.k, "--rounds", 1, "--single-s", task.single_s, "--hits", hits,
                              "--no-recall", *probes)
            ids = np.load(hits)
            for setting, one, found in zip(self.settings, told["settings"], ids, strict=True):
                if one["index"] != self.index:
                    raise SystemExit(f"search_peers.py: {self.name}: the index was not used: {one.get('refused')}")
                yield setting, found, one["batch_s"][0], one["single_s"][0]


def contenders(o):
    return [Kna("none", o), Kna("flat", o), Kna("clusters", o)]
