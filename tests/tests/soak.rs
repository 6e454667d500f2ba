//! Everything at once, for as long as wanted: random clients on several disks, limits that change, restarts, kills.
//!
//! ```text
//!   a round:  start ─▶ each disk is verified ─▶ clients write, vanish and come back, one thread a disk
//!                                               limits change, the daemon's memory is looked at
//!             end by kill -9, by SIGTERM under load, or in peace: every client leaves, images are checked
//! ```
//! Every sector says which write it is of, so a lost, stale, foreign or torn one is found at the next look.
//!
//! `DISKCHAIN_SOAK_SECONDS=3600 DISKCHAIN_TEST_SEED=7 cargo test -p diskchain-tests --test soak -- --nocapture`

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::Client;
use diskchain_tests::control::Control;
use diskchain_tests::rng::Rng;
use diskchain_tests::server::Server;
use diskchain_tests::stamped::{Load, SECTOR, StampedDisk};
use diskchain_tests::tool::sha256;
use rustix::process::Signal;
use serde_json::json;

const MIB: u64 = 1 << 20;
const DISK: u64 = 24 * MIB;
/// Images of the deep disk.
const DEPTH: usize = 6;
/// What the daemon may occupy: its buffers, as configured, and the rest of a build with debugging symbols.
const BUFFERS: u64 = 32 * MIB;
const RESIDENT: u64 = BUFFERS + 96 * MIB;
/// Descriptors: files, rings and sockets of all disks, and the most clients at once.
const FILES: usize = 120;

/// A disk, and what it holds.
struct Subject {
    name: &'static str,
    disk: StampedDisk,
    rng: Rng,
}

/// What happened so far.
#[derive(Default)]
struct Figures {
    requests: AtomicU64,
    connections: AtomicU64,
    /// Clients that vanished with requests in flight.
    vanished: AtomicU64,
    verified: AtomicU64,
}

fn count(figure: &AtomicU64, by: u64) {
    figure.fetch_add(by, Ordering::Relaxed);
}

fn read(figure: &AtomicU64) -> u64 {
    figure.load(Ordering::Relaxed)
}

/// Whether the clients go on.
struct Round<'a> {
    socket: &'a Path,
    /// The daemon is about to end, by force or not: clients go on until their connections break.
    ending: AtomicBool,
    /// Clients are to leave in peace.
    leaving: AtomicBool,
    figures: &'a Figures,
}

impl Round<'_> {
    fn goes_on(&self) -> bool {
        !self.leaving.load(Ordering::Relaxed)
    }

    /// The client's life until the round ends. Whatever breaks before that is a failure.
    fn live(&self, subject: &mut Subject) {
        while self.goes_on() {
            if let Err(error) = self.visit(subject) {
                assert!(self.ending.load(Ordering::Relaxed), "{}: {error}", subject.name);
                return;
            }
        }
    }

    /// One visit over a few connections, with a goodbye or without.
    fn visit(&self, subject: &mut Subject) -> std::io::Result<()> {
        let Subject { name, disk, rng } = subject;
        let clients: Result<Vec<_>, _> =
            (0..rng.within(1..5)).map(|_| Client::connect(self.socket, name)).collect();
        let clients = clients?;
        count(&self.figures.connections, clients.len() as u64);
        let mut load = Load::new(clients, rng.within(1..17) as usize);
        let requests = rng.within(1..400);
        for _ in 0..requests {
            if !self.goes_on() {
                break;
            }
            let outcome = load.one_reply(disk, rng)?;
            assert_eq!(outcome, Ok(()), "{name}: no request fails, not even one that a stopping daemon gets");
            count(&self.figures.requests, 1);
        }
        // Whoever vanishes leaves requests behind that may happen until others write there.
        if rng.one_in(4) && self.goes_on() {
            count(&self.figures.vanished, 1);
            return Ok(());
        }
        let failed = load.finish(disk)?;
        assert!(failed.is_empty(), "{name}: {failed:?}");
        if rng.one_in(8) && self.goes_on() {
            disk.try_verify(load.client(), name)?;
            count(&self.figures.verified, DISK / SECTOR);
        }
        Ok(())
    }
}

/// The files of all disks, and the configuration that serves them.
struct World {
    raw: Chain,
    vdi: Chain,
    deep: Chain,
}

impl World {
    fn dir(&self) -> &Path {
        self.raw.dir()
    }

    fn config(&self) -> String {
        let dir = self.dir().display();
        let file = |path: &Path| path.display().to_string();
        let layers: Vec<String> = self
            .deep
            .files()
            .iter()
            .map(|path| format!("  {{ file = \"{}\", format = \"vdi\" }},\n", file(path)))
            .collect();
        format!(
            "[server]\nlisten = [\"unix:{dir}/diskchain.sock\"]\ncontrol = \"unix:{dir}/control.sock\"\n\
             max_buffer_memory = {BUFFERS}\ndrain_timeout = \"5s\"\n[log]\nslow_io = \"0s\"\n\
             [throttle.shared]\n\
             [disk.raw]\nfile = \"{}\"\nformat = \"raw\"\n\
             [disk.vdi]\nfile = \"{}\"\ndetect_zeroes = \"unmap\"\nthrottle.group = \"shared\"\n\
             [disk.deep]\nlayers = [\n{}]\nthrottle.group = \"shared\"\n",
            file(self.raw.top()),
            file(self.vdi.top()),
            layers.concat()
        )
    }

    fn check(&self) {
        self.vdi.check();
        self.deep.check();
    }

    fn parents(&self) -> &[PathBuf] {
        let files = self.deep.files();
        &files[..files.len() - 1]
    }
}

/// A chain whose images all hold something of what the disk reads.
fn grow_deep(subject: &mut Subject) -> Chain {
    let mut chain = Chain::new(Base::Vdi, DISK);
    for _ in 1..DEPTH {
        let server = chain.serve();
        let mut load = Load::new(vec![server.connect("")], 8);
        for _ in 0..60 {
            let outcome = load.one_reply(&mut subject.disk, &mut subject.rng).expect("the server lives");
            outcome.expect("a request succeeds");
        }
        load.finish(&mut subject.disk).expect("the server lives");
        server.stop();
        chain.push_child();
    }
    chain
}

fn change_a_limit(control: &Control, rng: &mut Rng) {
    let path =
        ["/v1/disks/raw/throttle", "/v1/disks/deep/throttle", "/v1/throttles/shared"][rng.below(3) as usize];
    let limits = match rng.below(4) {
        0 => json!({}),
        1 => json!({ "iops_total": rng.within(200..5000) }),
        2 => json!({ "bps_write": rng.within(2..100) * MIB, "iops_read": rng.within(200..5000) }),
        _ => json!({ "bps_total": rng.within(4..200) * MIB, "bps_total_max": 300 * MIB }),
    };
    control.try_put(path, &limits).unwrap_or_else(|error| panic!("PUT {limits} at {path}: {error}"));
}

#[test]
fn nothing_is_lost_while_clients_limits_restarts_and_kills_go_on() {
    let seconds = std::env::var("DISKCHAIN_SOAK_SECONDS").map_or(15, |text| text.parse().expect("a number"));
    let mut rng = Rng::for_test("soak");
    let subject = |name| Subject { name, disk: StampedDisk::new(DISK), rng: Rng::for_test(name) };
    let mut subjects = [subject("raw"), subject("vdi"), subject("deep")];
    let deep = grow_deep(&mut subjects[2]);
    let world = World { raw: Chain::new(Base::Raw, DISK), vdi: Chain::new(Base::Vdi, DISK), deep };
    let digests = || -> Vec<String> { world.parents().iter().map(|it| sha256(it)).collect() };
    let parents = digests();
    let control = Control::of(world.dir());
    let figures = Figures::default();
    let (mut rounds, mut kills, mut stops, mut limits) = (0_u64, 0, 0, 0);
    let (mut most_resident, mut most_files) = (0, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) || kills == 0 || stops == 0 {
        rounds += 1;
        let server = Server::diskchain_config(world.dir(), &world.config());
        for subject in &mut subjects {
            subject
                .disk
                .verify(&mut server.connect(subject.name), &format!("round {rounds}, {}", subject.name));
            count(&figures.verified, DISK / SECTOR);
        }
        let round = Round {
            socket: server.socket(),
            ending: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            figures: &figures,
        };
        let end = rng.below(3);
        thread::scope(|scope| {
            for subject in &mut subjects {
                scope.spawn(|| round.live(subject));
            }
            for _ in 0..rng.within(2..12) {
                thread::sleep(Duration::from_millis(rng.within(20..200)));
                change_a_limit(&control, &mut rng);
                limits += 1;
                let (resident, files) = (server.resident_bytes(), server.open_files());
                assert!(resident < RESIDENT, "round {rounds}: {resident} bytes are resident");
                assert!(files < FILES, "round {rounds}: {files} descriptors are open");
                most_resident = most_resident.max(resident);
                most_files = most_files.max(files);
                for disk in control.get("/v1/disks").as_array().expect("a list") {
                    assert_eq!(disk["condition"], "sound", "round {rounds}: {disk}");
                }
            }
            match end {
                0 => {
                    round.ending.store(true, Ordering::Relaxed);
                    server.signal(Signal::KILL);
                    kills += 1;
                }
                1 => {
                    round.ending.store(true, Ordering::Relaxed);
                    server.signal(Signal::TERM);
                    stops += 1;
                }
                _ => round.leaving.store(true, Ordering::Relaxed),
            }
        });
        match end {
            0 => drop(server.kill()),
            _ => server.stop(),
        }
        if end == 2 {
            world.check();
        }
    }
    let server = Server::diskchain_config(world.dir(), &world.config());
    for subject in &mut subjects {
        subject.disk.verify(&mut server.connect(subject.name), &format!("at the end, {}", subject.name));
    }
    server.stop();
    world.check();
    assert_eq!(digests(), parents, "no parent was written");
    println!(
        "soak: {} s, {rounds} rounds ({kills} kill -9, {stops} SIGTERM under load), {} requests over {} connections, \
         {} visits ended without goodbye, {limits} changes of limits, {} sectors verified, at most {} MiB resident \
         and {most_files} descriptors",
        began.elapsed().as_secs(),
        read(&figures.requests),
        read(&figures.connections),
        read(&figures.vanished),
        read(&figures.verified),
        most_resident / MIB,
    );
    assert!(read(&figures.requests) > 100 && read(&figures.vanished) > 0, "clients were at work");
}
