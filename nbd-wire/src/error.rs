//! What a peer can do that ends the connection. Everything milder is an answer: an option's error reply
//! (`option_reply::ERR_*`) or a request's [`Errno`](crate::Errno).

/// A breach of the protocol after which the stream cannot be understood, or must not be served on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Bytes that are no request where one must begin.
    #[error("a request must begin with {expected:#010x}, not {found:#010x}")]
    RequestMagic {
        /// What was negotiated.
        expected: u32,
        /// What came.
        found: u32,
    },
    /// Bytes that are no option where one must begin.
    #[error("an option must begin with IHAVEOPT, not {0:#018x}")]
    OptionMagic(u64),
    /// A server that does not greet like one of the fixed newstyle handshake.
    #[error("the server does not offer the fixed newstyle handshake")]
    Greeting,
    /// Bytes that are no reply to an option where one must begin.
    #[error("a reply to an option must begin with 0x0003e889045565a9, not {0:#018x}")]
    OptionReplyMagic(u64),
    /// Bytes that are no reply to a request where one must begin.
    #[error("a reply cannot begin with {0:#010x}")]
    ReplyMagic(u32),
    /// A reply whose content does not fit its type.
    #[error("a reply is malformed: {0}")]
    MalformedReply(&'static str),
    /// Handshake flags that this server did not offer.
    #[error("unknown handshake flags {0:#x}")]
    ClientFlags(u32),
    /// A client that does not know the fixed newstyle handshake.
    #[error("the client does not speak the fixed newstyle handshake")]
    NotFixedNewstyle,
    /// EXPORT_NAME has no error reply: a name that is not served, or a moment that does not allow it.
    #[error("EXPORT_NAME cannot be served: {0}")]
    ExportName(String),
    /// More options than any client has a use for.
    #[error("more than {0} options")]
    TooManyOptions(u32),
    /// An option whose length no client has a use for.
    #[error("option {option} of {len} bytes")]
    OptionTooLong {
        /// Its number.
        option: u32,
        /// Its length.
        len: u32,
    },
    /// A payload that is longer than what would be skipped to keep the stream in step.
    #[error("a payload of {0} bytes")]
    PayloadTooLong(u64),
}
