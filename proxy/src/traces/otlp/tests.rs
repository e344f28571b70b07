//! What becomes of spans when the collector is quick, slow, gone, or somebody else.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SpanData, SpanExporter},
};
use prometheus_client::registry::Registry;
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use tokio::{net::TcpListener, sync::mpsc, time::Instant};
use tokio_rustls::TlsAcceptor;

use super::{
    collector::Collector,
    queue::{PATIENCE, Queue, ROOM},
    spans::Spans,
};
use crate::{metrics, traces::TracesOptions};

/// A collector that does as it is told, and what it took.
#[derive(Debug, Clone)]
struct Told {
    does: Does,
    took: Arc<Mutex<Vec<usize>>>,
}

#[derive(Debug, Clone, Copy)]
enum Does {
    Take,
    Refuse,
    Hang,
}

impl Told {
    fn to(does: Does) -> Self {
        Self {
            does,
            took: Arc::default(),
        }
    }

    fn took(&self) -> usize {
        self.took.lock().unwrap().iter().sum()
    }
}

impl SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        match self.does {
            Does::Take => {
                self.took.lock().unwrap().push(batch.len());
                Ok(())
            }
            Does::Refuse => Err(OTelSdkError::InternalFailure("not today".to_owned())),
            Does::Hang => std::future::pending().await,
        }
    }
}

/// How many were taken, had no room, and were not taken.
fn counted(queue: &Queue) -> [u64; 3] {
    let mut registry = Registry::default();
    queue.register(&mut registry);
    let text = metrics::text(&registry).unwrap();
    let count = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|count| count.trim().parse().ok()).unwrap()
    };
    [
        count("understudy_trace_spans_total "),
        count("understudy_trace_spans_dropped_total{cause=\"queue-full\"} "),
        count("understudy_trace_spans_dropped_total{cause=\"collector\"} "),
    ]
}

#[tokio::test(start_paused = true)]
async fn what_has_no_room_is_lost_and_counted_and_the_rest_goes_at_the_end() {
    let collector = Told::to(Does::Take);
    let queue = Queue::start(collector.clone());
    for _ in 0..ROOM + 7 {
        queue.push(Spans::of_nothing());
    }
    assert_eq!(counted(&queue), [0, 7, 0], "nothing of it waited");
    queue.drain(Duration::from_secs(2)).await;
    assert_eq!(counted(&queue), [ROOM as u64, 7, 0]);
    assert_eq!(collector.took(), ROOM);
    // What ends later isn't traced, and is counted too.
    queue.push(Spans::of_nothing());
    assert_eq!(counted(&queue), [ROOM as u64, 8, 0]);
}

#[tokio::test(start_paused = true)]
async fn what_the_collector_does_not_take_is_lost_and_counted() {
    let refusing = Queue::start(Told::to(Does::Refuse));
    refusing.push(Spans::of_nothing());
    tokio::time::sleep(PATIENCE).await;
    assert_eq!(counted(&refusing), [0, 0, 1]);
    let hanging = Queue::start(Told::to(Does::Hang));
    hanging.push(Spans::of_nothing());
    tokio::time::sleep(2 * PATIENCE).await;
    assert_eq!(counted(&hanging), [0, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_hangs_does_not_hold_the_agent_at_its_end() {
    let queue = Queue::start(Told::to(Does::Hang));
    queue.push(Spans::of_nothing());
    let began = Instant::now();
    queue.drain(Duration::from_secs(2)).await;
    assert_eq!(began.elapsed().as_secs(), 2);
}

/// A collector over TLS at a loopback address, with a certificate that is its own CA, in the file.
async fn over_tls(directory: &tempfile::TempDir) -> (String, PathBuf, mpsc::Receiver<Request<Vec<u8>>>) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let ca = directory.path().join("ca.crt");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![made.cert.der().clone()],
            PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into()),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/v1/traces", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let service = service_fn(|request: Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes().to_vec();
                    let _ = sender.send(Request::from_parts(head, body)).await;
                    Ok::<_, hyper::Error>(Response::new(Full::new(bytes::Bytes::new())))
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    });
    (url, ca, received)
}

async fn exporter(url: &str, ca: PathBuf) -> opentelemetry_otlp::SpanExporter {
    let options = TracesOptions {
        traces_ca_file: Some(ca),
        ..TracesOptions::default()
    };
    let collector = Collector::new(url, &options, |_| None).await.unwrap();
    collector.exporter(&Resource::builder().build(), |_| None).unwrap()
}

#[tokio::test]
async fn a_collector_is_spoken_to_over_tls_that_the_ca_file_vouches_for() {
    let directory = tempfile::tempdir().unwrap();
    let (url, ca, mut received) = over_tls(&directory).await;
    let vouched = exporter(&url, ca).await;
    // On one connection.
    for _ in 0..2 {
        let spans: Vec<_> = Spans::of_nothing().into_iter().collect();
        vouched.export(spans).await.unwrap();
        let request = received.recv().await.unwrap();
        assert_eq!(
            (request.method().as_str(), request.uri().path()),
            ("POST", "/v1/traces")
        );
        assert!(!request.body().is_empty());
    }
    let (elsewhere, _, mut unheard) = over_tls(&tempfile::tempdir().unwrap()).await;
    let foreign = exporter(&elsewhere, directory.path().join("ca.crt")).await;
    let refused = foreign.export(Spans::of_nothing().into_iter().collect()).await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(unheard.try_recv().is_err(), "not a byte of it goes there");
}
