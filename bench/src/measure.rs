//! One run of one load against one server, and what it brought.

use std::io::{self, Write};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nbd_wire::TransmissionFlags;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::case::Case;
use crate::client::{Client, Outcome, Window};
use crate::content::{Content, Record};
use crate::process::Usage;
use crate::server::Server;
use crate::workload::{Op, Pattern, Steps};

/// Processor time below which nothing is told of it: it is counted in steps of 10 ms.
const CPU_LEAST: Duration = Duration::from_millis(50);

/// How long a run lasts.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Lengths {
    /// Before anything counts.
    pub warm_up: Duration,
    /// While it counts.
    pub window: Duration,
}

/// What one run brought. A figure that was not measured is no number.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// The round it belongs to.
    pub round: usize,
    /// Requests a second.
    pub per_second: f64,
    /// Mebibytes a second.
    pub mebibytes_per_second: f64,
    /// Microseconds.
    pub p50: f64,
    /// Microseconds.
    pub p99: f64,
    /// Microseconds.
    pub p999: f64,
    /// Time of the server's cores for each request, microseconds.
    pub server_cpu: f64,
    /// The part of it outside the kernel.
    pub server_user: f64,
    /// Time of the client's cores for each request, microseconds.
    pub client_cpu: f64,
    /// Most memory that the server had, bytes.
    pub peak_resident: f64,
}

impl Sample {
    /// Nothing was measured.
    pub fn unknown() -> Self {
        Sample {
            round: 0,
            per_second: f64::NAN,
            mebibytes_per_second: f64::NAN,
            p50: f64::NAN,
            p99: f64::NAN,
            p999: f64::NAN,
            server_cpu: f64::NAN,
            server_user: f64::NAN,
            client_cpu: f64::NAN,
            peak_resident: f64::NAN,
        }
    }
}

/// The longest window that is tried when nothing is answered.
const WINDOW_MOST: Duration = Duration::from_secs(10);

/// Measures with `attempt`, each time over twice as long until something is answered: a machine that does something
/// else for a moment must not look like a server that does nothing.
///
/// # Errors
/// Those of `attempt`, and that nothing was answered in the longest window.
pub fn until_answered(
    mut lengths: Lengths,
    mut attempt: impl FnMut(Lengths) -> io::Result<Option<Sample>>,
) -> io::Result<Sample> {
    loop {
        if let Some(sample) = attempt(lengths)? {
            return Ok(sample);
        }
        if lengths.window >= WINDOW_MOST {
            return Err(io::Error::other(format!("nothing was answered in {:?}", lengths.window)));
        }
        // Nobody may be looking.
        let _ = writeln!(io::stderr(), "nothing was answered in {:?}: once more, for longer", lengths.window);
        lengths.window = (lengths.window * 2).clamp(Duration::from_millis(1), WINDOW_MOST);
    }
}

/// Runs the load of `case` against `server` and notes in `record` what it wrote; `None` if nothing was answered while
/// it counted.
///
/// # Errors
/// If the server fails a request.
pub fn measure(
    server: &Server,
    case: &Case,
    content: &Content,
    record: &mut Record,
    lengths: Lengths,
    round: usize,
) -> io::Result<Option<Sample>> {
    let workload = case.workload;
    let generation = record.next_generation();
    let clients: Vec<Client> = (0..workload.connections)
        .map(|_| Client::connect(server.address(), case.structured))
        .collect::<io::Result<_>>()?;
    let size = record.size();
    if let Some(client) = clients.iter().find(|client| client.size != size) {
        return Err(io::Error::other(format!("a disk of {size} bytes has {}", client.size)));
    }
    let trims = workload.pattern == Pattern::Trim;
    if trims && !clients.iter().all(|client| client.flags.has(TransmissionFlags::SEND_TRIM)) {
        return Err(io::Error::other("the server does not offer trim"));
    }
    let steps = |number| Steps::new(workload, number, generation, size);
    let start = Instant::now() + Duration::from_millis(1);
    let window = (!workload.pattern.is_counted())
        .then(|| Window { from: start + lengths.warm_up, until: start + lengths.warm_up + lengths.window });
    let ready = Barrier::new(workload.connections + 1);
    let (outcomes, before, after) = std::thread::scope(|scope| {
        let ready = &ready;
        let runs: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(number, client)| {
                let steps = steps(number);
                scope.spawn(move || {
                    ready.wait();
                    let before = thread_cpu();
                    let outcome = client.run(&workload, steps, generation, content, window)?;
                    Ok((outcome, thread_cpu() - before))
                })
            })
            .collect();
        ready.wait();
        let before = match window {
            Some(window) => Moment::at(window.from, server),
            None => Moment::now(server),
        };
        let after = window.map(|window| Moment::at(window.until, server));
        let outcomes = runs.into_iter().map(|run| run.join().expect("a client does not panic"));
        let outcomes: io::Result<Vec<(Outcome, Duration)>> = outcomes.collect();
        (outcomes, before, after.unwrap_or_else(|| Moment::now(server)))
    });
    let outcomes = outcomes?;
    for (number, (outcome, _)) in outcomes.iter().enumerate() {
        for step in steps(number).take(outcome.sent as usize) {
            match step.op {
                Op::Write => record.written(step.offset, workload.bytes, generation),
                Op::Trim => record.trimmed(step.offset, workload.bytes),
                Op::Read | Op::Flush => {}
            }
        }
    }
    let sample = summary(&outcomes, &before, &after, server, workload.bytes, round);
    clients.into_iter().try_for_each(Client::leave)?;
    sample
}

/// A moment, and what the server has used until then.
struct Moment {
    time: Instant,
    used: Usage,
}

impl Moment {
    fn now(server: &Server) -> Self {
        Moment { time: Instant::now(), used: server.usage() }
    }

    fn at(time: Instant, server: &Server) -> Self {
        std::thread::sleep(time.saturating_duration_since(Instant::now()));
        Moment { time, ..Moment::now(server) }
    }
}

fn summary(
    outcomes: &[(Outcome, Duration)],
    before: &Moment,
    after: &Moment,
    server: &Server,
    bytes: u64,
    round: usize,
) -> io::Result<Option<Sample>> {
    let mut latency = Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("lawful bounds");
    for (outcome, _) in outcomes {
        latency.add(&outcome.latency).map_err(io::Error::other)?;
    }
    let counted = outcomes.iter().map(|(outcome, _)| outcome.counted).sum::<u64>();
    let sent = outcomes.iter().map(|(outcome, _)| outcome.sent).sum::<u64>();
    if counted == 0 {
        return Ok(None);
    }
    let seconds = (after.time - before.time).as_secs_f64();
    let micros = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let each = |time: fn(&Usage) -> Duration| {
        let used = time(&after.used) - time(&before.used);
        if used < CPU_LEAST { f64::NAN } else { used.as_secs_f64() * 1e6 / counted as f64 }
    };
    let client_cpu: Duration = outcomes.iter().map(|(_, cpu)| *cpu).sum();
    Ok(Some(Sample {
        round,
        per_second: counted as f64 / seconds,
        mebibytes_per_second: counted as f64 / seconds * bytes as f64 / (1 << 20) as f64,
        p50: micros(latency.value_at_quantile(0.5)),
        p99: micros(latency.value_at_quantile(0.99)),
        p999: micros(latency.value_at_quantile(0.999)),
        server_cpu: each(|used| used.cpu),
        server_user: each(|used| used.user),
        client_cpu: client_cpu.as_secs_f64() * 1e6 / sent as f64,
        peak_resident: server.usage().peak_resident as f64,
    }))
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
