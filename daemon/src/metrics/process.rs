//! What the kernel knows of this process: the numbers behind the `process_*` metrics.

use std::io;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// Clock ticks a second in `/proc`: `USER_HZ`, which is part of the kernel's interface on everything Rust's Linux
/// targets run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The process at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Process {
    /// CPU time, user and system.
    pub cpu: Duration,
    /// Memory in RAM, bytes.
    pub resident: u64,
    /// Address space, bytes.
    pub virtual_memory: u64,
    /// Open file descriptors.
    pub open_files: u64,
    /// Most file descriptors that may be open.
    pub max_open_files: u64,
    /// When it started, since 1970.
    pub started: Duration,
}

impl Process {
    /// Reads the numbers of this process from `/proc`.
    ///
    /// # Errors
    /// If `/proc` is not mounted or not as expected.
    pub fn read() -> io::Result<Process> {
        let text = |path| std::fs::read_to_string(path);
        let stat = parse_stat(&text("/proc/self/stat")?).ok_or_else(|| unexpected("/proc/self/stat"))?;
        let boot = parse_field(&text("/proc/stat")?, "btime").ok_or_else(|| unexpected("/proc/stat"))?;
        let status = text("/proc/self/status")?;
        let kibibytes = |field| {
            parse_field(&status, field).ok_or_else(|| unexpected("/proc/self/status")).map(|n| n * 1024)
        };
        Ok(Process {
            cpu: stat.cpu,
            resident: kibibytes("VmRSS:")?,
            virtual_memory: kibibytes("VmSize:")?,
            // One of them is the directory that is being read.
            open_files: (std::fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1),
            max_open_files: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            started: Duration::from_secs(boot) + stat.started_after_boot,
        })
    }
}

fn unexpected(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path} is not as expected"))
}

struct Stat {
    cpu: Duration,
    started_after_boot: Duration,
}

/// Fields 14, 15 and 22 of proc_pid_stat(5). The second may hold anything, but it ends with the last parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, from_third) = text.rsplit_once(')')?;
    let fields: Vec<&str> = from_third.split_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let time = |ticks: f64| Duration::try_from_secs_f64(ticks / TICKS_PER_SECOND).ok();
    Some(Stat { cpu: time(ticks(14)? + ticks(15)?)?, started_after_boot: time(ticks(22)?)? })
}

/// The number after `name` at the start of a line.
fn parse_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Instant, SystemTime};

    #[test]
    fn the_own_process_is_read_as_it_is() {
        let before = Process::read().unwrap();
        let _file = std::fs::File::open("/proc/self/stat").unwrap();
        let mut memory = vec![1u8; 64 << 20];
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(100) {
            memory.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_mul(3));
        }
        let after = Process::read().unwrap();
        assert!(after.cpu > before.cpu, "{after:?}");
        assert!(after.resident >= 64 << 20 && after.virtual_memory > after.resident, "{after:?}");
        assert!(after.open_files > 3 && after.open_files < after.max_open_files, "{after:?}");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(after.started <= now + Duration::from_secs(1), "{after:?}");
        assert!(now - after.started < Duration::from_secs(3600), "{after:?}");
        assert_eq!(before.started, after.started);
    }

    #[test]
    fn a_program_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 12345 1000 10 1 2";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat.cpu, Duration::from_secs(2));
        assert_eq!(stat.started_after_boot, Duration::from_millis(123_450));
        assert!(parse_stat("7 (cut off) S 1 2").is_none());
    }
}
