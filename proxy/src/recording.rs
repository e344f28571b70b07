//! Recording: exec, attach and port-forward of a session, written down while they run.
//!
//! `policy` decides which requests are recorded. `stream` says what such a stream consists of; `websocket` and `spdy` read
//! that off the bytes as they pass, without changing them, and `ports` what a port-forward does. `transcript` and `text`
//! make of it what is written down, and `cast` writes and verifies it. `recorder` has the files and the task that writes
//! each, and `tap` is what the stream passes. `age` wraps the keys of recordings that only some may
//! read. `file` opens a recording for all that read one, and `report` says of files whether they are as they were written. `upload`
//! brings those that have come to their end to a store elsewhere.

pub mod about;
pub mod age;
pub mod cast;
pub mod file;
pub mod policy;
pub mod ports;
pub mod recorder;
pub mod report;
pub mod spdy;
pub mod stream;
pub mod tap;
mod text;
pub mod transcript;
pub mod upload;
pub mod websocket;
