//! Connections over a pipe, beside hyper's own server.

mod scripted;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::{body::client::ClientBody, status::Refusal};

const OURS: &str = "x-ours";

/// A request as a service saw it: its line, how many fields, and its body where that came whole.
type Served = (String, usize, Option<Bytes>);

type Any = UnsyncBoxBody<Bytes, &'static str>;

fn ours(body: impl Body<Data = Bytes, Error = Infallible> + Send + 'static) -> Response<Any> {
    let mut answer = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    answer.headers_mut().insert(OURS, HeaderValue::from_static("yes"));
    // One that doesn't change from one run to the next.
    answer
        .headers_mut()
        .insert("date", HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
    answer
}

async fn see<B: Body<Data = Bytes, Error: std::fmt::Debug>>(request: Request<B>) -> Served {
    let (head, body) = request.into_parts();
    let line = format!("{} {} {:?}", head.method, head.uri, head.version);
    let body = body.collect().await.ok().map(http_body_util::Collected::to_bytes);
    (line, head.headers.len(), body)
}

/// Remembers what it serves, and answers with the length of the body.
#[derive(Default)]
struct Remembers {
    served: Mutex<Vec<Served>>,
    refused: Mutex<Vec<(Refusal, Method, String)>>,
}

impl Remembers {
    fn served(&self) -> Vec<Served> {
        self.served.lock().unwrap().clone()
    }
}

impl Service for Remembers {
    type Body = Any;

    async fn serve(&self, request: Request<ClientBody>) -> Response<Any> {
        let served = see(request).await;
        let said = format!("{:?}", served.2.as_ref().map(Bytes::len));
        self.served.lock().unwrap().push(served);
        ours(Full::new(said.into()))
    }

    fn refuse(&self, refused: &Request<()>, refusal: Refusal) -> Response<Any> {
        let refused = (refusal, refused.method().clone(), refused.uri().to_string());
        self.refused.lock().unwrap().push(refused);
        let mut answer = ours(Full::new("refused".into()));
        *answer.status_mut() = refusal.code();
        answer
    }
}

/// Sends a stream in pieces, ends it, and returns what comes back.
async fn play(client: DuplexStream, stream: &[u8], cuts: &[usize]) -> String {
    let (mut read, mut write) = tokio::io::split(client);
    let mut answers = String::new();
    let sent = async {
        let mut from = 0;
        for to in cuts.iter().copied().chain([stream.len()]) {
            if write.write_all(&stream[from..to]).await.is_err() {
                return;
            }
            from = to;
            // Whoever reads has done what can be done with it.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        }
        // Ended once all is answered that will be: one who leaves gets no answer.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = write.shutdown().await;
    };
    tokio::join!(sent, async { read.read_to_string(&mut answers).await.unwrap() });
    answers
}

async fn behind(stream: &[u8], cuts: &[usize]) -> (Remembers, String) {
    let (client, io) = duplex(1 << 20);
    let service = Remembers::default();
    let limits = Limits::default();
    let stopping = AtomicBool::new(false);
    let (_, answers) = tokio::join!(serve(io, &limits, &service, &stopping), play(client, stream, cuts));
    (service, answers)
}

async fn behind_hyper(stream: &[u8]) -> Vec<Served> {
    let (client, io) = duplex(1 << 20);
    let served = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&served);
    let service = service_fn(move |request: Request<Incoming>| {
        let told = Arc::clone(&told);
        async move {
            let served = see(request).await;
            told.lock().unwrap().push(served);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
        }
    });
    let connection = http1::Builder::new()
        .half_close(true)
        .max_headers(256)
        .serve_connection(TokioIo::new(io), service);
    let (_, _) = tokio::join!(connection, play(client, stream, &[]));
    std::mem::take(&mut *served.lock().unwrap())
}

/// Requests, some good, and bytes put wrong in them.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let requests = prop::sample::select(vec![
        "GET /a?b=c HTTP/1.1\r\nhost: k\r\n\r\n",
        "GET /old HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
        "PUT /b HTTP/1.1\r\nhost: k\r\ncontent-length: 3\r\nx: \ty z \r\n\r\nabc",
        "POST /c HTTP/1.1\r\nhost: k\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n0\r\nt: v\r\n\r\n",
        "POST /d HTTP/1.1\r\nhost: k\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
        "\r\nGET https://k/e HTTP/1.1\r\nhost: k\r\n\r\n",
    ]);
    let wrong = prop_oneof![
        prop::sample::select(&b"\r\n\0 :\t,;+0x-/{\x7f\x80"[..]).prop_map(Some),
        any::<u8>().prop_map(Some),
        Just(None),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), wrong, any::<bool>()), 0..4);
    (prop::collection::vec(requests, 1..4), changes).prop_map(|(requests, changes)| {
        let mut stream = requests.concat().into_bytes();
        for (at, byte, inserted) in changes {
            let at = at.index(stream.len());
            match byte {
                Some(byte) if inserted => stream.insert(at, byte),
                Some(byte) => stream[at] = byte,
                None => drop(stream.remove(at)),
            }
        }
        stream
    })
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Invariant 2, for what two readers could take differently: whatever is served, hyper reads in the same way, up to
    /// where a request is refused.
    #[test]
    fn hyper_would_read_the_same(stream in streams()) {
        let runtime = paused();
        let (service, answers) = runtime.block_on(behind(&stream, &[]));
        let hypers = runtime.block_on(behind_hyper(&stream));
        let mut answered = answers.split("HTTP/1.").skip(1);
        prop_assert!(answered.all(|answer| answer.contains(OURS)), "{}", answers);
        let served = service.served();
        prop_assert!(served.len() <= hypers.len(), "{:?} {:?}", served, hypers);
        for (ours, theirs) in served.iter().zip(&hypers) {
            prop_assert_eq!((&ours.0, ours.1), (&theirs.0, theirs.1));
            // A body that was broken off has no end; one that was taken whole is the same.
            prop_assert!(ours.2.is_none() || ours.2 == theirs.2, "{:?} {:?}", ours, theirs);
        }
    }

    /// However a stream is cut, it is served and answered in the same way. Only where a body breaks it may be seen sooner,
    /// and then the request isn't served at all.
    #[test]
    fn any_cut_is_answered_the_same(
        stream in streams(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.sort_unstable();
        let runtime = paused();
        let (whole, answers) = runtime.block_on(behind(&stream, &[]));
        let (cut, cut_answers) = runtime.block_on(behind(&stream, &cuts));
        let (served, mut cut_served) = (whole.served(), cut.served());
        if cut_served.last().is_some_and(|(_, _, body)| body.is_none()) && served.len() < cut_served.len() {
            cut_served.pop();
            prop_assert_eq!(served, cut_served);
        } else {
            prop_assert_eq!(served, cut_served);
            // How much can be read of what is refused hangs on how much of it has come; why it is refused doesn't.
            let why = |service: Remembers| service.refused.into_inner().unwrap().first().map(|(refusal, ..)| *refusal);
            prop_assert_eq!(why(whole), why(cut));
            prop_assert_eq!(answers, cut_answers);
        }
    }
}
