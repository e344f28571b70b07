//! `pods/exec`, `pods/attach` and `pods/portforward`, each over WebSocket and SPDY/3.1. Which protocol an upgrade
//! gets is decided here; what runs behind it is in `program`, and how it is framed in `websocket` and `spdy`.

mod client;
mod exec;
mod forward;
mod negotiate;
mod program;
mod spdy;
mod websocket;

use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

pub use self::{
    client::{Channel, SpdyExec},
    exec::Exec,
    forward::CARRIED_TO,
    program::{LOG_FILE, log},
};
use self::{negotiate::Protocol, program::Program};
use super::{
    body::{self, Body},
    request::{Query, ResourceTarget},
    resources::Resource,
    serve::Call,
    status::Status,
};

/// Which of the streams the client asked for.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a parameter of the URI, and they are independent"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

impl Wanted {
    fn of(query: &Query) -> Self {
        Self {
            stdin: query.flag("stdin"),
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr"),
            tty: query.flag("tty"),
        }
    }
}

/// What runs behind one of the three.
fn program(target: &ResourceTarget, query: &Query, wanted: Wanted) -> Result<Program, Status> {
    match target.subresource.as_str() {
        "exec" => {
            let command: Vec<String> = query.all("command").map(ToOwned::to_owned).collect();
            if command.is_empty() {
                return Err(Status::bad_request("you must specify at least 1 command"));
            }
            if !(wanted.stdin || wanted.stdout || wanted.stderr) {
                return Err(Status::bad_request(
                    "you must specify at least 1 of stdin, stdout, stderr",
                ));
            }
            Ok(Program::command(command))
        }
        "attach" => Ok(Program::attached(&target.name)),
        _ => Ok(Program::nothing()),
    }
}

/// Answers one of the three with 101 and goes on in a task of its own.
pub(crate) fn serve(mut call: Call, target: &ResourceTarget) -> Result<Response<Body>, Status> {
    let pods = Resource::find("", "v1", "pods").ok_or_else(Status::no_such_path)?;
    let pod = call.shared.store.get(pods, &target.namespace, &target.name)?;
    let to = forward::carried_to(&pod);
    let protocol = Protocol::negotiate(&call.parts.headers, &target.subresource)?;
    let upgrade = call
        .upgrade
        .take()
        .ok_or_else(|| Status::bad_request("unable to upgrade: this is not an HTTP/1.1 upgrade"))?;
    let wanted = Wanted::of(&call.query);
    let program = program(target, &call.query, wanted)?;
    let response = switch(protocol, &call.parts.headers)?;
    let stop = call.connection.stop.clone();
    tokio::spawn(stop.run_until_cancelled_owned(run(upgrade, protocol, wanted, program, to)));
    Ok(response)
}

async fn run(upgrade: OnUpgrade, protocol: Protocol, wanted: Wanted, program: Program, to: Option<SocketAddr>) {
    match upgrade.await {
        Ok(upgraded) => run_on(hyper_util::rt::TokioIo::new(upgraded), protocol, wanted, program, to).await,
        Err(error) => tracing::debug!(%error, "upgrade"),
    }
}

async fn run_on<S>(upgraded: S, protocol: Protocol, wanted: Wanted, program: Program, to: Option<SocketAddr>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let result = match protocol {
        Protocol::WebSocketChannels(version) => Box::pin(websocket::channels(upgraded, version, wanted, program)).await,
        Protocol::WebSocketTunnel => {
            let (tunnel, pump) = websocket::tunnel(upgraded).await;
            let (result, ()) = tokio::join!(Box::pin(forward::serve(tunnel, to)), pump);
            result
        }
        Protocol::SpdyExec(_) => Box::pin(spdy::exec::serve(upgraded, wanted, program)).await,
        Protocol::SpdyForward => Box::pin(forward::serve(upgraded, to)).await,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "stream ended");
    }
}

fn switch(protocol: Protocol, request: &HeaderMap) -> Result<Response<Body>, Status> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let name = HeaderValue::from_static(protocol.name());
    if protocol.is_websocket() {
        let key = request
            .get(header::SEC_WEBSOCKET_KEY)
            .ok_or_else(|| Status::bad_request("Sec-WebSocket-Key is missing"))?;
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
            .map_err(|_| Status::internal("the accept key is not a header value"))?;
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    } else {
        headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        headers.insert("x-stream-protocol-version", name);
    }
    Ok(response)
}
