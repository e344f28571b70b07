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
