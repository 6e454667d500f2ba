#!/usr/bin/env bash
# Installs what the tests need, then runs every check and every test of the workspace.
# The last line is "total: N passed, N failed"; the exit code is 0 only when nothing failed.
#
#   scripts/test.sh [FILTER…]     all checks, or only the tests whose name contains a FILTER
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/install-test-deps.sh

log="$(mktemp)"
trap 'rm -f "$log"' EXIT

# Prints the sum of the numbers that stand before the word "$1" in the runners' closing lines:
# "Summary [ 9s] 41 tests run: 40 passed, 1 failed" and "test result: ok. 3 passed; 0 failed".
count() {
    sed 's/\x1b\[[0-9;]*m//g' "$log" | awk -v what="$1" '
        /^ *Summary \[|^test result:/ {
            while (match($0, "[0-9]+ " what)) {
                sum += substr($0, RSTART)
                $0 = substr($0, RSTART + RLENGTH)
            }
        }
        END { print sum + 0 }'
}

if [ $# = 0 ]; then
    echo "== format"
    cargo fmt --all --check
    echo "== clippy"
    cargo clippy --locked --workspace --all-targets --features disk-core/planted-bugs -- -D warnings
    cargo clippy --locked -p disk-core --all-targets --features shuttle -- -D warnings
fi

echo "== build"
cargo build --locked -p diskchain
# The one whose instructions are counted.
[ $# != 0 ] || cargo build --locked --release -p diskchain
target_dir="$(cargo metadata --locked --no-deps --format-version 1 |
    /usr/bin/python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')"
export DISKCHAIN_BIN="$target_dir/debug/diskchain"

echo "== tests"
status=0
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --workspace --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?
else
    # Without nextest's groups the heavy tests would compete for the cores: one at a time.
    cargo test --locked --workspace --all-targets --no-fail-fast -- --test-threads 1 "$@" 2>&1 |
        tee "$log" || status=$?
fi
if [ $# = 0 ]; then
    cargo test --locked --workspace --doc --no-fail-fast 2>&1 | tee -a "$log" || status=$?
    # Builds of their own, as no other may have the planted bugs, or the scheduler of the tests.
    cargo test --locked -p disk-core --features planted-bugs --test planted_bugs 2>&1 | tee -a "$log" || status=$?
    cargo test --locked -p disk-core --features shuttle --test schedules 2>&1 | tee -a "$log" || status=$?
fi

passed="$(count passed)" failed="$(count failed)"
timed_out="$(count 'timed out')"
echo "total: $passed passed, $((failed + timed_out)) failed"
if [ "$passed" = 0 ]; then
    echo "no test ran" >&2
    exit 1
fi
exit "$status"
