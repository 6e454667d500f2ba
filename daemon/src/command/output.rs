//! How commands print: tables of facts for people, JSON for programs, errors.
//!
//! Invariant: results go to standard output, everything else to standard error, so that a result can be piped.

use std::fmt;
use std::io::{self, Write};

use crate::exit::Exit;

/// Says what went wrong, and passes on how the command ends.
pub fn fail(exit: Exit, text: impl fmt::Display) -> Exit {
    let _ = writeln!(io::stderr(), "error: {text}");
    exit
}

/// Says what the user should know, although the command goes on.
pub fn warn(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "warning: {text}");
}

/// Prints a result. A reader that has gone away, such as `head`, has seen enough.
pub fn print(text: &str) -> Exit {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(Exit::Failed, format!("standard output: {error}"))
        }
        _ => Exit::Ok,
    }
}

/// Prints a result as JSON.
pub fn print_json(value: &serde_json::Value) -> Exit {
    print(&format!("{value:#}\n"))
}

/// A size as people read it: `20 GiB (21474836480 bytes)`.
pub fn size_text(bytes: u64) -> String {
    let exact = format!("{bytes} bytes");
    let short = short_size(bytes);
    if short == exact { exact } else { format!("{short} ({exact})") }
}

/// A size with three digits: `20 GiB`.
pub fn short_size(bytes: u64) -> String {
    let mut rest = bytes as f64;
    let mut unit = "";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if rest < 1024.0 {
            break;
        }
        rest /= 1024.0;
        unit = larger;
    }
    if unit.is_empty() {
        return format!("{bytes} bytes");
    }
    // Three digits, as many after the point as that leaves, none that say nothing.
    let digits = 2usize.saturating_sub((rest >= 10.0) as usize + (rest >= 100.0) as usize);
    let rounded = format!("{rest:.digits$}");
    let short = if digits > 0 { rounded.trim_end_matches('0').trim_end_matches('.') } else { &rounded };
    format!("{short} {unit}")
}

/// Facts under a heading, one a line, aligned.
#[derive(Debug)]
pub struct Table {
    heading: String,
    rows: Vec<(String, String)>,
}

impl Table {
    /// An empty table.
    pub fn new(heading: impl Into<String>) -> Self {
        Table { heading: heading.into(), rows: Vec::new() }
    }

    /// Adds a fact. Control characters of a value (an image's comment can hold any) are shown, not obeyed.
    pub fn row(&mut self, name: impl Into<String>, value: impl fmt::Display) {
        self.rows.push((name.into(), visible(&value.to_string())));
    }
}

fn visible(text: &str) -> String {
    let visible = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(visible).collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        writeln!(f, "{}", self.heading)?;
        self.rows.iter().try_for_each(|(name, value)| writeln!(f, "  {name:width$}  {value}"))
    }
}

/// Things of one kind, one a line, with their facts in columns under a heading. Numbers are aligned to the right.
#[derive(Debug)]
pub struct Columns {
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// No thing yet.
    pub fn new(heading: &[&str]) -> Self {
        Columns { rows: vec![heading.iter().map(|&word| word.to_owned()).collect()] }
    }

    /// Adds a thing: one fact for each column. Control characters are shown, not obeyed.
    pub fn row(&mut self, facts: impl IntoIterator<Item = String>) {
        self.rows.push(facts.into_iter().map(|fact| visible(&fact)).collect());
    }
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let cells = |column: usize| self.rows.iter().map(move |row| row[column].as_str());
        let widths: Vec<usize> = (0..columns)
            .map(|column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0))
            .collect();
        let numbers: Vec<bool> = (0..columns)
            .map(|column| {
                cells(column).skip(1).all(|cell| cell.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
            })
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line +=
                    &if numbers[column] { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_shown_with_three_digits_and_exactly() {
        assert_eq!(size_text(512), "512 bytes");
        assert_eq!(size_text(20 << 30), "20 GiB (21474836480 bytes)");
        assert_eq!(size_text((1 << 20) + (1 << 19)), "1.5 MiB (1572864 bytes)");
        assert_eq!(size_text(123_456_789), "118 MiB (123456789 bytes)");
        assert!(size_text(u64::MAX).starts_with("16 EiB"));
    }

    #[test]
    fn columns_align_words_to_the_left_and_numbers_to_the_right() {
        let mut columns = Columns::new(&["NAME", "SIZE"]);
        columns.row(["a".into(), "1 GiB".into()]);
        columns.row(["longer\n".into(), "512 bytes".into()]);
        assert_eq!(columns.to_string(), "NAME           SIZE\na             1 GiB\nlonger\\n  512 bytes\n");
    }

    #[test]
    fn what_an_image_says_cannot_move_the_cursor() {
        let mut table = Table::new("a.vdi");
        table.row("comment", "\u{1b}[2Jgone");
        assert_eq!(table.to_string(), "a.vdi\n  comment  \\u{1b}[2Jgone\n");
    }
}
