//! A block device under the images that fails writes for a while: Linux's device mapper in a QEMU guest, where the
//! daemon, its images and its clients all live.
//!
//! ```text
//!   /dev/nbd0, /dev/nbd1  ──▶  daemon  ──▶  /disk: ext4 without a journal  ──▶  dm-0: linear or flakey  ──▶  /dev/vdb
//! ```
//! Linux tells of a failed write-back once, to the next sync of each open file, and takes the pages for clean
//! afterwards: whoever answers the sync after that with success lies.

use std::fs;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::guest::{Guest, extract};
use diskchain_tests::server::{diskchain, diskchain_binary};
use diskchain_tests::tool::Tool;

const MIB: u64 = 1 << 20;

const CONFIG: &str = r#"
[server]
listen = ["unix:/run/nbd.sock"]
control = "unix:/run/control.sock"
[log]
format = "json"
[disk.child]
layers = [
  { file = "/disk/base.vdi", format = "vdi" },
  { file = "/disk/child1.vdi", format = "vdi" },
]
[disk.raw]
file = "/disk/disk.raw"
format = "raw"
"#;

const STORY: &str = r#"
sectors=$(blockdev --getsz /dev/vda)
healthy="0 $sectors linear /dev/vda 0"
failing="0 $sectors flakey /dev/vda 0 0 1 1 error_writes"
dm="/tools/dmsetup --noudevsync --noudevrules"
becomes() {
    $dm suspend --noflush --nolockfs bad
    $dm load bad --table "$1"
    $dm resume bad
}
$dm create bad --table "$healthy"
mount -t ext4 -o errors=continue /dev/dm-0 /disk
trap 'cat /run/server.log' EXIT

start_server() {
    rm -f /run/nbd.sock
    /tools/diskchain serve --config /run/diskchain.toml >>/run/server.log 2>&1 &
    server=$!
    await_socket /run/nbd.sock
    /tools/nbd-client -unix /run/nbd.sock -N child /dev/nbd0
    /tools/nbd-client -unix /run/nbd.sock -N raw /dev/nbd1
}
# Writes 64 KiB at the given MiB of a disk and has the kernel flush: ok or failed.
write_and_flush() {
    if dd if=/tmp/data of=/dev/nbd$1 bs=64k count=1 seek=$(($2 * 16)) conv=notrunc,fsync 2>/dev/null; then
        echo ok
    else
        echo failed
    fi
}
condition() {
    /tools/diskchain show $1 --control /run/control.sock | sed -n 's/^ *condition  *//p'
}
dd if=/dev/urandom of=/tmp/data bs=64k count=1 2>/dev/null
cat >/run/diskchain.toml <<END
CONFIG
END
start_server
for disk in 0 1; do report before$disk $(write_and_flush $disk 1); done
report sound $(condition child) $(condition raw)

becomes "$failing"
for disk in 0 1; do report during$disk $(write_and_flush $disk 2); done
becomes "$healthy"
# The device is well again, and the kernel would sync without an error.
for disk in 0 1; do
    report after$disk $(write_and_flush $disk 3) $(write_and_flush $disk 4)
done
report known $(condition child) $(condition raw)
# What is there can still be read.
for disk in 0 1; do
    dd if=/dev/nbd$disk bs=64k count=1 skip=16 2>/dev/null | cmp - /tmp/data
done
/tools/nbd-client -d /dev/nbd0
/tools/nbd-client -d /dev/nbd1
kill -TERM $server
code=0
wait $server || code=$?
report code $code
report logged $(grep -c '"level":"ERROR"' /run/server.log || true)

# Opened again, they are as good as what the device has.
start_server
report again $(condition child) $(condition raw)
for disk in 0 1; do
    report again$disk $(write_and_flush $disk 5)
    echo 3 >/proc/sys/vm/drop_caches
    dd if=/dev/nbd$disk bs=64k count=1 skip=16 2>/dev/null | cmp - /tmp/data
    dd if=/dev/nbd$disk bs=64k count=1 skip=80 2>/dev/null | cmp - /tmp/data
done
/tools/nbd-client -d /dev/nbd0
/tools/nbd-client -d /dev/nbd1
kill -TERM $server
wait $server
umount /disk
$dm remove bad
"#;

#[test]
fn a_flush_that_a_device_failed_fails_until_the_image_is_opened_again() {
    let mut chain = Chain::new(Base::Vdi, 16 * MIB);
    chain.push_child();
    let images = tempfile::tempdir().expect("a folder");
    for file in chain.files() {
        fs::copy(file, images.path().join(file.file_name().expect("a name"))).expect("copy an image");
    }
    let raw = fs::File::create(images.path().join("disk.raw")).expect("make a file");
    raw.set_len(16 * MIB).expect("set its length");
    let disk = chain.dir().join("guest.ext4");
    // With a journal ext4 would notice as well, and refuse everything from then on.
    let mke2fs = Tool::new("/usr/sbin/mke2fs").args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]);
    mke2fs.arg(images.path()).arg(&disk).arg("128M").run();
    let outcome = Guest::new()
        .program(diskchain_binary())
        .program("nbd-client")
        .program("dmsetup")
        .modules(&["virtio_pci", "virtio_blk", "ext4", "nbd", "dm-mod", "dm-flakey"])
        .qemu_args(["-drive", &format!("file={},format=raw,if=virtio", disk.display())])
        .run(&STORY.replace("CONFIG", CONFIG));
    let console = &outcome.console;
    assert_eq!(outcome.report("sound"), "sound sound", "{console}");
    for disk in [0, 1] {
        assert_eq!(outcome.report(&format!("before{disk}")), "ok", "{console}");
        assert_eq!(outcome.report(&format!("during{disk}")), "failed", "{console}");
        assert_eq!(outcome.report(&format!("after{disk}")), "failed failed", "{console}");
        assert_eq!(outcome.report(&format!("again{disk}")), "ok", "{console}");
    }
    assert_eq!(outcome.report("known"), "flush-failed flush-failed", "{console}");
    assert_eq!(outcome.number("code"), 1, "the end tells that not all was well: {console}");
    assert!(outcome.number("logged") >= 2, "each disk's failure is in the log: {console}");
    assert_eq!(outcome.report("again"), "sound sound", "{console}");
    for file in chain.files() {
        let name = file.file_name().expect("a name").to_string_lossy();
        extract(&disk, &name, file);
        diskchain(&["image", "check"]).arg(file).run();
    }
}
