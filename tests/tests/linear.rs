//! Several clients write and read the same few sectors at once. Afterwards the history of every sector must have an
//! order in which each read finds the last write before it, and which agrees with the clocks of the clients.
//!
//! Invariant: no two writes put the same into a sector, so a read says which write it saw; then the check is exact (P.
//! Gibbons and E. Korach, "Testing shared memories", 1997).
//!
//! `DISKCHAIN_TEST_EFFORT` (1 if not set) multiplies the requests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::Request;
use diskchain_tests::rng::Rng;
use diskchain_tests::server::Server;
use diskchain_tests::sparse::SparseDisk;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// The sectors that everybody wants: around the border of two blocks, the first full in the parent and the second
/// absent everywhere.
const FIRST: u64 = MIB / SECTOR - 24;
const HOT: u64 = 48;
const CLIENTS: u64 = 4;
/// Requests that a client has in flight.
const DEPTH: usize = 8;
/// Requests of one client.
const REQUESTS: usize = 4000;

/// One access to one sector. Times are nanoseconds since the start.
#[derive(Clone, Copy, Debug)]
struct Event {
    began: u64,
    ended: u64,
    writes: bool,
    /// What was written or found.
    value: u64,
}

/// The sectors of a write: each tells its number and the write's.
fn stamped(first: u64, sectors: u64, value: u64) -> Vec<u8> {
    let sector =
        |number: u64| [number.to_le_bytes(), value.to_le_bytes()].concat().repeat(SECTOR as usize / 16);
    (first..first + sectors).flat_map(sector).collect()
}

/// The write that a sector is of.
#[track_caller]
fn value_of(number: u64, bytes: &[u8]) -> u64 {
    let value = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
    assert!(
        bytes == stamped(number, 1, value),
        "sector {number} is torn or another's: {:02x?}",
        &bytes[..32]
    );
    value
}

/// One client's life. Returns what happened to each sector.
fn live(
    server: &Server,
    mine: u64,
    clock: Instant,
    serial: &AtomicU64,
    requests: usize,
) -> Vec<(u64, Event)> {
    let now = || u64::try_from(clock.elapsed().as_nanos()).expect("a short test");
    let mut rng = Rng::for_test(&format!("linear-{mine}"));
    let (mut client, mut events, mut sent) = (server.connect(""), Vec::new(), HashMap::new());
    let mut left = requests;
    while left > 0 || client.in_flight() > 0 {
        while left > 0 && client.in_flight() < DEPTH {
            left -= 1;
            let first = FIRST + rng.below(HOT);
            let sectors = rng.within(1..9).min(FIRST + HOT - first);
            let (offset, len) = (first * SECTOR, (sectors * SECTOR) as u32);
            let value = rng.one_in(2).then(|| serial.fetch_add(1, Ordering::Relaxed));
            let request = match value {
                Some(value) => {
                    Request::Write { offset, data: stamped(first, sectors, value), fua: rng.one_in(100) }
                }
                None => Request::Read { offset, len },
            };
            let began = now();
            sent.insert(client.send(&request).expect("send a request"), (began, first, sectors, value));
        }
        let (cookie, result) = client.receive().expect("a reply");
        let ended = now();
        let data = result.unwrap_or_else(|error| panic!("NBD error {error}"));
        let (began, first, sectors, value) = sent.remove(&cookie).expect("a request of mine");
        for (index, number) in (first..first + sectors).enumerate() {
            let found = |at: usize| value_of(number, &data[at * SECTOR as usize..][..SECTOR as usize]);
            let event =
                Event { began, ended, writes: value.is_some(), value: value.unwrap_or_else(|| found(index)) };
            events.push((number, event));
        }
    }
    client.disconnect().expect("a clean goodbye");
    events
}

/// Writes and trims other blocks, so that the hot ones are moved about in the file. Returns how often.
fn disturb(server: &Server, stop: &AtomicBool) -> u64 {
    let (mut client, mut rng, mut rounds) = (server.connect(""), Rng::for_test("linear-disturb"), 0);
    while !stop.load(Ordering::Relaxed) {
        let offset = rng.within(3..16) * MIB;
        client.write(offset, &[9; 4096]).expect("write");
        client.call(&Request::Trim { offset, len: MIB as u32 }).expect("trim");
        client.flush().expect("flush");
        rounds += 1;
    }
    rounds
}

/// Whether the accesses to one sector have an order, each value written once. A value's zone reaches from the first end
/// to the last beginning of its accesses: if that is forwards, the value was there all that time, so no two such zones
/// may overlap, and no other value's accesses may all lie within one.
fn judge(events: &[Event]) -> Result<(), String> {
    let mut clusters: HashMap<u64, Vec<&Event>> = HashMap::new();
    for event in events {
        clusters.entry(event.value).or_default().push(event);
    }
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for (value, cluster) in &clusters {
        let writes: Vec<_> = cluster.iter().filter(|event| event.writes).collect();
        let [write] = writes[..] else { return Err(format!("{value} was written {} times", writes.len())) };
        if let Some(read) = cluster.iter().find(|event| event.ended < write.began) {
            return Err(format!("{read:?} saw what {write:?} had not begun to write"));
        }
        let first_end = cluster.iter().map(|event| event.ended).min().unwrap_or_default();
        let last_begin = cluster.iter().map(|event| event.began).max().unwrap_or_default();
        match first_end < last_begin {
            true => forward.push((first_end, last_begin, value)),
            false => backward.push((last_begin, first_end, value)),
        }
    }
    forward.sort_unstable();
    if let Some(pair) = forward.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        return Err(format!("{} came back after {}: {pair:?}", pair[0].2, pair[1].2));
    }
    for (start, end, value) in backward {
        let before = forward.partition_point(|zone| zone.0 < start);
        if let Some(zone) = before.checked_sub(1).map(|index| forward[index])
            && end < zone.1
        {
            return Err(format!("{value} was written and gone while {} was there: {zone:?}", zone.2));
        }
    }
    Ok(())
}

#[test]
fn requests_of_many_connections_have_an_order_in_every_sector() {
    let effort = std::env::var("DISKCHAIN_TEST_EFFORT").map_or(1, |text| text.parse().expect("a number"));
    let mut content = SparseDisk::new(16 * MIB);
    // Value 0 is what was there before; the second block gets it from the first client.
    content.write(FIRST * SECTOR, &stamped(FIRST, HOT / 2, 0));
    let mut chain = Chain::from_content(Base::Vdi, &content);
    chain.push_child();
    let server = chain.serve();
    let (clock, serial, stop) = (Instant::now(), AtomicU64::new(1), AtomicBool::new(false));
    let rest = FIRST + HOT / 2;
    server.connect("").write(rest * SECTOR, &stamped(rest, HOT / 2, 0)).expect("write");
    let (events, rounds) = thread::scope(|scope| {
        let (server, serial, stop) = (&server, &serial, &stop);
        let disturber = scope.spawn(move || disturb(server, stop));
        let lives: Vec<_> = (0..CLIENTS)
            .map(|mine| scope.spawn(move || live(server, mine, clock, serial, REQUESTS * effort)))
            .collect();
        let events: Vec<_> =
            lives.into_iter().flat_map(|life| life.join().expect("a client's thread")).collect();
        stop.store(true, Ordering::Relaxed);
        (events, disturber.join().expect("the disturber's thread"))
    });
    let mut sectors: HashMap<u64, Vec<Event>> = HashMap::new();
    for (number, event) in &events {
        sectors.entry(*number).or_default().push(*event);
    }
    assert_eq!(sectors.len() as u64, HOT);
    let overlaps = sectors.values().map(|events| overlaps(events)).sum::<usize>();
    println!(
        "{} accesses to {HOT} sectors, {overlaps} at the same time, {rounds} disturbances",
        events.len()
    );
    assert!(overlaps > events.len() / 10, "requests were in flight together");
    assert!(rounds > 10, "blocks came and went");
    for (number, mut events) in sectors {
        events.push(Event { began: 0, ended: 0, writes: true, value: 0 });
        judge(&events).unwrap_or_else(|wrong| panic!("sector {number}: {wrong}"));
    }
    server.stop();
    chain.check();
}

/// Accesses that began before the one that had begun before them had ended.
fn overlaps(events: &[Event]) -> usize {
    let mut times: Vec<(u64, u64)> = events.iter().map(|event| (event.began, event.ended)).collect();
    times.sort_unstable();
    times.windows(2).filter(|pair| pair[1].0 < pair[0].1).count()
}

#[test]
fn the_check_sees_a_value_that_comes_back_and_one_that_nobody_wrote_yet() {
    let event = |began, ended, writes, value| Event { began, ended, writes, value };
    let first = [event(0, 1, true, 1), event(2, 3, true, 2)];
    let with = |more: &[Event]| judge(&[&first[..], more].concat());
    assert!(with(&[event(4, 5, false, 2)]).is_ok());
    assert!(with(&[event(0, 3, false, 1), event(2, 4, false, 2)]).is_ok());
    assert!(with(&[event(4, 5, false, 1)]).is_err(), "an old value after a new one was there");
    assert!(with(&[event(4, 5, false, 2), event(6, 7, false, 1)]).is_err());
    assert!(with(&[event(0, 1, false, 2)]).is_err(), "a value of the future");
    assert!(
        with(&[event(4, 9, true, 3), event(4, 5, false, 3), event(6, 7, false, 2)]).is_err(),
        "back again"
    );
    assert!(with(&[event(4, 5, false, 7)]).is_err(), "a value from nowhere");
}
