# The rooms and what each may know: a file includes only its own room and those named beside it here.
set -eu
cd "$KNA_SOURCE_DIR"

may_know() {
    case $1 in
        src/base) echo include ;;
        src/kernel) echo include src/base ;;
        src/index) echo include src/base src/kernel ;;
        src/attend) echo include src/base src/kernel src/index ;;
        src/store) echo include src/base src/kernel ;;
        src/search) echo include src/base src/kernel src/store ;;
        ggml) echo include ;;
        lm) echo include ggml ;;
        cli) echo include lm ;;
        *) echo "unknown" ;;
    esac
}

# Headers of other projects that only some rooms may see.
may_see() {
    case $1:$2 in
        ggml:ggml*.h) return 0 ;;
        lm:llama.h | lm:ggml-backend.h | lm:ggml.h) return 0 ;;
        *:ggml*.h | *:llama*.h | *:gguf.h) return 1 ;;
    esac
}

bad=0
complain() { echo "$1"; bad=1; }

for file in src/*/*.[ch] ggml/*.[ch] lm/*.[ch] cli/*.[ch]; do
    [ -f "$file" ] || continue
    room=$(dirname "$file")
    allowed=$(may_know "$room")
    [ "$allowed" != unknown ] || complain "$file: this room is not in the table of $0"
    for name in $(sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]\([^>"]*\)[>"].*/\1/p' "$file"); do
        may_see "$room" "$(basename "$name")" || complain "$file: $room must not include $name"
        from=
        for base in "$room" include src lm ggml cli; do
            if [ -z "$from" ] && [ -f "$base/$name" ]; then from=$(dirname "$(realpath --relative-to=. "$base/$name")"); fi
        done
        if [ -z "$from" ] || [ "$from" = "$room" ]; then continue; fi
        case " $allowed " in
            *" $from "*) ;;
            *) complain "$file: $room must not know $from (includes $name)" ;;
        esac
    done
done
exit $bad
