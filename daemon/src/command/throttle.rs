//! `diskchain throttle`: limits of a disk or a throttle group, shown and changed while the daemon runs.
//!
//! Words and units are those of the configuration. A change lasts until the daemon ends; the configuration keeps what
//! it says.

use std::path::Path;

use clap::{Args, Subcommand};
use diskchain_config::units::{format_rate, format_size, parse_duration, parse_rate, parse_size};
use serde_json::{Value, json};

use super::daemon::{DaemonArgs, refused};
use super::output::{Table, fail, print, print_json};
use super::show::time_text;
use crate::control::client::{self, Failure};
use crate::control::limits::{Words, words};
use crate::exit::Exit;

/// Arguments of `diskchain throttle`.
#[derive(Debug, Args)]
pub struct ThrottleArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the limits
    Show {
        #[command(flatten)]
        of: Of,
    },
    /// Change some limits; the others stay as they are
    Set {
        #[command(flatten)]
        of: Of,
        /// Limits such as iops_total=2000 bps_write=100MiB/s bps_write_max_length=30s; 0 is no limit
        #[arg(required = true, value_parser = parse_limit, value_name = "LIMIT=VALUE")]
        limits: Vec<(String, Value)>,
    },
    /// Remove all limits
    Clear {
        #[command(flatten)]
        of: Of,
    },
}

/// Whose limits.
#[derive(Debug, Args)]
struct Of {
    /// The disk, or with --group the throttle group
    name: String,
    /// The name is that of a throttle group
    #[arg(long)]
    group: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Print JSON, as the control API
    #[arg(long)]
    json: bool,
}

impl Of {
    fn path(&self) -> String {
        let name = client::segment(&self.name);
        if self.group { format!("/v1/throttles/{name}") } else { format!("/v1/disks/{name}/throttle") }
    }
}

/// Runs `diskchain throttle`.
pub async fn run(args: ThrottleArgs) -> Exit {
    let (of, answer) = match args.action {
        Action::Show { of } => {
            let answer = client::get(&of.daemon.socket(), &of.path()).await;
            (of, answer)
        }
        Action::Set { of, limits } => {
            let answer = set(&of.daemon.socket(), &of.path(), limits).await;
            (of, answer)
        }
        Action::Clear { of } => {
            let answer = client::put(&of.daemon.socket(), &of.path(), "{}").await;
            (of, answer)
        }
    };
    let answer: Value = match answer {
        Ok(answer) => answer,
        Err(failure) => return refused(&failure),
    };
    if of.json {
        return print_json(&answer);
    }
    match (serde_json::from_value(answer["limits"].clone()), answer["waiting"].as_u64()) {
        (Ok(limits), Some(waiting)) => print(&page(&of.name, &limits, waiting as usize)),
        _ => fail(Exit::Failed, "the daemon's answer is not understood"),
    }
}

/// Changes some limits. The others are read before, so that a change by somebody else in between is lost.
async fn set(socket: &Path, path: &str, limits: Vec<(String, Value)>) -> Result<Value, Failure> {
    let now: Value = client::get(socket, path).await?;
    let mut wanted = now["limits"].as_object().cloned().unwrap_or_default();
    // A limit that goes takes its burst with it.
    for (word, _) in limits.iter().filter(|(_, value)| *value == json!(0)) {
        let burst = format!("{word}_");
        wanted.retain(|other, _| !other.starts_with(&burst));
    }
    wanted.extend(limits);
    client::put(socket, path, &Value::from(wanted).to_string()).await
}

/// `iops_total=2000`
fn parse_limit(text: &str) -> Result<(String, Value), String> {
    let (word, value) =
        text.split_once('=').ok_or("a limit and its value are joined by `=`: iops_total=2000")?;
    if !words().any(|known| known == word) {
        let known: Vec<String> = words().collect();
        return Err(match diskchain_config::nearest(word, known.iter().map(String::as_str)) {
            Some(meant) => format!("there is no limit `{word}`; did you mean `{meant}`?"),
            None => format!("there is no limit `{word}`; the limits are {}", known.join(", ")),
        });
    }
    let number = value.replace('_', "").parse::<u64>();
    let value = if word.ends_with("_max_length") {
        let seconds = |length: std::time::Duration| json!(length.as_secs_f64());
        if value == "0" {
            Ok(json!(0))
        } else {
            parse_duration(value).map(seconds).map_err(|why| why.to_string())
        }
    } else if let Ok(number) = number {
        Ok(json!(number))
    } else if word == "iops_size" {
        parse_size(value).map(Value::from).map_err(|why| why.to_string())
    } else if word.starts_with("bps") {
        parse_rate(value).map(Value::from).map_err(|why| why.to_string())
    } else {
        Err(format!("`{value}` is not a number of operations a second"))
    };
    Ok((word.to_owned(), value?))
}

/// Limits as people read them.
pub fn page(heading: &str, limits: &Words, waiting: usize) -> String {
    let mut table = Table::new(heading);
    let mut any = false;
    for word in words() {
        let value = limits.0.get(&word).cloned().unwrap_or_default();
        if value.as_f64().is_none_or(|value| value == 0.0) {
            continue;
        }
        any = true;
        let text = match value.as_u64() {
            Some(bytes) if word == "iops_size" => format_size(bytes),
            Some(bytes) if word.starts_with("bps") => format_rate(bytes),
            Some(operations) => format!("{operations}/s"),
            None => time_text(value.as_f64().unwrap_or_default()),
        };
        table.row(word, text);
    }
    if !any {
        table.row("limits", "none");
    }
    table.row("waiting", format!("{waiting} requests"));
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_in_the_configuration() {
        assert_eq!(parse_limit("iops_total=20_000"), Ok(("iops_total".into(), json!(20_000))));
        assert_eq!(parse_limit("bps_write=1MiB/s"), Ok(("bps_write".into(), json!(1 << 20))));
        assert_eq!(parse_limit("bps_write=1048576"), Ok(("bps_write".into(), json!(1 << 20))));
        assert_eq!(parse_limit("bps_read_max_length=1.5s"), Ok(("bps_read_max_length".into(), json!(1.5))));
        assert_eq!(parse_limit("iops_size=64KiB"), Ok(("iops_size".into(), json!(65536))));
        assert!(parse_limit("iops_totl=1").unwrap_err().contains("did you mean `iops_total`?"));
        assert!(parse_limit("bps_read=1MiB").unwrap_err().contains("1MiB/s"));
        assert!(parse_limit("iops_total=fast").unwrap_err().contains("operations"));
        assert!(parse_limit("iops_total").unwrap_err().contains('='));
    }
}
