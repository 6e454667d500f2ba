//! Limits of a disk or a group, by the rules of QEMU's throttle groups.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::codes;
use crate::diagnostics::Finding;
use crate::keys::MAX_RATE;
use crate::plan::{Burst, Limit, Throttle};
use crate::shape::Settings;
use crate::source::At;

/// The limits that the settings say. 0 is no limit.
pub(super) fn throttle(settings: &Settings, findings: &mut Vec<Finding>) -> Throttle {
    let mut limit = |name| limit(settings, name, findings);
    let throttle = Throttle {
        iops_total: limit("iops_total"),
        iops_read: limit("iops_read"),
        iops_write: limit("iops_write"),
        bps_total: limit("bps_total"),
        bps_read: limit("bps_read"),
        bps_write: limit("bps_write"),
        iops_size: positive(settings, "iops_size").map(|at| at.value),
    };
    for unit in ["iops", "bps"] {
        check_total(settings, unit, findings);
    }
    check_iops_size(settings, findings);
    throttle
}

/// A number that was written, right, and not 0.
fn positive(settings: &Settings, name: &str) -> Option<At<NonZeroU64>> {
    let At { value, span } = settings.written::<u64>(name)?;
    NonZeroU64::new(value).map(|value| At { value, span })
}

fn limit(settings: &Settings, name: &str, findings: &mut Vec<Finding>) -> Option<Limit> {
    let (max_name, length_name) = (format!("{name}_max"), format!("{name}_max_length"));
    let rate = positive(settings, name);
    let max = positive(settings, &max_name);
    let length = settings.written::<Duration>(&length_name);
    match (&rate, &max) {
        (None, Some(max)) if !settings.is_broken(name) => findings.push(
            Finding::new(&codes::BURST_WITHOUT_RATE, format!("`{max_name}` without `{name}`"))
                .at(max.span, "a burst above no limit")
                .help(format!("say `{name}` too, or remove `{max_name}`")),
        ),
        (Some(rate), Some(max)) if max.value < rate.value => findings.push(
            Finding::new(&codes::BURST_BELOW_RATE, format!("`{max_name}` is below `{name}`"))
                .at(max.span, "the burst")
                .at(rate.span, "the limit"),
        ),
        _ => (),
    }
    match (&max, &length) {
        (None, Some(length)) if !settings.is_broken(&max_name) => findings.push(
            Finding::new(&codes::LENGTH_WITHOUT_BURST, format!("`{length_name}` without `{max_name}`"))
                .at(length.span, "the length of no burst"),
        ),
        (Some(max), Some(length)) if is_too_large(max.value, length.value) => findings.push(
            Finding::new(
                &codes::BURST_TOO_LONG,
                format!("`{max_name}` times `{length_name}` is above 10^15"),
            )
            .at(length.span, "the length")
            .at(max.span, "the rate"),
        ),
        _ => (),
    }
    let length = settings.value(&length_name);
    Some(Limit { rate: rate?.value, burst: max.map(|max| Burst { rate: max.value, length }) })
}

/// A part of a second counts as a whole one, so that no arithmetic with fractions comes to another result.
fn is_too_large(rate: NonZeroU64, length: Duration) -> bool {
    let seconds = length.as_secs() + u64::from(length.subsec_nanos() > 0);
    u128::from(rate.get()) * u128::from(seconds) > u128::from(MAX_RATE)
}

fn check_total(settings: &Settings, unit: &str, findings: &mut Vec<Finding>) {
    let total = format!("{unit}_total");
    let Some(whole) = positive(settings, &total) else { return };
    for part in [format!("{unit}_read"), format!("{unit}_write")] {
        if let Some(limit) = positive(settings, &part) {
            findings.push(
                Finding::new(&codes::TOTAL_AND_PART, format!("`{part}` together with `{total}`"))
                    .at(limit.span, "one direction")
                    .at(whole.span, "both directions")
                    .help("0 switches a limit off"),
            );
        }
    }
}

fn check_iops_size(settings: &Settings, findings: &mut Vec<Finding>) {
    let limits = ["iops_total", "iops_read", "iops_write"];
    let limited = limits.iter().any(|name| positive(settings, name).is_some() || settings.is_broken(name));
    if let (Some(size), false) = (positive(settings, "iops_size"), limited) {
        findings.push(
            Finding::new(&codes::IOPS_SIZE_ALONE, "`iops_size` without an `iops` limit")
                .at(size.span, "")
                .help("say `iops_total`, `iops_read` or `iops_write` too, or remove it"),
        );
    }
}
