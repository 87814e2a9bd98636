#!/bin/bash
# Packs what a host with a GPU, its driver and Python needs to check and measure the CUDA backend: programs, and the libraries they want, stripped.
#
#   scripts/device.sh BUILD FOLDER     e.g. build/release build/device; then there: python3 FOLDER/device.py > result.json
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?"usage: scripts/device.sh BUILD FOLDER"} out=${2:?"usage: scripts/device.sh BUILD FOLDER"}
ninja -C "$build" --quiet longspan check_cuda check_cuda_peer check_cuda_codes check_cuda_lossless check_cuda_quest check_cuda_walk worker_test_cuda worker_test_cuda_select cuda_kernels cuda_step cuda_codes cuda_lossless
rm -rf "$out" && mkdir -p "$out/lib"
for program in longspan tests/kernels/check_cuda{,_peer,_codes,_lossless,_quest,_walk} tests/worker_test_cuda{,_select} bench/cuda_{kernels,step,codes,lossless}; do
  strip -o "$out/$(basename "$program")" "$build/$program"
  ldd "$build/$program" | awk '$3 ~ /^\// { print $3 }'
done | sort -u | grep -Ev '/(libc|libm|libdl|librt|libpthread)\.so' | xargs -I{} cp -L {} "$out/lib/"
ucx=$(dirname "$(ldconfig -p | awk '/libuct\.so/ { print $NF; exit }')")/ucx # UCX's transports are modules
if [ -d "$ucx" ]; then mkdir -p "$out/lib/ucx"; cp -L "$ucx"/*.so.0 "$out/lib/ucx/"; fi
cp bench/device.py bench/cuda_peers.py bench/cuda_nccl.py "$out/"
git rev-parse HEAD >"$out/commit"
du -sm "$out" | awk '{ print $1 " MB in " $2; if ($1 > 60) exit 1 }'
