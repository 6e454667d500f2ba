//! What every byte of the disk may be after the requests of a round, in whatever order they were carried out.

/// A request that was sent, and what came of it.
#[derive(Debug)]
pub struct Asked {
    pub offset: u64,
    pub length: u64,
    pub effect: Effect,
    pub fate: Fate,
}

/// What a request does if it is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// Writes the bytes of [`stamp`].
    Write(u8),
    Zero,
    Discard,
    /// Brought these bytes.
    Read(Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Not answered yet, or never as the connection ended.
    Open,
    Done,
    /// It was refused, it failed, or it never arrived whole: nothing may have changed.
    Refused,
}

impl Fate {
    pub fn words(self) -> &'static str {
        match self {
            Fate::Open => "requests never answered",
            Fate::Done => "requests done",
            Fate::Refused => "requests refused or cut short",
        }
    }
}

/// The byte that write number `number` puts at `at`: it tells both, as far as a byte can.
pub fn stamp(number: u8, at: u64) -> u8 {
    number ^ (at as u8) ^ ((at >> 9) as u8).rotate_left(3)
}

/// What is on the disk.
pub struct Model(Vec<u8>);

impl Model {
    pub fn new(content: Vec<u8>) -> Self {
        Model(content)
    }

    /// Takes in a round of requests that is over, after which the disk is `now`.
    pub fn judge(&mut self, asked: Vec<Asked>, now: &[u8]) {
        assert_eq!(now.len(), self.0.len());
        let size = now.len() as u64;
        let changes: Vec<&Asked> = asked
            .iter()
            .filter(|asked| asked.fate != Fate::Refused && asked.end().is_some_and(|end| end <= size))
            .filter(|asked| matches!(asked.effect, Effect::Write(_) | Effect::Zero | Effect::Discard))
            .collect();
        let mut borders: Vec<u64> =
            changes.iter().flat_map(|asked| [Some(asked.offset), asked.end()]).flatten().collect();
        borders.extend([0, size]);
        borders.sort_unstable();
        borders.dedup();
        // Between two borders the same changes have happened to every byte.
        for pair in borders.windows(2) {
            let here: Vec<&Asked> = changes.iter().copied().filter(|asked| asked.covers(pair[0])).collect();
            let replaced =
                here.iter().any(|asked| asked.fate == Fate::Done && asked.effect != Effect::Discard);
            for at in pair[0]..pair[1] {
                let (old, found) = (self.0[at as usize], now[at as usize]);
                assert!(
                    (found == old && !replaced) || here.iter().any(|asked| asked.gives(at, found)),
                    "byte {at} is {found:#04x}, {old:#04x} was there, and {here:?} happened"
                );
            }
        }
        for Asked { offset, effect, .. } in &asked {
            let Effect::Read(bytes) = effect else { continue };
            for (at, found) in (*offset..).zip(bytes) {
                let old = self.0[at as usize];
                let gives = |asked: &&Asked| asked.covers(at) && asked.gives(at, *found);
                assert!(
                    *found == old || changes.iter().copied().any(|asked| gives(&asked)),
                    "byte {at} was read as {found:#04x}, {old:#04x} was there"
                );
            }
        }
        self.0.copy_from_slice(now);
    }
}

impl Asked {
    fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }

    fn covers(&self, at: u64) -> bool {
        self.offset <= at && self.end().is_some_and(|end| at < end)
    }

    /// Whether the byte at `at` may be `found` because of this.
    fn gives(&self, at: u64, found: u8) -> bool {
        match self.effect {
            Effect::Write(number) => stamp(number, at) == found,
            Effect::Zero | Effect::Discard => found == 0,
            Effect::Nothing | Effect::Read(_) => false,
        }
    }
}
