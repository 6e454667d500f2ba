//! Quantities and addresses as people write them in the configuration.
//!
//! Invariant: what a text means is computed by another way than the product's: modulo a prime, where a number that was
//! rounded, wrapped or cut off shows.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Component, Path};
use std::time::Duration;

use arbitrary::Arbitrary;
use diskchain_config::plan::Listen;
use diskchain_config::units::{
    Invalid, format_duration, format_rate, format_size, parse_duration, parse_rate, parse_size,
};

use crate::Reached;

/// 2⁶¹ − 1.
const PRIME: u128 = (1 << 61) - 1;

const SIZES: [(&str, u64); 14] = [
    ("", 1),
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1000_u64.pow(2)),
    ("GB", 1000_u64.pow(3)),
    ("TB", 1000_u64.pow(4)),
    ("PB", 1000_u64.pow(5)),
    ("EB", 1000_u64.pow(6)),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
];

const NANOSECONDS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1000),
    ("ms", 1000_u64.pow(2)),
    ("s", 1000_u64.pow(3)),
    ("min", 60 * 1000_u64.pow(3)),
    ("h", 3600 * 1000_u64.pow(3)),
    ("d", 86400 * 1000_u64.pow(3)),
];

/// A text where a size, a rate or a duration should be.
#[derive(Debug, Arbitrary)]
pub struct Quantity {
    kind: Kind,
    text: Written,
}

#[derive(Debug, Clone, Copy, PartialEq, Arbitrary)]
enum Kind {
    Size,
    Rate,
    Duration,
}

#[derive(Debug, Arbitrary)]
enum Written {
    /// A number, maybe with a fraction, and one of the units.
    Number {
        whole: Whole,
        fraction: Option<u32>,
        zeroes: u8,
        blank: bool,
        unit: u8,
    },
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Whole {
    Small(u8),
    Any(u64),
    /// About what still fits with the unit.
    Largest(i8),
}

impl Kind {
    fn units(self) -> &'static [(&'static str, u64)] {
        if self == Kind::Duration { &NANOSECONDS } else { &SIZES }
    }

    fn parse(self, text: &str) -> Result<u64, Invalid> {
        match self {
            Kind::Size => parse_size(text),
            Kind::Rate => parse_rate(text),
            Kind::Duration => parse_duration(text)
                .map(|time| u64::try_from(time.as_nanos()).expect("a duration has at most 2^64 nanoseconds")),
        }
    }

    fn format(self, value: u64) -> String {
        match self {
            Kind::Size => format_size(value),
            Kind::Rate => format_rate(value),
            Kind::Duration => format_duration(Duration::from_nanos(value)),
        }
    }
}

/// Digits as a number, modulo the prime.
fn residue(digits: &str) -> u128 {
    digits.bytes().fold(0, |number, digit| (number * 10 + u128::from(digit - b'0')) % PRIME)
}

/// Whether a text in front of its unit is `value` in units of `factor`.
fn means(number: &str, factor: u64, value: u64) -> bool {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = (0..fraction.len()).fold(1, |scale, _| scale * 10 % PRIME);
    let digits = (residue(whole) * scale + residue(fraction)) % PRIME;
    digits * u128::from(factor) % PRIME == u128::from(value) % PRIME * scale % PRIME
}

/// See the module.
pub fn check_quantity(quantity: &Quantity, reached: &mut Reached) {
    let Quantity { kind, text: written } = quantity;
    let units = kind.units();
    let (text, lawful) = match written {
        Written::Any(text) => (text.clone(), None),
        Written::Number { whole, fraction, zeroes, blank, unit } => {
            let (unit, factor) = units[usize::from(*unit) % units.len()];
            let whole = match *whole {
                Whole::Small(small) => small.into(),
                Whole::Any(any) => any,
                Whole::Largest(more) => (u64::MAX / factor).wrapping_add_signed(more.into()),
            };
            let mut text = format!("{:0>1$}", whole, usize::from(*zeroes) % 40);
            // A fraction may be none of the smallest unit; without one the number fits or not.
            let lawful = fraction.is_none().then(|| u128::from(whole) * u128::from(factor) < 1 << 64);
            if let Some(fraction) = fraction {
                text += &format!(".{fraction}");
            }
            if *blank && !unit.is_empty() {
                text.push(' ');
            }
            (text + unit + if *kind == Kind::Rate { "/s" } else { "" }, lawful)
        }
    };
    match kind.parse(&text) {
        Ok(value) => {
            assert_ne!(lawful, Some(false), "{text} does not fit");
            let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
            let (number, unit) = text.split_at(end);
            let unit = if *kind == Kind::Rate { unit.strip_suffix("/s").expect("a rate") } else { unit };
            let unit = unit.trim_matches(' ');
            // The largest unit is not among those that are made here.
            let factor = units.iter().find(|(name, _)| *name == unit).map_or(1 << 60, |(_, factor)| *factor);
            assert!(factor != 1 << 60 || unit == "EiB", "{text} has no unit that is known");
            assert!(means(number, factor, value), "{text} is not {value}");
            let again = kind.format(value);
            assert_eq!(kind.parse(&again), Ok(value), "{again}");
            // Without a unit, or with a fraction, a text can be shorter.
            if !unit.is_empty() && !number.contains('.') {
                assert!(again.len() <= text.len(), "{again} is longer than {text}");
            }
            reached.add("quantities understood", 1);
        }
        Err(invalid) => {
            assert_ne!(lawful, Some(true), "{text}: {invalid}");
            assert!(invalid.message.contains(&text) || *kind == Kind::Rate, "{text}: {invalid}");
            expect_said(&invalid);
            reached.add("quantities refused", 1);
        }
    }
}

fn expect_said(invalid: &Invalid) {
    assert!(!invalid.message.is_empty() && !invalid.help.is_empty());
}

/// A text where an address to listen on should be.
#[derive(Debug, Arbitrary)]
pub struct Address {
    text: AddressText,
}

#[derive(Debug, Arbitrary)]
enum AddressText {
    Unix(Vec<Part>),
    Name(Host, Option<u32>),
    Ip(bool, [u16; 8], Option<u32>, bool),
    Any(String),
    Raw(bool, String),
}

#[derive(Debug, Arbitrary)]
enum Part {
    Root,
    Up,
    Here,
    Nothing,
    Named(u8),
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Host {
    Local,
    Any(String),
}

impl AddressText {
    fn text(&self) -> String {
        let port = |port: &Option<u32>| port.map_or_else(String::new, |port| format!(":{}", port % 70_000));
        match self {
            AddressText::Unix(parts) => {
                let mut text = "unix:".to_owned();
                for part in parts {
                    match part {
                        Part::Root => text.push('/'),
                        Part::Up => text += "../",
                        Part::Here => text += "./",
                        Part::Nothing => text += "//",
                        Part::Named(len) => text += &format!("{}/", "n".repeat(usize::from(*len % 64))),
                        Part::Any(any) => text += any,
                    }
                }
                text
            }
            AddressText::Name(Host::Local, number) => format!("tcp:localhost{}", port(number)),
            AddressText::Name(Host::Any(host), number) => format!("tcp:{host}{}", port(number)),
            AddressText::Ip(true, words, number, _) => {
                let [high, low, ..] = *words;
                let ip = std::net::Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
                format!("tcp:{ip}{}", port(number))
            }
            AddressText::Ip(false, words, number, true) => {
                format!("tcp:[{}]{}", Ipv6Addr::from(*words), port(number))
            }
            AddressText::Ip(false, words, number, false) => {
                format!("tcp:{}{}", Ipv6Addr::from(*words), port(number))
            }
            AddressText::Any(text) => text.clone(),
            AddressText::Raw(tcp, text) => format!("{}:{text}", if *tcp { "tcp" } else { "unix" }),
        }
    }
}

/// An address is a place that is written back as it was meant, or it is refused with the forms there are.
pub fn check_address(address: &Address, reached: &mut Reached) {
    let text = address.text.text();
    let folder = Path::new("/etc/diskchain");
    let listen = match Listen::parse(&text, folder) {
        Ok(listen) => listen,
        Err(invalid) => {
            let lawful = match &address.text {
                AddressText::Name(Host::Local, port) => {
                    port.is_none_or(|port| (1..1 << 16).contains(&(port % 70_000)))
                }
                AddressText::Ip(v4, _, port, bracket) => {
                    (*v4 || *bracket) && port.is_none_or(|port| (1..1 << 16).contains(&(port % 70_000)))
                }
                _ => false,
            };
            assert!(!lawful, "{text}: {invalid}");
            expect_said(&invalid);
            return reached.add("addresses refused", 1);
        }
    };
    reached.add("addresses understood", 1);
    assert_eq!(Listen::parse(&listen.to_string(), folder), Ok(listen.clone()), "{text}");
    match &listen {
        Listen::Unix(path) => {
            assert!(text.starts_with("unix:") && listen.is_local());
            assert!(path.is_absolute() && path.as_os_str().len() <= 107);
            let bytes = path.as_os_str().as_encoded_bytes();
            assert!(!bytes.contains(&0), "{text} would be cut off at its NUL");
            assert!(path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_))));
        }
        Listen::Tcp(host, port) => {
            assert!(text.starts_with("tcp:") && *port != 0 && !host.is_empty());
            let ip: Option<IpAddr> = host.parse().ok();
            assert!(!host.contains(':') || matches!(ip, Some(IpAddr::V6(_))), "{host}");
            let loopback = match ip {
                Some(IpAddr::V4(ip)) => ip.octets()[0] == 127,
                Some(IpAddr::V6(ip)) => {
                    let mapped = ip.to_ipv4_mapped().is_some_and(|ip| ip.octets()[0] == 127);
                    ip == Ipv6Addr::LOCALHOST || mapped
                }
                None => host.eq_ignore_ascii_case("localhost"),
            };
            assert_eq!(listen.is_local(), loopback, "{text}");
        }
    }
}
