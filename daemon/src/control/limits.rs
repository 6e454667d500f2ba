//! Limits as JSON, in the words of the configuration's throttle tables: both directions.
//!
//! Invariant: what is written reads back as the same limits, and what is read is taken as a whole or refused with
//! everything that is wrong with it.

use std::time::Duration;

use disk_core::throttle::{Dimension, LARGEST, Limits, Rate, Rates, Rule, Violation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schema::Fault;

/// Limits by word. All words are there; 0 is no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Words(pub Map<String, Value>);

/// What follows the name of a dimension.
const MAX: &str = "_max";
const LENGTH: &str = "_max_length";
const IOPS_SIZE: &str = "iops_size";

// Codes of the configuration's findings, for the same mistakes.
const UNKNOWN_KEY: &str = "E0106";
const WRONG_TYPE: &str = "E0107";
const OUT_OF_RANGE: &str = "E0109";

/// Every word, in the order in which people expect them.
pub fn words() -> impl Iterator<Item = String> {
    let of = |dimension: Dimension| ["", MAX, LENGTH].map(|end| format!("{}{end}", dimension.name()));
    Dimension::ALL.into_iter().flat_map(of).chain([IOPS_SIZE.to_owned()])
}

impl From<Limits> for Words {
    fn from(limits: Limits) -> Self {
        let mut words = Map::new();
        for dimension in Dimension::ALL {
            let Rate { avg, max, max_length } = limits.rate(dimension);
            let name = dimension.name();
            // A burst without a length lasts a second.
            let least = Duration::from_secs((max > 0).into());
            words.insert(name.into(), avg.into());
            words.insert(format!("{name}{MAX}"), max.into());
            words.insert(format!("{name}{LENGTH}"), max_length.max(least).as_secs_f64().into());
        }
        words.insert(IOPS_SIZE.into(), limits.iops_size().into());
        Words(words)
    }
}

impl Words {
    /// The limits that these words mean. A word that is missing, 0 or `null` limits nothing.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn limits(&self) -> Result<Limits, Vec<Fault>> {
        let mut faults: Vec<Fault> = self.0.keys().filter_map(|word| unknown(word)).collect();
        let mut rates = Rates::default();
        for dimension in Dimension::ALL {
            let name = dimension.name();
            rates[dimension] = Rate {
                avg: self.number(name, &mut faults),
                max: self.number(&format!("{name}{MAX}"), &mut faults),
                max_length: self.seconds(&format!("{name}{LENGTH}"), &mut faults),
            };
        }
        let iops_size = self.number(IOPS_SIZE, &mut faults);
        match Limits::new(rates, iops_size) {
            Ok(limits) if faults.is_empty() => Ok(limits),
            Ok(_) => Err(faults),
            Err(violations) => {
                faults.extend(violations.iter().map(broken));
                Err(faults)
            }
        }
    }

    fn number(&self, word: &str, faults: &mut Vec<Fault>) -> u64 {
        match self.0.get(word) {
            None | Some(Value::Null) => 0,
            Some(value) => value.as_u64().unwrap_or_else(|| {
                let unit = if word.starts_with("bps") || word == IOPS_SIZE { "bytes" } else { "operations" };
                let range = value.is_number();
                let code = if range { OUT_OF_RANGE } else { WRONG_TYPE };
                faults.push(fault(word, code, format!("a whole number of {unit} from 0 on, not {value}")));
                0
            }),
        }
    }

    fn seconds(&self, word: &str, faults: &mut Vec<Fault>) -> Duration {
        let value = match self.0.get(word) {
            None | Some(Value::Null) => return Duration::ZERO,
            Some(value) => value,
        };
        let Some(seconds) = value.as_f64() else {
            faults.push(fault(word, WRONG_TYPE, format!("a number of seconds, not {value}")));
            return Duration::ZERO;
        };
        Duration::try_from_secs_f64(seconds).unwrap_or_else(|_| {
            faults.push(fault(
                word,
                OUT_OF_RANGE,
                format!("a number of seconds from 0 to {LARGEST}, not {value}"),
            ));
            Duration::ZERO
        })
    }
}

fn unknown(word: &str) -> Option<Fault> {
    if words().any(|known| known == word) {
        return None;
    }
    let known: Vec<String> = words().collect();
    let detail = match (word, diskchain_config::nearest(word, known.iter().map(String::as_str))) {
        ("group", _) => "the group of a disk is fixed while the daemon runs".to_owned(),
        ("limits", _) => "the words stand at the top: {\"iops_total\": 2000}".to_owned(),
        (_, Some(meant)) => format!("there is no such word; did you mean `{meant}`?"),
        (_, None) => "there is no such word".to_owned(),
    };
    Some(fault(word, UNKNOWN_KEY, detail))
}

fn fault(word: &str, code: &str, detail: String) -> Fault {
    let escaped = word.replace('~', "~0").replace('/', "~1");
    Fault { pointer: format!("#/{escaped}"), code: code.to_owned(), detail }
}

/// A broken rule, where it can be mended.
fn broken(Violation { dimension, rule }: &Violation) -> Fault {
    let name = dimension.name();
    let (word, code) = match rule {
        Rule::TotalExcludesParts => (name.to_owned(), "E0231"),
        Rule::TooLarge => (name.to_owned(), OUT_OF_RANGE),
        Rule::MaxNeedsLimit => (format!("{name}{MAX}"), "E0232"),
        Rule::MaxBelowLimit => (format!("{name}{MAX}"), "E0233"),
        Rule::LengthNeedsMax => (format!("{name}{LENGTH}"), "E0234"),
        Rule::LengthTooShort => (format!("{name}{LENGTH}"), OUT_OF_RANGE),
        Rule::BurstTooLarge => (format!("{name}{LENGTH}"), "E0235"),
        Rule::SizeNeedsIops => (IOPS_SIZE.to_owned(), "E0236"),
    };
    fault(&word, code, rule.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<Limits, Vec<Fault>> {
        serde_json::from_value::<Words>(value).unwrap().limits()
    }

    #[test]
    fn limits_read_back_as_they_were_written() {
        let limits = parse(json!({
            "iops_read": 100, "iops_read_max": 1000, "iops_read_max_length": 2.5,
            "bps_total": 1 << 20, "bps_total_max": 1 << 21, "bps_write": 0, "iops_write": null, "iops_size": 4096,
        }))
        .unwrap();
        assert_eq!(limits.rate(Dimension::IopsRead).max_length, Duration::from_millis(2500));
        let words = Words::from(limits);
        assert!(words.0.keys().eq(sorted(words_in_order()).iter()), "all words: {words:?}");
        assert_eq!(words.0["bps_total_max_length"], json!(1.0), "what a missing length means");
        let again = words.limits().unwrap();
        assert_eq!(Words::from(again), words);
        assert_eq!(parse(json!({})).unwrap(), Limits::UNLIMITED);
    }

    fn words_in_order() -> Vec<String> {
        words().collect()
    }

    fn sorted(mut words: Vec<String>) -> Vec<String> {
        words.sort();
        words
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once_with_its_place_and_a_code_that_can_be_explained() {
        let faults = parse(json!({
            "iops_totl": 1, "iops_total": 5, "iops_read": 5, "iops_write_max": 3, "bps_read": 10, "bps_read_max": 5,
            "bps_write": "1MiB", "bps_total": -1, "iops_read_max_length": "x", "bps_write_max_length": 1e300,
            "group": "a",
        }))
        .unwrap_err();
        let mut places: Vec<&str> = faults.iter().map(|fault| fault.pointer.as_str()).collect();
        places.sort_unstable();
        assert_eq!(
            places,
            [
                "#/bps_read_max",
                "#/bps_total",
                "#/bps_write",
                "#/bps_write_max_length",
                "#/group",
                "#/iops_read_max_length",
                "#/iops_total",
                "#/iops_totl",
                "#/iops_write_max",
            ]
        );
        assert!(faults.iter().any(|fault| fault.detail.contains("did you mean `iops_total`?")), "{faults:?}");
    }

    #[test]
    fn every_code_can_be_explained() {
        let rules = [
            Rule::TotalExcludesParts,
            Rule::TooLarge,
            Rule::MaxNeedsLimit,
            Rule::MaxBelowLimit,
            Rule::LengthNeedsMax,
            Rule::LengthTooShort,
            Rule::BurstTooLarge,
            Rule::SizeNeedsIops,
        ];
        let broken = rules.map(|rule| broken(&Violation { dimension: Dimension::BpsRead, rule }).code);
        let others = [UNKNOWN_KEY, WRONG_TYPE, OUT_OF_RANGE].map(String::from);
        for code in broken.iter().chain(&others) {
            assert!(diskchain_config::explain(code).is_some(), "{code}");
        }
    }
}
