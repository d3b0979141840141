# A machine that lacks something and may not install it: the message names every missing package and the command to run.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
for tool in bash sh env dirname basename cat sed awk grep id ls cc gcc g++ make ninja pkg-config python3; do
    path=$(command -v $tool) || continue
    ln -s "$path" "$work/bin/$tool"
done

# No cmake, no apt-get.
if PATH=$work/bin bash "$KNA_SOURCE_DIR/scripts/setup.sh" build 2>"$work/err"; then echo "setup.sh found a cmake that is not there"; exit 1; fi
grep -q 'missing: cmake$' "$work/err" || { cat "$work/err"; exit 1; }

# No cmake, apt-get there, not root, no sudo without a password.
printf '#!/bin/sh\necho apt-get "$@" >>%s/apt.log\n' "$work" >"$work/bin/apt-get"
printf '#!/bin/sh\n[ "$1" = -u ] && echo 1000\n' >"$work/id"
printf '#!/bin/sh\nexit 1\n' >"$work/bin/sudo"
rm "$work/bin/id"
mv "$work/id" "$work/bin/id"
chmod +x "$work/bin/apt-get" "$work/bin/id" "$work/bin/sudo"
if PATH=$work/bin bash "$KNA_SOURCE_DIR/scripts/setup.sh" build 2>"$work/err"; then echo "setup.sh succeeded without cmake"; exit 1; fi
grep -q 'sudo apt-get update && sudo apt-get install --no-install-recommends cmake$' "$work/err" || { cat "$work/err"; exit 1; }
[ ! -e "$work/apt.log" ] || { echo "apt-get was called without leave"; exit 1; }

# With leave, exactly what is missing is installed, and a package that does not help is reported.
printf '#!/bin/sh\nshift\n[ "$1" = true ] || exec "$@"\n' >"$work/bin/sudo"
if PATH=$work/bin bash "$KNA_SOURCE_DIR/scripts/setup.sh" build 2>"$work/err"; then echo "setup.sh did not notice that cmake is still missing"; exit 1; fi
grep -q 'still missing after installing: cmake' "$work/err" || { cat "$work/err"; exit 1; }
[ "$(tail -n 1 "$work/apt.log")" = "apt-get install -y -q --no-install-recommends cmake" ] || { cat "$work/apt.log"; exit 1; }
