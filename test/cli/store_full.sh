# kna store on a full disk, and beyond a limit on the size of files: said, with the file and what to do; what was committed is there; and the
# same command goes through when there is room. A small disk in memory, where one may be mounted; the limit anywhere.
set -eu
work=$(mktemp -d)
trap 'umount "$work/disk" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
mkdir disk
mounted=no
mount -t tmpfs -o size=3m kna-test disk 2>/dev/null && mounted=yes
"${KNA_PYTHON:-/usr/bin/python3}" -B - "$KNA" $mounted <<'END'
import json, os, resource, subprocess, sys
import numpy as np

kna, mounted = sys.argv[1], sys.argv[2] == "yes"
checks = 0

def require(condition, what):
    global checks
    checks += 1
    if not condition:
        sys.exit("failed: %s" % what)

def run(*words, code=0, says=(), limit=None):
    def limited():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = subprocess.run([kna, "store", *words], capture_output=True, text=True, preexec_fn=limited)
    require(done.returncode == code, f"{words}: exit {done.returncode}, not {code}: {done.stderr}")
    for word in says:
        require(word in done.stderr, f"{words}: '{done.stderr}' does not say '{word}'")
    return done.stdout

def uris(store):
    return [d["uri"] for d in json.loads(run("ls", store, "--json"))["documents"]]

def lines(name, rows, count, prefix):
    with open(name, "w") as file:
        for i in range(count):
            file.write(json.dumps({"uri": f"{prefix}{i}", "rows": rows}) + "\n")

few = np.arange(40 * 64, dtype=np.float32).reshape(40, 64)
many = np.random.default_rng(3).normal(size=(20000, 64)).astype(np.float32)  # 5 MB
np.save("few.npy", few)
np.save("many.npy", many)
lines("few.jsonl", 10, 4, "few/")
lines("many.jsonl", 500, 40, "many/")
add_few = "few.npy", "--meta", "few.jsonl"
add_many = "many.npy", "--meta", "many.jsonl"
first = [f"few/{i}" for i in range(4)]

def sound(store, wanted):
    require(uris(store) == wanted, f"{store}: {uris(store)}, not {wanted}")
    run("verify", store, "--deep")
    run("get", store, "few/2", "--out", "got.npy")
    require(np.array_equal(np.load("got.npy"), few[20:30]), f"{store}: other rows")

def fill(store, say, make_room, limit=None):
    run("create", store, "--dim", "64", "--type", "f32")
    run("add", store, *add_few)
    # All in one transaction: none of it.
    run("add", store, *add_many, code=1, says=(f"{store}: rows-", *say), limit=limit)
    sound(store, first)
    # A document at a time: those that were committed, in their order.
    run("add", store, *add_many, "--batch", "1", code=1, says=(f"{store}: ", *say), limit=limit)
    some = uris(store)
    require(0 < len(some) - 4 < 40 and some == first + [f"many/{i}" for i in range(len(some) - 4)], f"{some}")
    sound(store, some)
    make_room()
    run("rm", store, *some[4:])
    sound(store, first)
    run("add", store, *add_many)
    sound(store, first + [f"many/{i}" for i in range(40)])
    run("compact", store, "--share", "0")
    sound(store, first + [f"many/{i}" for i in range(40)])
    run("get", store, "many/39", "--out", "got.npy")
    require(np.array_equal(np.load("got.npy"), many[19500:]), "the last rows")

def grow():
    subprocess.run(["mount", "-o", "remount,size=64m", "disk"], check=True)

if mounted:
    fill("disk/s", ("No space left on device", "make room and try again"), grow)
    with open("disk/ballast", "wb") as file:
        file.write(bytes(1 << 20))
    subprocess.run(["mount", "-o", "remount,size=20m", "disk"], check=True)
    with open("disk/ballast", "ab", buffering=0) as file:  # to the last byte
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    run("create", "disk/none", "--dim", "3", "--type", "f32", code=1, says=("No space left on device",))
    run("ls", "disk/none", code=2, says=("not a store",)) if os.path.exists("disk/none") else None
    before = uris("disk/s")
    run("compact", "disk/s", "--share", "0", code=1, says=("disk/s: ", "make room and try again"))
    sound("disk/s", before)
    os.remove("disk/ballast")
    run("compact", "disk/s", "--share", "0")
    sound("disk/s", before)
fill("limited", ("File too large",), lambda: None, limit=3 << 20)
print(checks, "checks" if mounted else "checks; no disk could be mounted")
END
