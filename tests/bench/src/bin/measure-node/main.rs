//! What Understudy costs the node that it is on, apart from what passes through it: the kernel's programs at every
//! connect, the time until a pod is enrolled, and the agent while nothing happens. It prints one object of JSON.

mod clock;
mod connects;
mod enrolment;
mod idle;
mod programs;
mod stage;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use serde_json::{Map, Value};
use understudy_bench::room;

/// Measures the node's own side, in a node in a box of its own. It needs root.
#[derive(Debug, Parser)]
struct Arguments {
    /// Fewer of everything.
    #[arg(long)]
    quick: bool,
    /// What is measured; everything, where nothing is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Measure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    Connects,
    Enrolment,
    Idle,
}

/// Files that the processes of a thousand pods and their namespaces are held by.
const FILES: u64 = 8_000;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    room::make_for(FILES)?;
    let wanted = |measure| arguments.only.is_empty() || arguments.only.contains(&measure);
    let mut figures = Map::new();
    if wanted(Measure::Connects) {
        figures.insert("connects".to_owned(), value(connects::measure(arguments.quick).await?)?);
    }
    if wanted(Measure::Enrolment) {
        figures.insert(
            "enrolment".to_owned(),
            value(enrolment::measure(arguments.quick).await?)?,
        );
    }
    if wanted(Measure::Idle) {
        figures.insert("idle".to_owned(), value(idle::measure(arguments.quick).await?)?);
    }
    say(&Value::Object(figures))
}

fn value(figures: impl serde::Serialize) -> Result<Value> {
    Ok(serde_json::to_value(figures)?)
}

#[expect(clippy::print_stdout, reason = "figures are what standard output is for")]
fn say(figures: &Value) -> Result<()> {
    println!("{}", serde_json::to_string(figures)?);
    Ok(())
}
