//! The benchmark: Understudy beside what people would run instead, in one run.
//!
//! A run makes a node in a box, starts every target in it, and lets them take turns. `statistics`, `clients`, `goals` and
//! `report` are plain functions over plain data; `stage` and `measures` do things. `content`, `durations` and `room` are
//! what the programs of the run share: `upstream`, which answers, and `load`, which asks.

pub mod app;
pub mod clients;
pub mod content;
pub mod durations;
pub mod goals;
pub mod measures;
pub mod peers;
pub mod process;
pub mod report;
pub mod room;
pub mod run;
pub mod stage;
pub mod statistics;
