//! The Linux kernel as the client: its own NBD driver inside a QEMU guest, and QEMU's virtio disk on an
//! export of the host.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::guest::{Guest, Outcome, boot, extract, make_ext4};
use diskchain_tests::rng::Rng;
use diskchain_tests::server::diskchain_binary;
use diskchain_tests::tool::{Tool, sha256};

const MIB: u64 = 1 << 20;

/// The daemon serves $TOP, a file of /disk, inside the guest; `connect` and `disconnect` are the
/// kernel's two connections to it.
const GUEST_SERVER: &str = r#"
mount -t ext4 /dev/vda /disk
trap 'cat /run/server.log' EXIT

start_server() {
    rm -f /run/nbd.sock
    /tools/diskchain serve /disk/$TOP --format vdi --listen unix:/run/nbd.sock >>/run/server.log 2>&1 &
    server=$!
    await_socket /run/nbd.sock
}

connect() {
    /tools/nbd-client -unix /run/nbd.sock -N ${TOP%.vdi} /dev/nbd0 -C 2
}

disconnect() {
    /tools/nbd-client -d /dev/nbd0
}

stop_server() {
    kill -TERM $server
    wait $server
    umount /disk
}

start_server

# The driver receives by work that never ends, a piece for each connection. In a guest that is too slow to make a thread for
# it within 10 ms a single thread takes all of it and hears one connection only, until requests on the other time out. The
# threads of a first connection are there for the next.
connect
disconnect
dmesg -c >/dev/null
"#;

/// A file system made, used, remounted, trimmed and checked.
const FILE_SYSTEM_STORY: &str = r#"
connect
/tools/mke2fs -q -t ext4 /dev/nbd0
mount -o discard /dev/nbd0 /mnt
mkdir /mnt/files
for i in 0 1 2 3; do dd if=/dev/urandom of=/mnt/files/$i bs=1M count=4 2>/dev/null; done
dd if=/dev/urandom of=/mnt/keep bs=1k count=333 2>/dev/null
sync
(cd /mnt && find . -type f | sort | xargs md5sum) >/tmp/before
umount /mnt

mount -o discard /dev/nbd0 /mnt
(cd /mnt && find . -type f | sort | xargs md5sum) >/tmp/after
cmp /tmp/before /tmp/after
report files $(wc -l </tmp/after)
full=$(stat -c %s /disk/$TOP)
report full_length $full
report full_kib $(du -k /disk/$TOP | cut -f1)

rm -r /mnt/files
sync
fstrim -v /mnt
sync
# The daemon moves blocks into the holes and cuts the file when it has a quiet moment.
tries=0
while [ $(stat -c %s /disk/$TOP) -gt $((full - 12582912)) ] && [ $tries -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
report trimmed_length $(stat -c %s /disk/$TOP)
report trimmed_kib $(du -k /disk/$TOP | cut -f1)
md5sum /mnt/keep
umount /mnt
/tools/e2fsck -fn /dev/nbd0
disconnect

connect
/tools/e2fsck -fn /dev/nbd0
mount -o ro /dev/nbd0 /mnt
(cd /mnt && grep keep /tmp/before | md5sum -c)
umount /mnt
disconnect
report errors $(dmesg | grep -ciE 'I/O error|timed out' || true)
stop_server
"#;

/// Runs `story` in a guest that has the images of `chain` in /disk; the images come back as the
/// guest left them.
#[track_caller]
fn with_the_kernels_driver(chain: &Chain, story: &str) -> Outcome {
    let images = tempfile::tempdir().unwrap();
    for file in chain.files() {
        fs::copy(file, images.path().join(file.file_name().unwrap())).unwrap();
    }
    let disk = chain.dir().join("guest.ext4");
    make_ext4(&disk, images.path(), 256);
    let top = chain.top().file_name().unwrap().to_string_lossy();
    let outcome = Guest::new()
        .program(diskchain_binary())
        .program("nbd-client")
        .program(env!("CARGO_BIN_EXE_nbd-attach"))
        .program("mke2fs")
        .program("e2fsck")
        .modules(&["virtio_pci", "virtio_blk", "ext4", "nbd"])
        .qemu_args(["-drive", &format!("file={},format=raw,if=virtio", disk.display())])
        .run(&format!("TOP={top}\n{GUEST_SERVER}{story}"));
    for file in chain.files() {
        let name = file.file_name().unwrap().to_string_lossy();
        extract(&disk, &name, file);
    }
    outcome
}

#[track_caller]
fn file_system_survives_and_shrinks(chain: &Chain) {
    let outcome = with_the_kernels_driver(chain, FILE_SYSTEM_STORY);
    let console = &outcome.console;
    assert_eq!(outcome.number("files"), 5, "{console}");
    assert_eq!(outcome.number("errors"), 0, "{console}");
    let (full, trimmed) = (outcome.number("full_length"), outcome.number("trimmed_length"));
    assert!(full > 16 * MIB, "the files are in the image: {full}\n{console}");
    assert!(trimmed + 12 * MIB < full, "the image was cut from {full} to {trimmed}\n{console}");
    let (full, trimmed) = (outcome.number("full_kib"), outcome.number("trimmed_kib"));
    assert!(trimmed + 12 * 1024 < full, "its host gave back space: {full} to {trimmed} KiB\n{console}");
    chain.check();
}

#[test]
fn ext4_over_the_kernels_nbd_lives_on_a_vdi_and_fstrim_shrinks_it() {
    file_system_survives_and_shrinks(&Chain::new(Base::Vdi, 64 * MIB));
}

#[test]
fn ext4_over_the_kernels_nbd_lives_on_a_child_of_a_vdi_and_fstrim_shrinks_it() {
    let mut chain = Chain::new(Base::Vdi, 64 * MIB);
    chain.push_child();
    let base = sha256(chain.base());
    file_system_survives_and_shrinks(&chain);
    assert_eq!(sha256(chain.base()), base, "the parent was not written");
}

#[test]
fn a_file_system_of_the_parent_is_changed_in_the_child_alone() {
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join("README.TXT"), "from the base\n").unwrap();
    let mut chain = Chain::new(Base::Vdi, 64 * MIB);
    let raw = chain.dir().join("base.img");
    make_ext4(&raw, files.path(), 64);
    Tool::new("qemu-img").args(["convert", "-f", "raw", "-O", "vdi"]).arg(&raw).arg(chain.base()).run();
    chain.push_child();
    let base = sha256(chain.base());
    let outcome = with_the_kernels_driver(
        &chain,
        "connect\n\
         mount -o discard /dev/nbd0 /mnt\n\
         report readme $(cat /mnt/README.TXT)\n\
         echo 'from the child' >/mnt/README.TXT\n\
         umount /mnt\n\
         mount /dev/nbd0 /mnt\n\
         report changed $(cat /mnt/README.TXT)\n\
         umount /mnt\n\
         disconnect\n\
         stop_server\n",
    );
    assert_eq!(outcome.report("readme"), "from the base");
    assert_eq!(outcome.report("changed"), "from the child");
    assert_eq!(sha256(chain.base()), base, "the parent was not written");
    chain.check();
}

/// Files written and made durable while the server is killed three times and stopped twice; the kernel holds requests
/// back until new connections take the place of the dead ones.
const KILLED_SERVER_STORY: &str = r#"
name=${TOP%.vdi}
/tools/nbd-attach connect 0 /run/nbd.sock $name 2
/tools/mke2fs -q -t ext4 /dev/nbd0
mount -o discard /dev/nbd0 /mnt

(
    set -eu
    for i in $(seq 40); do
        dd if=/dev/urandom of=/tmp/new bs=1k count=$((i * 10)) 2>/dev/null
        cp /tmp/new /mnt/$i
        sync
        (cd /tmp && md5sum new | sed s/new/$i/) >>/tmp/sums
        sleep 0.1
    done
) &
writer=$!

kills=0
while [ $kills -lt 5 ]; do
    sleep 0.$((kills + 3))
    [ $((kills % 2)) = 0 ] && signal=KILL || signal=TERM
    kill -$signal $server
    wait $server || true
    start_server
    # A server's end is noticed at once, but by another thread of the kernel.
    sleep 0.3
    /tools/nbd-attach reconfigure 0 /run/nbd.sock $name 2
    kill -0 $writer && kills=$((kills + 1))
done
report kills $kills
wait $writer

umount /mnt
mount /dev/nbd0 /mnt
(cd /mnt && md5sum -c /tmp/sums >/dev/null)
umount /mnt
/tools/e2fsck -fn /dev/nbd0
/tools/nbd-attach disconnect 0
report errors $(dmesg | grep -ci 'I/O error' || true)
stop_server
"#;

#[test]
fn the_kernels_driver_does_not_notice_that_the_daemon_is_killed_or_stopped_and_comes_back() {
    let mut chain = Chain::new(Base::Vdi, 64 * MIB);
    chain.push_child();
    let outcome = with_the_kernels_driver(&chain, KILLED_SERVER_STORY);
    assert_eq!(outcome.number("kills"), 5, "the kills met the writer: {}", outcome.console);
    assert_eq!(outcome.number("errors"), 0, "{}", outcome.console);
    chain.check();
}

/// The host of the image has less room than the disk: files are made durable one by one until nothing goes any more;
/// then there is room again.
const FULL_HOST_STORY: &str = r#"
connect
/tools/mke2fs -q -t ext4 /dev/nbd0
mount -o errors=continue /dev/nbd0 /mnt
# All but 12 MiB of the host's file system.
dd if=/dev/zero of=/disk/filler bs=64k 2>/dev/null || true
dd if=/dev/null of=/disk/filler bs=1M seek=$(($(stat -c %s /disk/filler) / 1048576 - 12)) 2>/dev/null
durable=0
for i in $(seq 40); do
    dd if=/dev/urandom of=/tmp/new bs=1M count=1 2>/dev/null
    dd if=/tmp/new of=/mnt/$i bs=1M conv=fsync 2>/dev/null || break
    (cd /tmp && md5sum new | sed s/new/$i/) >>/tmp/sums
    durable=$i
done
report durable $durable
report refused $(grep -c 'No space left' /run/server.log || true)
umount /mnt || true
disconnect
rm /disk/filler

connect
# What the kernel could not write is ext4's to repair; what was durable is there.
/tools/e2fsck -fy /dev/nbd0 || [ $? -le 2 ]
mount /dev/nbd0 /mnt
(cd /mnt && md5sum -c /tmp/sums >/dev/null)
# With room again, everything goes.
dd if=/dev/urandom of=/tmp/new bs=1M count=8 2>/dev/null
dd if=/tmp/new of=/mnt/more bs=1M conv=fsync 2>/dev/null
cmp /tmp/new /mnt/more
umount /mnt
/tools/e2fsck -fn /dev/nbd0
disconnect
stop_server
"#;

#[test]
fn files_that_were_durable_survive_a_host_that_is_full_under_the_kernels_driver() {
    let chain = Chain::new(Base::Vdi, 64 * MIB);
    let outcome = with_the_kernels_driver(&chain, FULL_HOST_STORY);
    let console = &outcome.console;
    let durable = outcome.number("durable");
    assert!((1..40).contains(&durable), "some files were made durable, then the host was full: {console}");
    assert!(outcome.number("refused") > 0, "the daemon met the full file system: {console}");
    chain.check();
}

/// What the booted guest does with the FAT file system that it was booted from.
const BOOTED_STORY: &str = r#"
mount -t vfat /dev/vda /mnt
report readme $(cat /mnt/readme.txt)
cp /mnt/vmlinuz /mnt/copy
echo 'the guest was here' >/mnt/guest.txt
umount /mnt
mount -t vfat -o ro /dev/vda /mnt
cmp /mnt/vmlinuz /mnt/copy
umount /mnt
"#;

#[test]
fn qemu_boots_from_an_export_of_a_chain_and_writes_to_it() {
    let mut chain = Chain::new(Base::Vdi, 96 * MIB);
    let (raw, readme) = (chain.dir().join("boot.img"), chain.dir().join("readme.txt"));
    let modules = ["virtio_pci", "virtio_blk", "vfat", "nls_ascii", "nls_cp437", "nls_utf8"];
    Guest::new().modules(&modules).make_boot_disk(BOOTED_STORY, &raw, 96);
    fs::write(&readme, "installed by the host\n").unwrap();
    Tool::new("mcopy").arg("-i").arg(&raw).arg(&readme).arg("::readme.txt").run();
    Tool::new("qemu-img").args(["convert", "-f", "raw", "-O", "vdi"]).arg(&raw).arg(chain.base()).run();
    chain.push_child();
    let base = sha256(chain.base());

    let server = chain.serve();
    let drive = format!("file={},format=raw,if=virtio", server.uri(""));
    let outcome = boot(&["-drive".to_owned(), drive], 120);
    assert_eq!(outcome.report("readme"), "installed by the host");

    let copy = chain.dir().join("copy.img");
    Tool::new("nbdcopy").arg(server.uri("")).arg(&copy).run();
    server.stop();
    let written = Tool::new("mtype").arg("-i").arg(&copy).arg("::guest.txt").run();
    assert_eq!(written.text(), "the guest was here\n");
    assert_eq!(sha256(chain.base()), base, "the parent was not written");
    chain.check();
}

/// Thirty files, each durable before the next; then all of them are read back.
const WRITING_STORY: &str = r#"
/tools/mke2fs -q -t ext4 /dev/vda
mount /dev/vda /mnt
for i in $(seq 30); do
    dd if=/dev/urandom of=/tmp/new bs=1k count=$((i * 20)) 2>/dev/null
    cp /tmp/new /mnt/$i
    sync
    (cd /tmp && md5sum new | sed s/new/$i/) >>/tmp/sums
    sleep 0.2
done
umount /mnt
mount /dev/vda /mnt
(cd /mnt && md5sum -c /tmp/sums >/dev/null)
umount /mnt
/tools/e2fsck -fn /dev/vda
report errors $(dmesg | grep -ciE 'I/O error' || true)
"#;

#[test]
fn a_virtual_machine_does_not_notice_kill_9_of_the_daemon_that_comes_back() {
    let mut chain = Chain::new(Base::Vdi, 64 * MIB);
    chain.push_child();
    let mut server = chain.serve();
    let node = format!(
        "driver=nbd,node-name=disk,server.type=unix,server.path={},export=,reconnect-delay=60",
        server.socket().display()
    );
    let guest = Guest::new()
        .program("mke2fs")
        .program("e2fsck")
        .modules(&["virtio_pci", "virtio_blk", "ext4"])
        .qemu_args(["-blockdev", &node, "-device", "virtio-blk-pci,drive=disk"]);
    let mut rng = Rng::for_test("kill-under-qemu");
    let mut kills = 0;
    let (outcome, server) = thread::scope(|scope| {
        let guest = scope.spawn(|| guest.run(WRITING_STORY));
        // The first kill comes when the guest has begun to write.
        while length(chain.top()) < 4 * MIB && !guest.is_finished() {
            thread::sleep(Duration::from_millis(50));
        }
        while !guest.is_finished() && kills < 8 {
            server.kill();
            server = chain.serve();
            kills += 1;
            thread::sleep(Duration::from_millis(rng.within(200..1200)));
        }
        (guest.join().expect("the guest's thread"), server)
    });
    assert_eq!(outcome.number("errors"), 0, "{}", outcome.console);
    assert!(kills >= 4, "the guest wrote for long enough to meet {kills} kills");
    server.stop();
    chain.check();
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |metadata| metadata.len())
}
