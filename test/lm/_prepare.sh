# Sourced by the tests of this folder: a scratch folder to work in, and what they share. Without model or document: skipped.
set -eu
[ -n "${KNA_MODEL:-}" ] && [ -f "$KNA_MODEL" ] || { echo "no model: skipped"; exit 77; }
[ -n "${KNA_DOCUMENTS:-}" ] && [ -d "$KNA_DOCUMENTS" ] || { echo "no documents: skipped"; exit 77; }
[ -n "${KNA_LLAMA:-}" ] || { echo "no llama.cpp: skipped"; exit 77; }
# llama.cpp's own leaks are not ours to report.
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0
model=$KNA_MODEL
python=${KNA_PYTHON:-/usr/bin/python3}
PYTHONPATH=$(cd "$(dirname "$0")" && pwd) # page.py
export PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
failures=0 checks=0
one="--threads 1" # tests run beside others: two threads that meet at every operation would wait for each other's turn

fail() { failures=$((failures + 1)); printf 'FAIL %s\n' "$*"; }

# holds NAME EXPRESSION [FILE..] - a Python expression over the JSON files, as a, b, c.
holds() {
    local name=$1 expression=$2
    shift 2
    checks=$((checks + 1))
    "$python" -B -c 'import json, math, sys
a, b, c = ([json.load(open(f)) for f in sys.argv[2:]] + [None] * 3)[:3]
sys.exit(0 if eval("(" + sys.argv[1] + ")") else 1)' "$expression" "$@" || { fail "$name: $expression"; head -c 2000 "$@"; }
}

# refuses CODE TEXT COMMAND.. - the command ends with CODE, its message holds TEXT, standard output stays empty.
refuses() {
    local code=$1 text=$2 got=0
    shift 2
    checks=$((checks + 1))
    "$@" >out 2>err </dev/null || got=$?
    [ "$got" = "$code" ] || fail "exit code $got, not $code: $*: $(cat err)"
    grep -qF -- "$text" err || fail "message lacks '$text': $*: $(cat err)"
    [ ! -s out ] || fail "standard output of a refused command: $*"
}

finish() {
    echo "$checks checks, $failures failed"
    [ "$failures" = 0 ] && [ "$checks" -ge "$1" ]
}
