# The network is a drop-in away, and so is its absence.

drop_in() { install -D -m 644 "/usr/share/doc/diskchain/drop-ins/$1.conf" -t "/etc/systemd/system/$2.d"; }

step "tcp.conf: clients of the network"
drop_in tcp diskchain.socket
systemctl daemon-reload
serve_one_disk
expect "size over TCP" "$(nbdinfo --size nbd://127.0.0.1/vm1)" $((64 << 20))
expect "size over IPv6" "$(nbdinfo --size 'nbd://[::1]/vm1')" $((64 << 20))
expect "size over the Unix socket" "$(nbdinfo --size "$uri")" $((64 << 20))

step "unix-only.conf: no network at all"
systemctl stop diskchain.service diskchain.socket
rm -r /etc/systemd/system/diskchain.socket.d
drop_in unix-only diskchain.service
systemctl daemon-reload
systemctl start diskchain.socket
io 'write -P 0x55 0 1M' 'read -P 0x55 0 1M'
interfaces=$(nsenter --target "$(property MainPID)" --net cat /proc/net/dev | grep -c :)
expect "network interfaces" "$interfaces" 1
! nbdinfo --size nbd://127.0.0.1/vm1 2>/dev/null || fail "TCP still answers"
