//! From typed TOML to settings: every value is checked against the kind that its key has in [`keys`].
//!
//! Invariant: a [`Setting`] is of its key's kind and in its range. A value that is not is reported once,
//! here, and kept as [`Setting::Broken`], so that no later check mistakes it for an absent one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use crate::address::{absolute, socket_path};
use crate::codes;
use crate::diagnostics::Finding;
use crate::file::{self, Node, Table, Value};
use crate::keys::{self, Key, Kind, MAX_NAME_BYTES, Section};
use crate::plan::Listen;
use crate::source::{At, Source, Sources, Span};
use crate::suggest;
use crate::units::{Invalid, parse_duration, parse_rate, parse_size};

/// One section's values.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    section: &'static Section,
    /// Its header's last word, or the whole of an inline table in a list.
    pub span: Span,
    values: BTreeMap<&'static str, At<Setting>>,
}

/// A value of its key's kind. Paths are absolute.
#[derive(Clone, Debug)]
pub(crate) enum Setting {
    Boolean(bool),
    Number(u64),
    Duration(Duration),
    Text(String),
    Path(PathBuf),
    Uuid(Uuid),
    Listen(Listen),
    Control(Option<PathBuf>),
    List(Vec<At<Setting>>),
    Table(Settings),
    Named(BTreeMap<String, Settings>),
    /// Was written, and reported.
    Broken,
}

/// A type that a [`Setting`] can be read as.
pub(crate) trait FromSetting: Sized {
    /// `None` for a broken setting, and for one of another kind.
    fn from_setting(setting: &Setting) -> Option<Self>;
}

macro_rules! from_setting {
    ($($type:ty = $variant:ident,)+) => {
        $(impl FromSetting for $type {
            fn from_setting(setting: &Setting) -> Option<Self> {
                match setting {
                    Setting::$variant(value) => Some(value.clone()),
                    _ => None,
                }
            }
        })+
    };
}

from_setting! {
    bool = Boolean,
    u64 = Number,
    Duration = Duration,
    String = Text,
    PathBuf = Path,
    Uuid = Uuid,
    Listen = Listen,
    Option<PathBuf> = Control,
    Settings = Table,
    BTreeMap<String, Settings> = Named,
}

impl<T: FromSetting> FromSetting for Vec<At<T>> {
    /// The elements that are not broken.
    fn from_setting(setting: &Setting) -> Option<Self> {
        let Setting::List(elements) = setting else { return None };
        let whole = |element: &At<Setting>| {
            T::from_setting(&element.value).map(|value| At { value, span: element.span })
        };
        Some(elements.iter().filter_map(whole).collect())
    }
}

impl Settings {
    /// Whether the key was written, right or wrong.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// Whether the key was written wrong, which has been reported.
    pub fn is_broken(&self, name: &str) -> bool {
        matches!(self.values.get(name), Some(At { value: Setting::Broken, .. }))
    }

    /// Where the key's value was written.
    pub fn place(&self, name: &str) -> Option<Span> {
        self.values.get(name).map(|at| at.span)
    }

    /// What was written, if it was written right.
    pub fn written<T: FromSetting>(&self, name: &str) -> Option<At<T>> {
        let at = self.values.get(name)?;
        T::from_setting(&at.value).map(|value| At { value, span: at.span })
    }

    /// What was written, or the key's default.
    pub fn value<T: FromSetting>(&self, name: &str) -> T {
        self.written(name).map(|at| at.value).unwrap_or_else(|| {
            let key = self.section.key(name).expect("only keys of the section are asked for");
            default_of(key).and_then(|setting| T::from_setting(&setting)).expect("the key has a default")
        })
    }

    /// A word of the language, written or default.
    pub fn word<T>(&self, name: &str, from_word: fn(&str) -> Option<T>) -> T {
        from_word(&self.value::<String>(name)).expect("the words of a key are the words of its type")
    }

    /// A table, empty when absent or broken.
    pub fn table(&self, name: &str) -> Settings {
        let key = self.section.key(name).expect("only keys of the section are asked for");
        let Kind::Table(section) = key.kind else { panic!("`{name}` is not a table") };
        self.written(name).map_or_else(
            || Settings { section, span: self.span, values: BTreeMap::new() },
            |at: At<Settings>| at.value,
        )
    }

    /// Takes from `defaults` what is not written here; tables are filled key by key.
    pub fn fill_from(&mut self, defaults: &Settings) {
        for (name, theirs) in &defaults.values {
            match (self.values.get_mut(name).map(|at| &mut at.value), &theirs.value) {
                (Some(Setting::Table(ours)), Setting::Table(theirs)) => ours.fill_from(theirs),
                (Some(_), _) => (),
                (None, _) => {
                    self.values.insert(name, theirs.clone());
                }
            }
        }
    }

    /// Forgets what was written for a key.
    pub fn remove(&mut self, name: &str) {
        self.values.remove(name);
    }
}

/// The default of a key as if it had been written; `None` when it has none.
pub(crate) fn default_of(key: &'static Key) -> Option<Setting> {
    let text = format!("default = {}", key.default?);
    let mut sources = Sources::default();
    let file = sources.add(Source::new(PathBuf::new(), "/".into(), text));
    let mut findings = Vec::new();
    let mut shaper = Shaper::new(&sources, &mut findings);
    let table = file::parse(&sources, file, shaper.findings).root;
    let setting =
        table.0.get("default").map(|entry| shaper.setting(key.name, &key.kind, &entry.node, entry.key));
    assert!(shaper.findings.is_empty(), "the default of `{}` is of its kind", key.name);
    setting
}

/// Checks the whole tree. All that is wrong with single values is a finding.
pub(crate) fn settings(root: &Table, sources: &Sources, findings: &mut Vec<Finding>) -> Settings {
    Shaper::new(sources, findings).table(root, &keys::ROOT, Span { file: 0, start: 0, end: 0 })
}

struct Shaper<'a> {
    sources: &'a Sources,
    findings: &'a mut Vec<Finding>,
    /// What stands for `NAME` in a section's path just now.
    name: String,
}

impl<'a> Shaper<'a> {
    fn new(sources: &'a Sources, findings: &'a mut Vec<Finding>) -> Self {
        Shaper { sources, findings, name: "NAME".to_string() }
    }

    fn table(&mut self, table: &Table, section: &'static Section, span: Span) -> Settings {
        let mut values = BTreeMap::new();
        for (name, entry) in &table.0 {
            if name.starts_with("x-") {
                continue;
            }
            let Some(key) = section.key(name) else {
                self.findings.push(unknown_key(name, section, &self.name, entry.key));
                continue;
            };
            let value = self.setting(name, &key.kind, &entry.node, entry.key);
            // A table or list may be pages long, so its key stands for it.
            let is_long = matches!(value, Setting::Table(_) | Setting::List(_));
            let span = if is_long { entry.key } else { entry.node.span };
            values.insert(key.name, At { value, span });
        }
        Settings { section, span, values }
    }

    fn setting(&mut self, name: &str, kind: &'static Kind, node: &Node, key: Span) -> Setting {
        match (kind, &node.value) {
            (Kind::Table(section), Value::Table(table)) => Setting::Table(self.table(table, section, key)),
            (Kind::Named(section), Value::Table(table)) => Setting::Named(self.named(table, section)),
            (Kind::List(kind), Value::Array(nodes)) => self.list(name, kind, nodes),
            _ => match scalar(name, kind, node, self.sources) {
                Ok(setting) => setting,
                Err(finding) => {
                    self.findings.push(*finding);
                    Setting::Broken
                }
            },
        }
    }

    fn list(&mut self, name: &str, kind: &'static Kind, nodes: &[Node]) -> Setting {
        let element = |node: &Node| At { value: self.setting(name, kind, node, node.span), span: node.span };
        let elements: Vec<_> = nodes.iter().map(element).collect();
        // What a table in a list means depends on its neighbours: a layer lies over the one before it.
        let is_torn = elements.iter().any(|at| matches!(at.value, Setting::Broken));
        if is_torn && matches!(kind, Kind::Table(_)) { Setting::Broken } else { Setting::List(elements) }
    }

    fn named(&mut self, table: &Table, section: &'static Section) -> BTreeMap<String, Settings> {
        let kind = section.path.trim_end_matches(".NAME");
        let mut named = BTreeMap::new();
        for (name, entry) in &table.0 {
            if let Err(invalid) = check_name(name) {
                self.findings.push(refused(&codes::NAME, invalid, entry.key));
            }
            let settings = match &entry.node.value {
                Value::Table(table) => {
                    let outer = std::mem::replace(&mut self.name, name.clone());
                    let settings = self.table(table, section, entry.key);
                    self.name = outer;
                    settings
                }
                other => {
                    let message = format!("`{kind}.{name}` is {}, and must be a table", other.type_name());
                    let help = if section.key(name).is_some() {
                        format!("`{name}` is a key of [{}]: put the name into the header", section.path)
                    } else {
                        format!("write [{kind}.{name}] and its keys below")
                    };
                    self.findings
                        .push(Finding::new(&codes::WRONG_TYPE, message).at(entry.key, "").help(help));
                    continue;
                }
            };
            named.insert(name.clone(), settings);
        }
        named
    }
}

/// Rules for the names of disks, exports and groups.
pub(crate) fn check_name(name: &str) -> Result<(), Invalid> {
    let bad =
        name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(|c: char| c == '/' || c.is_control());
    let help = format!("a name has 1 to {MAX_NAME_BYTES} bytes, no `/` and no control characters");
    if bad { Err(Invalid { message: format!("{name:?} cannot be a name"), help }) } else { Ok(()) }
}

fn unknown_key(name: &str, section: &Section, owner: &str, span: Span) -> Finding {
    let header = section.header().replace("NAME", owner);
    let message = format!("unknown key `{name}` in {header}");
    let finding = Finding::new(&codes::UNKNOWN_KEY, message).at(span, "");
    let names = || section.keys.iter().map(|key| key.name);
    if let Some(meant) = suggest::foreign(name, names()).or_else(|| suggest::nearest(name, names())) {
        return finding.help(format!("did you mean `{meant}`?"));
    }
    match keys::SECTIONS.iter().find(|other| !other.path.is_empty() && other.key(name).is_some()) {
        Some(other) => finding.help(format!("`{name}` is a key of {}", other.header())),
        None => {
            let known: Vec<_> = names().collect();
            finding.help(format!("its keys are {}; keys that start with `x-` are yours", known.join(", ")))
        }
    }
}

fn refused(code: &'static codes::Code, invalid: Invalid, span: Span) -> Finding {
    Finding::new(code, invalid.message).at(span, "").help(invalid.help)
}

/// A value that is not a table or a list of what it should be.
fn scalar(name: &str, kind: &Kind, node: &Node, sources: &Sources) -> Result<Setting, Box<Finding>> {
    let span = node.span;
    let invalid = |why| Box::new(refused(&codes::NOT_UNDERSTOOD, why, span));
    match (kind, &node.value) {
        (Kind::Boolean, Value::Boolean(value)) => Ok(Setting::Boolean(*value)),
        (Kind::Count(..) | Kind::OneOf(_) | Kind::Size(..) | Kind::Rate(_), Value::Integer(value)) => {
            let value = value.and_then(|value| u64::try_from(value).ok());
            number(name, kind, value, span)
        }
        (Kind::Size(..), Value::String(text)) => {
            parse_size(text).map_err(invalid).and_then(|bytes| number(name, kind, Some(bytes), span))
        }
        (Kind::Rate(_), Value::String(text)) => {
            parse_rate(text).map_err(invalid).and_then(|bytes| number(name, kind, Some(bytes), span))
        }
        (Kind::Duration(min, max), Value::String(text)) => match parse_duration(text).map_err(invalid)? {
            value if (*min..=*max).contains(&value) => Ok(Setting::Duration(value)),
            _ => Err(out_of_range(name, kind, span)),
        },
        (Kind::Word(words), Value::String(text)) if words.contains(&text.as_str()) => {
            Ok(Setting::Text(text.clone()))
        }
        (Kind::Word(words), Value::String(text)) => {
            let finding = Finding::new(&codes::WORD, format!("`{name}` cannot be {text:?}")).at(span, "");
            Err(Box::new(match suggest::nearest(text, words.iter().copied()) {
                Some(meant) => finding.help(format!("did you mean \"{meant}\"?")),
                None => finding.help(format!("expected: {kind}")),
            }))
        }
        (Kind::Text(max), Value::String(text)) if text.len() <= *max => Ok(Setting::Text(text.clone())),
        (Kind::Text(_), Value::String(_)) => Err(out_of_range(name, kind, span)),
        (Kind::Name, Value::String(text)) => {
            check_name(text).map_err(|why| Box::new(refused(&codes::NAME, why, span)))?;
            Ok(Setting::Text(text.clone()))
        }
        (Kind::Path, Value::String(text)) => match text.as_str() {
            "" => Err(invalid(path_problem("is empty"))),
            text if text.contains('\0') => Err(invalid(path_problem("holds a NUL"))),
            text => Ok(Setting::Path(absolute(sources.folder(span), text))),
        },
        (Kind::Uuid, Value::String(text)) => uuid(text).map(Setting::Uuid).map_err(invalid),
        (Kind::Listen, Value::String(text)) => {
            Listen::parse(text, sources.folder(span)).map(Setting::Listen).map_err(invalid)
        }
        (Kind::Control, Value::String(text)) => {
            control(text, sources.folder(span)).map(Setting::Control).map_err(invalid)
        }
        (kind, value) => Err(wrong_type(name, kind, value, span)),
    }
}

fn number(name: &str, kind: &Kind, value: Option<u64>, span: Span) -> Result<Setting, Box<Finding>> {
    let fits = |value: &u64| match kind {
        Kind::Count(min, max) => (min..=max).contains(&value),
        Kind::OneOf(values) => values.contains(value),
        Kind::Size(min, max, step) => (min..=max).contains(&value) && value.is_multiple_of(*step),
        Kind::Rate(max) => value <= max,
        _ => false,
    };
    value.filter(fits).map(Setting::Number).ok_or_else(|| out_of_range(name, kind, span))
}

fn out_of_range(name: &str, kind: &Kind, span: Span) -> Box<Finding> {
    Box::new(
        Finding::new(&codes::OUT_OF_RANGE, format!("`{name}` is out of range"))
            .at(span, "")
            .help(format!("expected: {kind}")),
    )
}

fn wrong_type(name: &str, kind: &Kind, value: &Value, span: Span) -> Box<Finding> {
    let expected: Cow<'_, str> = match kind {
        Kind::Boolean => "true or false".into(),
        Kind::Count(..) | Kind::OneOf(_) => "an integer".into(),
        Kind::Size(..) => "a size: bytes as an integer, or a string such as \"10GiB\"".into(),
        Kind::Rate(_) => "a rate: bytes a second as an integer, or a string such as \"100MiB/s\"".into(),
        Kind::Duration(..) => "a duration: a string such as \"30s\", \"250ms\" or \"5min\"".into(),
        Kind::List(_) => "a list".into(),
        Kind::Table(_) => "a table".into(),
        Kind::Named(section) => format!("tables: write [{}] above the keys of each", section.path).into(),
        _ => "a string".into(),
    };
    let message = format!("`{name}` is {}, and must be {expected}", value.type_name());
    let finding = Finding::new(&codes::WRONG_TYPE, message).at(span, "");
    Box::new(match (kind, value) {
        (Kind::List(_), Value::String(text)) => finding.help(format!("write {name} = [{text:?}]")),
        (Kind::Duration(..), Value::Integer(Some(seconds))) => {
            finding.help(format!("if these are seconds, write \"{seconds}s\""))
        }
        _ => finding,
    })
}

fn path_problem(what: &str) -> Invalid {
    Invalid {
        message: format!("the path {what}"),
        help: "a path is absolute or starts from the file's folder".into(),
    }
}

fn uuid(text: &str) -> Result<Uuid, Invalid> {
    Uuid::try_parse(text).ok().filter(|uuid| !uuid.is_nil()).ok_or_else(|| Invalid {
        message: format!("`{text}` is not a UUID that identifies anything"),
        help: "a UUID has 32 hexadecimal digits, not all zero: \"0192f0c8-6d0a-7c52-9f9b-6a1e6f0a77d1\""
            .into(),
    })
}

/// `unix:PATH` or `off`.
fn control(text: &str, folder: &Path) -> Result<Option<PathBuf>, Invalid> {
    let help = "write \"unix:/run/diskchain-control.sock\" or \"off\"".to_string();
    match text.strip_prefix("unix:") {
        _ if text == "off" => Ok(None),
        Some(path) => socket_path(path, folder).map(Some).map_err(|message| Invalid { message, help }),
        None => Err(Invalid { message: format!("`{text}` is not a socket for the control API"), help }),
    }
}
