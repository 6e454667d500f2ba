//! Many requests at once over several connections: in the same blocks, and in an image that is full.

use std::thread;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::{Client, FLAG_CAN_MULTI_CONN, Request};
use diskchain_tests::rng::Rng;
use diskchain_tests::server::Server;
use diskchain_tests::sparse::SparseDisk;

const MIB: u64 = 1 << 20;
const CLIENTS: u64 = 4;
const BATCH: usize = 8;
const ROUNDS: usize = 150;

/// The disk is cut into stripes that belong to the clients by turns, so that every block of it is
/// everybody's. Odd, so that hardly anything is aligned.
const STRIPE: u64 = 12_345;

/// One client's life: batches of requests to different stripes of its own, all in flight at once.
/// Returns what it left behind.
fn live(server: &Server, mine: u64, mut model: SparseDisk) -> SparseDisk {
    let mut rng = Rng::for_test(&format!("client-{mine}"));
    let mut client = server.connect("");
    assert_ne!(client.flags() & FLAG_CAN_MULTI_CONN, 0);
    let stripes = model.size() / STRIPE / CLIENTS;
    for _ in 0..ROUNDS {
        let first = rng.below(stripes);
        let mut sent = Vec::new();
        for nth in 0..BATCH as u64 {
            let stripe = ((first + nth * 5) % stripes) * CLIENTS + mine;
            let from = rng.below(STRIPE);
            let len = rng.within(1..STRIPE - from + 1);
            let (offset, len) = (stripe * STRIPE + from, len as u32);
            let request = match rng.below(8) {
                0 | 1 => Request::Read { offset, len },
                2 => Request::WriteZeroes { offset, len, no_hole: rng.one_in(2) },
                _ => Request::Write { offset, data: rng.bytes(len as usize), fua: rng.one_in(20) },
            };
            let cookie = client.send(&request).expect("send a request");
            sent.push((cookie, request));
        }
        for _ in 0..BATCH {
            let (cookie, result) = client.receive().expect("a reply");
            let (_, request) = sent.iter().find(|(sent, _)| *sent == cookie).expect("a request of mine");
            let found = result.unwrap_or_else(|error| panic!("NBD error {error}"));
            match request {
                Request::Read { offset, len } => {
                    let right = found == model.read(*offset, u64::from(*len));
                    assert!(right, "client {mine} reads what is not its own at {offset}+{len}");
                }
                Request::Write { offset, data, .. } => model.write(*offset, data),
                Request::WriteZeroes { offset, len, .. } => model.zero(*offset, u64::from(*len)),
                _ => unreachable!("no other request is sent"),
            }
        }
    }
    client.disconnect().expect("a clean goodbye");
    model
}

#[test]
fn clients_that_share_every_block_of_a_child_never_see_each_others_bytes() {
    // A parent with data in every other MiB, so that blocks are filled from it and from nothing.
    let mut content = SparseDisk::new(24 * MIB);
    let mut rng = Rng::for_test("parent");
    for mib in (0..24).step_by(2) {
        let data = rng.bytes(MIB as usize);
        content.write(mib * MIB, &data);
    }
    let mut chain = Chain::from_content(Base::Vdi, &content);
    chain.push_child();
    let server = chain.serve();
    let models: Vec<SparseDisk> = thread::scope(|scope| {
        let lives: Vec<_> = (0..CLIENTS)
            .map(|mine| {
                scope.spawn({
                    let (server, model) = (&server, content.clone());
                    move || live(server, mine, model)
                })
            })
            .collect();
        lives.into_iter().map(|life| life.join().expect("a client's thread")).collect()
    });
    let mut expected = content;
    for stripe in 0..expected.size() / STRIPE {
        let (offset, owner) = (stripe * STRIPE, (stripe % CLIENTS) as usize);
        expected.write(offset, &models[owner].read(offset, STRIPE));
    }
    let same = |client: &mut Client| {
        for offset in (0..expected.size()).step_by(MIB as usize) {
            let right = client.read(offset, MIB as u32).expect("read") == expected.read(offset, MIB);
            assert!(right, "in the MiB at {offset}");
        }
    };
    same(&mut server.connect(""));
    server.stop();
    let server = chain.serve();
    same(&mut server.connect(""));
    server.stop();
    chain.check();
}

#[test]
fn a_full_image_takes_writes_as_fast_as_its_blocks_are_trimmed() {
    const BLOCKS: u64 = 16;
    let chain = Chain::new(Base::Vdi, BLOCKS * MIB);
    let server = chain.serve();
    let mut rng = Rng::for_test("full");
    let mut clients = [server.connect(""), server.connect("")];
    let full = rng.bytes((BLOCKS * MIB) as usize);
    clients[0].write(0, &full).expect("fill the image");
    for round in 0..200 {
        // Every block is trimmed or written, all at once; every other round all are written again.
        for block in 0..BLOCKS {
            let (offset, len) = (block * MIB, MIB as u32);
            let request = match round % 2 == 0 && rng.one_in(2) {
                true => Request::Trim { offset, len },
                false => Request::Write { offset: offset + 512, data: vec![round as u8; 4096], fua: false },
            };
            clients[(block % 2) as usize].send(&request).expect("send a request");
            // A flush takes what was trimmed a step further towards being used again.
            if rng.one_in(8) {
                clients[0].send(&Request::Flush).expect("send a flush");
            }
        }
        for client in &mut clients {
            while client.in_flight() > 0 {
                let (_, result) = client.receive().expect("a reply");
                assert!(result.is_ok(), "round {round}: {result:?}");
            }
        }
    }
    server.stop();
    chain.check();
}
