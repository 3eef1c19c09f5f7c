//! The text format of Prometheus, version 0.0.4, from OpenMetrics: the two differ in the names of counters and in what
//! their comments may say.

use std::fmt::Write as _;

/// Translates a page of OpenMetrics.
#[must_use]
pub(super) fn from_open_metrics(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut help = None;
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            // It comes before the type, by which the metric is named.
            (Some("#"), Some("HELP"), Some(_), said) => help = said,
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    other => ("", other),
                };
                let help = help.take().unwrap_or_default();
                // Writing to a String does not fail.
                let _ = write!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
            }
            (Some("#"), ..) => {}
            _ => {
                text += line;
                text += "\n";
            }
        }
    }
    text
}
