//! The control interface: plain HTTP/1.1 with JSON over a unix socket, which reaches across network namespaces. It
//! is the tests' side door; nothing here is authenticated but by the socket's place in the file system.
//!
//! | | |
//! | --- | --- |
//! | `GET /overview` | addresses, open watches, resource version |
//! | `GET /requests?after=ID&timeoutMs=N` | what was recorded; with `timeoutMs`, waits until there is something |
//! | `DELETE /requests` | forgets them |
//! | `GET /connections` | those open |
//! | `POST /connections/reset`, `POST /connections/goaway` | breaks all, or sends all away |
//! | `POST /events` | `{"type": "ADDED", "object": {...}}`, into the store and to the watches |
//! | `POST /compact` | forgets the history of events |
//! | `POST /watches/expire` | forgets it, and tells every open watch that it is too old: an `ERROR` of 410, and its end |
//! | `GET /settings`, `PUT /settings` | [`super::Settings`] |
//! | `GET /faults`, `POST /faults`, `DELETE /faults` | [`Fault`] |

use std::{convert::Infallible, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::{
    body::Body,
    event::EventType,
    fault::Fault,
    request::Query,
    server::{Settings, Shared},
    status::{Status, json_response},
    sync::lock,
};

/// The server at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// How many connections are open.
    pub connections: usize,
    /// How many watches are open.
    pub watches: usize,
    /// The newest resource version.
    pub resource_version: u64,
}

/// An event as it is pushed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PushedEvent {
    #[serde(rename = "type")]
    pub(crate) kind: EventType,
    pub(crate) object: Value,
}

/// Listens on the socket, which takes the place of one that was left there.
pub(crate) async fn listen(path: &Path, shared: &Arc<Shared>) -> io::Result<()> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    tokio::spawn(accept(listener, shared.clone()));
    Ok(())
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let stop = shared.stop.clone();
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move {
                    let answer = serve(&shared, request).await;
                    Ok::<Response<Body>, Infallible>(answer.unwrap_or_else(Status::into_response))
                }
            });
            let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                result = serving => if let Err(error) = result {
                    tracing::debug!(%error, "control connection ended");
                },
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn serve(shared: &Shared, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let (parts, body) = request.into_parts();
    let query = Query::of(&parts.uri);
    let answer = match (&parts.method, parts.uri.path()) {
        (&Method::GET, "/overview") => json!(Overview {
            addresses: shared.addresses.clone(),
            connections: lock(&shared.connections).len(),
            watches: shared.store.watches(),
            resource_version: shared.store.version(),
        }),
        (&Method::GET, "/requests") => {
            let number = |key: &str| query.first(key).and_then(|text| text.parse::<u64>().ok());
            let revision = number("revision");
            if let (Some(limit), Some(revision)) = (number("timeoutMs"), revision) {
                let limit = Duration::from_millis(limit);
                shared.recorder.wait(revision, limit).await;
            }
            // Read before the requests: a change in between is then waited for in vain once, and never missed.
            let revision = shared.recorder.revision();
            json!({
                "revision": revision,
                "requests": shared.recorder.after(number("after").unwrap_or(0)),
            })
        }
        (&Method::DELETE, "/requests") => {
            shared.recorder.clear();
            json!({})
        }
        (&Method::GET, "/connections") => {
            let mut connections: Vec<_> = lock(&shared.connections)
                .values()
                .map(|connection| connection.info())
                .collect();
            connections.sort_by_key(|connection| connection.id);
            json!(connections)
        }
        (&Method::POST, "/connections/reset") => {
            let connections: Vec<_> = lock(&shared.connections).values().cloned().collect();
            for connection in connections {
                connection.reset();
            }
            json!({})
        }
        (&Method::POST, "/connections/goaway") => {
            let connections: Vec<_> = lock(&shared.connections).values().cloned().collect();
            for connection in connections {
                connection.go_away();
            }
            json!({})
        }
        (&Method::POST, "/events") => {
            let event: PushedEvent = read(body).await?;
            let object = shared.store.apply(event.kind, event.object)?;
            Value::clone(&object)
        }
        (&Method::POST, "/compact") => {
            shared.store.compact();
            json!({})
        }
        (&Method::POST, "/watches/expire") => {
            shared.store.expire_watches();
            json!({})
        }
        (&Method::GET, "/settings") => json!(*lock(&shared.settings)),
        (&Method::PUT, "/settings") => {
            let settings: Settings = read(body).await?;
            *lock(&shared.settings) = settings;
            json!({})
        }
        (&Method::GET, "/faults") => json!(shared.faults.list()),
        (&Method::POST, "/faults") => {
            let fault: Fault = read(body).await?;
            shared.faults.add(fault);
            json!({})
        }
        (&Method::DELETE, "/faults") => {
            shared.faults.clear();
            json!({})
        }
        _ => return Err(Status::no_such_path()),
    };
    Ok(json_response(StatusCode::OK, &answer))
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Status> {
    let bytes = body
        .collect()
        .await
        .map_err(|_| Status::bad_request("the body of the request ended early"))?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| Status::bad_request(error.to_string()))
}
