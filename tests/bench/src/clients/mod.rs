//! The programs that ask: wrk, h2load and the project's own `load`. What each prints is parsed into what came of a
//! slice, and a slice in which anything went wrong is void. Plain functions; `stage` runs them.

mod h2load;
mod load;
mod perf;
mod wrk;

pub use h2load::parse as h2load;
pub use load::{last_line, lines, number};
pub use perf::instructions;
pub use wrk::parse as wrk;

/// What a client asked for, all of which was answered well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answers {
    /// How many were answered.
    pub requests: f64,
    /// In how many seconds.
    pub seconds: f64,
}

/// A time as wrk and h2load print it: `3.00s`, `853.20ms`, `1.02m`.
fn seconds(text: &str) -> Option<f64> {
    if let Some(millis) = text.strip_suffix("ms") {
        return Some(millis.parse::<f64>().ok()? / 1e3);
    }
    if let Some(minutes) = text.strip_suffix('m') {
        return Some(minutes.parse::<f64>().ok()? * 60.0);
    }
    text.strip_suffix('s')?.parse().ok()
}
