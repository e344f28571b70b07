//! What is kept of a request while it is under way, where it is sampled.

mod collector;
mod context;
mod queue;
mod sampling;
mod spans;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{HeaderMap, Request, Version};
use opentelemetry::trace::{SpanId, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use self::{collector::Collector, queue::Queue, sampling::Sampling, spans::Spans};
use super::{TracesError, TracesOptions};
use crate::{audit::Event, forward::Origin, upstream::target::Target};

/// What is traced, and on its way to the collector. Without a collector nothing is.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Tracer>>);

#[derive(Debug)]
struct Tracer {
    sampling: Sampling,
    ids: RandomIdGenerator,
    queue: Queue,
}

/// The trace of one request, if it is sampled.
#[derive(Debug)]
pub struct Trace(Option<Box<Sampled>>);

/// What is known of a request that is sampled, besides what the audit log is told.
#[derive(Debug)]
struct Sampled {
    tracer: Arc<Tracer>,
    trace_id: TraceId,
    /// The client's span, where it has one.
    parent: Option<SpanId>,
    state: TraceState,
    /// The agent's own span.
    span_id: SpanId,
    began: Instant,
    dialled: SocketAddr,
    client: IpAddr,
    scheme: Option<String>,
    version: Version,
    handed_on: OnceLock<HandedOn>,
}

/// What is known of it once it goes upstream.
#[derive(Debug)]
struct HandedOn {
    span_id: SpanId,
    at: Instant,
    url: String,
    host: String,
    port: u16,
    answered: OnceLock<Instant>,
}

impl Traces {
    /// Begins to trace if a collector is named, by an option or by the variables that OpenTelemetry has for it, which
    /// `lookup` looks up.
    ///
    /// # Errors
    /// Names the option or the variable that is wrong.
    pub async fn start(
        options: &TracesOptions,
        node: &str,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, TracesError> {
        let lookup = |variable: &str| lookup(variable).filter(|value| !value.is_empty());
        let Some(url) = collector::endpoint(options, lookup) else {
            return Ok(Self::default());
        };
        let sampling = Sampling::choose(options.traces_sampling, lookup)?;
        let collector = Collector::new(&url, options, lookup).await?;
        let resource = spans::resource(node, lookup);
        let queue = Queue::start(collector.exporter(&resource, lookup)?);
        tracing::info!(%sampling, "requests are traced");
        Ok(Self(Some(Arc::new(Tracer {
            sampling,
            ids: RandomIdGenerator::default(),
            queue,
        }))))
    }

    /// Enters what is counted of them, where there are any.
    pub fn register(&self, registry: &mut Registry) {
        if let Some(tracer) = &self.0 {
            tracer.queue.register(registry);
        }
    }

    /// Sends what waits, for as long as that. What ends later isn't traced.
    pub async fn drain(&self, patience: Duration) {
        if let Some(tracer) = &self.0 {
            tracer.queue.drain(patience).await;
        }
    }

    /// A request has come.
    #[inline]
    pub(crate) fn begin<B>(&self, request: &Request<B>, origin: &Origin) -> Trace {
        let sampled = self.0.as_ref().and_then(|tracer| tracer.begin(request, origin));
        Trace(sampled.map(Box::new))
    }
}

impl Tracer {
    fn begin<B>(self: &Arc<Self>, request: &Request<B>, origin: &Origin) -> Option<Sampled> {
        let parent = context::read(request.headers());
        let trace_id = parent.map_or_else(|| self.ids.new_trace_id(), |parent| parent.trace_id);
        if !self.sampling.takes(parent.map(|parent| parent.is_sampled), trace_id) {
            return None;
        }
        Some(Sampled {
            tracer: Arc::clone(self),
            trace_id,
            parent: parent.map(|parent| parent.span_id),
            state: parent.map_or_else(TraceState::default, |_| context::state(request.headers())),
            span_id: self.ids.new_span_id(),
            began: Instant::now(),
            dialled: origin.original_dst.0,
            client: origin.client.0.ip(),
            scheme: request.uri().scheme_str().map(str::to_owned),
            version: request.version(),
            handed_on: OnceLock::new(),
        })
    }
}

impl Trace {
    /// It goes upstream, and takes its context there.
    #[inline]
    pub(crate) fn hand_on(&self, headers: &mut HeaderMap, upstream: &Target) {
        if let Some(sampled) = &self.0 {
            sampled.hand_on(headers, upstream);
        }
    }

    /// The head of its answer has come from there.
    #[inline]
    pub(crate) fn answered(&self) {
        if let Some(handed_on) = self.0.as_ref().and_then(|sampled| sampled.handed_on.get()) {
            let _ = handed_on.answered.set(Instant::now());
        }
    }

    /// All of it has passed.
    #[inline]
    pub(crate) fn end(&self, event: &Event, acts_as: Option<&str>) {
        if let Some(sampled) = &self.0 {
            sampled.tracer.queue.push(Spans::of(sampled, event, acts_as));
        }
    }
}

impl Sampled {
    fn hand_on(&self, headers: &mut HeaderMap, upstream: &Target) {
        let span_id = self.tracer.ids.new_span_id();
        context::write(headers, self.trace_id, span_id, self.parent.is_some());
        let (host, port) = upstream.address();
        let _ = self.handed_on.set(HandedOn {
            span_id,
            at: Instant::now(),
            url: upstream.to_string(),
            host: host.to_owned(),
            port,
            answered: OnceLock::new(),
        });
    }
}
