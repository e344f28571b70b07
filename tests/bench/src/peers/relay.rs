//! The raw relay: bytes are copied both ways, and TLS is between client and upstream. What any proxy must cost.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpStream};

use super::{Start, Terms};

pub(super) fn start(terms: &Terms) -> Result<Start> {
    let arguments = [
        "relay".to_owned(),
        "--listen".to_owned(),
        terms.listen.to_string(),
        "--to".to_owned(),
        terms.upstream.to_string(),
    ];
    Ok(Start {
        program: std::env::current_exe().context("where this program is")?,
        arguments: arguments.into(),
    })
}

/// Relays until the process ends.
///
/// # Errors
/// The address can't be bound.
pub async fn relay(listen: SocketAddr, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("binding {listen}"))?;
    loop {
        // A client that is gone before it is accepted, or no descriptor for one, ends nothing but that connection.
        let Ok((mut client, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        tokio::spawn(async move {
            let mut upstream = TcpStream::connect(to).await?;
            client.set_nodelay(true)?;
            upstream.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut client, &mut upstream).await
        });
    }
}
