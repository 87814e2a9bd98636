#!/bin/sh
# A Python environment in .venv with the foreign clients that integration tests use. Quick when it is there.
set -eu
cd "$(dirname "$0")/.."
stamp=.venv/.stamp-3
[ -e "$stamp" ] && exit 0
python3 -m venv .venv
.venv/bin/pip install -q --disable-pip-version-check openai==2.8.0 grpcio==1.76.0 grpcio-tools==1.76.0 grpcio-reflection==1.76.0 kubernetes-validate==1.37.0 || \
    .venv/bin/pip install -q --disable-pip-version-check openai grpcio grpcio-tools grpcio-reflection kubernetes-validate
touch "$stamp"
