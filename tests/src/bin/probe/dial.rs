//! Dials, and what the socket itself says about them: getpeername, errno, and what comes back.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// How long a dial, and then its exchange, may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Dials each address and prints a JSON object for it: `dialled`, and `peer` or `errno`.
#[derive(Debug, Args)]
pub(crate) struct Dial {
    /// The addresses, `ip:port` or `[ip]:port`; an IPv4-mapped one is dialled on an IPv6 socket.
    #[arg(required = true)]
    addresses: Vec<SocketAddr>,
    /// Send this text once connected, read to the end, and print as `received` how many bytes came.
    #[arg(long)]
    send: Option<String>,
}

impl Dial {
    pub(crate) async fn run(self) -> Result<()> {
        for address in &self.addresses {
            let mut seen = json!({"dialled": address.to_string()});
            match timeout(LIMIT, TcpStream::connect(address))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            {
                Ok(stream) => {
                    seen["peer"] = json!(stream.peer_addr()?.to_string());
                    if let Some(text) = &self.send {
                        let (received, end) = exchange(stream, text).await;
                        seen["received"] = json!(received);
                        seen["end"] = json!(end);
                    }
                }
                Err(error) => {
                    seen["errno"] = json!(error.raw_os_error());
                    seen["error"] = json!(error.to_string());
                }
            }
            super::say(seen);
        }
        Ok(())
    }
}

/// How many bytes came back, and how it ended.
async fn exchange(mut stream: TcpStream, text: &str) -> (usize, String) {
    if let Err(error) = stream.write_all(text.as_bytes()).await {
        return (0, error.to_string());
    }
    let mut received = 0;
    let mut chunk = [0; 4096];
    loop {
        match timeout(LIMIT, stream.read(&mut chunk)).await {
            Ok(Ok(0)) => return (received, "closed".to_owned()),
            Ok(Ok(read)) => received += read,
            Ok(Err(error)) => return (received, error.to_string()),
            Err(_) => return (received, "open".to_owned()),
        }
    }
}
