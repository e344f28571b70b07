//! How much an idle watch costs the agent, counted byte by byte where the agent allocates.
//!
//! What allocates in C isn't counted: the keys of a TLS connection, some hundred bytes of each.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that can't go on has failed"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicIsize, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::{runtime::Builder, sync::oneshot};
use understudy::limits::Limits;

#[path = "forwarding/stage.rs"]
#[expect(dead_code, reason = "the other tests' stage, of which this needs a part")]
mod stage;

use stage::{Seen, Stage, Terms, get, get1, start_upstream};

const WATCH: &str = "/api/v1/namespaces/prod/configmaps?watch=true&resourceVersion=1";
const WATCHES: usize = 400;
/// Streams on each of the clients' HTTP/2 connections.
const STREAMS: usize = 100;

/// Counts what one thread has allocated and not freed: the agent's.
struct Counting;

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

static LIVE: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: isize) {
    if COUNTED.get() {
        LIVE.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: each call goes to the system's allocator as it is; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The agent on a thread of its own, before an upstream whose watches never say anything.
async fn agent() -> Stage {
    let directory = tempfile::tempdir().unwrap();
    let seen = Arc::<Seen>::default();
    let terms = Terms {
        limits: Limits {
            max_connections_per_pod: 10_000,
            ..Limits::default()
        },
        ..Terms::default()
    };
    let silent = Arc::new(|_| {
        Box::pin(async { http::Response::new(StreamBody::new(futures_util::stream::pending()).boxed()) }) as _
    });
    let address = start_upstream(directory.path(), &terms, Arc::clone(&seen), silent).await;
    let (made, stage) = oneshot::channel();
    std::thread::spawn(move || {
        COUNTED.set(true);
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stage = Stage::before(directory, address, terms, seen).await;
            let _ = made.send(stage);
            std::future::pending::<()>().await;
        });
    });
    stage.await.expect("the agent starts")
}

/// Opens so many watches, and returns what holds them open.
async fn open(stage: &Stage, is_http2: bool, watches: usize) -> Vec<(Box<dyn std::any::Any>, Vec<Incoming>)> {
    let mut held: Vec<(Box<dyn std::any::Any>, Vec<Incoming>)> = Vec::new();
    let mut left = watches;
    while left > 0 {
        let mut bodies = Vec::new();
        let sender: Box<dyn std::any::Any> = if is_http2 {
            let mut sender = stage.http2().await;
            for _ in 0..left.min(STREAMS) {
                bodies.push(sender.send_request(get(WATCH)).await.unwrap().into_body());
            }
            Box::new(sender)
        } else {
            let mut sender = stage.http1().await;
            bodies.push(sender.send_request(get1(WATCH)).await.unwrap().into_body());
            Box::new(sender)
        };
        left -= bodies.len();
        held.push((sender, bodies));
    }
    held
}

/// The agent's bytes, once nothing has come or gone for a while.
async fn settled() -> isize {
    let mut before = LIVE.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = LIVE.load(Ordering::Relaxed);
        if (now - before).abs() < 4096 {
            return now;
        }
        before = now;
    }
}

/// The limits are some way above what it is: 8.7 KiB over HTTP/1.1, and 0.6 over HTTP/2.
#[tokio::test]
async fn an_idle_watch_holds_little_and_leaves_nothing() {
    let stage = agent().await;
    for (is_http2, most) in [(false, 9 * 1024), (true, 3 * 1024)] {
        // What is made once, and what tables have grown to.
        drop(open(&stage, is_http2, WATCHES).await);
        let before = settled().await;
        let held = open(&stage, is_http2, WATCHES).await;
        let each = (settled().await - before) / WATCHES.cast_signed();
        println!("HTTP/2 {is_http2}: {each} bytes each");
        assert!(each > 500, "HTTP/2 {is_http2}: {each} bytes each: is anything counted?");
        assert!(each <= most, "HTTP/2 {is_http2}: {each} bytes each, more than {most}");
        drop(held);
        let left = settled().await - before;
        assert!(
            left * 10 < each * WATCHES.cast_signed(),
            "HTTP/2 {is_http2}: {left} bytes are left"
        );
    }
}
