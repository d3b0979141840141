"""Rows and queries for search_peers.py, out of texts that a model reads. Called by scripts/bench_search.sh:

search_data.py texts FOLDER OUT          OUT/keys.txt and OUT/queries.txt: the .rst files of a folder in an order that depends on their names
                                         alone, one in sixteen for queries, so that no query comes from a document that is stored
search_data.py pick FROM HEAD COUNT TO [HALF]
                                         a head of (h,n,d), or the rows of (n,d) with HEAD -, as float32; COUNT rows drawn at random, 0: all; of the
                                         first or the last half of the rows alone
"""
import hashlib
import os
import sys

import numpy as np

ONE_IN = 16


def digest(name):
    return hashlib.sha256(name.encode()).digest()


def texts(folder, out):
    names = [os.path.relpath(os.path.join(path, name), folder) for path, _, files in os.walk(folder) for name in files if name.endswith(".rst")]
    names = sorted((name for name in names if not name.startswith("translations/")), key=digest)
    if not names:
        sys.exit(f"search_data.py: no .rst in {folder}")
    for to, kept in (("keys", lambda x: x != 0), ("queries", lambda x: x == 0)):
        with open(os.path.join(out, to + ".txt"), "wb") as file:
            for name in names:
                if kept(digest("q" + name)[0] % ONE_IN):
                    with open(os.path.join(folder, name), "rb") as text:
                        file.write(text.read())


def pick(path, head, count, to, half=""):
    rows = np.load(path, mmap_mode="r")
    rows = rows if head == "-" else rows[int(head)]
    middle = len(rows) // 2
    rows = {"first": rows[:middle], "last": rows[middle:]}.get(half, rows)
    chosen = np.random.default_rng(1).permutation(len(rows))[:count] if count else slice(None)
    np.save(to, np.ascontiguousarray(rows[chosen], dtype=np.float32))


if sys.argv[1] == "texts":
    texts(sys.argv[2], sys.argv[3])
else:
    pick(sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
