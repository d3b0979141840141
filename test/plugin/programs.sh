# The plugin in the programs of llama.cpp, unmodified: each runs through it, with flash attention asked for or left to the
# program; the report it leaves is valid and its layers add up to its totals.
set -eu
. "$(dirname "$0")/_common.sh"
ferry 10 >"$tmp/text"
ferry 24 >"$tmp/long" # two windows, as llama-perplexity demands

# adds_up FILE: prints nothing when the report holds together.
adds_up() {
    "$python" - "$1" <<'END'
import json, sys
r = json.load(open(sys.argv[1]))
for name in "calls calls_exact rows rows_exact keys_seen keys_full audited rows_indexed stale_events fallbacks".split():
    total = sum(layer[name] for layer in r["layers"])
    if total != r[name]: print(f"{name}: {r[name]}, its layers {total}")
for name in "time_s index_s".split():
    if abs(sum(layer[name] for layer in r["layers"]) - r[name]) > 1e-6 * r[name] + 1e-9: print(f"{name} does not add up")
if [layer["layer"] for layer in r["layers"]] != list(range(30)): print("not 30 layers")
if not r["calls"] > 0 or r["calls"] % 30: print(f"{r['calls']} calls")
if not 0 < r["keys_full"] <= r["keys_seen"]: print("keys_full outside 0 .. keys_seen")
if not r["rows_exact"] <= r["rows"]: print("rows_exact above rows")
if r["stale_events"] or r["stale_rows"] or r["fallbacks"]: print("stale or fallbacks")
if r["settings"]["method"] == "knn":
    if not 0 < r["tail_mass"] < 1: print(f"tail mass {r['tail_mass']}")
    if not 0 < r["audited"] < r["rows"]: print(f"{r['audited']} audited of {r['rows']}")
    if not 0 < r["audit_mean"] <= r["audit_p95"] * 1.5 < 1: print(f"audit {r['audit_mean']} {r['audit_p95']}")
    if not r["keys_full"] < r["keys_seen"] or not r["index_bytes"] > 0: print("no index at work")
    if r["rows_indexed"] != 30 * r["layers"][0]["rows_indexed"]: print("layers were not indexed alike")
else:
    if r["keys_full"] != r["keys_seen"] or r["tail_mass"] != 0 or r["index_bytes"] != 0: print("exact is not exact")
    if r["audit_mean"] is not None: print("an audit nobody asked for")
END
}

# runs "SETTINGS" PROGRAM ARGS..
runs() {
    local settings=$1 message
    shift
    rm -f "$tmp/report"
    if ! plugin "$settings REPORT=$tmp/report SUMMARY=1" "$@" >"$tmp/out" 2>&1 </dev/null; then
        complain "$* under $settings failed: $(tail -5 "$tmp/out")"
        return
    fi
    grep -q '^knnattn: .* calls, ' "$tmp/out" || complain "$* under $settings: no summary"
    message=$(adds_up "$tmp/report") || message="the report is not valid JSON"
    [ -z "$message" ] || complain "$* under $settings: $message"
}

# The second half-thousand of tokens is the first that finds clusters.
near="METHOD=knn K=16 EXACT_BELOW=0 AUDIT=0.05"
for settings in "METHOD=exact" "$near"; do
    tokens=640
    [ "$settings" = "$near" ] || tokens=128
    runs "$settings" llama-bench -m "$KNA_MODEL" -t 2 -p $tokens -n 4 -r 1 -fa 1
    runs "$settings" llama-perplexity -m "$KNA_MODEL" -t 2 -c $tokens --chunks 1 -f "$tmp/long" -fa on
    # "-fa auto" is the default: it must keep flash attention.
    runs "$settings" llama-completion -m "$KNA_MODEL" -t 2 -c 768 -n 4 -no-cnv -f "$tmp/text" --temp 0
done

# All graphs of one shape: batches of one token.
runs "METHOD=exact" llama-perplexity -m "$KNA_MODEL" -t 2 -c 32 -b 32 -ub 1 --chunks 1 -f "$tmp/text" -fa on

# Without flash attention the plugin has nothing to do and does not get in the way.
plugin "SUMMARY=1" llama-bench -m "$KNA_MODEL" -t 2 -p 16 -n 2 -r 1 -fa 0 >"$tmp/out" 2>&1 || complain "llama-bench -fa 0 failed"
grep -q '^knnattn: .* 0 calls' "$tmp/out" || complain "-fa 0: calls were made"
exit $bad
