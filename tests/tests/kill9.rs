//! kill -9 in the middle of writes, again and again on the same images.
//!
//! What was acknowledged is there after the restart, flushed or not: the page cache outlives the
//! process. What was not acknowledged is, sector by sector, either old or new; nothing else ever
//! appears. Every sector written holds its own number and the number of its write, so a stale, a
//! foreign and a torn sector are all told apart.

use std::collections::HashMap;
use std::io;
use std::thread;
use std::time::Duration;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::{Client, FLAG_SEND_TRIM, Request};
use diskchain_tests::rng::Rng;
use diskchain_tests::server::Server;
use diskchain_tests::tool::Tool;
use rustix::process::{Pid, Signal, kill_process};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
const DISK_SECTORS: u64 = 32 * MIB / SECTOR;
const QUEUE_DEPTH: usize = 8;

/// The number of the write that a sector's content comes from; 0 for zeroes.
type WriteNumber = u32;

/// What each sector may hold now.
struct Expectation(Vec<Vec<WriteNumber>>);

/// A request that has not been answered: which sectors, what they hold afterwards.
struct Unanswered {
    sectors: std::ops::Range<u64>,
    becomes: WriteNumber,
    /// A trim may also leave what was there.
    binding: bool,
}

fn sector_content(sector: u64, write: WriteNumber) -> [u8; SECTOR as usize] {
    let stamp = if write == 0 { 0 } else { sector << 32 | u64::from(write) };
    let mut content = [0; SECTOR as usize];
    content.as_chunks_mut::<8>().0.fill(stamp.to_le_bytes());
    content
}

impl Expectation {
    fn new() -> Expectation {
        Expectation(vec![vec![0]; DISK_SECTORS as usize])
    }

    fn sent(&mut self, request: &Unanswered) {
        for sector in request.sectors.clone() {
            self.0[sector as usize].push(request.becomes);
        }
    }

    fn acknowledged(&mut self, request: &Unanswered) {
        for sector in request.sectors.clone().filter(|_| request.binding) {
            self.0[sector as usize] = vec![request.becomes];
        }
    }

    /// Reads the whole disk; from now on each sector holds what was found.
    #[track_caller]
    fn verify(&mut self, client: &mut Client, after: &str) {
        for start in (0..DISK_SECTORS).step_by(2048) {
            let data = client.read(start * SECTOR, MIB as u32).expect("read the disk");
            for (sector, found) in (start..).zip(data.as_chunks::<{ SECTOR as usize }>().0) {
                let possible = &mut self.0[sector as usize];
                let held = possible.iter().find(|write| *found == sector_content(sector, **write));
                *possible = vec![*held.unwrap_or_else(|| {
                    let stamp = u64::from_le_bytes(*found.first_chunk().expect("8 bytes"));
                    panic!(
                        "{after}: sector {sector} may hold the writes {possible:?}, but begins with \
                         the stamp of write {} to sector {}",
                        stamp as u32,
                        stamp >> 32
                    )
                })];
            }
        }
    }
}

/// Draws a request whose sectors no unanswered request touches.
fn draw(
    rng: &mut Rng,
    may_trim: bool,
    number: WriteNumber,
    busy: &HashMap<(usize, u64), Unanswered>,
) -> Option<(Request, Unanswered)> {
    // Mostly small; sometimes over several blocks of 1 MiB.
    let len = if rng.one_in(10) { rng.within(1..5000) } else { rng.within(1..256) };
    let first = rng.below(DISK_SECTORS - len);
    let sectors = first..first + len;
    let overlaps =
        |other: &Unanswered| other.sectors.start < sectors.end && sectors.start < other.sectors.end;
    if busy.values().any(overlaps) {
        return None;
    }
    let (offset, len) = (first * SECTOR, (len * SECTOR) as u32);
    let unanswered = |becomes, binding| Unanswered { sectors: sectors.clone(), becomes, binding };
    Some(match rng.below(20) {
        0 => (Request::Flush, Unanswered { sectors: 0..0, becomes: 0, binding: true }),
        1 | 2 if may_trim => (Request::Trim { offset, len }, unanswered(0, false)),
        3 | 4 => (Request::WriteZeroes { offset, len, no_hole: rng.one_in(2) }, unanswered(0, true)),
        _ => {
            let data = sectors.clone().flat_map(|sector| sector_content(sector, number)).collect();
            let fua = rng.one_in(10);
            (Request::Write { offset, data, fua }, unanswered(number, true))
        }
    })
}

/// The whole run over one chain.
struct Run {
    rng: Rng,
    expectation: Expectation,
    number: WriteNumber,
    acknowledged: usize,
    unanswered: usize,
}

impl Run {
    /// Writes over both connections until the server is gone. `kill` is called when `fatal` requests
    /// have been acknowledged: by requests, not by time, so that a slow machine is hit at work too.
    fn write_until_killed(&mut self, clients: &mut [Client; 2], fatal: usize, kill: impl FnOnce()) {
        let mut kill = Some(kill);
        let mut busy: HashMap<(usize, u64), Unanswered> = HashMap::new();
        for acknowledged in 0.. {
            if acknowledged == fatal {
                kill.take().expect("the first time")();
            }
            if self.one_reply(clients, &mut busy).is_err() {
                assert!(acknowledged >= fatal, "the connection broke before the kill");
                self.acknowledged += acknowledged;
                self.unanswered += busy.len();
                return;
            }
        }
    }

    /// Fills the queues and waits for a reply of the fuller one.
    fn one_reply(
        &mut self,
        clients: &mut [Client; 2],
        busy: &mut HashMap<(usize, u64), Unanswered>,
    ) -> io::Result<()> {
        let may_trim = clients[0].flags() & FLAG_SEND_TRIM != 0;
        while busy.len() < QUEUE_DEPTH {
            self.number += 1;
            let Some((request, unanswered)) = draw(&mut self.rng, may_trim, self.number, busy) else { break };
            // It may take effect even if sending it fails half-way.
            self.expectation.sent(&unanswered);
            let connection = self.rng.below(2) as usize;
            let sent = clients[connection].send(&request);
            // Cookie 0 is no client's: what could not be sent is never answered.
            busy.insert((connection, sent.as_ref().copied().unwrap_or(0)), unanswered);
            sent?;
        }
        let connection = usize::from(clients[1].in_flight() > clients[0].in_flight());
        let (cookie, result) = clients[connection].receive()?;
        let answered = busy.remove(&(connection, cookie)).expect("a request in flight");
        result.unwrap_or_else(|error| panic!("NBD error {error}"));
        self.expectation.acknowledged(&answered);
        Ok(())
    }
}

/// Kills the server of a chain `kills` times under load.
#[track_caller]
fn kill_again_and_again(name: &str, kills: usize, serve: impl Fn() -> Server) {
    let rng = Rng::for_test(name);
    let expectation = Expectation::new();
    let mut run = Run { rng, expectation, number: 0, acknowledged: 0, unanswered: 0 };
    for kill in 0..kills {
        let server = serve();
        let mut clients = [server.connect(""), server.connect("")];
        run.expectation.verify(&mut clients[0], &format!("after {kill} kills"));
        let pid = Pid::from_raw(server.pid().cast_signed()).expect("a process id");
        let moment = Duration::from_micros(run.rng.below(5000));
        let fatal = run.rng.within(10..80) as usize;
        thread::scope(|scope| {
            run.write_until_killed(&mut clients, fatal, || {
                scope.spawn(move || {
                    thread::sleep(moment);
                    kill_process(pid, Signal::KILL).expect("the server still runs");
                });
            });
        });
        server.kill();
    }
    let Run { mut expectation, acknowledged, unanswered, .. } = run;
    println!("{name}: {kills} kills, {acknowledged} requests acknowledged, {unanswered} in flight");
    assert!(unanswered > kills, "the kills came in the middle of requests: {unanswered}");

    let server = serve();
    expectation.verify(&mut server.connect(""), "after the last kill");
    server.stop();
    let server = serve();
    expectation.verify(&mut server.connect(""), "after a clean stop");
    server.stop();
}

#[test]
fn a_vdi_survives_kill_9_twenty_times_in_the_middle_of_writes() {
    let chain = Chain::new(Base::Vdi, 32 * MIB);
    kill_again_and_again("vdi", 20, || chain.serve());
    chain.check();
    // QEMU reads from the file what the daemon serves.
    let server = chain.serve_with(&["--read-only"]);
    let compare = Tool::new("qemu-img").args(["compare", "-f", "vdi", "-F", "raw"]);
    compare.arg(chain.base()).arg(server.uri("")).run();
    server.stop();
}

#[test]
fn a_child_of_a_vdi_survives_kill_9_twenty_times_in_the_middle_of_writes() {
    let mut chain = Chain::new(Base::Vdi, 32 * MIB);
    chain.push_child();
    kill_again_and_again("child", 20, || chain.serve());
    chain.check();
}

#[test]
fn a_raw_image_survives_kill_9_ten_times_in_the_middle_of_writes() {
    let chain = Chain::new(Base::Raw, 32 * MIB);
    kill_again_and_again("raw", 10, || chain.serve());
}

#[test]
fn a_fixed_vdi_survives_kill_9_five_times_in_the_middle_of_writes() {
    let chain = Chain::new(Base::FixedVdi, 32 * MIB);
    kill_again_and_again("fixed", 5, || chain.serve());
    chain.check();
}
