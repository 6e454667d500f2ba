//! Exports: those that were written, and one for every disk that has none of its own name.

use std::collections::BTreeMap;

use super::disks::Placed;
use super::server::count;
use crate::codes;
use crate::diagnostics::Finding;
use crate::plan::{Export, Server};
use crate::shape::Settings;
use crate::source::{At, Span};
use crate::suggest;

/// All exports, sorted by name.
pub(super) fn exports(
    root: &Settings,
    disks: &[Placed],
    server: &Server,
    findings: &mut Vec<Finding>,
) -> Vec<Export> {
    let mut exports: BTreeMap<String, Export> =
        disks.iter().map(|placed| (placed.disk.name.clone(), own_export(placed))).collect();
    let named: BTreeMap<String, Settings> = root.value("export");
    for (name, settings) in named {
        if let Some(export) = export(&name, &settings, disks, findings) {
            check_limit(&export, &settings, server, findings);
            exports.insert(name, export);
        }
    }
    exports.into_values().collect()
}

/// The export that a disk has without being asked.
fn own_export(placed: &Placed) -> Export {
    let disk = &placed.disk;
    Export {
        name: disk.name.clone(),
        disk: disk.name.clone(),
        read_only: disk.read_only,
        multi_conn: true,
        max_connections: None,
        description: disk.description.clone(),
    }
}

fn export(name: &str, settings: &Settings, disks: &[Placed], findings: &mut Vec<Finding>) -> Option<Export> {
    let named = |wanted: &str| disks.iter().find(|placed| placed.disk.name == wanted);
    if settings.is_broken("disk") {
        return None;
    }
    let written: Option<At<String>> = settings.written("disk");
    let (wanted, span) = match &written {
        Some(at) => (at.value.as_str(), at.span),
        None => (name, settings.span),
    };
    let Some(placed) = named(wanted) else {
        findings.push(unknown_disk(wanted, span, written.is_some(), disks));
        return None;
    };
    if let Some(owner) = named(name).filter(|owner| owner.disk.name != placed.disk.name) {
        let message = format!("two exports have the name `{name}`");
        findings.push(
            Finding::new(&codes::EXPORT_TWICE, message)
                .at(settings.span, format!("for disk `{wanted}`"))
                .at(owner.name, "this disk is exported under its own name"),
        );
    }
    let read_only = settings.written::<bool>("read_only");
    if let (Some(At { value: false, span }), true) = (&read_only, placed.disk.read_only) {
        findings.push(
            Finding::new(&codes::WRITABLE_EXPORT, format!("export `{name}` is writable and its disk is not"))
                .at(*span, "writable")
                .at(placed.read_only.unwrap_or(placed.name), "read-only"),
        );
    }
    Some(Export {
        name: name.to_string(),
        disk: wanted.to_string(),
        read_only: placed.disk.read_only || settings.value("read_only"),
        multi_conn: settings.value("multi_conn"),
        max_connections: settings
            .written::<u64>("max_connections")
            .map(|_| count(settings, "max_connections")),
        description: settings
            .written("description")
            .map_or_else(|| placed.disk.description.clone(), |at| at.value),
    })
}

fn unknown_disk(wanted: &str, span: Span, named: bool, disks: &[Placed]) -> Finding {
    let finding = Finding::new(&codes::UNKNOWN_DISK, format!("there is no disk `{wanted}`")).at(span, "");
    let known = disks.iter().map(|placed| placed.disk.name.as_str());
    match suggest::nearest(wanted, known) {
        Some(meant) if named => finding.help(format!("did you mean `{meant}`?")),
        Some(meant) => finding.help(format!("say which disk it is for: disk = {meant:?}?")),
        None if named => finding.help(format!("a disk is a table: [disk.{wanted}]")),
        None => finding.help("say which disk it is for: disk = \"…\""),
    }
}

fn check_limit(export: &Export, settings: &Settings, server: &Server, findings: &mut Vec<Finding>) {
    if let (Some(limit), Some(span)) = (export.max_connections, settings.place("max_connections"))
        && limit > server.max_connections
    {
        let label = format!("the whole daemon allows {}", server.max_connections);
        findings.push(Finding::new(&codes::INEFFECTIVE_LIMIT, "this limit never applies").at(span, label));
    }
}

/// What the empty name means, if anything.
pub(super) fn default_export(
    server: &Settings,
    exports: &[Export],
    findings: &mut Vec<Finding>,
) -> Option<String> {
    let At { value: name, span } = server.written::<String>("default_export")?;
    let known = || exports.iter().map(|export| export.name.as_str());
    if !known().any(|export| export == name) {
        let finding =
            Finding::new(&codes::UNKNOWN_EXPORT, format!("there is no export `{name}`")).at(span, "");
        findings.push(match suggest::nearest(&name, known()) {
            Some(meant) => finding.help(format!("did you mean `{meant}`?")),
            None => finding.help("every disk is exported under its own name; others are [export.NAME]"),
        });
    }
    Some(name)
}
