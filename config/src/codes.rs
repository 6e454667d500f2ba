//! The codes of findings, each with its explanation.
//!
//! Invariant: a code keeps its meaning for ever. E01xx is about text, E02xx about what the text means,
//! Wxxxx are warnings.

/// What a code stands for.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `E0107`.
    pub id: &'static str,
    /// In a few words.
    pub title: &'static str,
    /// In a few sentences: what is wrong, why it matters, what to do.
    pub explanation: &'static str,
    /// Says that something is missing, which cannot be known while a part of the text is unreadable.
    pub(crate) about_absence: bool,
}

/// The explanation of a code in a few sentences; `None` when there is no such code. Case does not matter.
pub fn explain(code: &str) -> Option<&'static str> {
    CODES.iter().find(|known| known.id.eq_ignore_ascii_case(code)).map(|known| known.explanation)
}

macro_rules! codes {
    ($($name:ident $id:literal $title:literal $($absence:ident)? => $explanation:literal)+) => {
        $(pub(crate) static $name: Code = Code {
            id: $id,
            title: $title,
            explanation: $explanation,
            about_absence: codes!(@absence $($absence)?),
        };)+

        /// Every code, in order.
        pub static CODES: &[&Code] = &[$(&$name),+];
    };
    (@absence absence) => { true };
    (@absence) => { false };
}

codes! {
    SYNTAX "E0101" "not TOML" =>
        "The text does not follow the rules of TOML: a quote or bracket is missing, a key stands twice in \
         one table, or a value is not quoted. All places where the parser had to guess are shown. What the \
         file means is checked as far as it could be understood."
    UNREADABLE "E0102" "a file cannot be read" =>
        "A configuration file does not exist, may not be read, is not UTF-8, or is larger than 16 MiB. A path \
         in `include` starts from the folder of the file it stands in; it may match no file only when it \
         holds a `*` or `?`."
    VERSION "E0103" "unknown version of the language" =>
        "`version` names the version of the configuration language, and this program knows version 1 only. \
         A file for a later version is refused as a whole, since its keys may mean something else."
    INCLUDE "E0104" "an include that is not possible" =>
        "Only the main file may include others, so that there are no loops, and `*` and `?` may stand only \
         in the last part of a path."
    SET_TWICE "E0105" "set in two files" =>
        "Two files set the same key. Included files add to the main file and to one another; none overrides \
         another. Remove one of the two."
    UNKNOWN_KEY "E0106" "unknown key" =>
        "The section has no such key. A misspelt key that is ignored would be a setting that silently does \
         not hold, so it is an error. Keys that start with `x-` are ignored everywhere and are free for your \
         own notes."
    WRONG_TYPE "E0107" "wrong type" =>
        "The value is of another type than the key takes: a string instead of a list, an integer instead of \
         a duration, a value instead of a table. Durations always need a unit; sizes and rates may be plain \
         integers, in bytes."
    NOT_UNDERSTOOD "E0108" "not understood" =>
        "The value has the right type, but it is not a size, rate, duration, UUID, address or path. Sizes \
         have a unit of powers of 1024 (KiB, MiB, GiB, TiB) or of 1000 (kB, MB, GB, TB); rates are sizes \
         with `/s`; durations have ns, us, ms, s, min, h or d."
    OUT_OF_RANGE "E0109" "out of range" =>
        "The value is smaller or larger than the key allows, or not a multiple of what it must be. Values \
         are never rounded or cut off to fit."
    WORD "E0110" "not one of the choices" =>
        "The key takes one of a few words, which the message lists."
    NAME "E0111" "not a name" =>
        "Names of disks, exports and throttle groups have 1 to 255 bytes, no `/` and no control characters, \
         so that they can stand in a URI, a log line and a metric's label."

    NO_IMAGE "E0201" "a disk without an image" absence =>
        "A disk needs `file`, its one image, or `layers`, its chain of images with the base first. A layer \
         needs `file`."
    FILE_AND_LAYERS "E0202" "file and layers" =>
        "A disk is either one `file` or a chain of `layers`. With `layers`, `format` and `create` are said \
         for each layer."
    FILE_TWICE_IN_CHAIN "E0203" "a file twice in one chain" =>
        "The same image stands twice in the layers of a disk. An image cannot be its own parent."
    SHARED_WRITABLE "E0204" "a file written by one disk and used by another" =>
        "An image that one disk writes is a layer of another disk too. The other would see data change \
         under it, and two writers destroy an image. To serve one disk under several names, add exports; \
         to have several disks over one base, give each its own top image."
    OUTSIDE_IMAGE_DIRS "E0205" "an image outside image_dirs" =>
        "`image_dirs` lists the only directories where images may live, and this path is in none of them. \
         The path is compared as written, with `.` and `..` resolved; when the image is opened, its real \
         path is checked again."
    AUTO_NEEDS_IMAGE_DIRS "E0206" "parents to search, and nowhere to look" absence =>
        "`parents = \"auto\"` searches the parents of an image inside `image_dirs`, which is empty. Say in \
         `[server]` where images live, or spell the chain out in `layers`."
    PARENTS_OF_LAYERS "E0207" "parents to search and layers" =>
        "`layers` spells the whole chain out, so there is no parent left to search with `parents = \"auto\"`. \
         Remove one of the two."
    RAW_HAS_NO_PARENT "E0208" "a raw image with a parent" =>
        "A raw image holds every byte of the disk and cannot lie over another image. Only the base of a \
         chain, the first of its `layers`, may be raw."
    CREATE_VARIANT "E0209" "a variant that does not fit its place" =>
        "An image that is made over another layer holds only what differs from it, so its variant is `differencing`; \
         `fixed` and `dynamic` images have no parent. In the other direction, `differencing` needs a layer below it \
         in `layers`, since a parent that is searched is not known before the image exists."
    CREATE_SIZE "E0210" "create without a size" absence =>
        "A new image needs a `size`, unless it is made over another layer whose size it can take."
    CREATE_FORMAT "E0211" "create and the format" absence =>
        "A new image needs a format, in `create` or beside it, and where both say one it must be the same."
    CREATE_READ_ONLY "E0212" "create on a read-only disk" =>
        "The disk is read-only, so an image made for it would stay empty for ever. Remove `create` or \
         `read_only`; for a disk that forgets what is written, use `ephemeral = true`."
    READ_ONLY_AND_EPHEMERAL "E0213" "read-only and ephemeral" =>
        "An ephemeral disk takes writes and forgets them, a read-only disk takes none. Choose one."
    DETECT_ZEROES_UNMAP "E0214" "detect_zeroes without discard" =>
        "`detect_zeroes = \"unmap\"` gives space back for zeroes that are written, which \
         `discard = \"ignore\"` forbids. Use `detect_zeroes = \"on\"`, or `discard = \"unmap\"`."
    UUID_TWICE "E0215" "one UUID for two disks" =>
        "The UUID identifies a disk, so no two disks may have the same."
    NOT_A_DEFAULT "E0216" "not a default" =>
        "`[defaults.disk]` holds values for all disks, and this key is about one disk: its identity or its \
         images. Put it into the table of the disk."

    EXPORT_TWICE "E0220" "two exports of one name" =>
        "Every disk is exported under its own name, and another export has the same name for another disk. \
         Give the export another name."
    UNKNOWN_DISK "E0221" "no such disk" absence =>
        "An export names a disk that is not in the configuration. An export without `disk` is for the disk of \
         its own name."
    UNKNOWN_EXPORT "E0222" "no such export" absence =>
        "`default_export` says which export a client means that asks for the empty name. It names one that \
         does not exist."
    WRITABLE_EXPORT "E0223" "a writable export of a read-only disk" =>
        "The export says `read_only = false` and its disk says `read_only = true`. A disk that is opened \
         read-only cannot be written through any export."

    UNKNOWN_GROUP "E0230" "no such throttle group" absence =>
        "The disk is a member of a throttle group that is not in the configuration. A group is a table \
         `[throttle.NAME]`."
    TOTAL_AND_PART "E0231" "a total limit with a read or write limit" =>
        "As in QEMU, a disk or group has either one limit for reads and writes together or separate limits, \
         for requests (`iops_`) and for bytes (`bps_`) each. A limit of 0 is no limit."
    BURST_WITHOUT_RATE "E0232" "a burst without a rate" absence =>
        "`…_max` says how fast a burst may be above the limit of the same name without `_max`, and there is \
         no such limit."
    BURST_BELOW_RATE "E0233" "a burst below the rate" =>
        "A burst is a higher rate for a while. `…_max` must be at least the limit itself."
    LENGTH_WITHOUT_BURST "E0234" "a length without a burst" absence =>
        "`…_max_length` says how long a burst of `…_max` may last, and there is no such burst."
    BURST_TOO_LONG "E0235" "a burst too large" =>
        "As in QEMU, the rate of a burst times its length in seconds may be at most 10^15."
    IOPS_SIZE_ALONE "E0236" "iops_size without an iops limit" absence =>
        "`iops_size` says how large a request may be before it counts as several against the `iops_` limits, \
         and there is no such limit."

    INSECURE "E0240" "TCP that others can reach" absence =>
        "NBD over plain TCP has neither encryption nor a login: whoever reaches the address can read and \
         write the disks. Listen on a Unix socket or on the loopback interface (127.0.0.1, ::1, localhost), \
         or say `insecure = true` in `[server]` if the network itself is protected."
    SOCKET_TWICE "E0241" "one address twice" =>
        "Two sockets cannot have the same address: an address stands twice in `listen`, or `control` and \
         `listen` name the same Unix socket."
    REQUEST_ABOVE_MEMORY "E0242" "a request larger than the buffers" =>
        "A request of `max_request_size` bytes has to fit into `max_buffer_memory`, or it could never start."

    SAME_NAME "E0250" "two files of one name" =>
        "Files on the command line are exported under their names without the extension, or with it where \
         that is not unique, and two of them still have the same name or none. Write a configuration with a \
         name for each."

    NO_DISKS "W0001" "no disks" absence =>
        "The configuration holds no disk, so there is nothing to serve."
    PERHAPS_RAW "W0002" "a raw image without a format" =>
        "The name of the file looks like that of a raw image or a block device, and the disk is written. \
         Raw is never guessed for writing: a guest could write another format's signature and have the image \
         read as that format later. Say `format = \"raw\"`."
    INEFFECTIVE_LIMIT "W0003" "a limit that never applies" =>
        "The export allows more clients than the whole daemon does, so its own limit has no effect."
    OPEN_TO_NETWORK "W0004" "open to the network" =>
        "With `insecure = true` the disks are served over plain TCP to whoever reaches the address."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_in_order_and_explained() {
        assert!(CODES.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert!(CODES.iter().all(|code| code.explanation.ends_with('.') && !code.title.is_empty()));
        assert_eq!(explain("e0106"), Some(UNKNOWN_KEY.explanation));
        assert_eq!(explain("E9999"), None);
    }
}
