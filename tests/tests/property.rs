//! The whole daemon against a model: any sequence of requests, restarts, kills and new children over
//! any chain leaves the disk as the model says, and the parents as they were.

use std::path::PathBuf;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::{Client, FLAG_SEND_TRIM, Request};
use diskchain_tests::rng::Rng;
use diskchain_tests::server::Server;
use diskchain_tests::sparse::SparseDisk;
use diskchain_tests::tool::{Tool, sha256};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

const BLOCK: u64 = 1 << 20;
const DEEPEST: usize = 4;

/// A piece of the disk, in shares of it, so that it makes sense on a disk of any size.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u16,
    kind: Length,
}

#[derive(Clone, Copy, Debug)]
enum Length {
    /// This many bytes, aligned to nothing.
    Bytes(u32),
    /// This many 512-byte sectors from a sector's edge.
    Sectors(u32),
    /// This many whole blocks of 1 MiB.
    Blocks(u32),
}

#[derive(Clone, Debug)]
enum Step {
    Read(Piece),
    Write { piece: Piece, fill: u64, fua: bool },
    WriteZeroes { piece: Piece, no_hole: bool },
    Trim(Piece),
    Flush,
    Restart,
    Kill,
    AddChild,
}

impl Piece {
    fn on(self, size: u64) -> (u64, u32) {
        let start = size * u64::from(self.start) / (u64::from(u16::MAX) + 1);
        let (start, len) = match self.kind {
            Length::Bytes(len) => (start, u64::from(len)),
            Length::Sectors(len) => (start / 512 * 512, u64::from(len) * 512),
            Length::Blocks(len) => (start / BLOCK * BLOCK, u64::from(len) * BLOCK),
        };
        (start, len.min(size - start) as u32)
    }
}

fn piece() -> impl Strategy<Value = Piece> {
    let length = prop_oneof![
        (1..5000_u32).prop_map(Length::Bytes),
        (1..400_u32).prop_map(Length::Sectors),
        (1..4_u32).prop_map(Length::Blocks),
    ];
    (any::<u16>(), length).prop_map(|(start, kind)| Piece { start, kind })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => piece().prop_map(Step::Read),
        8 => (piece(), any::<u64>(), any::<bool>())
            .prop_map(|(piece, fill, fua)| Step::Write { piece, fill, fua }),
        4 => (piece(), any::<bool>()).prop_map(|(piece, no_hole)| Step::WriteZeroes { piece, no_hole }),
        4 => piece().prop_map(Step::Trim),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
        1 => Just(Step::AddChild),
    ]
}

fn base() -> impl Strategy<Value = Base> {
    prop_oneof![3 => Just(Base::Vdi), 2 => Just(Base::Raw), 1 => Just(Base::FixedVdi)]
}

/// A served chain and the model of its disk.
struct Subject {
    chain: Chain,
    server: Option<Server>,
    client: Option<Client>,
    model: SparseDisk,
    /// What was the top when a child was put on it, with its digest then.
    parents: Vec<(PathBuf, String)>,
}

impl Subject {
    fn new(base: Base, sectors: u64) -> Subject {
        let model = SparseDisk::new(sectors * 512);
        let chain = Chain::new(base, model.size());
        let mut subject = Subject { chain, server: None, client: None, model, parents: Vec::new() };
        subject.start();
        subject
    }

    fn start(&mut self) {
        let server = self.chain.serve();
        let client = server.connect("");
        assert_eq!(client.size(), self.model.size());
        self.client = Some(client);
        self.server = Some(server);
    }

    fn stop(&mut self) {
        self.client = None;
        self.server.take().expect("a server runs").stop();
    }

    fn call(&mut self, request: &Request) -> Vec<u8> {
        let client = self.client.as_mut().expect("a client is connected");
        client.call(request).unwrap_or_else(|error| panic!("{error}"))
    }

    fn expect_content(&mut self, offset: u64, len: u32) {
        let found = self.call(&Request::Read { offset, len });
        let expected = self.model.read(offset, u64::from(len));
        let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert_eq!(differs.map(|index| offset + index as u64), None, "the first byte that differs");
    }

    fn expect_whole_content(&mut self) {
        for offset in (0..self.model.size()).step_by(BLOCK as usize) {
            self.expect_content(offset, BLOCK.min(self.model.size() - offset) as u32);
        }
    }

    /// Trimmed bytes are what they were or zero, sector by sector; whatever they are, they stay so.
    fn trim(&mut self, offset: u64, len: u32) {
        self.call(&Request::Trim { offset, len });
        let found = self.call(&Request::Read { offset, len });
        let mut at = offset;
        while at < offset + u64::from(len) {
            let end = (at / 512 + 1) * 512;
            let end = end.min(offset + u64::from(len));
            let sector = &found[(at - offset) as usize..(end - offset) as usize];
            let old = self.model.read(at, end - at);
            assert!(sector == old || sector.iter().all(|byte| *byte == 0), "a trim brought in other data");
            self.model.write(at, sector);
            at = end;
        }
    }

    fn step(&mut self, step: &Step) {
        let size = self.model.size();
        match step {
            Step::Read(piece) => {
                let (offset, len) = piece.on(size);
                self.expect_content(offset, len);
            }
            Step::Write { piece, fill, fua } => {
                let (offset, len) = piece.on(size);
                let data = Rng::seeded(*fill).bytes(len as usize);
                self.model.write(offset, &data);
                self.call(&Request::Write { offset, data, fua: *fua });
            }
            Step::WriteZeroes { piece, no_hole } => {
                let (offset, len) = piece.on(size);
                self.model.zero(offset, u64::from(len));
                self.call(&Request::WriteZeroes { offset, len, no_hole: *no_hole });
            }
            Step::Trim(piece) => {
                let may_trim = self.client.as_ref().is_some_and(|it| it.flags() & FLAG_SEND_TRIM != 0);
                let (offset, len) = piece.on(size);
                if may_trim {
                    self.trim(offset, len);
                }
            }
            Step::Flush => {
                self.call(&Request::Flush);
            }
            Step::Restart => {
                self.stop();
                self.start();
                self.expect_whole_content();
            }
            Step::Kill => {
                self.client = None;
                self.server.take().expect("a server runs").kill();
                self.start();
                self.expect_whole_content();
            }
            Step::AddChild if self.chain.files().len() < DEEPEST => {
                self.stop();
                self.chain.push_child();
                let parent = self.chain.files()[self.chain.files().len() - 2].clone();
                let digest = sha256(&parent);
                self.parents.push((parent, digest));
                self.start();
                self.expect_whole_content();
            }
            Step::AddChild => {}
        }
    }

    /// The disk as others read it, and the files.
    fn finish(mut self) {
        self.expect_whole_content();
        let map = {
            let uri = self.server.as_ref().expect("a server runs").uri("");
            Tool::new("nbdinfo").args(["--json", "--map", &uri]).run().json()
        };
        for extent in map.as_array().expect("a map is a list") {
            let number = |key: &str| extent[key].as_u64().expect("a number");
            if number("type") & 2 != 0 {
                let content = self.model.read(number("offset"), number("length"));
                assert!(content.iter().all(|byte| *byte == 0), "data where the map says zero: {extent}");
            }
        }
        self.stop();
        self.chain.check();
        for (parent, digest) in &self.parents {
            assert_eq!(&sha256(parent), digest, "the parent {} was changed", parent.display());
        }
    }
}

#[test]
fn any_sequence_of_requests_and_restarts_leaves_the_disk_as_the_model_says() {
    let seed = std::env::var("DISKCHAIN_TEST_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    println!("DISKCHAIN_TEST_SEED={seed}");
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 24,
        max_shrink_iters: 60,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    });
    // From less than a block to a few blocks, the last one seldom whole.
    let sectors = prop_oneof![1 => 1..2000_u64, 5 => 2000..20_000_u64];
    let steps = prop::collection::vec(step(), 1..60);
    let result = runner.run(&(base(), sectors, steps), |(base, sectors, steps)| {
        let mut subject = Subject::new(base, sectors);
        for step in &steps {
            subject.step(step);
        }
        subject.finish();
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}
