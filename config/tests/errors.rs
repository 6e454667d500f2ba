//! What is wrong with a configuration is found, at its place, under its own code, all of it in one run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use diskchain_config::plan::{Format, Listen};
use diskchain_config::{
    CODES, Checked, DefaultSockets, Diagnostic, Diagnostics, FilesToServe, Plan, Severity, check, explain,
    load,
};

fn read(text: &str) -> Result<Checked, Diagnostics> {
    check(Path::new("/etc/diskchain/diskchain.toml"), text.to_string(), &DefaultSockets::system())
}

/// All findings, as `E0106 3:1`, warnings included.
fn findings(text: &str) -> Vec<String> {
    let found = match read(text) {
        Ok(checked) => checked.warnings,
        Err(diagnostics) => diagnostics,
    };
    let place = |one: Diagnostic| match (one.line, one.column) {
        (Some(line), Some(column)) => format!("{} {line}:{column}", one.code),
        _ => one.code.to_string(),
    };
    found.iter().map(place).collect()
}

/// A text, and the findings that it must have, no more and no fewer.
type Case = (&'static str, &'static [&'static str]);

const TEXT: &[Case] = &[
    ("[disk.a\nfile = \"/a\"", &["E0101 1:8"]),
    ("[", &["E0101 1:2"]),
    ("[disk.a]\nfile = \"/a\"\nfile = \"/b\"\n", &["E0101 3:1"]),
    ("version = 2\n[disk.a]\nfiel = 1", &["E0103 1:11"]),
    ("include = [\"/a/*/b.toml\"]", &["E0104 1:12"]),
    ("[disk.a]\nfile = \"/a\"\nredonly = true\n", &["E0106 3:1"]),
    ("disks = {}\n[disk.a]\nfile = \"/a\"\n", &["E0106 1:1"]),
    ("[disk.a]\nfile = [\"/a\"]\n", &["E0107 2:8"]),
    ("[disk]\nfile = \"/a\"\n", &["E0107 2:1"]),
    ("[[disk]]\nfile = \"/a\"\n", &["E0107 1:1"]),
    ("[server]\nlisten = \"unix:/a\"\n[disk.a]\nfile = \"/a\"\n", &["E0107 2:10"]),
    ("[log]\nslow_io = 0.5\n[disk.a]\nfile = \"/a\"\n", &["E0107 2:11"]),
    ("[server]\nmax_request_size = \"big\"\n[disk.a]\nfile = \"/a\"\n", &["E0108 2:20"]),
    ("[disk.a]\nfile = \"\"\nuuid = \"00000000-0000-0000-0000-000000000000\"\n", &["E0108 2:8", "E0108 3:8"]),
    (
        "[server]\nlisten = [\"udp:a:1\"]\ncontrol = \"a\"\n[disk.a]\nfile = \"/a\"\n",
        &["E0108 2:11", "E0108 3:11"],
    ),
    ("[server]\nmax_connections = 0\n[disk.a]\nfile = \"/a\"\n", &["E0109 2:19"]),
    ("[server]\nmax_connections = -1\n[disk.a]\nfile = \"/a\"\n", &["E0109 2:19"]),
    (
        "[server]\nmax_connections = 99999999999999999999999999999999999999999999\n[disk.a]\nfile = \"/a\"\n",
        &["E0109 2:19"],
    ),
    ("[server]\ndrain_timeout = \"2h\"\n[disk.a]\nfile = \"/a\"\n", &["E0109 2:17"]),
    ("[disk.a]\nfile = \"/a\"\nlogical_block_size = 1024\n", &["E0109 3:22"]),
    ("[disk.a]\nfile = \"/a\"\ncreate = { size = 1000, format = \"raw\" }\n", &["E0109 3:19"]),
    ("[disk.a]\nfile = \"/a\"\ncache = \"fast\"\n", &["E0110 3:9"]),
    ("[disk.\"a/b\"]\nfile = \"/a\"\n", &["E0111 1:7"]),
    ("[server]\ndefault_export = \"\"\n[disk.a]\nfile = \"/a\"\n", &["E0111 2:18"]),
];

const IMAGES: &[Case] = &[
    ("[disk.a]\n", &["E0201 1:7"]),
    ("[disk.a]\nlayers = []\n", &["E0201 2:1"]),
    ("[disk.a]\nlayers = [{ format = \"vdi\" }]\n", &["E0201 2:11"]),
    ("[disk.a]\nfile = \"/a\"\nlayers = [{ file = \"/b\" }]\n", &["E0202 2:8"]),
    ("[disk.a]\nformat = \"vdi\"\nlayers = [{ file = \"/b\" }]\n", &["E0202 2:10"]),
    ("[disk.a]\nlayers = [{ file = \"/b\" }, { file = \"/x/../b\" }]\n", &["E0203 2:37"]),
    ("[disk.a]\nfile = \"/a\"\n[disk.b]\nfile = \"/./a\"\n", &["E0204 4:8"]),
    ("[disk.a]\nfile = \"/a\"\nread_only = true\n[disk.b]\nfile = \"/a\"\n", &["E0204 2:8"]),
    ("[disk.a]\nlayers = [{ file = \"/a\" }, { file = \"/b\" }]\n[disk.b]\nfile = \"/a\"\n", &["E0204 2:20"]),
    ("[server]\nimage_dirs = [\"/srv\"]\n[disk.a]\nfile = \"/srv/../a\"\n", &["E0205 4:8"]),
    ("[server]\nimage_dirs = [\"/srv\"]\n[disk.a]\nfile = \"/srv2/a\"\n", &["E0205 4:8"]),
    ("[server]\nimage_dirs = [\"/srv\"]\n[disk.a]\nfile = \"/srv\"\n", &["E0205 4:8"]),
    ("[disk.a]\nfile = \"/a\"\nparents = \"auto\"\n", &["E0206 3:11"]),
    ("[disk.a]\nparents = \"auto\"\nlayers = [{ file = \"/b\" }]\n", &["E0207 2:11"]),
    ("[disk.a]\nlayers = [{ file = \"/a\" }, { file = \"/b\", format = \"raw\" }]\n", &["E0208 2:52"]),
    ("[disk.a]\nfile = \"/a\"\nformat = \"raw\"\nparents = \"auto\"\n", &["E0208 3:10"]),
    (
        "[disk.a]\nlayers = [\n{ file = \"/a\" },\n{ file = \"/b\", create = { format = \"raw\" } },\n]\n",
        &["E0208 4:36"],
    ),
    ("[disk.a]\nlayers = [\n1,\n{ file = \"/b\", create = { format = \"vdi\" } },\n]\n", &["E0107 3:1"]),
    (
        "[disk.a]\nfile = \"/a\"\ncreate = { size = 512, format = \"vdi\", variant = \"differencing\" }\n",
        &["E0209 3:50"],
    ),
    (
        "[disk.a]\nlayers = [\n{ file = \"/a\" },\n{ file = \"/b\", create = { format = \"vdi\", variant = \"fixed\" } },\n]\n",
        &["E0209 4:53"],
    ),
    ("[disk.a]\nfile = \"/a\"\ncreate = { format = \"vdi\" }\n", &["E0210 3:1"]),
    ("[disk.a]\nfile = \"/a\"\ncreate = { size = 512 }\n", &["E0211 3:1"]),
    (
        "[disk.a]\nfile = \"/a\"\nformat = \"raw\"\ncreate = { size = 512, format = \"vdi\" }\n",
        &["E0211 4:33"],
    ),
    (
        "[disk.a]\nfile = \"/a\"\nread_only = true\ncreate = { size = 512, format = \"vdi\" }\n",
        &["E0212 4:1"],
    ),
    ("[disk.a]\nfile = \"/a\"\nread_only = true\nephemeral = true\n", &["E0213 4:13"]),
    ("[disk.a]\nfile = \"/a\"\ndiscard = \"ignore\"\ndetect_zeroes = \"unmap\"\n", &["E0214 4:17"]),
    (
        "[disk.a]\nfile = \"/a\"\nuuid = \"0192f0c8-6d0a-7c52-9f9b-6a1e6f0a77d1\"\n\
         [disk.b]\nfile = \"/b\"\nuuid = \"0192F0C8-6D0A-7C52-9F9B-6A1E6F0A77D1\"\n",
        &["E0215 6:8"],
    ),
    ("[defaults.disk]\nfile = \"/a\"\n[disk.a]\nfile = \"/a\"\n", &["E0216 2:8"]),
    ("", &["W0001"]),
    ("[disk.a]\nfile = \"/a.IMG\"\n", &["W0002 2:8"]),
    ("[disk.a]\nfile = \"/dev/sdb\"\n", &["W0002 2:8"]),
    ("[disk.a]\nfile = \"/dev/sdb\"\nread_only = true\n", &[]),
];

const EXPORTS_AND_LIMITS: &[Case] = &[
    ("[disk.a]\nfile = \"/a\"\n[disk.b]\nfile = \"/b\"\n[export.a]\ndisk = \"b\"\n", &["E0220 5:9"]),
    ("[disk.abc]\nfile = \"/a\"\n[export.x]\ndisk = \"abd\"\n", &["E0221 4:8"]),
    ("[disk.abc]\nfile = \"/a\"\n[export.x]\n", &["E0221 3:9"]),
    ("[server]\ndefault_export = \"b\"\n[disk.a]\nfile = \"/a\"\n", &["E0222 2:18"]),
    (
        "[disk.a]\nfile = \"/a\"\nread_only = true\n[export.x]\ndisk = \"a\"\nread_only = false\n",
        &["E0223 6:13"],
    ),
    ("[disk.a]\nfile = \"/a\"\nthrottle.group = \"g\"\n", &["E0230 3:18"]),
    ("[disk.a]\nfile = \"/a\"\nthrottle = { bps_total = 1, bps_read = 1 }\n", &["E0231 3:40"]),
    ("[disk.a]\nfile = \"/a\"\nthrottle = { iops_read_max = 1 }\n", &["E0232 3:30"]),
    ("[disk.a]\nfile = \"/a\"\nthrottle = { iops_read = 2, iops_read_max = 1 }\n", &["E0233 3:45"]),
    (
        "[throttle.g]\niops_read = 2\niops_read_max_length = \"2s\"\n[disk.a]\nfile = \"/a\"\n",
        &["E0234 3:24"],
    ),
    (
        "[throttle.g]\nbps_read = 2\nbps_read_max = \"1TB/s\"\nbps_read_max_length = \"1001s\"\n[disk.a]\nfile = \"/a\"\n",
        &["E0235 4:23"],
    ),
    (
        "[disk.a]\nfile = \"/a\"\nthrottle = { bps_read = 1, bps_read_max = \"1PB/s\", bps_read_max_length = \"1.1s\" }\n",
        &["E0235 3:74"],
    ),
    (
        "[disk.a]\nfile = \"/a\"\nthrottle = { bps_read = 1, bps_read_max = \"1PB/s\", bps_read_max_length = \"1s\" }\n",
        &[],
    ),
    ("[throttle.g]\nbps_read = 2\niops_size = 4096\n[disk.a]\nfile = \"/a\"\n", &["E0236 3:13"]),
    ("[throttle.g]\nbps_read_max_length = \"0.5s\"\n[disk.a]\nfile = \"/a\"\n", &["E0109 2:23"]),
    ("[server]\nlisten = [\"tcp:0.0.0.0\"]\n[disk.a]\nfile = \"/a\"\n", &["E0240 2:11"]),
    ("[server]\nlisten = [\"unix:/a\", \"unix:/a\"]\n[disk.a]\nfile = \"/a\"\n", &["E0241 2:22"]),
    ("[server]\nlisten = [\"unix:/a\"]\ncontrol = \"unix:/a\"\n[disk.a]\nfile = \"/a\"\n", &["E0241 3:11"]),
    ("[server]\nmax_buffer_memory = \"16MiB\"\n[disk.a]\nfile = \"/a\"\n", &["E0242 2:21"]),
    ("[disk.a]\nfile = \"/a\"\n[export.a]\nmax_connections = 300\n", &["W0003 4:19"]),
    ("[server]\ninsecure = true\nlisten = [\"tcp:[::]\"]\n[disk.a]\nfile = \"/a\"\n", &["W0004 3:11"]),
];

#[test]
fn every_mistake_is_found_at_its_place_and_nothing_else_is() {
    let cases = TEXT.iter().chain(IMAGES).chain(EXPORTS_AND_LIMITS);
    let wrong: Vec<_> = cases
        .map(|(text, expected)| (text, expected, findings(text)))
        .filter(|(_, expected, found)| found != *expected)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_code_has_a_test_and_an_explanation() {
    let shown = TEXT.iter().chain(IMAGES).chain(EXPORTS_AND_LIMITS).flat_map(|(_, expected)| *expected);
    let mut tested: BTreeSet<&str> = shown.map(|finding| finding.split(' ').next().unwrap()).collect();
    // These need several files or a command line, and have tests of their own below.
    tested.extend(["E0102", "E0105", "E0250"]);
    let known: BTreeSet<&str> = CODES.iter().map(|code| code.id).collect();
    assert_eq!(tested, known);
    assert!(known.iter().all(|code| explain(code).is_some()));
}

#[test]
fn all_errors_of_a_file_come_in_one_run_in_the_order_of_the_text() {
    let text = "[server]\nlisten = [\"tcp:1.2.3.4\"]\nmax_conections = 1\n\
                [disk.a]\nfile = \"/a\"\ncache = \"x\"\n[disk.b]\nfile = \"/a\"\n[export.c]\ndisk = \"d\"\n";
    assert_eq!(findings(text), ["E0240 2:11", "E0106 3:1", "E0110 6:9", "E0204 8:8", "E0221 10:8"]);
}

#[test]
fn a_broken_value_is_reported_once_and_breaks_nothing_else() {
    for value in
        ["cache = 1", "read_only = \"no\"", "layers = 1", "throttle = 1", "create = 1", "parents = 1"]
    {
        let text = format!("[disk.a]\n{value}\nfile = \"/a\"\n[export.x]\ndisk = \"a\"\n");
        let found = findings(&text);
        // `layers` beside `file` is a second mistake.
        let expected: &[&str] = if value.starts_with("layers") { &["E0107", "E0202"] } else { &["E0107"] };
        let codes: Vec<&str> = found.iter().map(|finding| &finding[..5]).collect();
        assert_eq!(codes, expected, "{text}");
    }
}

#[test]
fn a_mistake_in_the_defaults_is_reported_once_for_all_disks() {
    let text = "[defaults.disk]\nthrottle = { iops_read_max = 1, iops_size = 1 }\n\
                [disk.a]\nfile = \"/a\"\n[disk.b]\nfile = \"/b\"\n";
    assert_eq!(findings(text), ["E0232 2:30", "E0236 2:45"]);
}

#[test]
fn what_only_seems_to_be_missing_is_not_reported_beside_a_syntax_error() {
    // The disk that the export names is on the line that cannot be read.
    let text = "[disk.a\nfile = \"/a\"\n[export.x]\ndisk = \"b\"\ncolour = 1\n";
    let found = findings(text);
    assert!(found[0].starts_with("E0101"), "{found:?}");
    assert!(found.iter().any(|finding| finding == "E0106 5:1"), "other mistakes are: {found:?}");
    assert!(!found.iter().any(|finding| finding.starts_with("E02")), "{found:?}");
}

#[test]
fn a_duplicate_key_shows_both_places() {
    let shown = read("[disk.a]\nfile = \"/a\"\nfile = \"/b\"\n").unwrap_err().render(false);
    assert!(
        shown.contains("2 | file = \"/a\"\n  | ---- first set here\n3 | file = \"/b\"\n  | ^^^^"),
        "{shown}"
    );
}

#[test]
fn the_machine_readable_list_says_the_same_as_the_text() {
    let diagnostics = read("[disk.a]\nfile = \"/a\"\nredonly = true\n").unwrap_err();
    let found: Vec<Diagnostic> = diagnostics.iter().collect();
    let expected = Diagnostic {
        severity: Severity::Error,
        code: "E0106",
        message: "unknown key `redonly` in [disk.a]".to_string(),
        file: Some("/etc/diskchain/diskchain.toml".into()),
        line: Some(3),
        column: Some(1),
        help: vec!["did you mean `read_only`?".to_string()],
    };
    assert_eq!(found, [expected]);
    assert!(diagnostics.render(false).contains(" --> /etc/diskchain/diskchain.toml:3:1\n"));
}

#[test]
fn color_is_only_where_it_is_asked_for() {
    let diagnostics = read("[disk.a]\nfile = \"/\u{1b}[31m\u{e9}\"\n").unwrap_err();
    assert!(!diagnostics.render(false).contains('\u{1b}'));
    assert!(diagnostics.render(true).contains("\u{1b}["));
}

/// A folder with files, and the errors of its `main.toml`.
fn errors_of(files: &[(&str, &str)]) -> (tempfile::TempDir, Diagnostics) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let errors = load(&folder.path().join("main.toml"), &DefaultSockets::system()).unwrap_err();
    (folder, errors)
}

#[test]
fn a_key_set_in_two_files_shows_both_files() {
    let (folder, errors) = errors_of(&[
        ("main.toml", "include = [\"conf.d/*.toml\"]\n[disk.a]\nfile = \"/a\"\n"),
        ("conf.d/1.toml", "[disk.a]\nfile = \"/b\"\nread_only = true\n"),
    ]);
    let found: Vec<Diagnostic> = errors.iter().collect();
    assert_eq!((found.len(), found[0].code, found[0].line), (1, "E0105", Some(2)));
    assert_eq!(found[0].file, Some(folder.path().join("conf.d/1.toml")));
    let shown = errors.render(false);
    assert!(shown.contains("main.toml:3:1\n"), "{shown}");
}

#[test]
fn errors_of_all_files_come_in_one_run() {
    let (_folder, errors) = errors_of(&[
        ("main.toml", "include = [\"conf.d/*.toml\"]\n[log]\nlevle = \"info\"\n"),
        ("conf.d/1.toml", "[disk.a]\nfile = \"/a\n"),
        ("conf.d/2.toml", "include = [\"x\"]\n[disk.b]\nfile = 1\n"),
        ("conf.d/.hidden.toml", "hidden = 1"),
        ("conf.d/3.toml~", "backup = 1"),
    ]);
    let found: Vec<&str> = errors.iter().map(|one| one.code).collect();
    assert_eq!(found, ["E0106", "E0101", "E0104", "E0107"]);
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_where_it_is_included() {
    let (_folder, errors) = errors_of(&[("main.toml", "include = [\"missing.toml\"]\n[export.a]\n")]);
    let found: Vec<_> = errors.iter().map(|one| (one.code, one.line, one.column)).collect();
    // The disk of the export may be in the missing file.
    assert_eq!(found, [("E0102", Some(1), Some(12))]);

    let missing = load(Path::new("/nonexistent/a.toml"), &DefaultSockets::system()).unwrap_err();
    assert_eq!(missing.iter().map(|one| one.code).collect::<Vec<_>>(), ["E0102"]);
    assert!(missing.render(false).contains("--> /nonexistent/a.toml"), "{}", missing.render(false));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("main.toml");
    std::fs::write(&path, b"[log]\n# caf\xe9\n").unwrap();
    let binary = load(&path, &DefaultSockets::system()).unwrap_err();
    assert!(binary.render(false).contains("not UTF-8"), "{}", binary.render(false));
}

#[test]
fn files_of_a_command_line_that_cannot_be_told_apart_are_refused() {
    let files: Vec<PathBuf> = ["a/disk.vdi", "b/disk.vdi"].map(PathBuf::from).into();
    let listen = [Listen::Tcp("0.0.0.0".into(), 1)];
    let serve = FilesToServe {
        files: &files,
        format: Some(Format::Vdi),
        listen: &listen,
        insecure: false,
        read_only: false,
        folder: Path::new("/srv"),
    };
    let errors = Plan::from_files(&serve, &DefaultSockets::system()).unwrap_err();
    assert_eq!(errors.iter().map(|one| one.code).collect::<Vec<_>>(), ["E0240", "E0250"]);
    assert!(errors.render(false).contains("`/srv/a/disk.vdi` and `/srv/b/disk.vdi`"));
}
