//! "Did you mean": the known word that an unknown one resembles.

/// The known word nearest to `word`, if it is near enough to be what was meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    // A third of the letters may be wrong, as rustc and cargo have it; `damerau` counts a swap once.
    let letters = word.chars().count();
    let allowed = (letters.max(3) / 3).min(letters.saturating_sub(1));
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// What other programs call a key, and its name here.
const FOREIGN: &[(&str, &str)] = &[
    ("path", "file"),
    ("filename", "file"),
    ("image", "file"),
    ("driver", "format"),
    ("backing", "layers"),
    ("port", "listen"),
    ("bind", "listen"),
    ("address", "listen"),
    ("group_name", "group"),
    ("total_iops_sec", "iops_total"),
    ("read_iops_sec", "iops_read"),
    ("write_iops_sec", "iops_write"),
    ("size_iops_sec", "iops_size"),
    ("total_bytes_sec", "bps_total"),
    ("read_bytes_sec", "bps_read"),
    ("write_bytes_sec", "bps_write"),
];

/// The known word for a key as nbdkit, QEMU, libvirt or nbd-server spell it.
pub(crate) fn foreign<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (_, here) = FOREIGN.iter().find(|(there, _)| *there == word)?;
    known.into_iter().find(|candidate| candidate == here)
}

#[cfg(test)]
mod tests {
    use super::{foreign, nearest};

    #[test]
    fn words_of_other_programs_are_translated_where_the_key_exists() {
        assert_eq!(foreign("total_iops_sec", ["iops_total", "file"]), Some("iops_total"));
        assert_eq!(foreign("path", ["iops_total"]), None);
    }

    #[test]
    fn a_slip_of_the_finger_finds_the_word_and_another_word_does_not() {
        let known = ["file", "format", "read_only"];
        assert_eq!(nearest("flie", known), Some("file"));
        assert_eq!(nearest("readonly", known), Some("read_only"));
        assert_eq!(nearest("Read-Only", known), Some("read_only"));
        assert_eq!(nearest("bandwidth", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!((nearest("a", ["b"]), nearest("vm", ["vm1"])), (None, Some("vm1")));
    }
}
