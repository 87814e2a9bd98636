#!/bin/sh
# make bench: the figures of the README. Build the peer first with make bench-peers; without it its column stays empty.
set -eu
cd "$(dirname "$0")/.."
ninja -C build/release --quiet longspan bandwidth exchange_bench check_attn
exec python3 bench/figures.py "$@"
