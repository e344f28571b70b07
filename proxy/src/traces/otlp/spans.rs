//! What is said of a request: OpenTelemetry's conventions for HTTP
//! (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>), and what an operator of Kubernetes joins by. No query, no
//! field and no body of a request is in it.

use std::{borrow::Cow, net::SocketAddr, time::SystemTime};

use http::Version;
use opentelemetry::{
    InstrumentationScope, KeyValue, Value,
    trace::{Event as SpanEvent, SpanContext, SpanId, SpanKind, Status, TraceFlags},
};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanEvents, SpanLinks},
};
use tokio::time::Instant;

use super::{HandedOn, Sampled};
use crate::{
    audit::Event,
    request_info::{Reading, RequestInfo, ResourceRequest},
};

/// Longer names tell nobody anything.
const ROUTE_LIMIT: usize = 256;

/// The spans of one request.
#[derive(Debug)]
pub(super) struct Spans {
    server: SpanData,
    client: Option<SpanData>,
}

impl Spans {
    /// Of a request that has ended.
    pub(super) fn of(sampled: &Sampled, event: &Event, acts_as: Option<&str>) -> Self {
        let about = About::of(sampled, event);
        Self {
            server: about.server(acts_as),
            client: sampled.handed_on.get().map(|handed_on| about.client(handed_on)),
        }
    }

    /// One span that says nothing.
    #[cfg(test)]
    pub(super) fn of_nothing() -> Self {
        let server = SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Server,
            name: "GET".into(),
            start_time: SystemTime::UNIX_EPOCH,
            end_time: SystemTime::UNIX_EPOCH,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        };
        Self { server, client: None }
    }

    pub(super) fn count(&self) -> usize {
        1 + usize::from(self.client.is_some())
    }
}

impl IntoIterator for Spans {
    type Item = SpanData;
    type IntoIter = std::iter::Chain<std::iter::Once<SpanData>, std::option::IntoIter<SpanData>>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self.server).chain(self.client)
    }
}

/// Whose spans they are: this agent's, on this node. The variables `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` add to it.
pub(super) fn resource(node: &str, lookup: impl Fn(&str) -> Option<String>) -> Resource {
    let is_named = lookup("OTEL_SERVICE_NAME").is_some()
        || lookup("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|text| text.contains("service.name="));
    let resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("k8s.node.name", node.to_owned()),
    ]);
    if is_named {
        resource.build()
    } else {
        resource.with_service_name("understudy").build()
    }
}

/// What both spans say.
struct About<'r> {
    sampled: &'r Sampled,
    event: &'r Event,
    method: &'r str,
    path: &'r str,
    route: Option<String>,
    ended: SystemTime,
}

impl<'r> About<'r> {
    fn of(sampled: &'r Sampled, event: &'r Event) -> Self {
        let asked = &event.asked;
        let uri = asked.uri.as_str();
        Self {
            sampled,
            event,
            method: match asked.method.as_ref() {
                known @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD" | "OPTIONS") => known,
                _ => "_OTHER",
            },
            path: uri.split_once('?').map_or(uri, |(path, _)| path),
            route: route(&event.reading),
            ended: SystemTime::from(asked.received) + event.elapsed,
        }
    }

    fn server(&self, acts_as: Option<&str>) -> SpanData {
        let Self { sampled, event, .. } = self;
        let pod = &event.asked.pod;
        let mut attributes = vec![
            attribute("http.request.method", self.method.to_owned()),
            attribute("url.path", self.path.to_owned()),
            attribute("network.protocol.version", version(sampled.version)),
            attribute("client.address", sampled.client.to_string()),
            attribute("understudy.session", pod.wanted.session.to_string()),
            attribute("audit-id", event.asked.audit_id.to_string()),
            attribute("http.request.body.size", bytes(event.request_bytes)),
            attribute("http.response.body.size", bytes(event.response_bytes)),
        ];
        attributes.extend(address(sampled.dialled));
        if !pod.is_outside() {
            let name = pod.wanted.name.rsplit('/').next().unwrap_or_default();
            attributes.push(attribute(
                "k8s.namespace.name",
                pod.wanted.session.namespace().to_owned(),
            ));
            attributes.push(attribute("k8s.pod.name", name.to_owned()));
        }
        let optional = [
            ("url.scheme", sampled.scheme.clone()),
            ("http.route", self.route.clone()),
            ("k8s.pod.uid", pod.wanted.uid.as_deref().map(str::to_owned)),
            ("understudy.acts_as", acts_as.map(str::to_owned)),
            (
                "understudy.verb",
                resource_of(&event.reading).map(|asked| asked.verb.to_owned()),
            ),
            ("understudy.upgrade", event.upgrade.map(str::to_owned)),
        ];
        attributes.extend(
            optional
                .into_iter()
                .filter_map(|(name, value)| Some(attribute(name, value?))),
        );
        if event.cut_short {
            attributes.push(attribute("understudy.cut_short", true));
        }
        let why = match event.refused {
            Some(refusal) => Some(refusal.as_str().into()),
            None => (event.code >= 500).then(|| event.code.to_string().into()),
        };
        self.span(Span {
            kind: SpanKind::Server,
            id: sampled.span_id,
            parent: sampled.parent,
            is_remote: sampled.parent.is_some(),
            began: event.asked.received.into(),
            attributes,
            code: event.code,
            why,
            // What is the client's own doing is no error of the server's.
            is_error: event.code >= 500,
            answered: None,
        })
    }

    fn client(&self, handed_on: &HandedOn) -> SpanData {
        let Self { sampled, event, .. } = self;
        let attributes = vec![
            attribute("http.request.method", self.method.to_owned()),
            attribute("url.full", format!("{}{}", handed_on.url, self.path)),
            attribute("server.address", handed_on.host.clone()),
            attribute("server.port", i64::from(handed_on.port)),
            attribute("audit-id", event.asked.audit_id.to_string()),
        ];
        // Where we answered ourselves, the code isn't the upstream's.
        let code = if event.refused.is_some() { 0 } else { event.code };
        let why = match event.refused {
            Some(refusal) => Some(refusal.as_str().into()),
            None => (code >= 400).then(|| code.to_string().into()),
        };
        self.span(Span {
            kind: SpanKind::Client,
            id: handed_on.span_id,
            parent: Some(sampled.span_id),
            is_remote: false,
            began: self.moment(handed_on.at),
            attributes,
            code,
            is_error: why.is_some(),
            why,
            answered: handed_on.answered.get().map(|at| self.moment(*at)),
        })
    }

    fn moment(&self, at: Instant) -> SystemTime {
        let since = at.saturating_duration_since(self.sampled.began);
        (SystemTime::from(self.event.asked.received) + since).min(self.ended)
    }

    fn span(&self, span: Span) -> SpanData {
        let Span {
            kind,
            id,
            parent,
            is_remote,
            began,
            mut attributes,
            code,
            why,
            is_error,
            answered,
        } = span;
        if code != 0 {
            attributes.push(attribute("http.response.status_code", i64::from(code)));
        }
        if let Some(why) = why {
            attributes.push(attribute("error.type", why));
        }
        let mut events = SpanEvents::default();
        events
            .events
            .extend(answered.map(|at| SpanEvent::new("response head", at, Vec::new(), 0)));
        let sampled = self.sampled;
        let named = if self.method == "_OTHER" { "HTTP" } else { self.method };
        SpanData {
            span_context: SpanContext::new(sampled.trace_id, id, TraceFlags::SAMPLED, false, sampled.state.clone()),
            parent_span_id: parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: is_remote,
            span_kind: kind,
            name: match &self.route {
                Some(route) => format!("{named} {route}").into(),
                None => named.to_owned().into(),
            },
            start_time: began,
            end_time: self.ended.max(began),
            attributes,
            dropped_attributes_count: 0,
            events,
            links: SpanLinks::default(),
            status: if is_error { Status::error("") } else { Status::Unset },
            instrumentation_scope: InstrumentationScope::builder("understudy")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        }
    }
}

/// What one span says that the other doesn't.
struct Span {
    kind: SpanKind,
    id: SpanId,
    parent: Option<SpanId>,
    is_remote: bool,
    began: SystemTime,
    attributes: Vec<KeyValue>,
    code: u16,
    why: Option<Cow<'static, str>>,
    is_error: bool,
    answered: Option<SystemTime>,
}

fn attribute(name: &'static str, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(name, value)
}

fn address(address: SocketAddr) -> [KeyValue; 2] {
    [
        attribute("server.address", address.ip().to_canonical().to_string()),
        attribute("server.port", i64::from(address.port())),
    ]
}

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

fn resource_of(reading: &Reading) -> Option<&ResourceRequest> {
    match reading {
        Ok(RequestInfo::Resource(asked)) => Some(asked),
        _ => None,
    }
}

/// What a request is for with the names left out, so that requests of one kind have one name.
fn route(reading: &Reading) -> Option<String> {
    let asked = resource_of(reading)?;
    let mut route = match asked.api_group.as_str() {
        "" => format!("/api/{}", asked.api_version),
        group => format!("/apis/{group}/{}", asked.api_version),
    };
    if !asked.namespace.is_empty() && asked.resource != "namespaces" {
        route.push_str("/namespaces/{namespace}");
    }
    route.push('/');
    route.push_str(&asked.resource);
    // A collection's name is of its query.
    if !asked.name.is_empty() && !matches!(asked.verb, "list" | "watch" | "deletecollection") {
        route.push_str("/{name}");
    }
    if !asked.subresource.is_empty() {
        route.push('/');
        route.push_str(&asked.subresource);
    }
    (route.len() <= ROUTE_LIMIT).then_some(route)
}

#[cfg(test)]
mod tests {
    use http::Method;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        "GET",
        "/api/v1/namespaces/prod/pods?limit=500",
        Some("/api/v1/namespaces/{namespace}/pods")
    )]
    #[case(
        "GET",
        "/api/v1/namespaces/prod/pods?fieldSelector=metadata.name%3Dweb",
        Some("/api/v1/namespaces/{namespace}/pods")
    )]
    #[case(
        "GET",
        "/api/v1/namespaces/prod/pods/web",
        Some("/api/v1/namespaces/{namespace}/pods/{name}")
    )]
    #[case(
        "POST",
        "/api/v1/namespaces/prod/pods/web/exec?command=id",
        Some("/api/v1/namespaces/{namespace}/pods/{name}/exec")
    )]
    #[case("GET", "/apis/apps/v1/deployments", Some("/apis/apps/v1/deployments"))]
    #[case("GET", "/api/v1/namespaces/prod", Some("/api/v1/namespaces/{name}"))]
    #[case("GET", "/api/v1/nodes/n1", Some("/api/v1/nodes/{name}"))]
    #[case("GET", "/version", None)]
    #[case("GET", "/api/v1/namespaces/../pods", None)]
    fn a_route_has_no_names(#[case] method: &str, #[case] target: &str, #[case] expected: Option<&str>) {
        let reading = RequestInfo::parse(&method.parse::<Method>().unwrap(), &target.parse().unwrap());
        assert_eq!(route(&reading).as_deref(), expected);
    }

    #[test]
    fn a_route_that_is_too_long_is_none() {
        let target = format!("/apis/{}/v1/things", "a".repeat(ROUTE_LIMIT));
        assert_eq!(route(&RequestInfo::parse(&Method::GET, &target.parse().unwrap())), None);
    }

    #[test]
    fn the_resource_is_the_agent_on_its_node() {
        let resource = resource("node-1", |_| None);
        let said = |key: &'static str| resource.get(&key.into()).map(|value| value.to_string());
        assert_eq!(said("service.name").as_deref(), Some("understudy"));
        assert_eq!(said("k8s.node.name").as_deref(), Some("node-1"));
    }
}
