//! The configuration: any text is a plan that holds, or findings that can be shown.
//!
//! Invariant: texts are made of the words of the language itself, so that most of them get past the parser.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use disk_core::throttle::{Dimension, Limits, Rate, Rates};
use diskchain_config::keys::{Kind, SECTIONS, Section};
use diskchain_config::{DefaultSockets, Plan, check as check_text, plan};

use crate::{Many, Reached, one_in};

#[derive(Debug)]
enum Line {
    /// A table's header, of one of two names where it has one.
    Header(u8, bool),
    /// A key of the last table, and its value.
    Key(u8, Value),
    /// A disk with what it must have.
    Disk(bool),
    Raw(String),
}

#[derive(Debug)]
enum Value {
    /// What the key's kind allows, one way or the other.
    Lawful(u32),
    Number(i64),
    Size(u32, u8),
    Text(String),
    Many(Many<Value, 4>),
    Raw(String),
}

impl<'a> Arbitrary<'a> for Line {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match input.int_in_range(0..=59)? {
            0 => Line::Raw(input.arbitrary()?),
            1..=8 => Line::Header(input.arbitrary()?, input.arbitrary()?),
            9..=12 => Line::Disk(input.arbitrary()?),
            _ => Line::Key(input.arbitrary()?, input.arbitrary()?),
        })
    }
}

impl<'a> Arbitrary<'a> for Value {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        if !one_in(40, input)? {
            return Ok(Value::Lawful(input.arbitrary()?));
        }
        Ok(match input.int_in_range(0..=7)? {
            0 => Value::Raw(input.arbitrary()?),
            1 | 2 => Value::Number(input.arbitrary()?),
            3 | 4 => Value::Size(input.arbitrary()?, input.arbitrary()?),
            5 => Value::Text(input.arbitrary()?),
            _ => Value::Many(input.arbitrary()?),
        })
    }
}

const UNITS: [&str; 12] = ["B", "KiB", "MiB", "GiB", "kB", "MB/s", "s", "ms", "us", "h", "iB", ""];

impl Value {
    fn write(&self, kind: Option<&Kind>, into: &mut String) {
        match self {
            Value::Lawful(which) => lawful(kind, *which, into),
            Value::Number(number) => write!(into, "{number}").expect("a string takes all"),
            Value::Size(number, unit) => {
                let unit = UNITS[usize::from(*unit) % UNITS.len()];
                write!(into, "\"{number}{unit}\"").expect("a string takes all");
            }
            Value::Text(text) => write!(into, "{text:?}").expect("a string takes all"),
            Value::Many(values) => {
                let kind = if let Some(Kind::List(kind)) = kind { Some(*kind) } else { kind };
                into.push('[');
                for value in values.iter() {
                    value.write(kind, into);
                    into.push_str(", ");
                }
                into.push(']');
            }
            Value::Raw(text) => into.push_str(text),
        }
    }
}

/// A value of that kind, or nearly.
fn lawful(kind: Option<&Kind>, which: u32, into: &mut String) {
    let one = |words: &[&str]| words[which as usize % words.len()].to_owned();
    let text = match kind {
        Some(Kind::Boolean) => one(&["true", "false"]),
        Some(Kind::Count(min, max)) => [*min, *max, max.wrapping_add(1)][which as usize % 3].to_string(),
        Some(Kind::OneOf(values)) => values[which as usize % values.len()].to_string(),
        Some(Kind::Size(min, max, step)) => [*min, *max, min + step][which as usize % 3].to_string(),
        Some(Kind::Rate(max)) => [0, 1, *max][which as usize % 3].to_string(),
        Some(Kind::Duration(..)) => one(&["\"1s\"", "\"0s\"", "\"10ms\"", "\"1h\"", "\"99999d\""]),
        Some(Kind::Word(words)) => format!("{:?}", words[which as usize % words.len()]),
        Some(Kind::Name) => one(&["\"a\"", "\"b\"", "\"no\""]),
        Some(Kind::Path) => one(&["\"/a.vdi\"", "\"b.img\"", "\"../c.vdi\"", "\"\""]),
        Some(Kind::Uuid) => {
            one(&["\"0192f0c8-6d0a-7c52-9f9b-6a1e6f0a77d1\"", "\"00000000-0000-0000-0000-000000000000\""])
        }
        Some(Kind::Listen | Kind::Control) => {
            one(&["\"unix:/s\"", "\"tcp:127.0.0.1:10809\"", "\"tcp:[::]:1\"", "\"off\"", "\"tcp:h:0\""])
        }
        Some(Kind::List(kind)) => {
            let mut list = "[".to_owned();
            for nth in 0..which % 4 {
                lawful(Some(kind), which / 4 + nth, &mut list);
                list.push_str(", ");
            }
            list + "]"
        }
        Some(Kind::Table(section)) => {
            let mut table = "{ ".to_owned();
            for nth in 0..which % 5 {
                let key = &section.keys[(which / 5 + nth) as usize % section.keys.len()];
                write!(table, "{}{} = ", if nth == 0 { "" } else { ", " }, key.name)
                    .expect("a string takes all");
                lawful(Some(&key.kind), which / 7, &mut table);
            }
            table + " }"
        }
        Some(Kind::Text(_) | Kind::Named(_)) | None => {
            one(&["\"text\"", "{}", "\"\\u00e4\\n\"", "1979-05-27"])
        }
    };
    into.push_str(&text);
}

/// The text that a list of lines makes. What has been said is not said again, as that is an error by itself.
fn text_of(lines: &[Line]) -> String {
    let (mut text, mut said) = (String::new(), HashSet::new());
    let (mut section, mut header): (&Section, _) = (SECTIONS[0], String::new());
    for line in lines {
        let line = match line {
            Line::Header(which, first) => {
                section = SECTIONS[usize::from(*which) % SECTIONS.len()];
                header = format!("[{}]", section.path.replace("NAME", name(*first)));
                header.clone()
            }
            Line::Disk(first) => {
                section = SECTIONS.iter().find(|section| section.path == "disk.NAME").expect("disks");
                header = format!("[disk.{}]", name(*first));
                said.extend(["file", "layers"].map(|key| format!("{header}{key}")));
                format!("{header}\nfile = \"/{}.vdi\"", name(*first))
            }
            Line::Key(which, value) => {
                let key = section.keys.get(usize::from(*which) % section.keys.len().max(1));
                // An include would read what lies on this machine.
                let Some(key) = key.filter(|key| key.name != "include") else { continue };
                if !said.insert(format!("{header}{}", key.name)) {
                    continue;
                }
                let mut line = format!("{} = ", key.name);
                value.write(Some(&key.kind), &mut line);
                line
            }
            Line::Raw(raw) => raw.clone(),
        };
        if !line.starts_with('[') || said.insert(header.clone()) {
            text += &line;
            text.push('\n');
        }
    }
    text
}

fn name(first: bool) -> &'static str {
    if first { "a" } else { "b" }
}

/// See the module.
pub fn check(input: &[u8], reached: &mut Reached) {
    let Ok(lines) = Many::<Line, 24>::arbitrary(&mut Unstructured::new(input)) else { return };
    let text = text_of(&lines);
    if text.contains("include") {
        return;
    }
    let count = text.lines().count() + 1;
    let sockets = DefaultSockets::under(Path::new("/run/user/1"));
    let diagnostics = match check_text(Path::new("/etc/diskchain.toml"), text, &sockets) {
        Ok(checked) => {
            assert_eq!(checked.warnings.errors(), 0);
            reached.add("plans", 1);
            reached.add("disks", checked.plan.disks.len());
            expect_sound(&checked.plan);
            checked.warnings
        }
        Err(diagnostics) => {
            assert!(diagnostics.errors() > 0, "refused without a reason");
            diagnostics
        }
    };
    reached.add("findings", diagnostics.iter().count());
    for found in diagnostics.iter() {
        assert!(found.line.is_none_or(|line| (1..=count).contains(&line)), "{found:?} of {count} lines");
        assert!(!found.message.is_empty());
    }
    for colours in [false, true] {
        let shown = diagnostics.render(colours);
        assert_eq!(shown.is_empty(), diagnostics.is_empty());
    }
}

/// What the daemon takes for granted of a plan.
fn expect_sound(plan: &Plan) {
    for disk in &plan.disks {
        assert!(!disk.layers.is_empty());
        assert!(disk.layers.iter().all(|layer| layer.file.is_absolute()));
        assert!(disk.group.as_ref().is_none_or(|group| plan.groups.contains_key(group)));
        expect_limits(&disk.throttle);
    }
    plan.groups.values().for_each(expect_limits);
    for export in &plan.exports {
        assert!(plan.disk(&export.disk).is_some(), "an export of nothing");
    }
    let default = plan.server.default_export.as_ref();
    assert!(default.is_none_or(|name| plan.export(name).is_some()));
}

fn expect_limits(throttle: &plan::Throttle) {
    let mut rates = Rates::default();
    for (dimension, limit) in [
        (Dimension::IopsTotal, throttle.iops_total),
        (Dimension::IopsRead, throttle.iops_read),
        (Dimension::IopsWrite, throttle.iops_write),
        (Dimension::BpsTotal, throttle.bps_total),
        (Dimension::BpsRead, throttle.bps_read),
        (Dimension::BpsWrite, throttle.bps_write),
    ] {
        if let Some(limit) = limit {
            let max = limit.burst.map_or(0, |burst| burst.rate.get());
            let max_length = limit.burst.map_or_else(Default::default, |burst| burst.length);
            rates[dimension] = Rate { avg: limit.rate.get(), max, max_length };
        }
    }
    let iops_size = throttle.iops_size.map_or(0, |size| size.get());
    assert!(Limits::new(rates, iops_size).is_ok(), "limits that the throttle refuses");
}
