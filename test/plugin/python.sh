# The Python package llama-cpp-python, unmodified, with the libraries of llama.cpp built here: its own ctypes bindings load the plugin.
# Two models at once in one process, generation, streaming, a state saved and loaded. In exact mode and with every key among the
# neighbours the texts are those without the plugin; the report says that attention went through it.
set -eu
. "$(dirname "$0")/_common.sh"

skip() { echo "skipped: $*"; exit 77; }
[ -n "${KNA_LLAMA_PYTHON:-}" ] || skip "a source tree of llama.cpp was given; the bindings fit the pinned release"
[ -d "$KNA_LLAMA_PYTHON/llama_cpp" ] || skip "$KNA_LLAMA_PYTHON is not there (scripts/fetch_llama.sh --python)"
for package in numpy jinja2 diskcache typing_extensions; do
    "$python" -c "import $package" 2>/dev/null || skip "$python has no $package (scripts/setup.sh test)"
done

cat >"$tmp/program.py" <<'END'
import sys
import llama_cpp

model, text = sys.argv[1], open(sys.argv[2]).read()
other = "A baker in Lisbon counted forty loaves before sunrise and sold the rest. " * 4 + "A baker in Lisbon counted"

def load():
    return llama_cpp.Llama(model, n_ctx=1024, n_threads=2, n_threads_batch=2, n_batch=256, flash_attn=True, verbose=False)

def say(what, answer):
    print(f"{what}: {answer['choices'][0]['text']!r}")

first, second = load(), load()
say("first", first(text, max_tokens=20, temperature=0))
say("second", second(text * 2, max_tokens=12, temperature=0)) # its own cache, the first one's is still there
state = first.save_state()
say("other text", first(other, max_tokens=10, temperature=0))
first.load_state(state)
stream = first(text + " harbour at seven", max_tokens=12, temperature=0, stream=True) # most of it is in the cache
print("after loading:", repr("".join(part["choices"][0]["text"] for part in stream)))
second.close()
say("first again", first(text, max_tokens=20, temperature=0))
END
ferry 5 >"$tmp/text"
printf 'The ferry left the' >>"$tmp/text"

# with "NAME=VALUE .." - the program under these settings; none: without the plugin. As a library, llama.cpp looks for the CPU's own
# backends in the current folder.
with() {
    (
        cd "$KNA_LLAMA_LIBRARIES"
        # shellcheck disable=SC2046,SC2086 # one word per setting
        exec env ${KNA_PRELOAD:+LD_PRELOAD="$KNA_PRELOAD" ASAN_OPTIONS=detect_leaks=0} PYTHONPATH="$KNA_LLAMA_PYTHON" \
            PYTHONDONTWRITEBYTECODE=1 LLAMA_CPP_LIB_PATH="$KNA_LLAMA_LIBRARIES" \
            ${1:+GGML_BACKEND_PATH="$KNA_PLUGIN" $(printf 'KNNATTN_%s ' $1)} "$python" "$tmp/program.py" "$KNA_MODEL" "$tmp/text"
    ) 2>"$tmp/err"
}

# knows FILE - each of the five continuations is the one that only the cache can tell.
knows() {
    [ "$(grep -cE "^(first|second|first again): ' harbour at seven in the morning with twelve passengers" "$1")" = 3 ] &&
        grep -q "^other text: ' forty loaves before sunrise" "$1" &&
        grep -q "^after loading: ' in the morning with twelve passengers" "$1"
}

with "" >"$tmp/want" || complain "without the plugin: $(tail -5 "$tmp/err")"
cat "$tmp/want"
knows "$tmp/want" || complain "llama.cpp itself does not continue the texts"

# went_through CONDITION - of the report r: what must hold.
went_through() {
    "$python" - "$tmp/report" "$1" <<'END' || bad=1
import json, sys
r = json.load(open(sys.argv[1]))
print({name: r[name] for name in ("calls", "rows", "rows_exact", "keys_seen", "keys_full", "rows_indexed", "stale_events", "fallbacks")})
layers = [layer["layer"] for layer in r["layers"]]
if layers != list(range(30)) or r["calls"] % 30 or not r["calls"] > 30 * 60: sys.exit(f"FAIL: {r['calls']} calls in layers {layers}")
if not r["rows"] > 30 * 9 * 800: sys.exit(f"FAIL: {r['rows']} rows: not all attention went through the plugin")
if r["stale_events"] or r["fallbacks"]: sys.exit("FAIL: the cache changed without the index being told, or memory was short")
if not eval(sys.argv[2]): sys.exit(f"FAIL: not so: {sys.argv[2]}")
END
}

same() {
    rm -f "$tmp/report"
    with "$1 REPORT=$tmp/report" >"$tmp/got" || complain "$1: failed: $(tail -5 "$tmp/err")"
    diff "$tmp/want" "$tmp/got" || complain "$1: other texts than without the plugin"
    went_through "$2"
}

same "METHOD=exact" "r['keys_full'] == r['keys_seen'] and r['rows_exact'] == r['rows'] and r['rows_indexed'] == 0"
same "METHOD=knn K=100000 EXACT_BELOW=0" "r['keys_full'] == r['keys_seen'] and r['rows_indexed'] > 0"

with "METHOD=knn K=16 EXACT_BELOW=0 REPORT=$tmp/report" >"$tmp/got" || complain "knn: failed: $(tail -5 "$tmp/err")"
knows "$tmp/got" || complain "knn lost the thread: $(cat "$tmp/got")"
went_through "r['keys_full'] < 0.95 * r['keys_seen'] and r['rows_indexed'] > 0"
exit $bad
