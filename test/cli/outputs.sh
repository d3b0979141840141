# Outputs are whole or not there: full and missing places, closed standard output, links, pipes, several outputs, interruption.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${KNA_PYTHON:-/usr/bin/python3}" -B -c '
import numpy as np
random = np.random.default_rng(5)
for name, shape in (("q", (2, 3, 8)), ("k", (1, 9, 8)), ("v", (1, 9, 8))):
    np.save(name, random.normal(size=shape).astype(np.float32))
np.save("q_large", np.zeros((64, 64, 1024), np.float32))'
attend() { "$KNA" attend --q q.npy --k k.npy --v v.npy "$@"; }

# fails CODE MESSAGE COMMAND.. - exit code and message as said, and no file more or less than before.
fails() {
    local want=$1 message=$2 code=0
    shift 2
    ls -A >../before.$$
    "$@" 2>err || code=$?
    grep -v '^err$' ../before.$$ | diff - <(ls -A | grep -v '^err$') || { echo "$*: files differ"; exit 1; }
    rm ../before.$$
    echo "kna: $message" | diff - err || { echo "$*: message differs"; exit 1; }
    [ $code = "$want" ] || { echo "$*: exit $code"; exit 1; }
}

# What a good call writes, and that it says nothing.
attend --out o.npy --lse l.npy --report r.json >said 2>&1
[ ! -s said ]
"${KNA_PYTHON:-/usr/bin/python3}" -B -c '
import json, numpy as np
out, lse, report = np.load("o.npy"), np.load("l.npy"), json.load(open("r.json"))
assert out.shape == (2, 3, 8) and lse.shape == (2, 3) and out.dtype == lse.dtype == np.float32
assert open("o.npy", "rb").read(8) == b"\x93NUMPY\x01\x00" and len(open("o.npy", "rb").read()) == 128 + 192
names = set("method time_s keys_touched tail_mass certificate index_bytes scratch_bytes build_s rows rows_exact keys_seen keys_full error_est "
            "error_est_max audited audit_mean audit_mean_off audit_p95 audit_p95_low audit_p95_high audit_over radius radius_max by_means stale_rows h h_kv m n d dv kv_type cpu threads".split())
assert set(report) == names, set(report) ^ names
assert (report["h"], report["h_kv"], report["m"], report["n"], report["d"], report["dv"]) == (2, 1, 3, 9, 8, 8)
assert report["rows"] == report["rows_exact"] == 6 and report["keys_seen"] == report["keys_full"] == 54 and report["keys_touched"] == 1'
attend --out o2.npy --json >report
grep -q '"certificate":.*"exact"' report
cmp o.npy o2.npy

# The same numbers in other dress: format 2.0, other quotes, order and blanks in the header.
"${KNA_PYTHON:-/usr/bin/python3}" -B -c '
import numpy as np
k = np.load("k.npy")
with open("k2.npy", "wb") as file:
    np.lib.format.write_array(file, k, version=(2, 0))
header = b"""  {"shape":(1,9 , 8,),\t"fortran_order" : False\n,"descr":"<f4"}\n"""
open("k3.npy", "wb").write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + k.tobytes())
assert (np.load("k3.npy") == k).all()'
for k in k2 k3; do
    "$KNA" attend --q q.npy --k $k.npy --v v.npy --out o2.npy
    cmp o.npy o2.npy
done

# Places that cannot be written.
fails 1 "/dev/full: write failed: No space left on device" attend --out /dev/full
fails 1 "/dev/full: write failed: No space left on device" attend --out new.npy --lse /dev/full
fails 1 "cannot write JSON: No space left on device" attend --out new.npy --report /dev/full
fails 1 "absent/o.npy: cannot write: No such file or directory" attend --out absent/o.npy
mkdir folder
fails 1 "folder: cannot write: Is a directory" attend --out folder
fails 1 "folder: cannot write: Is a directory" attend --out new.npy --report folder
fails 1 "new.npy: write failed: File too large" bash -c 'ulimit -f 100; trap "" XFSZ; exec "$0" attend --q q_large.npy --k q_large.npy --v q_large.npy --out new.npy' "$KNA"

# Standard output: full, closed, a pipe, a file of an answer.
to() { local place=$1; shift; "$@" >"$place"; }
closed() { "$@" >&-; }
fails 1 "standard output: No space left on device" to /dev/full "$KNA" --help
fails 1 "standard output: No space left on device" to /dev/full "$KNA" --version
fails 1 "standard output: Bad file descriptor" closed "$KNA" attend --help
fails 1 "cannot write JSON: No space left on device" to /dev/full attend --out new.npy --json
fails 1 "cannot write JSON: Bad file descriptor" closed attend --out new.npy --json
fails 1 "-: write failed: No space left on device" to /dev/full attend --out -
fails 1 "-: write failed: Bad file descriptor" closed attend --out -
attend --out - | cmp - o.npy
attend --out /dev/stdout | cmp - o.npy
attend --out o3.npy --lse - | cmp - l.npy
cmp o.npy o3.npy

# Input from pipes, also cut short and too long.
"$KNA" attend --q <(cat q.npy) --k <(cat k.npy) --v <(cat v.npy) --out o4.npy
cmp o.npy o4.npy
mkfifo pipe
head -c 200 k.npy >pipe &
fails 2 "pipe: 72 bytes of data; shape (1, 9, 8) needs 288" "$KNA" attend --q q.npy --k pipe --v v.npy --out new.npy
cat k.npy k.npy >pipe &
fails 2 "pipe: more bytes follow the data" "$KNA" attend --q q.npy --k pipe --v v.npy --out new.npy
wait

# A link stays a link, a mode stays a mode, a new file gets the usual one; an input may be replaced by its output.
ln -s target.npy link.npy
echo old >target.npy
chmod 604 target.npy
attend --out link.npy
[ -L link.npy ] && cmp o.npy target.npy
[ "$(stat -c %a target.npy)" = 604 ]
(umask 027 && attend --out masked.npy)
[ "$(stat -c %a masked.npy)" = 640 ]
cp q.npy both.npy
"$KNA" attend --q both.npy --k k.npy --v v.npy --out both.npy
cmp o.npy both.npy

# Killed while outputs are under way (the second waits for a reader of the pipe): nothing is left, the old file is whole.
echo old >o5.npy
"$KNA" attend --q q.npy --k k.npy --v v.npy --out o5.npy --lse pipe &
child=$!
for _ in $(seq 100); do
    ls | grep -q '^o5.npy.kna-' && break
    sleep 0.1
done
ls | grep -q '^o5.npy.kna-'
kill -TERM $child
code=0
wait $child || code=$?
[ $code = 143 ] || { echo "killed, but exit $code"; exit 1; }
ls | grep '\.kna-' && exit 1
echo old | cmp - o5.npy
