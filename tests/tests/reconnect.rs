//! Clients whose connection breaks and who come back: what the old connection still had to say never undoes what was
//! acknowledged on the new one, and a restart of the daemon is not noticed.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::{Client, Request};
use diskchain_tests::control::Control;
use diskchain_tests::server::Server;
use diskchain_tests::tool::{Tool, wait_until};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const PIECE: usize = 4096;

fn serve(chain: &Chain) -> Server {
    Server::diskchain_config(chain.dir(), &chain.config())
}

/// Waits until the daemon has let go of all clients but `left`.
fn wait_for_clients(chain: &Chain, left: usize) {
    let control = Control::of(chain.dir());
    let clients = || control.get("/v1/clients").as_array().map(Vec::len);
    wait_until("the daemon has noticed who is gone", 30, || clients() == Some(left));
}

/// Sends as many writes of `byte` to the disk's start as the kernel takes from a client that nobody listens to.
fn send_unheard(client: &mut Client, byte: u8) -> usize {
    let write = Request::Write { offset: 0, data: vec![byte; PIECE], fua: false };
    (0..40).take_while(|_| client.send(&write).is_ok()).count()
}

#[test]
fn requests_that_a_dead_connection_left_behind_never_undo_what_a_new_one_was_told() {
    let chain = Chain::new(Base::Vdi, 8 * MIB);
    let server = serve(&chain);
    let mut unheard = 0;
    for round in 1..=20_u8 {
        // As the Linux kernel does whose requests take too long: the connection is given up, and what was in flight is
        // sent again by another one.
        let mut old: Vec<Client> = (0..4).map(|_| server.connect("disk")).collect();
        let mut new = server.connect("disk");
        server.signal(Signal::STOP);
        unheard += old.iter_mut().map(|client| send_unheard(client, 100 + round)).sum::<usize>();
        drop(old);
        let newer = vec![round; PIECE];
        new.send(&Request::Write { offset: 0, data: newer.clone(), fua: false }).expect("send");
        server.signal(Signal::CONT);
        new.receive().expect("a reply").1.expect("the write succeeds");
        wait_for_clients(&chain, 1);
        let found = new.read(0, PIECE as u32).expect("read");
        assert!(found == newer, "round {round}: {} came back after {round} was acknowledged", found[0]);
        new.disconnect().expect("a goodbye");
        wait_for_clients(&chain, 0);
    }
    assert!(unheard > 500, "dead connections left requests behind: {unheard}");
    server.stop();
}

/// fio verifies the checksum of every block over a proxy that connects again when its connection breaks: QEMU's.
#[track_caller]
fn fio_does_not_notice(restart: impl Fn(Server)) {
    let mut chain = Chain::new(Base::Vdi, 64 * MIB);
    chain.push_child();
    let mut server = serve(&chain);
    let proxy = Proxy::start(&chain);
    let fio = Tool::new("fio").args(["--name=verify", "--ioengine=nbd", "--rw=randrw", "--iodepth=16"]);
    let fio = fio.args(["--bsrange=4k-64k", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64"]);
    let fio = fio.args(["--size=48M", "--rate_iops=150", "--time_based", "--runtime=6", "--randseed=7"]);
    let fio = fio.arg("--fsync=64").arg(format!("--uri={}", proxy.uri())).current_dir(chain.dir());
    let mut restarts = 0;
    let server = thread::scope(|scope| {
        let fio = scope.spawn(|| fio.seconds(120).run());
        while !fio.is_finished() {
            thread::sleep(Duration::from_millis(400));
            // In the middle of requests: each time something has been written since the last restart.
            let written = || {
                Control::of(chain.dir()).get("/v1/disks/disk/stats")["operations"]["write"]["completed"]
                    .as_u64()
            };
            while written() == Some(0) && !fio.is_finished() {
                thread::sleep(Duration::from_millis(20));
            }
            restart(server);
            server = serve(&chain);
            restarts += 1;
        }
        fio.join().expect("fio verified all that it read");
        server
    });
    assert!(restarts >= 4, "fio met {restarts} restarts");
    drop(proxy);
    server.stop();
    chain.check();
}

/// qemu-nbd as a client of the daemon, and a server for who cannot connect again.
struct Proxy {
    child: Child,
    socket: PathBuf,
}

impl Proxy {
    #[track_caller]
    fn start(chain: &Chain) -> Proxy {
        let socket = chain.dir().join("proxy.sock");
        let node = format!(
            "driver=nbd,server.type=unix,server.path={}/diskchain.sock,export=disk,reconnect-delay=60",
            chain.dir().display()
        );
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=4", "--image-opts", &node]).arg("--socket").arg(&socket);
        let child = command.stdin(Stdio::null()).spawn().expect("start qemu-nbd");
        wait_until("the proxy listens", 30, || UnixStream::connect(&socket).is_ok());
        Proxy { child, socket }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Fails only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn fio_with_checksums_does_not_notice_that_the_daemon_is_killed_and_comes_back() {
    fio_does_not_notice(|server| {
        server.kill();
    });
}

#[test]
fn fio_with_checksums_does_not_notice_that_the_daemon_is_restarted() {
    fio_does_not_notice(Server::stop);
}
