# Shared by the scripts here: messages (on stderr, so that stdout carries only a script's answer), the cache, pinned downloads,
# what a run with a model needs.
# Meant to be sourced by bash under `set -euo pipefail`.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/knnattn

say() { printf '%s\n' "$*" >&2; }
die() { printf 'knnattn: %s\n' "$*" >&2; exit 1; }

# hold_lock NAME - one at a time: the lock is held until this process ends. Long-lived children should close descriptor 9.
hold_lock() {
    mkdir -p "$cache"
    exec 9>"$cache/$1.lock"
    flock -n 9 || { say "waiting for another run to finish ($cache/$1.lock)"; flock 9; }
}

# sha256_is FILE SUM
sha256_is() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]; }

# The first python3 that has pip.
pip_python() {
    local python
    for python in python3 /usr/bin/python3; do
        if "$python" -m pip --version >/dev/null 2>&1; then echo "$python"; return; fi
    done
    die "pip for python3 is missing; install it with: apt-get install python3-pip"
}

# pip_fetch FILE SUM REQUIREMENT KIND - a pinned file of a Python package, downloaded by pip as the user has configured it.
# KIND is sdist or wheel. What is already there is verified; what does not match is refused and fetched again, once.
pip_fetch() {
    local file=$cache/dl/$1 sum=$2 requirement=$3 kind=$4 python tmp try
    if sha256_is "$file" "$sum"; then echo "$file"; return; fi
    if [ -f "$file" ]; then say "refused: $file does not have SHA-256 $sum; fetching it again"; rm -f "$file"; fi
    python=$(pip_python)
    mkdir -p "$cache/dl"
    for try in 1 2; do
        tmp=$(mktemp -d "$cache/dl/tmp.XXXXXX")
        printf '%s --hash=sha256:%s\n' "$requirement" "$sum" >"$tmp/requirements.txt"
        local how=(--only-binary :all:)
        [ "$kind" = wheel ] || how=(--no-binary "${requirement%%=*}")
        say "downloading $requirement ($kind)"
        if "$python" -m pip download --disable-pip-version-check --progress-bar off --no-deps --require-hashes "${how[@]}" \
                -r "$tmp/requirements.txt" -d "$tmp" >&2 && sha256_is "$tmp/$1" "$sum"; then
            mv -f "$tmp/$1" "$file"
            rm -rf "$tmp"
            echo "$file"
            return
        fi
        rm -rf "$tmp"
        [ "$try" = 2 ] || say "that did not work; once more"
    done
    die "$1 could not be fetched. By hand: $python -m pip download --no-deps ${how[*]} $requirement -d $cache/dl"
}

# prepare_model - llama.cpp, checked on this machine, and a model: sets `programs` and `model`.
prepare_model() {
    local scripts=$root/scripts
    [ "${LLAMA:-ON}" != OFF ] || die "this needs llama.cpp and a model; LLAMA=OFF leaves them out"
    programs=$("$scripts/fetch_llama.sh" ${LLAMA_SOURCE_DIR:+--source "$LLAMA_SOURCE_DIR"})
    model=$("$scripts/fetch_model.sh")
    "$scripts/check_llama.sh" "$programs" "$model"
}
