//! Clients that flood, dribble, and say goodbye, at the other end of a socket pair.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicU64, Ordering};

use disk_core::ByteRange;
use disk_core::chain::{Chain, ChainOptions, Piece};
use disk_core::device::DeviceOptions;
use disk_core::format::Format;
use disk_core::format::raw::Raw;
use disk_core::storage::MemStorage;
use disk_core::throttle::{Dimension, Limits, Rates, Throttle};
use nbd_wire::{
    Abilities, BlockSize, Command, CommandFlags, Context as MetaContext, Denial, ExportInfo, Exports,
    Handshake, HeaderStyle, Progress,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::pace::STALL_MOST;
use super::*;
use crate::memory::{Budget, PRIVATE};

const SIZE: u64 = 1 << 20;
const TERMS: Terms = Terms { most_in_flight: 128, busy_poll: Duration::from_micros(50) };

/// One export of every name.
struct One;

impl Exports for One {
    fn list(&self) -> Option<Vec<(String, String)>> {
        None
    }

    fn find(&self, name: &str) -> Result<ExportInfo, Denial> {
        Ok(ExportInfo {
            name: name.to_owned(),
            description: String::new(),
            size: SIZE,
            abilities: Abilities { multi_conn: true, ..Abilities::default() },
            block_size: BlockSize { minimum: 1, preferred: 4096, maximum: 32 << 20 },
            contexts: vec![MetaContext::Allocation, MetaContext::AllocationDepth],
        })
    }
}

/// The session of a client that sends these options, each with its data.
fn session(options: &[(u32, &[u8])]) -> Session {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    for (number, data) in options {
        bytes.extend_from_slice(b"IHAVEOPT");
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
    }
    match Handshake::default().feed(&bytes, &One, &mut Vec::new()) {
        Ok((_, Progress::Chosen(session))) => session,
        other => panic!("{other:?}"),
    }
}

struct Served {
    stop: Stop,
    budget: Budget,
    device: Arc<Device>,
    end: JoinHandle<End>,
}

/// A connection over a disk in memory, and the client's end of its socket.
async fn served(limits: Limits) -> (Served, UnixStream) {
    served_within(limits, SIZE).await
}

/// The same with so many bytes for requests.
async fn served_within(limits: Limits, budget: u64) -> (Served, UnixStream) {
    let (connection, client) = connected(limits, budget).await;
    let (device, budget) = (Arc::clone(&connection.context.device), connection.allowance.budget().clone());
    let stop = Stop::default();
    let heard = stop.clone();
    let end = tokio::spawn(async move { connection.serve(&heard).await.0 });
    (Served { stop, budget, device, end }, client)
}

/// The same that nobody serves yet.
async fn connected(limits: Limits, budget: u64) -> (Connection, UnixStream) {
    let layer = Raw.open(Arc::new(MemStorage::new(SIZE)), false).await.expect("raw always opens");
    let chain = Chain::new(vec![layer], ChainOptions::default());
    let throttle = Arc::new(Throttle::new(limits, None));
    let device = Arc::new(Device::new("disk".into(), chain, throttle, DeviceOptions::default()));
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let allowance = Allowance::new(Budget::new(budget));
    let session = session(&[(1, b"disk")]);
    let connection =
        Connection::new(Socket::Unix(ours), session, &[], device, Client::new(), allowance, TERMS);
    (connection, theirs)
}

fn request(command: Command, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let flags = CommandFlags::default();
    Request { flags, command, cookie, offset, length }.encode(HeaderStyle::Compact, &mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_floods_without_a_pause_is_stopped_with_the_others() {
    let (served, client) = served(Limits::default()).await;
    let client = client.into_std().expect("a socket");
    client.set_nonblocking(false).expect("a blocking socket");
    let another = || -> StdStream { client.try_clone().expect("another handle") };
    let (mut sending, mut receiving) = (another(), another());
    let flood = std::thread::spawn(move || {
        // Few bytes for much work: they come faster than they are done.
        sending.write_all(&request(Command::Write, 1, 0, SIZE)).expect("sent");
        sending.write_all(&vec![1; SIZE as usize]).expect("sent");
        let mut zeroes = Vec::new();
        let (flags, command) = (CommandFlags(CommandFlags::NO_HOLE), Command::WriteZeroes);
        Request { flags, command, cookie: 2, offset: 0, length: SIZE }
            .encode(HeaderStyle::Compact, &mut zeroes);
        let requests = zeroes.repeat(2000);
        while sending.write_all(&requests).is_ok() {}
    });
    let received = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&received);
    let drain = std::thread::spawn(move || {
        let mut replies = vec![0; 1 << 20];
        while let Ok(len @ 1..) = receiving.read(&mut replies) {
            counter.fetch_add(len as u64, Ordering::Relaxed);
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(received.load(Ordering::Relaxed) > 0, "the flood is on");
    served.stop.stop();
    let end = tokio::time::timeout(Duration::from_secs(3), served.end).await;
    // Whatever came of it, the flood must end, or the runtime could not.
    let _ = client.shutdown(std::net::Shutdown::Both);
    let end = end.expect("it ends although requests keep coming").expect("no panic");
    assert!(matches!(end, End::Stopped), "{end:?}");
    flood.join().expect("no panic");
    drain.join().expect("no panic");
}

#[tokio::test]
async fn what_was_asked_for_before_goodbye_is_done_and_answered_although_the_client_closes_its_side() {
    let mut rates = Rates::default();
    rates[Dimension::BpsWrite].avg = 8192;
    let (served, mut client) = served(Limits::new(rates, 0).expect("valid")).await;
    let mut bytes = Vec::new();
    for cookie in 1..3 {
        bytes.extend(request(Command::Write, cookie, 0, 4096));
        bytes.extend([cookie as u8; 4096]);
    }
    bytes.extend(request(Command::Disconnect, 9, 0, 0));
    client.write_all(&bytes).await.expect("sent");
    client.shutdown().await.expect("closed on this side");
    let began = Instant::now();
    let mut replies = Vec::new();
    client.read_to_end(&mut replies).await.expect("received");
    assert!(began.elapsed() > 2 * LOOK, "the second had to wait for the throttle");
    let told: Vec<(u32, u64)> = replies
        .chunks(16)
        .map(|reply| {
            let (_, errno, cookie) = (&reply[..4], &reply[4..8], &reply[8..]);
            (
                u32::from_be_bytes(errno.try_into().expect("4 bytes")),
                u64::from_be_bytes(cookie.try_into().expect("8 bytes")),
            )
        })
        .collect();
    assert_eq!(told, [(0, 1), (0, 2)]);
    assert!(matches!(served.end.await.expect("no panic"), End::Disconnected));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_dribbles_its_payload_gives_way_once_others_wait_for_its_memory() {
    let (served, mut client) = served(Limits::default()).await;
    client.write_all(&request(Command::Write, 1, 0, SIZE)).await.expect("sent");
    let dribble = tokio::spawn(async move {
        while client.write_all(&[7]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    tokio::time::sleep(3 * STALL_MOST).await;
    assert!(!served.end.is_finished(), "while nobody waits it may take its time");
    assert_eq!(served.budget.used(), SIZE, "the scenario: it holds all memory");
    let waiting = Allowance::new(served.budget.clone()).take(PRIVATE);
    tokio::time::timeout(2 * STALL_MOST, waiting).await.expect("it gets its memory");
    assert!(matches!(served.end.await.expect("no panic"), End::Stalled));
    dribble.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_slow_but_moves_keeps_its_memory() {
    let (served, mut client) = served(Limits::default()).await;
    let waiting = Allowance::new(served.budget.clone()).take(PRIVATE);
    client.write_all(&request(Command::Write, 1, 0, SIZE)).await.expect("sent");
    for _ in 0..64 {
        tokio::time::sleep(STALL_MOST / 80).await;
        client.write_all(&[7; SIZE as usize / 64]).await.expect("it is still served");
    }
    let mut reply = [0; 16];
    client.read_exact(&mut reply).await.expect("answered");
    assert_eq!(reply[4..8], [0; 4], "written");
    waiting.await;
    drop(client);
    assert!(matches!(served.end.await.expect("no panic"), End::Gone(_)));
}

#[test]
fn a_status_request_pays_for_the_longest_answer_and_that_fits_into_a_connections_own_memory() {
    let strings = |all: &[&[u8]]| -> Vec<u8> {
        all.iter().flat_map(|text| [&(text.len() as u32).to_be_bytes()[..], text].concat()).collect()
    };
    let mut contexts = strings(&[b"disk"]);
    contexts.extend(2u32.to_be_bytes());
    contexts.extend(strings(&[b"base:allocation", b"qemu:allocation-depth"]));
    let mut go = strings(&[b"disk"]);
    go.extend([0, 0]);
    let session = session(&[(8, b""), (10, &contexts), (7, &go)]);
    assert_eq!(session.contexts().len(), 2);
    let ask = |flags| {
        let command = Command::BlockStatus;
        let asked = Request { flags: CommandFlags(flags), command, cookie: 1, offset: 0, length: SIZE };
        request::memory(&session, &session.admit(&asked).expect("admitted"))
    };
    assert!((2048 * 2 * 16..PRIVATE).contains(&ask(0)), "{}", ask(0));
    assert!(ask(CommandFlags::REQ_ONE) < 4096);
}

/// Whether this process has a thread that helps.
fn has_a_helper() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").expect("a list of threads");
    let mut names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.any(|name| name.trim() == "helper")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn replies_that_another_core_sends_come_whole_and_in_order_to_a_client_that_reads_slowly_too() {
    const READS: usize = 250;
    let (served, client) = served(Limits::default()).await;
    let mut client = client.into_std().expect("a socket");
    client.set_nonblocking(false).expect("a blocking socket");
    let content: Vec<u8> = (0..SIZE).map(|at| (at % 251 + at / 4096) as u8).collect();
    client.write_all(&request(Command::Write, 1, 0, SIZE)).expect("sent");
    client.write_all(&content).expect("sent");
    client.read_exact(&mut [0; 16]).expect("written");
    for round in 0..20 {
        let place = |cookie: usize| (cookie * 7 + round) % 256 * 4096;
        let mut batch: Vec<u8> = (0..READS)
            .flat_map(|cookie| request(Command::Read, cookie as u64, place(cookie) as u64, 4096))
            .collect();
        if round == 19 {
            batch.extend(request(Command::Disconnect, 0, 0, 0));
        }
        client.write_all(&batch).expect("sent");
        let mut reply = vec![0; 16 + 4096];
        for cookie in 0..READS {
            if round % 2 == 0 && cookie % 50 == 0 {
                // The socket fills up meanwhile, and the replies go back to where they came from.
                std::thread::sleep(Duration::from_millis(5));
            }
            client.read_exact(&mut reply).expect("a reply");
            assert_eq!(reply[8..16], (cookie as u64).to_be_bytes(), "round {round}");
            assert!(reply[16..] == content[place(cookie)..][..4096], "round {round}, read {cookie}");
        }
    }
    assert_eq!(client.read(&mut [0; 1]).expect("the end"), 0);
    let end = served.end.await.expect("no panic");
    assert!(matches!(end, End::Disconnected), "{end:?}");
    assert_eq!(served.budget.used(), 0, "all memory is given back");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(has_a_helper(), cores > 1, "the scenario");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_writes_that_another_core_does_are_answered_once_and_are_there() {
    const HALF: usize = SIZE as usize / 2;
    let (served, client) = served_within(Limits::default(), 64 << 20).await;
    let mut client = client.into_std().expect("a socket");
    client.set_nonblocking(false).expect("a blocking socket");
    let mut disk = vec![0; SIZE as usize];
    for round in 0..40u8 {
        // In one go: the second is on its way when the first is here.
        let mut both = Vec::new();
        for (half, bytes) in disk.chunks_mut(HALF).enumerate() {
            bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = round ^ (at % 253) as u8);
            both.extend(request(Command::Write, half as u64, (half * HALF) as u64, HALF as u64));
            both.extend_from_slice(bytes);
        }
        client.write_all(&both).expect("sent");
        let mut reply = [0; 16];
        let mut answered: Vec<u8> = (0..2)
            .map(|_| {
                client.read_exact(&mut reply).expect("a reply");
                assert_eq!(reply[4..8], [0; 4], "no error");
                reply[15]
            })
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, [0, 1], "each once");
        client.write_all(&request(Command::Read, 7, 0, SIZE)).expect("sent");
        client.read_exact(&mut reply).expect("a reply");
        let mut read = vec![0; SIZE as usize];
        client.read_exact(&mut read).expect("its data");
        assert!(read == disk, "round {round}");
    }
    drop(client);
    let end = served.end.await.expect("no panic");
    assert!(matches!(end, End::Gone(_)), "{end:?}");
    assert_eq!(served.budget.used(), 0, "all memory is given back");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(has_a_helper(), cores > 1, "the scenario");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_writes_on_the_same_bytes_are_done_in_the_order_in_which_they_came() {
    const LEN: usize = 256 << 10;
    let (served, client) = served_within(Limits::default(), 64 << 20).await;
    let mut client = client.into_std().expect("a socket");
    client.set_nonblocking(false).expect("a blocking socket");
    for round in 0..60u8 {
        let mut all = Vec::new();
        for part in 0..3u8 {
            let offset = usize::from(part) * LEN / 2;
            all.extend(request(Command::Write, part.into(), offset as u64, LEN as u64));
            all.extend(std::iter::repeat_n(3 * round + part, LEN));
        }
        client.write_all(&all).expect("sent");
        client.read_exact(&mut [0; 3 * 16]).expect("replies");
        client.write_all(&request(Command::Read, 7, 0, 2 * LEN as u64)).expect("sent");
        let mut reply = vec![0; 16 + 2 * LEN];
        client.read_exact(&mut reply).expect("a reply and its data");
        let right = |(half, bytes): (usize, &[u8])| {
            let last = 3 * round + half.min(2) as u8;
            bytes.iter().all(|&byte| byte == last)
        };
        assert!(reply[16..].chunks(LEN / 2).enumerate().all(right), "round {round}");
    }
    drop(client);
    served.end.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_writes_that_came_before_a_goodbye_are_done_although_the_client_closes_its_side() {
    const LEN: usize = 256 << 10;
    for round in 1..60u8 {
        let (served, client) = served_within(Limits::default(), 64 << 20).await;
        let mut client = client.into_std().expect("a socket");
        client.set_nonblocking(false).expect("a blocking socket");
        let mut all = Vec::new();
        for part in 0..4 {
            all.extend(request(Command::Write, part as u64, (part * LEN) as u64, LEN as u64));
            all.extend(std::iter::repeat_n(round, LEN));
        }
        all.extend(request(Command::Disconnect, 0, 0, 0));
        client.write_all(&all).expect("sent");
        client.shutdown(std::net::Shutdown::Write).expect("half closed");
        let mut replies = Vec::new();
        client.read_to_end(&mut replies).expect("the end");
        assert_eq!(replies.len(), 4 * 16, "round {round}");
        let end = served.end.await.expect("no panic");
        assert!(matches!(end, End::Disconnected), "{end:?}");
        let pieces = served.device.read(&Client::new(), ByteRange::new(0, SIZE)).await.expect("read");
        let [Piece::Data(bytes)] = &pieces[..] else { panic!("all of a raw disk is data") };
        assert!(bytes.iter().all(|&byte| byte == round), "round {round}");
        assert!(served.device.requests().is_empty());
        assert_eq!(served.budget.used(), 0);
    }
}

/// When a helper has sent the replies that hold all the room that a connection may have, and has come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RoomComes {
    BeforeTheConnectionAsks,
    BeforeItWaits,
}

#[tokio::test(start_paused = true)]
async fn room_that_a_helper_makes_while_a_connection_turns_to_wait_is_found_at_once() {
    for comes in [RoomComes::BeforeTheConnectionAsks, RoomComes::BeforeItWaits] {
        let (mut connection, _client) = connected(Limits::default(), SIZE).await;
        let (mut stopping, mut cutting) = (pin!(future::pending::<()>()), pin!(future::pending::<()>()));
        let mut alarm = pin!(tokio::time::sleep(LOOK));
        let mut watch =
            Watch { stopping: stopping.as_mut(), cutting: cutting.as_mut(), alarm: alarm.as_mut() };
        let at_the_helper = connection.allowance.try_take(SIZE as usize).expect("room");
        connection.helped = true;
        // All that the client sends: no byte follows that would wake the connection.
        connection.input = Input::new(&request(Command::Read, 1, 0, 4096));
        let short = connection.take_requests().await.expect("it goes on");
        assert_eq!(short, Short::OfRoom, "the scenario");
        assert!(connection.outbox.is_empty() && !connection.input.is_empty(), "the request is left lying");

        let began = Instant::now();
        if comes == RoomComes::BeforeTheConnectionAsks {
            drop(at_the_helper);
            assert!(connection.goes_on(short).expect("no error"), "there is room now");
        } else {
            assert!(!connection.goes_on(short).expect("no error"), "nothing has changed");
            drop(at_the_helper);
            assert!(connection.wait(&mut watch, short).await.is_none(), "it goes on");
        }
        let short = connection.take_requests().await.expect("it goes on");
        assert_eq!(short, Short::OfInput, "{comes:?}: it has taken what was there");
        assert_eq!(connection.outbox.queued(), 16 + 4096, "{comes:?}: the read is answered");
        assert_eq!(began.elapsed(), Duration::ZERO, "{comes:?}: nobody had to ring for it");
    }
}

#[tokio::test]
async fn a_client_that_came_back_at_once_is_looked_for_while_others_on_the_thread_go_on() {
    let (mut connection, mut client) = connected(Limits::default(), SIZE).await;
    let looks = connection.activity.leaves_cores_to_clients();
    // Any pause is a short one.
    connection.busy_poll = BusyPoll::new(Duration::from_secs(60));
    assert!(
        !connection.poll_busily(Short::OfInput).await.expect("no error"),
        "nothing is known of the client"
    );
    client.write_all(&[0; 28]).await.expect("sent");
    connection.socket.ready(Interest::READABLE).await.expect("ready");
    assert!(connection.receive().expect("received"));

    let (done, client) = tokio::join!(connection.poll_busily(Short::OfInput), async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.write_all(&[0; 28]).await.expect("sent");
        client
    });
    // Without cores for both nobody is looked for.
    assert_eq!(done.expect("no error"), looks);
    assert_eq!(connection.input.bytes().len(), if looks { 56 } else { 28 });

    // It is looked for again, and is gone.
    drop(client);
    assert_eq!(connection.poll_busily(Short::OfInput).await.is_err(), looks);
}
