//! `/understudy/...`: paths that a real API server doesn't have, for what tests want to do to a stream.
//!
//! - `sink` reads a body to its end and says how long it was;
//! - `echo` sends a body back while it arrives;
//! - `upgrade` switches to whatever protocol was asked for and sends bytes back until the client's end, and then
//!   `bye`, so that half-close shows.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    body::{self, Body},
    serve::Call,
    status::{Status, json_response},
};

/// What the upgraded echo says once it has seen the client's end.
pub const FAREWELL: &[u8] = b"bye";
/// How long an echo may take to notice that nobody reads it any more.
const LINGER: Duration = Duration::from_secs(10);

/// Answers a probe.
pub(crate) async fn serve(call: Call, probe: &str) -> Result<Response<Body>, Status> {
    match probe {
        "sink" => sink(call).await,
        "echo" => Ok(Response::new(body::boxed(call.into_body()))),
        "upgrade" => upgrade(call),
        _ => Err(Status::no_such_path()),
    }
}

async fn sink(call: Call) -> Result<Response<Body>, Status> {
    let mut body = call.into_body();
    let mut length = 0_u64;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Status::bad_request("the body of the request ended early"))?;
        length += frame.data_ref().map_or(0, Bytes::len) as u64;
    }
    Ok(json_response(StatusCode::OK, &json!({"length": length})))
}

fn upgrade(mut call: Call) -> Result<Response<Body>, Status> {
    let protocol = call.parts.headers.get(header::UPGRADE).cloned();
    let (Some(protocol), Some(upgrade)) = (protocol, call.upgrade.take()) else {
        return Err(Status::bad_request("an upgrade is what this is for"));
    };
    let stop = call.connection.stop.clone();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = match stream.read(&mut buffer).await {
                Ok(0) => break,
                Ok(read) => read,
                Err(_) => return,
            };
            if stream.write_all(&buffer[..read]).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
        let farewell = async {
            stream.write_all(FAREWELL).await?;
            stream.shutdown().await
        };
        // The client may be gone already, which is its right.
        let _ = tokio::time::timeout(LINGER, farewell).await;
    }));
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, protocol);
    Ok(response)
}
