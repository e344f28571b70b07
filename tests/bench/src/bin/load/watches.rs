//! Many watches, or many connections on which nothing happens, held while somebody measures what they cost.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;
use tokio::task::JoinSet;
use understudy_bench::room;

use super::{
    http::{Connection, SMALL_TARGET},
    say,
    server::{Dialler, Protocol, Server},
};

/// The watch's target.
pub(crate) const WATCH: &str = "/api/v1/namespaces/bench/configmaps?watch=true";
/// How many are opened at the same time.
const AT_ONCE: usize = 64;

/// Prints `open` when all are, and `lost` when standard input has ended.
#[derive(Debug, Args)]
pub(crate) struct Watches {
    #[command(flatten)]
    server: Server,
    /// How many.
    #[arg(long)]
    count: usize,
    /// How many streams go over one HTTP/2 connection.
    #[arg(long, default_value_t = 100)]
    streams: usize,
}

/// Prints `open` when all are, and `lost` when standard input has ended.
#[derive(Debug, Args)]
pub(crate) struct Idle {
    #[command(flatten)]
    server: Server,
    /// How many.
    #[arg(long)]
    count: usize,
}

/// Open watches, and the connections that they are on.
pub(crate) struct Opened {
    pub(crate) bodies: Vec<Incoming>,
    pub(crate) connections: Vec<Connection>,
}

impl Watches {
    pub(crate) async fn run(self) -> Result<()> {
        let begun = Instant::now();
        let Opened { bodies, connections } = open(&self.server, self.count, self.streams).await?;
        let figures = json!({
            "open": bodies.len(),
            "connections": connections.len(),
            "seconds": begun.elapsed().as_secs_f64(),
        });
        say(&figures)?;
        let mut ends = JoinSet::new();
        for mut body in bodies {
            // Whatever comes is read; the end of it is what counts.
            ends.spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
        }
        until_told().await?;
        let lost = std::iter::from_fn(|| ends.try_join_next()).count();
        say(&json!({ "lost": lost }))
    }
}

impl Idle {
    pub(crate) async fn run(self) -> Result<()> {
        room::make_for(self.count as u64)?;
        let begun = Instant::now();
        let dialler = self.server.dialler(true)?;
        let connections = connect(&dialler, self.count, true).await?;
        let figures = json!({
            "open": connections.len(),
            "connections": connections.len(),
            "seconds": begun.elapsed().as_secs_f64(),
        });
        say(&figures)?;
        until_told().await?;
        let lost = connections.iter().filter(|connection| connection.has_ended()).count();
        say(&json!({ "lost": lost }))
    }
}

/// Waits for the end of standard input.
pub(crate) async fn until_told() -> Result<()> {
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())).await??;
    Ok(())
}

/// Opens so many watches: each on a connection of its own over HTTP/1.1, and over HTTP/2 so many on one.
pub(crate) async fn open(server: &Server, count: usize, streams: usize) -> Result<Opened> {
    let dialler = server.dialler(true)?;
    let each = match dialler.protocol {
        Protocol::Http1 => 1,
        Protocol::Http2 => streams.max(1),
    };
    let wanted = count.div_ceil(each);
    room::make_for(wanted as u64)?;
    let mut connections = connect(&dialler, wanted, false).await?;
    let mut opening = JoinSet::new();
    let mut bodies = Vec::with_capacity(count);
    let mut opened = Vec::with_capacity(wanted);
    for (index, mut connection) in connections.drain(..).enumerate() {
        let here = each.min(count - index * each);
        for _ in 0..here {
            if opening.len() >= AT_ONCE {
                bodies.push(next(&mut opening).await?);
            }
            if let Some(stream) = connection.stream() {
                opening.spawn(async move { Ok(stream.get(WATCH).await?.into_body()) });
            } else {
                bodies.push(connection.get(WATCH).await?.into_body());
            }
        }
        opened.push(connection);
    }
    while !opening.is_empty() {
        bodies.push(next(&mut opening).await?);
    }
    ensure!(
        bodies.len() == count,
        "{} watches are open in place of {count}",
        bodies.len()
    );
    Ok(Opened {
        bodies,
        connections: opened,
    })
}

async fn next<T: 'static>(tasks: &mut JoinSet<Result<T>>) -> Result<T> {
    tasks.join_next().await.context("one of them is under way")??
}

/// Opens so many connections; where it is wanted, each has asked once.
pub(crate) async fn connect(dialler: &Dialler, count: usize, ask: bool) -> Result<Vec<Connection>> {
    let mut opening = JoinSet::new();
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        if opening.len() >= AT_ONCE {
            connections.push(next(&mut opening).await?);
        }
        let dialler = dialler.clone();
        opening.spawn(async move {
            let mut connection = Connection::open(&dialler).await?;
            if ask {
                connection.get_small(SMALL_TARGET).await?;
            }
            Ok(connection)
        });
    }
    while !opening.is_empty() {
        connections.push(next(&mut opening).await?);
    }
    Ok(connections)
}
