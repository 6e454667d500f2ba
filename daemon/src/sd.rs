//! The service manager's side of the daemon: the sockets it hands in, and what it is told.
//!
//! Speaks `sd_listen_fds(3)`, `sd_notify(3)` and `sd_watchdog_enabled(3)`. It neither accepts clients
//! nor decides when the daemon is ready. Without a service manager every function here is harmless:
//! nothing is handed in, nothing is sent.

use std::env;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use sd_notify::NotifyState;

/// `FileDescriptorName=` of the sockets that take NBD clients.
const NBD: &str = "nbd";
/// `FileDescriptorName=` of the sockets that take control clients.
const CONTROL: &str = "control";
/// The first descriptor that is handed in (`SD_LISTEN_FDS_START`).
const FIRST_DESCRIPTOR: usize = 3;

/// Listeners handed in by the service manager, non-blocking, in its order.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// Sockets named `nbd`.
    pub(crate) nbd: Vec<NbdListener>,
    /// Sockets named `control`: Unix only, because rights follow from the peer's credentials.
    pub(crate) control: Vec<UnixListener>,
}

/// A stream socket on which NBD clients arrive.
#[derive(Debug)]
pub(crate) enum NbdListener {
    /// A Unix stream socket.
    Unix(UnixListener),
    /// A TCP socket, IPv4 or IPv6.
    Tcp(TcpListener),
}

/// Why a socket that was handed in cannot be used. Each is a mistake in a socket unit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InheritError {
    /// `LISTEN_FDNAMES` does not match `LISTEN_FDS`.
    #[error("{sockets} sockets were handed in, but {names} names (LISTEN_FDNAMES)")]
    NameCount {
        /// Number of sockets.
        sockets: usize,
        /// Number of names.
        names: usize,
    },
    /// The daemon has no use for a socket of this name.
    #[error(
        "a socket named {name:?} was handed in (descriptor {descriptor}): expected \"nbd\" or \"control\", \
         set FileDescriptorName= in its socket unit"
    )]
    UnknownName {
        /// The name, `unknown` when the manager gave none.
        name: String,
        /// Its descriptor.
        descriptor: usize,
    },
    /// The descriptor is not a listening stream socket of a family that fits its name.
    #[error("the socket named {name:?} (descriptor {descriptor}) is not a listening {expected} socket")]
    Kind {
        /// The name.
        name: &'static str,
        /// Its descriptor.
        descriptor: usize,
        /// What such a socket has to be.
        expected: &'static str,
    },
    /// The operating system refused to work with it.
    #[error("cannot use the socket named {name:?} (descriptor {descriptor})")]
    Unusable {
        /// The name.
        name: &'static str,
        /// Its descriptor.
        descriptor: usize,
        /// What it said.
        source: io::Error,
    },
}

/// Takes the sockets that the service manager handed in; none without one.
///
/// Call it once and first, while no other thread works: it removes `LISTEN_FDS` and `LISTEN_PID` from
/// the environment, so that no child takes the sockets for its own, and the C library must not read
/// the environment meanwhile (as looking up a host name does).
///
/// # Errors
/// A socket whose name is neither `nbd` nor `control`, or which is not a listening stream socket of
/// the right family (`control` has to be a Unix socket).
pub(crate) fn take_listeners() -> Result<Inherited, InheritError> {
    let mut sockets = ListenFd::from_env();
    let names = names_of(sockets.len())?;
    let mut inherited = Inherited::default();
    for (index, name) in names.into_iter().enumerate() {
        match name.as_str() {
            NBD => inherited.nbd.push(take_nbd(&mut sockets, index)?),
            CONTROL => inherited.control.push(take_control(&mut sockets, index)?),
            _ => return Err(InheritError::UnknownName { name, descriptor: FIRST_DESCRIPTOR + index }),
        }
    }
    Ok(inherited)
}

/// One name for each of `sockets` sockets. As in `sd_listen_fds_with_names`, all are `unknown` when
/// the manager gave none.
fn names_of(sockets: usize) -> Result<Vec<String>, InheritError> {
    if sockets == 0 {
        return Ok(Vec::new());
    }
    let Ok(joined) = env::var("LISTEN_FDNAMES") else {
        return Ok(vec!["unknown".to_owned(); sockets]);
    };
    let names: Vec<String> = joined.split(':').map(str::to_owned).collect();
    if names.len() != sockets {
        return Err(InheritError::NameCount { sockets, names: names.len() });
    }
    Ok(names)
}

fn take_nbd(sockets: &mut ListenFd, index: usize) -> Result<NbdListener, InheritError> {
    let kind = || wrong_kind(NBD, index, "Unix or TCP stream");
    if let Ok(Some(unix)) = sockets.take_unix_listener(index) {
        return if listens(&unix) {
            prepared_unix(unix, NBD, index).map(NbdListener::Unix)
        } else {
            Err(kind())
        };
    }
    match sockets.take_tcp_listener(index) {
        Ok(Some(tcp)) if listens(&tcp) => {
            tcp.set_nonblocking(true).map_err(|source| unusable(NBD, index, source))?;
            Ok(NbdListener::Tcp(tcp))
        }
        _ => Err(kind()),
    }
}

fn take_control(sockets: &mut ListenFd, index: usize) -> Result<UnixListener, InheritError> {
    match sockets.take_unix_listener(index) {
        Ok(Some(unix)) if listens(&unix) => prepared_unix(unix, CONTROL, index),
        _ => Err(wrong_kind(CONTROL, index, "Unix stream")),
    }
}

fn prepared_unix(unix: UnixListener, name: &'static str, index: usize) -> Result<UnixListener, InheritError> {
    unix.set_nonblocking(true).map_err(|source| unusable(name, index, source))?;
    Ok(unix)
}

fn listens(socket: impl AsFd) -> bool {
    socket_acceptconn(socket) == Ok(true)
}

fn wrong_kind(name: &'static str, index: usize, expected: &'static str) -> InheritError {
    InheritError::Kind { name, descriptor: FIRST_DESCRIPTOR + index, expected }
}

fn unusable(name: &'static str, index: usize, source: io::Error) -> InheritError {
    InheritError::Unusable { name, descriptor: FIRST_DESCRIPTOR + index, source }
}

/// Says that the daemon serves: units ordered after it may start. `status` is the line that
/// `systemctl status` shows from now on.
pub(crate) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// Changes the line that `systemctl status` shows.
pub(crate) fn status(text: &str) {
    notify(&[NotifyState::Status(&one_line(text))]);
}

/// Says that the daemon has begun to stop.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Asks for at least `by` more, from now on, before a slow start or stop counts as failed. To be
/// repeated while there is progress; more than 71 minutes at once cannot be said and become that.
pub(crate) fn extend_timeout(by: Duration) {
    let microseconds = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
}

/// How often to [`ping`], if the manager watches this process: half of the time after which it
/// would end it. Never zero.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|interval| !interval.is_zero())
}

/// Says that the daemon works. To be called only after it was seen to work: a ping out of a bare
/// timer would keep a hung daemon alive.
pub(crate) fn ping() {
    notify(&[NotifyState::Watchdog]);
}

/// A manager that cannot be told is not a reason to stop serving disks; it acts on silence itself.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Every line of a notification is an assignment of its own: a line break inside a text would let
/// what follows speak for the daemon.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    //! Each test plays the service manager: it starts this very test again as the service, with
    //! sockets, names and a notification socket, as the manager would.

    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::process::{Command, Stdio};

    use super::*;

    const ROLE: &str = "DISKCHAIN_TEST_IS_SERVICE";

    /// True in the process that plays the service.
    fn is_service() -> bool {
        env::var_os(ROLE).is_some()
    }

    /// Runs the test `name` as a service that inherits up to three `sockets`; returns the datagrams
    /// it sent. It must succeed.
    fn run_as_service(name: &str, sockets: Vec<OwnedFd>, environment: &[(&str, &str)]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let output = directory.path().join("output");
        let manager = UnixDatagram::bind(&path).unwrap();
        let module = module_path!().split_once("::").unwrap().1;
        let count = sockets.len();
        let mut streams = sockets.into_iter().map(Stdio::from);
        // Standard streams are what a parent can hand over; the shell moves them to 3, 4 and 5.
        let exit = Command::new("sh")
            .arg("-c")
            .arg(r#"exec 3<&0 4<&1 5<&2 </dev/null >"$OUTPUT" 2>&1; export LISTEN_PID="${LISTEN_PID-$$}"; exec "$0" "$@""#)
            .arg(env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::{name}")])
            .stdin(streams.next().unwrap_or_else(Stdio::null))
            .stdout(streams.next().unwrap_or_else(Stdio::null))
            .stderr(streams.next().unwrap_or_else(Stdio::null))
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDNAMES")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .env(ROLE, "1")
            .env("OUTPUT", &output)
            .env("LISTEN_FDS", count.to_string())
            .env("NOTIFY_SOCKET", &path)
            .envs(environment.iter().copied())
            .status()
            .unwrap();
        let output = std::fs::read_to_string(output).unwrap();
        assert!(exit.success() && output.contains("1 passed"), "{name} as a service: {exit}\n{output}");
        received(&manager)
    }

    fn received(manager: &UnixDatagram) -> Vec<String> {
        manager.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let mut datagrams = Vec::new();
        while let Ok(length) = manager.recv(&mut buffer) {
            datagrams.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        datagrams
    }

    fn unix_listener(directory: &tempfile::TempDir, name: &str) -> (UnixListener, UnixStream) {
        let path = directory.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        (listener, client)
    }

    /// In the service: takes the sockets, and sends the mistake to the manager as its status.
    fn report_mistake() {
        let mistake = take_listeners().expect_err("the sockets are wrong");
        status(&mistake.to_string());
    }

    #[test]
    fn sockets_become_listeners_by_name_and_family() {
        if is_service() {
            let inherited = take_listeners().unwrap();
            let [NbdListener::Unix(unix), NbdListener::Tcp(tcp)] = &inherited.nbd[..] else {
                panic!("{inherited:?}")
            };
            let [control] = &inherited.control[..] else { panic!("{inherited:?}") };
            unix.accept().unwrap().0.write_all(b"nbd over unix").unwrap();
            tcp.accept().unwrap().0.write_all(b"nbd over tcp").unwrap();
            control.accept().unwrap().0.write_all(b"control").unwrap();
            // Nobody else is waiting: a blocking listener would hang here.
            assert_eq!(unix.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert_eq!(tcp.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert_eq!(control.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(env::var_os("LISTEN_FDS").is_none(), "a child would inherit it");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (unix, mut unix_client) = unix_listener(&directory, "nbd");
        let (control, mut control_client) = unix_listener(&directory, "control");
        let tcp = TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).unwrap();
        let mut tcp_client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        run_as_service(
            "sockets_become_listeners_by_name_and_family",
            vec![unix.into(), tcp.into(), control.into()],
            &[("LISTEN_FDNAMES", "nbd:nbd:control")],
        );
        let mut said = [const { String::new() }; 3];
        unix_client.read_to_string(&mut said[0]).unwrap();
        tcp_client.read_to_string(&mut said[1]).unwrap();
        control_client.read_to_string(&mut said[2]).unwrap();
        assert_eq!(said, ["nbd over unix", "nbd over tcp", "control"]);
    }

    #[test]
    fn sockets_of_another_process_are_left_alone() {
        if is_service() {
            let inherited = take_listeners().unwrap();
            assert!(inherited.nbd.is_empty() && inherited.control.is_empty());
            status("took none");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (unix, _client) = unix_listener(&directory, "nbd");
        let sent = run_as_service(
            "sockets_of_another_process_are_left_alone",
            vec![unix.into()],
            &[("LISTEN_FDNAMES", "nbd"), ("LISTEN_PID", "1")],
        );
        assert_eq!(sent, ["STATUS=took none\n"]);
    }

    #[test]
    fn a_socket_of_unknown_name_is_refused_by_its_name() {
        if is_service() {
            return report_mistake();
        }
        for (names, expected) in [
            (Some("nbd:metrics"), "a socket named \"metrics\" was handed in (descriptor 4)"),
            (None, "a socket named \"unknown\" was handed in (descriptor 3)"),
            (Some("nbd"), "2 sockets were handed in, but 1 names"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let (first, _client) = unix_listener(&directory, "first");
            let (second, _client) = unix_listener(&directory, "second");
            let environment: Vec<_> = names.map(|names| ("LISTEN_FDNAMES", names)).into_iter().collect();
            let sent = run_as_service(
                "a_socket_of_unknown_name_is_refused_by_its_name",
                vec![first.into(), second.into()],
                &environment,
            );
            assert_eq!(sent.len(), 1);
            assert!(sent[0].contains(expected), "{names:?}: {sent:?}");
        }
    }

    #[test]
    fn a_socket_that_does_not_fit_its_name_is_refused() {
        if is_service() {
            return report_mistake();
        }
        let directory = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let datagram = UnixDatagram::bind(directory.path().join("datagram")).unwrap();
        let (_listener, connected) = unix_listener(&directory, "connected");
        let file = tempfile::tempfile().unwrap();
        for (name, socket, expected) in [
            ("control", OwnedFd::from(tcp), "listening Unix stream socket"),
            ("nbd", datagram.into(), "listening Unix or TCP stream socket"),
            ("nbd", connected.into(), "listening Unix or TCP stream socket"),
            ("nbd", file.into(), "listening Unix or TCP stream socket"),
        ] {
            let sent = run_as_service(
                "a_socket_that_does_not_fit_its_name_is_refused",
                vec![socket],
                &[("LISTEN_FDNAMES", name)],
            );
            let expected = format!("STATUS=the socket named {name:?} (descriptor 3) is not a {expected}\n");
            assert_eq!(sent, [expected]);
        }
    }

    #[test]
    fn the_manager_is_told_one_state_a_datagram() {
        if is_service() {
            status("opening vm1");
            extend_timeout(Duration::from_secs(5));
            extend_timeout(Duration::from_secs(86_400));
            // A name out of a configuration must not be able to speak for the daemon.
            ready("serving 2 disks\nMAINPID=1");
            ping();
            stopping();
            return;
        }
        let sent = run_as_service("the_manager_is_told_one_state_a_datagram", Vec::new(), &[]);
        assert_eq!(
            sent,
            [
                "STATUS=opening vm1\n",
                "EXTEND_TIMEOUT_USEC=5000000\n",
                "EXTEND_TIMEOUT_USEC=4294967295\n",
                "READY=1\nSTATUS=serving 2 disks MAINPID=1\n",
                "WATCHDOG=1\n",
                "STOPPING=1\n",
            ]
        );
    }

    #[test]
    fn a_manager_that_is_gone_harms_nobody() {
        if is_service() {
            return ready("serving");
        }
        let gone = [("NOTIFY_SOCKET", "/nonexistent/notify")];
        let sent = run_as_service("a_manager_that_is_gone_harms_nobody", Vec::new(), &gone);
        assert!(sent.is_empty());
    }

    #[test]
    fn pings_are_due_twice_in_the_watchdogs_time() {
        if is_service() {
            return status(&format!("{:?}", watchdog_interval()));
        }
        for (environment, expected) in [
            (&[("WATCHDOG_USEC", "30000000")][..], "Some(15s)"),
            (&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "1")], "None"),
            (&[("WATCHDOG_USEC", "0")], "None"),
            (&[], "None"),
        ] {
            let sent = run_as_service("pings_are_due_twice_in_the_watchdogs_time", Vec::new(), environment);
            assert_eq!(sent, [format!("STATUS={expected}\n")], "{environment:?}");
        }
    }
}
