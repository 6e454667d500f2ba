//! Addresses to listen on, from text.

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use crate::plan::Listen;
use crate::units::Invalid;

/// The port that IANA gave to NBD.
const NBD_PORT: u16 = 10809;

/// The longest path that fits `sockaddr_un` with its closing NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

const HELP: &str = "an address is \"unix:/run/nbd.sock\", \"tcp:127.0.0.1:10809\" or \"tcp:[::1]:10809\"";

impl Listen {
    /// Reads `unix:PATH` or `tcp:HOST[:PORT]`. A relative path starts from `folder`, which is absolute.
    ///
    /// # Errors
    /// Anything else, an empty host or path, a port outside 1 to 65535, a path too long for a socket.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Invalid> {
        let invalid = |message: String| Invalid { message, help: HELP.to_string() };
        match text.split_once(':') {
            Some(("unix", path)) => socket_path(path, folder).map(Listen::Unix).map_err(invalid),
            Some(("tcp", address)) => tcp(address).ok_or_else(|| match address.parse::<IpAddr>() {
                Ok(IpAddr::V6(ip)) => Invalid {
                    message: format!("`{text}` does not say where the address ends"),
                    help: format!("write \"tcp:[{ip}]:{NBD_PORT}\""),
                },
                _ => invalid(format!("`{text}` is not an address to listen on")),
            }),
            _ => Err(invalid(format!("`{text}` is not an address to listen on"))),
        }
    }

    /// Whether only this machine can connect. A host name other than `localhost` may mean anything.
    pub fn is_local(&self) -> bool {
        match self {
            Listen::Unix(_) => true,
            Listen::Tcp(host, _) => host
                .parse::<IpAddr>()
                .map_or(host.eq_ignore_ascii_case("localhost"), |ip| ip.to_canonical().is_loopback()),
        }
    }
}

/// `HOST`, `HOST:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT`.
fn tcp(address: &str) -> Option<Listen> {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let port = match port {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
        None => NBD_PORT,
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    (port != 0 && !host.is_empty() && host.chars().all(is_name)).then(|| Listen::Tcp(host.to_string(), port))
}

/// The absolute path of a Unix socket, or what is wrong with it.
pub(crate) fn socket_path(path: &str, folder: &Path) -> Result<PathBuf, String> {
    if path.is_empty() || path.contains('\0') {
        return Err("`unix:` needs the path of a socket".to_string());
    }
    let path = absolute(folder, path);
    match path.as_os_str().len() {
        0..=MAX_SOCKET_PATH_BYTES => Ok(path),
        bytes => Err(format!(
            "the path of a Unix socket has at most {MAX_SOCKET_PATH_BYTES} bytes, and this one has {bytes}"
        )),
    }
}

/// The path from `folder`, without `.` and `..`. Symbolic links are not looked at, since nothing is opened
/// here; who opens the file checks its real path again.
pub(crate) fn absolute(folder: &Path, path: impl AsRef<Path>) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in folder.join(path).components() {
        match component {
            Component::CurDir => (),
            // At the root this stays at the root, as it does in the kernel.
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> Result<Listen, Invalid> {
        Listen::parse(text, Path::new("/etc/diskchain"))
    }

    #[test]
    fn every_form_of_an_address_is_read_and_written_back() {
        for (text, meant) in [
            ("unix:/run/a.sock", Listen::Unix("/run/a.sock".into())),
            ("tcp:127.0.0.1:10809", Listen::Tcp("127.0.0.1".into(), 10809)),
            ("tcp:[::1]:7", Listen::Tcp("::1".into(), 7)),
            ("tcp:localhost:10809", Listen::Tcp("localhost".into(), 10809)),
        ] {
            assert_eq!(listen(text), Ok(meant.clone()));
            assert_eq!(meant.to_string(), text);
        }
        assert_eq!(listen("tcp:[::1]"), Ok(Listen::Tcp("::1".into(), 10809)));
        assert_eq!(listen("tcp:localhost"), Ok(Listen::Tcp("localhost".into(), 10809)));
        assert_eq!(listen("unix:../run/./a.sock"), Ok(Listen::Unix("/etc/run/a.sock".into())));
    }

    #[test]
    fn what_is_not_an_address_is_refused_with_the_forms_that_are() {
        for text in [
            "",
            "tcp:",
            "tcp::10809",
            "tcp:h:0",
            "tcp:h:65536",
            "tcp:h:+1",
            "tcp:[x]:1",
            "tcp:a b:1",
            "udp:h:1",
            "unix:",
        ] {
            assert_eq!(listen(text).unwrap_err().help, HELP, "{text}");
        }
        assert_eq!(listen("tcp:::1").unwrap_err().help, "write \"tcp:[::1]:10809\"");
        let long = listen(&format!("unix:/{}", "a".repeat(107))).unwrap_err();
        assert!(long.message.contains("107 bytes, and this one has 108"), "{}", long.message);
    }

    #[test]
    fn only_loopback_and_unix_sockets_are_local() {
        for text in ["unix:/a", "tcp:127.9.9.9", "tcp:[::1]", "tcp:LocalHost", "tcp:[::ffff:127.0.0.1]"] {
            assert!(listen(text).unwrap().is_local(), "{text}");
        }
        for text in ["tcp:0.0.0.0", "tcp:[::]", "tcp:192.168.1.1", "tcp:example.org"] {
            assert!(!listen(text).unwrap().is_local(), "{text}");
        }
    }
}
