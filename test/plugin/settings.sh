# Settings from the environment: a wrong or unknown one is named with what is permitted, and the plugin is not loaded.
set -eu
. "$(dirname "$0")/_common.sh"

# Which devices a program sees tells whether the plugin was loaded.
devices() { plugin "$1" llama-bench --list-devices >"$tmp/out" 2>&1 || true; }

loads() {
    devices "$1"
    if grep -q "not loaded" "$tmp/out" || ! grep -q "loaded KNNATTN" "$tmp/out"; then complain "$1 is not taken: $(cat "$tmp/out")"; fi
}

refuses() {
    devices "$1"
    grep -qF "knnattn: $2" "$tmp/out" || complain "$1: no message \"$2\" in: $(cat "$tmp/out")"
    grep -q "the plugin is not loaded" "$tmp/out" || complain "$1: it does not say that the plugin is not loaded"
    if grep -q "loaded KNNATTN" "$tmp/out"; then complain "$1: loaded all the same"; fi
    [ "$(grep -c '^knnattn:' "$tmp/out")" = 1 ] || complain "$1: more than one message"
}

loads ""
loads "METHOD=off"
loads "METHOD=exact"
loads "METHOD=topk K=1"
loads "METHOD=knn K=256 EPS=0.05 SINKS=0 WINDOW=0 EXACT_BELOW=0 FULL_EVERY=3 INDEX_KIB=9000 AUDIT=0.01 CPU=ref THREADS=2 SUMMARY=1 REPORT=$tmp/r.json"
[ -s "$tmp/r.json" ] || complain "no report at exit"
refuses "METHOD=fast" "KNNATTN_METHOD=fast: must be one of off, exact, topk, knn"
refuses "K=0" "KNNATTN_K=0: must be a whole number from 1 to 2147483647"
refuses "K=1e3" "KNNATTN_K=1e3: must be a whole number from 1 to 2147483647"
refuses "EPS=2" "KNNATTN_EPS=2: must be a number from 0 to below 1"
refuses "SINKS=-4" "KNNATTN_SINKS=-4: must be a whole number from 0 to 2147483647"
refuses "FULL_EVERY=0" "KNNATTN_FULL_EVERY=0: must be a whole number from 1 to"
refuses "INDEX_KIB=1G" "KNNATTN_INDEX_KIB=1G: must be a whole number from 0 (no limit)"
refuses "AUDIT=often" "KNNATTN_AUDIT=often: must be a number from 0 to 1"
refuses "CPU=abacus" "KNNATTN_CPU=abacus: must be one of best, ref"
refuses "THREADS=5000" "KNNATTN_THREADS=5000: must be a whole number from 0"
refuses "SUMMARY=yes" "KNNATTN_SUMMARY=yes: must be 0 or 1"
refuses "REPORT=$tmp/nowhere/r.json" "KNNATTN_REPORT=$tmp/nowhere/r.json: must be a file that can be written"
refuses "REPORT=" "KNNATTN_REPORT=: must be a file that can be written"
refuses "KNEAR=64" "KNNATTN_KNEAR: no such setting; there are KNNATTN_METHOD, KNNATTN_K, KNNATTN_EPS"
refuses "SLOT=1" "KNNATTN_SLOT: no such setting"
refuses "METHOD=" "KNNATTN_METHOD=: must be one of off, exact, topk, knn"

# The program itself goes on without the plugin.
plugin "METHOD=fast" llama-completion -m "$KNA_MODEL" -t 2 -n 1 -c 64 -no-cnv -p "One two three" >"$tmp/out" 2>&1 </dev/null || complain "a refused setting stops the program"
exit $bad
