//! The screen before hyper's own server, over a pipe.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};

use super::*;
use crate::body::ResponseBody;

const OURS: &str = "x-ours";

/// A request as a service saw it: its line, how many fields, and its body where that came whole.
type Served = (String, usize, Option<Bytes>);

/// Has hyper serve what a client sends and then ends. Tells what was served, and what the client read.
async fn serve<S, F>(io: S, client: tokio::io::DuplexStream, stream: &[u8], turn: F) -> (Vec<Served>, String)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn() -> Option<progress::Turn> + Send + 'static,
{
    let served = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&served);
    let service = service_fn(move |request: Request<Incoming>| {
        let (told, turn) = (Arc::clone(&told), turn());
        async move {
            let refused = turn.as_ref().is_some_and(|turn| turn.verdict().is_some());
            let (head, body) = request.into_parts();
            let line = format!("{} {} {:?}", head.method, head.uri, head.version);
            let body = body.collect().await.ok().map(http_body_util::Collected::to_bytes);
            if !refused {
                told.lock().unwrap().push((line, head.headers.len(), body));
            }
            let mut response = Response::new(Full::new(Bytes::new()));
            response.headers_mut().insert(OURS, HeaderValue::from_static("yes"));
            Ok::<_, Infallible>(response.map(|body| {
                // The turn ends with the answer.
                drop(turn.map(|turn| turn.answer(false, ResponseBody::ours(Bytes::new()))));
                body
            }))
        }
    });
    let connection = http1::Builder::new()
        .half_close(true)
        .max_headers(256)
        .serve_connection(TokioIo::new(io), service);
    let (mut read, mut write) = tokio::io::split(client);
    let client = async {
        write.write_all(stream).await.unwrap();
        write.shutdown().await.unwrap();
        let mut answers = Vec::new();
        read.read_to_end(&mut answers).await.unwrap();
        String::from_utf8(answers).unwrap()
    };
    let (_, answers) = tokio::join!(connection, client);
    let served = std::mem::take(&mut *served.lock().unwrap());
    (served, answers)
}

async fn behind_the_screen(stream: &[u8]) -> (Vec<Served>, String) {
    let (client, server) = duplex(1 << 20);
    let progress = Arc::<Progress>::default();
    let screen = Screen::new(server, &Limits::default(), Arc::clone(&progress));
    serve(screen, client, stream, move || Some(progress.begin())).await
}

async fn without_it(stream: &[u8]) -> Vec<Served> {
    let (client, server) = duplex(1 << 20);
    serve(server, client, stream, || None).await.0
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Invariant 2, for what two readers could take differently: whatever passes the screen hyper reads as the screen
    /// does. It never has to refuse anything by itself, and what is served is what it serves without a screen, up to
    /// where the screen refuses.
    #[test]
    fn hyper_and_the_screen_agree(stream in streams()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (served, answers) = runtime.block_on(behind_the_screen(&stream));
        let without = runtime.block_on(without_it(&stream));
        let mut answered = answers.split("HTTP/1.").skip(1).filter(|answer| !answer.starts_with("1 100"));
        prop_assert!(answered.all(|answer| answer.contains(OURS)), "{}", answers);
        prop_assert!(served.len() <= without.len(), "{:?} {:?}", served, without);
        for (ours, theirs) in served.iter().zip(&without) {
            prop_assert_eq!((&ours.0, ours.1), (&theirs.0, theirs.1));
            // A body that the screen broke off has no end; one that it let pass is the same.
            prop_assert!(ours.2.is_none() || ours.2 == theirs.2, "{:?} {:?}", ours, theirs);
        }
    }
}

/// Bytes that come one by one are held until they are known to be good, and handed on in order.
#[tokio::test]
async fn a_stream_in_single_bytes_is_the_same_stream() {
    let stream = b"PUT /b HTTP/1.1\r\nhost: k\r\ncontent-length: 3\r\n\r\nabcGET / HTTP/1.1\r\nhost: k\r\n\r\n";
    let (mut client, server) = duplex(1);
    let mut screen = Screen::new(server, &Limits::default(), Arc::default());
    let written = tokio::spawn(async move {
        client.write_all(stream).await.unwrap();
        client.shutdown().await.unwrap();
    });
    let mut read = Vec::new();
    screen.read_to_end(&mut read).await.unwrap();
    written.await.unwrap();
    assert_eq!(read, stream);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_takes_too_long_is_refused_and_an_idle_connection_ends() {
    let limits = Limits {
        header_timeout: Duration::from_secs(5),
        ..Limits::default()
    };
    let (mut client, server) = duplex(1024);
    let progress = Arc::<Progress>::default();
    let mut screen = Screen::new(server, &limits, Arc::clone(&progress));
    let begun = Instant::now();
    let mut read = [0; 1024];
    assert_eq!(screen.read(&mut read).await.unwrap(), 0);
    assert_eq!(begun.elapsed().as_secs(), 5);

    client.write_all(b"PUT /slow HT").await.unwrap();
    let length = screen.read(&mut read).await.unwrap();
    assert!(read[..length].starts_with(b"GET / HTTP/1.1\r\n"));
    let turn = progress.begin();
    let verdict = turn.verdict().unwrap();
    assert_eq!(
        (verdict.refusal, verdict.target.path()),
        (Refusal::RequestTimeout, "/slow")
    );
    assert_eq!(verdict.refusal.code(), StatusCode::REQUEST_TIMEOUT);
}
