//! A server's list of exports, and a client that sends bytes to its handshake.

use nbd_wire::client::{self, Answer, Connected, OptionReplyHeader, Wish};
use nbd_wire::consts::handshake_flags::{FIXED_NEWSTYLE, NO_ZEROES};
use nbd_wire::consts::option_reply;
use nbd_wire::{
    Abilities, BlockSize, Context, Denial, ExportInfo, Exports, Handshake, Progress, Session, Violation,
};

pub const SIZE: u64 = 1 << 40;
pub const PAYLOAD_MOST: u32 = 32 << 20;

/// The exports of a played server; the first is the default.
pub struct Shelf {
    pub exports: Vec<ExportInfo>,
    pub listed: bool,
    pub stopping: bool,
}

/// An export of 1 TiB that can do everything.
pub fn export(name: &str) -> ExportInfo {
    ExportInfo {
        name: name.to_owned(),
        description: format!("the {name} disk"),
        size: SIZE,
        abilities: Abilities { read_only: false, trim: true, fast_zero: true, multi_conn: true },
        block_size: BlockSize { minimum: 1, preferred: 64 << 10, maximum: PAYLOAD_MOST },
        contexts: vec![Context::Allocation, Context::AllocationDepth],
    }
}

impl Shelf {
    /// Two exports, "first" and "second".
    pub fn new() -> Self {
        Shelf { exports: vec![export("first"), export("second")], listed: true, stopping: false }
    }

    /// One export.
    pub fn of(export: ExportInfo) -> Self {
        Shelf { exports: vec![export], listed: true, stopping: false }
    }
}

impl Exports for Shelf {
    fn is_stopping(&self) -> bool {
        self.stopping
    }

    fn list(&self) -> Option<Vec<(String, String)>> {
        let named = |export: &ExportInfo| (export.name.clone(), export.description.clone());
        self.listed.then(|| self.exports.iter().map(named).collect())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, Denial> {
        match name {
            "" => self.exports.first().cloned().ok_or(Denial::Unknown),
            "full" => Err(Denial::Policy("four clients are enough".to_owned())),
            name => self.exports.iter().find(|export| export.name == name).cloned().ok_or(Denial::Unknown),
        }
    }
}

/// A reply to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub option: u32,
    pub kind: u32,
    pub data: Vec<u8>,
}

impl Told {
    pub fn answer(&self) -> Answer<'_> {
        Answer::parse(self.kind, &self.data).expect("data of that kind")
    }
}

/// What one feed came to.
pub type Outcome = Result<Progress, Violation>;

/// A handshake whose client has said its flags.
pub struct Talk<'a> {
    pub server: Handshake,
    pub shelf: &'a Shelf,
    /// Bytes that came after EXPORT_NAME.
    pub rest: Vec<u8>,
}

impl<'a> Talk<'a> {
    pub fn new(shelf: &'a Shelf) -> Self {
        Self::with_flags(shelf, FIXED_NEWSTYLE | NO_ZEROES)
    }

    pub fn with_flags(shelf: &'a Shelf, flags: u16) -> Self {
        let mut server = Handshake::default();
        let mut out = Vec::new();
        let taken = server.feed(&u32::from(flags).to_be_bytes(), shelf, &mut out);
        assert_eq!(taken, Ok((4, Progress::More)));
        assert!(out.is_empty(), "flags are not answered");
        Talk { server, shelf, rest: Vec::new() }
    }

    /// Sends an option; the replies to it, and what the handshake came to.
    #[track_caller]
    pub fn send(&mut self, number: u32, data: &[u8]) -> (Vec<Told>, Outcome) {
        let mut input = Vec::new();
        client::option(number, data, &mut input);
        let mut out = Vec::new();
        let progress = self.server.feed(&input, self.shelf, &mut out).map(|(taken, progress)| {
            // What follows ABORT is nobody's.
            assert!(taken == input.len() || progress == Progress::Aborted, "all of the option is taken");
            progress
        });
        (self.replies(&out), progress)
    }

    /// Sends an option that must leave the handshake where it is; the replies to it.
    #[track_caller]
    pub fn ask(&mut self, number: u32, data: &[u8]) -> Vec<Told> {
        let (replies, progress) = self.send(number, data);
        assert_eq!(progress, Ok(Progress::More));
        assert!(replies.iter().all(|told| told.option == number), "{replies:?}");
        replies
    }

    /// Sends an option that must be answered with one error and nothing else.
    #[track_caller]
    pub fn refused(&mut self, number: u32, data: &[u8], kind: u32) {
        let replies = self.ask(number, data);
        assert_eq!(replies.iter().map(|told| told.kind).collect::<Vec<_>>(), [kind], "{replies:?}");
        let Answer::Error { text, .. } = replies[0].answer() else { panic!("{replies:?}") };
        assert!(!text.is_empty(), "an error says why");
    }

    /// Sends an option that must be acknowledged and nothing else.
    #[track_caller]
    pub fn acknowledged(&mut self, number: u32, data: &[u8]) {
        let replies = self.ask(number, data);
        assert_eq!(replies.iter().map(|told| told.kind).collect::<Vec<_>>(), [option_reply::ACK]);
    }

    /// Sends an option that must lead to the transmission phase.
    #[track_caller]
    pub fn chosen(&mut self, number: u32, data: &[u8]) -> (Vec<Told>, Session) {
        let (replies, progress) = self.send(number, data);
        match progress {
            Ok(Progress::Chosen(session)) => (replies, session),
            other => panic!("{other:?}"),
        }
    }

    fn replies(&mut self, mut out: &[u8]) -> Vec<Told> {
        let mut replies = Vec::new();
        while let Some((header, rest)) = out.split_first_chunk()
            && let Ok(header) = OptionReplyHeader::parse(header)
        {
            let (data, rest) = rest.split_at(header.len as usize);
            replies.push(Told { option: header.option, kind: header.kind, data: data.to_vec() });
            out = rest;
        }
        self.rest = out.to_vec();
        replies
    }
}

/// Lets a client and a server talk until both have what they want.
#[track_caller]
pub fn connect(shelf: &Shelf, wish: Wish) -> (Session, Connected) {
    let (mut server, mut client) = (Handshake::default(), client::Handshake::new(wish));
    let (mut to_client, mut to_server) = (Handshake::greeting().to_vec(), Vec::new());
    let mut session = None;
    for _ in 0..20 {
        let (taken, connected) = client.feed(&to_client, &mut to_server).expect("the client understands");
        to_client.drain(..taken);
        if let Some(connected) = connected {
            assert!(to_client.is_empty(), "nothing is sent before the first request");
            return (session.expect("both are done"), connected);
        }
        let fed = server.feed(&to_server, shelf, &mut to_client);
        let (taken, progress) = fed.expect("the server understands");
        to_server.drain(..taken);
        if let Progress::Chosen(chosen) = progress {
            session = Some(chosen);
        }
    }
    panic!("client and server talk without end");
}
