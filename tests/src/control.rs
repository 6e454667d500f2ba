//! The control API as a program without an HTTP library speaks it: one request, one connection.
//!
//! Invariant: what the daemon does not answer with status 200 is an error, never a value.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// Nobody's answer takes longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A daemon's control socket.
#[derive(Clone, Debug)]
pub struct Control {
    socket: PathBuf,
}

impl Control {
    /// The socket `control.sock` in `dir`, which is where [`crate::chain::Chain::config`] puts it.
    pub fn of(dir: &Path) -> Control {
        Control { socket: dir.join("control.sock") }
    }

    /// The JSON at `path`.
    ///
    /// # Errors
    /// When the daemon does not answer, or with another status than 200.
    pub fn try_get(&self, path: &str) -> io::Result<Value> {
        json(&self.ask("GET", path, "")?)
    }

    /// The JSON at `path`.
    ///
    /// # Panics
    /// When [`Control::try_get`] fails.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.try_get(path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// What the daemon answers to a PUT of `body` at `path`.
    ///
    /// # Errors
    /// As [`Control::try_get`].
    pub fn try_put(&self, path: &str, body: &Value) -> io::Result<Value> {
        json(&self.ask("PUT", path, &body.to_string())?)
    }

    /// The value of the sample that the metrics name `sample`, labels included.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn metric(&self, sample: &str) -> f64 {
        let text = self.ask("GET", "/metrics", "").unwrap_or_else(|error| panic!("GET /metrics: {error}"));
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {sample} in\n{text}"))
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        match head.starts_with("HTTP/1.1 200 ") && !head.to_ascii_lowercase().contains("chunked") {
            true => Ok(body.to_owned()),
            false => Err(io::Error::other(answer)),
        }
    }
}

fn json(body: &str) -> io::Result<Value> {
    serde_json::from_str(body).map_err(|error| io::Error::other(format!("{error}: {body}")))
}
