//! A server process on a Unix socket: diskchain, or qemu-nbd to prove a test's own tools on.
//!
//! Invariant: no process outlives its [`Server`], and a test that fails prints what its server said.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::Client;
use crate::tool::{Tool, wait_for};

/// A server that has not answered by then will not.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// SIGTERM ends a server within this, whatever its clients do.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

/// The daemon's binary: what DISKCHAIN_BIN says, or the one in the target folder of this test.
///
/// # Panics
/// When it was not built.
pub fn diskchain_binary() -> PathBuf {
    let binary = match std::env::var_os("DISKCHAIN_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            // target/debug/deps/TEST-HASH
            let test = std::env::current_exe().expect("a test knows its own path");
            test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").join("diskchain")
        }
    };
    assert!(
        binary.is_file(),
        "{} is missing: run `cargo build -p diskchain`, or set DISKCHAIN_BIN",
        binary.display()
    );
    binary
}

/// The command line `diskchain ARGS…`, ready to run.
pub fn diskchain(args: &[&str]) -> Tool {
    Tool::new(diskchain_binary()).args(args)
}

/// A running server.
pub struct Server {
    child: Child,
    command_line: String,
    socket: PathBuf,
    log: PathBuf,
    /// The exit status is known: nothing is left to end.
    ended: bool,
}

/// A server that ended before it served.
pub struct Refused {
    command_line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub said: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ended with {} before it served:\n{}", self.command_line, self.status, self.said)
    }
}

impl Server {
    /// `diskchain serve FILES…` with `options`, on a socket in `dir`; each file is exported by its
    /// stem, the first also as the empty name.
    #[track_caller]
    pub fn diskchain(dir: &Path, files: &[&Path], options: &[&str]) -> Server {
        Server::try_diskchain(dir, files, options).unwrap_or_else(|refused| panic!("{refused}"))
    }

    /// The same, for a test in which the server may refuse to start.
    ///
    /// # Errors
    /// How it ended, when it ended before it served.
    #[track_caller]
    pub fn try_diskchain(dir: &Path, files: &[&Path], options: &[&str]) -> Result<Server, Refused> {
        let socket = dir.join("diskchain.sock");
        let mut command = Command::new(diskchain_binary());
        command.arg("serve").args(files).args(options);
        command.arg("--listen").arg(format!("unix:{}", socket.display()));
        Server::try_start(command, dir, socket)
    }

    /// `diskchain serve --config CONFIG`, whose `listen` must be the socket `diskchain.sock` in `dir`.
    #[track_caller]
    pub fn diskchain_config(dir: &Path, config: &str) -> Server {
        Server::diskchain_config_with(dir, config, &[])
    }

    /// The same with more words on the command line.
    #[track_caller]
    pub fn diskchain_config_with(dir: &Path, config: &str, options: &[&str]) -> Server {
        let started = Server::try_start_config(dir, config, options);
        started.unwrap_or_else(|refused| panic!("{refused}"))
    }

    /// The same, for a test in which the server may refuse to start.
    ///
    /// # Errors
    /// How it ended, when it ended before it served.
    #[track_caller]
    pub fn try_diskchain_config(dir: &Path, config: &str) -> Result<Server, Refused> {
        Server::try_start_config(dir, config, &[])
    }

    #[track_caller]
    fn try_start_config(dir: &Path, config: &str, options: &[&str]) -> Result<Server, Refused> {
        let path = dir.join("diskchain.toml");
        fs::write(&path, config).expect("write a config file");
        let mut command = Command::new(diskchain_binary());
        command.arg("serve").arg("--config").arg(&path).args(options);
        Server::try_start(command, dir, dir.join("diskchain.sock"))
    }

    /// The same under strace, which writes the calls that sync files to `trace`, each before it returns
    /// to the daemon.
    #[track_caller]
    pub fn diskchain_config_traced(dir: &Path, config: &str, trace: &Path) -> Server {
        Server::start_under_strace(dir, config, &["trace=fsync,fdatasync,sync_file_range"], trace)
    }

    /// The same under strace, which gives some of its system calls another result: `inject` as strace has it.
    #[track_caller]
    pub fn diskchain_config_injected(dir: &Path, config: &str, inject: &str) -> Server {
        let (call, _) = inject.split_once(':').expect("a call and what comes of it");
        let words = [format!("trace={call}"), format!("inject={inject}")];
        Server::start_under_strace(dir, config, &words.each_ref().map(String::as_str), Path::new("/dev/null"))
    }

    #[track_caller]
    fn start_under_strace(dir: &Path, config: &str, expressions: &[&str], trace: &Path) -> Server {
        let path = dir.join("diskchain.toml");
        fs::write(&path, config).expect("write a config file");
        let mut command = Command::new("strace");
        // -D: the daemon is this process's child, strace its grandchild.
        command.args(["-D", "-f", "-o"]).arg(trace);
        command.args(expressions.iter().flat_map(|expression| ["-e", expression]));
        command.arg(diskchain_binary()).arg("serve").arg("--config").arg(&path);
        let started = Server::try_start(command, dir, dir.join("diskchain.sock"));
        started.unwrap_or_else(|refused| panic!("{refused}"))
    }

    /// qemu-nbd with one image as the empty name, for the tests of these tools themselves.
    #[track_caller]
    pub fn qemu_nbd(dir: &Path, file: &Path, format: &str) -> Server {
        let socket = dir.join("qemu-nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=8", "--discard=unmap", "--format", format]);
        command.arg("--socket").arg(&socket).arg(file);
        Server::try_start(command, dir, socket).unwrap_or_else(|refused| panic!("{refused}"))
    }

    /// Starts `command` and waits until it greets on `socket`.
    #[track_caller]
    fn try_start(mut command: Command, dir: &Path, socket: PathBuf) -> Result<Server, Refused> {
        let command_line = format!("{command:?}");
        let log = dir.join("server.log");
        let output = File::options().create(true).append(true).open(&log).expect("open a log file");
        // A socket file that a killed server left is no sign of the new one.
        let _ = fs::remove_file(&socket);
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("duplicate a file descriptor"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{command_line}: {error}"));
        let mut server = Server { child, command_line, socket, log, ended: false };
        let deadline = Instant::now() + START_TIMEOUT;
        while !server.greets() {
            if let Some(status) = server.child.try_wait().expect("a child can be waited for") {
                server.ended = true;
                let (command_line, said) = (server.command_line.clone(), server.log());
                return Err(Refused { command_line, status, said });
            }
            assert!(Instant::now() < deadline, "{} does not answer", server.command_line);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn greets(&self) -> bool {
        use std::io::Read;
        let Ok(mut stream) = UnixStream::connect(&self.socket) else { return false };
        let timeout = stream.set_read_timeout(Some(START_TIMEOUT));
        let mut greeting = [0; 8];
        timeout.is_ok() && stream.read_exact(&mut greeting).is_ok() && &greeting == b"NBDMAGIC"
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The NBD URI of `export`.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// A connection to `export`.
    ///
    /// # Panics
    /// When the server refuses.
    #[track_caller]
    pub fn connect(&self, export: &str) -> Client {
        Client::connect(&self.socket, export)
            .unwrap_or_else(|error| panic!("connect to {}: {error}", self.uri(export)))
    }

    /// All that the server has printed, in all of its runs in this folder.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The memory that the process occupies now, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a process status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a VmRSS line");
        let kibibytes = line.trim().trim_end_matches(" kB");
        kibibytes.parse::<u64>().expect("VmRSS is a number") * 1024
    }

    /// How many file descriptors the process holds now.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a process's descriptors").count()
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        !self.ended && self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// SIGTERM, and expects a clean end within the bound.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = wait_for(&mut self.child, STOP_TIMEOUT);
        self.ended = status.is_some();
        match status {
            Some(status) => assert!(status.success(), "SIGTERM ended the server with {status}"),
            None => panic!("the server still runs {STOP_TIMEOUT:?} after SIGTERM"),
        }
    }

    /// SIGKILL: the process is gone when this returns.
    pub fn kill(mut self) -> ExitStatus {
        self.end()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signal a child");
    }

    fn end(&mut self) -> ExitStatus {
        // Fails only for a process that has ended already.
        let _ = self.child.kill();
        self.ended = true;
        self.child.wait().expect("a child can be waited for")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.ended {
            self.end();
        }
        if std::thread::panicking() {
            eprintln!("-- {} said:\n{}", self.command_line, self.log());
        }
    }
}
