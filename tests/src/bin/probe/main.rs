//! What the end-to-end tests ask from inside a pod or a node, where the tests themselves don't enter: plain requests,
//! dials that say whom they reached, watches by the thousand over one connection, slow readers, and a relay. It prints
//! what it saw, a line at a time; judging is the tests'.

mod attack;
mod churn;
mod client;
mod dial;
mod get;
mod hammer;
mod read;
mod relay;
mod upgrade;
mod watches;

use anyhow::Result;
use clap::Parser;

/// Asks and listens from inside the box.
#[derive(Debug, Parser)]
enum Probe {
    /// Does harm, in every way at once, at a bounded rate.
    Attack(attack::Attack),
    /// Opens connections and drops them, in every way.
    Churn(churn::Churn),
    /// Sends a plain GET and prints the answer's body.
    Get(get::Get),
    /// Dials addresses and prints whom the socket says it reached.
    Dial(dial::Dial),
    /// Asks again and again, each time on a new connection.
    Hammer(hammer::Hammer),
    /// Relays a TCP address to another.
    Relay(relay::Relay),
    /// Reads one answer to its end, or as slowly as told, and prints how much came.
    Read(read::Read),
    /// Switches protocols.
    Upgrade(upgrade::Upgrade),
    /// Opens many watches over one HTTP/2 connection.
    Watches(watches::Watches),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Probe::parse() {
        Probe::Attack(attack) => attack.run().await,
        Probe::Churn(churn) => churn.run().await,
        Probe::Get(get) => get.run().await,
        Probe::Dial(dial) => dial.run().await,
        Probe::Hammer(hammer) => hammer.run().await,
        Probe::Relay(relay) => relay.run().await,
        Probe::Read(read) => read.run().await,
        Probe::Upgrade(upgrade) => upgrade.run().await,
        Probe::Watches(watches) => watches.run().await,
    }
}

/// Prints one line, at once.
#[expect(clippy::print_stdout, reason = "what a probe saw is what its standard output is for")]
fn say(line: impl std::fmt::Display) {
    // Standard output is line-buffered, on a pipe as well.
    println!("{line}");
}
