# What every scenario starts with; it is read before the scenario itself, inside the new machine.
set -euo pipefail
trap 'echo "FAILED in line $LINENO: $BASH_COMMAND"' ERR

images=/var/lib/diskchain/images
uri='nbd+unix:///vm1?socket=/run/diskchain-nbd.sock'

step() { echo "== $*"; }

fail() {
    echo "FAILED: $*"
    exit 1
}

# expect WHAT ACTUAL WANTED
expect() { [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"; }

# within SECONDS COMMAND…: until it succeeds
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "not in time: $*"
        sleep 0.05
    done
}

property() { systemctl show --property "$1" --value "${2:-diskchain.service}"; }

is_settled() { [[ "$(property ActiveState "$1")" != *ing ]]; }

# expect_state WANTED [UNIT]. A client may have been served before systemd has heard that the daemon is ready.
expect_state() {
    local unit=${2:-diskchain.service}
    within 10 is_settled "$unit"
    expect "state of $unit" "$(property ActiveState "$unit")" "$1"
}

# Lines of the daemon since the machine started.
daemon_log() { journalctl --no-pager --output cat --unit diskchain.service; }

# A VDI of 64 MiB that the daemon may write.
make_image() {
    qemu-img create -q -f vdi "$1" 64M
    chown diskchain:diskchain "$1"
}

io() { qemu-io -f raw "${@/#/-c}" "$uri" | sed 's/^/   /'; }

# What docs/systemd.md tells the user to type.
serve_one_disk() {
    make_image $images/vm1.vdi
    cat >/etc/diskchain/diskchain.toml <<EOF
[disk.vm1]
file = "$images/vm1.vdi"
EOF
    systemctl --quiet enable --now diskchain.socket diskchain-control.socket
}
