#!/bin/sh
# Installs what the build, the tests and the cluster need on Debian 12. Quick when everything is there.
set -eu
packages="build-essential cmake ninja-build pkg-config clang clang-format libclang-rt-dev git
 libgrpc-dev libprotobuf-c-dev protobuf-c-compiler protobuf-compiler libucx-dev
 libevent-dev libedit-dev libjansson-dev libcmocka-dev libsqlite3-dev libyaml-dev libpcre2-dev libutf8proc-dev libssl-dev
 etcd-server etcd-client openssl iproute2 procps python3 python3-venv python3-pip ca-certificates"
command -v kubectl >/dev/null || packages="$packages kubernetes-client" # from anywhere: it renders manifests for a test
missing=""
for p in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
echo "installing:$missing"
sudo=""
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "these packages are missing and there is neither root nor sudo to install them:$missing" >&2
        exit 1
    fi
    sudo=sudo
fi
$sudo apt-get update -q
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends $missing
