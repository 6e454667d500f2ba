//! The protocol's numbers, named as in proto.md.

/// First word of the server's greeting, "NBDMAGIC".
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and first of every option, "IHAVEOPT".
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Second word of the greeting of the oldstyle handshake, which nobody here speaks.
pub const CLISERV_MAGIC: u64 = 0x0000_4202_8186_1253;
/// First word of the reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First word of a chunk of an extended reply.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The largest payload that a server must take and a client may send if nothing else was agreed, bytes.
pub const PAYLOAD_MOST: u32 = 32 << 20;
/// The longest string, bytes.
pub const STRING_MOST: usize = 4096;

/// Handshake flags of the server, and of the client in answer.
pub mod handshake_flags {
    /// The fixed newstyle handshake: any option is answered.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No 124 zeroes after the answer to EXPORT_NAME.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the handshake.
pub mod option {
    #![expect(missing_docs, reason = "named as in the specification")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    /// Of an extension that was withdrawn.
    pub const PEEK_EXPORT: u32 = 4;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod option_reply {
    #![expect(missing_docs, reason = "named as in the specification")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_POLICY: u32 = 0x8000_0002;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_PLATFORM: u32 = 0x8000_0004;
    pub const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    pub const ERR_BLOCK_SIZE_REQD: u32 = 0x8000_0008;
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
    pub const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;
    /// Set in every error, also in those that nobody has heard of yet.
    pub const ERROR_BIT: u32 = 1 << 31;
}

/// Types of information in answer to INFO and GO.
pub mod info {
    #![expect(missing_docs, reason = "named as in the specification")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Types of chunks of structured and extended replies.
pub mod chunk {
    #![expect(missing_docs, reason = "named as in the specification")]
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = 0x8001;
    pub const ERROR_OFFSET: u16 = 0x8002;
    /// Set in every error, also in those that nobody has heard of yet.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// Flag of the last chunk of a reply.
    pub const DONE: u16 = 1;
}

/// Status bits of the context `base:allocation`.
pub mod allocation {
    /// Takes no space; a write to it may run out of space.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
}

/// What an export can do, as its owner knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// Nothing can be written.
    pub read_only: bool,
    /// TRIM is of use.
    pub trim: bool,
    /// WRITE_ZEROES may be asked to be fast or fail.
    pub fast_zero: bool,
    /// FLUSH and FUA on one connection cover what was answered on all others.
    pub multi_conn: bool,
}

/// The flags that describe an export to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransmissionFlags(pub u16);

#[expect(missing_docs, reason = "named as in the specification")]
impl TransmissionFlags {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const ROTATIONAL: u16 = 1 << 4;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_RESIZE: u16 = 1 << 9;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

impl TransmissionFlags {
    /// The flags for an export. DF goes with replies in chunks, and `status_payload` with extended headers and at
    /// least one selected context.
    pub fn new(abilities: &Abilities, structured: bool, status_payload: bool) -> Self {
        let mut flags = Self::HAS_FLAGS | Self::SEND_FLUSH | Self::SEND_FUA | Self::SEND_CACHE;
        let mut set = |when: bool, flag: u16| flags |= if when { flag } else { 0 };
        set(abilities.read_only, Self::READ_ONLY);
        set(!abilities.read_only && abilities.trim, Self::SEND_TRIM);
        set(!abilities.read_only, Self::SEND_WRITE_ZEROES);
        set(!abilities.read_only && abilities.fast_zero, Self::SEND_FAST_ZERO);
        set(abilities.multi_conn, Self::CAN_MULTI_CONN);
        set(structured, Self::SEND_DF);
        set(status_payload, Self::BLOCK_STATUS_PAYLOAD);
        TransmissionFlags(flags)
    }

    /// Whether all of `flags` are set.
    pub fn has(self, flags: u16) -> bool {
        self.0 & flags == flags
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the specification")]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    /// A number that this server does not know.
    Unknown(u16),
}

impl From<u16> for Command {
    fn from(number: u16) -> Self {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Unknown(other),
        }
    }
}

impl From<Command> for u16 {
    fn from(command: Command) -> u16 {
        match command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Cache => 5,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Unknown(other) => other,
        }
    }
}

/// Flags of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommandFlags(pub u16);

#[expect(missing_docs, reason = "named as in the specification")]
impl CommandFlags {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

impl CommandFlags {
    /// Whether all of `flags` are set.
    pub fn has(self, flags: u16) -> bool {
        self.0 & flags == flags
    }
}

/// The error numbers that may be sent, and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named as in the specification")]
#[repr(u32)]
pub enum Errno {
    EPERM = 1,
    EIO = 5,
    ENOMEM = 12,
    EINVAL = 22,
    ENOSPC = 28,
    EOVERFLOW = 75,
    ENOTSUP = 95,
    ESHUTDOWN = 108,
}

impl Errno {
    /// What a client makes of the error in a reply: `None` is success, and a number that is not of the protocol counts
    /// as EINVAL.
    pub fn received(number: u32) -> Option<Errno> {
        const ALL: [Errno; 8] = [
            Errno::EPERM,
            Errno::EIO,
            Errno::ENOMEM,
            Errno::EINVAL,
            Errno::ENOSPC,
            Errno::EOVERFLOW,
            Errno::ENOTSUP,
            Errno::ESHUTDOWN,
        ];
        let known = ALL.into_iter().find(|errno| *errno as u32 == number);
        (number != 0).then(|| known.unwrap_or(Errno::EINVAL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_number_survives_the_way_through_its_type() {
        for number in 0..=u16::MAX {
            assert_eq!(u16::from(Command::from(number)), number);
        }
    }

    #[test]
    fn an_error_that_is_not_of_the_protocol_counts_as_einval() {
        assert_eq!(Errno::received(0), None);
        assert_eq!(Errno::received(28), Some(Errno::ENOSPC));
        assert_eq!(Errno::received(108), Some(Errno::ESHUTDOWN));
        // EDQUOT of Linux, which no server may send.
        assert_eq!(Errno::received(122), Some(Errno::EINVAL));
    }

    #[test]
    fn a_read_only_export_offers_nothing_that_writes() {
        let abilities = Abilities { read_only: true, trim: true, fast_zero: true, multi_conn: true };
        let flags = TransmissionFlags::new(&abilities, true, true);
        assert!(flags.has(TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN));
        for writing in [
            TransmissionFlags::SEND_TRIM,
            TransmissionFlags::SEND_WRITE_ZEROES,
            TransmissionFlags::SEND_FAST_ZERO,
        ] {
            assert!(!flags.has(writing), "{writing:#x}");
        }
    }
}
