//! The host's file system is full, again and again, under disks that are written: clients are told, what was
//! acknowledged stays, and everything goes on when there is room again.

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::control::Control;
use diskchain_tests::rng::Rng;
use diskchain_tests::server::Server;
use diskchain_tests::small_fs::SmallFs;
use diskchain_tests::stamped::{Load, StampedDisk};

const MIB: u64 = 1 << 20;
const DISK: u64 = 32 * MIB;
/// A third of the disk has room on the host.
const SMALL: u64 = 12 * MIB;
const LARGE: u64 = 64 * MIB;
const ENOSPC: u32 = 28;

/// A chain on a small file system, its server, and what the disk holds.
struct Run {
    chain: Chain,
    disk: StampedDisk,
    rng: Rng,
}

impl Run {
    fn serve(&self) -> Server {
        // The daemon's log lies on the full file system too: what cannot be written is lost, and no harm is done.
        Server::diskchain_config(self.chain.dir(), &self.chain.config())
    }

    fn load(server: &Server) -> Load {
        Load::new(vec![server.connect("disk"), server.connect("disk")], 8)
    }

    /// Random requests until `most` of them failed for want of space. Returns how many did, those that were in flight
    /// then included.
    #[track_caller]
    fn write_until_full(&mut self, load: &mut Load, most: u64) -> u64 {
        let mut failed = 0;
        for _ in 0..5000 {
            if let Err(error) = load.one_reply(&mut self.disk, &mut self.rng).expect("the server lives") {
                assert_eq!(error, ENOSPC, "the only error there is");
                failed += 1;
            }
            if failed == most {
                let rest = load.finish(&mut self.disk).expect("the server lives");
                assert!(rest.iter().all(|error| *error == ENOSPC), "{rest:?}");
                return failed + rest.len() as u64;
            }
        }
        panic!("the file system never was full: {failed} requests failed");
    }

    #[track_caller]
    fn write_without_an_error(&mut self, load: &mut Load, requests: usize) {
        for _ in 0..requests {
            let outcome = load.one_reply(&mut self.disk, &mut self.rng).expect("the server lives");
            assert_eq!(outcome, Ok(()), "there is room again");
        }
        assert_eq!(load.finish(&mut self.disk).expect("the server lives"), Vec::<u32>::new());
    }

    /// How many requests the daemon says failed for want of space.
    fn counted(&self) -> u64 {
        let stats = Control::of(self.chain.dir()).get("/v1/disks/disk/stats");
        let operations = stats["operations"].as_object().expect("by operation");
        operations.values().filter_map(|operation| operation["errors"]["ENOSPC"].as_u64()).sum()
    }
}

#[track_caller]
fn fills_up_and_recovers(name: &str, make: impl FnOnce(&SmallFs) -> Chain) {
    let fs = SmallFs::new(SMALL);
    let mut run = Run { chain: make(&fs), disk: StampedDisk::new(DISK), rng: Rng::for_test(name) };
    for round in ["first", "second"] {
        let server = run.serve();
        let mut load = Run::load(&server);
        run.disk.verify(load.client(), &format!("{round} start"));
        let failed = run.write_until_full(&mut load, 30);
        assert_eq!(run.counted(), failed, "as many as clients were told of");
        let condition = Control::of(run.chain.dir()).get("/v1/disks/disk")["condition"].clone();
        assert_eq!(condition, "sound", "want of space is no fault of the disk");
        load.client().flush().expect("a flush needs no room");
        run.disk.verify(load.client(), "while it is full");
        // What was acknowledged outlives the process, and the image opens where nothing can be allocated.
        server.kill();
        let server = run.serve();
        let mut load = Run::load(&server);
        run.disk.verify(load.client(), "after kill -9, still full");
        run.write_until_full(&mut load, 5);
        server.stop();
        // Holes may be left that only QEMU minds: it takes room to move blocks into them.
        run.chain.check_by_diskchain();

        let server = run.serve();
        let mut load = Run::load(&server);
        run.disk.verify(load.client(), "after a clean stop, still full");
        run.write_until_full(&mut load, 5);
        fs.make_room(LARGE);
        // The same daemon goes on, without anybody's help.
        run.write_without_an_error(&mut load, 300);
        run.disk.verify(load.client(), "with room again");
        server.kill();
        let server = run.serve();
        run.disk.verify(&mut server.connect("disk"), "after the last kill");
        // The next round is full from its start.
        fs.fill();
        server.stop();
        run.chain.check_by_diskchain();
    }
    fs.make_room(LARGE);
    let server = run.serve();
    let mut load = Run::load(&server);
    run.disk.verify(load.client(), "at the end");
    run.write_without_an_error(&mut load, 300);
    server.stop();
    run.chain.check();
}

#[test]
fn a_raw_disk_loses_nothing_when_its_host_is_full_and_goes_on_when_there_is_room() {
    fills_up_and_recovers("full-raw", |fs| Chain::new_in(fs.path(), Base::Raw, DISK));
}

#[test]
fn a_vdi_loses_nothing_when_its_host_is_full_and_goes_on_when_there_is_room() {
    fills_up_and_recovers("full-vdi", |fs| Chain::new_in(fs.path(), Base::Vdi, DISK));
}

#[test]
fn a_child_loses_nothing_when_its_host_is_full_and_goes_on_when_there_is_room() {
    fills_up_and_recovers("full-child", |fs| {
        let mut chain = Chain::new_in(fs.path(), Base::Vdi, DISK);
        chain.push_child();
        chain
    });
}
