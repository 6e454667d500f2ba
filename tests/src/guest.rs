//! A Linux guest under QEMU's software emulation: the real kernel's NBD driver, on any host, as any user.
//!
//! ```text
//!   host                              guest (Debian's cloud kernel, an initramfs made here)
//!   Guest::program, ::modules   ──►   /init loads the modules, runs the script with `set -eu`
//!   Guest::qemu_args            ──►   /dev/vda, /dev/vdb …
//!   Outcome::console            ◄──   ttyS0: the kernel's and the script's output
//!   Outcome::report             ◄──   ttyS1: `report KEY VALUE` in the script, `exit` at the end
//! ```
//! Invariant: a guest that hangs, panics or fails its script fails the test, with its console shown. Only one that never
//! came to its /init is started again: nothing of what is under test has been touched then.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::test_dependency;
use crate::tool::{Ended, Tool};

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
exec </dev/null >/dev/ttyS0 2>&1
stty raw -echo -F /dev/ttyS1
echo "init: Linux $(uname -r)"
for module in $(cat /modules); do modprobe $module || echo "no module $module"; done
sh -eu /script
echo "exit $?" >/dev/ttyS1
poweroff -f
"#;

/// Without the check of its timer, which panics where the host is too busy to let the guest tick in time.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check";

/// The first words of /init.
const SIGN_OF_LIFE: &str = "init: ";

/// How long a guest may take to get there; on a busy machine it takes 40 seconds. About one guest in five hundred hangs in
/// the emulator before.
const TO_INIT: Duration = Duration::from_secs(90);

/// How often a guest is started that does not get there.
const STARTS: usize = 3;

/// What every script may use.
const FUNCTIONS: &str = r#"
await_socket() {
    tries=0
    until [ -S "$1" ]; do
        tries=$((tries + 1))
        [ $tries -lt 300 ]
        sleep 0.1
    done
}
"#;

const REPORT: &str = "#!/bin/sh\necho \"$@\" >/dev/ttyS1\n";

/// A guest being put together.
pub struct Guest {
    root: TempDir,
    modules: String,
    qemu_args: Vec<String>,
    seconds: u64,
}

/// What a guest whose script succeeded left behind.
pub struct Outcome {
    reports: BTreeMap<String, String>,
    /// The guest's console, for messages.
    pub console: String,
}

impl Guest {
    /// A guest with busybox, two CPUs and 512 MiB.
    ///
    /// # Panics
    /// When what `scripts/install-test-deps.sh` installs is missing.
    pub fn new() -> Guest {
        let root = tempfile::tempdir().expect("make a temporary folder");
        for folder in ["bin", "tools", "dev", "proc", "run", "sys", "tmp", "mnt", "disk", "lib/modules"] {
            fs::create_dir_all(root.path().join(folder)).expect("make a folder");
        }
        let guest = Guest { root, modules: String::new(), qemu_args: Vec::new(), seconds: 180 };
        guest.executable("init", INIT);
        guest.executable("bin/report", REPORT);
        fs::copy(find_program(Path::new("busybox")), guest.root.path().join("bin/busybox"))
            .expect("copy busybox");
        guest
    }

    /// Adds the program `name` (searched on PATH and in the system's sbin folders, or a path) as
    /// /tools/NAME, without its debugging symbols, with the libraries that it needs. The path matters:
    /// busybox's shell takes its own applet for a bare name.
    ///
    /// # Panics
    /// When there is no such program.
    #[track_caller]
    pub fn program(self, name: impl AsRef<Path>) -> Guest {
        let source = find_program(name.as_ref());
        let target = self.root.path().join("tools").join(source.file_name().expect("a program has a name"));
        Tool::new("strip").arg("-o").arg(&target).arg(&source).run();
        let ldd = Tool::new("ldd").arg(&source).run_any().text();
        for library in ldd.split_whitespace().filter(|word| word.starts_with('/')) {
            let copy = self.root.path().join(&library[1..]);
            fs::create_dir_all(copy.parent().expect("a library lies in a folder")).expect("make a folder");
            fs::copy(library, &copy).unwrap_or_else(|error| panic!("copy {library}: {error}"));
        }
        self
    }

    /// Adds kernel modules, with all that they depend on; /init loads them in this order.
    pub fn modules(mut self, names: &[&str]) -> Guest {
        let (version, tree) = kernel_modules();
        let dependencies = fs::read_to_string(tree.join("modules.dep")).expect("read modules.dep");
        let target = self.root.path().join("lib/modules").join(&version);
        for name in names {
            self.modules += &format!("{name}\n");
            let file = format!("/{name}.ko");
            let line = dependencies
                .lines()
                .find(|line| line.split(':').next().is_some_and(|module| module.ends_with(&file)));
            // A module that modules.dep does not name is built into the kernel.
            for module in line.unwrap_or("").replace(':', " ").split_whitespace() {
                let copy = target.join(module);
                fs::create_dir_all(copy.parent().expect("a module lies in a folder")).expect("make a folder");
                fs::copy(tree.join(module), copy).expect("copy a kernel module");
            }
        }
        self
    }

    /// Adds words to QEMU's command line; a drive with `if=virtio` is the next of /dev/vda, /dev/vdb …
    pub fn qemu_args<I: IntoIterator<Item = S>, S: Into<String>>(mut self, words: I) -> Guest {
        self.qemu_args.extend(words.into_iter().map(Into::into));
        self
    }

    /// Allows it `seconds` instead of 180.
    pub fn seconds(mut self, seconds: u64) -> Guest {
        self.seconds = seconds;
        self
    }

    /// Boots, runs `script` (busybox's sh, `set -eu`), and powers off.
    ///
    /// # Panics
    /// When the script fails or the guest does not end in time.
    #[track_caller]
    pub fn run(self, script: &str) -> Outcome {
        let files = tempfile::tempdir().expect("make a temporary folder");
        let initramfs = self.pack_initramfs(script, files.path());
        let mut words = vec!["-kernel".to_owned(), kernel_image().display().to_string()];
        words.extend(["-initrd".to_owned(), initramfs.display().to_string()]);
        words.extend(["-append".to_owned(), KERNEL_ARGUMENTS.to_owned()]);
        words.extend(self.qemu_args);
        let patience = |start| (start < STARTS).then_some(TO_INIT);
        let mut starts = (1..=STARTS).map(|start| emulate(&words, self.seconds, patience(start)));
        let outcome = starts.find_map(|outcome| outcome);
        outcome.expect("the last of them is not given up before its time is over")
    }

    /// Writes a disk of `mebibytes` that a PC's firmware boots: a FAT file system with SYSLINUX, the
    /// kernel, and an initramfs that runs `script` and powers off.
    #[track_caller]
    pub fn make_boot_disk(self, script: &str, image: &Path, mebibytes: u64) {
        let files = tempfile::tempdir().expect("make a temporary folder");
        let initramfs = self.pack_initramfs(script, files.path());
        let menu = files.path().join("syslinux.cfg");
        let linux = format!("KERNEL vmlinuz\nINITRD initrd\nAPPEND {KERNEL_ARGUMENTS}\n");
        fs::write(&menu, format!("DEFAULT linux\nLABEL linux\n{linux}")).expect("write a file");
        let disk = fs::File::create(image).expect("make a file");
        disk.set_len(mebibytes << 20).expect("set a file's length");
        Tool::new("/usr/sbin/mkfs.vfat").args(["-F", "16"]).arg(image).run();
        for (file, name) in [(&kernel_image(), "vmlinuz"), (&initramfs, "initrd"), (&menu, "syslinux.cfg")] {
            Tool::new("mcopy").arg("-i").arg(image).arg(file).arg(format!("::{name}")).run();
        }
        Tool::new("syslinux").arg("--install").arg(image).run();
    }

    #[track_caller]
    fn pack_initramfs(&self, script: &str, to: &Path) -> PathBuf {
        self.executable("script", &format!("{FUNCTIONS}{script}"));
        fs::write(self.root.path().join("modules"), &self.modules).expect("write a file");
        let (version, tree) = kernel_modules();
        let modules = self.root.path().join("lib/modules").join(&version);
        fs::create_dir_all(&modules).expect("make a folder");
        for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
            // Only depmod's warnings depend on them.
            let _ = fs::copy(tree.join(list), modules.join(list));
        }
        Tool::new("/usr/sbin/depmod").arg("-b").arg(self.root.path()).arg(&version).run();
        let initramfs = to.join("initramfs.cpio");
        let pack = format!("find . | cpio --quiet -o -H newc > {}", initramfs.display());
        Tool::new("sh").args(["-c", &pack]).current_dir(self.root.path()).run();
        initramfs
    }

    fn executable(&self, name: &str, text: &str) {
        let path = self.root.path().join(name);
        fs::write(&path, text).expect("write a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    }
}

impl Default for Guest {
    fn default() -> Guest {
        Guest::new()
    }
}

impl Outcome {
    /// The value that the script gave to `report KEY VALUE`.
    ///
    /// # Panics
    /// When it gave none.
    #[track_caller]
    pub fn report(&self, key: &str) -> &str {
        let value = self.reports.get(key);
        value.unwrap_or_else(|| panic!("the guest reported no {key}; its console:\n{}", self.console))
    }

    /// The same, as a number.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn number(&self, key: &str) -> u64 {
        let value = self.report(key);
        value.parse().unwrap_or_else(|_| panic!("{key} is no number: {value}"))
    }
}

/// Runs QEMU with `words` until the guest has powered off.
///
/// # Panics
/// When the guest does not end within `seconds`, or reports another end of its script than success.
#[track_caller]
pub fn boot(words: &[String], seconds: u64) -> Outcome {
    emulate(words, seconds, None).expect("it is not given up before its time is over")
}

/// Runs QEMU with `words` until the guest has powered off; `None` if it did not come to its /init within `to_init`, if that
/// is given.
#[track_caller]
fn emulate(words: &[String], seconds: u64, to_init: Option<Duration>) -> Option<Outcome> {
    let files = tempfile::tempdir().expect("make a temporary folder");
    let (console, reports) = (files.path().join("ttyS0"), files.path().join("ttyS1"));
    let text = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    // Always software emulation: nested KVM is often present and unusable.
    let qemu = Tool::new("qemu-system-x86_64");
    let qemu = qemu.args(["-accel", "tcg", "-m", "512", "-smp", "2", "-display", "none", "-no-reboot"]);
    let qemu = qemu.args(["-nic", "none", "-monitor", "none"]);
    let qemu = qemu.arg("-serial").arg(format!("file:{}", console.display()));
    let qemu = qemu.arg("-serial").arg(format!("file:{}", reports.display()));
    let start = Instant::now();
    let lives = || text(&console).contains(SIGN_OF_LIFE);
    let outcome = qemu
        .args(words)
        .seconds(seconds)
        .run_while(|| to_init.is_none_or(|most| start.elapsed() < most) || lives());
    if outcome.is_err() && to_init.is_some() && !lives() {
        eprintln!("the guest did not come to its /init: once more");
        return None;
    }

    let (console, reports) = (text(&console), text(&reports));
    let shown =
        |ended: &Ended| format!("{ended}\n-- the guest's console:\n{console}\n-- reports:\n{reports}");
    let ended = outcome.unwrap_or_else(|ended| panic!("not within {seconds} s: {}", shown(&ended)));
    assert!(ended.status.success(), "{}", shown(&ended));
    let reports: BTreeMap<String, String> = reports
        .lines()
        .filter_map(|line| line.trim().split_once(' '))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let exit = reports.get("exit").map(String::as_str);
    assert_eq!(exit, Some("0"), "the guest's script failed; its console:\n{console}\n{reports:#?}");
    Some(Outcome { reports, console })
}

/// Makes an ext4 image of `mebibytes` at `image` that holds the files of the folder `from`.
#[track_caller]
pub fn make_ext4(image: &Path, from: &Path, mebibytes: u64) {
    let mke2fs = Tool::new("/usr/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(from).arg(image);
    mke2fs.arg(format!("{mebibytes}M")).run();
}

/// Copies the file `name` out of the ext4 image `image`.
///
/// # Panics
/// When it is not there.
#[track_caller]
pub fn extract(image: &Path, name: &str, to: &Path) {
    let request = format!("dump {name} {}", to.display());
    let ended = Tool::new("/usr/sbin/debugfs").args(["-R", &request]).arg(image).run();
    assert!(to.exists(), "{ended}");
}

fn kernel_image() -> PathBuf {
    let (version, _) = kernel_modules();
    test_dependency("kernel").join("boot").join(format!("vmlinuz-{version}"))
}

fn kernel_modules() -> (String, PathBuf) {
    let all = test_dependency("kernel").join("lib/modules");
    let mut versions = fs::read_dir(&all).expect("read the folder of kernel modules");
    let version = versions.next().expect("one kernel").expect("read a folder").file_name();
    let version = version.into_string().expect("a kernel version is text");
    let tree = all.join(&version);
    (version, tree)
}

#[track_caller]
fn find_program(name: &Path) -> PathBuf {
    if name.is_absolute() {
        return name.to_path_buf();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"]);
    let found = folders.map(|folder| Path::new(folder).join(name)).find(|program| program.is_file());
    found.unwrap_or_else(|| panic!("no {}: run scripts/install-test-deps.sh", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose processors stand still.
    fn stopped() -> [String; 1] {
        ["-S".to_owned()]
    }

    #[test]
    fn a_guest_that_does_not_come_to_its_init_is_given_up() {
        assert!(emulate(&stopped(), 60, Some(Duration::from_millis(300))).is_none());
    }

    #[test]
    #[should_panic(expected = "not within 1 s")]
    fn a_guest_that_hangs_fails_the_test() {
        emulate(&stopped(), 1, None);
    }
}
