# Stopped, started, killed: the disk is there again, with what was flushed.

# A moment of the machine's clock, in milliseconds.
now() { echo $(($(date +%s%N) / 1000000)); }

serve_one_disk
io 'write -P 0x11 0 4M' 'flush'

step "a restart keeps the data"
before=$(property MainPID)
systemctl restart diskchain.service
[ "$(property MainPID)" != "$before" ] || fail "the daemon was not restarted"
io 'read -P 0x11 0 4M'

step "after SIGKILL systemd brings it back"
io 'write -P 0x22 8M 4M' 'flush'
before=$(property MainPID)
kill -KILL "$before"
is_back() { [ "$(property MainPID)" != "$before" ] && systemctl --quiet is-active diskchain.service; }
within 20 is_back
expect "number of restarts" "$(property NRestarts)" 1
io 'read -P 0x11 0 4M' 'read -P 0x22 8M 4M'

step "a stop is clean and quick, with a client that holds on"
coproc client { nbdsh --uri "$uri" -c 'print("connected", flush=True); import time; time.sleep(600)'; }
read -r line <&"${client[0]}"
expect "the client" "$line" connected
started=$(now)
systemctl stop diskchain.service
elapsed=$(($(now) - started))
echo "   stopped in $elapsed ms"
expect_state inactive
expect "result" "$(property Result)" success
# Well below drain_timeout (30 s): an idle client has nothing to wait for.
[ $elapsed -lt 15000 ] || fail "the stop took $elapsed ms"
kill "$client_PID"

step "the image was closed cleanly"
qemu-img check -q $images/vm1.vdi
diskchain image check $images/vm1.vdi

step "the next client starts it again"
io 'read -P 0x11 0 4M' 'read -P 0x22 8M 4M'
expect_state active
