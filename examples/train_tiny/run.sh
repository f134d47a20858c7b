#!/usr/bin/env bash
# Makes examples/tiny from nothing; run again, it continues where it was stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$here/../../out/train_tiny
cargo build --release --example make_tasks --manifest-path "$here/../../Cargo.toml"
[ -d "$work/venv" ] || { python3 -m venv "$work/venv" && "$work/venv/bin/pip" install -q -r "$here/requirements.txt"; }
exec "$work/venv/bin/python" "$here/train.py" "$@"
