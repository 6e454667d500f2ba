//! Disks: each with its defaults filled in, and then all of them against one another.

use std::collections::BTreeMap;
use std::path::Path;

use uuid::Uuid;

use super::server::count;
use super::throttle::throttle;
use crate::codes;
use crate::diagnostics::Finding;
use crate::keys::ONE_DISK_ONLY;
use crate::plan::{CacheMode, DetectZeroes, Discard, Disk, Locking, OnRwFailure, Throttle};
use crate::shape::Settings;
use crate::source::{At, Span};
use crate::suggest;

/// A disk and the places that messages about it point at.
pub(super) struct Placed {
    pub disk: Disk,
    /// Its name in its header.
    pub name: Span,
    /// Where `read_only` was written, for it or as a default.
    pub read_only: Option<Span>,
    /// The file of each layer.
    files: Vec<Span>,
    uuid: Option<Span>,
}

/// All disks, sorted by name.
pub(super) fn disks(
    root: &Settings,
    server: &Settings,
    groups: &BTreeMap<String, Throttle>,
    findings: &mut Vec<Finding>,
) -> Vec<Placed> {
    let defaults = defaults(root, findings);
    let named: BTreeMap<String, Settings> = root.value("disk");
    let mut disks = Vec::new();
    for (name, own) in named {
        let mut settings = own.clone();
        settings.fill_from(&defaults);
        let mut one = OneDisk { name, own: &own, settings: &settings, server, findings };
        disks.push(one.disk(groups));
    }
    check_uuids(&disks, findings);
    check_sharing(&disks, findings);
    disks
}

/// `[defaults.disk]` without what cannot be a default.
fn defaults(root: &Settings, findings: &mut Vec<Finding>) -> Settings {
    let mut defaults = root.table("defaults").table("disk");
    for name in ONE_DISK_ONLY {
        if let Some(span) = defaults.place(name) {
            findings.push(
                Finding::new(&codes::NOT_A_DEFAULT, format!("`{name}` cannot be a default"))
                    .at(span, "")
                    .help("put it into the table of the disk it is about"),
            );
            defaults.remove(name);
        }
    }
    defaults
}

/// A disk that is being made.
pub(super) struct OneDisk<'a> {
    pub name: String,
    /// What its own table says.
    pub own: &'a Settings,
    /// The same with the defaults.
    pub settings: &'a Settings,
    pub server: &'a Settings,
    pub findings: &'a mut Vec<Finding>,
}

impl OneDisk<'_> {
    fn disk(&mut self, groups: &BTreeMap<String, Throttle>) -> Placed {
        let settings = self.settings;
        let (layers, files) = self.layers();
        let throttle_settings = settings.table("throttle");
        let uuid: Option<At<Uuid>> = settings.written("uuid");
        let disk = Disk {
            name: self.name.clone(),
            uuid: uuid.as_ref().map(|at| at.value),
            description: settings.value("description"),
            layers,
            parents: self.parents(),
            read_only: settings.value("read_only"),
            cache: settings.word("cache", CacheMode::from_word),
            discard: settings.word("discard", Discard::from_word),
            detect_zeroes: settings.word("detect_zeroes", DetectZeroes::from_word),
            honor_zeroes: settings.value("honor_zeroes"),
            honor_same: settings.value("honor_same"),
            logical_block_size: u32::try_from(settings.value::<u64>("logical_block_size")).unwrap_or(512),
            ephemeral: settings.value("ephemeral"),
            on_rw_failure: settings.word("on_rw_failure", OnRwFailure::from_word),
            locking: settings.word("locking", Locking::from_word),
            throttle: throttle(&throttle_settings, self.findings),
            group: self.group(&throttle_settings, groups),
            max_in_flight: count(settings, "max_in_flight"),
        };
        self.check_modes(&disk);
        self.check_files(&disk, &files);
        Placed {
            disk,
            name: self.own.span,
            read_only: settings.place("read_only"),
            files,
            uuid: uuid.map(|at| at.span),
        }
    }

    fn group(&mut self, settings: &Settings, groups: &BTreeMap<String, Throttle>) -> Option<String> {
        let group: At<String> = settings.written("group")?;
        if !groups.contains_key(&group.value) {
            let message = format!("there is no throttle group `{}`", group.value);
            let finding = Finding::new(&codes::UNKNOWN_GROUP, message).at(group.span, "");
            let known = groups.keys().map(String::as_str);
            self.findings.push(match suggest::nearest(&group.value, known) {
                Some(meant) => finding.help(format!("did you mean `{meant}`?")),
                None => finding.help(format!("a group is a table: [throttle.{}]", group.value)),
            });
        }
        Some(group.value)
    }

    fn check_modes(&mut self, disk: &Disk) {
        let place = |name| self.settings.place(name).unwrap_or(self.own.span);
        if disk.read_only && disk.ephemeral {
            self.findings.push(
                Finding::new(
                    &codes::READ_ONLY_AND_EPHEMERAL,
                    format!("disk `{}` is read-only and ephemeral", self.name),
                )
                .at(place("ephemeral"), "takes writes and forgets them")
                .at(place("read_only"), "takes none"),
            );
        }
        if disk.detect_zeroes == DetectZeroes::Unmap && disk.discard == Discard::Ignore {
            self.findings.push(
                Finding::new(&codes::DETECT_ZEROES_UNMAP, "zeroes cannot give space back that no trim may")
                    .at(place("detect_zeroes"), "gives space back")
                    .at(place("discard"), "keeps it"),
            );
        }
    }
}

fn check_uuids(disks: &[Placed], findings: &mut Vec<Finding>) {
    let mut seen: BTreeMap<Uuid, &Placed> = BTreeMap::new();
    for placed in disks {
        let (Some(uuid), Some(span)) = (placed.disk.uuid, placed.uuid) else { continue };
        match seen.get(&uuid) {
            Some(first) => {
                let message = format!("disks `{}` and `{}` have one UUID", first.disk.name, placed.disk.name);
                let first_span = first.uuid.unwrap_or(first.name);
                findings.push(
                    Finding::new(&codes::UUID_TWICE, message)
                        .at(span, "again here")
                        .at(first_span, "first here"),
                );
            }
            None => {
                seen.insert(uuid, placed);
            }
        }
    }
}

/// A use of a file by a disk.
struct Use<'a> {
    disk: &'a Disk,
    span: Span,
    written: bool,
}

/// A file that one disk writes is used by no other: neither could trust what it reads.
fn check_sharing(disks: &[Placed], findings: &mut Vec<Finding>) {
    let mut uses: BTreeMap<&Path, Vec<Use<'_>>> = BTreeMap::new();
    for Placed { disk, files, .. } in disks {
        for (i, (layer, span)) in disk.layers.iter().zip(files).enumerate() {
            let written = disk.writes_top() && i + 1 == disk.layers.len();
            uses.entry(&layer.file).or_default().push(Use { disk, span: *span, written });
        }
    }
    for (file, uses) in uses {
        let Some(writer) = uses.iter().find(|one| one.written) else { continue };
        for other in uses.iter().filter(|other| other.disk.name != writer.disk.name) {
            let (writer_name, other_name) = (&writer.disk.name, &other.disk.name);
            let message = match other.written {
                true => format!("`{}` is written by two disks", file.display()),
                false => format!("`{}` is written by one disk and read by another", file.display()),
            };
            let verb = if other.written { "written" } else { "read" };
            findings.push(
                Finding::new(&codes::SHARED_WRITABLE, message)
                    .at(other.span, format!("{verb} by disk `{other_name}`"))
                    .at(writer.span, format!("written by disk `{writer_name}`"))
                    .help(format!(
                        "to serve one disk under two names, add [export.NAME] with disk = {writer_name:?}"
                    )),
            );
        }
    }
}
