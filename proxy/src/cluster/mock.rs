//! An API server for unit tests: canned answers over a tower service, and what was asked.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::service_fn;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

/// What to answer.
pub(crate) enum Answer {
    Json(u16, Value),
    /// The lines of a watch, until the sender is dropped.
    Watch(mpsc::UnboundedReceiver<Value>),
    /// No connection.
    Nothing,
}

impl Answer {
    pub(crate) fn json(code: u16, value: Value) -> Self {
        Self::Json(code, value)
    }

    pub(crate) fn status(code: u16, reason: &str) -> Self {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
            "reason": reason, "code": code});
        Self::Json(code, status)
    }

    /// A watch that has these to say, and stays open.
    pub(crate) fn watch(lines: impl IntoIterator<Item = Value>) -> (mpsc::UnboundedSender<Value>, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        for line in lines {
            sender.send(line).unwrap();
        }
        (sender, Self::Watch(receiver))
    }
}

type Handler = Arc<Mutex<dyn FnMut(&Asked) -> Answer + Send>>;

/// The server.
#[derive(Clone)]
pub(crate) struct Mock {
    handler: Handler,
    seen: Arc<Mutex<Vec<Asked>>>,
}

impl Mock {
    pub(crate) fn new(handler: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        Self {
            handler: Arc::new(Mutex::new(handler)),
            seen: Arc::default(),
        }
    }

    /// What was asked until now.
    pub(crate) fn seen(&self) -> Vec<Asked> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn client(&self) -> kube::Client {
        let mock = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let mock = mock.clone();
            async move { mock.answer(request).await }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(
        &self,
        request: Request<Body>,
    ) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, std::io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let asked = Asked {
            method: head.method,
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        };
        self.seen.lock().unwrap().push(asked.clone());
        let answer = (self.handler.lock().unwrap())(&asked);
        match answer {
            Answer::Nothing => Err(std::io::ErrorKind::ConnectionRefused.into()),
            Answer::Json(code, value) => Ok(Response::builder()
                .status(code)
                .body(Full::new(Bytes::from(value.to_string())).boxed_unsync())
                .unwrap()),
            Answer::Watch(lines) => {
                let lines = futures_util::stream::unfold(lines, |mut lines| async {
                    let line = lines.recv().await?;
                    Some((Ok(Frame::data(Bytes::from(format!("{line}\n")))), lines))
                });
                Ok(Response::new(StreamBody::new(lines.boxed()).boxed_unsync()))
            }
        }
    }
}

/// A list of these objects at a version.
pub(crate) fn list(version: &str, items: &[Value]) -> Value {
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items})
}

/// A line of a watch.
pub(crate) fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}
