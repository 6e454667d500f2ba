//! Runs one foreign program to its end, within a time, and says clearly what went wrong if it fails.
//!
//! Output goes through files, never through pipes: a program that prints much cannot block.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A program and its arguments, not yet run.
pub struct Tool {
    command: Command,
    timeout: Duration,
    input: Vec<u8>,
}

/// What a program that ended left behind.
pub struct Ended {
    /// The command line, for messages.
    pub command_line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: String,
}

impl Tool {
    /// The program `name`, searched on PATH, with a minute to run.
    pub fn new(name: impl AsRef<OsStr>) -> Tool {
        Tool { command: Command::new(name), timeout: Duration::from_secs(60), input: Vec::new() }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Tool {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Tool {
        self.command.args(args);
        self
    }

    /// Runs in `dir`.
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Tool {
        self.command.current_dir(dir);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Tool {
        self.command.env(key, value);
        self
    }

    /// Gives `bytes` as standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Tool {
        self.input = bytes.into();
        self
    }

    /// Allows it `seconds` instead of a minute.
    pub fn seconds(mut self, seconds: u64) -> Tool {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// Runs it and expects success.
    ///
    /// # Panics
    /// When it fails, with its command line and all that it printed.
    #[track_caller]
    pub fn run(self) -> Ended {
        let ended = self.run_any();
        assert!(ended.status.success(), "{ended}");
        ended
    }

    /// Runs it and expects failure by an exit code (a crash is no refusal).
    ///
    /// # Panics
    /// When it succeeds, or is ended by a signal.
    #[track_caller]
    pub fn run_refused(self) -> Ended {
        let ended = self.run_any();
        assert!(ended.status.code().is_some_and(|code| code != 0), "expected a refusal: {ended}");
        ended
    }

    /// Runs it, however it ends.
    ///
    /// # Panics
    /// When it cannot be started, or does not end in its time.
    #[track_caller]
    pub fn run_any(self) -> Ended {
        let timeout = self.timeout;
        self.run_while(|| true)
            .unwrap_or_else(|given_up| panic!("still running after {timeout:?}: {given_up}"))
    }

    /// Runs it, however it ends, as long as there is time and `goes_on`, which is asked all the while.
    ///
    /// # Errors
    /// What it had done until it was ended.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn run_while(mut self, goes_on: impl Fn() -> bool) -> Result<Ended, Box<Ended>> {
        let command_line = format!("{:?}", self.command);
        let mut stdin = temporary_file();
        stdin.write_all(&self.input).expect("write a temporary file");
        stdin.rewind().expect("rewind a temporary file");
        let (stdout, stderr) = (temporary_file(), temporary_file());
        let mut child =
            self.command.stdin(stdin).stdout(share(&stdout)).stderr(share(&stderr)).spawn().unwrap_or_else(
                |error| panic!("{command_line}: {error} (scripts/install-test-deps.sh installs the tools)"),
            );
        let by_itself = wait_while(&mut child, self.timeout, goes_on);
        let status = by_itself.unwrap_or_else(|| {
            child.kill().expect("kill a child");
            child.wait().expect("wait for a killed child")
        });
        let stdout = contents(stdout);
        let stderr = String::from_utf8_lossy(&contents(stderr)).into_owned();
        let ended = Ended { command_line, status, stdout, stderr };
        if by_itself.is_some() { Ok(ended) } else { Err(Box::new(ended)) }
    }
}

impl Ended {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} ended with {}", self.command_line, self.status)?;
        writeln!(f, "-- stdout:\n{}", self.text())?;
        write!(f, "-- stderr:\n{}", self.stderr)
    }
}

/// Waits until `child` ends, at most `timeout`; `None` when it is still running then.
pub fn wait_for(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    wait_while(child, timeout, || true)
}

fn wait_while(child: &mut Child, timeout: Duration, goes_on: impl Fn() -> bool) -> Option<ExitStatus> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        if Instant::now() >= deadline || !goes_on() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks again and again whether it is `done`.
///
/// # Panics
/// When it is not within `seconds`; the message says `what`.
#[track_caller]
pub fn wait_until(what: &str, seconds: u64, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !done() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The sha256 of a file's bytes, in hexadecimal.
#[track_caller]
pub fn sha256(path: &Path) -> String {
    let text = Tool::new("sha256sum").arg("--").arg(path).seconds(300).run().text();
    text.split_whitespace().next().expect("sha256sum prints a digest").to_owned()
}

fn temporary_file() -> File {
    tempfile::tempfile().expect("make a temporary file")
}

fn share(file: &File) -> Stdio {
    Stdio::from(file.try_clone().expect("duplicate a file descriptor"))
}

fn contents(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("rewind a temporary file");
    file.read_to_end(&mut bytes).expect("read a temporary file");
    bytes
}
