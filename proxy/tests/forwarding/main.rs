//! A request's whole way through the agent, without the kernel: real TLS on both sides over loopback, with the
//! connection handed over as the enroller would.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on has failed"
)]

mod stage;

mod answers;
mod bodies;
mod ends;
mod faults;
mod identity;
mod limits;
mod pooling;
mod refusals;
mod servers;
mod upgrades;
