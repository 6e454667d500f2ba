//! kill -9 in the middle of writes, again and again on the same images.
//!
//! What was acknowledged is there after the restart, flushed or not: the page cache outlives the
//! process. What was not acknowledged is, sector by sector, either old or new; nothing else ever
//! appears.

use std::thread;
use std::time::Duration;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::rng::Rng;
use diskchain_tests::server::Server;
use diskchain_tests::stamped::{Load, StampedDisk};
use diskchain_tests::tool::Tool;
use rustix::process::{Pid, Signal, kill_process};

const MIB: u64 = 1 << 20;
const DISK: u64 = 32 * MIB;
const QUEUE_DEPTH: usize = 8;

/// The whole run over one chain.
struct Run {
    rng: Rng,
    disk: StampedDisk,
    acknowledged: usize,
    unanswered: usize,
}

impl Run {
    /// Writes over both connections until the server is gone. `kill` is called when `fatal` requests
    /// have been acknowledged: by requests, not by time, so that a slow machine is hit at work too.
    fn write_until_killed(&mut self, mut load: Load, fatal: usize, kill: impl FnOnce()) {
        let mut kill = Some(kill);
        for acknowledged in 0.. {
            if acknowledged == fatal {
                kill.take().expect("the first time")();
            }
            match load.one_reply(&mut self.disk, &mut self.rng) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => panic!("NBD error {error}"),
                Err(_) => {
                    assert!(acknowledged >= fatal, "the connection broke before the kill");
                    self.acknowledged += acknowledged;
                    self.unanswered += load.in_flight();
                    return;
                }
            }
        }
    }
}

/// Kills the server of a chain `kills` times under load.
#[track_caller]
fn kill_again_and_again(name: &str, kills: usize, serve: impl Fn() -> Server) {
    let rng = Rng::for_test(name);
    let mut run = Run { rng, disk: StampedDisk::new(DISK), acknowledged: 0, unanswered: 0 };
    for kill in 0..kills {
        let server = serve();
        run.disk.verify(&mut server.connect(""), &format!("after {kill} kills"));
        let load = Load::new(vec![server.connect(""), server.connect("")], QUEUE_DEPTH);
        let pid = Pid::from_raw(server.pid().cast_signed()).expect("a process id");
        let moment = Duration::from_micros(run.rng.below(5000));
        let fatal = run.rng.within(10..80) as usize;
        thread::scope(|scope| {
            run.write_until_killed(load, fatal, || {
                scope.spawn(move || {
                    thread::sleep(moment);
                    kill_process(pid, Signal::KILL).expect("the server still runs");
                });
            });
        });
        server.kill();
    }
    let Run { mut disk, acknowledged, unanswered, .. } = run;
    println!("{name}: {kills} kills, {acknowledged} requests acknowledged, {unanswered} in flight");
    assert!(unanswered > kills, "the kills came in the middle of requests: {unanswered}");

    let server = serve();
    disk.verify(&mut server.connect(""), "after the last kill");
    server.stop();
    let server = serve();
    disk.verify(&mut server.connect(""), "after a clean stop");
    server.stop();
}

#[test]
fn a_vdi_survives_kill_9_twenty_times_in_the_middle_of_writes() {
    let chain = Chain::new(Base::Vdi, DISK);
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
    let mut chain = Chain::new(Base::Vdi, DISK);
    chain.push_child();
    kill_again_and_again("child", 20, || chain.serve());
    chain.check();
}

#[test]
fn a_raw_image_survives_kill_9_ten_times_in_the_middle_of_writes() {
    let chain = Chain::new(Base::Raw, DISK);
    kill_again_and_again("raw", 10, || chain.serve());
}

#[test]
fn a_fixed_vdi_survives_kill_9_five_times_in_the_middle_of_writes() {
    let chain = Chain::new(Base::FixedVdi, DISK);
    kill_again_and_again("fixed", 5, || chain.serve());
    chain.check();
}
