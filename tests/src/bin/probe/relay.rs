//! A TCP relay: gives a server that binds one port a second one, as the service's DNAT would.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::net::{TcpListener, TcpStream};

/// Relays every connection to `listen` on to `target`, until it is killed.
#[derive(Debug, Args)]
pub(crate) struct Relay {
    /// Where to listen.
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// Where to go.
    #[arg(long)]
    target: SocketAddr,
}

impl Relay {
    pub(crate) async fn run(self) -> Result<()> {
        let mut serving = tokio::task::JoinSet::new();
        for address in self.listen {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("listening on {address}"))?;
            serving.spawn(serve(listener, self.target));
        }
        super::say("relaying");
        while serving.join_next().await.is_some() {}
        Ok(())
    }
}

async fn serve(listener: TcpListener, target: SocketAddr) {
    while let Ok((mut client, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut server = TcpStream::connect(target).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}
