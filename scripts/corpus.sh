#!/bin/sh
# Gathers the text that `longspan eval` scores, into corpus/: the King James Bible (Debian's bible-kjv) and Python's standard library, and of each a part
# that no window is cut from (corpus/held-out), for calibration. Installs what it needs. Quick when it is there.
set -eu
cd "$(dirname "$0")/.."
dir=corpus
[ -e "$dir/.stamp-1" ] && exit 0

missing=""
for p in bible-kjv bible-kjv-text libpython3-stdlib python3; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $p"
done
if [ -n "$missing" ]; then
    sudo=""
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "these packages are missing and there is neither root nor sudo to install them:$missing" >&2
            exit 1
        fi
        sudo=sudo
    fi
    echo "installing:$missing"
    $sudo apt-get update -q
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends $missing
fi

work=$(mktemp -d .corpus.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
bible -f gen1:1-rev22:21 >"$work/verses" 2>/dev/null </dev/null
python3 - "$work" <<'EOP'
"""Verses become prose, a paragraph a chapter; modules follow each other. Of every five pieces of a kind one is held out."""
import os
import re
import sys
import sysconfig

work = sys.argv[1]
PIECE, SOURCES = 64 << 10, 4 << 20
books, order = {}, []
with open(os.path.join(work, "verses"), encoding="ascii") as f:
    for line in f:
        found = re.fullmatch(r"(\w+?)(\d+):(\d+) +(.*?)\s*", line)
        if not found:
            sys.exit(f"not a verse: {line!r}")
        book, chapter, _, text = found.groups()
        key = (book, int(chapter))
        if key not in books:
            order.append(key)
        books.setdefault(key, []).append(text)
if len(order) != 1189:
    sys.exit(f"{len(order)} chapters, not the 1189 there should be")
library = sysconfig.get_paths()["stdlib"]
modules = sorted(n for n in os.listdir(library) if n.endswith(".py") and not n.startswith("_sysconfigdata"))
texts = {"kjv.txt": [" ".join(books[k]) + "\n\n" for k in order], "python.txt": []}
for name in modules:
    with open(os.path.join(library, name), encoding="utf-8", errors="strict") as f:
        texts["python.txt"].append(f.read().replace("\0", "") + "\n\n")

os.makedirs(os.path.join(work, "out", "held-out"))
for name, parts in texts.items():
    pieces, piece = [], ""
    for part in parts:
        piece += part
        if len(piece) >= PIECE:
            pieces.append(piece)
            piece = ""
    pieces.append(piece)
    for place, chosen in (("", [p for i, p in enumerate(pieces) if i % 5 != 4]), ("held-out", pieces[4::5])):
        with open(os.path.join(work, "out", place, name), "w", encoding="utf-8") as f:
            f.write("".join(chosen)[:SOURCES])
EOP
touch "$work/out/.stamp-1"
rm -rf "$dir"
chmod 755 "$work/out"
mv "$work/out" "$dir"
echo "$dir is there: $(cd $dir && ls -d *.txt held-out/*.txt | tr '\n' ' ')"
