# READY means that the disks are open: while one cannot be opened nothing is served, and the daemon
# comes by itself when it can be.

serve_one_disk
step "another program holds the image"
mkfifo /tmp/release
qemu-io -f vdi $images/vm1.vdi </tmp/release >/dev/null &
exec 9>/tmp/release
within 10 sh -c "! qemu-img info $images/vm1.vdi"

step "the daemon is not ready, and says why"
systemctl start --no-block diskchain.service
said_why() { daemon_log | grep -q vm1.vdi; }
was_tried_again() { [ "$(property NRestarts)" -ge 1 ]; }
within 20 said_why
within 20 was_tried_again
[ "$(property ActiveState)" != active ] || fail "it is ready without its disk"
daemon_log | sed 's/^/   /' | head -20

step "the image is free"
exec 9>&-
within 20 systemctl --quiet is-active diskchain.service
expect "size" "$(nbdinfo --size "$uri")" $((64 << 20))
