//! Clients that vanish, flood, dribble and lie harm nobody but themselves, and images reach nothing but themselves.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::{Client, Request};
use diskchain_tests::rng::Rng;
use diskchain_tests::server::{Server, diskchain};
use diskchain_tests::tool::{Tool, wait_until};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

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
fn a_write_longer_than_allowed_is_refused_without_room_for_its_payload() {
    let (_chain, server) = served("");
    let before = server.resident_bytes();
    let mut client = server.connect("");
    let long = Request::Write { offset: 0, data: vec![9; 33 << 20], fua: false };
    client.send(&long).expect("send");
    let (_, result) = client.receive().expect("the connection lives on");
    assert_eq!(result, Err(EINVAL));
    worst_read(&mut client, 1);
    // Past the end, too: and the answer does not wait for a payload that may never come.
    for len in [65 << 20, 1 << 31, u32::MAX] {
        let mut client = server.connect("");
        let mut header = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1];
        header.extend([0; 16]);
        header.extend(u32::to_be_bytes(len));
        client.stream().write_all(&header).expect("send a header");
        let mut reply = [0; 16];
        client.stream().read_exact(&mut reply).expect("a reply");
        assert_eq!(reply[4..8], ENOSPC.to_be_bytes(), "a write of {len} bytes");
    }
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 16 * MIB, "memory grew by {grown} bytes");
    worst_read(&mut server.connect(""), 1);
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
    println!("8 clients that read no replies, bound 128 MiB: memory grew by {} MiB at most", peak / MIB);
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

/// The processor time that a process has used, in hundredths of a second.
fn cpu_ticks(server: &Server) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("a process");
    let (_, after_name) = stat.rsplit_once(')').expect("a name in brackets");
    // State is the third field of all, user and system time are the fourteenth and fifteenth.
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
}

#[test]
fn a_client_that_falls_silent_after_quick_requests_costs_no_processor_time() {
    let (_chain, server) = served("busy_poll = \"1ms\"");
    let mut client = server.connect("");
    for _ in 0..2000 {
        client.read(0, 512).expect("read");
    }
    let used = cpu_ticks(&server);
    std::thread::sleep(Duration::from_secs(2));
    let used = cpu_ticks(&server) - used;
    assert!(used < 20, "{used} hundredths of a second in two seconds of silence");
    client.disconnect().expect("a clean goodbye");
    server.stop();
}

#[test]
fn a_daemon_without_descriptors_rests_serves_on_and_recovers() {
    let (_chain, mut server) = served("");
    let mut good = server.connect("");
    let pid = Pid::from_raw(server.pid().try_into().expect("a pid")).expect("a pid");
    let limit = server.open_files() as u64 + 20;
    let rlimit = Rlimit { current: Some(limit), maximum: Some(limit) };
    let before = prlimit(Some(pid), Resource::Nofile, rlimit).expect("limit a child");
    assert!(before.current.is_none_or(|before| before > limit));
    let crowd: Vec<UnixStream> = (0..200)
        .map(|_| UnixStream::connect(server.socket()).expect("the kernel's queue has room"))
        .collect();
    wait_until("the descriptors are used up", 10, || server.open_files() as u64 >= limit);
    wait_until("the daemon says so", 10, || server.log().contains("cannot accept connections for now"));

    // Processor time, not time: a busy machine makes it less, not more.
    let (started, used) = (Instant::now(), cpu_ticks(&server));
    while started.elapsed() < Duration::from_secs(2) {
        worst_read(&mut good, 1);
        std::thread::sleep(Duration::from_millis(100));
    }
    let used = cpu_ticks(&server) - used;
    println!(
        "200 clients without a descriptor: {used} hundredths of a second of processor time in two seconds"
    );
    assert!(used < 50, "{used} hundredths of a second in two seconds of waiting");
    let complaints = server.log().matches("cannot accept connections for now").count();
    assert!(complaints < 200, "{complaints} lines of log");

    drop(crowd);
    wait_until("there are descriptors again", 20, || {
        server.is_running() && (server.open_files() as u64) < limit - 10
    });
    worst_read(&mut server.connect(""), 1);
    server.stop();
}

#[test]
fn thousands_of_connections_of_all_kinds_leave_no_descriptor_and_no_memory() {
    let (_chain, server) = served("");
    let mut good = server.connect("");
    let mut rng = Rng::for_test("churn");
    let mut round = |connections: u32| {
        for _ in 0..connections {
            match rng.below(5) {
                0 => drop(UnixStream::connect(server.socket()).expect("connect")),
                1 => drop(half_handshake(&server)),
                2 => drop(Client::connect(server.socket(), "nobody").err().expect("no such export")),
                3 => server.connect("").disconnect().expect("a clean goodbye"),
                _ => {
                    let mut client = server.connect("");
                    client.send(&Request::Read { offset: 0, len: MIB as u32 }).expect("send");
                }
            }
        }
    };
    let files = server.open_files();
    round(500);
    wait_until("all are gone", 20, || server.open_files() <= files);
    let before = server.resident_bytes();
    round(3000);
    wait_until("all are gone", 20, || server.open_files() <= files);
    let grown = server.resident_bytes().saturating_sub(before);
    println!("3000 connections left {} KiB and no descriptor", grown >> 10);
    assert!(grown < 16 * MIB, "3000 connections left {grown} bytes");
    worst_read(&mut good, 1);
    server.stop();
}

/// A connection with structured replies and the context `base:allocation`, ready for requests.
fn structured(server: &Server) -> UnixStream {
    let mut stream = half_handshake(server);
    let query = b"base:allocation";
    let contexts = [&[0; 4][..], &1_u32.to_be_bytes(), &(query.len() as u32).to_be_bytes(), query].concat();
    for (option, data) in [(8_u32, &[][..]), (10, &contexts[..]), (7, &[0; 6][..])] {
        let header = [OPTION_MAGIC, &option.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
        stream.write_all(&[&header, data].concat()).expect("send an option");
        loop {
            let mut header = [0; 20];
            stream.read_exact(&mut header).expect("an answer");
            let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let (kind, len) = (word(12), word(16));
            stream.read_exact(&mut vec![0; len as usize]).expect("its data");
            assert!(kind < 1 << 31, "option {option} is refused with {kind:#x}");
            if kind == 1 {
                break;
            }
        }
    }
    stream
}

#[test]
fn a_flood_of_questions_about_a_disk_in_fragments_is_answered_within_bounds() {
    const FRAGMENTS: u64 = 8192;
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let file = File::create(&image).unwrap();
    file.set_len(FRAGMENTS * 131_072).unwrap();
    for fragment in 0..FRAGMENTS {
        file.write_all_at(&[5; 4096], fragment * 131_072 + 4096).unwrap();
    }
    let config = "[server]\nlisten = [\"unix:diskchain.sock\"]\ncontrol = \"off\"\n\
         max_request_size = \"4MiB\"\nmax_buffer_memory = \"16MiB\"\ndefault_export = \"a\"\n\
         [disk.a]\nfile = \"disk.raw\"\nformat = \"raw\"\n";
    let server = Server::diskchain_config(dir.path(), config);
    let mut good = server.connect("");
    worst_read(&mut good, 10);
    let before = server.resident_bytes();
    let mut askers: Vec<UnixStream> = (0..4).map(|_| structured(&server)).collect();
    let size = (FRAGMENTS * 131_072) as u32;
    for asker in &mut askers {
        asker.set_write_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
        for cookie in 0..2000_u64 {
            let mut question = [0_u8; 28];
            question[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
            question[7] = 7;
            question[8..16].copy_from_slice(&cookie.to_be_bytes());
            question[24..].copy_from_slice(&size.to_be_bytes());
            if asker.write_all(&question).is_err() {
                break;
            }
        }
    }
    let mut peak = 0;
    for _ in 0..30 {
        peak = peak.max(server.resident_bytes().saturating_sub(before));
        assert!(worst_read(&mut good, 1) < Duration::from_secs(2), "a good client is served all the same");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("4 floods of block status, bound 16 MiB: memory grew by {} KiB at most", peak >> 10);
    assert!(peak < 64 * MIB, "memory grew by {peak} bytes over a bound of 16 MiB");
    let mut header = [0; 20];
    askers[0].read_exact(&mut header).expect("an answer");
    assert_eq!((header[..4].to_vec(), header[7]), (vec![0x66, 0x8e, 0x33, 0xef], 5), "a block status");
    let len = u32::from_be_bytes(header[16..].try_into().expect("four bytes"));
    assert!((8 * 1000..1 << 20).contains(&len), "{len} bytes tell of {FRAGMENTS} fragments");
    drop(askers);
    worst_read(&mut server.connect(""), 1);
    server.stop();
}

#[test]
fn writes_of_a_dead_client_that_waited_for_the_throttle_never_come_back() {
    const PIECE: u64 = 256 << 10;
    let chain = Chain::new(Base::Vdi, 64 * MIB);
    let config = chain.config() + "[disk.disk.throttle]\nbps_write = \"256KiB/s\"\n";
    let server = Server::diskchain_config(chain.dir(), &config);
    let files = server.open_files();
    let mut dead = server.connect("");
    dead.stream().set_write_timeout(Some(Duration::from_millis(500))).expect("set a timeout");
    let writes =
        (0..60).map(|at| Request::Write { offset: at * PIECE, data: vec![9; PIECE as usize], fua: false });
    let sent = writes.take_while(|write| dead.send(write).is_ok()).count() as u64;
    assert!(sent > 20, "{sent} writes are more than the throttle lets through meanwhile");
    drop(dead);

    // All that the dead client sent would take a minute.
    let started = Instant::now();
    let mut client = server.connect("");
    client.write(0, &[1; 4096]).expect("write over what the dead client wrote");
    client.write((sent - 2) * PIECE, &[2; 4096]).expect("write over what it wanted to write");
    assert!(started.elapsed() < Duration::from_secs(30), "they waited for {:?}", started.elapsed());
    wait_until("nothing of the dead client is left", 20, || server.open_files() <= files + 1);
    let expect = |client: &mut Client| {
        assert_eq!(client.read(0, 4096).expect("read"), [1; 4096]);
        assert_eq!(client.read((sent - 2) * PIECE, 4096).expect("read"), [2; 4096]);
        let dropped = client.read((sent - 2) * PIECE + 4096, 8192).expect("read");
        assert_eq!(dropped, [0; 8192], "what had not begun when the client died is not done");
    };
    expect(&mut client);
    server.stop();
    let server = Server::diskchain_config(chain.dir(), &config);
    expect(&mut server.connect(""));
    server.stop();
}

#[test]
fn a_raw_disk_stays_raw_whatever_a_guest_writes_into_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    let secret = dir.path().join("secret");
    fs::write(&secret, vec![0x5e; 65536]).unwrap();
    File::create(&disk).unwrap().set_len(4 * MIB).unwrap();
    let config = "[server]\nlisten = [\"unix:diskchain.sock\"]\ncontrol = \"off\"\ndefault_export = \"a\"\n\
         [disk.a]\nfile = \"disk.img\"\nformat = \"raw\"\n";
    for format in ["vdi", "qcow2", "vmdk", "vhdx"] {
        let image = dir.path().join(format!("image.{format}"));
        let create = Tool::new("qemu-img").args(["create", "-q", "-f", format]);
        let create = match format {
            "qcow2" => create.args(["-F", "raw", "-b"]).arg(&secret),
            _ => create,
        };
        create.arg(&image).arg("64M").run();
        let mut head = fs::read(&image).unwrap();
        head.resize(MIB as usize, 0);
        let server = Server::diskchain_config(dir.path(), config);
        server.connect("").write(0, &head).expect("a guest may write what it likes");
        server.stop();
        let server = Server::diskchain_config(dir.path(), config);
        let mut client = server.connect("");
        assert_eq!(client.size(), 4 * MIB, "{format}");
        assert!(client.read(0, MIB as u32).expect("read") == head, "{format} is read as something else");
        server.stop();
        let server = Server::diskchain(dir.path(), &[&disk], &["--format", "raw"]);
        assert_eq!(server.connect("").size(), 4 * MIB, "{format}");
        server.stop();
    }
}

/// A config in `dir` that serves `layers`, of which images may lie in `images` only.
fn kept_to_images(layers: &str) -> String {
    format!(
        "[server]\nlisten = [\"unix:diskchain.sock\"]\ncontrol = \"off\"\nimage_dirs = [\"images\"]\n\
         default_export = \"a\"\n[disk.a]\n{layers}\n"
    )
}

/// A base and a child of it in `dir/images`.
fn base_and_child(dir: &Path) {
    fs::create_dir(dir.join("images")).unwrap();
    diskchain(&["image", "create", "--size", "1MiB"]).arg(dir.join("images/base.vdi")).run();
    let child = diskchain(&["image", "create"]).arg(dir.join("images/child.vdi"));
    child.arg("--parent").arg(dir.join("images/base.vdi")).run();
}

#[test]
fn a_chain_cannot_be_led_to_what_is_no_image_or_lies_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    base_and_child(dir.path());
    let at = |name: &str| dir.path().join(name);
    fs::rename(at("images/base.vdi"), at("outside.vdi")).unwrap();
    Tool::new("mkfifo").arg(at("images/fifo")).run();
    let _socket = UnixListener::bind(at("images/socket")).unwrap();
    fs::create_dir(at("images/folder")).unwrap();
    symlink("/dev/zero", at("images/device")).unwrap();
    symlink("../outside.vdi", at("images/link")).unwrap();
    symlink("loop", at("images/loop")).unwrap();
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let port = trap.local_addr().unwrap().port();
    let nbd = format!("nbd:127.0.0.1:{port}");
    let json = format!("json:{{'driver':'nbd','host':'127.0.0.1','port':'{port}'}}");
    let places = [
        "images/fifo",
        "images/socket",
        "images/folder",
        "images/device",
        "images/link",
        "images/loop",
        "images/../outside.vdi",
        "/dev/zero",
        "/etc/passwd",
        "nbd://127.0.0.1/",
        &nbd,
        &json,
        "file:outside.vdi",
    ];
    for place in places {
        for format in ["raw", "vdi"] {
            let layers = format!(
                "layers = [{{ file = \"{place}\", format = \"{format}\" }}, {{ file = \"images/child.vdi\" }}]"
            );
            let refused = Server::try_diskchain_config(dir.path(), &kept_to_images(&layers));
            let refused = refused.err().unwrap_or_else(|| panic!("{place} is served"));
            assert!(refused.status.code().is_some_and(|code| code > 0), "{place}: {refused}");
        }
    }
    assert!(trap.accept().is_err(), "nobody was called");
}

#[test]
fn a_search_for_parents_follows_no_link_and_waits_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    base_and_child(dir.path());
    let at = |name: &str| dir.path().join(name);
    fs::rename(at("images/base.vdi"), at("outside.vdi")).unwrap();
    Tool::new("mkfifo").arg(at("images/fifo.vdi")).run();
    let _socket = UnixListener::bind(at("images/socket.vdi")).unwrap();
    symlink("/dev/zero", at("images/device.vdi")).unwrap();
    symlink("../outside.vdi", at("images/base.vdi")).unwrap();
    fs::create_dir(at("elsewhere")).unwrap();
    fs::copy(at("outside.vdi"), at("elsewhere/base.vdi")).unwrap();
    symlink("../elsewhere", at("images/elsewhere")).unwrap();
    let config = kept_to_images("file = \"images/child.vdi\"\nparents = \"auto\"");
    let refused = Server::try_diskchain_config(dir.path(), &config).err().expect("its parent is outside");
    assert!(refused.said.contains("parent missing"), "{refused}");

    fs::create_dir(at("images/deeper")).unwrap();
    fs::rename(at("outside.vdi"), at("images/deeper/base.vdi")).unwrap();
    let server = Server::diskchain_config(dir.path(), &config);
    server.connect("").write(0, &[1; 512]).expect("the parent itself is found among all that");
    server.stop();
}

/// What a reader says of the first `len` bytes of a disk: its bytes, in pieces, or that it refuses.
type Pieces = Vec<Option<Vec<u8>>>;

const PIECE: usize = 65536;

fn read_by_qemu(image: &Path, out: &Path, len: u64) -> Option<Vec<u8>> {
    let _ = fs::remove_file(out);
    let dd = Tool::new("qemu-img").args(["dd", "-f", "vdi", "-O", "raw", "bs=1M"]);
    let dd = dd.arg(format!("count={}", len / MIB)).arg(format!("if={}", image.display()));
    let ended = dd.arg(format!("of={}", out.display())).run_any();
    ended.status.success().then(|| fs::read(out).expect("a file that was made"))
}

/// None: the image is refused as a whole.
fn read_by_diskchain(dir: &Path, image: &Path, len: u64) -> Option<(u64, Pieces)> {
    let server = Server::try_diskchain(dir, &[image], &["--format", "vdi", "--read-only"]).ok()?;
    let mut client = server.connect("");
    let size = client.size();
    let pieces = (0..len.min(size)).step_by(PIECE).map(|at| {
        let most = (len.min(size) - at).min(PIECE as u64) as u32;
        client.read(at, most).ok()
    });
    let pieces = pieces.collect();
    server.stop();
    Some((size, pieces))
}

/// DISKCHAIN_TEST_EFFORT multiplies the number of images.
#[test]
fn a_damaged_image_reads_as_qemu_reads_it_or_not_at_all() {
    // Not 0x17c, bytes in front of each block: QEMU does not look at it, VirtualBox does.
    const FIELDS: [u64; 13] =
        [0x40, 0x44, 0x48, 0x4c, 0x154, 0x158, 0x168, 0x16c, 0x170, 0x174, 0x178, 0x180, 0x184];
    const LEN: u64 = 8 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let (raw, sound) = (dir.path().join("sound.raw"), dir.path().join("sound.vdi"));
    let file = File::create(&raw).unwrap();
    file.set_len(LEN).unwrap();
    for block in [0, 1, 3, 4, 6] {
        file.write_all_at(&vec![block as u8 + 1; MIB as usize / 2], block * MIB + 4096).unwrap();
    }
    Tool::new("qemu-img").args(["convert", "-f", "raw", "-O", "vdi"]).arg(&raw).arg(&sound).run();
    let sound = fs::read(sound).unwrap();
    let mut rng = Rng::for_test("differential");
    let effort = std::env::var("DISKCHAIN_TEST_EFFORT").map_or(1, |effort| effort.parse().expect("a number"));
    let (mut alike, mut refused, mut stricter) = (0, 0, 0);
    let images = 40 * effort;
    for number in 0..images {
        let mut bytes = sound.clone();
        let mut changes = Vec::new();
        for _ in 0..rng.within(1..4) {
            let at = if rng.one_in(2) { 0x200 + rng.below(9) * 4 } else { FIELDS[rng.below(13) as usize] };
            let value = match rng.below(5) {
                0 => rng.below(16) as u32,
                1 => rng.next() as u32,
                2 => 1 << rng.below(32),
                3 => u32::MAX - rng.below(3) as u32,
                _ => bytes[at as usize].wrapping_add(1).into(),
            };
            bytes[at as usize..][..4].copy_from_slice(&value.to_le_bytes());
            changes.push((at, value));
        }
        if rng.one_in(4) {
            bytes.truncate(rng.below(sound.len() as u64) as usize);
        }
        let image = dir.path().join("damaged.vdi");
        fs::write(&image, &bytes).unwrap();
        let ours = read_by_diskchain(dir.path(), &image, LEN);
        assert!(fs::read(&image).unwrap() == bytes, "looking changes nothing");
        let theirs = read_by_qemu(&image, &dir.path().join("out.raw"), LEN);
        let (Some((size, pieces)), Some(theirs)) = (&ours, &theirs) else {
            refused += usize::from(ours.is_none());
            stricter += usize::from(ours.is_none() && theirs.is_some());
            continue;
        };
        assert_eq!((*size).min(LEN), theirs.len() as u64, "image {number} with {changes:x?}: the size");
        for (at, piece) in pieces.iter().enumerate() {
            if let Some(piece) = piece {
                assert!(
                    piece[..] == theirs[at * PIECE..][..piece.len()],
                    "image {number} with {changes:x?}: piece {at} differs"
                );
            }
        }
        alike += 1;
    }
    println!(
        "{images} damaged images: {alike} read alike, {refused} refused, of which {stricter} QEMU reads"
    );
    assert!(alike >= images / 8 && refused >= images / 8, "{alike} alike and {refused} refused of {images}");
}
