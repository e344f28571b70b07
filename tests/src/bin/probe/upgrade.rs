//! A protocol switch with bytes glued to the request, and a half-close after it.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::Server;

/// Asks for an upgrade, sends text in the very same write, ends its own side once answered, and prints `status N` and what came back
/// until the end.
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    server: Server,
    /// Path and query.
    path: String,
    /// The `Upgrade` header.
    #[arg(long, default_value = "SPDY/3.1")]
    protocol: String,
    /// The `Connection` header.
    #[arg(long, default_value = "keep-alive, Upgrade")]
    connection: String,
    /// The bytes that follow the request at once.
    #[arg(long)]
    glued: String,
}

impl Upgrade {
    pub(crate) async fn run(self) -> Result<()> {
        let mut stream = self.server.connect("http/1.1").await?;
        let request = self.server.get_http1(&self.path).await?;
        let mut text = format!("GET {} HTTP/1.1\r\n", request.uri());
        for (name, value) in request.headers() {
            write!(text, "{name}: {}\r\n", value.to_str()?)?;
        }
        write!(
            text,
            "Connection: {}\r\nUpgrade: {}\r\n\r\n{}",
            self.connection, self.protocol, self.glued
        )?;
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await?;

        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("\r\n\r\n") {
            if stream.read_buf(&mut answer).await? == 0 {
                bail!("no answer");
            }
        }
        stream.shutdown().await.context("ending our own side")?;
        stream
            .read_to_end(&mut answer)
            .await
            .context("reading what follows the answer")?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, rest) = answer.split_once("\r\n\r\n").context("the answer has no head")?;
        super::say(format_args!("status {}", head.split(' ').nth(1).unwrap_or_default()));
        super::say(rest);
        Ok(())
    }
}
