//! What is measured. Each measure runs one slice against one target and says what it saw in numbers; whatever isn't
//! exactly as it should be makes the slice void, which is an error here.

mod beside;
mod latency;
mod memory;
pub mod node;
mod requests;
mod streams;
mod transfer;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::{peers::Peer, process::CpuTime, stage::Target};

pub use latency::half_load;

/// Whether more of it is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is.
    Higher,
    /// Less is.
    Lower,
}

/// A number that a slice gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    /// Its name in the report.
    pub id: &'static str,
    /// In words.
    pub title: &'static str,
    /// Which way is good.
    pub better: Better,
}

/// What one slice gave, by the quantities' names.
pub type Values = Vec<(&'static str, f64)>;

/// What the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Protocol {
    /// As `load` takes it.
    fn argument(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

/// What an exec goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket, `v5.channel.k8s.io`.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
}

impl Transport {
    /// As `load` takes it.
    fn argument(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Spdy => "spdy",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Small GETs over that many connections, each with that many streams.
    Requests(Protocol, u32, u32),
    /// One request at a time.
    LatencyAlone,
    /// At half of what the slowest target carries.
    LatencyHalf,
    /// A connection for each request.
    Handshakes {
        /// With a ticket of an earlier one.
        resumed: bool,
    },
    /// A list of 100 MB.
    List,
    /// Memory while 50 slow readers read one.
    Readers,
    /// Memory for each idle watch.
    Watches(Protocol),
    /// Memory for each idle connection.
    Idle,
    /// An event to 5,000 watches.
    FanOut,
    /// An exec's round trip.
    Echo(Transport),
    /// Bytes through an exec.
    Bulk(Transport),
    /// What it costs to record them.
    BulkRecorded(Transport),
    /// What the audit log costs.
    AuditCost,
}

/// All of them, by the names that `--only` takes, in the order in which they run.
pub const MEASURES: [(&str, Measure); 24] = [
    ("h1-1", Measure::Requests(Protocol::Http1, 1, 1)),
    ("h1-16", Measure::Requests(Protocol::Http1, 16, 1)),
    ("h1-128", Measure::Requests(Protocol::Http1, 128, 1)),
    ("h2-1", Measure::Requests(Protocol::Http2, 1, 1)),
    ("h2-16", Measure::Requests(Protocol::Http2, 16, 1)),
    ("h2-128", Measure::Requests(Protocol::Http2, 128, 1)),
    ("h2-16x8", Measure::Requests(Protocol::Http2, 16, 8)),
    ("latency-1", Measure::LatencyAlone),
    ("latency-half", Measure::LatencyHalf),
    ("handshakes", Measure::Handshakes { resumed: false }),
    ("handshakes-resumed", Measure::Handshakes { resumed: true }),
    ("list", Measure::List),
    ("readers", Measure::Readers),
    ("watches-h1", Measure::Watches(Protocol::Http1)),
    ("watches-h2", Measure::Watches(Protocol::Http2)),
    ("idle", Measure::Idle),
    ("fanout", Measure::FanOut),
    ("echo-websocket", Measure::Echo(Transport::WebSocket)),
    ("echo-spdy", Measure::Echo(Transport::Spdy)),
    ("bulk-websocket", Measure::Bulk(Transport::WebSocket)),
    ("bulk-spdy", Measure::Bulk(Transport::Spdy)),
    ("bulk-recorded", Measure::BulkRecorded(Transport::WebSocket)),
    ("bulk-recorded-spdy", Measure::BulkRecorded(Transport::Spdy)),
    ("audit-cost", Measure::AuditCost),
];

const fn quantity(id: &'static str, title: &'static str, better: Better) -> Quantity {
    Quantity { id, title, better }
}

const REQUESTS: [Quantity; 3] = [
    quantity("per-cpu-second", "requests per CPU-second", Better::Higher),
    quantity("per-second", "requests per second", Better::Higher),
    quantity("instructions", "instructions per request", Better::Lower),
];
const LATENCY: [Quantity; 2] = [
    quantity("p50-us", "p50, µs", Better::Lower),
    quantity("p99-us", "p99, µs", Better::Lower),
];
const HANDSHAKES: [Quantity; 2] = [
    quantity("per-cpu-second", "handshakes per CPU-second", Better::Higher),
    quantity("per-second", "handshakes per second", Better::Higher),
];
const TRANSFER: [Quantity; 2] = [
    quantity("mb-per-cpu-second", "MB per CPU-second", Better::Higher),
    quantity("mb-per-second", "MB per second", Better::Higher),
];
const RECORDED: [Quantity; 3] = [
    quantity("cpu-times", "CPU per MB recorded, times unrecorded", Better::Lower),
    quantity("time-times", "time per MB recorded, times unrecorded", Better::Lower),
    quantity("mb-per-cpu-second", "MB per CPU-second, recorded", Better::Higher),
];
const AUDITED: [Quantity; 3] = [
    quantity("cpu-times", "CPU per request at Metadata, times at None", Better::Lower),
    quantity(
        "time-times",
        "time per request at Metadata, times at None",
        Better::Lower,
    ),
    quantity("per-cpu-second", "requests per CPU-second at Metadata", Better::Higher),
];
const READERS: [Quantity; 1] = [quantity("rss-mib", "RSS, MiB", Better::Lower)];
const HELD: [Quantity; 2] = [
    quantity("kib-each", "KiB for each", Better::Lower),
    quantity("after", "RSS after, of before", Better::Lower),
];

/// What a slice is run with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// How long a slice lasts, in seconds.
    pub seconds: u32,
    /// Whether everything is to be small.
    pub quick: bool,
    /// Requests per second at half load.
    pub half_load: f64,
    /// Whether this machine counts instructions.
    pub instructions: bool,
}

impl Measure {
    /// In words.
    #[must_use]
    pub fn title(self) -> String {
        let protocol = |protocol| match protocol {
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        };
        match self {
            Self::Requests(of, connections, 1) => format!("Small GETs, {}, {connections} connections", protocol(of)),
            Self::Requests(of, connections, streams) => {
                format!(
                    "Small GETs, {}, {connections} connections x {streams} streams",
                    protocol(of)
                )
            }
            Self::LatencyAlone => "Latency, one connection".to_owned(),
            Self::LatencyHalf => "Latency, half load".to_owned(),
            Self::Handshakes { resumed: false } => "TLS handshake and one request".to_owned(),
            Self::Handshakes { resumed: true } => "Resumed TLS handshake and one request".to_owned(),
            Self::List => "100 MB list".to_owned(),
            Self::Readers => "50 slow readers of a 100 MB list".to_owned(),
            Self::Watches(of) => format!("Idle watches, {} clients", protocol(of)),
            Self::Idle => "Idle connections".to_owned(),
            Self::FanOut => "An event to 5,000 watches".to_owned(),
            Self::Echo(Transport::WebSocket) => "exec round trip, WebSocket".to_owned(),
            Self::Echo(Transport::Spdy) => "exec round trip, SPDY".to_owned(),
            Self::Bulk(Transport::WebSocket) => "exec bulk, WebSocket".to_owned(),
            Self::Bulk(Transport::Spdy) => "exec bulk, SPDY".to_owned(),
            Self::BulkRecorded(Transport::WebSocket) => "Recording exec bulk, WebSocket".to_owned(),
            Self::BulkRecorded(Transport::Spdy) => "Recording exec bulk, SPDY".to_owned(),
            Self::AuditCost => "Audit of small GETs, HTTP/1.1, 16 connections".to_owned(),
        }
    }

    /// The numbers that its slices give.
    #[must_use]
    pub fn quantities(self) -> &'static [Quantity] {
        match self {
            Self::Requests(..) => &REQUESTS,
            Self::LatencyAlone | Self::LatencyHalf | Self::FanOut | Self::Echo(_) => &LATENCY,
            Self::Handshakes { .. } => &HANDSHAKES,
            Self::List | Self::Bulk(_) => &TRANSFER,
            Self::BulkRecorded(_) => &RECORDED,
            Self::AuditCost => &AUDITED,
            Self::Readers => &READERS,
            Self::Watches(_) | Self::Idle => &HELD,
        }
    }

    /// Whether what direct takes is to be subtracted.
    #[must_use]
    pub fn is_added_to_direct(self) -> bool {
        matches!(self, Self::LatencyAlone | Self::LatencyHalf | Self::Echo(_))
    }

    /// Whether that peer can do it at all, and has something to measure.
    #[must_use]
    pub fn fits(self, peer: Peer) -> bool {
        match self {
            // Memory is a proxy's own.
            Self::Readers | Self::Watches(Protocol::Http1) | Self::Idle => peer != Peer::Direct,
            // nginx keeps an HTTP/2 answer's head back until the first byte of its body, which for a watch is the first event.
            Self::Watches(Protocol::Http2) => !matches!(peer, Peer::Direct | Peer::Nginx),
            Self::FanOut => peer != Peer::Nginx,
            // HAProxy can't upgrade a connection that it multiplexes.
            Self::Echo(_) | Self::Bulk(_) => peer != Peer::HaproxyH2,
            // Nobody else has either.
            Self::BulkRecorded(_) | Self::AuditCost => peer.is_understudy(),
            _ => true,
        }
    }

    /// Runs one slice.
    ///
    /// # Errors
    /// It is void: an answer wasn't 200, a byte was wrong, or it couldn't be run; the error says which.
    pub async fn slice(self, target: &mut Target, terms: Terms) -> Result<Values> {
        let refused = target.stage.refused().await?;
        let values = match self {
            Self::Requests(protocol, connections, streams) => {
                requests::slice(target, terms, protocol, connections, streams).await
            }
            Self::LatencyAlone => latency::alone(target, terms).await,
            Self::LatencyHalf => latency::half(target, terms).await,
            Self::Handshakes { resumed } => requests::handshakes(target, terms, resumed).await,
            Self::List => transfer::list(target, terms).await,
            Self::Readers => transfer::readers(target, terms).await,
            Self::Watches(protocol) => memory::watches(target, terms, protocol).await,
            Self::Idle => memory::idle(target, terms).await,
            Self::FanOut => streams::fan_out(target, terms).await,
            Self::Echo(transport) => streams::echo(target, terms, transport).await,
            Self::Bulk(transport) => transfer::bulk(target, terms, transport).await,
            Self::BulkRecorded(transport) => beside::recorded(target, terms, transport).await,
            Self::AuditCost => beside::audited(target, terms).await,
        }?;
        let now = target.stage.refused().await?;
        ensure!(
            now <= refused,
            "the upstream refused {} requests: they didn't carry the identity that a proxy has to set",
            now - refused
        );
        target.tidy()?;
        Ok(values)
    }
}

/// The measure of that name.
///
/// # Errors
/// There is none.
pub fn named(name: &str) -> Result<Measure> {
    MEASURES
        .iter()
        .find_map(|(id, measure)| (*id == name).then_some(*measure))
        .with_context(|| format!("no measure is called `{name}`"))
}

/// The processor time of a target over a piece of work.
struct Meter {
    process: Option<(u32, CpuTime)>,
}

impl Meter {
    fn start(target: &Target) -> Result<Self> {
        let process = match target.process()? {
            Some(process) => Some((process, CpuTime::of(process)?)),
            None => None,
        };
        Ok(Self { process })
    }

    /// Seconds since the start; none where there is no process to ask.
    fn seconds(&self) -> Result<Option<f64>> {
        let Some((process, before)) = &self.process else {
            return Ok(None);
        };
        let used = CpuTime::of(*process)?.since(before).as_secs_f64();
        ensure!(used > 0.0, "no processor time was counted");
        Ok(Some(used))
    }
}

/// How long a client that works for `seconds` may take to come to its end.
fn limit(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds) + 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_found_by_their_names_and_no_name_comes_twice() {
        for (place, (name, measure)) in MEASURES.iter().enumerate() {
            assert_eq!(named(name).unwrap(), *measure);
            assert!(MEASURES[..place].iter().all(|(other, _)| other != name), "{name}");
        }
        assert!(named("h3-1").is_err());
    }
}
