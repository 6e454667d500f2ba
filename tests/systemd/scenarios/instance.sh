# diskchain@NAME serves /etc/diskchain/NAME.toml beside the main daemon, with sockets and images of its own.

serve_one_disk
io 'write -P 0x66 0 1M' 'flush'
state=/var/lib/diskchain-lab
cat >/etc/diskchain/lab.toml <<EOF
[server]
control = "unix:/run/diskchain-lab-control.sock"

[disk.vm1]
file   = "$state/images/vm1.vdi"
create = { size = "32MiB", format = "vdi", variant = "dynamic" }
EOF
step "the instance is activated by its own socket"
systemctl --quiet enable --now diskchain@lab.socket diskchain-control@lab.socket
expect_state inactive diskchain@lab.service
lab='nbd+unix:///vm1?socket=/run/diskchain-lab-nbd.sock'
expect "size" "$(nbdinfo --size "$lab")" $((32 << 20))
expect_state active diskchain@lab.service
expect "image" "$(stat -c '%U %a' $state/images/vm1.vdi)" "diskchain 600"

step "neither sees the other's disk"
qemu-io -f raw -c 'read -P 0 0 1M' "$lab" | sed 's/^/   /'
io 'read -P 0x66 0 1M'
expect "size" "$(nbdinfo --size "$uri")" $((64 << 20))

step "one stops, the other goes on"
systemctl stop diskchain.service diskchain.socket diskchain-control.socket
expect_state inactive
expect "size" "$(nbdinfo --size "$lab")" $((32 << 20))
