//! Exec and attach over SPDY: one stream for each of error, stdin, stdout, stderr and resize.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use super::{Session, Stream, StreamOutput, start};
use crate::apiserver::{
    body::BoxError,
    streams::{
        Wanted,
        program::{Output, Program, Streams, exit_status},
    },
};

/// How long the client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);

/// The streams, once all have been opened.
#[derive(Default)]
struct Opened {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// Runs a program on the streams of a SPDY connection.
pub(crate) async fn serve<S>(stream: S, wanted: Wanted, program: Program) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite,
{
    let (mut session, connection) = start(stream);
    let work = async {
        let opened = tokio::time::timeout(OPENING, open(&mut session, wanted)).await;
        if let Ok(Some(opened)) = opened {
            // The client is gone before the program's end; there's nobody to tell.
            let _ = run(opened, wanted, program).await;
        }
        session.close().await;
        // Kept open, so that the connection sees our close and not the end of all interest in it.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = connection => result?,
        () = work => {}
    }
    Ok(())
}

async fn open(session: &mut Session, wanted: Wanted) -> Option<Opened> {
    let mut opened = Opened::default();
    while opened.error.is_none()
        || (wanted.stdin && opened.stdin.is_none())
        || (wanted.stdout && opened.stdout.is_none())
        || (wanted.stderr && !wanted.tty && opened.stderr.is_none())
    {
        let stream = session.opened.recv().await?;
        match stream.header("streamtype") {
            Some("error") => opened.error = Some(stream),
            Some("stdin") => opened.stdin = Some(stream),
            Some("stdout") => opened.stdout = Some(stream),
            Some("stderr") => opened.stderr = Some(stream),
            Some("resize") => opened.resize = Some(stream),
            _ => return None,
        }
    }
    Some(opened)
}

async fn run(mut opened: Opened, wanted: Wanted, program: Program) -> Result<(), super::Gone> {
    let (sender, mut output) = mpsc::channel(4);
    let stdin = match opened.stdin.take() {
        Some(stream) => stream.input,
        // Nobody writes to it: it's at its end from the start.
        None => mpsc::channel(1).1,
    };
    let stdout = opened.stdout.as_ref().map(Stream::output);
    let stderr = opened.stderr.as_ref().map(Stream::output);
    let write = async {
        while let Some((to, bytes)) = output.recv().await {
            let stream = match to {
                Output::Stderr if !wanted.tty => &stderr,
                _ => &stdout,
            };
            if let Some(stream) = stream {
                stream.send(bytes).await?;
            }
        }
        Ok::<_, super::Gone>(())
    };
    let running = program.run(Streams { stdin, output: sender });
    let (code, written) = tokio::join!(running, write);
    written?;
    if let Some(error) = opened.error.as_ref().map(Stream::output) {
        error.send(Bytes::from(exit_status(code).to_string())).await?;
        error.finish().await?;
    }
    for stream in [&stdout, &stderr].into_iter().flatten() {
        StreamOutput::finish(stream).await?;
    }
    Ok(())
}
