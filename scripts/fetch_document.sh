#!/usr/bin/env bash
# Real documents for demo, tests and benches: the kernel documentation of Debian's linux-doc-6.1, as plain text in the cache.
#
#   fetch_document.sh              prints the folder: Documentation/**/*.rst, unpacked
#   fetch_document.sh NAME         prints the path of one of them, e.g. filesystems/ext4/overview.rst
#   fetch_document.sh --where      only prints the folder
#
# Taken from /usr/share/doc where the package is installed with its files, else from the package itself (apt-get download).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

package=linux-doc-6.1
inside=usr/share/doc/$package/Documentation
corpus=$cache/$package

# The package's files under FOLDER/$inside, unpacked to $corpus, whole or not at all.
unpack_from() {
    local from=$1/$inside tmp
    [ -n "$(find -L "$from" -name '*.rst*' -print -quit 2>/dev/null)" ] || return 1
    tmp=$(mktemp -d "$cache/tmp.XXXXXX")
    (cd -L "$from" && find -L . -type f \( -name '*.rst' -o -name '*.rst.gz' \) -print0 | tar --null -chf - -T -) | tar -xf - -C "$tmp"
    find "$tmp" -name '*.gz' -print0 | xargs -0 -r gunzip -f
    chmod 755 "$tmp"
    rm -rf "$corpus"
    mv "$tmp" "$corpus"
}

from_package() {
    local tmp status=0
    command -v apt-get >/dev/null || die "the documents come from Debian's package $package, and apt-get is missing here"
    say "fetching $package"
    tmp=$(mktemp -d "$cache/tmp.XXXXXX")
    chmod 755 "$tmp"
    { (cd "$tmp" && apt-get download "$package" >&2) && dpkg-deb -x "$tmp"/*.deb "$tmp/files" && unpack_from "$tmp/files"; } || status=1
    rm -rf "$tmp"
    [ $status = 0 ] || die "the documents could not be had; install them with: apt-get install $package"
}

if [ "${1:-}" = --where ]; then
    echo "$corpus"
    exit
fi
if [ ! -d "$corpus" ]; then
    hold_lock "$package"
    if [ ! -d "$corpus" ]; then unpack_from "" || from_package; fi
fi
if [ $# -gt 0 ]; then
    [ -f "$corpus/$1" ] || die "no document $1 in $corpus"
    echo "$corpus/$1"
else
    echo "$corpus"
fi
