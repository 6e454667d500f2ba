//! What the daemon shuts itself off from before it does anything: with Landlock, all files but those of its
//! configuration, all TCP ports but its own, and signals to other processes; and new privileges for good.
//!
//! ```text
//!   images, image_dirs                read          (parents are looked for in image_dirs)
//!   images that are served to write   write
//!   folders of missing images         read, write, make and remove files   (create =)
//!   folders of ephemeral disks        read and write files                 (their overlays have no name)
//!   folders of sockets                make and remove sockets              (not of those that were handed in)
//!   /proc                             list          (which processes there are, to know its own lock)
//!   /proc/self, /proc/stat, some of /sys   read     (metrics, block devices)
//!   /dev/random, /dev/urandom         read          (new UUIDs, where the C library does not ask the kernel directly)
//! ```
//! A right to a folder is a right to all below it, so a folder is given only where a file alone will not do. Landlock
//! holds for the thread that asks for it and for those that it starts afterwards. So this is done before the runtime
//! has any, by what the configuration says.
//!
//! Invariant: all threads are in the sandbox or none is, and what the configuration names works in it as outside.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use diskchain_config::plan::{Disk, Listen, Plan};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The rights that are taken away where the kernel knows them. Rights of later kernels are left alone.
const RIGHTS: ABI = ABI::V6;

/// Where the system tells of itself what the daemon, its runtime and the C library ask: the load of the process, how
/// many processors it may use, what a block device can do.
const SYSTEM: [&str; 7] = [
    "/dev/random",
    "/dev/urandom",
    "/proc/self",
    "/proc/stat",
    "/sys/dev/block",
    "/sys/devices",
    "/sys/fs/cgroup",
];

/// What looking up a host name takes, wherever the C library looks.
const RESOLVER: [&str; 10] = [
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
    "/etc/services",
    "/lib",
    "/lib64",
    "/run/systemd/resolve",
    "/usr/lib",
];

/// A name server is asked here when its answer is too long for a datagram.
const DNS: u16 = 53;

/// What became of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sandbox {
    /// Nobody asked for it.
    Off,
    /// It holds for this process.
    On,
    /// It holds as far as this kernel knows how.
    Partly,
    /// There is none, for this reason.
    Unavailable(String),
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sandbox::Off => f.write_str("not sandboxed"),
            Sandbox::On => {
                f.write_str("sandboxed: only the files and ports of the configuration can be reached")
            }
            Sandbox::Partly => {
                f.write_str("sandboxed as far as this kernel can (Landlock of Linux 6.12 does all)")
            }
            Sandbox::Unavailable(why) => write!(f, "not sandboxed: {why}"),
        }
    }
}

impl Sandbox {
    /// Whether a file can be out of reach because of it.
    pub fn holds(&self) -> bool {
        matches!(self, Sandbox::On | Sandbox::Partly)
    }
}

/// Puts this thread, and all that it starts from now on, into a sandbox that leaves what `plan` needs. New privileges
/// are given up also where there is no sandbox to be had.
pub fn enter(plan: &Plan) -> Sandbox {
    match restrict(plan) {
        Ok(RulesetStatus::FullyEnforced) => Sandbox::On,
        Ok(RulesetStatus::PartiallyEnforced) => Sandbox::Partly,
        Ok(RulesetStatus::NotEnforced) => {
            Sandbox::Unavailable("there is no Landlock here, or a system call filter forbids it".to_owned())
        }
        Err(error) => Sandbox::Unavailable(error.to_string()),
    }
}

fn restrict(plan: &Plan) -> Result<RulesetStatus, RulesetError> {
    let needs = Needs::of(plan);
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))?
        .handle_access(AccessNet::from_all(RIGHTS))?
        .scope(Scope::from_all(RIGHTS))?
        .create()?;
    let use_file = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    for (paths, access) in [
        (&needs.list, AccessFs::ReadDir.into()),
        (&needs.read, AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::IoctlDev),
        (&needs.write, use_file | AccessFs::IoctlDev),
        (&needs.overlays, use_file),
        (&needs.make, use_file | AccessFs::ReadDir | AccessFs::MakeReg | AccessFs::RemoveFile),
        (&needs.sockets, AccessFs::MakeSock | AccessFs::RemoveFile),
    ] {
        for path in paths {
            ruleset = allow(ruleset, path, access)?;
        }
    }
    for port in needs.listen {
        ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    for port in needs.connect {
        ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

/// A path that cannot be opened is left out: whoever needs it will say what is wrong with it.
fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(fd) = PathFd::new(path) else { return Ok(ruleset) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(RIGHTS) };
    if access.is_empty() {
        return Ok(ruleset);
    }
    ruleset.add_rule(PathBeneath::new(fd, access))
}

/// What a configuration takes.
#[derive(Debug, Default)]
struct Needs {
    list: BTreeSet<PathBuf>,
    read: BTreeSet<PathBuf>,
    write: BTreeSet<PathBuf>,
    overlays: BTreeSet<PathBuf>,
    make: BTreeSet<PathBuf>,
    sockets: BTreeSet<PathBuf>,
    /// TCP ports.
    listen: BTreeSet<u16>,
    connect: BTreeSet<u16>,
}

impl Needs {
    fn of(plan: &Plan) -> Needs {
        let mut needs = Needs::default();
        needs.list.insert("/proc".into());
        needs.read.extend(SYSTEM.map(PathBuf::from));
        needs.write.insert("/dev/null".into());
        needs.read.extend(plan.server.image_dirs.iter().cloned());
        for disk in &plan.disks {
            needs.add_disk(disk);
        }
        for listen in &plan.server.listen {
            match listen {
                Listen::Unix(path) => needs.add_socket(path),
                Listen::Tcp(host, port) => {
                    needs.listen.insert(*port);
                    if host.parse::<IpAddr>().is_err() {
                        needs.connect.insert(DNS);
                        needs.read.extend(RESOLVER.map(PathBuf::from));
                    }
                }
            }
        }
        if let Some(control) = &plan.server.control {
            needs.add_socket(control);
        }
        needs
    }

    fn add_disk(&mut self, disk: &Disk) {
        for layer in &disk.layers {
            if layer.create.is_some() && layer.file.symlink_metadata().is_err() {
                self.make.extend(layer.file.parent().map(Path::to_path_buf));
            } else {
                self.read.insert(layer.file.clone());
            }
        }
        let top = &disk.top().file;
        if disk.writes_top() {
            self.write.insert(top.clone());
        }
        // Where it is really, and not where a link to it is.
        if disk.ephemeral
            && let Ok(path) = std::fs::canonicalize(top)
        {
            self.overlays.extend(path.parent().map(Path::to_path_buf));
        }
    }

    fn add_socket(&mut self, path: &Path) {
        self.sockets.extend(path.parent().map(Path::to_path_buf));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use diskchain_config::DefaultSockets;

    use super::*;

    fn plan(folder: &Path, text: &str) -> Plan {
        let sockets = DefaultSockets::under(folder);
        let checked = diskchain_config::check(&folder.join("diskchain.toml"), text.to_owned(), &sockets);
        checked.unwrap_or_else(|wrong| panic!("{}", wrong.render(false))).plan
    }

    /// Runs `inside` on a thread that is in the sandbox of a configuration in `folder`.
    fn sandboxed(folder: &Path, text: &str, inside: impl FnOnce() + Send + 'static) {
        let plan = plan(folder, text);
        let inside = move || {
            assert_eq!(enter(&plan), Sandbox::On, "this test needs Landlock as of Linux 6.12");
            // A thread that is started in it is in it.
            std::thread::spawn(inside).join().expect("what is expected inside");
        };
        std::thread::spawn(inside).join().expect("what is expected inside");
    }

    /// A port that nobody uses. A configuration has to name one.
    fn free_port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("its address").port()
    }

    #[track_caller]
    fn denied<T: fmt::Debug>(outcome: std::io::Result<T>) {
        assert_eq!(outcome.expect_err("out of reach").kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn only_what_the_configuration_names_can_be_reached() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().canonicalize().unwrap();
        for sub in ["images", "made", "run"] {
            std::fs::create_dir(dir.join(sub)).unwrap();
        }
        for file in ["images/top.vdi", "images/base.vdi", "images/unnamed.vdi", "secret"] {
            std::fs::write(dir.join(file), "x").unwrap();
        }
        let port = free_port();
        let text = format!(
            "[server]\nlisten = [\"unix:run/nbd.sock\", \"tcp:127.0.0.1:{port}\"]\ncontrol = \"off\"\n\
             [disk.a]\nlayers = [{{ file = \"images/base.vdi\" }}, {{ file = \"images/top.vdi\" }}]\n\
             [disk.b]\nfile = \"made/new.vdi\"\ncreate = {{ size = \"1MiB\", format = \"vdi\" }}\n"
        );
        sandboxed(&dir.clone(), &text, move || {
            let write = |file: &str| OpenOptions::new().write(true).open(dir.join(file));
            File::open(dir.join("images/base.vdi")).expect("a parent is read");
            denied(write("images/base.vdi"));
            write("images/top.vdi").expect("the top is written");
            denied(File::create(dir.join("images/other.vdi")));
            File::create(dir.join("made/.unfinished")).expect("an image is made");
            std::fs::rename(dir.join("made/.unfinished"), dir.join("made/new.vdi")).expect("and named");
            File::open(dir.join("made")).expect("a folder that is made durable").sync_all().expect("durable");
            UnixListener::bind(dir.join("run/nbd.sock")).expect("a socket is made");
            std::fs::remove_file(dir.join("run/nbd.sock")).expect("and removed");
            denied(UnixListener::bind(dir.join("images/nbd.sock")));
            let unnamed = dir.join("images/unnamed.vdi");
            for outside in [unnamed, dir.join("secret"), "/etc/passwd".into(), "/proc/1/status".into()] {
                denied(File::open(outside));
            }
            denied(std::fs::read_dir("/"));
            denied(std::process::Command::new("/bin/true").status());
            let parent = rustix::process::getppid().expect("a parent");
            denied(rustix::process::test_kill_process(parent).map_err(std::io::Error::from));
            TcpListener::bind(("127.0.0.1", port)).expect("its own port");
            denied(TcpListener::bind("127.0.0.1:0"));
            denied(std::net::TcpStream::connect(("127.0.0.1", port)));
            File::open("/dev/urandom").expect("new UUIDs");
            std::fs::read_to_string("/proc/self/stat").expect("metrics");
            std::fs::read_dir("/proc/self/fd").expect("metrics").for_each(drop);
            std::fs::read_dir("/proc").expect("whose lock it is").for_each(drop);
        });
    }

    #[test]
    fn the_overlay_of_an_ephemeral_disk_can_be_made_and_no_file_with_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().canonicalize().unwrap();
        std::fs::write(dir.join("a.vdi"), "x").unwrap();
        sandboxed(&dir.clone(), "[disk.a]\nfile = \"a.vdi\"\nephemeral = true\n", move || {
            let file = tempfile::tempfile_in(&dir).expect("a file without a name");
            let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            OpenOptions::new().read(true).write(true).open(again).expect("opened a second time");
            denied(File::create(dir.join("b.vdi")));
            denied(std::fs::remove_file(dir.join("a.vdi")));
        });
    }

    #[test]
    fn a_host_name_can_be_looked_up() {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let text = format!("[server]\nlisten = [\"tcp:localhost:{port}\"]\n");
        sandboxed(folder.path(), &text, move || {
            let address = ("localhost", port);
            let found = std::net::ToSocketAddrs::to_socket_addrs(&address).expect("known everywhere");
            TcpListener::bind(&*found.collect::<Vec<_>>()).expect("a port");
            denied(TcpListener::bind("127.0.0.1:0"));
            denied(std::net::TcpStream::connect(("127.0.0.1", port)));
        });
    }
}
