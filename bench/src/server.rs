//! Servers under test: how each is started on a file, and what it uses of the machine.
//!
//! Invariant: no process outlives its [`Server`].

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::case::{Cache, Case, Peer, Transport};
use crate::image::ImageFiles;
use crate::process::{self, Usage};
use crate::socket::{Address, Socket};

/// The name of the export that every server has.
pub const EXPORT: &str = "bench";

/// The daemon's configuration.
const CONFIG: &str = "diskchain.toml";

/// Where a server that goes into the background says who it is now.
const PID_FILE: &str = "server.pid";

/// A server that does not greet within this will not.
const START: Duration = Duration::from_secs(20);

/// A server that has not ended this long after SIGTERM is killed.
const STOP: Duration = Duration::from_secs(10);

/// A running server.
pub struct Server {
    /// What was started; some servers leave it and go on in the background.
    child: Child,
    /// The process that serves.
    pid: u32,
    address: Address,
    log: PathBuf,
}

impl Server {
    /// Starts `peer` on `files` as `case` wants it, with its socket and log in `dir`, and waits until it greets.
    ///
    /// # Errors
    /// If it does not start; the error has what it printed.
    pub fn start(
        diskchain: &Path,
        peer: Peer,
        case: &Case,
        files: &ImageFiles,
        dir: &Path,
    ) -> io::Result<Server> {
        let address = match case.transport {
            Transport::Unix => Address::Unix(dir.join("nbd.sock")),
            Transport::Tcp => Address::Tcp(free_port()?),
        };
        if let Address::Unix(path) = &address {
            // What a server left that was killed is no sign of this one.
            let _ = fs::remove_file(path);
        }
        let mut command = match peer {
            Peer::Diskchain | Peer::DiskchainOneImage => {
                self::diskchain(diskchain, "", case.cache, files, &address, dir)?
            }
            Peer::Limit => limit(files, &address)?,
            Peer::Nbdkit => nbdkit(files, &address),
            Peer::QemuThreads => qemu_nbd("threads", case.cache, files, &address),
            Peer::QemuUring => qemu_nbd("io_uring", case.cache, files, &address),
            Peer::NbdServer => nbd_server(files, &address, dir)?,
            Peer::FioFile => return Err(io::Error::other("fio is no server")),
        };
        let pid_file = (peer == Peer::NbdServer).then(|| dir.join(PID_FILE));
        Server::spawn(&mut command, address, dir, pid_file)
    }

    /// Starts the daemon with some disks, and settings of the server, in the words of its configuration, and waits until
    /// it greets.
    ///
    /// # Errors
    /// If it does not start.
    pub fn daemon(
        binary: &Path,
        settings: &str,
        disks: &str,
        address: &Address,
        dir: &Path,
    ) -> io::Result<Server> {
        if let Address::Unix(path) = address {
            let _ = fs::remove_file(path);
        }
        Server::spawn(&mut daemon(binary, settings, disks, address, dir)?, address.clone(), dir, None)
    }

    /// Starts the daemon under callgrind, which writes to `out` when the server is dropped, with one runtime thread and
    /// without io_uring, which valgrind does not know.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_counted(
        diskchain: &Path,
        case: &Case,
        files: &ImageFiles,
        dir: &Path,
        out: &Path,
    ) -> io::Result<Server> {
        let address = Address::Unix(dir.join("counted.sock"));
        let threads = "io_engine = \"threads\"\n";
        let daemon = self::diskchain(diskchain, threads, case.cache, files, &address, dir)?;
        let mut command = Command::new("valgrind");
        command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", out.display()));
        // The counts are written at the end, into a folder that the sandbox does not know.
        command.arg(daemon.get_program()).args(daemon.get_args()).arg("--no-sandbox");
        command.env("TOKIO_WORKER_THREADS", "1");
        Server::spawn(&mut command, address, dir, None)
    }

    /// Starts a server that, if there is a `pid_file`, goes into the background.
    fn spawn(
        command: &mut Command,
        address: Address,
        dir: &Path,
        pid_file: Option<PathBuf>,
    ) -> io::Result<Server> {
        let log = dir.join("server.log");
        let output = File::create(&log)?;
        let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
        let child = child.map_err(|error| io::Error::other(format!("{command:?}: {error}")))?;
        let mut server = Server { pid: child.id(), child, address, log };
        if let Some(pid_file) = pid_file {
            server.pid = server.background(&pid_file)?;
        }
        server.wait_for_greeting()?;
        Ok(server)
    }

    /// The process that goes on in the background when the one that was started has ended.
    fn background(&mut self, pid_file: &Path) -> io::Result<u32> {
        let ended = self.child.wait()?;
        let deadline = Instant::now() + START;
        while ended.success() && Instant::now() < deadline {
            let written = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
            if let Some(pid) = written {
                return Ok(pid);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(self.failed(&format!("{ended}")))
    }

    fn wait_for_greeting(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let mut greeting = [0; 8];
            let greeted =
                Socket::connect(&self.address).and_then(|mut socket| socket.read_exact(&mut greeting));
            if greeted.is_ok() && &greeting == b"NBDMAGIC" {
                return Ok(());
            }
            if !process::is_running(self.pid) || Instant::now() > deadline {
                return Err(self.failed("no greeting"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn failed(&self, what: &str) -> io::Error {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        io::Error::other(format!("the server does not serve ({what}): {said}"))
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What it and its children have used so far.
    pub fn usage(&self) -> Usage {
        process::usage(self.pid)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(pid) = Pid::from_raw(self.pid as i32) else { return };
        // Fails only if it has ended already.
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + STOP;
        while process::is_running(self.pid) {
            if Instant::now() > deadline {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(2));
            let _ = self.child.try_wait();
        }
        let _ = self.child.wait();
    }
}

fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// The daemon as users have it: with accounts, tracking, and limits that are set and never reached.
fn diskchain(
    binary: &Path,
    settings: &str,
    cache: Cache,
    files: &ImageFiles,
    address: &Address,
    dir: &Path,
) -> io::Result<Command> {
    let cache = if cache == Cache::Direct { "none" } else { "writeback" };
    let layers: Vec<String> = files
        .layers
        .iter()
        .map(|layer| format!("  {{ file = {:?}, format = {:?} }},\n", layer.display(), files.format))
        .map(|line| line.replace('\'', ""))
        .collect();
    let disk = format!(
        "[disk.{EXPORT}]\ncache = {cache:?}\nlayers = [\n{}]\n\
         throttle = {{ iops_total = 1_000_000_000, bps_total = \"100TB/s\" }}\n",
        layers.concat()
    );
    daemon(binary, settings, &disk, address, dir)
}

/// The daemon with some disks, and settings of the server, in the words of its configuration.
fn daemon(binary: &Path, settings: &str, disks: &str, address: &Address, dir: &Path) -> io::Result<Command> {
    let listen = match address {
        Address::Unix(path) => format!("unix:{}", path.display()),
        Address::Tcp(address) => format!("tcp:{address}"),
    };
    let config = dir.join(CONFIG);
    let server = format!(
        "[server]\n{settings}listen = [{listen:?}]\ncontrol = \"off\"\n\n[log]\nlevel = \"warn\"\n\n"
    );
    fs::write(&config, server + disks)?;
    let mut command = Command::new(binary);
    command.arg("serve").arg("--config").arg(config);
    Ok(command)
}

fn limit(files: &ImageFiles, address: &Address) -> io::Result<Command> {
    let Address::Unix(socket) = address else { return Err(io::ErrorKind::Unsupported.into()) };
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("limit").arg(files.top()).arg(socket);
    Ok(command)
}

fn nbdkit(files: &ImageFiles, address: &Address) -> Command {
    let mut command = Command::new("nbdkit");
    command.arg("--foreground");
    match address {
        Address::Unix(path) => command.arg("--unix").arg(path),
        Address::Tcp(address) => {
            command.args(["--ipaddr", "127.0.0.1", "--port"]).arg(address.port().to_string())
        }
    };
    command.arg("file").arg(files.top());
    command
}

fn qemu_nbd(engine: &str, cache: Cache, files: &ImageFiles, address: &Address) -> Command {
    let cache = if cache == Cache::Direct { "none" } else { "writeback" };
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=8", "--discard=unmap", "--export-name", EXPORT]);
    command.args(["--aio", engine, "--cache", cache, "--format", files.format]);
    match address {
        Address::Unix(path) => command.arg("--socket").arg(path),
        Address::Tcp(address) => {
            command.args(["--bind", "127.0.0.1", "--port"]).arg(address.port().to_string())
        }
    };
    command.arg(files.top());
    command
}

fn nbd_server(files: &ImageFiles, address: &Address, dir: &Path) -> io::Result<Command> {
    let (socket, port) = match address {
        // It always listens on a port as well.
        Address::Unix(path) => (format!("unixsock = {}\n", path.display()), free_port()?.port()),
        Address::Tcp(address) => (String::new(), address.port()),
    };
    let config = dir.join("nbd-server.conf");
    fs::write(
        &config,
        format!(
            "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n{socket}[{EXPORT}]\nexportname = {}\nflush = true\n\
             fua = true\ntrim = true\n",
            files.top().display()
        ),
    )?;
    let mut command = Command::new("nbd-server");
    let pid_file = dir.join(PID_FILE);
    let _ = fs::remove_file(&pid_file);
    // In the foreground it would serve one connection and end.
    command.arg("-C").arg(config).arg("-p").arg(pid_file);
    Ok(command)
}
