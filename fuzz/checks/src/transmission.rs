//! Whole sessions: clients of a disk in memory, over real sockets, through the daemon's own handshake and connections.
//!
//! ```text
//!   Script ─▶ clients ══socketpair══ negotiate ─▶ Connection ─▶ Device ─▶ raw or VDI in memory
//!                │ requests of a round, all in flight                │
//!                └──────────── Model: what every byte may be ◀───────┘ whole disk, after each round
//! ```
//! Promised is: every request is answered once, or its connection ends, which it does only for a breach of the
//! protocol; what is refused or cut short changes nothing; no byte reads as anything but what was there or what was
//! written there; all memory is given back.
//!
//! Invariant: the model learns only from requests and answers, never from the code that is checked.

mod disk;
mod model;
mod player;
mod script;

use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use disk_core::client::Client;
use disk_core::device::Device;
use futures_util::future::join_all;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::Reached;
use disk::Shelf;
use diskchain::connection::Connection;
use diskchain::handshake;
use diskchain::memory::{Allowance, Budget};
use diskchain::socket::Socket;
use diskchain::stop::Stop;
use model::Model;
use player::Player;
use script::{Hello, Script};

/// Far more than any input takes, on the busiest machine too: what is not over by then hangs.
const PATIENCE: Duration = Duration::from_secs(150);

/// See the module.
pub fn check(input: &[u8], reached: &mut Reached) {
    let Ok(script) = Script::arbitrary(&mut Unstructured::new(input)) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, play(&script, reached)).await.expect("a session hangs");
    });
}

/// A client and the task that serves it.
struct Pair {
    player: Player,
    served: JoinHandle<()>,
}

async fn play(script: &Script, reached: &mut Reached) {
    let (device, content) = disk::make(script).await;
    let shelf = Shelf::new(script, &device);
    let budget = Budget::new(script.budget());
    let stop = Stop::default();
    let mut pairs = Vec::new();
    for hello in script.clients() {
        pairs.push(connect(hello, script, &device, &shelf, &budget, &stop).await);
    }
    let mut model = Model::new(content);
    for round in script.rounds() {
        for send in round.sends.iter() {
            let count = pairs.len();
            pairs[usize::from(send.client) % count].player.prepare(send, &shelf.info);
        }
        join_all(pairs.iter_mut().map(|pair| pair.player.drive())).await;
        for pair in pairs.iter_mut().filter(|pair| pair.player.is_over()) {
            // What it had in flight is finished first.
            pair.wait().await;
        }
        let asked: Vec<_> = pairs.iter_mut().flat_map(|pair| pair.player.take_asked()).collect();
        for asked in &asked {
            reached.add(asked.fate.words(), 1);
        }
        model.judge(asked, &disk::content(&device).await);
    }
    if script.stops() {
        stop.stop();
    }
    for pair in &mut pairs {
        pair.player.leave(script.stops()).await;
        pair.wait().await;
    }
    assert_eq!(budget.used(), 0, "memory was not given back");
    assert!(device.requests().is_empty(), "a request is left");
    device.close().await.expect("a clean end");
}

impl Pair {
    async fn wait(&mut self) {
        if !self.served.is_finished() {
            (&mut self.served).await.expect("a connection panicked");
        }
    }
}

async fn connect(
    hello: &Hello,
    script: &Script,
    device: &Arc<Device>,
    shelf: &Shelf,
    budget: &Budget,
    stop: &Stop,
) -> Pair {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let (device, allowance, stop) = (Arc::clone(device), Allowance::new(budget.clone()), stop.clone());
    let (shelf, terms) = (shelf.clone(), script.terms());
    let served = tokio::spawn(async move {
        let socket = Socket::Unix(theirs);
        let agreed = handshake::negotiate(&socket, &shelf, PATIENCE).await;
        let (session, leftover) = agreed.expect("a lawful handshake");
        let client = Client::new();
        Connection::new(socket, session, &leftover, device, client, allowance, terms).serve(&stop).await;
    });
    Pair { player: Player::connect(ours, hello).await, served }
}
