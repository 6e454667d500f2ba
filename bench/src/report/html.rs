//! The report as one page without outside parts: a bar for each peer's throughput, one for its processor time.

use std::fmt::Write;

use super::{CaseReport, PeerReport, Report};
use crate::statistics::Spread;

/// Pixels of the longest bar.
const BAR: f64 = 420.0;

/// Pixels of one line.
const LINE: usize = 22;

/// The page.
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    write(report, &mut page).expect("a string takes everything");
    page
}

fn write(report: &Report, page: &mut String) -> std::fmt::Result {
    let machine = &report.machine;
    writeln!(
        page,
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>diskchain benchmark</title>\n<style>\
         body{{font:14px sans-serif;margin:2em;max-width:75em}}h2{{font-size:15px;margin:1.6em 0 .3em}}\
         svg{{display:block}}text{{font:12px sans-serif}}.s{{fill:#4878a8}}.c{{fill:#c08040}}.o{{fill:#2a9d6a}}\
         line{{stroke:#222}}</style>\n<h1>diskchain benchmark</h1>"
    )?;
    writeln!(
        page,
        "<p>{} × {}, {}, Linux {}; images of {} MiB on {} and {}.<br>{}<br>{} rounds of {} ms. Bars are medians, \
         lines go from the least to the most. Left: requests a second; right: server CPU, µs a request.</p>",
        machine.cores,
        escaped(&machine.processor),
        escaped(&machine.memory),
        escaped(&machine.kernel),
        report.size >> 20,
        escaped(&machine.file_systems[0]),
        escaped(&machine.file_systems[1]),
        escaped(&machine.versions.join(" · ")),
        report.rounds,
        report.lengths.window.as_millis()
    )?;
    report.cases.iter().try_for_each(|case| plot(case, page))?;
    writeln!(page, "</html>")
}

fn plot(case: &CaseReport, page: &mut String) -> std::fmt::Result {
    let longest = |figure: fn(&PeerReport) -> Option<Spread>| {
        case.peers.iter().filter_map(figure).map(|figure| figure.most).fold(f64::MIN_POSITIVE, f64::max)
    };
    let (speed, cpu) = (longest(|peer| Some(peer.per_second)), longest(|peer| peer.server_cpu));
    writeln!(page, "<h2>{}</h2>", escaped(&case.name))?;
    writeln!(page, "<svg width=\"1180\" height=\"{}\">", case.peers.len() * LINE + 4)?;
    for (index, peer) in case.peers.iter().enumerate() {
        let y = index * LINE;
        writeln!(page, "<text x=\"0\" y=\"{}\">{}</text>", y + 14, escaped(peer.peer.name()))?;
        let class = if index == 0 { "o" } else { "s" };
        bar(page, 150.0, y, class, peer.per_second, BAR / speed, &format!("{:.0}", peer.per_second.median))?;
        if let Some(used) = peer.server_cpu {
            bar(page, 700.0, y, "c", used, BAR / cpu, &format!("{:.2}", used.median))?;
        }
    }
    writeln!(page, "</svg>")
}

fn bar(
    page: &mut String,
    x: f64,
    y: usize,
    class: &str,
    figure: Spread,
    scale: f64,
    label: &str,
) -> std::fmt::Result {
    let (width, from, to) = (figure.median * scale, x + figure.least * scale, x + figure.most * scale);
    writeln!(page, "<rect class=\"{class}\" x=\"{x}\" y=\"{}\" width=\"{width:.1}\" height=\"16\"/>", y + 2)?;
    writeln!(page, "<line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{0}\" y2=\"{0}\"/>", y + 10)?;
    writeln!(page, "<text x=\"{:.1}\" y=\"{}\">{label}</text>", to.max(x + width) + 5.0, y + 14)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
