//! What holds for every text.

use std::path::Path;

use diskchain_config::{Checked, DefaultSockets, Diagnostics, Plan, check};
use proptest::prelude::*;

fn read(text: String) -> Result<Checked, Diagnostics> {
    check(Path::new("/etc/diskchain/diskchain.toml"), text, &DefaultSockets::system())
}

/// Pieces that, put together, often are nearly a configuration.
const PIECES: &[&str] = &[
    "[server]\n",
    "[disk.a]\n",
    "[disk.b]\n",
    "[disk.b.throttle]\n",
    "[export.c]\n",
    "[throttle.g]\n",
    "[defaults.disk]\n",
    "[[disk]]\n",
    "file = ",
    "layers = ",
    "format = ",
    "create = ",
    "parents = ",
    "group = ",
    "disk = ",
    "iops_total = ",
    "iops_total_max = ",
    "bps_total_max_length = ",
    "listen = ",
    "control = ",
    "max_request_size = ",
    "image_dirs = ",
    "version = ",
    "include = ",
    "read_only = ",
    "uuid = ",
    "\"/a\"\n",
    "\"/b\"\n",
    "\"vdi\"\n",
    "\"auto\"\n",
    "\"g\"\n",
    "\"a\"\n",
    "\"10GiB\"\n",
    "\"1s\"\n",
    "\"tcp:[::1]:1\"\n",
    "\"unix:x\"\n",
    "true\n",
    "1\n",
    "-1\n",
    "99999999999999999999\n",
    "0x10\n",
    "1.5\n",
    "1979-05-27\n",
    "[\"/a\", \"/b\"]\n",
    "[{ file = \"/a\" }, { file = \"/b\" }]\n",
    "{ size = 512 }\n",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "\"\"\"",
    "=",
    ".",
    ",",
    "#",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "\u{feff}",
    "\u{0}",
    "\u{e9}",
    "\u{1f600}",
    "\u{301}",
    "\\u",
    "x-y = ",
];

fn nearly_a_configuration() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(PIECES), 0..40).prop_map(|pieces| pieces.concat())
}

/// The lines of one configuration that may stand in any order: keys within their table, and the tables.
const TABLES: &[(&str, &[&str])] = &[
    (
        "[server]",
        &[
            "max_connections = 7",
            "listen = [\"unix:/x\"]",
            "image_dirs = [\"/srv\"]",
            "default_export = \"e\"",
        ],
    ),
    ("[log]", &["level = \"warn\"", "slow_io = \"1s\""]),
    ("[defaults.disk]", &["cache = \"none\"", "honor_zeroes = true"]),
    ("[throttle.g]", &["iops_total = 5", "iops_total_max = 9", "iops_total_max_length = \"3s\""]),
    ("[disk.a]", &["file = \"/srv/a\"", "parents = \"auto\"", "cache = \"unsafe\""]),
    ("[disk.a.throttle]", &["group = \"g\"", "bps_read = \"1MB/s\""]),
    ("[disk.b]", &["layers = [{ format = \"vdi\", file = \"/srv/b\" }]", "read_only = true"]),
    ("[export.e]", &["disk = \"b\"", "multi_conn = false"]),
];

fn shuffled() -> impl Strategy<Value = String> {
    let tables: Vec<_> = TABLES
        .iter()
        .map(|(header, keys)| {
            Just(keys.to_vec())
                .prop_shuffle()
                .prop_map(move |keys| format!("{header}\n{}\n", keys.join("\n")))
        })
        .collect();
    tables.prop_shuffle().prop_map(|tables| tables.concat())
}

fn in_order() -> Plan {
    let text: String =
        TABLES.iter().map(|(header, keys)| format!("{header}\n{}\n", keys.join("\n"))).collect();
    read(text).unwrap_or_else(|errors| panic!("{errors}")).plan
}

/// Reads the text, shows what is wrong with it, and holds the promises of a plan against what comes out.
fn keeps_its_promises(text: String) -> Result<(), TestCaseError> {
    match read(text) {
        Err(errors) => {
            prop_assert!(errors.errors() > 0);
            prop_assert!(!errors.render(false).is_empty() && !errors.render(true).is_empty());
            prop_assert!(errors.iter().count() == errors.errors() + errors.warnings());
        }
        Ok(Checked { plan, warnings }) => {
            prop_assert_eq!(warnings.errors(), 0);
            warnings.render(false);
            for disk in &plan.disks {
                prop_assert!(!disk.layers.is_empty());
                prop_assert!(disk.layers.iter().all(|layer| layer.file.is_absolute()));
                prop_assert!(disk.group.as_ref().is_none_or(|group| plan.groups.contains_key(group)));
                prop_assert!(plan.export(&disk.name).is_some());
            }
            prop_assert!(plan.exports.iter().all(|export| plan.disk(&export.disk).is_some()));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_text_is_read_or_refused_without_a_panic(text in "\\PC{0,200}") {
        keeps_its_promises(text)?;
    }

    #[test]
    fn text_that_is_nearly_a_configuration_is_read_or_refused_without_a_panic(text in nearly_a_configuration()) {
        keeps_its_promises(text)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn the_order_of_tables_and_keys_does_not_matter(text in shuffled()) {
        prop_assert_eq!(read(text).unwrap_or_else(|errors| panic!("{errors}")).plan, in_order());
    }
}
