#!/usr/bin/env python3
"""An independent reader of stores, written from format.md; it needs nothing but Python.

    read_store.py STORE            documents, one JSON object a line
    read_store.py STORE --rows     the same with the SHA-256 of each part's rows, compared with its checks first
    read_store.py STORE --indexes  the indexes, one JSON object a line; each list is compared with its check and its codes with the rows

Slow and plain on purpose. Exit code 1 where the store is not as format.md says.
"""
import fcntl
import hashlib
import json
import os
import struct
import sys

SLOT, PIECE, MASK = 4096, 65536, (1 << 64) - 1


class Damaged(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Damaged(what)


# ---- XXH3-64 with a seed (xxHash's specification)

P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")


def u32(b, i):
    return int.from_bytes(b[i:i + 4], "little")


def u64(b, i):
    return int.from_bytes(b[i:i + 8], "little")


def fold(a, b):
    p = a * b
    return (p & MASK) ^ (p >> 64)


def avalanche(h):
    h ^= h >> 37
    h = h * 0x165667919E3779F9 & MASK
    return h ^ h >> 32


def avalanche64(h):
    h ^= h >> 33
    h = h * P64[1] & MASK
    h ^= h >> 29
    h = h * P64[2] & MASK
    return h ^ h >> 32


def swap(x, n):
    return int.from_bytes(x.to_bytes(n, "little"), "big")


def mix16(b, i, s, j, seed):
    return fold(u64(b, i) ^ (u64(s, j) + seed & MASK), u64(b, i + 8) ^ (u64(s, j + 8) - seed & MASK))


def short(b, seed):
    n = len(b)
    if n == 0:
        return avalanche64(seed ^ u64(SECRET, 56) ^ u64(SECRET, 64))
    if n <= 3:
        c = b[0] << 16 | b[n >> 1] << 24 | b[-1] | n << 8
        return avalanche64(c ^ ((u32(SECRET, 0) ^ u32(SECRET, 4)) + seed & MASK))
    if n <= 8:
        seed ^= swap(seed & 0xFFFFFFFF, 4) << 32
        h = (u32(b, n - 4) + (u32(b, 0) << 32)) ^ ((u64(SECRET, 8) ^ u64(SECRET, 16)) - seed & MASK)
        h ^= (h << 49 | h >> 15) & MASK ^ (h << 24 | h >> 40) & MASK
        h = h * 0x9FB21C651E98DF25 & MASK
        h ^= (h >> 35) + n
        h = h * 0x9FB21C651E98DF25 & MASK
        return h ^ h >> 28
    low = u64(b, 0) ^ ((u64(SECRET, 24) ^ u64(SECRET, 32)) + seed & MASK)
    high = u64(b, n - 8) ^ ((u64(SECRET, 40) ^ u64(SECRET, 48)) - seed & MASK)
    return avalanche(n + swap(low, 8) + high + fold(low, high) & MASK)


def middle(b, seed):
    n = len(b)
    h = n * P64[0] & MASK
    if n <= 128:
        for i in range((n - 1) // 32, -1, -1):
            h += mix16(b, 16 * i, SECRET, 32 * i, seed) + mix16(b, n - 16 * (i + 1), SECRET, 32 * i + 16, seed)
        return avalanche(h & MASK)
    for i in range(8):
        h += mix16(b, 16 * i, SECRET, 16 * i, seed)
    h = avalanche(h & MASK)
    for i in range(8, n // 16):
        h += mix16(b, 16 * i, SECRET, 16 * (i - 8) + 3, seed)
    return avalanche(h + mix16(b, n - 16, SECRET, 136 - 17, seed) & MASK)


def long(b, seed):
    secret = b"".join(((u64(SECRET, i) + seed & MASK).to_bytes(8, "little") + (u64(SECRET, i + 8) - seed & MASK).to_bytes(8, "little"))
                      for i in range(0, 192, 16))
    keys = struct.unpack("<24Q", secret)
    acc = [P32[2], P64[0], P64[1], P64[2], P64[3], P32[1], P64[4], P32[0]]
    n = len(b)

    def stripe(at, key):
        for i, x in enumerate(struct.unpack_from("<8Q", b, at)):
            k = x ^ key[i]
            acc[i ^ 1] += x
            acc[i] += (k & 0xFFFFFFFF) * (k >> 32)

    stripes = (n - 1) // 64
    for s in range(stripes):
        stripe(64 * s, keys[s % 16:s % 16 + 8])
        if s % 16 == 15:
            for i in range(8):
                a = acc[i] & MASK
                acc[i] = (a ^ a >> 47 ^ keys[16 + i]) * P32[0] & MASK
    stripe(n - 64, struct.unpack_from("<8Q", secret, 192 - 64 - 7))
    h = n * P64[0] & MASK
    for i in range(4):
        h += fold(acc[2 * i] & MASK ^ u64(secret, 11 + 16 * i), acc[2 * i + 1] & MASK ^ u64(secret, 19 + 16 * i))
    return avalanche(h & MASK)


def check(b, seed=0):
    return short(b, seed) if len(b) <= 16 else middle(b, seed) if len(b) <= 240 else long(b, seed)


# ---- slots

def slot_of(b, place):
    if b[:8] != b"knastore":
        return None
    need(u32(b, 12) != 0x04030201, "manifest: of a big-endian machine")
    if u64(b, SLOT - 8) != check(b[:SLOT - 8]):
        return None
    need(u32(b, 8) == 1, "manifest: another version")
    slot = {"uuid": b[16:32].hex(), "transaction": u64(b, 32), "generation": u64(b, 40), "bytes": u64(b, 48), "check": u64(b, 56)}
    sound = u32(b, 12) == 0x01020304 and not any(b[64:SLOT - 8]) and slot["transaction"] % 2 == place
    return slot if sound else None


def writer_is_there(folder):
    try:
        with open(os.path.join(folder, "lock"), "r+b") as lock:
            flock = struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)
            kind, *_ = struct.unpack("hhqqi", fcntl.fcntl(lock, 36, flock))  # F_OFD_GETLK
            return kind != fcntl.F_UNLCK
    except OSError:
        return False


# ---- records

def records(log, at, end, before):
    """(kind, body, end, check) of sound records that continue the chain."""
    while at + 32 <= end and u32(log, at) == 0x4345524B:
        size = u64(log, at + 8)
        if size % 8 or at + 32 + size > end or u64(log, at + 16) != before:
            return
        mark = u64(log, at + 24 + size)
        if mark != check(log[at:at + 24 + size]):
            return
        yield u32(log, at + 4), log[at + 24:at + 24 + size], at + 32 + size, mark
        at, before = at + 32 + size, mark


def text(body, at, length):
    need(body[at + length] == 0 and 0 not in body[at:at + length], "a text without its NUL")
    return body[at:at + length].decode(), at + length + 1


ROW_BYTES = {0: lambda d: 4 * d, 1: lambda d: 2 * d, 2: lambda d: 2 * d, 3: lambda d: d, 4: lambda d: d // 32 * 34, 16: lambda d: d}


def part_bytes(family, rows):
    size = ROW_BYTES[family["type"]](family["dim"]) * rows
    return (size + 63) // 64 * 64 + 4 * rows if family["type"] == 3 else size


class Store:
    def __init__(self, folder):
        self.folder, self.families, self.documents, self.notes, self.last = folder, [], {}, {}, 0
        for _ in range(20):
            slots, bad = self.slots()
            log = self.log_of(slots)
            if log is not None:
                break
        need(log is not None, "the log is missing")
        end, mark = slots["bytes"], slots["check"]
        need(len(log) >= end, "the log is shorter than what was committed")
        self.uuid = slots["uuid"]
        position, last_check, kind = 0, 0, 0
        for kind, body, position, last_check in records(log, 0, end, 0):
            self.apply(kind, body)
        need(position == end and last_check == mark and kind == 5 and self.transaction == slots["transaction"], "the log is damaged")
        if bad and not writer_is_there(folder):
            self.follow(log, end, mark)

    def slots(self):
        with open(os.path.join(self.folder, "manifest"), "rb") as file:
            b = file.read()
        need(len(b) == 2 * SLOT, "manifest: not two slots")
        both = [slot_of(b[i * SLOT:(i + 1) * SLOT], i) for i in range(2)]
        sound = [s for s in both if s]
        need(sound, "manifest: no slot is sound")
        best = max(sound, key=lambda s: s["transaction"])
        new = best["transaction"] == 1 and not any(b[:SLOT])
        return best, len(sound) < 2 and not new

    def log_of(self, slot):
        try:
            with open(os.path.join(self.folder, "log-%06d" % slot["generation"]), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def follow(self, log, at, mark):
        waiting = []
        for kind, body, _, _ in records(log, at, len(log), mark):
            waiting.append((kind, body))
            if kind == 5 and u64(body, 0) == self.transaction + 1:
                for one in waiting:
                    self.apply(*one)
                waiting = []

    def apply(self, kind, body):
        (self.note, self.family, self.document, self.remove, self.commit)[kind - 1](body)

    def note(self, body):
        name, at = text(body, 8, u32(body, 0))
        self.notes[name] = text(body, at, u32(body, 4))[0]

    def family(self, body):
        family = {"type": u32(body, 4), "dim": u64(body, 8), "next": u64(body, 16), "name": body[24:88].rstrip(b"\0").decode()}
        number = u32(body, 0)
        if number < len(self.families):
            old = self.families[number]
            need(all(old[k] == family[k] for k in ("type", "dim", "name")) and old["next"] <= family["next"], "another family")
            self.families[number] = family
        else:
            need(number == len(self.families), "a family out of order")
            self.families.append(family)

    def document(self, body):
        d = {"id": u64(body, 0), "time_us": struct.unpack_from("<q", body, 8)[0], "tokens": u64(body, 16), "hash": body[24:56].hex()}
        need(d["id"] > self.last, "a document's number was given before")
        self.last = d["id"]
        at = 72
        for name, place in (("uri", 56), ("tags", 60), ("attributes", 64)):
            d[name], at = text(body, at, u32(body, place))
        at = (at + 7) // 8 * 8
        count, parts = u32(body, 68), []
        pieces = at + 48 * count
        for i in range(count):
            p = dict(zip(("family", "segment", "first", "rows", "offset", "bytes"), struct.unpack_from("<IIQQQQ", body, at + 48 * i)))
            family = self.families[p["family"]]
            need(p["first"] >= family["next"] and p["bytes"] == part_bytes(family, p["rows"]), "a part that cannot be")
            family["next"] = p["first"] + p["rows"]
            number = (p["bytes"] + PIECE - 1) // PIECE
            p["checks"] = struct.unpack_from("<%dQ" % number, body, pieces)
            pieces += 8 * number
            parts.append(p)
        need(pieces == len(body), "a document of another length")
        d["parts"] = parts
        self.documents[d["id"]] = d

    def remove(self, body):
        need(self.documents.pop(u64(body, 0), None), "a removal of nothing")

    def commit(self, body):
        self.transaction = u64(body, 0)
        need(u64(body, 16) == len(self.documents), "a commit of other documents")

    def rows(self, part):
        with open(os.path.join(self.folder, "rows-%06d" % part["segment"]), "rb") as file:
            file.seek(part["offset"])
            data = file.read(part["bytes"])
        need(len(data) == part["bytes"], "rows are missing")
        for i, mark in enumerate(part["checks"]):
            need(check(data[i * PIECE:(i + 1) * PIECE], i) == mark, "rows are not as they were written")
        return data


# ---- rows as numbers

def bf16(b):
    return struct.unpack("<f", b"\0\0" + b)[0]


def numbers(family, data, row, rows):
    """One row of a part's bytes."""
    kind, d = family["type"], family["dim"]
    at = row * ROW_BYTES[kind](d)
    if kind == 0:
        return struct.unpack_from("<%df" % d, data, at)
    if kind == 1:
        return struct.unpack_from("<%de" % d, data, at)
    if kind == 2:
        return [bf16(data[at + 2 * i:at + 2 * i + 2]) for i in range(d)]
    if kind == 3:
        scale = struct.unpack_from("<f", data, (rows * d + 63) // 64 * 64 + 4 * row)[0]
        return [scale * x for x in struct.unpack_from("<%db" % d, data, at)]
    out = []
    for block in range(d // 32):
        scale, *x = struct.unpack_from("<e32b", data, at + 34 * block)
        out += [scale * one for one in x]
    return out


# ---- indexes

KINDS, HEAD = {2: "flat", 3: "clusters"}, 4096


class Index:
    def __init__(self, store, name):
        with open(os.path.join(store.folder, name), "rb") as file:
            b = self.b = file.read()
        need(len(b) >= HEAD and b[:8] == b"knaindex", name + ": not an index")
        need(u64(b, HEAD - 8) == check(b[:HEAD - 8]), name + ": its header is damaged")
        need(u32(b, 8) == 1 and u32(b, 12) == 0x01020304, name + ": another version")
        need(b[16:32].hex() == store.uuid and u64(b, 32) <= store.transaction and not any(b[236:HEAD - 8]), name + ": of another store, or later")
        self.family, kind, self.kind, self.metric = struct.unpack_from("<4I", b, 40)
        self.dim, self.covered, self.rows, self.lists, self.centers, self.table, self.center, size, check1, check2 = struct.unpack_from("<10Q", b, 56)
        family = store.families[self.family]
        need((kind, self.dim) == (family["type"], family["dim"]) and self.kind in KINDS and self.metric < 3, name + ": of other rows")
        need(name == "index-%05d-%s" % (self.family, KINDS[self.kind]), name + ": under another name")
        need(self.centers in (1, self.lists) and self.center == self.table + 48 * self.lists, name + ": tables")
        need(size == self.center + 4 * self.dim * self.centers == len(b), name + ": another length")
        need(check1 == check(b[self.table:self.center], 1) and check2 == check(b[self.center:], 2), name + ": its tables are damaged")
        at = HEAD
        for i in range(self.lists):
            start, rows, blocks, _ = struct.unpack_from("<4Q", b, self.table + 48 * i)
            need(start == at and blocks == (rows + 15) // 16, name + ": a list that cannot be")
            at += 64 * blocks * (5 + (self.dim + 3) // 4)
        need(at == self.table, name + ": lists of another length")

    def entries(self):
        """Row number, step, extra, error, norm, codes and center of each row in the lists."""
        groups = (self.dim + 3) // 4
        total = 0
        for i in range(self.lists):
            at, rows, blocks, mark = struct.unpack_from("<4Q", self.b, self.table + 48 * i)
            most = struct.unpack_from("<3f", self.b, self.table + 48 * i + 32)
            data = self.b[at:at + 64 * blocks * (5 + groups)]
            need(check(data, i) == mark, "list %d is damaged" % i)
            ids = struct.unpack_from("<%dI" % (16 * blocks), data)
            steps, extras, errors, norms = (struct.unpack_from("<%df" % (16 * blocks), data, 64 * blocks * j) for j in range(1, 5))
            need(all(x == 0xFFFFFFFF for x in ids[rows:]), "list %d: what fills it up is a row" % i)
            need(all(max(map(abs, x[:rows]), default=0) == m for x, m in zip((extras, errors, norms), most)), "list %d: its largest" % i)
            center = struct.unpack_from("<%df" % self.dim, self.b, self.center + (4 * self.dim * i if self.centers > 1 else 0))
            for r in range(rows):
                codes = [data[320 * blocks + ((r // 16 * groups + j // 4) * 16 + r % 16) * 4 + j % 4] - 128 for j in range(4 * groups)]
                need(not any(codes[self.dim:]), "list %d: a code beyond the last column" % i)
                total += 1
                yield ids[r], steps[r], extras[r], errors[r], norms[r], codes[:self.dim], center
        need(total == self.rows, "another number of rows in the lists")


def finite(x):
    return all(abs(one) < float("inf") for one in x)


def compare(store, index):
    """Codes with the rows; rows of documents there are that should be in a list and are not."""
    family, rows, seen = store.families[index.family], {}, set()
    for d in store.documents.values():
        for p in d["parts"]:
            if p["family"] == index.family:
                data = store.rows(p)
                rows.update((p["first"] + r, numbers(family, data, r, p["rows"])) for r in range(p["rows"]))
    for row, step, extra, error, norm, codes, center in index.entries():
        need(row < index.covered and row not in seen, "row %d: in two lists, or not covered" % row)
        seen.add(row)
        if row not in rows or error == float("inf"):
            continue  # of a document removed since; or too large
        x = rows[row]
        length = sum(a * a for a in x) ** 0.5
        x = [a / length if length else 0 for a in x] if index.metric == 1 else x
        r = [a - c for a, c in zip(x, center)]
        lost = sum((a - step * k) ** 2 for a, k in zip(r, codes)) ** 0.5
        size = sum((step * k) ** 2 for k in codes) ** 0.5
        slack = 1e-6 * (length + 1)
        need(lost <= error + slack and size <= norm + slack, "row %d: codes farther from it than said" % row)
        want = sum(a * (2 * c + a) for a, c in zip(r, center)) if index.metric == 2 else 0
        need(abs(extra - want) <= 1e-5 * (length * length + abs(want) + sum(c * c for c in center)), "row %d: extra" % row)
    for row, x in rows.items():
        need(row >= index.covered or row in seen or not finite(x), "row %d: in no list" % row)


def show_indexes(store):
    for name in sorted(os.listdir(store.folder)):
        if name.startswith("index-") and not name.endswith(".new"):
            index = Index(store, name)
            compare(store, index)
            print(json.dumps({"name": name, "family": store.families[index.family]["name"], "kind": KINDS[index.kind],
                              "metric": ("ip", "cosine", "l2")[index.metric], "covered": index.covered, "rows": index.rows, "lists": index.lists}))


def main():
    store = Store(sys.argv[1])
    if "--indexes" in sys.argv:
        show_indexes(store)
        return
    for d in store.documents.values():
        out = {k: v for k, v in d.items() if k != "parts"}
        out["rows"] = {}
        for p in d["parts"]:
            family = store.families[p["family"]]
            shown = {"first": p["first"], "rows": p["rows"]}
            if "--rows" in sys.argv:
                shown["sha256"] = hashlib.sha256(store.rows(p)).hexdigest()
            out["rows"][family["name"]] = shown
        print(json.dumps(out, ensure_ascii=False))


if __name__ == "__main__":
    try:
        main()
    except (Damaged, OSError, IndexError, KeyError, ValueError, struct.error) as error:
        sys.exit("read_store: %s" % error)
