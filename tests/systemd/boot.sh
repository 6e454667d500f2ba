#!/bin/bash
# Boots this machine's own systemd as PID 1 of a throw-away machine: new namespaces over an overlay
# of /, nothing of which reaches the disk. No hypervisor, no container engine; needs root.
#
#   boot.sh FILES BINARY OUT [SECONDS]
#
#   FILES    a tree that is laid over the new machine's /
#   BINARY   becomes its /usr/bin/diskchain
#   OUT      becomes its /out, the only way out: console.log, and what the scenario writes
#   SECONDS  after which everything in it is killed (default 60)
#
# It boots into scenario.service, which FILES has to bring, and exits as that service did. Exit 125:
# this machine does not allow what is needed; standard error says what.
set -euo pipefail

refuse() {
    echo "cannot boot systemd in namespaces: $*" >&2
    exit 125
}

if [ "${BOOT_STAGE:-outside}" = outside ]; then
    [ "$(id -u)" = 0 ] || refuse "it takes root"
    [ -x /lib/systemd/systemd ] || refuse "systemd is not installed"
    why=$(unshare --mount --pid --uts --ipc --net --cgroup --fork true 2>&1) ||
        refuse "this machine forbids new namespaces ($why)"
    # A control group of its own is the root of all that systemd will see. Only the unified hierarchy:
    # even a host that runs on the old ones has it.
    cgroups=$(findmnt --noheadings --output TARGET --types cgroup2 | head -n 1)
    [ -n "$cgroups" ] || refuse "no cgroup2 file system is mounted"
    group=$cgroups$(sed -n 's/^0:://p' /proc/self/cgroup)/diskchain-test.$$
    mkdir "$group" || refuse "the control groups are not writable"
    # Its last members leave a moment after PID 1.
    remove_group() {
        for _ in {1..50}; do
            find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
            [ -d "$group" ] || return 0
            sleep 0.1
        done
    }
    trap remove_group EXIT
    status=0
    (
        echo $BASHPID >"$group/cgroup.procs"
        BOOT_STAGE=inside exec timeout --kill-after=2 "${4:-60}" \
            unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child "$0" "$@"
    ) || status=$?
    exit $status
fi

files=$(realpath "$1") binary=$(realpath "$2") out=$(realpath "$3")
mount --make-rprivate /
stage=$(mktemp -d)
mount -t tmpfs -o mode=755 diskchain-test "$stage"
mkdir "$stage"/{upper,work,root}
root=$stage/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$stage/upper,workdir=$stage/work" "$root" ||
    refuse "no overlay over /"

mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --make-rslave "$root/sys"
umount --lazy "$root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root"/dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
: >"$root/dev/console"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

# Nothing that this host enabled is to start.
rm -rf "$root"/etc/systemd/system/*.wants
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
cp -a "$files/." "$root/"
chmod 755 "$root"
: >"$root/usr/bin/diskchain"
mount --bind "$binary" "$root/usr/bin/diskchain"
mkdir "$root/out" "$root/.host"
mount --bind "$out" "$root/out"

# A new root by chroot would forbid PrivateUsers=; mounts that do not propagate would keep
# credentials and per-service mounts from arriving.
cd "$root"
pivot_root . .host
umount --lazy /.host
mount --make-rshared /
exec env -i container=diskchain-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=scenario.service --log-target=journal --show-status=false \
    </dev/null >/out/console.log 2>&1
