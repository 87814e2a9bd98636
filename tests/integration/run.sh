#!/bin/sh
# Runs a test with the Python that has the foreign clients (scripts/venv.sh), or with PYTHON: tests/integration/run.sh tests/integration/test_cli.py [Class.test]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
[ -x "$python" ] || python=python3
PYTHONDONTWRITEBYTECODE=1 exec "$python" "$@"
