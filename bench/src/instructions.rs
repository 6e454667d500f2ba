//! Instructions that the daemon executes for a request, counted by callgrind: unlike time, they are the same on every
//! run and every machine, so that a change of a few percent shows.
//!
//! The daemon runs twice under callgrind and answers a number of requests, the second time some more. The difference,
//! divided by how many more, is what one request costs in user space, with everything: receive, parse, admit, account,
//! throttle, turn, map, reply, send. System calls count as nothing. One runtime thread and requests in lockstep (a batch
//! is sent when the one before it is answered) make the count the same every time, to about a hundredth.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use nbd_wire::{Command as NbdCommand, HeaderStyle};

use crate::callgrind;
use crate::case::{Case, Image, Peer};
use crate::client::{Client, request};
use crate::content::{BLOCK, Content, Random};
use crate::image::{ImageFiles, Images};
use crate::server::Server;
use crate::workload::Pattern;

/// Bytes of an image.
const SIZE: u64 = 32 << 20;

/// Requests of the first run: enough that all that happens once has happened.
const FIRST: usize = 3200;

/// Requests more in the second run.
const MORE: usize = 16_000;

/// How far a count may be from the recorded one.
const TOLERANCE: f64 = 0.05;

/// Bytes of the header of a simple reply.
const REPLY: usize = 16;

/// What is counted.
struct Subject {
    name: &'static str,
    image: Image,
    pattern: Pattern,
    /// Requests of 4 KiB in one batch.
    batch: usize,
}

const SUBJECTS: [Subject; 6] = [
    Subject { name: "read, raw, 32 at once", image: Image::Raw, pattern: Pattern::Read, batch: 32 },
    Subject { name: "read, raw, one by one", image: Image::Raw, pattern: Pattern::Read, batch: 1 },
    Subject { name: "write, raw, 32 at once", image: Image::Raw, pattern: Pattern::Write, batch: 32 },
    Subject { name: "read, VDI, 32 at once", image: Image::Vdi, pattern: Pattern::Read, batch: 32 },
    Subject { name: "write, VDI, 32 at once", image: Image::Vdi, pattern: Pattern::Write, batch: 32 },
    Subject {
        name: "read, chain of 10 VDI, 32 at once",
        image: Image::Chain,
        pattern: Pattern::Read,
        batch: 32,
    },
];

/// Counts, and compares with what is recorded in `baseline`, or records it. Files to serve go to `dir`.
///
/// # Errors
/// If a count is further than 5 % from the recorded one, or nothing could be counted.
pub fn run(diskchain: &Path, dir: &Path, baseline: &Path, record: bool, files: bool) -> io::Result<()> {
    let content = Content::new();
    let mut images = Images::new(diskchain, dir, dir, SIZE);
    let known: BTreeMap<String, f64> = match fs::read(baseline) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) if record => BTreeMap::new(),
        Err(error) => return Err(error),
    };
    let mut counted = BTreeMap::new();
    let mut changed = Vec::new();
    for subject in &SUBJECTS {
        let case = Case::new(subject.image, subject.pattern, BLOCK >> 10, subject.batch);
        let (image, _) = images.get(&case, Peer::Diskchain, &content)?;
        let before = count(diskchain, &case, image, dir, &content, FIRST)?;
        let after = count(diskchain, &case, image, dir, &content, FIRST + MORE)?;
        let by_file = after.minus(&before).each(MORE as f64);
        let total = by_file.total();
        let verdict = match known.get(subject.name) {
            Some(known) if (total / known - 1.0).abs() > TOLERANCE => {
                changed.push(subject.name);
                format!("recorded {known:.0}: CHANGED by {:+.1} %", (total / known - 1.0) * 100.0)
            }
            Some(known) => format!("recorded {known:.0}"),
            None => "not recorded".to_owned(),
        };
        println!("{:36} {total:7.0} instructions a request, {verdict}", subject.name);
        if files {
            print!("{by_file}");
        }
        counted.insert(subject.name.to_owned(), total.round());
    }
    if record {
        let mut text = serde_json::to_string_pretty(&counted)?;
        text.push('\n');
        return fs::write(baseline, text);
    }
    if changed.is_empty() && counted.keys().eq(known.keys()) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "not as recorded in {}: {changed:?}. If it is meant to be so, record it anew with --record",
        baseline.display()
    )))
}

/// What the daemon executes in all when it answers `requests` requests.
fn count(
    diskchain: &Path,
    case: &Case,
    image: &ImageFiles,
    dir: &Path,
    content: &Content,
    requests: usize,
) -> io::Result<callgrind::Counts> {
    let out = dir.join("callgrind.out");
    let server = Server::start_counted(diskchain, case, image, dir, &out)?;
    let mut client = Client::connect(server.address(), false)?;
    let mut random = Random::new(1);
    let batch = case.workload.depth;
    let reads = case.workload.pattern == Pattern::Read;
    let mut replies = vec![0; batch * (REPLY + if reads { BLOCK as usize } else { 0 })];
    let mut bytes = Vec::new();
    for _ in 0..requests / batch {
        bytes.clear();
        let places: Vec<u64> = (0..batch).map(|_| random.below(SIZE / BLOCK) * BLOCK).collect();
        for (cookie, &at) in places.iter().enumerate() {
            let command = if reads { NbdCommand::Read } else { NbdCommand::Write };
            request(command, cookie as u64, at, BLOCK).encode(HeaderStyle::Compact, &mut bytes);
            if !reads {
                bytes.extend_from_slice(content.at(0, at, BLOCK as usize));
            }
        }
        client.socket.write_all(&bytes)?;
        client.socket.read_exact(&mut replies)?;
        let each = replies.chunks_exact(replies.len() / batch).zip(&places);
        let right = |(reply, &at): (&[u8], &u64)| {
            let data = &reply[REPLY..];
            reply[4..8] == [0; 4] && data == content.at(0, at, data.len())
        };
        if !each.into_iter().all(right) {
            return Err(io::Error::other("a request failed, or was not answered in its turn"));
        }
    }
    client.leave()?;
    // It writes its counts when it ends.
    drop(server);
    callgrind::read(&out)
}
