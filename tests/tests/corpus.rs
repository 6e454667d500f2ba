//! Images that other programs made read as the corpus says; malformed ones are refused as it says.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diskchain_tests::corpus::{Row, locate, manifest, unpack};
use diskchain_tests::server::{Refused, Server};
use diskchain_tests::tool::{Tool, sha256};

/// The files of a folder with their digests.
fn digests(dir: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(dir).expect("read a folder").map(|entry| entry.expect("an entry").path());
    let mut digests: Vec<_> = entries.map(|file| (file.clone(), sha256(&file))).collect();
    digests.sort();
    digests
}

/// Serves `top` read-only, copies the disk out, and compares with the MANIFEST's `row`.
#[track_caller]
fn reads_as_the_manifest_says(corpus: &Path, top: &Path, row: &Row) {
    let (name, format, size) = (row.column(0), row.column(2), row.column(3));
    let (content, sparse_digest) = (row.column(4), row.column(5));
    let images = top.parent().expect("an image lies in a folder");
    let before = digests(images);
    let run = tempfile::tempdir().unwrap();
    let server = Server::diskchain(run.path(), &[top], &["--format", format, "--read-only"]);
    let told = Tool::new("nbdinfo").args(["--size", &server.uri("")]).run().text();
    assert_eq!(told.trim(), size, "the size of {name}");
    let copy = run.path().join("copy.img");
    Tool::new("nbdcopy").arg(server.uri("")).arg(&copy).run();
    server.stop();
    if content == "-" {
        // Terabytes of holes: the corpus' own digest skips them.
        let digest = Tool::new("python3").arg(corpus.join("tools/pat.py")).arg("digest").arg(&copy).run();
        assert!(digest.text().contains(sparse_digest), "{name}: {digest}");
    } else {
        assert_eq!(sha256(&copy), content, "the content of {name}");
    }
    assert_eq!(digests(images), before, "{name}: serving read-only changes no file");
}

fn of_our_formats(rows: Vec<Row>) -> Vec<Row> {
    rows.into_iter().filter(|row| ["raw", "vdi"].contains(&row.column(2))).collect()
}

#[test]
fn images_of_other_programs_read_byte_for_byte() {
    let Some(corpus) = locate() else { return };
    let rows = of_our_formats(manifest(&corpus.join("foreign/MANIFEST.tsv")));
    assert!(rows.len() >= 4, "the corpus holds {} VDIs of other programs", rows.len());
    for row in rows {
        let (folder, top) = row.column(1).split_once('/').expect("a file in a folder");
        let images = tempfile::tempdir().unwrap();
        unpack(&corpus.join("foreign/images").join(folder), images.path());
        reads_as_the_manifest_says(&corpus, &images.path().join(top), &row);
    }
}

#[test]
fn images_of_qemu_read_byte_for_byte() {
    let Some(corpus) = locate() else { return };
    let made = tempfile::tempdir().unwrap();
    // The script's sections are one a format, VDI first: the others take a minute and gigabytes.
    let script = fs::read_to_string(corpus.join("qemu-made/make_corpus.sh")).unwrap();
    let (vdi_part, _) = script.split_once("### VMDK").expect("a section after VDI's");
    let bash = Tool::new("bash").args(["-c", vdi_part, "make_corpus.sh"]).arg(made.path());
    bash.env("PAT", corpus.join("tools/pat.py")).seconds(120).run();

    let rows = of_our_formats(manifest(&corpus.join("qemu-made/MANIFEST.tsv")));
    assert!(rows.len() >= 5, "QEMU makes VDIs of {} kinds", rows.len());
    for row in rows {
        reads_as_the_manifest_says(&corpus, &made.path().join("img").join(row.column(1)), &row);
    }
}

/// One malformed image and what it should read as where it reads at all.
struct Malformed {
    row: Row,
    top: PathBuf,
    good: Vec<u8>,
}

/// What `diskchain serve` made of it.
enum Opening {
    Refused(Refused),
    /// How many pieces of the disk gave an error, and how many read as they should.
    Served {
        errors: usize,
        good: usize,
    },
}

impl Malformed {
    /// Opens it, reads all of it, and closes it; what reads must be right.
    #[track_caller]
    fn open(&self, options: &[&str]) -> Opening {
        const PIECE: u64 = 4096;
        let run = tempfile::tempdir().unwrap();
        let started = Instant::now();
        let format = ["--format", self.row.column(2)];
        let server = Server::try_diskchain(run.path(), &[&self.top], &[&format, options].concat());
        let took = started.elapsed();
        assert!(took < Duration::from_secs(2), "{}: opening took {took:?}", self.row.column(0));
        let server = match server {
            Ok(server) => server,
            Err(refused) => return Opening::Refused(refused),
        };
        let mut client = server.connect("");
        let (mut errors, mut good) = (0, 0);
        for offset in (0..client.size()).step_by(PIECE as usize) {
            let len = PIECE.min(client.size() - offset);
            match client.read(offset, len as u32) {
                Err(error) => {
                    assert!(error.to_string().contains("NBD error 5 "), "{error}");
                    errors += 1;
                }
                // Two map entries that name one block: the corpus expects no good content of it.
                Ok(_) if self.row.column(3) == "READONLY" => good += 1,
                Ok(data) => {
                    let expected = &self.good[offset as usize..(offset + len) as usize];
                    assert!(data == expected, "{}: wrong data at {offset}", self.row.column(0));
                    good += 1;
                }
            }
        }
        server.stop();
        Opening::Served { errors, good }
    }

    #[track_caller]
    fn must_refuse(&self, options: &[&str]) {
        match self.open(options) {
            Opening::Refused(refused) => {
                assert!(refused.status.code().is_some(), "a crash is no refusal: {refused}");
                let file = self.top.file_name().expect("a file name").to_string_lossy();
                assert!(refused.said.contains(&*file), "names the file: {refused}");
                assert!(!refused.said.contains("panicked"), "{refused}");
            }
            Opening::Served { .. } => {
                panic!("{} was opened with {options:?}: {}", self.row.column(0), self.row.column(4));
            }
        }
    }

    /// Does what the MANIFEST's verdict asks for.
    #[track_caller]
    fn judge(&self) {
        let name = self.row.column(0);
        match self.row.column(3) {
            "REFUSE" => {
                self.must_refuse(&[]);
                self.must_refuse(&["--read-only"]);
            }
            "READONLY" => {
                self.must_refuse(&[]);
                self.open(&["--read-only"]);
            }
            "READERR" => {
                if let Opening::Served { errors, good } = self.open(&["--read-only"]) {
                    assert!(errors > 0, "{name}: the damaged range gives an error");
                    assert!(good > 0, "{name}: the rest reads right");
                }
            }
            "OPEN" => match self.open(&["--read-only"]) {
                Opening::Refused(refused) => panic!("{name} is odd but valid: {refused}"),
                Opening::Served { errors, .. } => assert_eq!(errors, 0, "{name}"),
            },
            "EITHER" => {
                self.open(&["--read-only"]);
            }
            other => panic!("{name}: a verdict {other} that this test does not know"),
        }
    }
}

#[test]
fn malformed_images_are_refused_as_the_corpus_says() {
    let Some(corpus) = locate() else { return };
    let made = tempfile::tempdir().unwrap();
    Tool::new("python3").arg(corpus.join("hostile/make_hostile.py")).arg(made.path()).arg("--no-qemu").run();
    let reference = fs::read(made.path().join("base/ref.raw")).unwrap();

    let rows = of_our_formats(manifest(&corpus.join("hostile/MANIFEST.tsv")));
    assert!(rows.len() >= 27, "the corpus holds {} malformed images of our formats", rows.len());
    for row in rows {
        let top = made.path().join("img").join(row.column(0)).join(row.column(1));
        // A raw disk is its own content, whatever it looks like.
        let good = if row.column(2) == "raw" { fs::read(&top).unwrap() } else { reference.clone() };
        let before = sha256(&top);
        let case = Malformed { row, top, good };
        case.judge();
        let writable_try = ["EITHER", "OPEN", "READERR"].contains(&case.row.column(3));
        assert!(writable_try || sha256(&case.top) == before, "{} was changed", case.row.column(0));
    }
}
