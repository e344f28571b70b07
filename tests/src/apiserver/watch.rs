//! Watches: JSON lines, one for each event, sent as soon as it happens. What a watch holds is one receiver and a
//! selector; the lines themselves are shared by all.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::{Value, json};
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    body::{self, Body, BoxError},
    event::{Event, EventType, line},
    list::check_options,
    resources::Resource,
    selector::Selector,
    serve::Call,
    status::Status,
    table, translation,
};

/// How long a watch lives that doesn't say.
const DEFAULT_LIFE: Duration = Duration::from_hours(1);

/// Answers a watch.
pub(crate) fn serve(call: &Call, resource: &'static Resource, namespace: &str) -> Result<Response<Body>, Status> {
    let query = &call.query;
    check_options(query, true)?;
    let stored = resource.stored();
    let since = match query.first("resourceVersion") {
        None | Some("" | "0") => None,
        Some(version) => Some(
            version
                .parse()
                .map_err(|_| Status::bad_request(format!("Invalid value: {version:?}: resourceVersion")))?,
        ),
    };
    let lifetime = query
        .first("timeoutSeconds")
        .and_then(|seconds| seconds.parse().ok())
        .map_or(DEFAULT_LIFE, Duration::from_secs);
    let bookmarks = query.flag("allowWatchBookmarks");
    let send_initial = query
        .first("sendInitialEvents")
        .map(|_| query.flag("sendInitialEvents"));
    let mut watch = Watch {
        resource,
        namespace: namespace.to_owned(),
        selector: Selector::of(resource, query)?,
        as_table: table::wanted(call.accept()),
        ready: VecDeque::new(),
        feed: None,
        expiry: None,
        deadline: Instant::now() + lifetime,
        bookmark: bookmarks.then(|| call.shared.bookmark_interval()),
        shared: call.shared.clone(),
        stop: call.connection.stop.clone(),
    };
    let since = if send_initial == Some(true) { None } else { since };
    match call.shared.store.subscribe(stored, namespace, since) {
        Ok(subscription) => {
            if send_initial != Some(false) || since.is_some() {
                for event in subscription.backlog {
                    watch.take(&event);
                }
            }
            if send_initial == Some(true) && bookmarks {
                watch.ready.push_back(bookmark(resource, subscription.version, true));
            }
            watch.feed = Some(subscription.feed);
            watch.expiry = Some(subscription.expiry);
        }
        // The answer is 200 and the error an event, as kube-apiserver has it.
        Err(status) => watch
            .ready
            .push_back(line(&json!({"type": "ERROR", "object": status.to_value()}))),
    }
    let stream = futures_util::stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, BoxError>(Frame::data(line)), watch))
    });
    let mut response = Response::new(body::boxed(StreamBody::new(stream)));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

struct Watch {
    resource: &'static Resource,
    namespace: String,
    selector: Selector,
    as_table: bool,
    ready: VecDeque<Bytes>,
    /// `None` once the watch has failed.
    feed: Option<broadcast::Receiver<Arc<Event>>>,
    /// Changes when the watch is to be told that it is too old.
    expiry: Option<watch::Receiver<u64>>,
    deadline: Instant,
    bookmark: Option<Duration>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Watch {
    /// The next line; `None` ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            let (feed, expiry) = (self.feed.as_mut()?, self.expiry.as_mut()?);
            let bookmark_at = self
                .bookmark
                .map_or(self.deadline, |interval| Instant::now() + interval);
            tokio::select! {
                event = feed.recv() => match event {
                    Ok(event) => self.take(&event),
                    // Too slow to keep up with, or the server has ended: the client lists and watches anew.
                    Err(RecvError::Lagged(_) | RecvError::Closed) => return None,
                },
                Ok(()) = expiry.changed() => {
                    self.feed = None;
                    let status = Status::expired(0, self.shared.store.version());
                    return Some(line(&json!({"type": "ERROR", "object": status.to_value()})));
                }
                () = sleep_until(bookmark_at.min(self.deadline)) => {
                    if Instant::now() >= self.deadline {
                        return None;
                    }
                    return Some(bookmark(self.resource, self.shared.store.version(), false));
                }
                () = self.stop.cancelled() => return None,
            }
        }
    }

    fn take(&mut self, event: &Event) {
        let here = self.namespace.is_empty()
            || !self.resource.namespaced
            || event.object["metadata"]["namespace"] == self.namespace.as_str();
        if !here {
            return;
        }
        let is = self.selector.matches(&event.object);
        let was = event
            .previous
            .as_ref()
            .map_or(is, |previous| self.selector.matches(previous));
        let kind = match (was, is) {
            (false, false) => return,
            (true, true) => event.kind,
            (false, true) => EventType::Added,
            (true, false) => EventType::Deleted,
        };
        let line = if self.resource != event.resource {
            let object = translation::shown(self.resource, &event.object);
            line(&json!({"type": kind, "object": *object}))
        } else if kind == event.kind {
            event.line(self.as_table)
        } else {
            event.line_as(kind, self.as_table)
        };
        self.ready.push_back(line);
    }
}

fn bookmark(resource: &Resource, version: u64, end_of_initial: bool) -> Bytes {
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if end_of_initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object: Value = json!({
        "kind": resource.kind,
        "apiVersion": resource.api_version(),
        "metadata": metadata,
    });
    line(&json!({"type": "BOOKMARK", "object": object}))
}
