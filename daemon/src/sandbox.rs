//! What the daemon shuts itself off from before it does anything: with Landlock, all files but those of its
//! configuration, and all TCP ports but its own; and new privileges for good.
//!
//! ```text
//!   folders of images, image_dirs     read        (parents are looked for there)
//!   images that are served to write   write
//!   folders in which images are made  write       (create =, ephemeral =)
//!   folders of sockets                make and remove sockets
//!   /proc/self, /proc/stat, /sys      read        (metrics, block devices)
//!   /dev/random, /dev/urandom         read        (new UUIDs, where the C library does not ask the kernel directly)
//! ```
//! Landlock holds for the thread that asks for it and for those that it starts afterwards. So this is done before the
//! runtime has any, by what the configuration says.
//!
//! Invariant: all threads are in the sandbox or none is, and what the configuration names works in it as outside.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use diskchain_config::plan::{Disk, Listen, Plan};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
};

/// The rights that are taken away where the kernel knows them. Rights of later kernels are left alone.
const RIGHTS: ABI = ABI::V5;

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
                f.write_str("sandboxed as far as this kernel can (Landlock of Linux 6.10 does all)")
            }
            Sandbox::Unavailable(why) => write!(f, "not sandboxed: {why}"),
        }
    }
}

/// Puts this thread, and all that it starts from now on, into a sandbox that leaves what `plan` needs.
pub fn enter(plan: &Plan) -> Sandbox {
    match restrict(plan) {
        Ok(RulesetStatus::FullyEnforced) => Sandbox::On,
        Ok(RulesetStatus::PartiallyEnforced) => Sandbox::Partly,
        Ok(RulesetStatus::NotEnforced) => Sandbox::Unavailable("there is no Landlock here".to_owned()),
        Err(error) => Sandbox::Unavailable(error.to_string()),
    }
}

fn restrict(plan: &Plan) -> Result<RulesetStatus, RulesetError> {
    let needs = Needs::of(plan);
    let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(RIGHTS))?;
    if needs.ports.is_some() {
        ruleset = ruleset.handle_access(AccessNet::from_all(RIGHTS))?;
    }
    let mut ruleset = ruleset.create()?;
    for (paths, access) in [
        (&needs.read, AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::IoctlDev),
        (&needs.write, AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev),
        (
            &needs.make,
            AccessFs::ReadFile
                | AccessFs::WriteFile
                | AccessFs::ReadDir
                | AccessFs::Truncate
                | AccessFs::MakeReg
                | AccessFs::RemoveFile,
        ),
        (&needs.sockets, AccessFs::MakeSock | AccessFs::RemoveFile),
    ] {
        for path in paths {
            ruleset = allow(ruleset, path, access)?;
        }
    }
    for port in needs.ports.into_iter().flatten() {
        ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
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
    ruleset.add_rule(PathBeneath::new(fd, access))
}

/// What a configuration takes.
#[derive(Debug, Default)]
struct Needs {
    read: BTreeSet<PathBuf>,
    write: BTreeSet<PathBuf>,
    make: BTreeSet<PathBuf>,
    sockets: BTreeSet<PathBuf>,
    /// TCP ports to listen on. `None`: a name has to be looked up, for which ports are needed that nobody knows.
    ports: Option<Vec<u16>>,
}

impl Needs {
    fn of(plan: &Plan) -> Needs {
        let mut needs = Needs { ports: Some(Vec::new()), ..Needs::default() };
        let system = ["/proc/self", "/proc/stat", "/sys", "/dev/random", "/dev/urandom"];
        needs.read.extend(system.map(PathBuf::from));
        needs.write.insert("/dev/null".into());
        needs.read.extend(plan.server.image_dirs.iter().cloned());
        for disk in &plan.disks {
            needs.add_disk(disk);
        }
        for listen in &plan.server.listen {
            match listen {
                Listen::Unix(path) => needs.add_socket(path),
                Listen::Tcp(host, port) if host.parse::<IpAddr>().is_ok() => {
                    needs.ports.iter_mut().for_each(|ports| ports.push(*port));
                }
                Listen::Tcp(..) => {
                    needs.ports = None;
                    needs.read.extend(RESOLVER.map(PathBuf::from));
                }
            }
        }
        if let Some(control) = &plan.server.control {
            needs.add_socket(control);
        }
        needs
    }

    fn add_disk(&mut self, disk: &Disk) {
        let top = disk.top();
        for layer in &disk.layers {
            let path = std::fs::canonicalize(&layer.file);
            let is_device = path
                .as_ref()
                .is_ok_and(|path| path.metadata().is_ok_and(|file| file.file_type().is_block_device()));
            match (path, layer.file.parent()) {
                // Beside a device are other devices.
                (Ok(path), _) if is_device => {
                    self.read.insert(path);
                }
                (Ok(path), _) => self.read.extend(path.parent().map(Path::to_path_buf)),
                (Err(_), Some(folder)) if layer.create.is_some() => {
                    self.make.insert(folder.to_path_buf());
                }
                (Err(_), _) => {}
            }
        }
        if disk.writes_top() {
            self.write.insert(top.file.clone());
        }
        if disk.ephemeral
            && let Ok(path) = std::fs::canonicalize(&top.file)
        {
            self.make.extend(path.parent().map(Path::to_path_buf));
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
            assert_eq!(enter(&plan), Sandbox::On, "this test needs Landlock as of Linux 6.10");
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
        for file in ["images/top.vdi", "images/base.vdi", "secret"] {
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
            for outside in [dir.join("secret"), "/etc/passwd".into(), "/proc/1/status".into()] {
                denied(File::open(outside));
            }
            denied(std::fs::read_dir("/"));
            denied(std::process::Command::new("/bin/true").status());
            TcpListener::bind(("127.0.0.1", port)).expect("its own port");
            denied(TcpListener::bind("127.0.0.1:0"));
            denied(std::net::TcpStream::connect(("127.0.0.1", port)));
            File::open("/dev/urandom").expect("new UUIDs");
            std::fs::read_to_string("/proc/self/stat").expect("metrics");
            std::fs::read_dir("/proc/self/fd").expect("metrics").for_each(drop);
        });
    }

    #[test]
    fn the_overlay_of_an_ephemeral_disk_can_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().canonicalize().unwrap();
        std::fs::write(dir.join("a.vdi"), "x").unwrap();
        sandboxed(&dir.clone(), "[disk.a]\nfile = \"a.vdi\"\nephemeral = true\n", move || {
            let file = tempfile::tempfile_in(&dir).expect("a file without a name");
            let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            OpenOptions::new().read(true).write(true).open(again).expect("opened a second time");
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
        });
    }
}
