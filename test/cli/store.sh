# kna store: what goes in comes out, in every type; what is wrong is refused by line, row and limit and changes nothing; damage is found;
# and doc/read_store.py, which knows doc/format.md alone, sees the same documents.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${KNA_PYTHON:-/usr/bin/python3}" -B - "$KNA" "$KNA_SOURCE_DIR/doc/read_store.py" <<'END'
import fcntl, json, os, shutil, struct, subprocess, sys
import numpy as np

kna, reader = sys.argv[1:]
random = np.random.default_rng(7)
checks = 0

def require(condition, what):
    global checks
    checks += 1
    if not condition:
        sys.exit("failed: %s" % what)

def run(*words, code=0, says=""):
    done = subprocess.run([kna, "store", *words], capture_output=True, text=True)
    require(done.returncode == code, f"{words}: exit {done.returncode}, not {code}: {done.stderr}")
    require(says in done.stderr, f"{words}: '{done.stderr}' does not say '{says}'")
    require(code == 0 or done.stderr.count("kna: ") >= 1, f"{words}: no message")
    return done.stdout

def ask(*words, **more):
    return json.loads(run(*words, "--json", **more))

def documents(store, *words):
    return ask("ls", store, *words)["documents"]

def ids(store, *words):
    return [d["id"] for d in documents(store, *words)]

def lines(name, *objects):
    with open(name, "w", encoding="utf-8") as file:
        for one in objects:
            file.write((one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) + "\n")

def tree(folder):
    return {name: open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder)) if name != "lock"}

def bits(x):
    return x.tobytes(), x.dtype, x.shape

# An independent reader of the files sees what ls sees.
def agrees(store):
    done = subprocess.run([sys.executable, "-B", reader, store, "--rows"], capture_output=True, text=True)
    require(done.returncode == 0, f"read_store.py {store}: {done.stderr}")
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    ours = documents(store)
    for d in theirs:
        d["tags"] = [t for t in d["tags"].split("\n") if t]
        d["attributes"] = json.loads(d["attributes"]) if d["attributes"] else None
        d["uri"] = d["uri"] or None
        d["hash"] = None if set(d["hash"]) == {"0"} else d["hash"]
        for part in d["rows"].values():
            del part["sha256"]
    require(theirs == ours, f"{store}: read_store.py has\n{theirs}\nkna has\n{ours}")
    return ours

# ---- round trips
x = (random.normal(size=(37, 24)) * 3).astype(np.float32)
x[5] = 0
half = x.astype(np.float16)
np.save("x.npy", x)
np.save("half.npy", half)
said = [
    {"uri": "a", "rows": 10, "tags": ["news", "all"], "attributes": {"year": 1998, "name": "Ærø \"x\""}, "tokens": 1200, "time": "2026-01-31 12:00:00"},
    {"uri": "b", "rows": 0, "tags": ["all"]},
    {"rows": 26, "tokens": 50, "time": 1767225600000001, "attributes": {}, "hash": "0123456789abcdef" * 4},
    {"uri": "ü/4"},
]
lines("x.jsonl", *said)
starts = [0, 10, 10, 36, 37]
for kind in "f32", "f16", "int8":
    for given, array in ("x.npy", x), ("half.npy", half):
        shutil.rmtree("s", ignore_errors=True)
        run("create", "s", "--dim", "24", "--type", kind, "--model", "model of it")
        answer = ask("add", "s", given, "--meta", "x.jsonl")
        require(answer == {"documents": 4, "rows": 37}, f"add: {answer}")
        seen = agrees("s")
        for d, wanted in zip(seen, said):
            for name in "uri", "tokens", "hash", "attributes":
                require((d[name] or None) == (wanted.get(name) or None), f"{name} of {wanted}: {d}")
            require(d["tags"] == wanted.get("tags", []), f"tags of {wanted}: {d}")
        require(seen[2]["attributes"] == {} and seen[1]["attributes"] is None, "attributes: {} and none are two things")
        require(seen[0]["time_us"] == 1769860800000000 and seen[2]["time_us"] == 1767225600000001, f"times: {seen}")
        require(seen[1]["rows"] == {} and seen[3]["rows"] == {"rows": {"first": 36, "rows": 1}}, f"rows: {seen}")
        f32 = array.astype(np.float32)
        if kind == "int8":
            scale = np.abs(f32).max(axis=1, keepdims=True) / np.float32(127)
        for i, d in enumerate(seen):
            run("get", "s", str(d["id"]), "--out", "got.npy")
            got = np.load("got.npy")
            part = slice(starts[i], starts[i + 1])
            if kind == "f32":
                require(bits(got) == bits(f32[part]), "f32 is not what went in")
            elif kind == "f16":
                require(bits(got) == bits(array[part].astype(np.float16)), "f16 is not what went in, rounded to nearest")
            else:
                require(got.dtype == np.float32 and got.shape == f32[part].shape, f"int8: {got.shape}")
                require((np.abs(got - f32[part]) <= scale[part] * 0.50001).all(), "int8 is off by more than half a step")
        run("get", "s", "ü/4", "--out", "got.npy")
        require(np.load("got.npy").shape == (1, 24), "by uri")

        # Out, in, out: the same files, but for int8, which is rounded by its own steps again.
        run("export", "s", "--out", "all.npy", "--meta", "all.jsonl", "--safetensors", "all.safetensors")
        shutil.rmtree("again", ignore_errors=True)
        run("create", "again", "--dim", "24", "--type", kind)
        run("add", "again", "all.npy", "--meta", "all.jsonl", "--batch", "2")
        run("export", "again", "--out", "all2.npy", "--meta", "all2.jsonl", "--safetensors", "all2.safetensors")
        require(open("all.jsonl").read() == open("all2.jsonl").read(), "the sidecar came out differently")
        first, second = np.load("all.npy"), np.load("all2.npy")
        if kind == "int8":
            require(np.abs(first - second).max() <= 1e-6 * np.abs(first).max(), "int8 again")
        else:
            require(bits(first) == bits(second), "rows came out differently")
            require(open("all.safetensors", "rb").read() == open("all2.safetensors", "rb").read(), "safetensors came out differently")
        with open("all.safetensors", "rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(size))
            data = file.read()
        require(size % 8 == 0, f"a header of {size} bytes")
        names = {"f32": ("F32", np.float32), "f16": ("F16", np.float16), "int8": ("I8", np.int8)}[kind]
        tensor = header["rows"]
        require(tensor["dtype"] == names[0] and tensor["shape"] == [37, 24], f"{header}")
        low, high = tensor["data_offsets"]
        kept = np.frombuffer(data[low:high], names[1]).reshape(37, 24)
        if kind == "int8":
            low, high = header["rows.scale"]["data_offsets"]
            require(header["rows.scale"]["shape"] == [37] and header["rows.scale"]["dtype"] == "F32", f"{header}")
            kept = kept * np.frombuffer(data[low:high], np.float32)[:, None]
        require(high == len(data) and (kept == first).all(), "safetensors has other rows")

# ---- several families, .npz stored and deflated, one document without a sidecar
run("create", "m", "--family", "keys:f16:16", "--family", "hidden:int8:32", "--family", "plain", "--dim", "3", "--type", "f32")
arrays = {"keys": random.normal(size=(6, 16)).astype(np.float16), "hidden": random.normal(size=(3, 32)).astype(np.float32)}
np.savez("stored.npz", **arrays)
np.savez_compressed("deflated.npz", **arrays)
lines("two.jsonl", {"rows": {"keys": 4, "hidden": 3}}, {"uri": "second", "rows": {"keys": 2}})
run("add", "m", "stored.npz", "--uri", "one")
run("add", "m", "deflated.npz", "--meta", "two.jsonl")
seen = agrees("m")
require([d["rows"] for d in seen] == [
    {"keys": {"first": 0, "rows": 6}, "hidden": {"first": 0, "rows": 3}},
    {"keys": {"first": 6, "rows": 4}, "hidden": {"first": 3, "rows": 3}},
    {"keys": {"first": 10, "rows": 2}}], f"{seen}")
run("get", "m", "second", "--family", "keys", "--out", "got.npy")
require(bits(np.load("got.npy")) == bits(arrays["keys"][4:]), "of a .npz")
np.save("plain.npy", np.eye(3, dtype=np.float32))
run("add", "m", "plain.npy", "--family", "plain")
require(documents("m")[-1]["uri"] == "plain.npy", "named after the file")
run("add", "m", "./plain.npy", "--family", "plain", code=2, says="there is a document 'plain.npy' already")
run("add", "m", "plain.npy", code=2, says="option --family is missing: m has 3")
run("add", "m", "plain.npy", "--family", "plains", code=2, says="no family 'plains'")
run("add", "m", "stored.npz", "--family", "keys", code=2, says="--family")
np.savez("other.npz", values=arrays["keys"])
run("add", "m", "other.npz", code=2, says="other.npz:values.npy: m has no family 'values'")
np.savez("nan.npz", keys=np.where(np.arange(32).reshape(2, 16) == 21, np.nan, 1).astype(np.float16))
run("add", "m", "nan.npz", code=2, says="nan.npz:keys.npy: NaN at row 1, column 5")
run("add", "m", "x.npy", "--family", "keys", code=2, says="rows of 24 numbers; family keys of m has 16")
whole = open("stored.npz", "rb").read()
open("cut.npz", "wb").write(whole[:-9])
run("add", "m", "cut.npz", code=2, says="cut.npz: not a .npz file")
open("flip.npz", "wb").write(whole.replace(arrays["keys"].tobytes(), arrays["keys"].tobytes()[:-1] + b"!"))
run("add", "m", "flip.npz", code=1, says="flip.npz:keys.npy: cannot read")
run("export", "m", "--safetensors", "m.safetensors")
families = {f["name"]: f for f in ask("stat", "m")["families"]}
require(families["keys"] == {"name": "keys", "type": "f16", "dim": 16, "rows": 12, "next_row": 12}, f"{families}")
require(ask("stat", "s")["model"] == "model of it", "the model")

# ---- what is refused, and that nothing has changed then
before = tree("s")
def refused(says, *objects, array="x.npy", more=()):
    lines("bad.jsonl", *objects)
    run("add", "s", array, "--meta", "bad.jsonl", *more, code=2, says=says)
    require(tree("s") == before, f"{says}: the store has changed")

refused("bad.jsonl: line 2: 30 rows from row 10 on; x.npy has 37", {"rows": 10}, {"rows": 30})
refused("2 lines have 36 rows; x.npy has 37", {"rows": 10}, {"rows": 26})
refused("line 1: not JSON from byte", "{rows: 37}")
refused("line 2: not JSON", {"rows": 37}, "")
refused("line 1: not JSON", '{"rows": 37} x')
refused("line 1: not a JSON object", "[37]")
refused("line 1: 'row' is none of uri, rows, tags", {"row": 37})
refused("line 1: 'rows' is there twice", '{"rows": 37, "rows": 37}')
refused("line 1: rows is not an integer in 0..", {"rows": -1})
refused("line 1: rows is not an integer in 0..", {"rows": 1.5})
refused("line 1: rows: the array has no family 'keys'", {"rows": {"keys": 37}})
refused("line 1: tokens is not an integer in 0..9007199254740992", {"rows": 37, "tokens": -1})
refused("line 1: tags is not an array", {"rows": 37, "tags": "news"})
refused("line 1: tags: line breaks", {"rows": 37, "tags": ["a\nb"]})
refused("line 1: tags: one is empty", {"rows": 37, "tags": [""]})
refused("line 1: uri: line breaks", {"rows": 37, "uri": "a\nb"})
refused("line 1: a NUL in it", {"rows": 37, "uri": "a\0b"})
refused("line 1: attributes is not an object", {"rows": 37, "attributes": [1]})
refused("line 1: attributes: a number above 2^53", {"rows": 37, "attributes": {"a": [2**60]}})
refused("line 1: time '2026-02-31' is neither", {"rows": 37, "time": "2026-02-31"})
refused("line 1: hash is not of 64", {"rows": 37, "hash": "00"})
refused("line 2: the uri 'new' is line 1's", {"uri": "new", "rows": 30}, {"uri": "new", "rows": 7})
refused("line 2: the uri 'new' is line 1's", {"uri": "new", "rows": 30}, {"uri": "new", "rows": 7}, more=["--replace"])
refused("line 2: s has a document 'a' already, number 1 (--replace", {"uri": "new", "rows": 30}, {"uri": "a", "rows": 7})
open("bad.jsonl", "wb").write(b'{"rows": 37, "uri": "\xff"}\n')
run("add", "s", "x.npy", "--meta", "bad.jsonl", code=2, says="line 1: not UTF-8")
for place, value, kind, says in ((3, 7), np.nan, np.float32, "NaN at row 3, column 7"), ((36, 0), -np.inf, np.float16, "infinity at row 36, column 0"):
    spoilt = x.astype(kind)
    spoilt[place] = value
    np.save("spoilt.npy", spoilt)
    run("add", "s", "spoilt.npy", code=2, says="spoilt.npy: " + says)
np.save("large.npy", np.full((2, 24), 7e4, np.float32))
run("create", "halves", "--dim", "24", "--type", "f16")
run("add", "halves", "large.npy", code=2, says="a number too large for f16 at row 0, column 0")
np.save("flat.npy", x[0])
run("add", "s", "flat.npy", code=2, says="(rows, dim) is needed")
run("add", "s", "none.npy", code=1, says="none.npy: cannot read")
run("add", "s", "x.npy", "--meta", "none.jsonl", code=1, says="none.jsonl: cannot read")
run("add", "s", "x.npy", "--meta", "x.jsonl", "--uri", "u", code=2, says="--uri")
require(tree("s") == before, "a refusal changed the store")
run("ls", "none", code=1, says="none: No such file")
run("repair", "none", code=1, says="none: No such file")
os.mkdir("empty")
run("stat", "empty", code=2, says="empty: not a store")
run("create", "s", "--dim", "24", "--type", "f32", code=2, says="s: not an empty folder")
run("create", "t", "--type", "f32", code=2, says="--dim is missing")
run("create", "t", "--dim", "3", code=2, says="--type is missing")
run("create", "t", "--family", "a:f64:3", code=2, says="none of f32, f16, int8")
run("create", "t", "--family", "a:f32:0", code=2, says="integer in 1..65536")
run("create", "t", "--family", "a:3", code=2, says="neither NAME nor NAME:TYPE:DIM")
run("create", "t", "--family", "a:f32:3", "--dim", "3", code=2, says="every --family has its own")
run("create", "t", "--family", "a:f32:3", "--family", "a:f16:3", code=2)
run("create", "t", "--family", "n" * 65 + ":f32:3", code=2, says="1 to 64")
require(not os.path.exists("t"), "a refused store was left behind")
run("get", "s", "99", "--out", "none.npy", code=2, says="s: there is no document 99")
run("get", "s", "nobody", "--out", "none.npy", code=2, says="s: there is no document nobody")
run("export", "s", "--meta", "only.jsonl", code=2, says="--out")
require(not os.path.exists("none.npy") and not os.path.exists("only.jsonl"), "an output of a refused command")

# ---- which ones
run("create", "w", "--dim", "24", "--type", "f32")
np.save("ten.npy", x[:10])
lines("ten.jsonl", *({"uri": ("even/" if i % 2 == 0 else "odd/") + str(i), "tags": ["all"] + (["three"] if i % 3 == 0 else []), "tokens": 100 * i,
                      "attributes": {"i": i, "deep": {"name": "n%d" % i}}, "time": "2026-0%d-01" % (i + 1 if i < 9 else 1)} for i in range(10)))
run("add", "w", "ten.npy", "--meta", "ten.jsonl")
require(ids("w", "--tag", "three") == [1, 4, 7, 10], "--tag")
require(ids("w", "--tag", "thre") == [], "a tag is whole")
require(ids("w", "--uri-prefix", "odd/") == [2, 4, 6, 8, 10], "--uri-prefix")
require(ids("w", "--uri-prefix", "odd/", "--limit", "2", "--filter", "tokens > 200") == [4, 6], "--limit")
require(ids("w", "--filter", "tokens > 100 and tag('three')") == [4, 7, 10], "--filter")
require(ids("w", "--filter", "json_extract(attributes, '$.deep.name') in ('n2', 'n5')") == [3, 6], "json_extract")
require(ids("w", "--filter", "time >= '2026-08-01' or uri like 'even/0' -- or all") == [1, 8, 9], "time")
require(ids("w", "--filter", "NULL") == [] and ids("w", "--filter", "not tag('all')") == [], "nothing")
require(ids("w", "--filter", "id % 2 = (select 1)") == [1, 3, 5, 7, 9], "a subquery of nothing")
for bad in "tokens >", "1); delete from documents where (1", '"tokns" > 1', "tokns > 1", "tokens > ?8", "load_extension('x')", "1) from sqlite_master; --", "1, 2":
    run("ls", "w", "--filter", bad, code=2, says="--filter")
    run("rm", "w", "--filter", bad, code=2, says="--filter")
run("ls", "w", "--filter", "json_extract(uri, '$') = 1", code=2, says="document 1: malformed JSON")
require("even/0  [all three]" in run("ls", "w"), "the table")

# ---- replace, rm, compact
lines("r.jsonl", {"uri": "even/0", "rows": 3}, {"uri": "fresh", "rows": 7})
require(ask("add", "w", "ten.npy", "--meta", "r.jsonl", "--replace", "--batch", "1")["documents"] == 2, "--replace")
require(ids("w") == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], "replaced")
run("get", "w", "even/0", "--out", "got.npy")
require(bits(np.load("got.npy")) == bits(x[:3]), "the new one's rows")
before = tree("w")
run("rm", "w", "odd/1", "nobody", code=2, says="w: there is no document nobody")
run("rm", "w", code=2, says="either documents or --filter")
run("rm", "w", "2", "--filter", "1", code=2, says="either documents or --filter")
require(tree("w") == before, "one is not there: none goes")
require(ask("rm", "w", "2", "odd/1", "fresh")["removed"] == 2, "rm")
require(ask("rm", "w", "--filter", "tokens between 300 and 500")["removed"] == 3, "rm --filter")
require(ids("w") == [3, 7, 8, 9, 10, 11], "removed")
left = agrees("w")
run("export", "w", "--out", "before.npy", "--meta", "before.jsonl")
require(ask("stat", "w")["removed"] == 6, "stat")
answer = ask("compact", "w", "--share", "0")
require(answer["bytes"] < answer["bytes_before"], f"compact: {answer}")
require(agrees("w") == left, "compact changed the documents")
run("export", "w", "--out", "after.npy", "--meta", "after.jsonl")
require(open("before.npy", "rb").read() == open("after.npy", "rb").read(), "compact changed the rows")
require(ask("stat", "w")["removed"] == 0, "stat after compact")
run("compact", "w", "--share", "2", code=2, says="--share")
require(np.array_equal(np.load("after.npy"), np.concatenate([x[2:3], x[6:10], x[:3]])), "the rows that are left")
run("export", "w", "--filter", "tag('three')", "--out", "some.npy")
require(np.array_equal(np.load("some.npy"), x[[6, 9]]), "export --filter")

# ---- import
run("create", "copy", "--dim", "24", "--type", "f32")
require(ask("import", "copy", "--from", "w")["documents"] == 6, "import")
def without_numbers(store):
    return [{k: v for k, v in d.items() if k not in ("id", "rows")} for d in agrees(store)]
require(without_numbers("copy") == without_numbers("w"), "import: other documents")
run("export", "copy", "--out", "copy.npy", "--meta", "copy.jsonl")
require(open("copy.npy", "rb").read() == open("after.npy", "rb").read() and open("copy.jsonl").read() == open("after.jsonl").read(), "import: other rows")
before = tree("copy")
run("import", "copy", "--from", "w", code=2, says="copy: there is a document 'even/2' already")
run("import", "copy", "--from", "copy", code=2, says="copy is the same store")
run("import", "copy", "--from", "m", code=2, says="copy: has no family 'keys' as m has")
run("import", "copy", "--from", "halves", code=2, says="family 'rows' is f32 of 24; in halves it is f16 of 24")
require(tree("copy") == before, "a refused import changed the store")
require(ask("import", "copy", "--from", "w", "--filter", "tag('three')", "--replace")["documents"] == 2, "import --replace")
require(len(ids("copy")) == 6, "import --replace")
run("create", "other", "--dim", "24", "--type", "int8", "--model", "another")
run("import", "other", "--from", "s", code=2, says="s: of model 'model of it'; other is of 'another'")

# ---- one writer; readers go on
with open("w/lock", "r+b") as lock:
    flock = struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)
    fcntl.fcntl(lock, 37, flock)  # F_OFD_SETLK
    for words in ("add", "w", "ten.npy"), ("rm", "w", "3"), ("compact", "w"), ("repair", "w"), ("import", "w", "--from", "copy"):
        run(*words, code=1, says="w: process")
    require(len(ids("w")) == 6, "a reader beside a writer")
run("add", "w", "ten.npy")

# ---- damage
require(ask("verify", "w", "--deep") == {"damaged": [], "deep": True, "indexes": [], "sound": True}, "verify")
wanted = {d["id"]: d for d in documents("w")}
rows = sorted(name for name in os.listdir("w") if name.startswith("rows-"))
def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 64]))
flip(os.path.join("w", rows[-1]), os.path.getsize(os.path.join("w", rows[-1])) - 1)
require("sound: manifest and log" in run("verify", "w"), "rows are not looked at without --deep")
found = ask("verify", "w", "--deep", code=1, says="rows of family 0 are not as written")
require(found["sound"] is False and [d["id"] for d in found["damaged"]] == [13], f"{found}")
run("get", "w", "13", "--out", "none.npy", code=1, says="w: document 13: rows of family 0 are not as written")
run("export", "w", "--out", "none.npy", "--meta", "none.jsonl", code=1, says="not as written")
require(not os.path.exists("none.npy") and not os.path.exists("none.jsonl"), "damaged rows were given out")
require(ask("repair", "w") == {"kept": 6, "lost": 1}, "repair")
del wanted[13]
require({d["id"]: d for d in agrees("w")} == wanted, "repair lost something else")
run("verify", "w", "--deep")
log = [name for name in os.listdir("w") if name.startswith("log-")]
flip(os.path.join("w", log[0]), 900)
run("verify", "w", code=1, says="w: " + log[0])
run("ls", "w", code=1, says="w: " + log[0])
shutil.rmtree("broken", ignore_errors=True)
shutil.copytree("copy", "broken")
newest = max(struct.unpack_from("<Q", tree("broken")["manifest"], 4096 * i + 32)[0] for i in range(2)) % 2
flip("broken/manifest", 4096 * (1 - newest) + 100)
run("ls", "broken")
run("verify", "broken", code=1, says="broken: manifest: one of its two slots")
run("repair", "broken")
run("verify", "broken", "--deep")
require(agrees("broken") == documents("copy"), "repair of a manifest")
print(checks, "checks")
END
