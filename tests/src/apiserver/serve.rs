//! The way of one request: record, fault, authenticate, impersonate, authorize, dispatch. In the order in which
//! kube-apiserver chains its filters; what the handlers answer is theirs.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header, request::Parts};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{
    Shared,
    auth::{self, UserInfo},
    body::{self, Body, BoxError},
    connection::Connection,
    discovery,
    fault::FaultAction,
    impersonation, logs, openapi, probe, protobuf,
    record::{Record, RequestBody, ResponseBody},
    request::{Attributes, Query, ResourceTarget, Target},
    rest, reviews, service_accounts,
    status::{Status, json_response},
    streams,
};

/// kube-apiserver's limit of a request's body.
const BODY_LIMIT: usize = 3 * 1024 * 1024;
const SMALL_BODY: usize = 64 * 1024;
const SMALL_BODY_WAIT: Duration = Duration::from_secs(1);

/// A request that was let through, as a handler gets it.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) user: UserInfo,
    pub(crate) query: Query,
    pub(crate) parts: Parts,
    pub(crate) upgrade: Option<OnUpgrade>,
    body: RequestBody,
}

impl Call {
    /// The body, read to its end.
    pub(crate) async fn bytes(&mut self) -> Result<Bytes, Status> {
        match Limited::new(&mut self.body, BODY_LIMIT).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large()),
            Err(_) => Err(Status::bad_request("the body of the request ended early")),
        }
    }

    /// The body as an object, from JSON or YAML as its type says.
    pub(crate) async fn object(&mut self) -> Result<Value, Status> {
        let sent = self.content_type();
        let bytes = self.bytes().await?;
        parse_object(&sent, &bytes)
    }

    /// The media type of the body, without parameters.
    pub(crate) fn content_type(&self) -> String {
        self.parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .unwrap_or("application/json")
            .trim()
            .to_owned()
    }

    /// The body itself, to be streamed.
    pub(crate) fn into_body(self) -> RequestBody {
        self.body
    }

    /// What the client says that it reads.
    pub(crate) fn accept(&self) -> &str {
        self.parts
            .headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("*/*")
    }
}

/// Reads an object in one of the forms that are read here.
pub(crate) fn parse_object(media_type: &str, bytes: &[u8]) -> Result<Value, Status> {
    let value: Value = match media_type {
        "application/yaml" | "application/apply-patch+yaml" => std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| serde_saphyr::from_str(text).ok())
            .ok_or_else(|| Status::bad_request("the body of the request is not valid YAML"))?,
        kind if kind == "application/json" || kind.ends_with("+json") => serde_json::from_slice(bytes)
            .map_err(|error| Status::bad_request(format!("couldn't parse the body: {error}")))?,
        protobuf::MEDIA_TYPE => protobuf::decode(bytes).ok_or_else(|| Status::unsupported_media_type(media_type))?,
        other => return Err(Status::unsupported_media_type(other)),
    };
    if value.is_object() {
        Ok(value)
    } else {
        Err(Status::bad_request("the body of the request is not an object"))
    }
}

/// Serves one request, faults included.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let (guard, streams) = connection.enter();
    let upgrade = request
        .headers()
        .contains_key(header::UPGRADE)
        .then(|| hyper::upgrade::on(&mut request));
    let unused = upgrade.clone();
    let (parts, body) = request.into_parts();
    let record = shared.recorder.begin(connection.origin(), streams, &parts);
    let is_head = parts.method == Method::HEAD;
    let fault = shared.faults.take(&parts);
    let mut cut = None;
    match &fault {
        Some(FaultAction::Stall) => {
            return std::future::pending().await;
        }
        Some(FaultAction::Reset) => {
            connection.reset();
            // An answer, even an error, could leave before the reset.
            return std::future::pending().await;
        }
        Some(FaultAction::GoAway) => connection.go_away(),
        Some(FaultAction::DieMidBody { after }) => cut = Some(*after),
        Some(FaultAction::GlueAfter101 { bytes }) => {
            connection.glue_to_101(Bytes::from(bytes.clone()));
        }
        None | Some(FaultAction::Status { .. } | FaultAction::Redirect { .. }) => {}
    }
    let answer = match fault {
        Some(FaultAction::Status { code, message }) => Err(Status::injected(
            StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            &message,
        )),
        Some(FaultAction::Redirect { location }) => redirect(&location),
        _ => {
            let call = Arrived {
                shared,
                connection,
                parts,
                body: record.request_body(body),
                upgrade,
            };
            Box::pin(call.filter_and_dispatch(&record)).await
        }
    };
    let mut response = answer.unwrap_or_else(Status::into_response);
    record.code(response.status());
    if let Some(unused) = unused
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        tokio::spawn(close_unused(unused));
    }
    if is_head {
        response = without_content(response);
    } else if let Some(after) = cut {
        response = response.map(|body| die_after(body, after));
    }
    Ok(response.map(|body| body::boxed(ResponseBody::new(body, record, guard))))
}

/// The answer to `HEAD`, which says how long the content would be. Over HTTP/1.1 hyper leaves it out, over HTTP/2 not.
fn without_content(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = response.body().size_hint().exact() {
        response
            .headers_mut()
            .entry(header::CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
    response.map(|_| body::empty())
}

/// hyper hands over the connection of an upgrade that was refused, if nothing else is to come on it, and leaves it to
/// whoever gets it to close TLS as it should be.
async fn close_unused(upgrade: OnUpgrade) {
    if let Ok(upgraded) = upgrade.await {
        // The client may have been quicker.
        let _ = TokioIo::new(upgraded).shutdown().await;
    }
}

/// A request that has passed no filter yet.
struct Arrived {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    parts: Parts,
    body: RequestBody,
    upgrade: Option<OnUpgrade>,
}

impl Arrived {
    async fn filter_and_dispatch(mut self, record: &Record) -> Result<Response<Body>, Status> {
        let (user, attributes) = match self.filter(record).await {
            Ok(passed) => passed,
            Err(refusal) => {
                self.take_in().await;
                return Err(refusal);
            }
        };
        let call = Call {
            shared: self.shared,
            connection: self.connection,
            user,
            query: Query::of(&self.parts.uri),
            parts: self.parts,
            upgrade: self.upgrade,
            body: self.body,
        };
        match attributes.target {
            Target::Path(path) => serve_path(call, &path).await,
            Target::Resource(target) => serve_resource(call, &attributes.verb, target).await,
        }
    }

    /// Whom to serve it as, and what it asks.
    async fn filter(&mut self, record: &Record) -> Result<(UserInfo, Attributes), Status> {
        let rules = self.shared.rules.current().await;
        let requestor = auth::authenticate(&self.shared, &self.connection.chain, &self.parts.headers).await?;
        record.identity(&requestor, None);
        let impersonated = impersonation::impersonate(&self.parts.headers, &requestor, &rules)?;
        impersonation::strip(&mut self.parts.headers);
        let user = match impersonated {
            Some(user) => {
                record.identity(&user, Some(&requestor));
                user
            }
            None => requestor,
        };
        let attributes = Attributes::of(&self.parts.method, &self.parts.uri);
        rules.authorize(&user, &attributes)?;
        Ok((user, attributes))
    }

    /// Takes a small body in before its request is refused. The reset that follows an answer to a body still under way
    /// (RFC 9113, section 8.1) makes curl before 8.0 lose the answer.
    async fn take_in(&mut self) {
        let length = self.parts.headers.get(header::CONTENT_LENGTH);
        let small = length
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
            .is_some_and(|length| length <= SMALL_BODY);
        if small {
            // One that doesn't come, or breaks off, is refused all the same.
            let _ = tokio::time::timeout(SMALL_BODY_WAIT, (&mut self.body).collect()).await;
        }
    }
}

async fn serve_path(call: Call, path: &str) -> Result<Response<Body>, Status> {
    if let Some(probe) = path.strip_prefix("/understudy/") {
        return probe::serve(call, probe).await;
    }
    if call.parts.method != Method::GET && call.parts.method != Method::HEAD {
        return Err(Status::method_not_allowed());
    }
    match path.trim_end_matches('/') {
        "/version" => Ok(json_response(StatusCode::OK, &discovery::version())),
        path if ["/healthz", "/livez", "/readyz"]
            .iter()
            .any(|health| path.starts_with(health)) =>
        {
            Ok(Response::new(body::full("ok")))
        }
        path if path.starts_with("/openapi/") => openapi::serve(path, call.accept(), &call.shared.store.catalogue()),
        path => discovery::serve(path, call.accept(), &call.shared.store.catalogue()),
    }
}

async fn serve_resource(call: Call, verb: &str, target: ResourceTarget) -> Result<Response<Body>, Status> {
    if verb == "create"
        && let Some(answer) = reviews::kind(&target.group, &target.resource)
    {
        return reviews::serve(call, answer).await;
    }
    let resource = call
        .shared
        .store
        .catalogue()
        .find(&target.group, &target.version, &target.resource)
        .ok_or_else(Status::no_such_path)?;
    match (resource.plural, target.subresource.as_str(), verb) {
        ("serviceaccounts", "token", "create") => service_accounts::request(call, &target).await,
        ("pods", "log", "get") => logs::serve(&call, &target),
        ("pods", "exec" | "attach" | "portforward", "get" | "create") => streams::serve(call, &target),
        (_, "", _) => rest::serve(call, resource, verb, target).await,
        (_, sub, "get" | "update" | "patch") if resource.has(sub) => rest::serve(call, resource, verb, target).await,
        _ => Err(Status::no_such_path()),
    }
}

fn redirect(location: &str) -> Result<Response<Body>, Status> {
    let location = header::HeaderValue::from_str(location)
        .map_err(|_| Status::bad_request("the fault's location is not a header value"))?;
    let mut response = json_response(StatusCode::FOUND, &json!({}));
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// The first bytes of a body, and then an error.
fn die_after(body: Body, after: u64) -> Body {
    let state = (body, after);
    body::boxed(StreamBody::new(futures_util::stream::try_unfold(
        state,
        |(mut body, left)| async move {
            if left == 0 {
                // Time for what went before to leave: an error at once would take it along.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Err(BoxError::from("died in the middle of the body"));
            }
            let data = match body.frame().await {
                Some(frame) => frame?.into_data().unwrap_or_default(),
                None => return Err("died at the end of the body".into()),
            };
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
            let left = left - room as u64;
            Ok(Some((http_body::Frame::data(data.slice(..room)), (body, left))))
        },
    )))
}
