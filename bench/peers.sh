#!/bin/bash
# The peer that figures are compared with: llama.cpp, from the sources inside PyPI's llama-cpp-python, built natively with every instruction set of
# this machine, into build/peers/llama.cpp: build (llama-bench, llama-quantize) and build-server (llama-server and the RPC server, without the web page, which
# would have to be fetched). Quick when it is there; JOBS limits the compilers.
#   bench/peers.sh [attention [POSITIONS [ROUNDS]]]: then measures its decode attention beside nothing else (bench/peers/attention.c)
set -eu
cd "$(dirname "$0")/.."
version=0.3.36
dir=build/peers
# $@: what the script was called with
attention() {
    [ "${1:-}" = attention ] || return 0
    lib=$PWD/$dir/llama.cpp/build/bin
    cc -O2 -std=gnu17 -I$dir/llama.cpp/ggml/include -o $dir/attention bench/peers/attention.c -L$lib -lggml -lggml-base -lggml-cpu -Wl,-rpath,$lib
    $dir/attention "${@:2}"
}
server() {
    out=$dir/llama.cpp/build-server
    [ -x $out/bin/llama-server ] && [ -x $out/bin/ggml-rpc-server ] && return
    cmake -S $dir/llama.cpp -B $out -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        -DGGML_RPC=ON -DGGML_OPENMP=ON >/dev/null
    ninja -C $out --quiet ${JOBS:+-j$JOBS} llama-server ggml-rpc-server
}
[ -x $dir/llama.cpp/build/bin/llama-bench ] && { server; cat $dir/version; attention "$@"; exit 0; }
mkdir -p $dir
python3 -m venv $dir/venv
# the metadata of a source package needs its build back end; pip makes an isolated one
$dir/venv/bin/pip download -q --disable-pip-version-check --no-deps --no-binary :all: -d $dir "llama-cpp-python==$version"
tar -xzf $dir/llama_cpp_python-$version.tar.gz -C $dir
rm -rf $dir/llama.cpp
mv $dir/llama_cpp_python-$version/vendor/llama.cpp $dir/llama.cpp
rm -rf $dir/llama_cpp_python-$version
# Its tile configuration is written through a thread-local struct that gcc 12 may still be storing when the tiles are loaded: the first product
# then dies of SIGILL. A compiler barrier is all that it lacks.
sed -i 's/^\( *\)_tile_loadconfig(&tc);/\1__asm__ volatile("" ::: "memory");\n&/' $dir/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp
cmake -S $dir/llama.cpp -B $dir/llama.cpp/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DGGML_OPENMP=ON >/dev/null
echo "llama.cpp of llama-cpp-python $version, $(sed -n 's/.*GGML_VERSION_\(MAJOR\|MINOR\|PATCH\) \([0-9]*\).*/\2/p' $dir/llama.cpp/ggml/CMakeLists.txt | paste -sd. ) (ggml)" >$dir/version
ninja -C $dir/llama.cpp/build --quiet llama-bench llama-quantize
server
cat $dir/version
attention "$@"
