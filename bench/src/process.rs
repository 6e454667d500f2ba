//! What a process and its children use of the machine, as the kernel counts it.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

/// Time and memory of a process and its children.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Time on any core, to 10 ms.
    pub cpu: Duration,
    /// The part of it outside the kernel.
    pub user: Duration,
    /// The most memory that was ever resident, bytes; the sum of what each process had.
    pub peak_resident: u64,
    /// Memory that is resident now, bytes.
    pub resident: u64,
}

/// What the process `root` and its children have used so far; of those that have ended, their time.
pub fn usage(root: u32) -> Usage {
    let mut family = HashSet::from([root]);
    let processes = processes();
    // Children are listed after their parents unless numbers have wrapped around: look until nothing is found.
    loop {
        let known = family.len();
        family.extend(
            processes
                .iter()
                .filter(|process| family.contains(&process.parent))
                .map(|process| process.id)
                .collect::<Vec<_>>(),
        );
        if family.len() == known {
            break;
        }
    }
    let mut sum = Usage::default();
    for process in processes.iter().filter(|process| family.contains(&process.id)) {
        sum.cpu += process.user + process.system;
        sum.user += process.user;
        let status = fs::read_to_string(format!("/proc/{}/status", process.id)).unwrap_or_default();
        sum.peak_resident += kibibytes(&status, "VmHWM:") << 10;
        sum.resident += kibibytes(&status, "VmRSS:") << 10;
    }
    sum
}

/// Whether the process is there and has not ended.
pub fn is_running(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.trim_start().starts_with(['Z', 'X']))
}

struct Process {
    id: u32,
    parent: u32,
    user: Duration,
    system: Duration,
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(|id: u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name stands in brackets and may hold anything; the state is the first field behind it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        // Its own, and that of children that have ended.
        let time = |own: usize, ended: usize| {
            let ticks = number(own)? + number(ended)?;
            Some(Duration::from_nanos(ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second())))
        };
        Some(Process { id, parent: number(1)? as u32, user: time(11, 13)?, system: time(12, 14)? })
    })
    .collect()
}

fn kibibytes(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Instant;

    #[test]
    fn the_time_of_children_counts() {
        let mut shell = Command::new("sh").args(["-c", "(while :; do :; done) & wait"]).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while usage(shell.id()).cpu < Duration::from_millis(50) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let used = usage(shell.id());
        let child = processes().into_iter().find(|process| process.parent == shell.id()).expect("a child");
        let killed = Command::new("kill").args(["-9", &child.id.to_string()]).status().unwrap();
        shell.wait().unwrap();
        assert!(killed.success());
        assert!(used.cpu >= Duration::from_millis(50), "{used:?}");
        assert!(used.peak_resident >= used.resident && used.resident > 0, "{used:?}");
    }
}
