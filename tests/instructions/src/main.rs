//! How many instructions the agent takes for a request, counted by valgrind's callgrind: the figure that a busy machine
//! doesn't change. `cargo xtask instructions` holds it to the one that is kept.
//!
//! The agent's part of a request is whole, from the client's TLS to the upstream's ([`agent`]), and a process of its own under
//! valgrind; who asks ([`client`]) and who answers ([`upstream`]) is this process. What is counted is the difference between two
//! runs that ask differently often, so that neither start nor handshakes are in it. The kernel's share isn't.

mod agent;
mod client;
mod upstream;

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
    time::timeout,
};

/// Requests of the two runs of which the difference counts.
const FEW: usize = 512;
const MANY: usize = 2560;
/// How long a run may take; valgrind makes the agent some fifty times slower.
const PATIENCE: Duration = Duration::from_mins(3);

#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }

    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    understudy::logging::start(understudy::cli::LogFormat::Text);
    let runtime = understudy::app::runtime()?;
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["agent", directory, upstream] => runtime.block_on(agent::run(Path::new(directory), upstream)),
        ["ask", directory, agent, protocol, requests] => {
            let protocol = if protocol == "http2" {
                Protocol::Http2
            } else {
                Protocol::Http1
            };
            runtime.block_on(client::ask(
                Path::new(directory),
                agent.parse()?,
                protocol,
                requests.parse()?,
            ))
        }
        _ => runtime.block_on(count()),
    };
    runtime.shutdown_background();
    outcome
}

/// A line for each protocol: its name, and instructions for each request.
async fn count() -> Result<()> {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let few = instructions(protocol, FEW).await?;
        let many = instructions(protocol, MANY).await?;
        let each = many.saturating_sub(few) / (MANY - FEW) as u64;
        writeln!(std::io::stdout(), "{} {each}", protocol.name())?;
    }
    Ok(())
}

/// Of an agent's whole life, in which it is asked so often.
async fn instructions(protocol: Protocol, requests: usize) -> Result<u64> {
    let directory = tempfile::tempdir()?;
    let address = upstream::start(directory.path()).await?;
    let profile = match std::env::var_os("UNDERSTUDY_PROFILE") {
        Some(kept) => PathBuf::from(kept).join(format!("{}.{requests}.callgrind", protocol.name())),
        None => directory.path().join("profile"),
    };
    let mut agent = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-instr=no"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .arg("agent")
        .arg(directory.path())
        .arg(format!("https://{address}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("valgrind: `cargo xtask setup` installs it")?;
    let run = async {
        let stdout = agent.stdout.take().context("the agent's output")?;
        let mut stderr = agent.stderr.take().context("the agent's errors")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        let listener: SocketAddr = line.trim().parse().context("the agent doesn't say where it listens")?;
        client::ask(directory.path(), listener, protocol, requests).await?;
        drop(agent.stdin.take());
        let mut said = String::new();
        stderr.read_to_string(&mut said).await?;
        agent.wait().await?;
        collected(&said)
    };
    timeout(PATIENCE, run).await.context("the agent under valgrind")?
}

/// What callgrind says in the end.
fn collected(said: &str) -> Result<u64> {
    for line in said.lines() {
        if let Some((_, count)) = line.split_once("Collected :") {
            return Ok(count.trim().parse()?);
        }
    }
    bail!("callgrind counted nothing: {said}")
}
