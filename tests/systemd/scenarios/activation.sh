# Nothing runs until the first client; it waits for the disks and is then served.

serve_one_disk
step "only systemd listens"
expect_state active diskchain.socket
expect_state active diskchain-control.socket
expect_state inactive
expect "nbd socket" "$(stat -c '%U:%G %a' /run/diskchain-nbd.sock)" "diskchain:disk 660"
expect "control socket" "$(stat -c '%U:%G %a' /run/diskchain-control.sock)" "root:diskchain 660"

step "an NBD client starts the daemon"
expect "size" "$(nbdinfo --size "$uri")" $((64 << 20))
expect_state active
expect "user" "$(stat -c %U "/proc/$(property MainPID)")" diskchain
io 'write -P 0x5a 1M 3M' 'flush' 'read -P 0x5a 1M 3M' 'read -P 0 0 1M'

step "the status line says what is served"
systemctl --no-pager status diskchain.service | tee /out/status.txt | sed 's/^/   /'
grep -q 'Status: "..*"' /out/status.txt

step "the journal knows the disk by a field of its own"
journalctl --quiet --output cat --lines 1 DISKCHAIN_DISK=vm1 | grep -q .

step "a control client starts it too"
systemctl stop diskchain.service
expect_state inactive
diskchain ls --json | tee /out/ls.json | grep -q vm1
expect_state active
nbdinfo --size "$uri" >/dev/null

step "metrics are on the control socket"
curl --silent --show-error --fail --unix-socket /run/diskchain-control.sock http://localhost/metrics >/out/metrics.txt
grep -q '^diskchain_disk_size_bytes{.*vm1.*} 67108864' /out/metrics.txt
