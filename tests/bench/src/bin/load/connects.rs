//! Connections that are opened and closed, for what connecting alone costs.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use socket2::SockRef;

use super::say;

/// Prints how many there were, and how long they took.
#[derive(Debug, Args)]
pub(crate) struct Connects {
    /// The address to dial.
    #[arg(long)]
    to: SocketAddr,
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    count: u32,
}

impl Connects {
    pub(crate) fn run(self) -> Result<()> {
        let begun = Instant::now();
        for _ in 0..self.count {
            let stream = TcpStream::connect(self.to).with_context(|| format!("dialling {}", self.to))?;
            // A port that waits out its minute would soon be one of all.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        say(&json!({ "connects": self.count, "seconds": begun.elapsed().as_secs_f64() }))
    }
}
