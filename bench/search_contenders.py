"""The libraries of search_peers.py, each as it is used from Python, and what of their parameters is swept.

A contender is built once over the rows (n, d), float32, and then searched at each of its settings. Build time is all from rows in memory to
an index that answers: training, adding, and what the library does at the first search.
"""
import statistics
import time

import numpy as np


def power_of_two(x):
    return 1 << max(0, round(np.log2(x)))


class LeftOut(Exception):
    """A contender that cannot take part, and why."""


class Contender:
    """name: as in tables. kind: exact, lists or graph. settings: [{parameter: value}], cheapest first."""

    name, kind, settings = "", "", [{}]

    def build(self, base):
        raise NotImplementedError

    def use(self, setting):
        """The next searches are by this setting."""

    def search(self, queries, k):
        """Row numbers (m, k), int64, best first."""
        raise NotImplementedError

    def bytes(self):
        """Of the index, rows included where it holds them."""
        raise NotImplementedError

    def save(self, path):
        raise NotImplementedError

    def load(self, path):
        raise NotImplementedError

    def measure(self, task):
        """A round: for each setting (setting, row numbers, seconds of the batch, median seconds of a query by itself)."""
        for setting in self.settings:
            self.use(setting)
            self.search(task.queries[:8], task.k)  # what the first call makes is not timed
            start = time.perf_counter()
            ids = self.search(task.queries, task.k)
            batch_s = time.perf_counter() - start
            yield setting, ids, batch_s, self.single(task)

    def single(self, task):
        times, until = [], time.perf_counter() + task.single_s
        for query in task.queries:
            query = query[None]
            start = time.perf_counter()
            self.search(query, task.k)
            times.append(time.perf_counter() - start)
            if times[-1] + start > until and len(times) >= 16:
                break
        return statistics.median(times)


# ------------------------------------------------------------------ FAISS

class Faiss(Contender):
    """An index of faiss.index_factory(). parts: what a setting's parameters belong to, the index inside of a refining one or itself."""

    def __init__(self, name, kind, factory, metric, settings, refined=False, prepare=None):
        self.name, self.kind, self.factory, self.metric, self.settings = name, kind, factory, metric, settings
        self.refined, self.prepare = refined, prepare

    def build(self, base):
        import faiss
        metric = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self.index = faiss.index_factory(base.shape[1], self.factory, metric)
        if self.prepare:
            self.prepare(self.inner())
        self.index.train(base)
        self.index.add(base)

    def inner(self):
        import faiss
        index = faiss.downcast_index(self.index)
        return faiss.downcast_index(index.base_index) if self.refined else index

    def use(self, setting):
        for name, value in setting.items():
            if name == "k_factor":
                self.index.k_factor = value
            elif name == "efSearch":
                self.inner().hnsw.efSearch = value
            else:
                setattr(self.inner(), name, value)

    def search(self, queries, k):
        return self.index.search(queries, k)[1]

    def bytes(self):
        import faiss
        return len(faiss.serialize_index(self.index))

    def save(self, path):
        import faiss
        faiss.write_index(self.index, path)

    def load(self, path):
        import faiss
        self.index = faiss.read_index(path)


class FaissLifted(Faiss):
    """The largest inner product as the least distance: rows get one more number that makes them all as long as the longest, queries a zero.

    k-means then makes better lists of it than of inner products. Zeros fill up to sixteens, which FAISS is fast with.
    """

    @staticmethod
    def lifted(rows, last):
        out = np.zeros((len(rows), rows.shape[1] // 16 * 16 + 16), np.float32)
        out[:, :rows.shape[1]] = rows
        out[:, rows.shape[1]] = last
        return out

    def __init__(self, name, kind, factory, settings, **more):
        super().__init__(name, kind, factory, "l2", settings, **more)

    def build(self, base):
        squares = np.einsum("ij,ij->i", base, base)
        super().build(self.lifted(base, np.sqrt(np.maximum(squares.max() - squares, 0))))

    def search(self, queries, k):
        return super().search(self.lifted(queries, 0), k)


def sample_little(points):
    """k-means from fewer rows: a tenth of the time, and lists hardly worse."""
    def prepare(index):
        index.cp.max_points_per_centroid = points
    return prepare


def construct_with(ef):
    def prepare(index):
        index.hnsw.efConstruction = ef
    return prepare


def faiss_contenders(n, d, metric):
    lists = power_of_two(4 * np.sqrt(n))
    probes = [{"nprobe": p} for p in (1, 4, 16, 32, 64, 96, 128, 192, 256, 384, 512)]
    refined = [{"k_factor": f, "nprobe": p} for p, f in ((8, 8), (16, 16), (32, 16), (64, 16), (64, 64), (128, 16), (128, 64), (128, 256), (256, 64), (256, 256), (256, 512), (512, 256), (512, 512))]
    scans = [{"k_factor": f} for f in (4, 16, 64, 128, 256, 512)]
    graph = [{"efSearch": e} for e in (16, 64, 256, 1024, 2048, 4096)]
    few, fine = sample_little(64), d if d <= 128 else d // 2
    contenders = [
        Faiss("FAISS flat", "exact", "Flat", metric, [{}]),
        Faiss("FAISS IVF", "lists", f"IVF{lists},Flat", metric, probes, prepare=few),
        Faiss("FAISS IVF SQ8", "lists", f"IVF{lists},SQ8,RFlat", metric, [{"k_factor": 4, **s} for s in probes], refined=True, prepare=few),
        Faiss("FAISS IVF PQ fast scan", "lists", f"IVF{lists // 2},PQ{fine}x4fs,RFlat", metric, refined, refined=True, prepare=few),
        Faiss("FAISS PQ fast scan", "lists", f"PQ{fine}x4fs,RFlat", metric, scans, refined=True),
        Faiss("FAISS HNSW", "graph", "HNSW32", metric, graph, prepare=construct_with(40)),
    ]
    if metric == "ip":
        contenders.append(FaissLifted("FAISS IVF lifted", "lists", f"IVF{lists},SQ8,RFlat", [{"k_factor": 4, **s} for s in probes], refined=True, prepare=few))
    if n <= 200_000:  # of a million rows it takes minutes
        contenders.append(Faiss("FAISS HNSW fine", "graph", "HNSW32", metric, graph, prepare=construct_with(200)))
    return contenders


# ------------------------------------------------------------------ hnswlib

class Hnswlib(Contender):
    name, kind = "hnswlib", "graph"
    settings = [{"ef": e} for e in (10, 64, 256, 1024, 2048, 4096)]

    def __init__(self, n, d, metric, threads, m=16, ef_construction=100):
        self.d, self.metric, self.threads, self.m, self.ef_construction = d, metric, threads, m, ef_construction

    def build(self, base):
        import hnswlib
        self.index = hnswlib.Index(space=self.metric, dim=self.d)
        self.index.init_index(max_elements=len(base), M=self.m, ef_construction=self.ef_construction)
        self.index.set_num_threads(self.threads)
        self.index.add_items(base)

    def use(self, setting):
        self.index.set_ef(setting["ef"])

    def search(self, queries, k):
        return self.index.knn_query(queries, k=k)[0].astype(np.int64)

    def bytes(self):
        return self.index.index_file_size()

    def save(self, path):
        self.index.save_index(path)

    def load(self, path):
        import hnswlib
        self.index = hnswlib.Index(space=self.metric, dim=self.d)
        self.index.load_index(path)
        self.index.set_num_threads(self.threads)


# ------------------------------------------------------------------ USearch

class Usearch(Contender):
    """i8 is made for rows of length 1: of others it keeps the direction alone."""

    kind = "graph"
    settings = [{"expansion": e} for e in (16, 64, 256, 1024, 2048, 4096)]

    def __init__(self, n, d, metric, threads, dtype):
        self.name, self.threads = f"USearch {dtype}", threads
        self.options = {"ndim": d, "metric": {"ip": "ip", "l2": "l2sq", "cosine": "cos"}[metric], "dtype": dtype}

    def build(self, base):
        from usearch.index import Index
        self.index = Index(**self.options)
        self.index.add(np.arange(len(base)), base, threads=self.threads)

    def use(self, setting):
        self.index.expansion_search = setting["expansion"]

    def search(self, queries, k):
        if len(queries) == 1:
            keys = self.index.search(queries[0], k, threads=1).keys
            return np.pad(keys.astype(np.int64), (0, k - len(keys)), constant_values=-1)[None]
        return self.index.search(queries, k, threads=self.threads).keys.astype(np.int64)

    def bytes(self):
        return self.index.serialized_length

    def save(self, path):
        self.index.save(path)

    def load(self, path):
        from usearch.index import Index
        self.index = Index(**self.options)
        self.index.load(path)


# ------------------------------------------------------------------ all

def peers(n, d, metric, threads):
    return faiss_contenders(n, d, metric) + [Hnswlib(n, d, metric, threads), Usearch(n, d, metric, threads, "f32"), Usearch(n, d, metric, threads, "i8")]


def missing():
    """Packages that are not there."""
    absent = []
    for package in ("faiss", "hnswlib", "usearch"):
        try:
            __import__(package)
        except ImportError:
            absent.append(package)
    return absent
