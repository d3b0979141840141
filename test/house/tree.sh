# What the repository holds: no file above 1,000 lines, no path of a machine or a user, no named package index,
# no generated or large file, every script starting with what it is run by.
set -eu
cd "$KNA_SOURCE_DIR"
bad=0
complain() { echo "$1"; bad=1; }

if git rev-parse --git-dir >/dev/null 2>&1; then files=$(git ls-files --cached --others --exclude-standard); else files=$(find . -type f -not -path './build*' -not -path './.git/*' | sed 's|^\./||'); fi
for file in $files; do
    [ -f "$file" ] || continue
    bytes=$(stat -c %s "$file")
    [ "$bytes" -le 500000 ] || complain "$file: $bytes bytes; large files are fetched or generated"
    case $file in *.png | *.npy | *.gz) continue ;; esac
    lines=$(wc -l <"$file")
    [ "$lines" -le 1000 ] || complain "$file: $lines lines"
    # The path below is put together so that this file does not complain of itself.
    if grep -nE "/(ho""me|ro""ot|wo""rk|Us""ers)/[A-Za-z0-9._-]+" "$file"; then complain "$file: a path of one machine"; fi
    if grep -nE "(index-u""rl|find-li""nks)|https?://[^ ]*/(sim""ple|pack""ages)/" "$file"; then complain "$file: a package index by name"; fi
    case $file in
        src/* | ggml/* | lm/* | cli/*) if grep -nwE 'TO''DO|FIX''ME|X''XX' "$file"; then complain "$file: unfinished"; fi ;;
        scripts/*.sh) [ "$(basename "$file")" = common.sh ] || [ -x "$file" ] || complain "$file: not executable" ;;
    esac
done
exit $bad
