# doc/cli.md, the manual page and the completion know exactly the options that --help lists.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
complain() { echo "$1"; bad=1; }

options() { sed -n 's/^  \(-[a-z], \)\{0,1\}--\([a-z0-9-]*\).*/\2/p'; }

# section FILE START - the lines from the first that matches START to the next heading of cli.md that is no deeper.
section() { awk -v start="$2" '!on && $0 ~ start { on = 1; match($0, /^#+/); deep = RLENGTH; print; next }
                               on && /^#+ / { match($0, /^#+/); if (RLENGTH <= deep) exit } on { print }' "$1"; }

sed 's/\\-/-/g; s/\\f[A-Z]//g' "$root/doc/kna.1" >"$work/man"
common=$(section "$root/doc/cli.md" '^## What holds for all')
models=$(section "$root/doc/cli.md" '^## Commands with a model' | sed '/^### /,$d')
: >"$work/all"
commands=(attend grad fairness 'bench decode' 'bench prefill' 'bench attend' 'bench heads' 'bench paper')
words=(create add ls rm get stat verify repair compact export import search index recall bench)
commands+=("${words[@]/#/store }")
headings=('^## kna attend' '^## kna grad' '^## kna fairness' '^## kna bench decode' '^## kna bench decode' '^## kna bench decode' '^## kna bench heads' '^## kna bench paper')
headings+=("${words[@]/#/^### kna store }")
own=${#commands[@]} # those after them share a section
if "$KNA" --version | grep -q '^llama.cpp: yes'; then
    commands+=(generate ppl demo 'bench model' eval dump)
    headings+=('^### kna generate' '^### kna ppl' '^### kna demo' '^### kna bench model' '^### kna eval' '^### kna dump')
fi
for i in "${!commands[@]}"; do
    command=${commands[i]}
    # shellcheck disable=SC2086 # "bench decode" is two words
    "$KNA" $command --help | options >"$work/options"
    [ -s "$work/options" ] || complain "$command: no options found in its help"
    text=$(section "$root/doc/cli.md" "${headings[i]}")
    [ -n "$text" ] || complain "$command: no section in doc/cli.md"
    for option in $(grep -v '^help$' "$work/options"); do
        echo "$option" >>"$work/all"
        grep -qE -- "--$option([^a-z0-9-]|$)" <<<"$text" || { [ "$i" -ge "$own" ] && grep -qE -- "--$option([^a-z0-9-]|$)" <<<"$models"; } ||
            complain "$command: --$option is not in its section of doc/cli.md"
        grep -qE -- "--$option([^a-z0-9-]|$)" "$work/man" || complain "$command: --$option is not in doc/kna.1"
    done
    # Nothing may be documented that is not there: each option a section's table starts a row with.
    for option in $(grep -oE '^\| *`-[^|]*\|' <<<"$text" | grep -oE -- '--[a-z0-9-]+' | sed 's/^--//'); do
        grep -qx -- "$option" "$work/options" || complain "$command: doc/cli.md documents --$option, which is not there"
    done
done
if [ "${#commands[@]}" -gt "$own" ]; then
    for option in $(grep -oE -- '--[a-z0-9-]+' "$work/man" | sed 's/^--//' | sort -u); do
        grep -qx -- "$option" "$work/all" || case $option in help | version) ;; *) complain "doc/kna.1 documents --$option, which is not there" ;; esac
    done
fi
for code in 0 1 2; do grep -q "^| $code |" <<<"$common" || complain "exit code $code is not in doc/cli.md"; done
grep -qF "knnattn $("$KNA" --version | sed -n 's/^kna //p')" "$root/doc/kna.1" || complain "doc/kna.1 is of another version"
if command -v man >/dev/null; then
    man --warnings -l "$root/doc/kna.1" >/dev/null 2>"$work/warnings" || complain "doc/kna.1 cannot be formatted"
    [ ! -s "$work/warnings" ] || { cat "$work/warnings"; complain "doc/kna.1 has warnings"; }
fi

# Completion, as bash would ask for it.
source "$root/cli/kna.bash-completion"
completes() { # completes WANTED WORD.. - the last word is the one being completed
    local want=$1
    shift
    COMP_WORDS=("$KNA" "$@") COMP_CWORD=$#
    _kna
    [ "$(printf '%s\n' "${COMPREPLY[@]}" | sort | tr '\n' ' ')" = "$want " ] || complain "completing '$*': '${COMPREPLY[*]}', not '$want'"
}
cd "$work"
touch a.npy a.txt
mkdir b
completes 'attend' a
completes 'bench' b
completes 'eval' e
completes 'demo dump' d
completes 'off' eval --reference o
completes 'document' fairness --by d
completes 'decode' bench d
completes 'heads' bench h
completes 'b' bench heads --dump ''
completes '--causal --causal-shift' attend --caus
completes '--k --k-near --kv-type' attend --q a.npy --k
completes 'store' s
completes 'compact create' store c
completes 'search stat' store s
completes 'a.npy b' store search b ''
completes 'cosine' store index b --metric c
completes 'flat' store index b --kind f
completes 'b' store ls ''
completes 'a.npy b' store add b ''
completes '--uri-prefix' store ls b --uri
completes 'int8' store create b --type i
completes 'b' store import b --from ''
completes 'exact' attend --method e
completes 'knn' attend --method k
completes 'mmr' attend --diverse m
completes 'avx2 avx512 avx512vnni' bench decode --cpu a
completes 'a.npy b' attend --q ''
completes 'a.npy b' attend --out ''
completes 'b' dump --out ''
completes '' attend --threads ''
completes '' bench decode -n ''
completes '--layers' bench decode --causal --la
completes "$("$KNA" bench attend --help | options | sed 's/^/--/' | sort | tr '\n' ' ' | sed 's/ $//')" bench attend ''
exit $bad
