//! From settings to the plan: defaults filled in, and everything checked that involves more than one value.
//!
//! Invariant: when no check reports an error, the plan keeps every promise of [`Plan`]'s types. When one
//! does, the plan is thrown away, so a check may put anything in the place of what was wrong.

mod disks;
mod exports;
mod layers;
mod server;
mod throttle;

use std::collections::BTreeMap;

use crate::codes;
use crate::diagnostics::{Finding, Severity};
use crate::load::DefaultSockets;
use crate::plan::{Log, LogFormat, LogLevel, Plan, Throttle};
use crate::shape::Settings;

/// The plan that the settings mean. Everything wrong with it is a finding.
pub(crate) fn plan(root: &Settings, sockets: &DefaultSockets, findings: &mut Vec<Finding>) -> Plan {
    let server_settings = root.table("server");
    let mut server = server::server(&server_settings, sockets, findings);
    let groups = groups(root, findings);
    let disks = disks::disks(root, &server_settings, &groups, findings);
    let exports = exports::exports(root, &disks, &server, findings);
    server.default_export = exports::default_export(&server_settings, &exports, findings);
    // After an error the disk may be there and not understood.
    if disks.is_empty() && findings.iter().all(|finding| finding.severity() == Severity::Warning) {
        let finding = Finding::new(&codes::NO_DISKS, "there is no disk to serve").in_file(0);
        findings.push(finding.help("a disk is a table: [disk.NAME] with file = \"…\" below"));
    }
    let disks = disks.into_iter().map(|placed| placed.disk).collect();
    Plan { server, log: log(&root.table("log")), groups, disks, exports }
}

fn log(settings: &Settings) -> Log {
    let slow_io = settings.value("slow_io");
    Log {
        level: settings.word("level", LogLevel::from_word),
        format: settings.word("format", LogFormat::from_word),
        slow_io: Some(slow_io).filter(|time: &std::time::Duration| !time.is_zero()),
    }
}

fn groups(root: &Settings, findings: &mut Vec<Finding>) -> BTreeMap<String, Throttle> {
    let named: BTreeMap<String, Settings> = root.value("throttle");
    named.into_iter().map(|(name, settings)| (name, throttle::throttle(&settings, findings))).collect()
}
