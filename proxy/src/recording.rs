//! Recording: exec and attach of a session, written down while they run.
//!
//! `stream` says what such a stream consists of; `websocket` and `spdy` read that off the bytes as they pass, without
//! changing them.

pub mod spdy;
pub mod stream;
pub mod websocket;
