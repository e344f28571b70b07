//! A request's whole way through the agent, without the kernel: real TLS on both sides over loopback, with the
//! connection handed over as the enroller would.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on has failed"
)]

mod stage;
mod wire;

mod answers;
mod audited;
mod bodies;
mod callers;
mod ends;
mod faults;
mod frames;
mod h2spec;
mod hostile_http1;
mod hostile_http2;
mod hostile_identity;
mod hostile_tls;
mod hostile_upgrades;
mod hostile_uploads;
mod identity;
mod limits;
mod lines;
mod nested;
mod pooling;
mod recording;
mod refusals;
mod servers;
mod upgrades;
