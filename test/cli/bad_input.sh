# Every input kna attend must refuse: the message to the letter, exit code 2 (1 where a file cannot be read), and nothing written.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${KNA_PYTHON:-/usr/bin/python3}" -B - <<'END'
import numpy as np

random = np.random.default_rng(3)

def save(name, *shape, dtype=np.float32):
    array = random.normal(size=shape).astype(dtype)
    np.save(name, array)
    return array

def raw(name, data):
    open(name, "wb").write(data)

def header(text, version=(1, 0), data=b"", length=None):
    text = text.encode() + b"\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + size.to_bytes(2 if version[0] == 1 else 4, "little") + text + data

q = save("q.npy", 4, 3, 8)
k = save("k.npy", 2, 5, 8)
v = save("v.npy", 2, 5, 8)
whole = open("k.npy", "rb").read()
good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 5, 8), }"
data = whole[-320:]

# Files that are no arrays of ours.
raw("empty.npy", b"")
raw("short_magic.npy", b"\x93NUM")
raw("zip.npy", b"PK\x03\x04 not numpy at all")
raw("short_version.npy", whole[:7])
raw("version3.npy", header(good, (3, 0), data))
raw("version0.npy", b"\x93NUMPY\x00\x07" + whole[8:])
raw("short_length.npy", whole[:9])
raw("short_header.npy", whole[:40])
raw("long_header.npy", header(good, (2, 0), data, length=0x7FFFFFFF))
raw("no_brace.npy", header("hello", data=data))
raw("no_key.npy", header("{5: 6}", data=data))
raw("strange_key.npy", header(good.replace("descr", "describe"), data=data))
raw("twice.npy", header(good[:-1] + "'descr': '<f4'}", data=data))
raw("no_descr.npy", header("{'fortran_order': False, 'shape': (2, 5, 8)}", data=data))
raw("no_order.npy", header("{'descr': '<f4', 'shape': (2, 5, 8)}", data=data))
raw("no_shape.npy", header("{'descr': '<f4', 'fortran_order': False}", data=data))
raw("no_comma.npy", header(good.replace("'<f4',", "'<f4'"), data=data))
raw("unclosed.npy", header(good[:-3], data=data))
raw("after.npy", header(good + " 1", data=data))
raw("maybe_order.npy", header(good.replace("False", "None"), data=data))
raw("number_descr.npy", header(good.replace("'<f4'", "4"), data=data))
raw("shape_list.npy", header(good.replace("(2, 5, 8)", "[2, 5, 8]"), data=data))
raw("shape_number.npy", header(good.replace("(2, 5, 8)", "(80)"), data=data))
raw("shape_word.npy", header(good.replace("(2, 5, 8)", "(2, five, 8)"), data=data))
raw("shape_negative.npy", header(good.replace("(2, 5, 8)", "(2, -5, 8)"), data=data))
raw("shape_64_bits.npy", header(good.replace("(2, 5, 8)", "(2, 99999999999999999999, 8)"), data=data))
raw("shape_product.npy", header(good.replace("(2, 5, 8)", "(2147483647, 2147483647, 8)"), data=data))
raw("shape_rows.npy", header(good.replace("(2, 5, 8)", "(1, 2147483648, 0)")))
raw("rank9.npy", header(good.replace("(2, 5, 8)", "(1, 1, 1, 1, 1, 1, 2, 5, 8)"), data=data))
raw("truncated.npy", whole[:-1])
raw("no_data.npy", whole[:-320])
raw("trailing.npy", whole + b"\0")
np.save("fortran.npy", np.asfortranarray(k))
np.save("big_endian.npy", k.astype(">f4"))
np.save("double.npy", k.astype(np.float64))
np.save("int.npy", k.astype(np.int64))
np.save("bool.npy", k > 0)
np.save("complex.npy", k.astype(np.complex64))
np.save("struct.npy", np.zeros(3, [("a", "<f4")]))
np.save("text.npy", np.array(["abc"]))
np.save("object.npy", np.array([None]), allow_pickle=True)
np.save("scalar.npy", np.float32(3))
np.save("rank2.npy", k[0])
np.save("rank4.npy", k[None])

# Shapes that disagree or are out of range.
save("h3.npy", 3, 3, 8)
save("d7.npy", 2, 5, 7)
save("n6.npy", 2, 6, 8)
save("kv4.npy", 4, 5, 8)
save("q_h0.npy", 0, 3, 8)
save("q_m0.npy", 4, 0, 8)
save("q_d0.npy", 4, 3, 0)
save("q_d1025.npy", 1, 1, 1025)
save("q_h65537.npy", 65537, 1, 1)
save("k_h0.npy", 0, 5, 8)
save("v_dv0.npy", 2, 5, 0)
save("v_dv1025.npy", 2, 5, 1025)
save("mask_m.npy", 2, 5)
save("mask_n.npy", 3, 4)
save("mask_h.npy", 2, 3, 5)
save("mask_rank1.npy", 5)
save("heads3.npy", 3)
save("heads_f16.npy", 4, dtype=np.float16)

# NaN and infinity.
def spoil(name, array, place, value, dtype=np.float32):
    array = array.astype(dtype)
    array[place] = value
    np.save(name, array)

spoil("q_nan.npy", q, (2, 1, 3), np.nan)
spoil("k_inf.npy", k, (1, 4, 7), np.inf)
spoil("k_inf16.npy", k, (0, 2, 0), -np.inf, np.float16)
spoil("v_nan.npy", v, (0, 0, 0), np.nan)
spoil("k_large.npy", k, (1, 0, 2), 3e38)
spoil("k32_large.npy", random.normal(size=(2, 5, 32)), (1, 3, 30), -9e6)
save("q32.npy", 4, 3, 32)
np.save("q_large.npy", np.full((4, 3, 8), 50, np.float32))
spoil("mask_nan.npy", np.zeros((3, 5)), (1, 2), np.nan)
spoil("mask_inf.npy", np.zeros((4, 3, 5)), (3, 0, 4), np.inf)
spoil("slopes_inf.npy", np.zeros(4), 1, np.inf)
spoil("slopes_negative.npy", np.ones(4), 2, -0.5)
spoil("sinks_nan.npy", np.zeros(4), 3, np.nan)
END
ls >"$work.before"

try() {
    local code=0
    echo "\$ kna $*"
    "$KNA" "$@" 2>&1 || code=$?
    echo "exit $code"
}
attend() { # attend NAME=FILE.. [-- OPTIONS]: the good operands with some replaced
    local q=q.npy k=k.npy v=v.npy
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        case $1 in q=*) q=${1#*=} ;; k=*) k=${1#*=} ;; v=*) v=${1#*=} ;; esac
        shift
    done
    [ $# -eq 0 ] || shift
    try attend --q "$q" --k "$k" --v "$v" --out o.npy --lse l.npy --report r.json "$@"
}

{ # UPDATE=1 takes what is said now for what should be: look at the difference before committing it.
    for file in empty short_magic zip short_version version3 version0 short_length short_header long_header no_brace no_key strange_key twice \
        no_descr no_order no_shape no_comma unclosed after maybe_order number_descr shape_list shape_number shape_word shape_negative \
        shape_64_bits shape_product shape_rows rank9 truncated no_data trailing fortran big_endian double int bool complex struct text object \
        scalar rank2 rank4; do
        attend k=$file.npy
    done
    attend q=absent.npy
    attend v=.
    attend q=h3.npy
    attend k=d7.npy
    attend v=n6.npy
    attend v=kv4.npy
    for file in q_h0 q_m0 q_d0 q_d1025 q_h65537; do attend q=$file.npy; done
    attend k=k_h0.npy
    attend v=v_dv0.npy
    attend v=v_dv1025.npy
    for file in mask_m mask_n mask_h mask_rank1 mask_nan mask_inf; do attend -- --mask $file.npy; done
    for file in heads3 heads_f16 slopes_inf slopes_negative; do attend -- --slopes $file.npy; done
    for file in heads3 sinks_nan; do attend -- --sinks $file.npy; done
    attend q=q_nan.npy
    attend k=k_inf.npy
    attend k=k_inf16.npy
    attend v=v_nan.npy
    for method in topk knn; do attend k=k_inf.npy -- --method $method; done
    for type in f32 i8; do attend k=k_inf.npy -- --kv-type $type; done
    for type in f16 q8_0; do attend k=k_large.npy -- --kv-type $type; done
    attend q=q32.npy k=k32_large.npy -- --kv-type q8_0
    for method in exact topk knn; do attend q=q_large.npy k=k_large.npy -- --method $method; done
} >"$work.got"
[ -z "${UPDATE:-}" ] || cp "$work.got" "$here/bad_input.expected"
diff -u "$here/bad_input.expected" "$work.got"

# Not one of them wrote or left anything.
ls | diff "$work.before" -
rm "$work.before" "$work.got"
