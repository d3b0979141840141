# Out of memory at every allocation, one after the other: exit code 1 and a message, nothing written, or the whole answer as usual.
set -eu
[ -z "${KNA_SANITIZE:-}" ] || exit 77 # the sanitizers bring an allocator of their own
[ "$(uname -s)" = Linux ] || exit 77
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >fail.c <<'END'
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static atomic_long calls;
static long fail_at;

__attribute__((constructor)) static void start(void)
{
    const char *at = getenv("FAIL_AT");
    fail_at = at ? atol(at) : 0;
    atomic_store(&calls, 0);
}

__attribute__((destructor)) static void stop(void)
{
    const char *name = getenv("FAIL_COUNT");
    FILE *file = name ? fopen(name, "w") : NULL;
    if (file) {
        fprintf(file, "%ld\n", atomic_load(&calls));
        fclose(file);
    }
}

static int fails(void)
{
    if (atomic_fetch_add(&calls, 1) + 1 != fail_at) return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t bytes) { return fails() ? NULL : __libc_malloc(bytes); }
void *calloc(size_t count, size_t bytes) { return fails() ? NULL : __libc_calloc(count, bytes); }
void *realloc(void *memory, size_t bytes) { return fails() ? NULL : __libc_realloc(memory, bytes); }
void *memalign(size_t alignment, size_t bytes) { return fails() ? NULL : __libc_memalign(alignment, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void **memory, size_t alignment, size_t bytes)
{
    *memory = memalign(alignment, bytes);
    return *memory ? 0 : 12;
}
END
${KNA_CC:-cc} -O1 -fPIC -shared fail.c -o fail.so
"${KNA_PYTHON:-/usr/bin/python3}" -B -c '
import numpy as np
random = np.random.default_rng(5)
np.savez_compressed("rows.npz", a=random.random(size=(7, 8)).astype(np.float32), b=random.random(size=(7, 32)).astype(np.float16))
for name, shape in (("q", (2, 3, 32)), ("k", (1, 200, 32)), ("a", (3, 8)), ("v", (1, 200, 32)), ("mask", (3, 200)), ("slopes", (2,)), ("sinks", (2,))):
    np.save(name, random.random(size=shape).astype(np.float32))'

# each NAME STEP COMMAND.. - run the command with one allocation failing, every one or every STEP-th. It may write files named o.*.
each() {
    local name=$1 step=$2 total at code failed=0
    shift 2
    rm -f o.*
    LD_PRELOAD=./fail.so FAIL_COUNT=count "$@" >said
    total=$(cat count)
    rm -rf good
    mkdir good
    cp o.* said good 2>/dev/null || true
    for at in $(seq 1 "$step" "$total"); do
        rm -f o.*
        code=0
        LD_PRELOAD=./fail.so FAIL_AT=$at "$@" >said 2>err || code=$?
        if [ $code = 0 ]; then
            (cd good && ls -d o.* 2>/dev/null) | diff - <(ls -d o.* 2>/dev/null) || { echo "$name: allocation $at: other files"; exit 1; }
            for file in o.*.npy; do [ ! -e "$file" ] || cmp "$file" "good/$file"; done
        else
            failed=$((failed + 1))
            [ $code = 1 ] || { echo "$name: allocation $at of $total: exit $code"; cat err; exit 1; }
            [ -s err ] || { echo "$name: allocation $at of $total: no message"; exit 1; }
            if ls -d o.* 2>/dev/null; then echo "$name: allocation $at of $total: the above was left"; exit 1; fi
        fi
    done
    echo "$name: $total allocations, $failed made it fail"
    [ $failed -gt 3 ]
}

operands="--q q.npy --k k.npy --v v.npy --out o.out.npy --lse o.lse.npy --report o.json --threads 2"
each exact 1 "$KNA" attend $operands --mask mask.npy --slopes slopes.npy --sinks sinks.npy
each knn 1 "$KNA" attend $operands --method knn --k-near 20 --kv-type f16 --audit 1
each topk 1 "$KNA" attend $operands --method topk --k-near 20 --kv-type i8
each json 1 "$KNA" attend --q q.npy --k k.npy --v v.npy --out o.out.npy --json
each bench 9 "$KNA" bench attend -n 64 -m 2 --rounds 1 --threads 2 --json # measures speeds, which takes its time
each help 1 "$KNA" attend --help

"$KNA" store create s --family a:f16:8 --family b:int8:32
echo '{"uri": "one", "rows": 3, "tags": ["x", "y"], "attributes": {"a": [1, 2, "3"]}}' >two.jsonl
echo '{"uri": "two", "rows": 4, "time": "2026-01-31", "tokens": 12}' >>two.jsonl
each 'store add' 1 "$KNA" store add s rows.npz --meta two.jsonl --replace
"$KNA" store verify s --deep
[ "$("$KNA" store ls s | wc -l)" -eq 3 ] || { echo "store add: other documents"; exit 1; }
each 'store ls' 1 "$KNA" store ls s --json --filter "tokens > 3 or tag('x') and json_extract(attributes, '$.a[2]') = '3'"
each 'store export' 1 "$KNA" store export s --family a --out o.all.npy --meta o.jsonl --safetensors o.tensors
each 'store index' 3 "$KNA" store index s --family a --json
"$KNA" store search s a.npy --family a -k 3 >/dev/null
each 'store search' 1 "$KNA" store search s a.npy --family a -k 3 --filter "tokens > 3" --json --out o.rows.npy --scores o.scores.npy
each 'store recall' 1 "$KNA" store recall s --family a --samples 5 --json
each 'store compact' 1 "$KNA" store compact s --share 0
"$KNA" store verify s --deep
