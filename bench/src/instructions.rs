//! Instructions that the daemon executes for a request, counted by callgrind: unlike time, they are the same on every
//! run and every machine, so that a change of a few percent shows.
//!
//! The daemon runs twice under callgrind and answers a number of requests, the second time some more. The difference,
//! divided by how many more, is what one request costs in user space, with everything: receive, parse, admit, account,
//! throttle, turn, map, reply, send. System calls count as nothing. One runtime thread, and requests in lockstep (a batch
//! is sent when the one before it is answered and the daemon sleeps again) make the count the same every time, to about a
//! hundredth.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use nbd_wire::{Command as NbdCommand, HeaderStyle};
use serde::{Deserialize, Serialize};

use crate::callgrind;
use crate::case::{Case, Image, Peer};
use crate::client::{Client, request};
use crate::content::{BLOCK, Content, Random};
use crate::image::{ImageFiles, Images};
use crate::server::Server;
use crate::workload::Pattern;

/// Bytes of an image.
const SIZE: u64 = 32 << 20;

/// Batches of the first run: enough that all that happens once has happened.
const FIRST: usize = 100;

/// Batches more in the second run.
const MORE: usize = 500;

/// Before each batch, so that the daemon has gone to sleep: whether the next request is there before it does would be
/// chance, and going to sleep costs something.
const PAUSE: Duration = Duration::from_millis(2);

/// How far a count may be above the recorded one: a little noise, and no more than one careless change.
const TOLERANCE: f64 = 0.05;

/// The same if another compiler made the daemon, which alone can make a difference of some percent.
const TOLERANCE_OF_OTHER_COMPILERS: f64 = 0.15;

/// Bytes of the header of a simple reply.
const REPLY: usize = 16;

/// What is counted.
pub struct Subject {
    /// Its name in the record.
    pub name: &'static str,
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

/// What is recorded.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The compiler that made the daemon, in its own words.
    compiler: String,
    /// Instructions for a request.
    instructions: BTreeMap<String, f64>,
}

/// Instructions for one request.
pub struct Count {
    /// What was counted.
    pub subject: &'static Subject,
    /// All of them, by source file.
    pub by_file: callgrind::Counts,
}

impl Count {
    /// All of them.
    pub fn total(&self) -> f64 {
        self.by_file.total()
    }

    /// Those of the block layer: ticket, throttle, turn, lookup and accounts, without the storage's part and the buffer. By
    /// source file, as functions are inlined into each other; what libraries execute is shared out among the project's
    /// own files as these execute themselves. `None` if there are none.
    pub fn layer(&self) -> Option<f64> {
        let own = self.by_file.of(|file| file.contains("/src/"));
        let layer = self.by_file.of(|file| {
            let inside = file.strip_prefix("disk-core/src/");
            inside.is_some_and(|file| !file.starts_with("storage/") && file != "buf.rs")
        });
        (layer > 0.0).then(|| self.total() * layer / own)
    }
}

/// Counts, and compares with what is recorded in `baseline`, or records it. Files to serve go to `dir`.
///
/// # Errors
/// If a count is more than 5 % above the recorded one (15 % if another compiler was used then), or nothing could be
/// counted.
pub fn run(diskchain: &Path, dir: &Path, baseline: &Path, record: bool, files: bool) -> io::Result<()> {
    let known: Record = match fs::read(baseline) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) if record => Record::default(),
        Err(error) => return Err(io::Error::other(format!("{}: {error}", baseline.display()))),
    };
    let mut now = Record { compiler: compiler(diskchain)?, instructions: BTreeMap::new() };
    if !record && known.compiler != now.compiler {
        println!(
            "recorded with {}, this daemon was made by {}: up to {:.0} % more is let pass",
            known.compiler,
            now.compiler,
            known.tolerance(&now) * 100.0
        );
    }
    let mut risen = false;
    for count in count_all(diskchain, dir)? {
        let (name, total) = (count.subject.name, count.total().round());
        now.instructions.insert(name.to_owned(), total);
        let verdict = known.verdict(&now, name);
        risen |= matches!(verdict, Verdict::Risen(_) | Verdict::NotRecorded);
        println!("{name:34} {total:6.0} instructions a request, {verdict}");
        if files {
            print!("{}", count.by_file);
        }
    }
    if record {
        let mut text = serde_json::to_string_pretty(&now)?;
        text.push('\n');
        return fs::write(baseline, text);
    }
    if !risen {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "more than recorded in {}. `diskchain-bench instructions --files` tells where they are; if they are worth it, or \
         another compiler makes them, `--record` records them anew",
        baseline.display()
    )))
}

/// What comes of a count; how much it is above the recorded one.
#[derive(Debug, PartialEq)]
enum Verdict {
    Kept(f64),
    Risen(f64),
    Fallen(f64),
    NotRecorded,
}

impl Record {
    fn tolerance(&self, now: &Record) -> f64 {
        if self.compiler == now.compiler { TOLERANCE } else { TOLERANCE_OF_OTHER_COMPILERS }
    }

    fn verdict(&self, now: &Record, name: &str) -> Verdict {
        let (Some(known), Some(counted)) = (self.instructions.get(name), now.instructions.get(name)) else {
            return Verdict::NotRecorded;
        };
        match counted / known - 1.0 {
            more if more > self.tolerance(now) => Verdict::Risen(more),
            more if more < -TOLERANCE => Verdict::Fallen(more),
            more => Verdict::Kept(more),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |more: &f64| more * 100.0;
        match self {
            Verdict::Kept(more) => write!(f, "recorded {:+.1} %", percent(more)),
            Verdict::Risen(more) => write!(f, "recorded {:+.1} %: TOO MANY", percent(more)),
            Verdict::Fallen(more) => {
                write!(f, "recorded {:+.1} %; record it anew, or it may rise again unseen", percent(more))
            }
            Verdict::NotRecorded => f.write_str("not recorded"),
        }
    }
}

/// Counts everything. Files to serve go to `dir`.
///
/// # Errors
/// If nothing can be counted, or the daemon answers with other data than it should.
pub fn count_all(diskchain: &Path, dir: &Path) -> io::Result<Vec<Count>> {
    let content = Content::new();
    let mut images = Images::new(diskchain, dir, dir, SIZE);
    let one = |subject: &'static Subject| {
        let case = Case::new(subject.image, subject.pattern, BLOCK >> 10, subject.batch);
        let (image, _) = images.get(&case, Peer::Diskchain, &content)?;
        // One by one, a batch says less.
        let scale = if subject.batch == 1 { 4 } else { 1 };
        let (first, more) = (scale * FIRST, scale * MORE);
        let before = count(diskchain, &case, image, dir, &content, first)?;
        let after = count(diskchain, &case, image, dir, &content, first + more)?;
        Ok(Count { subject, by_file: after.minus(&before).each((more * subject.batch) as f64) })
    };
    SUBJECTS.iter().map(one).collect()
}

/// The compiler that made `binary`, as it left its name there.
fn compiler(binary: &Path) -> io::Result<String> {
    let bytes = fs::read(binary)?;
    let mark = b"rustc version ";
    let mut places = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(mark));
    // It ends with the day in brackets: "rustc version 1.90.0 (1159e78c4 2025-09-14)".
    let name = places.find_map(|at| {
        let name = bytes[at..].split_inclusive(|&byte| byte == b')').next()?;
        str::from_utf8(name).ok().filter(|name| name.len() < 100 && !name.contains('\0'))
    });
    name.map(str::to_owned)
        .ok_or_else(|| io::Error::other(format!("{}: no compiler left its name", binary.display())))
}

/// What the daemon executes in all when it answers so many batches of requests.
fn count(
    diskchain: &Path,
    case: &Case,
    image: &ImageFiles,
    dir: &Path,
    content: &Content,
    batches: usize,
) -> io::Result<callgrind::Counts> {
    let out = dir.join("callgrind.out");
    let server = Server::start_counted(diskchain, case, image, dir, &out)?;
    let mut client = Client::connect(server.address(), false)?;
    let mut random = Random::new(1);
    let batch = case.workload.depth;
    let reads = case.workload.pattern == Pattern::Read;
    let mut replies = vec![0; batch * (REPLY + if reads { BLOCK as usize } else { 0 })];
    let mut bytes = Vec::new();
    for _ in 0..batches {
        std::thread::sleep(PAUSE);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn record(compiler: &str, count: f64) -> Record {
        Record { compiler: compiler.to_owned(), instructions: BTreeMap::from([("read".to_owned(), count)]) }
    }

    #[test]
    fn a_rise_of_more_than_a_twentieth_is_too_much_and_a_fall_is_not() {
        let known = record("one", 1000.0);
        let verdict = |compiler, count| known.verdict(&record(compiler, count), "read");
        assert!(matches!(verdict("one", 1049.0), Verdict::Kept(_)));
        assert!(matches!(verdict("one", 1051.0), Verdict::Risen(_)));
        assert!(matches!(verdict("one", 900.0), Verdict::Fallen(_)));
        assert!(matches!(verdict("other", 1149.0), Verdict::Kept(_)), "another compiler");
        assert!(matches!(verdict("other", 1151.0), Verdict::Risen(_)), "even of another compiler");
        assert_eq!(known.verdict(&record("one", 1.0), "write"), Verdict::NotRecorded);
    }

    #[test]
    fn a_program_knows_the_compiler_that_made_it() {
        let name = compiler(&std::env::current_exe().unwrap()).unwrap();
        assert!(name.starts_with("rustc version 1.") && name.ends_with(')'), "{name}");
    }
}
