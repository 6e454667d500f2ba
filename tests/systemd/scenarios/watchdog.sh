# A daemon that works is left alone; one that stands still is replaced.

mkdir /etc/systemd/system/diskchain.service.d
printf '[Service]\nWatchdogSec=2s\n' >/etc/systemd/system/diskchain.service.d/watchdog.conf
systemctl daemon-reload
serve_one_disk
io 'write -P 0x88 0 4M' 'flush'

step "it works for longer than the watchdog waits"
sleep 5
expect_state active
expect "number of restarts" "$(property NRestarts)" 0

step "it stands still"
before=$(property MainPID)
kill -STOP "$before"
was_replaced() { [ "$(property NRestarts)" -ge 1 ] && systemctl --quiet is-active diskchain.service; }
within 20 was_replaced
[ "$(property MainPID)" != "$before" ] || fail "the daemon was not replaced"
journalctl --no-pager --output cat --unit diskchain.service | grep -q 'Watchdog timeout'
io 'read -P 0x88 0 4M'
