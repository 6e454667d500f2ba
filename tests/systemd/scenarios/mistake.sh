# A wrong configuration is told, and not tried again.

serve_one_disk
echo 'read_olny = true' >>/etc/diskchain/diskchain.toml
step "the start fails with the mistake in the journal"
! systemctl start diskchain.service || fail "it started"
daemon_log | tee /out/daemon.log | sed 's/^/   /'
grep -q 'read_olny' /out/daemon.log
grep -q 'read_only' /out/daemon.log
expect "exit code" "$(property ExecMainStatus)" 3

step "it is not started again"
sleep 1.5
expect_state failed
expect "number of restarts" "$(property NRestarts)" 0

step "corrected, it starts"
sed -i '/read_olny/d' /etc/diskchain/diskchain.toml
systemctl start diskchain.service
expect "size" "$(nbdinfo --size "$uri")" $((64 << 20))
