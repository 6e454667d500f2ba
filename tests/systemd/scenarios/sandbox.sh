# The daemon writes under /var/lib/diskchain and nowhere else, until an administrator says so.

serve_one_disk
io 'write -P 0x33 0 1M' 'flush'
pid=$(property MainPID)

step "the process has no rights to lose"
grep -qx 'NoNewPrivs:	1' /proc/"$pid"/status
grep -qx 'Seccomp:	2' /proc/"$pid"/status
for set in Inh Prm Eff Bnd Amb; do
    grep -qx "Cap$set:	0000000000000000" /proc/"$pid"/status || fail "Cap$set is not empty"
done

step "it is in a sandbox of its own within that"
sandboxed() { daemon_log | grep -q 'sandboxed: only the files and ports of the configuration'; }
within 10 sandboxed

step "its file system is read-only but for its state"
writable() { nsenter --target "$pid" --mount runuser -u diskchain -- touch "$1" 2>/tmp/why; }
writable $images/probe || fail "cannot write to $images: $(cat /tmp/why)"
mkdir -m 777 /srv/images
for path in /srv/images/probe /etc/diskchain/probe /var/lib/probe /run/probe; do
    ! writable $path || fail "$path is writable"
done
! nsenter --target "$pid" --mount ls /dev/kmsg 2>/dev/null || fail "it sees the host's devices"

step "an image elsewhere is refused"
make_image /srv/images/vm1.vdi
sed -i 's|^file = .*|file = "/srv/images/vm1.vdi"|' /etc/diskchain/diskchain.toml
systemctl stop diskchain.service
systemctl start --no-block diskchain.service
said_why() { daemon_log | grep -q '/srv/images/vm1.vdi.*[Rr]ead-only'; }
within 20 said_why
[ "$(property ActiveState)" != active ] || fail "it serves an image it cannot write"
systemctl stop diskchain.service

step "the drop-in for image folders allows it"
install -D -m 644 /usr/share/doc/diskchain/drop-ins/image-folder.conf -t /etc/systemd/system/diskchain.service.d
systemctl daemon-reload
systemctl start diskchain.service
io 'write -P 0x44 0 1M' 'flush' 'read -P 0x44 0 1M'
