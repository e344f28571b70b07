//! Recording: exec and attach of a session, written down while they run.
//!
//! `stream` says what such a stream consists of; `websocket` and `spdy` read that off the bytes as they pass, without
//! changing them. `transcript` and `text` make of it what is written down, and `cast` writes and verifies it.

pub mod about;
pub mod cast;
pub mod spdy;
pub mod stream;
mod text;
pub mod transcript;
pub mod websocket;
