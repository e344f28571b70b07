//! Traces, by a real agent before a collector that takes what OTLP over HTTP is: who is whose parent, what is in a span and what
//! isn't, and that no request waits for a collector.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use tokio::time::Instant;
use understudy_tests::node::{
    AgentOptions, ApiServer, Mark, Node, PodSpec, Running, TestServerOptions, binaries, eventually,
};

use crate::world::{World, ask_many, curl};

/// Writes each body that comes to a file of its own, whole before it has its name.
const COLLECTOR: &str = r#"
import http.server, itertools, os, sys
port, out = sys.argv[1:]
count = itertools.count()
class Collector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        assert self.headers["x-tenant"] == "ours", self.headers
        name = os.path.join(out, f"{next(count):06}")
        with open(name + ".partial", "wb") as file:
            file.write(body)
        os.rename(name + ".partial", name + ".spans")
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Collector)
print("ready", flush=True)
server.serve_forever()
"#;

const PORT: u16 = 4318;
const PODS: &str = "/api/v1/namespaces/prod/pods?limit=1&labelSelector=geheim%3Dja";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

struct Collector {
    directory: PathBuf,
    _running: Running,
}

impl Collector {
    async fn start(node: &Node) -> Result<Self> {
        let directory = node.directory().join("collector");
        fs::create_dir_all(&directory)?;
        let program = directory.join("collector.py");
        fs::write(&program, COLLECTOR)?;
        let arguments = [
            program.display().to_string(),
            PORT.to_string(),
            directory.display().to_string(),
        ];
        let mut running = node.command(binaries::python()?)?.args(arguments).spawn()?;
        running.stdout_until(|text| text.contains("ready")).await?;
        Ok(Self {
            directory,
            _running: running,
        })
    }

    /// All spans that it has, and what the resource is that they are of.
    fn spans(&self) -> Result<(Vec<Span>, Vec<KeyValue>)> {
        let (mut spans, mut about) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "spans") {
                continue;
            }
            let request = ExportTraceServiceRequest::decode(fs::read(path)?.as_slice())?;
            for of_resource in request.resource_spans {
                about = of_resource.resource.context("a resource")?.attributes;
                spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        Ok((spans, about))
    }

    /// The agent's span, and what it asked upstream in it, of a request for that path in that trace.
    async fn pair(&self, audit_id: &str) -> Result<(Span, Option<Span>)> {
        eventually("the collector has the request's span", async || {
            let (spans, _) = self.spans()?;
            let of = |kind: SpanKind| {
                let found = spans.iter().find(|span| {
                    span.kind == kind as i32 && text(&span.attributes, "audit-id").as_deref() == Some(audit_id)
                });
                found.cloned()
            };
            Ok(of(SpanKind::Server).map(|server| (server, of(SpanKind::Client))))
        })
        .await
    }
}

fn options(more: &[&str]) -> AgentOptions {
    let options = AgentOptions::default()
        .arg(&format!("--traces-endpoint=http://127.0.0.1:{PORT}/v1/traces"))
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=ours");
    more.iter().fold(options, |options, argument| options.arg(argument))
}

async fn world(options: AgentOptions) -> Result<(World, Collector)> {
    let node = Node::new()?;
    let collector = Collector::start(&node).await?;
    let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
    let world = World::around(node, api, PodSpec::named("shell"), options).await?;
    Ok((world, collector))
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

fn hex(id: &[u8]) -> String {
    let number = id.iter().fold(0, |number: u128, byte| number << 8 | u128::from(*byte));
    format!("{number:0width$x}", width = 2 * id.len())
}

/// The context that the API server saw of the last request for pods since then.
async fn seen(world: &World, mark: Mark) -> Result<(Option<String>, Option<String>)> {
    let seen = world.api.seen_since(mark).await?;
    let request = seen.iter().rev().find(|request| request.path().ends_with("/pods"));
    let headers = request.and_then(|request| request.headers.clone()).context("headers")?;
    let field = |field: &str| {
        headers
            .iter()
            .find(|(name, _)| name == field)
            .map(|(_, value)| value.clone())
    };
    Ok((field("traceparent"), field("tracestate")))
}

/// Of the one request for pods that there was.
async fn audit_id(world: &World) -> Result<String> {
    eventually("the request's event", async || {
        let event = world
            .agent
            .audit()?
            .into_iter()
            .find(|event| event.uri.contains("/pods"));
        Ok(event.map(|event| event.audit_id))
    })
    .await
}

#[tokio::test]
async fn a_request_has_a_span_and_the_api_servers_is_its_child() -> Result<()> {
    let (world, collector) = world(options(&["--traces-sampling=1"])).await?;
    let mark = world.api.mark().await?;
    world.pod.kubectl("get pods -n prod").await?.success()?;
    let (server, client) = collector.pair(&audit_id(&world).await?).await?;
    let client = client.context("a span of what was asked upstream")?;
    let parent = format!("00-{}-{}-01", hex(&server.trace_id), hex(&client.span_id));
    assert_eq!(seen(&world, mark).await?, (Some(parent), None));
    assert_eq!(
        (client.trace_id.clone(), client.parent_span_id.clone()),
        (server.trace_id.clone(), server.span_id.clone())
    );
    assert!(server.parent_span_id.is_empty(), "{server:?}");
    assert_eq!(server.name, "GET /api/v1/namespaces/{namespace}/pods");
    for (key, expected) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.path", "/api/v1/namespaces/prod/pods"),
        ("network.protocol.version", "2"),
        ("understudy.session", "support/alice"),
        ("understudy.acts_as", &world.viewer()),
        ("k8s.namespace.name", "support"),
    ] {
        assert_eq!(
            text(&server.attributes, key).as_deref(),
            Some(expected),
            "{key}: {server:?}"
        );
    }
    assert_eq!(
        text(&client.attributes, "http.response.status_code").as_deref(),
        Some("200")
    );
    assert!(server.start_time_unix_nano <= client.start_time_unix_nano);
    assert!(client.end_time_unix_nano <= server.end_time_unix_nano);
    let (_, about) = collector.spans()?;
    assert_eq!(text(&about, "service.name").as_deref(), Some("understudy"));
    Ok(())
}

#[tokio::test]
async fn a_clients_trace_goes_on_and_what_isnt_one_begins_another() -> Result<()> {
    let (world, collector) = world(options(&["--traces-sampling=0"])).await?;
    let parent = format!("traceparent: 00-{TRACE}-{SPAN}-01");
    let fields = ["--header", &parent, "--header", "tracestate: other=1"];
    let mark = world.api.mark().await?;
    assert_eq!(curl(&world.pod, PODS, &fields).await?.code, 200);
    let (server, client) = collector.pair(&audit_id(&world).await?).await?;
    let client = client.context("a span of what was asked upstream")?;
    assert_eq!(
        (hex(&server.trace_id), hex(&server.parent_span_id)),
        (TRACE.to_owned(), SPAN.to_owned())
    );
    assert_eq!(server.trace_state, "other=1");
    let expected = format!("00-{TRACE}-{}-01", hex(&client.span_id));
    assert_eq!(seen(&world, mark).await?, (Some(expected), Some("other=1".to_owned())));
    let (spans, _) = collector.spans()?;
    assert!(!format!("{spans:?}").contains("geheim"), "{spans:?}");

    // What isn't sampled is passed on as it came.
    let parent = format!("00-{TRACE}-{SPAN}-00");
    let field = format!("traceparent: {parent}");
    let fields = ["--header", &field, "--header", "tracestate: other=2"];
    let mark = world.api.mark().await?;
    assert_eq!(curl(&world.pod, PODS, &fields).await?.code, 200);
    assert_eq!(seen(&world, mark).await?, (Some(parent), Some("other=2".to_owned())));
    let mark = world.api.mark().await?;
    assert_eq!(curl(&world.pod, PODS, &[]).await?.code, 200);
    assert_eq!(seen(&world, mark).await?, (None, None));
    Ok(())
}

#[tokio::test]
async fn a_refused_request_has_a_span_that_says_why_and_none_upstream() -> Result<()> {
    let (world, collector) = world(options(&["--traces-sampling=1"])).await?;
    let parent = format!("traceparent: ff-{TRACE}-{SPAN}-01");
    let fields = ["--header", &parent, "--header", "Impersonate-User: root"];
    assert_eq!(curl(&world.pod, PODS, &fields).await?.code, 403);
    let (server, client) = collector.pair(&audit_id(&world).await?).await?;
    assert!(client.is_none(), "{client:?}");
    assert_ne!(hex(&server.trace_id), TRACE);
    assert!(text(&server.attributes, "error.type").is_some(), "{server:?}");
    assert_eq!(
        text(&server.attributes, "http.response.status_code").as_deref(),
        Some("403")
    );
    Ok(())
}

#[tokio::test]
async fn no_request_waits_for_a_collector_and_what_is_lost_is_counted() -> Result<()> {
    let world = World::with(&TestServerOptions::default(), options(&["--traces-sampling=1"])).await?;
    let began = Instant::now();
    let codes = ask_many(&world.pod, 50).await?;
    assert_eq!(codes.get("200"), Some(&50), "{codes:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
    eventually("the loss is counted", async || {
        let metrics = world.agent.metrics().await?;
        let lost = metrics.sum("understudy_trace_spans_dropped_total", &[("cause", "collector")]);
        Ok((lost >= 100.0).then_some(()))
    })
    .await?;
    assert!(world.agent.log().contains("the collector takes no traces"));
    Ok(())
}
