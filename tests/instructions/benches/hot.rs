//! What every request or every connection passes, each by itself: `cargo bench --package understudy-instructions`.

#[path = "../src/upstream.rs"]
mod upstream;

use std::{hint::black_box, sync::Arc};

use bytemuck::Zeroable as _;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Request, request::Parts};
use prometheus_client::metrics::counter::Counter;
use tokio::runtime::Runtime;
use understudy::{
    body::RequestBody,
    credentials::BearerToken,
    identity::{ActsAs, dress, guard, strip},
    kernel::Flow,
    limits::Limits,
    trust::roots::UpstreamRoots,
    upstream::{
        Upstream,
        pool::{Bounds, DialCounts},
        roots::Roots,
        target::Target,
    },
};
use understudy_common::{Endpoint, FlowRecord};

/// As client-go asks.
fn head() -> Parts {
    let request = Request::get("/api/v1/namespaces/prod/configmaps/settings")
        .header("host", "kubernetes.default.svc")
        .header("user-agent", "kubectl/v1.36.0 (linux/amd64) kubernetes/0000000")
        .header("accept", "application/json")
        .header("accept-encoding", "gzip")
        .header("authorization", HeaderValue::from_static("Bearer of-the-pod"))
        .header("connection", "keep-alive")
        .body(());
    request.map_or_else(|error| panic!("{error}"), |request| request.into_parts().0)
}

fn good<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

fn identity(criterion: &mut Criterion) {
    let head = head();
    let token: BearerToken = good("t".repeat(1000).parse());
    let viewer = good(ActsAs::service_account("prod", "viewer"));
    criterion.bench_function("guard", |bench| bench.iter(|| guard(black_box(&head), false)));
    let fresh = || head.headers.clone();
    criterion.bench_function("strip", |bench| {
        bench.iter_batched_ref(fresh, strip, BatchSize::SmallInput);
    });
    let stripped = || {
        let mut headers: HeaderMap = head.headers.clone();
        strip(&mut headers);
        headers
    };
    criterion.bench_function("dress", |bench| {
        let on = |headers: &mut HeaderMap| dress(headers, Some(&token), Some(&viewer), None);
        bench.iter_batched_ref(stripped, on, BatchSize::SmallInput);
    });
}

/// Without the system call, which is the kernel's.
fn flow(criterion: &mut Criterion) {
    let record = FlowRecord {
        cgroup_id: 4711,
        enrolment: 1,
        boot_ns: 1_000_000,
        original: Endpoint::from(good("10.96.0.1:443".parse::<std::net::SocketAddr>())),
        ..FlowRecord::zeroed()
    };
    let bytes: Vec<u8> = bytemuck::bytes_of(&record).to_vec();
    criterion.bench_function("flow take", |bench| {
        bench.iter(|| {
            let record: FlowRecord = bytemuck::pod_read_unaligned(black_box(&bytes));
            Flow::from_record(&record, black_box(2_000_000))
        });
    });
}

/// A place on a connection that is there, taken and given back.
fn checkout(criterion: &mut Criterion) {
    let runtime = good(Runtime::new());
    let directory = good(tempfile::tempdir());
    let pool = runtime.block_on(async {
        let address = good(upstream::start(directory.path()).await);
        let roots = UpstreamRoots::follow(directory.path().join(upstream::CA), Counter::default());
        let target = good(Target::parse(&format!("https://{address}"), None));
        let bounds = Bounds::from(&Limits::default());
        let pool = Upstream::new(
            target,
            Roots::followed(good(roots.await)),
            Arc::<DialCounts>::default(),
            bounds,
        );
        let request = good(Request::get("/api").body(RequestBody::empty()));
        drop(good(pool.send(request).await));
        pool
    });
    criterion.bench_function("pool checkout", |bench| {
        bench.iter(|| runtime.block_on(pool.check_out()));
    });
}

criterion_group!(hot, identity, flow, checkout);
criterion_main!(hot);
