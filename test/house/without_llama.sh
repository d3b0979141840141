# A system without llama.cpp, OpenMP or ninja still gets the library and the operators of kna.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build() {
    cmake -S "$KNA_SOURCE_DIR" -B "$work/build" -G "Unix Makefiles" -DKNA_TESTS=OFF -DKNA_WERROR=ON -DCMAKE_BUILD_TYPE=Debug "$@" &&
        cmake --build "$work/build" --parallel 2
}
build -DKNA_LLAMA=OFF -DKNA_OPENMP=OFF >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/build/kna" --version
"$work/build/kna" attend --help >/dev/null
[ ! -e "$work/build/libggml-knnattn.so" ] || { echo "a plugin was built although there is no llama.cpp"; exit 1; }
if ldd "$work/build/kna" | grep -E 'llama|ggml|gomp'; then echo "kna needs the above"; exit 1; fi

# What is not there is not offered: a command that needs a model says so and fails.
if "$work/build/kna" ppl -m none.gguf -f none.txt >"$work/out" 2>"$work/err"; then echo "kna ppl succeeded without llama.cpp"; exit 1; fi
grep -qi 'llama.cpp' "$work/err" || { echo "kna ppl without llama.cpp said:"; cat "$work/err"; exit 1; }

# The cache is asked only where it is, and an empty one is no error.
XDG_CACHE_HOME=$work/cache cmake -S "$KNA_SOURCE_DIR" -B "$work/auto" -DKNA_TESTS=OFF >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
grep -q 'llama.cpp: not found' "$work/log" || { cat "$work/log"; exit 1; }
[ ! -e "$work/cache" ] || { echo "configuring wrote into the cache"; exit 1; }

# A source tree that is none is refused by name.
if cmake -S "$KNA_SOURCE_DIR" -B "$work/wrong" -DLLAMA_SOURCE_DIR="$work" >"$work/log" 2>&1; then echo "LLAMA_SOURCE_DIR=$work was accepted"; exit 1; fi
grep -q 'include/llama.h is missing' "$work/log" || { cat "$work/log"; exit 1; }
