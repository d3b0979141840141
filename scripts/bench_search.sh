#!/usr/bin/env bash
# Search in a store beside FAISS, hnswlib and USearch, on attention keys and hidden states of a model: tables, and the pictures of doc/bench.md.
#
#   bench_search.sh [keys|hidden]..      both unless said
#
# keys     head 0 of layer 8 of SmolLM2 (KV head 0), a head that finds things again: keys of 1,000,000 tokens, texts of 512 tokens read by
#          themselves, after rotation; 10,000 queries of other documents; the first 100,000 keys, and all (ROWS="100000 1000000")
# hidden   what the last feed-forward layer is given: 131,072 tokens (HIDDEN), 2,000 queries, 576 numbers
#
# The peers are Python packages, pinned in bench/search_peers.txt; pip gets them into the cache, once (hnswlib is compiled: a C++ compiler and
# Python's headers, apt-get install g++ python3-dev). Rows take the model a quarter of an hour on two cores, once: KEEP=DIR keeps them, the peers' indexes and
# the results there (default: the cache). THREADS=2, ROUNDS=3, BUILD=build, ONLY="FAISS,hnswlib" likewise.
set -euo pipefail
shopt -s inherit_errexit
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

[ $# -gt 0 ] || set -- keys hidden
for part in "$@"; do case $part in keys | hidden) ;; *) die "no part $part: keys or hidden" ;; esac; done
kna=${BUILD:-build}/kna
[ -x "$kna" ] || die "$kna is missing; build it with: make"
keep=${KEEP:-$cache/search}
threads=${THREADS:-2}
mkdir -p "$keep"

# peers - the folder of their packages. Installed whole or not at all.
peers() {
    local to tmp python
    python=$(pip_python)
    to=$cache/search-peers.$(sha256sum bench/search_peers.txt | cut -c1-12)
    if [ ! -d "$to" ]; then
        hold_lock search-peers
        tmp=$(mktemp -d "$cache/tmp.XXXXXX")
        say "getting FAISS, hnswlib and USearch"
        if ! { "$python" -m pip install -q --disable-pip-version-check --no-deps --only-binary :all: --require-hashes --target "$tmp/site" \
                    -r bench/search_peers.txt >&2 &&
                PYTHONPATH=$tmp/site "$python" -m pip install -q --disable-pip-version-check --no-deps --no-binary :all: --no-build-isolation --require-hashes \
                    --target "$tmp/hnswlib" -r bench/search_peers_built.txt >&2 && cp -r "$tmp"/hnswlib/. "$tmp/site"; }; then
            rm -rf "$tmp"
            die "the peers could not be installed. bench/search_peers.txt is for Python 3.11; hnswlib needs: apt-get install g++ python3-dev"
        fi
        rm -rf "$to"
        mv "$tmp/site" "$to"
        rm -rf "$tmp"
    fi
    echo "$to"
}

python() { PYTHONPATH=$peers "$(pip_python)" -B "$@"; }

# dump TO TEXT TOKENS OPTIONS.. - what `kna dump` takes of a text in windows of 512 tokens.
dump() {
    local to=$keep/$1 text=$keep/$2.txt tokens=$3
    [ ! -d "$to" ] || return 0
    say "reading $tokens tokens: $1"
    "$kna" dump -m "$model" -f "$text" -c "$tokens" --window 512 --threads "$threads" --out "$to.part" "${@:4}" >&2
    mv "$to.part" "$to"
}

# pick TO FROM HEAD COUNT [HALF]
pick() { [ -f "$keep/$1.npy" ] || python bench/search_data.py pick "$keep/$2" "$3" "$4" "$keep/$1.npy" "${@:5}"; }

measure() { # measure NAME TITLE ROWS QUERIES COUNT; the index of clusters is made with QUERIES.sample, of other documents
    python bench/search_peers.py --base "$keep/$3.npy" --queries "$keep/$4.npy" --sample "$keep/$4.sample.npy" --rows "$5" --kna "$kna" --keep "$keep/indexes" --out "$keep/results" \
        --name "$1" --title "$2" --threads "$threads" --rounds "${ROUNDS:-3}" --only "${ONLY:-}"
}

keys() {
    local rows list=(${ROWS:-100000 1000000}) most
    most=$(printf '%s\n' "${list[@]}" | sort -n | tail -1)
    dump "keys.$most" keys "$most" --layers 8 --take k
    dump queries queries 32768 --layers 8 --take q
    pick "rows.$most" "keys.$most/k.8.npy" 0 0
    pick queries queries/q.8.npy 0 10000 first
    pick queries.sample queries/q.8.npy 0 4096 last
    for rows in "${list[@]}"; do measure "keys.$rows" "keys" "rows.$most" queries "$rows"; done
}

hidden() {
    local most=${HIDDEN:-131072}
    dump "hidden.$most" keys "$most" --take h
    dump hidden-queries queries 32768 --take h
    pick "hidden-rows.$most" "hidden.$most/h.npy" - 0
    pick hidden-queries hidden-queries/h.npy - 2000 first
    pick hidden-queries.sample hidden-queries/h.npy - 4096 last
    measure "hidden.$most" "hidden states" "hidden-rows.$most" hidden-queries 0
}

peers=$(peers)
prepare_model
if [ ! -f "$keep/queries.txt" ]; then
    documents=$(scripts/fetch_document.sh)
    mkdir -p "$keep/texts.part"
    python bench/search_data.py texts "$documents" "$keep/texts.part"
    mv "$keep"/texts.part/*.txt "$keep"
    rmdir "$keep/texts.part"
fi
for part in "$@"; do "$part"; done
