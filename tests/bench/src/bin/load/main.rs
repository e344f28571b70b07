//! The loads of the benchmark that no common tool makes: watches by the ten thousand, an event to all of them, slow
//! readers, answers whose every byte is checked, handshakes, round trips through an exec, and latency by the clock.
//!
//! Each prints lines of JSON. Whatever isn't answered as it must be ends the load with an error: it gives no figures.

mod connects;
mod echo;
mod exec;
mod fanout;
mod handshakes;
mod http;
mod latency;
mod list;
mod readers;
mod server;
mod timer;
mod watches;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

/// Puts a load on a server.
#[derive(Debug, Parser)]
enum Load {
    /// Opens watches and holds them until standard input ends.
    Watches(watches::Watches),
    /// Opens connections, asks once on each, and holds them until standard input ends.
    Idle(watches::Idle),
    /// Opens watches and times the arrival of events on them.
    Fanout(fanout::Fanout),
    /// Connects again and again, with one request each.
    Handshakes(handshakes::Handshakes),
    /// Reads large answers slowly until standard input ends.
    Readers(readers::Readers),
    /// Reads large answers, one after the other.
    List(list::List),
    /// Asks for a small object, again and again, and times it.
    Latency(latency::Latency),
    /// Times round trips through an exec.
    Echo(echo::Echo),
    /// Moves many bytes through an exec.
    Bulk(echo::Bulk),
    /// Connects and closes, without a word.
    Connects(connects::Connects),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Load::parse() {
        Load::Watches(load) => load.run().await,
        Load::Idle(load) => load.run().await,
        Load::Fanout(load) => load.run().await,
        Load::Handshakes(load) => load.run().await,
        Load::Readers(load) => load.run().await,
        Load::List(load) => load.run().await,
        Load::Latency(load) => load.run().await,
        Load::Echo(load) => load.run().await,
        Load::Bulk(load) => load.run().await,
        Load::Connects(load) => load.run(),
    }
}

/// Prints one line of JSON, at once.
#[expect(clippy::print_stdout, reason = "figures are what standard output is for")]
fn say(figures: &impl Serialize) -> Result<()> {
    // Standard output is line-buffered, on a pipe as well.
    println!("{}", serde_json::to_string(figures)?);
    Ok(())
}
