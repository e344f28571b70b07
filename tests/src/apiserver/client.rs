//! The client of the control interface, for tests in whatever process and network namespace.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{net::UnixStream, time::Instant};

use super::{
    connection::ConnectionInfo,
    control::{Overview, PushedEvent},
    event::EventType,
    fault::Fault,
    record::Recorded,
    server::Settings,
};

/// Why the server couldn't be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket can't be reached.
    #[error("control socket {0}: {1}")]
    Connect(PathBuf, io::Error),
    /// The exchange failed.
    #[error("control request: {0}")]
    Http(#[from] hyper::Error),
    /// The answer, or what was to be sent, isn't of the right form.
    #[error("control message: {0}")]
    Json(#[from] serde_json::Error),
    /// The server said no.
    #[error("the server refused with {0}: {1}")]
    Refused(StatusCode, String),
    /// It didn't happen in time. Shows what did.
    #[error("no such request within {0:?}; there were: {1:#?}")]
    Timeout(Duration, Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Requests {
    revision: u64,
    requests: Vec<Recorded>,
}

/// Speaks to a server's control socket. Every call is a connection of its own.
#[derive(Debug, Clone)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// The server whose socket this is.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
        }
    }

    /// Waits until the server is up.
    ///
    /// # Errors
    /// If it isn't after `limit`.
    pub async fn ready(&self, limit: Duration) -> Result<Overview, ControlError> {
        let deadline = Instant::now() + limit;
        loop {
            match self.overview().await {
                Err(ControlError::Connect(..)) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                result => return result,
            }
        }
    }

    /// The server at a glance.
    ///
    /// # Errors
    /// If it can't be asked.
    pub async fn overview(&self) -> Result<Overview, ControlError> {
        self.call(Method::GET, "/overview", &()).await
    }

    /// All requests on record, in the order of arrival.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn requests(&self) -> Result<Vec<Recorded>, ControlError> {
        let requests: Requests = self.call(Method::GET, "/requests", &()).await?;
        Ok(requests.requests)
    }

    /// Waits until a request is on record that `wanted` is true of, and returns it.
    ///
    /// # Errors
    /// If there is none after `limit`, or the server can't be asked.
    pub async fn wait_for(
        &self,
        limit: Duration,
        wanted: impl Fn(&Recorded) -> bool,
    ) -> Result<Recorded, ControlError> {
        let deadline = Instant::now() + limit;
        let mut path = "/requests".to_owned();
        loop {
            let known: Requests = self.call(Method::GET, &path, &()).await?;
            if let Some(found) = known.requests.iter().find(|request| wanted(request)) {
                return Ok(found.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seen = known
                    .requests
                    .iter()
                    .map(|request| format!("{} {} {:?}", request.method, request.uri, request.code))
                    .collect();
                return Err(ControlError::Timeout(limit, seen));
            }
            path = format!(
                "/requests?revision={}&timeoutMs={}",
                known.revision,
                left.as_millis().max(1)
            );
        }
    }

    /// Forgets all requests.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn forget_requests(&self) -> Result<(), ControlError> {
        self.order(Method::DELETE, "/requests", &()).await
    }

    /// The connections that are open.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn connections(&self) -> Result<Vec<ConnectionInfo>, ControlError> {
        self.call(Method::GET, "/connections", &()).await
    }

    /// Resets every connection.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn reset_connections(&self) -> Result<(), ControlError> {
        self.order(Method::POST, "/connections/reset", &()).await
    }

    /// Says GOAWAY on every connection.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn go_away(&self) -> Result<(), ControlError> {
        self.order(Method::POST, "/connections/goaway", &()).await
    }

    /// Makes an object be, change or be gone, and tells the watches. Returns it as stored.
    ///
    /// # Errors
    /// If the object's kind isn't served, its namespace isn't there, or the server can't be asked.
    pub async fn push(&self, kind: EventType, object: Value) -> Result<Value, ControlError> {
        let event = PushedEvent { kind, object };
        self.call(Method::POST, "/events", &event).await
    }

    /// Forgets the history of events: watches from older versions get 410.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn compact(&self) -> Result<(), ControlError> {
        self.order(Method::POST, "/compact", &()).await
    }

    /// Forgets the history of events, and tells every open watch that it is too old: an `ERROR` event of 410 ends it.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn expire_watches(&self) -> Result<(), ControlError> {
        self.order(Method::POST, "/watches/expire", &()).await
    }

    /// The settings in force.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn settings(&self) -> Result<Settings, ControlError> {
        self.call(Method::GET, "/settings", &()).await
    }

    /// Changes the settings.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn change_settings(&self, settings: &Settings) -> Result<(), ControlError> {
        self.order(Method::PUT, "/settings", settings).await
    }

    /// Adds a fault.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn inject(&self, fault: &Fault) -> Result<(), ControlError> {
        self.order(Method::POST, "/faults", fault).await
    }

    /// Takes all faults back.
    ///
    /// # Errors
    /// If the server can't be asked.
    pub async fn clear_faults(&self) -> Result<(), ControlError> {
        self.order(Method::DELETE, "/faults", &()).await
    }

    async fn order(&self, method: Method, path: &str, body: &impl Serialize) -> Result<(), ControlError> {
        self.call::<Value>(method, path, body).await.map(drop)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ControlError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| ControlError::Connect(self.path.clone(), error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::new(Full::new(Bytes::from(serde_json::to_vec(body)?)));
        *request.method_mut() = method;
        if let Ok(uri) = path.parse() {
            *request.uri_mut() = uri;
        }
        request
            .headers_mut()
            .insert(http::header::HOST, http::HeaderValue::from_static("apiserver"));
        let exchange = async {
            let response = sender.send_request(request).await?;
            let code = response.status();
            let bytes = response.into_body().collect().await?.to_bytes();
            Ok::<_, ControlError>((code, bytes))
        };
        tokio::pin!(exchange);
        let (code, bytes) = tokio::select! {
            exchanged = &mut exchange => exchanged?,
            ended = connection => {
                ended?;
                exchange.await?
            }
        };
        if code.is_success() {
            Ok(serde_json::from_slice(&bytes)?)
        } else {
            Err(ControlError::Refused(
                code,
                String::from_utf8_lossy(&bytes).into_owned(),
            ))
        }
    }
}
