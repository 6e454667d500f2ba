//! Where log lines go: journald's fields under systemd, readable lines on a terminal, JSON otherwise.
//!
//! Invariant: standard output stays free for what a command prints; log lines go to standard error or the journal.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::linux::fs::MetadataExt;

use diskchain_config::plan::{LogFormat, LogLevel};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging. `DISKCHAIN_LOG`, if set, is a filter in the syntax of tracing-subscriber (`info,disk_core=trace`)
/// and goes before `level`.
pub fn start(level: LogLevel, format: LogFormat) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder()
        .with_env_var("DISKCHAIN_LOG")
        .with_default_directive(level.into())
        .from_env_lossy();
    // A second start (a command that serves within a command) keeps the first.
    let _ = tracing_subscriber::registry().with(layer(format).with_filter(filter)).try_init();
}

type Output = Box<dyn Layer<Registry> + Send + Sync>;

fn layer(format: LogFormat) -> Output {
    let on_terminal = std::io::stderr().is_terminal();
    match format {
        LogFormat::Auto if to_journal() => journald(),
        LogFormat::Auto if on_terminal => pretty(true),
        LogFormat::Auto | LogFormat::Json => json(),
        LogFormat::Journald => journald(),
        LogFormat::Pretty => pretty(on_terminal),
    }
}

/// No prefix: a field `diskchain.disk` becomes `DISKCHAIN_DISK`.
fn journald() -> Output {
    match tracing_journald::layer() {
        Ok(layer) => layer.with_field_prefix(None).with_syslog_identifier("diskchain".into()).boxed(),
        Err(error) => {
            eprintln!("diskchain: cannot reach the journal ({error}); logging to standard error");
            pretty(false)
        }
    }
}

fn pretty(colours: bool) -> Output {
    fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false).compact().boxed()
}

fn json() -> Output {
    fmt::layer().with_writer(std::io::stderr).json().flatten_event(true).boxed()
}

/// Whether standard error is the stream that systemd named in `JOURNAL_STREAM`.
fn to_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let Some((device, inode)) = stream.split_once(':') else { return false };
    let Ok(stderr) = std::io::stderr().as_fd().try_clone_to_owned() else { return false };
    std::fs::File::from(stderr)
        .metadata()
        .is_ok_and(|file| device.parse() == Ok(file.st_dev()) && inode.parse() == Ok(file.st_ino()))
}
