//! What is wrong with a configuration, where, and how it is shown.
//!
//! Invariant: findings are kept in the order of the text, whatever order the checks ran in, and nothing
//! that is only a consequence of text that could not be read is reported.

use std::fmt;
use std::path::PathBuf;

use annotate_snippets::renderer::DEFAULT_TERM_WIDTH;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

use crate::codes::Code;
use crate::source::{Sources, Span};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration has a meaning, but perhaps not the one that was wanted.
    Warning,
    /// The configuration has no meaning.
    Error,
}

/// One finding, for programs; [`Diagnostics::render`] shows the same to people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Whether there is a plan in spite of it.
    pub severity: Severity,
    /// One of [`CODES`](crate::CODES).
    pub code: &'static str,
    /// What is wrong, in one line.
    pub message: String,
    /// The file, as it was named; `None` when it is about no file.
    pub file: Option<PathBuf>,
    /// The line, from 1; `None` when it is about no line.
    pub line: Option<usize>,
    /// The column in characters, from 1; `None` when it is about no line.
    pub column: Option<usize>,
    /// What could be written instead, one advice each.
    pub help: Vec<String>,
}

/// Everything that was found in one configuration, in the order of its text.
#[derive(Clone, Default)]
pub struct Diagnostics {
    sources: Sources,
    findings: Vec<Finding>,
}

impl Diagnostics {
    /// Nothing was found.
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// How many findings are errors.
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity() == Severity::Error).count()
    }

    /// How many findings are warnings.
    pub fn warnings(&self) -> usize {
        self.findings.len() - self.errors()
    }

    /// The findings one by one, for programs.
    pub fn iter(&self) -> impl Iterator<Item = Diagnostic> {
        self.findings.iter().map(|finding| {
            let place = finding.labels.first().map(|label| self.sources.line_and_column(label.span));
            Diagnostic {
                severity: finding.severity(),
                code: finding.code.id,
                message: finding.message.clone(),
                file: finding.file().map(|number| self.sources.file(number).name.clone()),
                line: place.map(|(line, _)| line),
                column: place.map(|(_, column)| column),
                help: finding.help.clone(),
            }
        })
    }

    /// All findings as a compiler shows them: message, file, line and column, the line itself, advice.
    /// Without `color` the text is plain; a summary follows when there are errors.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.term_width(DEFAULT_TERM_WIDTH);
        let mut text = String::new();
        for finding in &self.findings {
            text += &renderer.render(&[finding.group(&self.sources)]);
            text += "\n\n";
        }
        if let Some(first) = self.findings.iter().find(|finding| finding.severity() == Severity::Error) {
            let counts = match (count(self.errors(), "error"), self.warnings()) {
                (errors, 0) => errors,
                (errors, warnings) => format!("{errors} and {}", count(warnings, "warning")),
            };
            let title = format!("the configuration has {counts}");
            let advice = format!("`diskchain explain {}` tells more about an error", first.code.id);
            let summary = Level::ERROR.primary_title(title).element(Level::HELP.message(advice));
            text += &renderer.render(&[summary]);
            text.push('\n');
        }
        text
    }

    pub(crate) fn new(sources: Sources, mut findings: Vec<Finding>) -> Self {
        // Stable, so findings about one place stay in the order of the checks.
        findings.sort_by_key(|finding| (finding.file(), finding.labels.first().map(|label| label.span)));
        // A mistake in the defaults is found again for every disk.
        findings.dedup();
        Diagnostics { sources, findings }
    }
}

impl fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}

/// `1 error`, `2 errors`.
fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A finding while the checks run. The first label is where it is reported.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    pub code: &'static Code,
    message: String,
    labels: Vec<Label>,
    help: Vec<String>,
    /// The file that it is about when no label says so.
    unplaced: Option<usize>,
}

#[derive(Clone, Debug, PartialEq)]
struct Label {
    span: Span,
    text: String,
}

impl Finding {
    pub fn new(code: &'static Code, message: impl Into<String>) -> Self {
        Finding { code, message: message.into(), labels: Vec::new(), help: Vec::new(), unplaced: None }
    }

    /// Points at a place; the first one called is where the finding is reported.
    pub fn at(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into() });
        self
    }

    pub fn help(mut self, advice: impl Into<String>) -> Self {
        self.help.push(advice.into());
        self
    }

    /// It is about a file as a whole.
    pub fn in_file(mut self, number: usize) -> Self {
        self.unplaced = Some(number);
        self
    }

    /// Whether it is reported inside a range of text.
    pub fn is_within(&self, range: Span) -> bool {
        let inside =
            |at: &Label| at.span.file == range.file && (range.start..=range.end).contains(&at.span.start);
        self.labels.first().is_some_and(inside)
    }

    pub fn severity(&self) -> Severity {
        if self.code.id.starts_with('W') { Severity::Warning } else { Severity::Error }
    }

    fn file(&self) -> Option<usize> {
        self.labels.first().map(|label| label.span.file).or(self.unplaced)
    }

    fn group<'a>(&'a self, sources: &'a Sources) -> Group<'a> {
        let level = match self.severity() {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(&*self.message).id(self.code.id));
        if let (true, Some(number)) = (self.labels.is_empty(), self.unplaced) {
            group = group.element(Origin::path(sources.file(number).name.display().to_string()));
        }
        let mut files: Vec<usize> = Vec::new();
        for label in &self.labels {
            if !files.contains(&label.span.file) {
                files.push(label.span.file);
                group = group.element(self.snippet(sources, label.span.file));
            }
        }
        group.elements(self.help.iter().map(|advice| Level::HELP.message(&**advice)))
    }

    /// The labels of one file over its text, of which the renderer is given no more than they need.
    fn snippet<'a>(
        &'a self,
        sources: &'a Sources,
        number: usize,
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let source = sources.file(number);
        let here = || self.labels.iter().enumerate().filter(move |(_, label)| label.span.file == number);
        let first = here().map(|(_, label)| label.span.start).min().unwrap_or_default();
        let last = here().map(|(_, label)| label.span.end).max().unwrap_or_default();
        let (line, range) = source.lines(first, last);
        let offset = range.start;
        let annotations = here().map(|(i, label)| {
            let kind = if i == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
            let text = (!label.text.is_empty()).then_some(&*label.text);
            kind.span(label.span.start - offset..label.span.end - offset).label(text)
        });
        Snippet::source(&source.text[range])
            .line_start(line)
            .path(source.name.display().to_string())
            .annotations(annotations)
    }
}
