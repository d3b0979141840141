#!/usr/bin/env bash
# The tables of doc/heads.md, as Markdown: what the operators do on what attention is given inside a model.
#
#   bench_heads.sh [tables|growth|gemma]..      all unless said
#
# tables   SmolLM2, seven layers, 4,096 and 8,192 tokens of three texts
# growth   the same layers, 4,096 to 32,768 tokens of one text: keys and bytes that an equal error takes
# gemma    Gemma 3 270M, its three layers of full attention (it is fetched, see fetch_model.sh)
#
# Texts: kernel (the kernel's documentation, fetched), bible (what `bible` of Debian's package bible-kjv prints), plays (the file PLAYS;
# left out where that is not set). TEXTS="kernel bible" chooses. LENGTHS="4096 8192", GROWTH="4096 8192 16384 32768", LATE (queries, of growth) and K,
# GROWTH_K (lists for --k) likewise. KEEP=DIR keeps operands and reports there, and uses those it finds. Errors do not depend on what else the
# machine does: a quarter of an hour on two free cores.
set -euo pipefail
shopt -s inherit_errexit
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

[ $# -gt 0 ] || set -- tables growth gemma
for part in "$@"; do case $part in tables | growth | gemma) ;; *) die "no part $part: tables, growth or gemma" ;; esac; done
kna=${BUILD:-build}/kna
[ -x "$kna" ] || die "$kna is missing; build it with: make"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
keep=${KEEP:-$tmp}
mkdir -p "$keep"
export OMP_WAIT_POLICY=passive
threads=(--threads "${THREADS:-2}")
layers=0,3,8,14,20,26,29

# text_of NAME - the path of a text.
text_of() {
    local documents
    case $1 in
        kernel | kernel-long)
            documents=$(scripts/fetch_document.sh)
            if [ "$1" = kernel ]; then cat "$documents"/{admin-guide/mm,process}/*.rst; else
                cat "$documents"/{admin-guide/mm,process,filesystems,core-api,scheduler,networking}/*.rst; fi >"$tmp/$1" ;;
        bible)
            command -v bible >/dev/null || die "the text bible comes from Debian's package bible-kjv: apt-get install bible-kjv"
            bible -f ge1:1-re22:21 </dev/null >"$tmp/$1" ;;
        plays)
            [ -f "${PLAYS:-}" ] || die "the text plays: set PLAYS to a file that holds it"
            cp "$PLAYS" "$tmp/$1" ;;
        *) die "no text $1: kernel, bible or plays" ;;
    esac
    echo "$tmp/$1"
}

# operands NAME TEXT MODEL LAYERS TOKENS - their folder.
operands() {
    local to=$keep/operands.$1.$5 text
    if [ ! -d "$to" ]; then
        text=$(text_of "$2")
        say "$1: reading $5 tokens"
        "$kna" dump -m "$3" -f "$text" -c "$5" --layers "$4" --out "$to.part" "${threads[@]}" >&2
        mv "$to.part" "$to"
    fi
    echo "$to"
}

# report_of NAME TOKENS FOLDER K [OPTIONS] - the file. The beginning of a longer text is a shorter one.
report_of() {
    local to=$keep/$1.$2.json
    if [ ! -f "$to" ]; then
        say "$1: errors at $2 tokens"
        "$kna" bench heads --dump "$3" -c "$2" --k "$4" --rounds 0 --json "${threads[@]}" "${@:5}" >"$to.part"
        mv "$to.part" "$to"
    fi
    echo "$to"
}

longest() { printf '%s\n' "$@" | sort -n | tail -1; }

tables() {
    local text tokens folder report reports=() lengths=(${LENGTHS:-4096 8192})
    for text in ${TEXTS:-kernel ${PLAYS:+plays} bible}; do
        folder=$(operands "$text" "$text" "$model" "$layers" "$(longest "${lengths[@]}")")
        for tokens in "${lengths[@]}"; do
            report=$(report_of "$text" "$tokens" "$folder" "${K:-64,128,256,384,512,1024}")
            reports+=("$report")
        done
    done
    python3 scripts/heads_tables.py tables "${reports[@]}"
}

growth() {
    local tokens folder report reports=() lengths=(${GROWTH:-4096 8192 16384 32768})
    folder=$(operands kernel-long kernel-long "$model" "$layers" "$(longest "${lengths[@]}")")
    for tokens in "${lengths[@]}"; do
        report=$(report_of kernel-long "$tokens" "$folder" "${GROWTH_K:-16,32,64,128,256,512,1024}" --late "${LATE:-64}")
        reports+=("$report")
    done
    python3 scripts/heads_tables.py growth "${reports[@]}"
}

gemma() {
    local tokens folder gemma report reports=() lengths=(${LENGTHS:-4096 8192})
    gemma=$(scripts/fetch_model.sh gemma3)
    folder=$(operands gemma kernel "$gemma" 5,11,17 "$(longest "${lengths[@]}")")
    # Its queries come to attention scaled.
    for tokens in "${lengths[@]}"; do
        report=$(report_of gemma "$tokens" "$folder" "${K:-64,128,256,384,512,1024}" --scale 1)
        reports+=("$report")
    done
    python3 scripts/heads_tables.py few "${reports[@]}"
}

prepare_model
for part in "$@"; do "$part"; done
