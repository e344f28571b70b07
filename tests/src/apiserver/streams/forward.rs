//! Port-forward: pairs of an error and a data stream. Every port is an echo server, but for one where nobody
//! listens, and but for pods that say where their kubelet would carry it.

use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::spdy::{self, Gone, Stream, StreamOutput};
use crate::apiserver::body::BoxError;

/// Where nobody listens.
const CLOSED_PORT: &str = "1";
/// The annotation of a pod whose ports, all of them, are at this address.
pub const CARRIED_TO: &str = "tests.understudy.dev/port-forward";

/// Where a pod's ports are, where it says so.
pub(crate) fn carried_to(pod: &Value) -> Option<SocketAddr> {
    pod["metadata"]["annotations"][CARRIED_TO].as_str()?.parse().ok()
}

/// Serves the pairs of one SPDY connection, however it's carried, until the client ends it.
pub(crate) async fn serve<S>(stream: S, to: Option<SocketAddr>) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite,
{
    let (mut session, connection) = spdy::start(stream);
    let work = async {
        let mut pairs = JoinSet::new();
        // The error stream comes first, then the data stream of the same request.
        let mut waiting: Vec<Stream> = Vec::new();
        loop {
            let stream = tokio::select! {
                stream = session.opened.recv() => match stream {
                    Some(stream) => stream,
                    None => return,
                },
                Some(_) = pairs.join_next(), if !pairs.is_empty() => continue,
            };
            let request = stream.header("requestid").unwrap_or_default();
            let partner = waiting
                .iter()
                .position(|other| other.header("requestid").unwrap_or_default() == request);
            match partner.map(|index| waiting.swap_remove(index)) {
                None => waiting.push(stream),
                Some(other) => {
                    let (error, data) = if stream.header("streamtype") == Some("data") {
                        (other, stream)
                    } else {
                        (stream, other)
                    };
                    pairs.spawn(serve_port(error, data, to));
                }
            }
        }
    };
    tokio::select! {
        result = connection => result?,
        () = work => {}
    }
    Ok(())
}

async fn serve_port(error: Stream, mut data: Stream, to: Option<SocketAddr>) -> Result<(), Gone> {
    let (errors, output) = (error.output(), data.output());
    let port = data.header("port").unwrap_or_default();
    if port == CLOSED_PORT {
        let text = format!("failed to connect to localhost:{port}: connection refused");
        errors.send(Bytes::from(text)).await?;
    } else if let Some(to) = to {
        match TcpStream::connect(to).await {
            Ok(connection) => carry(&mut data, &output, connection).await?,
            Err(error) => {
                let text = format!("failed to connect to localhost:{port}: {error}");
                errors.send(Bytes::from(text)).await?;
            }
        }
    } else {
        while let Some(bytes) = data.input.recv().await {
            output.send(bytes).await?;
        }
    }
    for stream in [&output, &errors] {
        StreamOutput::finish(stream).await?;
    }
    Ok(())
}

/// Both ways, until the client or the port has ended its own.
async fn carry(data: &mut Stream, output: &StreamOutput, mut connection: TcpStream) -> Result<(), Gone> {
    let mut read = vec![0; 32 * 1024];
    let mut is_open = true;
    loop {
        tokio::select! {
            bytes = data.input.recv(), if is_open => match bytes {
                Some(bytes) if connection.write_all(&bytes).await.is_ok() => {}
                _ => {
                    is_open = false;
                    // What is broken shows when it's read.
                    let _ = connection.shutdown().await;
                }
            },
            count = connection.read(&mut read) => match count {
                Ok(0) | Err(_) => return Ok(()),
                Ok(count) => output.send(Bytes::copy_from_slice(&read[..count])).await?,
            },
        }
    }
}
