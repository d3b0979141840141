# scripts/fetch_llama.sh --source on a toy source tree: built once into the cache, keyed by its path; one build at a time; a build that
# failed goes on where it stopped; nothing but the folder of programs on stdout.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export XDG_CACHE_HOME=$work/cache
fetch=$KNA_SOURCE_DIR/scripts/fetch_llama.sh
tree=$work/tree
mkdir -p "$tree/include"
echo '#define LLAMA_H' >"$tree/include/llama.h"
echo '#error "not yet"' >"$tree/program.c"
cat >"$tree/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.14)
project(toy C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
foreach(name bench perplexity completion server tokenize)
    add_executable(llama-${name} program.c)
endforeach()
END

if "$fetch" --source "$work" 2>"$work/err"; then echo "a folder without llama.h was accepted"; exit 1; fi
grep -q 'include/llama.h is missing' "$work/err" || { cat "$work/err"; exit 1; }
[ ! -e "$XDG_CACHE_HOME" ] || { echo "a refused tree left something in the cache"; exit 1; }

# A build that fails leaves no stamp, and says how to go on.
if "$fetch" --source "$tree" >"$work/out" 2>"$work/err"; then echo "a tree that does not compile was accepted"; exit 1; fi
[ ! -s "$work/out" ] || { echo "a failed build printed a folder"; exit 1; }
grep -q 'run this again to go on: .*--source' "$work/err" || { cat "$work/err"; exit 1; }
[ "$("$fetch" --source "$tree" --where | tail -n 1)" = absent ]

# Two at once: both end well, with the same answer.
echo 'int main(void) { return 0; }' >"$tree/program.c"
"$fetch" --source "$tree" >"$work/one" 2>"$work/err" &
"$fetch" --source "$tree/../tree" >"$work/two" 2>"$work/err2" || { cat "$work/err2"; exit 1; }
wait $! || { cat "$work/err"; exit 1; }
cmp "$work/one" "$work/two"
bin=$(cat "$work/one")
"$bin/llama-bench"
[ "$("$fetch" --source "$tree" --where | tail -n 1)" = ready ]

# A tree that changed is built again, a tree elsewhere gets a build of its own.
echo 'int main(void) { return 3; }' >"$tree/program.c"
if "$fetch" --source "$tree" >/dev/null 2>"$work/err"; then echo "llama-bench does not run, and nobody noticed"; exit 1; fi
cp -r "$tree" "$work/other"
echo 'int main(void) { return 0; }' >"$work/other/program.c"
[ "$("$fetch" --source "$work/other" 2>/dev/null)" != "$bin" ]
