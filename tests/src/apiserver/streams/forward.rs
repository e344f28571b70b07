//! Port-forward: pairs of an error and a data stream. Every port is an echo server, but for one where nobody
//! listens.

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};

use super::spdy::{self, Gone, Stream, StreamOutput};
use crate::apiserver::body::BoxError;

/// Where nobody listens.
const CLOSED_PORT: &str = "1";

/// Serves the pairs of one SPDY connection, however it's carried, until the client ends it.
pub(crate) async fn serve<S>(stream: S) -> Result<(), BoxError>
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
                    pairs.spawn(serve_port(error, data));
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

async fn serve_port(error: Stream, mut data: Stream) -> Result<(), Gone> {
    let (errors, output) = (error.output(), data.output());
    let port = data.header("port").unwrap_or_default();
    if port == CLOSED_PORT {
        let text = format!("failed to connect to localhost:{port}: connection refused");
        errors.send(Bytes::from(text)).await?;
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
