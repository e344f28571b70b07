//! Runs the benchmark. `cargo xtask bench` builds and finds what it needs; this takes arguments and prints.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use understudy_bench::{
    app::{self, Options},
    peers::{self, Executables, Peer},
    report::{self, Report, progress},
    stage,
};

/// Understudy beside what people would run instead, in one run.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Be the raw relay that proxies are measured beside
    #[command(hide = true)]
    Relay {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        to: SocketAddr,
    },
}

#[derive(Debug, clap::Args)]
struct Run {
    /// In three minutes rather than forty: short slices, few of them, and the measures that matter most
    #[arg(long)]
    quick: bool,
    /// Only these measures: h1-1, h2-16x8, latency-1, list, watches-h1, node ...
    #[arg(long, value_name = "MEASURE", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these peers beside Understudy: direct, relay, nginx, haproxy, haproxy-h2, envoy, go
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    peers: Vec<Peer>,
    /// How long a slice lasts
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: Option<u32>,
    /// How many rounds there are
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// The agent's executable, a release build; otherwise that of `UNDERSTUDY_BIN`, or the one beside this program
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Compare with this build of the agent, and nothing else
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Envoy's executable
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// The program of tests/bench/reverseproxy, built
    #[arg(long, value_name = "PATH")]
    go: Option<PathBuf>,
    /// A peer that can't be had, and why
    #[arg(long, value_name = "PEER=WHY", value_parser = reason)]
    missing: Vec<(Peer, String)>,
    /// Where the report goes: report.json, tables.md and charts
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    output: PathBuf,
    /// Put the run's results into this directory's performance.md, and its charts beside it
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
}

fn reason(text: &str) -> Result<(Peer, String)> {
    let (peer, why) = text.split_once('=').context("it is PEER=WHY")?;
    Ok((peer.parse()?, why.to_owned()))
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Some(Other::Relay { listen, to }) = arguments.other {
        return runtime()?.block_on(peers::relay(listen, to));
    }
    stage::pin()?;
    let run = arguments.run;
    let absolute = |path: Option<PathBuf>| path.map(std::path::absolute).transpose();
    let options = Options {
        quick: run.quick,
        only: run.only,
        peers: run.peers,
        seconds: run.seconds,
        rounds: run.rounds,
        executables: Executables {
            envoy: absolute(run.envoy)?,
            go: absolute(run.go)?,
            understudy: absolute(run.binary)?,
            against: absolute(run.against)?,
        },
        missing: run
            .missing
            .into_iter()
            .map(|(peer, why)| (peer.to_string(), why))
            .collect::<BTreeMap<_, _>>(),
    };
    let report = runtime()?.block_on(app::run(&options))?;
    write(&run.output, &report)?;
    if let Some(docs) = &run.docs {
        document(docs, &report)?;
    }
    #[expect(clippy::print_stdout, reason = "the report is what this program is for")]
    {
        println!("{}", report::terminal(&report));
    }
    progress(format!("the report is in {}", run.output.display()));
    Ok(())
}

fn write(output: &Path, report: &Report) -> Result<()> {
    fs::create_dir_all(output).with_context(|| format!("making {}", output.display()))?;
    let put = |name: &str, text: String| {
        let path = output.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    put("report.json", serde_json::to_string_pretty(report)? + "\n")?;
    put("tables.md", report::markdown(report))?;
    put("goals.md", report::goals(report))?;
    charts(output, report)
}

fn charts(directory: &Path, report: &Report) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    for (name, chart) in report::CHARTS {
        let path = directory.join(name);
        fs::write(&path, report::chart(report, &chart)).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn document(docs: &Path, report: &Report) -> Result<()> {
    let path = docs.join("performance.md");
    let page = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    fs::write(&path, report::page(&page, report)?).with_context(|| format!("writing {}", path.display()))?;
    charts(&docs.join("performance"), report)
}
