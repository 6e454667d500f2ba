//! The TOML as it was typed: a tree of values, each with its place, and the merging of several files.
//!
//! Nothing here knows what a key means. Invariant: merging loses no value; where two files set the same
//! key, the first wins and the second is an error.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::codes;
use crate::diagnostics::Finding;
use crate::source::{Sources, Span};

/// A value as typed.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Boolean(bool),
    /// `None`: beyond 128 bits, which no key can hold.
    Integer(Option<i128>),
    String(String),
    Array(Vec<Node>),
    Table(Table),
    /// A float or a date, which no key takes; the name of its type.
    Other(&'static str),
}

impl Value {
    /// What it is, to people.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Boolean(_) => "a boolean",
            Value::Integer(_) => "an integer",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other(name) => name,
        }
    }
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub span: Span,
    pub value: Value,
}

/// Keys, each with its own place, and their values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table(pub BTreeMap<String, Entry>);

/// One key of a [`Table`].
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Span,
    pub node: Node,
}

/// What could be understood of a text.
pub(crate) struct Parsed {
    pub root: Table,
    /// The text has no syntax error.
    pub is_whole: bool,
    /// Broken headers and what follows them: their keys were taken for those of another table.
    pub misplaced: Vec<Span>,
}

/// Parses one of the sources. All its syntax errors are findings.
pub(crate) fn parse(sources: &Sources, file: usize, findings: &mut Vec<Finding>) -> Parsed {
    let text = &sources.file(file).text;
    let (root, errors) = DeTable::parse_recoverable(text);
    let root = table(root.get_ref(), file);
    let is_whole = errors.is_empty();
    let mut misplaced = Vec::new();
    for error in errors {
        let span = error.span().map_or(end_of(text, file), |range| within(text, file, range));
        let mut finding = Finding::new(&codes::SYNTAX, error.message()).at(span, "");
        if error.message() == "duplicate key" {
            let mut earlier = Vec::new();
            root.places_of(&text[span.range()], span, &mut earlier);
            if let [first] = earlier[..] {
                finding = finding.at(first, "first set here");
            }
        }
        findings.push(finding);
        misplaced.extend(below_header(text, span));
    }
    Parsed { root, is_whole, misplaced }
}

/// A broken header and the lines to the next header; `None` when the error is in another line.
fn below_header(text: &str, error: Span) -> Option<Span> {
    let line = text[..error.start].rfind('\n').map_or(0, |newline| newline + 1);
    if !text[line..].trim_start().starts_with('[') {
        return None;
    }
    let end = text[line..].find("\n[").map_or(text.len(), |header| line + header);
    Some(Span { file: error.file, start: line, end })
}

/// A span that can be shown: on character boundaries of the text.
fn within(text: &str, file: usize, range: std::ops::Range<usize>) -> Span {
    let boundary =
        |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let start = boundary(range.start);
    Span { file, start, end: boundary(range.end).max(start) }
}

fn end_of(text: &str, file: usize) -> Span {
    Span { file, start: text.len(), end: text.len() }
}

fn table(table: &DeTable<'_>, file: usize) -> Table {
    let span = |spanned: std::ops::Range<usize>| Span { file, start: spanned.start, end: spanned.end };
    let entries = table.iter().map(|(key, value)| {
        let entry = Entry { key: span(key.span()), node: node(value, file) };
        (key.get_ref().to_string(), entry)
    });
    Table(entries.collect())
}

fn node(spanned: &Spanned<DeValue<'_>>, file: usize) -> Node {
    let span = Span { file, start: spanned.span().start, end: spanned.span().end };
    let value = match spanned.get_ref() {
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Integer(value) => Value::Integer(i128::from_str_radix(value.as_str(), value.radix()).ok()),
        DeValue::String(value) => Value::String(value.to_string()),
        DeValue::Array(values) => Value::Array(values.iter().map(|value| node(value, file)).collect()),
        DeValue::Table(value) => Value::Table(table(value, file)),
        DeValue::Float(_) => Value::Other("a float"),
        DeValue::Datetime(_) => Value::Other("a date or time"),
    };
    Node { span, value }
}

impl Table {
    /// Takes in the values of another file. Tables are merged; anything else may be set only once.
    pub fn merge(&mut self, other: Table, path: &str, findings: &mut Vec<Finding>) {
        for (name, theirs) in other.0 {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match self.0.entry(name) {
                Slot::Vacant(slot) => {
                    slot.insert(theirs);
                }
                Slot::Occupied(mut slot) => match (&mut slot.get_mut().node.value, theirs.node.value) {
                    (Value::Table(ours), Value::Table(theirs)) => ours.merge(theirs, &path, findings),
                    _ => findings.push(
                        Finding::new(&codes::SET_TWICE, format!("`{path}` is set in two files"))
                            .at(theirs.key, "set again here")
                            .at(slot.get().key, "first set here"),
                    ),
                },
            }
        }
    }

    /// Where a key of this spelling stands before a place, at any depth.
    fn places_of(&self, spelling: &str, before: Span, found: &mut Vec<Span>) {
        for (name, entry) in &self.0 {
            if name == spelling && entry.key < before {
                found.push(entry.key);
            }
            entry.node.value.places_of(spelling, before, found);
        }
    }
}

impl Value {
    fn places_of(&self, spelling: &str, before: Span, found: &mut Vec<Span>) {
        match self {
            Value::Table(table) => table.places_of(spelling, before, found),
            Value::Array(nodes) => {
                nodes.iter().for_each(|node| node.value.places_of(spelling, before, found))
            }
            _ => (),
        }
    }
}
