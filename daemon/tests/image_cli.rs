//! `diskchain image` and `diskchain formats` from outside: what they print, how they end, and that QEMU agrees.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use disk_core::storage::{self, OpenOptions};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Where the block map starts in a VDI that `diskchain` made.
const MAP: u64 = MIB;

fn diskchain(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_diskchain")).current_dir(dir).args(args).output().unwrap()
}

/// Exit code, standard output and standard error.
fn outcome(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = diskchain(dir, args);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Standard output of a command that has to succeed.
fn text(dir: &Path, args: &[&str]) -> String {
    let (code, stdout, stderr) = outcome(dir, args);
    assert_eq!(code, 0, "{args:?}: {stderr}");
    stdout
}

fn json(dir: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&text(dir, args)).unwrap()
}

fn qemu_img(dir: &Path, args: &[&str]) -> Output {
    let output = Command::new("qemu-img").current_dir(dir).args(args).output();
    output.expect("qemu-img is needed: scripts/install-test-deps.sh installs it")
}

fn qemu_info(dir: &Path, file: &str, format: &str) -> Value {
    let output = qemu_img(dir, &["info", "--output=json", "-f", format, file]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn project_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn qemu_reads_every_image_that_we_make_and_says_the_same_of_it() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    for (file, format, options) in [
        ("dynamic.vdi", "vdi", &["--size", "20GiB"][..]),
        ("fixed.vdi", "vdi", &["--size", "5MiB", "--variant", "fixed"]),
        ("odd.vdi", "vdi", &["--size", "7341568", "--comment", "seven and a bit"]),
        ("disk.raw", "raw", &["--size", "3MiB"]),
        ("fixed.img", "raw", &["--size", "3MiB", "--variant", "fixed"]),
    ] {
        text(dir, &[&["image", "create", file], options].concat());
        let ours = json(dir, &["image", "info", file, "--format", format, "--json"]);
        let theirs = qemu_info(dir, file, format);
        let keys = theirs.as_object().unwrap().iter().filter(|(key, _)| *key != "children");
        for (key, value) in keys {
            assert_eq!(&ours[key], value, "{key} of {file}");
        }
        assert!(ours["virtual-size"].as_u64().is_some_and(|size| size >= 3 * MIB), "{ours}");
        if format == "vdi" {
            let checked = qemu_img(dir, &["check", "-f", "vdi", file]);
            assert!(checked.status.success(), "{file}: {}", String::from_utf8_lossy(&checked.stdout));
        }
    }
}

#[test]
fn images_of_qemu_are_described_as_qemu_describes_them() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    assert!(qemu_img(dir, &["create", "-q", "-f", "vdi", "q.vdi", "7169K"]).status.success());
    fs::write(dir.join("odd.raw"), [1; 1000]).unwrap();
    for (file, format, size) in [("q.vdi", "vdi", 7169 << 10), ("odd.raw", "raw", 1024)] {
        let ours = json(dir, &["image", "info", file, "--format", format, "--json"]);
        assert_eq!(ours["virtual-size"], qemu_info(dir, file, format)["virtual-size"], "{file}");
        assert_eq!(ours["virtual-size"], size, "{file}");
    }
}

#[test]
fn what_was_asked_for_at_creation_is_read_back() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let uuid = "0192f0c8-6d0a-7c52-9f9b-6a1e6f0a77d1";
    let comment = "Zürich – 磁盘";
    let options = ["--size", "64MiB", "--block-size", "4MiB", "--uuid", uuid, "--comment", comment];
    let made = json(dir, &[&["image", "create", "a.vdi", "--json"][..], &options].concat());
    assert_eq!((&made["uuid"], &made["cluster-size"]), (&uuid.into(), &(4 * MIB).into()));
    let info = json(dir, &["image", "info", "a.vdi", "--json"]);
    assert_eq!((&info["uuid"], &info["cluster-size"]), (&uuid.into(), &(4 * MIB).into()));
    assert_eq!(info["format-specific"]["data"]["comment"], comment);
    assert_eq!(info["format-specific"]["data"]["geometry"], Value::Null, "not set, which is not 0/0/0");
    let child = json(dir, &["image", "create", "child.vdi", "--parent", "a.vdi", "--json"]);
    assert_eq!((&child["parent-uuid"], &child["variant"]), (&uuid.into(), &"differencing".into()));
    assert_eq!(child["cluster-size"], 4 * MIB, "the block size of its parent");
    assert_eq!(text(dir, &["image", "create", "quiet.raw", "--size", "1MiB", "--quiet"]), "");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_what_would_be_right() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    text(dir, &["image", "create", "base.vdi", "--size", "8MiB"]);
    for (args, words) in [
        (&["a.vdi"][..], "--size"),
        (&["a.vdi", "--size", "12parsecs"], "`parsecs`"),
        (&["a.vdi", "--size", "1000"], "multiple of 512"),
        (&["a.xyz", "--size", "1MiB"], "raw and vdi"),
        (&["a.vdi", "--size", "1MiB", "--format", "vmdk"], "raw and vdi"),
        (&["a.vdi", "--variant", "fixed", "--parent", "base.vdi"], "fixed and a parent exclude each other"),
        (&["a.raw", "--size", "1MiB", "--block-size", "1MiB"], "raw images have no blocks"),
    ] {
        let (code, stdout, stderr) = outcome(dir, &[&["image", "create"], args].concat());
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(words), "`{words}` is missing in: {stderr}");
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "no file was made");
}

#[test]
fn exit_codes_tell_missing_existing_and_unknown_apart() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    fs::write(dir.join("there.vdi"), "precious").unwrap();
    assert_eq!(outcome(dir, &["image", "info", "missing.vdi"]).0, 4);
    assert_eq!(outcome(dir, &["image", "check", "missing.vdi"]).0, 4);
    let (code, _, stderr) = outcome(dir, &["image", "create", "there.vdi", "--size", "1MiB"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("exists already"), "{stderr}");
    assert_eq!(fs::read(dir.join("there.vdi")).unwrap(), b"precious");
    assert_eq!(outcome(dir, &["image", "info", "there.vdi", "--format", "vdi"]).0, 1, "no VDI");
    assert_eq!(outcome(dir, &["formats", "vmdk"]).0, 4);
}

#[test]
fn info_shows_an_image_whose_parent_is_missing_with_a_warning() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let base = json(dir, &["image", "create", "base.vdi", "--size", "8MiB", "--json"]);
    text(dir, &["image", "create", "child.vdi", "--parent", "base.vdi"]);
    fs::remove_file(dir.join("base.vdi")).unwrap();
    let uuid = base["uuid"].as_str().unwrap();
    for args in [&["image", "info", "child.vdi"][..], &["image", "info", "child.vdi", "--chain"]] {
        let (code, stdout, stderr) = outcome(dir, args);
        assert_eq!(code, 0, "{stderr}");
        let line =
            stdout.lines().find(|line| line.contains("parent missing")).expect("a line for the parent");
        assert!(line.contains(uuid), "{line}");
        assert!(stderr.starts_with("warning: ") && stderr.contains(uuid), "{stderr}");
    }
    assert_eq!(outcome(dir, &["image", "check", "child.vdi", "--chain"]).0, 4);
}

#[test]
fn a_parent_that_was_changed_is_shown_by_info_and_is_corruption_to_check() {
    const MODIFICATION_UUID: u64 = 0x198;
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    text(dir, &["image", "create", "base.vdi", "--size", "8MiB"]);
    text(dir, &["image", "create", "child.vdi", "--parent", "base.vdi"]);
    assert_eq!(outcome(dir, &["image", "check", "child.vdi", "--chain"]).0, 0);
    let base = fs::File::options().write(true).open(dir.join("base.vdi")).unwrap();
    base.write_all_at(&[7; 16], MODIFICATION_UUID).unwrap();
    let (code, stdout, stderr) = outcome(dir, &["image", "info", "child.vdi", "--chain"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("base.vdi  (does not fit)"), "{stdout}");
    assert!(stderr.contains("its parent was changed after it was made"), "{stderr}");
    let (code, stdout, _) = outcome(dir, &["image", "check", "child.vdi", "--chain"]);
    assert_eq!(code, 7, "{stdout}");
    assert!(stdout.contains("error parent-mismatch"), "{stdout}");
}

#[tokio::test]
async fn info_works_on_an_image_in_use_and_check_is_refused() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    text(dir, &["image", "create", "a.vdi", "--size", "8MiB"]);
    let writer = storage::open(dir.join("a.vdi"), &OpenOptions::read_write()).await.unwrap();
    assert!(text(dir, &["image", "info", "a.vdi"]).contains("vdi dynamic"));
    for args in [&["image", "check", "a.vdi"][..], &["image", "check", "a.vdi", "--repair"]] {
        let (code, _, stderr) = outcome(dir, args);
        assert_eq!(code, 5, "{stderr}");
        assert!(stderr.contains("a.vdi"), "{stderr}");
    }
    drop(writer);
    let reader = storage::open(dir.join("a.vdi"), &OpenOptions::read_only()).await.unwrap();
    assert_eq!(outcome(dir, &["image", "check", "a.vdi"]).0, 0, "readers share");
    assert_eq!(outcome(dir, &["image", "check", "a.vdi", "--repair"]).0, 5);
    drop(reader);
}

#[test]
fn check_finds_a_map_entry_past_the_end_of_the_file_and_ends_with_7() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    text(dir, &["image", "create", "a.vdi", "--size", "8MiB"]);
    let image = fs::File::options().write(true).open(dir.join("a.vdi")).unwrap();
    image.write_all_at(&1000u32.to_le_bytes(), MAP + 4 * 3).unwrap();
    let (code, stdout, stderr) = outcome(dir, &["image", "check", "a.vdi"]);
    assert_eq!(code, 7, "{stdout}{stderr}");
    assert!(stdout.contains("1 error") && stdout.contains("block 3"), "{stdout}");
    assert!(stdout.ends_with("Next:     diskchain image check a.vdi --repair\n"), "{stdout}");
    let (code, stdout, _) = outcome(dir, &["image", "check", "a.vdi", "--json"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &report["corruptions"], &report["total-clusters"]), (7, &1.into(), &8.into()));
    let theirs = qemu_img(dir, &["check", "-f", "vdi", "a.vdi"]);
    assert_eq!(theirs.status.code(), Some(2), "QEMU calls it corrupt, too");
    let (code, stdout, _) = outcome(dir, &["image", "check", "a.vdi", "--quiet"]);
    assert_eq!((code, stdout.as_str()), (7, ""));
    assert_eq!(outcome(dir, &["image", "check", "a.vdi", "--repair"]).0, 8);
    assert_eq!(outcome(dir, &["image", "check", "a.vdi"]).0, 0);
    assert!(qemu_img(dir, &["check", "-f", "vdi", "a.vdi"]).status.success());
}

#[test]
fn an_image_with_a_damaged_signature_does_not_pass_for_a_clean_raw_disk() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    text(dir, &["image", "create", "a.vdi", "--size", "8MiB"]);
    let image = fs::File::options().write(true).open(dir.join("a.vdi")).unwrap();
    image.write_all_at(&[0; 4], 0x40).unwrap();
    let (code, stdout, stderr) = outcome(dir, &["image", "info", "a.vdi"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("raw") && stderr.contains("no known format"), "{stdout}{stderr}");
    assert_eq!(outcome(dir, &["image", "check", "a.vdi"]).0, 1);
    assert_eq!(outcome(dir, &["image", "check", "a.vdi", "--format", "vdi"]).0, 7);
    assert_eq!(outcome(dir, &["image", "check", "a.vdi", "--format", "raw"]).0, 0);
}

#[test]
fn formats_lists_every_format_and_shows_one_by_its_name_in_any_case() {
    let dir = TempDir::new().unwrap();
    let all = json(dir.path(), &["formats", "--json"]);
    let mut names: Vec<_> =
        all.as_array().unwrap().iter().map(|format| format["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["raw", "vdi"]);
    let vdi = text(dir.path(), &["formats", "VDI"]);
    assert!(vdi.starts_with("vdi\n") && vdi.contains("differencing") && !vdi.contains("raw"), "{vdi}");
}

#[test]
fn a_chain_that_virtualbox_made_is_shown_whole() {
    let Some(corpus) = corpus() else { return };
    let dir = TempDir::new().unwrap();
    let packed = corpus.join("foreign/images/vbox-vdi-diff3");
    for name in ["base", "d1", "d2", "d3"] {
        let mut zstd = Command::new("zstd");
        zstd.args(["-dq", "-o"]).arg(dir.path().join(format!("{name}.vdi")));
        let status = zstd.arg(packed.join(format!("{name}.vdi.zst"))).status();
        assert!(status.expect("zstd is needed: scripts/install-test-deps.sh installs it").success());
    }
    let chain = json(dir.path(), &["image", "info", "d3.vdi", "--chain", "--json"]);
    let chain = chain.as_array().unwrap();
    assert_eq!(chain.len(), 4);
    for (image, parent) in chain.iter().zip(&chain[1..]) {
        assert_eq!(image["parent-uuid"], parent["uuid"]);
        assert_eq!(image["full-backing-filename"], parent["filename"]);
        assert_eq!(image["parent-mismatch"], Value::Null);
    }
    assert!(chain.iter().all(|image| image["virtual-size"] == 16 * MIB));
    assert_eq!(chain[0]["uuid"], "63854471-b3d9-43a1-8ef2-442264269a55");
    assert_eq!(chain[3]["format-specific"]["data"]["comment"], "Converted image from base.raw");
    assert_eq!(outcome(dir.path(), &["image", "check", "d3.vdi", "--chain"]).0, 0);
}

/// The corpus of foreign images; its absence is said aloud, and is a failure where CI=true.
fn corpus() -> Option<PathBuf> {
    let root = match std::env::var_os("DISKCHAIN_CORPUS") {
        Some(path) => PathBuf::from(path),
        None => project_root().join("../shared/corpus"),
    };
    if root.is_dir() {
        return Some(root);
    }
    let notice = format!("NOTICE: no corpus at {}: this test proved nothing", root.display());
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{notice}");
    eprintln!("{notice}");
    None
}

/// Runs the `console` blocks of docs/image.md one after the other in one directory: lines with `$` are commands, the
/// lines after each are what it prints, and `…` stands for anything.
#[test]
fn the_examples_of_the_manual_print_what_it_says() {
    let page = fs::read_to_string(project_root().join("docs/image.md")).unwrap();
    let dir = TempDir::new().unwrap();
    let binaries = Path::new(env!("CARGO_BIN_EXE_diskchain")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let mut examples = 0;
    for block in page.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        for example in block.split("$ ").skip(1) {
            let (command, expected) = example.split_once('\n').unwrap();
            let mut shell = Command::new("sh");
            shell.current_dir(dir.path()).env("PATH", &path).args(["-c", &format!("({command}) 2>&1")]);
            let printed = String::from_utf8(shell.output().unwrap().stdout).unwrap();
            assert!(matches(&printed, expected), "$ {command}\n{printed}--- the manual says:\n{expected}");
            examples += 1;
        }
    }
    assert!(examples >= 8, "only {examples} examples were found");
}

/// Whether `text` is `pattern` with something, or nothing, in place of every `…`.
fn matches(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty() || pattern.ends_with("…\n")
}
