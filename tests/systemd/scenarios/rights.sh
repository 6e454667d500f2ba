# Who may look, who may change, who may not even connect: as the sockets and the control API say,
# in the daemon's own user namespace too.

serve_one_disk
nbdinfo --size "$uri" >/dev/null
useradd --groups diskchain watcher
useradd --groups disk vmm
useradd stranger
export DISKCHAIN_CONTROL=/run/diskchain-control.sock
as() { runuser -u "$1" --preserve-environment -- "${@:2}"; }

step "root looks and changes"
diskchain show vm1 | sed 's/^/   /'
diskchain throttle set vm1 iops_total=5000
diskchain show vm1 --json | grep -q 5000

step "the group diskchain looks"
as watcher diskchain ls
as watcher diskchain show vm1 --json | grep -q 5000
! as watcher diskchain throttle set vm1 iops_total=1 2>/tmp/why || fail "a watcher changed a limit"
sed 's/^/   /' /tmp/why
diskchain show vm1 --json | grep -q 5000

step "the group disk uses the disks"
expect "size" "$(as vmm nbdinfo --size "$uri")" $((64 << 20))
! as vmm diskchain ls 2>/dev/null || fail "the group disk looked"

step "nobody else connects"
! as stranger diskchain ls 2>/dev/null || fail "a stranger looked"
! as stranger nbdinfo --size "$uri" 2>/dev/null || fail "a stranger used a disk"
