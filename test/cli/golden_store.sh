# The store of format 1 in test/golden, as doc/read_store.py and kna see it: what golden/store-1.jsonl says, rows by their SHA-256. UPDATE=1
# is for a store that was made anew, which those who have stores of format 1 will not be glad of.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
golden=$here/../golden/store-1
python=${KNA_PYTHON:-/usr/bin/python3}
"$python" -B "$KNA_SOURCE_DIR/doc/read_store.py" "$golden" --rows >"$work/seen"
[ -z "${UPDATE:-}" ] || cp "$work/seen" "$golden.jsonl"
diff -u "$golden.jsonl" "$work/seen"
[ "$(wc -l <"$work/seen")" -eq 4 ] || { echo "not four documents"; exit 1; }
"$KNA" store verify "$golden" --deep
"$KNA" store ls "$golden" --json >"$work/ls"
"$KNA" store export "$golden" --safetensors "$work/all"
"$python" -B - "$golden.jsonl" "$work/ls" "$work/all" <<'END'
import hashlib, json, struct, sys

wanted = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
seen = json.load(open(sys.argv[2], encoding="utf-8"))["documents"]
with open(sys.argv[3], "rb") as file:
    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    data = file.read()

def fail(what):
    sys.exit("failed: " + what)

if [d["id"] for d in seen] != [d["id"] for d in wanted]:
    fail("other documents")
places = dict.fromkeys(header, 0)
def take(name, rows):
    """The next rows of a tensor."""
    low, high = header[name]["data_offsets"]
    size = (high - low) // header[name]["shape"][0]
    low += places[name]
    places[name] += rows * size
    return data[low:low + rows * size]

hashes = 0
for have, want in zip(seen, wanted):
    for name in "id", "time_us", "tokens", "uri":
        if (have[name] or "") != (want[name] or ""):
            fail(f"{name}: {have}, not {want}")
    for name, part in want["rows"].items():
        if have["rows"][name] != {"first": part["first"], "rows": part["rows"]}:
            fail(f"rows of {name}: {have}")
        rows = take(name, part["rows"])
        if name + ".scale" in header:
            rows += bytes(-len(rows) % 64) + take(name + ".scale", part["rows"])
        hashes += 1
        if hashlib.sha256(rows).hexdigest() != part["sha256"]:
            fail(f"rows of {name}, document {want['id']}")
print(hashes, "parts")
if hashes < 10:
    fail("too few parts")
END
