//! The benchmark: Understudy beside what people would run instead, in one run.

pub mod content;
pub mod durations;
pub mod room;
