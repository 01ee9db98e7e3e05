#!/usr/bin/env bash
# Fetch, where there is a package index, the wheels that a bare machine with a card lacks (CPython 3.12, x86-64):
#   scripts/card_wheels.sh [FOLDER]          by default card-wheels; then, on that machine, make card WHEELS=FOLDER
# Which ones stands in scripts/card/bare.py, their versions in constraints.txt. PYTHON names another interpreter.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
folder="${1:-card-wheels}"
python="${PYTHON:-python3}"
platforms=()
for name in manylinux2014_x86_64 manylinux_2_17_x86_64 manylinux_2_24_x86_64 manylinux_2_27_x86_64 manylinux_2_28_x86_64; do
  platforms+=(--platform "$name")
done
mapfile -t wheels < <("$python" "$root/scripts/card/bare.py")
[ "${#wheels[@]}" -gt 0 ] || { echo "scripts/card/bare.py named no wheels" >&2; exit 1; }
mkdir -p "$folder"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" --dest "$folder" "${wheels[@]}"
ls -l "$folder"
du -sh "$folder"
