#!/usr/bin/env python3
"""make_corpus.py - the first inputs of the fuzzers, from the golden store and a few arrays; run by hand where the format changes.

    KNA=build/kna python3 test/fuzz/make_corpus.py

What a fuzzer crashed on is added to corpus/NAME/ by hand, and stays.
"""
import io
import json
import os
import struct
import subprocess
import tempfile
import zipfile

import numpy as np

here = os.path.dirname(os.path.abspath(__file__))
golden = os.path.join(here, "..", "golden", "store-1")
NOTE, FAMILY, DOCUMENT, REMOVE, COMMIT = 1, 2, 3, 4, 5


def put(fuzzer, name, data):
    folder = os.path.join(here, "corpus", fuzzer)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def records(log):
    at = 0
    while at < len(log):
        kind, bytes = struct.unpack_from("<IQ", log, at + 4)
        yield kind, log[at:at + 32 + bytes], log[at + 24:at + 24 + bytes]
        at += 32 + bytes


def family(number, kind, dim, next_row, name):
    return struct.pack("<IIQQ64s", number, kind, dim, next_row, name)


def document(number, uri, parts):
    text = uri + b"\0tag\0{}\0"
    body = struct.pack("<QqQ32sIIII", number, 1, 7, b"hash", len(uri), 3, 2, len(parts)) + text + bytes(-len(text) % 8)
    pieces = 0
    for of, segment, first, rows, offset, size in parts:
        body += struct.pack("<IIQQQQQ", of, segment, first, rows, offset, size, 0)
        pieces += (size + 65535) // 65536
    return body + bytes(8 * pieces)


def log(*entries):
    return b"".join(struct.pack("<BH", kind, len(body)) + body for kind, body in entries)


manifest = open(os.path.join(golden, "manifest"), "rb").read()
put("slot", "first", manifest[:4096])
put("slot", "second", manifest[4096:])
names = {NOTE: "note", FAMILY: "family", DOCUMENT: "document", REMOVE: "remove", COMMIT: "commit"}
selector = {DOCUMENT: 0, NOTE: 1, FAMILY: 2, REMOVE: 3, COMMIT: 3}
seen, whole = {}, []
path = next(name for name in os.listdir(golden) if name.startswith("log-"))
for kind, record, body in records(open(os.path.join(golden, path), "rb").read()):
    if kind != COMMIT:
        whole.append((kind, body))
    if seen.setdefault(kind, 0) < 3:
        put("record", f"{names[kind]}-{seen[kind]}", record)
        put("body", f"{names[kind]}-{seen[kind]}", bytes([selector[kind]]) + body)
        seen[kind] += 1
put("body", "remove", bytes([3]) + struct.pack("<Q", 7))
put("log", "golden", log(*whole))
two = [(FAMILY, family(0, 16, 1, 0, b"text")), (FAMILY, family(1, 3, 3, 0, b"codes"))]
put("log", "documents", log(*two, (DOCUMENT, document(1, b"a", [(0, 0, 0, 100, 0, 100), (1, 0, 0, 2, 128, 72)])),
                            (DOCUMENT, document(2, b"b", [(0, 3, 100, 65600, 64, 65600)])), (REMOVE, struct.pack("<Q", 1)),
                            (DOCUMENT, document(3, b"a", [])), (NOTE, struct.pack("<II", 5, 1) + b"model\0m\0\0\0\0\0\0\0\0\0")))
put("log", "broken", log(*two, (DOCUMENT, document(1, b"a", [(0, 0, 0, 100, 0, 100)])), (255, b"nonsense" * 5), (REMOVE, struct.pack("<Q", 1))))
put("log", "same_uri", log(*two, (DOCUMENT, document(1, b"a", [])), (DOCUMENT, document(2, b"a", [(0, 0, 5, 1, 64, 1)])), (FAMILY, family(0, 16, 1, 9, b"text"))))

x = np.arange(12, dtype=np.float32).reshape(3, 4)
for name, array in ("f32", x), ("f16", x.astype(np.float16)), ("empty", x[:0]), ("one", x[0]), ("f64", x.astype(np.float64)), ("fortran", np.asfortranarray(x)):
    stream = io.BytesIO()
    np.save(stream, array)
    put("npy", name, stream.getvalue())
put("npy", "version_2", b"\x93NUMPY\x02\x00" + struct.pack("<I", 54) + b"{'descr':'<f4','fortran_order':False,'shape':(1,2,), }" + bytes(8))
for compression, name in (zipfile.ZIP_STORED, "stored"), (zipfile.ZIP_DEFLATED, "deflated"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for member, array in ("keys", x.astype(np.float16)), ("hidden", x[:, :3]):
            inner = io.BytesIO()
            np.save(inner, array)
            archive.writestr(zipfile.ZipInfo(member + ".npy"), inner.getvalue(), compression)
    put("npz", name, stream.getvalue())
said = [
    {"uri": "a", "rows": 10, "tags": ["news", "all"], "attributes": {"year": 1998, "name": "\u00c6r\u00f8 \"x\""}, "tokens": 1200, "time": "2026-01-31 12:00:00"},
    {"rows": {"rows": 1, "hidden": 2}, "time": 1767225600000001, "hash": "0123456789abcdef" * 4},
    {"uri": "\u00fc/4", "time": "2026-01-31", "attributes": None},
]
put("sidecar", "lines", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in said).encode())
put("sidecar", "escaped", "".join(json.dumps(one) + "\n\n" for one in said).encode())
put("sidecar", "wrong", b'{"uri": "a\\u0000b"}\n{"tokens": -1}\n{"rows": 1e300, "tags": [[]]}\n{"attributes": {"a": 9007199254740993}}\n')

# Index files, of 40 rows of five numbers, as the fuzzer's store has them.
with tempfile.TemporaryDirectory() as scratch:
    def kna(*words):
        subprocess.run([os.environ["KNA"], "store", words[0], os.path.join(scratch, "s"), *words[1:]], check=True, stdout=subprocess.DEVNULL)

    np.save(os.path.join(scratch, "x.npy"), np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32))
    kna("create", "--dim", "5", "--type", "f32")
    kna("add", os.path.join(scratch, "x.npy"))
    for kind, metric, options in (("flat", "ip", []), ("clusters", "ip", ["--lists", "3"]), ("clusters", "l2", ["--lists", "1"])):
        kna("index", "--kind", kind, "--metric", metric, *options)
        name = next(n for n in os.listdir(os.path.join(scratch, "s")) if n.startswith("index-") and n.endswith(kind))
        made = open(os.path.join(scratch, "s", name), "rb").read()
        put("index", f"{kind}-{metric}", made)
        if (kind, metric) == ("clusters", "ip"):
            put("index", "no_probes", made[:136] + bytes(32) + made[168:])  # was a division by zero
put("index", "short", b"knaindex")
