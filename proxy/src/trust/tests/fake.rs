//! An API server in memory, as far as trust needs one: objects by path, versions and conflicts, watches, server-side
//! apply, and a signer.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use jiff::SignedDuration;
use kube::client::Body;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::service_fn;

use crate::clock::Clock;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

pub(super) const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

#[derive(Clone)]
pub(super) struct FakeCluster(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    clock: Clock,
    issuer: Issuer<'static, KeyPair>,
    ca: String,
}

struct State {
    objects: BTreeMap<String, Value>,
    /// Collection, type, object; an event's version is its place.
    history: Vec<(String, &'static str, Value)>,
    asked: Vec<(Method, String)>,
    faults: Vec<(Method, &'static str, u16)>,
    signs: bool,
    lifetime: Duration,
}

impl FakeCluster {
    pub(super) fn new(clock: Clock) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                objects: BTreeMap::new(),
                history: Vec::new(),
                asked: Vec::new(),
                faults: Vec::new(),
                signs: true,
                lifetime: Duration::from_hours(24 * 365),
            }),
            changed: watch::Sender::new(0),
            clock,
            issuer: Issuer::new(params, key),
            ca,
        }))
    }

    pub(super) fn client(&self) -> kube::Client {
        let cluster = self.clone();
        let answer = move |request| {
            let cluster = cluster.clone();
            async move { Ok::<_, Infallible>(cluster.answer(request).await) }
        };
        kube::Client::new(service_fn(answer), "default")
    }

    /// The CA that its signer signs under.
    pub(super) fn ca(&self) -> &str {
        &self.0.ca
    }

    pub(super) fn set_lifetime(&self, lifetime: Duration) {
        self.state().lifetime = lifetime;
    }

    /// Requests of `method` whose path contains `part` are answered `code` from now on.
    pub(super) fn fail(&self, method: Method, part: &'static str, code: u16) {
        self.state().faults.push((method, part, code));
    }

    pub(super) fn mend(&self) {
        self.state().faults.clear();
    }

    /// Whether approved requests are signed from now on; those that wait are signed at once.
    pub(super) fn set_signs(&self, signs: bool) {
        let mut state = self.state();
        state.signs = signs;
        let waiting: Vec<_> = state
            .objects
            .keys()
            .filter(|path| path.starts_with(REQUESTS))
            .cloned()
            .collect();
        for path in waiting {
            let object = state.objects[&path].clone();
            self.store(&mut state, &path, object);
        }
    }

    pub(super) fn object(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// The names of the certificate requests that are there.
    pub(super) fn requests(&self) -> Vec<String> {
        let state = self.state();
        let names = state
            .objects
            .keys()
            .filter_map(|path| path.strip_prefix(REQUESTS)?.strip_prefix('/'));
        names.map(str::to_owned).collect()
    }

    /// How often it was asked.
    pub(super) fn asked(&self, method: &Method, part: &str) -> usize {
        let state = self.state();
        state
            .asked
            .iter()
            .filter(|(of, path)| of == method && path.contains(part))
            .count()
    }

    /// As if by an operator.
    pub(super) fn put(&self, path: &str, object: Value) {
        self.store(&mut self.state(), path, object);
    }

    /// As if by an operator.
    pub(super) fn remove(&self, path: &str) {
        let mut state = self.state();
        let object = state.objects.remove(path).unwrap();
        let (collection, _) = path.rsplit_once('/').unwrap();
        state.history.push((collection.to_owned(), "DELETED", object));
        self.0.changed.send_replace(0);
    }

    /// As if by an operator: `kubectl certificate approve` or `deny`.
    pub(super) fn decide(&self, name: &str, kind: &str) {
        let path = format!("{REQUESTS}/{name}");
        let mut object = self.object(&path).unwrap();
        object["status"]["conditions"] = json!([{ "type": kind, "status": "True", "message": "said so" }]);
        self.put(&path, object);
    }

    /// Waits until a condition holds.
    pub(super) async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.0.changed.subscribe();
        let held = async {
            while !holds(self) {
                changed.changed().await.unwrap();
            }
        };
        // By a clock that stands still until nothing else is to be done; others say themselves how long.
        tokio::time::timeout(Duration::from_hours(24 * 30), held)
            .await
            .expect("it comes to hold");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, state: &mut State, path: &str, mut object: Value) -> Value {
        let kind = if state.objects.contains_key(path) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let (collection, name) = path.rsplit_once('/').unwrap();
        object["metadata"]["name"] = json!(name);
        object["metadata"]["resourceVersion"] = json!((state.history.len() + 1).to_string());
        if collection == REQUESTS && state.signs {
            self.sign(state, &mut object);
        }
        state.objects.insert(path.to_owned(), object.clone());
        state.history.push((collection.to_owned(), kind, object.clone()));
        self.0.changed.send_replace(0);
        object
    }

    fn sign(&self, state: &State, object: &mut Value) {
        let conditions = object["status"]["conditions"].as_array();
        let approved = conditions.is_some_and(|all| all.iter().any(|condition| condition["type"] == "Approved"));
        if !approved || object["status"]["certificate"].is_string() {
            return;
        }
        let request: k8s_openapi::ByteString = serde_json::from_value(object["spec"]["request"].clone()).unwrap();
        let mut request = CertificateSigningRequestParams::from_pem(std::str::from_utf8(&request.0).unwrap()).unwrap();
        let wished = object["spec"]["expirationSeconds"].as_u64().unwrap();
        let lifetime = state.lifetime.min(Duration::from_secs(wished));
        let now = self.0.clock.now();
        let lifetime = SignedDuration::try_from(lifetime).unwrap();
        crate::trust::authority::set_validity(&mut request.params, now, now + lifetime);
        let chain = request.signed_by(&self.0.issuer).unwrap().pem();
        object["status"]["certificate"] = json!(k8s_openapi::ByteString(chain.into_bytes()));
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        // So that two clients' requests take turns.
        tokio::task::yield_now().await;
        let path = head.uri.path().to_owned();
        let query: BTreeMap<String, String> = head
            .uri
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| {
                let value = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
                (key.to_owned(), value.into_owned())
            })
            .collect();
        let metadata_only = head
            .headers
            .get("accept")
            .is_some_and(|accept| accept.to_str().unwrap().contains("PartialObjectMetadata"));
        let watching = query.contains_key("watch");
        {
            let mut state = self.state();
            state.asked.push((head.method.clone(), path.clone()));
            let fault = state
                .faults
                .iter()
                .find(|(method, part, _)| *method == head.method && path.contains(part));
            if let Some((_, _, code)) = fault {
                return failure(*code, if *code == 403 { "Forbidden" } else { "Failed" });
            }
        }
        let name = query
            .get("fieldSelector")
            .and_then(|selector| selector.strip_prefix("metadata.name="))
            .map(str::to_owned);
        let shown = move |object: &Value| {
            if metadata_only {
                json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"] })
            } else {
                object.clone()
            }
        };
        if watching {
            let from = query["resourceVersion"].parse().unwrap();
            return self.watch(path, name, from, shown);
        }
        if head.method == Method::PATCH {
            assert_eq!(head.headers["content-type"], "application/apply-patch+yaml");
        }
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        self.act(&head.method, &path, body, name, shown)
    }

    fn act(
        &self,
        method: &Method,
        path: &str,
        body: Value,
        name: Option<String>,
        shown: impl Fn(&Value) -> Value,
    ) -> Answer {
        let mut state = self.state();
        match *method {
            Method::GET => match (state.objects.get(path), name) {
                (Some(object), _) => success(&shown(object)),
                (None, Some(name)) => {
                    let found = state.objects.get(&format!("{path}/{name}"));
                    let items: Vec<_> = found.into_iter().map(&shown).collect();
                    let version = state.history.len().to_string();
                    success(&json!({ "metadata": { "resourceVersion": version }, "items": items }))
                }
                (None, None) => failure(404, "NotFound"),
            },
            Method::POST => {
                let name = body["metadata"]["name"].as_str().map_or_else(
                    || {
                        format!(
                            "{}{:05}",
                            body["metadata"]["generateName"].as_str().unwrap(),
                            state.history.len()
                        )
                    },
                    str::to_owned,
                );
                let path = format!("{path}/{name}");
                if state.objects.contains_key(&path) {
                    return failure(409, "AlreadyExists");
                }
                success(&self.store(&mut state, &path, body))
            }
            Method::PUT => {
                let path = path.trim_end_matches("/approval");
                match state.objects.get(path) {
                    None => failure(404, "NotFound"),
                    Some(there) if there["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] => {
                        failure(409, "Conflict")
                    }
                    Some(_) => success(&self.store(&mut state, path, body)),
                }
            }
            Method::PATCH => {
                let mut object = state.objects.get(path).cloned().unwrap_or(json!({}));
                merge(&mut object, body);
                success(&self.store(&mut state, path, object))
            }
            Method::DELETE => {
                if !state.objects.contains_key(path) {
                    return failure(404, "NotFound");
                }
                drop(state);
                self.remove(path);
                success(&json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
            }
            _ => panic!("{method} {path}"),
        }
    }

    /// The history of a collection from a version on, and what comes.
    fn watch(
        &self,
        collection: String,
        name: Option<String>,
        from: usize,
        shown: impl Fn(&Value) -> Value + Send + 'static,
    ) -> Answer {
        let follow = (self.clone(), self.0.changed.subscribe(), from);
        let events = stream::unfold(follow, |(cluster, mut changed, at)| async move {
            loop {
                changed.borrow_and_update();
                let event = cluster.state().history.get(at).cloned();
                if let Some(event) = event {
                    return Some((event, (cluster, changed, at + 1)));
                }
                changed.changed().await.ok()?;
            }
        });
        let lines = events.filter_map(move |(of, kind, object)| {
            let ours = of == collection && name.as_ref().is_none_or(|name| object["metadata"]["name"] == **name);
            let line = ours.then(|| format!("{}\n", json!({ "type": kind, "object": shown(&object) })));
            std::future::ready(line.map(|line| Ok(Frame::data(Bytes::from(line)))))
        });
        Response::new(UnsyncBoxBody::new(StreamBody::new(lines)))
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn success(object: &Value) -> Answer {
    Response::new(UnsyncBoxBody::new(Full::from(object.to_string())))
}

fn failure(code: u16, reason: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": "no",
    });
    let mut answer = success(&status);
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
    answer
}
