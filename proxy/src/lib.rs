//! Understudy: a transparent proxy for the Kubernetes API server that lends a pod an identity for a session.
//!
//! The modules stand in the order that a connection passes them. `ARCHITECTURE.md` draws the whole.

#![deny(unsafe_code)]

// The agent as a whole.
pub mod app;
pub mod cli;
pub mod logging;

// What everything stands on.
pub mod backoff;
pub mod clock;
pub mod environment;
pub(crate) mod escape;
pub mod files;
pub mod pod;
pub mod told;

// A pod's connect, in the kernel, and the listener that it is turned to.
pub mod kernel;

pub mod enrol;

pub mod gate;
pub mod handover;

// Why either side trusts the other.
pub mod trust;

// Sessions, and the credentials that act for them.
pub mod credentials;
pub mod sessions;

// Where they and their pods come from, in a cluster.
pub mod cluster;

// A connection,
pub mod limits;

pub mod tls;

pub mod gather;

pub mod inbound;

// each request on it,
pub mod forward;

pub mod request_info;

pub mod caller;

pub mod identity;

pub mod http2;
pub mod upstream;

pub mod upgrade;

pub mod recording;

pub mod body;

pub mod status;

// and what is written down and shown.
pub mod exchange;

pub mod traces;

pub mod audit;

pub mod metrics;

pub mod admin;

pub mod operator;

pub mod check;
pub mod tools;

// What must hold of any input, for fuzzing and for tests of properties.
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
