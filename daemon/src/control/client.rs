//! The other end of the control API: one question to a daemon, one answer.
//!
//! It speaks HTTP/1.0, in which an answer has no chunks and ends with the connection.

use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::schema::Problem;

/// How long a daemon has to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of the largest answer that is taken: thousands of disks.
const ANSWER_MOST: u64 = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody listens on the socket, or it may not be used.
    #[error("no daemon answers on {0}: {1}")]
    Unreachable(String, std::io::Error),
    /// The daemon took too long.
    #[error("the daemon on {0} does not answer")]
    TimedOut(String),
    /// The daemon refused.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// What answers is no daemon that this program knows.
    #[error("what answers on {0} is no diskchain that this program understands: {1}")]
    NotUnderstood(String, String),
}

/// Asks for what is at `path`.
///
/// # Errors
/// Why there is no answer.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    decode(socket, &ask(socket, "GET", path, "").await?)
}

/// Puts `body`, which is JSON, at `path`.
///
/// # Errors
/// Why there is no answer.
pub async fn put<T: DeserializeOwned>(socket: &Path, path: &str, body: &str) -> Result<T, Failure> {
    decode(socket, &ask(socket, "PUT", path, body).await?)
}

/// Asks whether the daemon serves.
///
/// # Errors
/// Why it does not, or why it cannot be told.
pub async fn ready(socket: &Path) -> Result<(), Failure> {
    ask(socket, "GET", "/readyz", "").await.map(drop)
}

/// A name as it stands in a path.
pub fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn decode<T: DeserializeOwned>(socket: &Path, body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::NotUnderstood(shown(socket), error.to_string()))
}

async fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<Vec<u8>, Failure> {
    let answer = tokio::time::timeout(PATIENCE, exchange(socket, method, path, body)).await;
    let answer = answer.map_err(|_| Failure::TimedOut(shown(socket)))?;
    let answer = answer.map_err(|error| Failure::Unreachable(shown(socket), error))?;
    let no_http = || Failure::NotUnderstood(shown(socket), "it does not speak HTTP".into());
    let (status, body) = split(&answer).ok_or_else(no_http)?;
    if status == 200 {
        return Ok(body.to_vec());
    }
    Err(Failure::Refused(decode(socket, body)?))
}

async fn exchange(socket: &Path, method: &str, path: &str, body: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    let len = body.len();
    let request =
        format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MOST).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Status and body of an answer.
fn split(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    Some((status, &answer[end + 4..]))
}

fn shown(socket: &Path) -> String {
    socket.display().to_string()
}
