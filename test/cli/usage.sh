# Help texts, versions, unknown commands and options, values out of range: output to the letter, exit codes as documented.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

try() {
    local code=0
    echo "\$ kna $*"
    "$KNA" "$@" >out 2>err || code=$?
    sed 's/^/out: /' out
    sed 's/^/err: /' err
    echo "exit $code"
}

{ # UPDATE=1 takes what is said now for what should be: look at the difference before committing it.
    try
    try --help
    try -h
    try attend --help
    try bench --help
    try bench decode --help
    try bench prefill -h
    try bench attend --help
    try bench heads --help
    try store --help
    try store
    try store frobnicate
    for word in create add ls rm get stat verify repair compact export import search index recall bench; do try store "$word" --help; done
    try store create
    try store create dir more
    try store create dir --dim 65537
    try store ls
    try store get dir
    try store get dir 1
    try store rm dir
    try store import dir
    try store export dir
    try store compact dir --share 1.5
    try store search dir
    try store search dir q.npy --k 0
    try store search dir q.npy --metric dot
    try store recall dir q.npy --samples 5
    try store index dir --kind tree
    try store add dir x.npy --batch 0
    try frobnicate
    try attend --frobnicate
    try attend --near 3
    try attend -z
    try attend --causal=1
    try attend --help=me
    try attend --out
    try attend stray.npy
    try attend
    try attend --q q --k k --v v
    try attend --out ''
    try attend --k-near 0
    try attend --k-near -5
    try attend --k-near 1e3
    try attend --k-near 99999999999999999999
    try attend --k-near ' 7'
    try attend --k-near ''
    try attend --near-sinks -1
    try attend --window 0
    try attend --eps 1.5
    try attend --eps nan
    try attend --eps 0x
    try attend --delta 1.5
    try attend --audit -0.1
    try attend --scale 0
    try attend --scale inf
    try attend --softcap -3
    try attend --causal-shift 2147483648
    try attend --threads 0
    try attend --threads 1025
    try attend --seed -1
    try attend --seed 18446744073709551616
    try attend --method nearest
    try attend --cpu sse
    try attend --kv-type f64
    try attend --q q --k k --v v --out same --lse same
    try attend --q q --k k --v v --out - --json
    try bench
    try bench everything
    try bench decode --n 1,two
    try bench decode --n ''
    try bench decode --n 1,,2
    try bench decode --n 0
    try bench decode --n 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33
    try bench decode --heads 9 --kv-heads 2
    try bench decode --type q8_0 --dim 40
    try bench decode --contenders exact,fastest
    try bench prefill -n 64 -m 65
    try bench decode --rounds 1002
    try bench heads
    try bench heads --dump d -m m
    try bench heads --dump d --k 2,1
} >got
[ -z "${UPDATE:-}" ] || cp got "$here/usage.expected"
diff -u "$here/usage.expected" got

# Not to the letter: what differs between machines and builds.
"$KNA" --version >version
version=$(sed -n 's/^#define KNA_VERSION_STRING "\(.*\)"/\1/p' "$here/../../include/kna.h")
head -n 2 version | diff - <(printf 'kna %s\nlibkna %s\n' "$version" "$version")
grep -Eq '^cpu levels: ref( avx2| avx512| avx512vnni| neon)*$' version
grep -Eq '^llama.cpp: (yes|no)$' version
case $(uname -m) in x86_64) absent=neon ;; *) absent=avx2 ;; esac
code=0
"$KNA" bench attend -n 8 --cpu $absent 2>err || code=$?
[ $code = 2 ] && echo "kna: --cpu: this machine or this build lacks $absent" | diff - err

# A command that the build lacks says so.
if grep -q '^llama.cpp: no' version; then
    for command in generate ppl demo eval 'bench model' dump; do
        code=0
        "$KNA" $command --help >out 2>err || code=$?
        [ $code = 2 ] && [ ! -s out ]
        echo "kna: $command: this build has no llama.cpp, which it needs (rebuild with -DLLAMA_SOURCE_DIR=DIR)" | diff - err
    done
fi
