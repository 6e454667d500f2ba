#!/usr/bin/env bash
# Measures diskchain and other NBD servers side by side, on the same files, in one run.
#
#   scripts/bench.sh            the long form, half an hour or more; on a machine that does nothing else
#   scripts/bench.sh --goals    what is wanted of the daemon and what of it is met, about ten minutes; goes into
#                               docs/performance.md as well
#   scripts/bench.sh --short    under five minutes: proves that it runs; its figures mean little
#   scripts/bench.sh --help     what else can be chosen
#
# Tables are printed; results.json, results.html and results.md go to target/bench. Needs about five times the
# size of an image (1 GiB, short: 64 MiB) in /dev/shm and twice that in /var/tmp.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/install-test-deps.sh
missing=()
for package in nbdkit nbd-server; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ "${#missing[@]}" != 0 ]; then
    root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    # Nothing is removed for them: QEMU's tools may come from the backports.
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -y -q -o Dpkg::Use-Pty=0 install --no-install-recommends --no-remove "${missing[@]}"
fi

cargo build --locked --release -p diskchain -p diskchain-bench
target_dir="$(cargo metadata --locked --no-deps --format-version 1 |
    /usr/bin/python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')"
export DISKCHAIN_BIN="${DISKCHAIN_BIN:-$target_dir/release/diskchain}"
bench="$target_dir/release/diskchain-bench"
if [ "${1:-}" = --goals ]; then
    shift
    exec "$bench" goals --rounds 7 --window 700 --output "$target_dir/bench" --write docs/performance.md "$@"
fi
exec "$bench" run --output "$target_dir/bench" "$@"
