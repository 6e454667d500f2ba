//! Clients that vanish, flood, dribble and lie harm nobody but themselves.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::{Client, Request};
use diskchain_tests::rng::Rng;
use diskchain_tests::server::Server;
use diskchain_tests::tool::wait_until;

const MIB: u64 = 1 << 20;
const OPTION_MAGIC: &[u8] = b"IHAVEOPT";
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// A served 64 MiB VDI whose first MiB holds fives, with `server` lines in its config.
fn served(server: &str) -> (Chain, Server) {
    let chain = Chain::new(Base::Vdi, 64 * MIB);
    let config = chain.config().replace("[server]\n", &format!("[server]\n{server}\n"));
    let server = Server::diskchain_config(chain.dir(), &config);
    server.connect("").write(0, &[5; MIB as usize]).expect("write the first MiB");
    (chain, server)
}

/// The longest of `rounds` reads by a well-behaved client.
fn worst_read(client: &mut Client, rounds: u32) -> Duration {
    (0..rounds)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(client.read(4096, 4096).expect("a good client is served"), [5; 4096]);
            started.elapsed()
        })
        .max()
        .unwrap_or_default()
}

/// A connection of which the server has greeted and the client has sent its flags.
fn half_handshake(server: &Server) -> UnixStream {
    let mut stream = UnixStream::connect(server.socket()).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set a timeout");
    stream.read_exact(&mut [0; 18]).expect("a greeting");
    stream.write_all(&3_u32.to_be_bytes()).expect("send flags");
    stream
}

#[test]
fn clients_that_vanish_with_full_queues_leave_nothing_behind() {
    let (_chain, mut server) = served("");
    let mut good = server.connect("");
    let files = server.open_files();
    let mut rng = Rng::for_test("vanish");
    for _ in 0..60 {
        let mut client = server.connect("");
        client.stream().set_write_timeout(Some(Duration::from_millis(50))).expect("set a timeout");
        for _ in 0..rng.within(1..33) {
            let request = match rng.below(3) {
                0 => Request::Write { offset: rng.within(2..60) * MIB, data: vec![9; 65536], fua: false },
                _ => Request::Read { offset: rng.below(60) * MIB, len: MIB as u32 },
            };
            // A client that reads no replies may be kept from sending.
            if client.send(&request).is_err() {
                break;
            }
        }
        drop(client);
        assert!(worst_read(&mut good, 1) < Duration::from_secs(2));
    }
    assert!(server.is_running());
    wait_until("the descriptors of dead clients are closed", 10, || server.open_files() <= files);
    // A write over what the dead clients wrote is not kept waiting by them.
    good.write(2 * MIB, &vec![1; 16 * MIB as usize]).expect("write");
    assert_eq!(good.read(2 * MIB, 16 * MIB as u32).expect("read"), vec![1; 16 * MIB as usize]);
    server.stop();
}

#[test]
fn a_payload_that_is_cut_short_changes_nothing() {
    let (chain, server) = served("");
    for sent in [0, 1, 511, 4096, 65535] {
        let mut client = server.connect("");
        let mut message = Vec::new();
        message.extend(0x2560_9513_u32.to_be_bytes());
        message.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        message.extend(0_u64.to_be_bytes());
        message.extend(65536_u32.to_be_bytes());
        message.extend(vec![9; sent]);
        client.stream().write_all(&message).expect("send a part of a write");
        drop(client);
    }
    server.stop();
    let server = chain.serve();
    assert_eq!(server.connect("").read(0, MIB as u32).expect("read"), vec![5; MIB as usize]);
    server.stop();
}

#[test]
fn requests_past_the_end_are_refused_and_the_connection_lives_on() {
    let (_chain, server) = served("");
    let mut client = server.connect("");
    let size = client.size();
    let refused = [
        (Request::Read { offset: size, len: 1 }, EINVAL),
        (Request::Read { offset: size - 512, len: 513 }, EINVAL),
        (Request::Read { offset: u64::MAX - 10, len: 100 }, EINVAL),
        (Request::Write { offset: size - 1, data: vec![9; 2], fua: false }, ENOSPC),
        (Request::Write { offset: u64::MAX, data: vec![9; 512], fua: true }, ENOSPC),
        (Request::WriteZeroes { offset: size - 1, len: 2, no_hole: false }, ENOSPC),
        (Request::Trim { offset: size - 1, len: 2 }, EINVAL),
        (Request::Trim { offset: 0, len: u32::MAX }, EINVAL),
        (Request::Other { command: 77, offset: 0, len: 0 }, EINVAL),
    ];
    for (request, error) in refused {
        client.send(&request).expect("send");
        let (_, result) = client.receive().expect("the connection lives on");
        assert_eq!(result, Err(error), "{request:?}");
        worst_read(&mut client, 1);
    }
    client.disconnect().expect("a clean goodbye");
    server.stop();
}

#[test]
fn a_wrong_request_magic_ends_the_connection_and_only_that_one() {
    let (_chain, server) = served("");
    let (mut good, mut bad) = (server.connect(""), server.connect(""));
    bad.stream().write_all(&[0x42; 28]).expect("send garbage");
    let mut rest = Vec::new();
    // Closed with or without a reset.
    let _ = bad.stream().read_to_end(&mut rest);
    assert!(rest.is_empty(), "garbage gets no reply");
    worst_read(&mut good, 10);
    server.stop();
}

#[test]
fn half_handshakes_and_dribblers_are_dropped_after_the_time_out() {
    let (_chain, server) = served("handshake_timeout = \"2s\"");
    let mut good = server.connect("");
    let files = server.open_files();
    let started = Instant::now();
    let silent: Vec<UnixStream> = (0..100).map(|_| half_handshake(&server)).collect();
    let mut dribbler = half_handshake(&server);
    assert!(server.open_files() >= files + 100, "they are connected");
    wait_until("a dribbler is dropped", 10, || {
        assert!(worst_read(&mut good, 5) < Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(100));
        dribbler.write_all(b"I").is_err()
    });
    wait_until("half handshakes are dropped", 10, || server.open_files() <= files);
    assert!(started.elapsed() >= Duration::from_millis(1500), "they had their time");
    drop(silent);
    server.stop();
}

#[test]
fn options_of_absurd_length_and_number_cost_no_memory() {
    let (_chain, server) = served("");
    let mut good = server.connect("");
    let before = server.resident_bytes();
    let mut kept = Vec::new();
    for option in [1_u32, 2, 3, 6, 7, 9, 10, 0xffff] {
        for len in [0x10_0000_u32, 0x7fff_ffff, 0xffff_ffff] {
            let mut stream = half_handshake(&server);
            let header = [OPTION_MAGIC, &option.to_be_bytes(), &len.to_be_bytes(), &[0; 4096]].concat();
            // It may be cut before all is sent.
            let _ = stream.write_all(&header);
            kept.push(stream);
        }
    }
    let mut flood = half_handshake(&server);
    let unknown = [OPTION_MAGIC, &0xffff_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
    flood.set_write_timeout(Some(Duration::from_secs(5))).expect("set a timeout");
    let sent = (0..50_000).take_while(|_| flood.write_all(&unknown).is_ok()).count();
    assert!(sent < 50_000, "a client that asks for options without end is dropped");
    assert!(worst_read(&mut good, 20) < Duration::from_secs(1));
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 16 * MIB, "memory grew by {grown} bytes");
    server.stop();
}

#[test]
fn clients_that_never_read_their_replies_are_held_to_the_memory_bound() {
    let (_chain, server) = served("max_buffer_memory = \"128MiB\"");
    let mut good = server.connect("");
    good.write(MIB, &vec![5; 31 << 20]).expect("write what the flood reads");
    worst_read(&mut good, 10);
    let before = server.resident_bytes();
    let mut flooders: Vec<Client> = (0..8).map(|_| server.connect("")).collect();
    for client in &mut flooders {
        client.stream().set_write_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
        for _ in 0..64 {
            if client.send(&Request::Read { offset: 0, len: 32 << 20 }).is_err() {
                break;
            }
        }
    }
    let mut peak = 0;
    for _ in 0..50 {
        peak = peak.max(server.resident_bytes().saturating_sub(before));
        assert!(worst_read(&mut good, 1) < Duration::from_secs(1), "a good client is served all the same");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(peak > 16 * MIB, "the flood was felt: {peak}");
    assert!(peak < 192 * MIB, "memory grew by {peak} bytes over a bound of 128 MiB");
    drop(flooders);
    wait_until("the memory is free again for others", 10, || {
        good.read(0, 32 << 20).is_ok_and(|data| data.len() == 32 << 20)
    });
    server.stop();
}

#[test]
fn sigterm_ends_the_daemon_within_its_bound_whatever_clients_do() {
    let (chain, server) = served("drain_timeout = \"2s\"");
    let idle = server.connect("");
    let half = half_handshake(&server);
    let mut deaf = server.connect("");
    for _ in 0..8 {
        deaf.send(&Request::Read { offset: 0, len: 32 << 20 }).expect("send");
    }
    let mut cut = server.connect("");
    let write = Request::Write { offset: 40 * MIB, data: vec![9; 4096], fua: false };
    cut.send(&write).expect("send");
    cut.stream().write_all(&0x2560_9513_u32.to_be_bytes()).expect("send the beginning of a request");
    let mut writer = server.connect("");
    writer.write(50 * MIB, &[7; 4096]).expect("an acknowledged write");

    let started = Instant::now();
    server.stop();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(7), "the daemon took {took:?} to end");
    drop((idle, half, deaf, cut));

    let server = chain.serve();
    let acknowledged = server.connect("").read(50 * MIB, 4096).expect("read");
    assert_eq!(acknowledged, [7; 4096], "what was acknowledged is there");
    server.stop();
    chain.check();
}
