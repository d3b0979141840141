# kna dump: shapes and types; exact causal attention of the files is softmax in double, and what attention inside the model
# returned; what cannot be dumped leaves nothing behind.
source "$(dirname "$0")/_prepare.sh"

head -c 9000 "$KNA_DOCUMENTS/filesystems/vfs.rst" >text.txt
dump() { "$KNA" dump -m "$model" -f text.txt $one "$@"; }

# More tokens than one step of a prefill, so that rows of several calls come together.
dump -c 600 --layers 17,0 --out f16 --with-output --json >dump.json
dump -c 600 --layers 17-17 --out f32 --type f32 >words.txt
for layer in 0 17; do
    "$KNA" attend --q f16/q.$layer.npy --k f16/k.$layer.npy --v f16/v.$layer.npy --causal --out attend.$layer.npy
done
holds "json" '[r["layer"] for r in a["layers"]] == [0, 17] and a["tokens"] == 600 and a["type"] == "f16"
    and all((r["h"], r["h_kv"], r["d"], r["dv"], r["scale"]) == (9, 3, 64, 64, 0.125) for r in a["layers"])' dump.json
checks=$((checks + 1))
[ "$(echo f16/* f32/*)" = "$(echo f16/{k,o,q,v}.{0,17}.npy f32/{k,q,v}.17.npy)" ] || fail "files: $(ls f16 f32)"
checks=$((checks + 1))
[ "$(cat words.txt)" = "layer 17  q (9, 600, 64) f32, k (3, 600, 64) f32, v (3, 600, 64) f32, scale 0.125" ] ||
    { fail "words"; cat words.txt; }

checks=$((checks + 1))
"$python" -B - <<'END' || fail "arrays"
import numpy as np

def softmax(q, k, v):
    k, v = (np.repeat(x.astype(np.float64), len(q) // len(k), axis=0) for x in (k, v))
    logits = q.astype(np.float64) @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2])
    rows, cells = logits.shape[1:]
    logits[:, np.arange(cells)[None, :] > np.arange(rows)[:, None]] = -np.inf
    weights = np.exp(logits - logits.max(2, keepdims=True))
    return weights @ v / weights.sum(2, keepdims=True)

def near(a, b, limit):
    error = np.linalg.norm(a - b, axis=2) / np.linalg.norm(b, axis=2)
    assert error.max() < limit, error.max()

for layer in 0, 17:
    q, k, v, o = (np.load(f"f16/{x}.{layer}.npy") for x in "qkvo")
    assert [x.dtype.str for x in (q, k, v, o)] == ["<f4", "<f2", "<f2", "<f4"]
    assert [x.shape for x in (q, k, v, o)] == [(9, 600, 64), (3, 600, 64), (3, 600, 64), (9, 600, 64)]
    assert all(np.isfinite(x).all() for x in (q, k, v, o))
    near(o, softmax(q, k, v), 1e-4)
    near(np.load(f"attend.{layer}.npy"), softmax(q, k, v), 1e-4)

# Layer 0 only knows the token itself: where one comes again its value is the same, its key is the same turned further.
k, v = np.load("f16/k.0.npy").astype(float), np.load("f16/v.0.npy").astype(float)
same = [(i, j) for i in range(64) for j in range(i + 1, 64) if (v[:, i] == v[:, j]).all()]
assert same and all((k[:, i] != k[:, j]).any() for i, j in same)
assert all(np.allclose(np.linalg.norm(k[:, i], axis=1), np.linalg.norm(k[:, j], axis=1), rtol=1e-2) for i, j in same)

for name in "kv":
    whole, half = np.load(f"f32/{name}.17.npy"), np.load(f"f16/{name}.17.npy")
    assert whole.dtype.str == "<f4" and (whole == half).all()
END

# Texts of a window each are read by themselves, side by side or one after the other: what attention returned is softmax over the text alone, and
# a text is given what it would be given as the only one. Of 2,000 words of one token each; seven texts of 96 and one of 28; two of 520 and one of 60.
"$python" -B - <<'END'
import random
words = "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you were".split()
random.seed(1)
open("words.txt", "w").write(" " + " ".join(random.choice(words) for _ in range(2000)))
for n in 96, 520:
    text = open("words.txt").read().split(" ")[1:]
    for i in range(3):
        open(f"words.{n}.{i}.txt", "w").write(" " + " ".join(text[i * n:(i + 1) * n]))
END
checks=$((checks + 1))
"$KNA" dump -m "$model" -f words.txt $one -c 700 --window 96 --layers 0,17,29 --take qkvoh --out by96 --json >by96.json
"$KNA" dump -m "$model" -f words.txt $one -c 1100 --window 520 --layers 0,17 --take kvho --with-output --out by520 >/dev/null
for i in 0 1 2; do
    "$KNA" dump -m "$model" -f words.96.$i.txt $one -c 96 --layers 17 --take qkvh --out alone96.$i >/dev/null
    "$KNA" dump -m "$model" -f words.520.$i.txt $one -c $((i < 2 ? 520 : 60)) --layers 17 --take h --out alone520.$i >/dev/null
done
[ "$(echo by96/* alone520.0/*)" = "$(echo by96/{h,{k,o,q,v}.{0,17,29}}.npy alone520.0/h.npy)" ] || fail "files of windows: $(ls by96 alone520.0)"
holds "json of windows" 'a["window"] == 96 and a["take"] == "qkvoh" and a["hidden"] == {"rows": 700, "dim": 576}' by96.json
checks=$((checks + 1))
"$python" -B - <<'END' || fail "windows"
import numpy as np

def near(a, b, limit):
    error = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)
    assert error.max() < limit, error.max()

# Sums in another order, and the model's own 8-bit activations make percents of that. A text that saw another is off by half.
def alike(a, b):
    error = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)
    assert error.mean() < 0.03 and error.max() < 0.3, (error.mean(), error.max())

def softmax(q, k, v):
    k, v = (np.repeat(x.astype(np.float64), len(q) // len(k), axis=0) for x in (k, v))
    logits = q.astype(np.float64) @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2])
    rows, cells = logits.shape[1:]
    logits[:, np.arange(cells)[None, :] > np.arange(rows)[:, None]] = -np.inf
    weights = np.exp(logits - logits.max(2, keepdims=True))
    return weights @ v / weights.sum(2, keepdims=True)

for layer in 0, 17, 29:
    q, k, v, o = (np.load(f"by96/{x}.{layer}.npy") for x in "qkvo")
    assert q.shape == (9, 700, 64) and k.shape == v.shape == (3, 700, 64)
    for at in range(0, 700, 96):
        some = slice(at, at + 96)
        near(o[:, some], softmax(q[:, some], k[:, some], v[:, some]), 1e-4)
for i in range(3):
    for letter, axis in ("q", 1), ("k", 1), ("v", 1), ("h", 0):
        name = letter if letter == "h" else letter + ".17"
        part = np.take(np.load(f"by96/{name}.npy"), range(96 * i, 96 * i + 96), axis).astype(float)
        alike(part, np.load(f"alone96.{i}/{name}.npy").astype(float))
    end = min(520 * i + 520, 1100)
    alike(np.load("by520/h.npy")[520 * i:end], np.load(f"alone520.{i}/h.npy"))
# The first layer knows the word and its place in the text.
k, v = np.load("by96/k.0.npy").astype(float), np.load("by96/v.0.npy").astype(float)
place = np.arange(700) % 96
same = [(i, j) for i in range(96) for j in range(96, 700) if (v[:, i] == v[:, j]).all()]
assert any(place[i] == place[j] for i, j in same) and any(place[i] != place[j] for i, j in same)
assert all((k[:, i] == k[:, j]).all() == (place[i] == place[j]) for i, j in same)
END

# kna bench heads measures the same straight from the model as from what was dumped.
heads="bench heads --layers 0,17 --late 40 --k 16,64 --rounds 0 --json $one"
"$KNA" $heads --dump f16 >files.json
"$KNA" $heads -m "$model" -f text.txt -c 600 >model.json
holds "bench heads" 'a == b and len(a["layers"]) == 2 and a["n"] == 600' files.json model.json

# A second run over the same folder replaces; a run that is refused or fails leaves no folder.
dump -c 4 --layers 29 --out f32 >/dev/null
checks=$((checks + 1))
[ "$("$python" -c 'import numpy; print(numpy.load("f32/k.29.npy").shape)')" = "(3, 4, 64)" ] || fail "second run"
refuses 2 "--layers: 30, but the model has layers 0..29" dump --layers 3,28-30 --out none
for list in x 3, ,3 3-1 3- -3 '3 4' 1e3 99999999999999999999; do
    refuses 2 "--layers: " dump --layers "$list" --out none
done
refuses 2 "text.txt: " dump -c 100000 --out none
refuses 2 "--out" dump
refuses 2 "--take: 'x' is none of q, k, v, o and h" dump --take kx --out none
refuses 2 "--window" dump --window -1 --out none
refuses 2 "--type" dump --type q8_0 --out none
refuses 1 "absent/none: cannot write: No such file" dump -c 4 --out absent/none
refuses 1 "text.txt: not a folder" dump -c 4 --out text.txt
if [ -z "${KNA_SANITIZE:-}" ]; then
    refuses 1 "write failed: File too large" \
        bash -c "ulimit -f 20; trap '' XFSZ; exec $KNA dump -m $model -f text.txt $one -c 64 --layers 0 --out none"
fi
checks=$((checks + 1))
[ ! -e none ] || fail "something was left behind: $(ls none)"
if mkdir small 2>/dev/null && mount -t tmpfs -o size=64k none small 2>/dev/null; then
    refuses 1 "q.0.npy: write failed: No space left on device" dump -c 64 --layers 0 --out small
    checks=$((checks + 1))
    [ -z "$(ls -A small)" ] || fail "left on a full disk: $(ls -A small)"
    umount small
fi
finish 28 # three fewer under a sanitizer or where nothing can be mounted
