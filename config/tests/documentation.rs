//! The documentation and the examples say what the code does.
//!
//! In `docs/config.md` every section of the language has a table of its keys under a heading that is its
//! header, every `toml` block is read, and a block marked `toml wrong` is followed by the errors it gives.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use diskchain_config::keys::{Key, SECTIONS, Section};
use diskchain_config::{CODES, Checked, DefaultSockets, Diagnostics, check};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").to_path_buf()
}

fn document() -> String {
    fs::read_to_string(root().join("docs/config.md")).expect("docs/config.md is there")
}

fn read(text: &str) -> Result<Checked, Diagnostics> {
    check(Path::new("diskchain.toml"), text.to_string(), &DefaultSockets::system())
}

/// A fenced block of the document: what its first line says after the fence, and its text.
struct Block {
    info: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let document = document();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block { info: info.to_string(), text: text.join("\n") + "\n" });
        }
    }
    blocks
}

/// The heading that the document has for a section.
fn heading(section: &Section) -> String {
    match section.path {
        "" => "## The top of the file".to_string(),
        path => format!("## `[{path}]`"),
    }
}

fn row(key: &Key) -> String {
    let kind = key.kind.to_string();
    let default = key.default.map_or("–".to_string(), |default| format!("`{default}`"));
    format!("| `{}` | {kind} | {default} | {} |", key.name, key.about)
}

/// The section whose keys are all in this one too, so that the document need not repeat them.
fn base(section: &Section) -> Option<&'static Section> {
    let is_base = |other: &&&'static Section| {
        other.keys.len() < section.keys.len() && other.keys.iter().all(|key| section.key(key.name).is_some())
    };
    SECTIONS.iter().find(is_base).copied().filter(|other| other.keys.len() > 5)
}

/// A section's heading and the table of its keys.
fn chapter(section: &Section) -> String {
    let base = base(section);
    let is_own = |key: &&Key| base.is_none_or(|base| base.key(key.name).is_none());
    let rows: Vec<String> = section.keys.iter().filter(is_own).map(row).collect();
    let also = base.map(|base| format!("All keys of `[{}]`, and:\n\n", base.path)).unwrap_or_default();
    let head = "| key | value | default | meaning |\n|---|---|---|---|";
    format!("{}\n\n{also}{head}\n{}\n", heading(section), rows.join("\n"))
}

#[test]
fn every_section_has_its_table_with_exactly_the_keys_of_the_code() {
    let document = document();
    let chapters: Vec<String> = SECTIONS.iter().map(|section| chapter(section)).collect();
    for chapter in &chapters {
        let heading = chapter.lines().next().unwrap_or_default();
        assert!(document.contains(chapter), "{heading:?} should be followed by its table:\n\n{chapter}");
    }
    let headings = |text: &str| text.lines().filter(|line| line.starts_with("## `[")).count();
    assert_eq!(
        headings(&document),
        headings(&chapters.concat()),
        "a heading is about a section of the language"
    );
    let rows = |text: &str| text.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows(&document), rows(&chapters.concat()) + CODES.len(), "a row is about a key or a code");
}

#[test]
fn every_code_is_in_the_table_of_codes() {
    let document = document();
    for code in CODES {
        let row = format!("| `{}` | {} | {} |", code.id, code.title, code.explanation);
        assert!(document.contains(&row), "docs/config.md should have this row:\n{row}");
    }
}

#[test]
fn every_block_of_toml_in_the_document_is_a_configuration() {
    let blocks = blocks();
    let good = blocks.iter().filter(|block| block.info == "toml");
    let mut seen = 0;
    for block in good {
        let Checked { warnings, .. } =
            read(&block.text).unwrap_or_else(|errors| panic!("{}\n{errors}", block.text));
        assert!(warnings.is_empty(), "{}\n{warnings}", block.text);
        seen += 1;
    }
    assert!(seen >= 5, "the document has examples, and {seen} were found");
}

#[test]
fn every_wrong_block_in_the_document_gives_the_errors_that_are_shown() {
    let blocks = blocks();
    let mut seen = 0;
    for pair in blocks.windows(2).filter(|pair| pair[0].info == "toml wrong") {
        let errors = read(&pair[0].text).expect_err("a wrong example is wrong");
        assert_eq!(pair[1].info, "text", "the errors follow the wrong example");
        assert_eq!(pair[1].text, errors.render(false), "shown for\n{}", pair[0].text);
        seen += 1;
    }
    assert!(seen >= 1, "the document shows what a mistake looks like");
    assert_eq!(seen, blocks.iter().filter(|block| block.info == "toml wrong").count());
}

#[test]
fn every_key_stands_in_an_example_of_the_document() {
    let text: String =
        blocks().into_iter().filter(|block| block.info == "toml").map(|block| block.text).collect();
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    for key in SECTIONS.iter().flat_map(|section| section.keys) {
        assert!(words.contains(key.name), "no example of `{}`", key.name);
    }
}

#[test]
fn every_example_file_is_a_configuration_without_warnings() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("examples")).expect("examples/ is there") {
        let path = entry.expect("examples/ can be listed").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let Checked { plan, warnings } = diskchain_config::load(&path, &DefaultSockets::system())
                .unwrap_or_else(|errors| panic!("{errors}"));
            assert!(warnings.is_empty(), "{warnings}");
            assert!(!plan.disks.is_empty(), "{} serves a disk", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 4, "there are examples, and {seen} were found");
}

#[test]
fn the_default_sockets_are_the_ones_that_the_document_shows() {
    let default = |path: &str, name| {
        let section = SECTIONS.iter().find(|section| section.path == path).unwrap();
        section.key(name).unwrap().default.unwrap()
    };
    let text = format!(
        "[server]\nlisten = {}\ncontrol = {}\n[disk.a]\nfile = \"/a\"\n",
        default("server", "listen"),
        default("server", "control")
    );
    assert_eq!(read(&text).unwrap().plan, read("[disk.a]\nfile = \"/a\"\n").unwrap().plan);
}
