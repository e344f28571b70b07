//! Connections over a pipe, with the `h2` crate for a client.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all, stream};
use h2::{
    Reason,
    client::{self, SendRequest},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

use super::*;

type Any = UnsyncBoxBody<Bytes, &'static str>;

const LONG: Duration = Duration::from_secs(20);
/// What one answer has, more than any window.
const LARGE: usize = 3 * 1024 * 1024;

fn whole(body: impl Into<Bytes>) -> Response<Any> {
    Response::new(
        Full::new(body.into())
            .map_err(|never: Infallible| match never {})
            .boxed_unsync(),
    )
}

/// Pieces, of which one may be wrong.
fn pieces(pieces: Vec<Result<Frame<Bytes>, &'static str>>) -> Response<Any> {
    Response::new(StreamBody::new(stream::iter(pieces)).boxed_unsync())
}

/// Answers by the path.
#[derive(Default)]
struct Scripted {
    /// Told when something was begun, and when it was given up.
    begun: Notify,
    given_up: Arc<AtomicUsize>,
    served: AtomicUsize,
    go_on: Notify,
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Service for Scripted {
    type Body = Any;

    async fn serve(&self, request: Request<ClientBody>) -> Response<Any> {
        self.served.fetch_add(1, Ordering::SeqCst);
        let (head, body) = request.into_parts();
        match head.uri.path() {
            "/large" => whole(vec![b'x'; LARGE]),
            "/echo" => match body.collect().await {
                Ok(body) => whole(body.to_bytes()),
                Err(_) => whole("broken"),
            },
            "/waits" => {
                let _guard = Counted(Arc::clone(&self.given_up));
                self.begun.notify_one();
                std::future::pending().await
            }
            "/later" => {
                self.begun.notify_one();
                self.go_on.notified().await;
                whole("later")
            }
            "/unread" => whole("unread"),
            "/breaks" => pieces(vec![Ok(Frame::data(Bytes::from_static(b"part"))), Err("broken")]),
            "/trailers" => {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", HeaderValue::from_static("1"));
                pieces(vec![
                    Ok(Frame::data(Bytes::from_static(b"body"))),
                    Ok(Frame::trailers(trailers)),
                ])
            }
            "/connection" => {
                let mut answer = whole("body");
                for name in ["connection", "keep-alive", "transfer-encoding", "upgrade"] {
                    answer.headers_mut().insert(name, HeaderValue::from_static("close"));
                }
                answer
            }
            "/none" => {
                let mut answer = whole("");
                *answer.status_mut() = StatusCode::NO_CONTENT;
                answer
            }
            _ => whole("served"),
        }
    }

    fn refuse(&self, _: &Request<()>, refusal: Refusal) -> Response<Any> {
        let mut answer = whole("refused");
        *answer.status_mut() = refusal.code();
        answer
    }
}

struct Stage {
    service: Arc<Scripted>,
    stopping: Arc<AtomicBool>,
    /// Has it look at `stopping`.
    stop: Arc<Notify>,
    served: JoinHandle<Result<(), Cut>>,
}

impl Stage {
    fn new(limits: Limits) -> (Self, DuplexStream) {
        let (ours, theirs) = duplex(64 * 1024);
        let stage = Self {
            service: Arc::default(),
            stopping: Arc::default(),
            stop: Arc::default(),
            served: tokio::spawn(std::future::ready(Ok(()))),
        };
        let (service, stopping, stop) = (
            Arc::clone(&stage.service),
            Arc::clone(&stage.stopping),
            Arc::clone(&stage.stop),
        );
        let served = tokio::spawn(async move {
            let connection = serve(ours, &limits, &*service, &stopping);
            tokio::pin!(connection);
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = stop.notified() => {
                    stopping.store(true, Ordering::Relaxed);
                    connection.await
                }
            }
        });
        (Self { served, ..stage }, theirs)
    }

    async fn client(limits: Limits, builder: &client::Builder) -> (Self, SendRequest<Bytes>) {
        let (stage, io) = Self::new(limits);
        let (client, connection) = builder.handshake(io).await.unwrap();
        tokio::spawn(connection);
        (stage, client.ready().await.unwrap())
    }

    async fn usual() -> (Self, SendRequest<Bytes>) {
        Self::client(Limits::default(), &client::Builder::new()).await
    }
}

fn ask(method: Method, path: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .uri(format!("https://k{path}"))
        .body(())
        .unwrap()
}

fn get(client: &mut SendRequest<Bytes>, path: &str) -> client::ResponseFuture {
    client.send_request(ask(Method::GET, path), true).unwrap().0
}

/// Reads all of a body, and opens the windows again.
async fn read(mut body: h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = timeout(LONG, body.data()).await.expect("more comes") {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend(data);
    }
    Ok(all)
}

#[tokio::test]
async fn an_answer_says_how_long_it_is_and_when_it_was_given() {
    let (_stage, mut client) = Stage::usual().await;
    let answer = get(&mut client, "/").await.unwrap();
    assert_eq!(answer.headers()["content-length"], "6");
    assert!(answer.headers()["date"].to_str().unwrap().ends_with(" GMT"));
    assert_eq!(read(answer.into_body()).await.unwrap(), b"served");
    let answer = client
        .send_request(ask(Method::HEAD, "/"), true)
        .unwrap()
        .0
        .await
        .unwrap();
    assert_eq!(answer.headers()["content-length"], "6");
    assert!(answer.body().is_end_stream());
    let answer = get(&mut client, "/none").await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    assert!(!answer.headers().contains_key("content-length") && answer.body().is_end_stream());
    let answer = get(&mut client, "/connection").await.unwrap();
    let names: Vec<&str> = answer.headers().keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["content-length", "date"]);
}

/// RFC 9113, section 5.2: never more than the client's windows, and all of it as they open.
#[tokio::test]
async fn answers_keep_to_the_windows_and_come_whole() {
    let mut builder = client::Builder::new();
    builder.initial_window_size(1000).initial_connection_window_size(70_000);
    let (_stage, mut client) = Stage::client(Limits::default(), &builder).await;
    let answers: Vec<_> = (0..8).map(|_| get(&mut client, "/large")).collect();
    let bodies = answers.into_iter().map(async |answer| {
        let answer = answer.await.unwrap();
        read(answer.into_body()).await.unwrap().len()
    });
    assert_eq!(join_all(bodies).await, [LARGE; 8]);
}

#[tokio::test]
async fn uploads_come_whole_and_many_at_once() {
    let (_stage, mut client) = Stage::usual().await;
    let mut uploads = Vec::new();
    for byte in 0..6_u8 {
        let (answer, mut upload) = client.send_request(ask(Method::POST, "/echo"), false).unwrap();
        uploads.push(async move {
            let mut left = Bytes::from(vec![byte; LARGE]);
            while !left.is_empty() {
                upload.reserve_capacity(left.len().min(50_000));
                let room = timeout(LONG, std::future::poll_fn(|cx| upload.poll_capacity(cx))).await;
                let room = room.expect("there is room").unwrap().unwrap();
                upload
                    .send_data(left.split_to(room.min(left.len())), left.is_empty())
                    .unwrap();
            }
            let echoed = read(answer.await.unwrap().into_body()).await.unwrap();
            assert!(echoed.len() == LARGE && echoed.iter().all(|echoed| *echoed == byte));
        });
    }
    join_all(uploads).await;
}

#[tokio::test]
async fn who_gives_up_has_its_request_given_up() {
    let (stage, mut client) = Stage::usual().await;
    let (answer, mut stream) = client.send_request(ask(Method::GET, "/waits"), true).unwrap();
    stage.service.begun.notified().await;
    assert_eq!(stage.service.given_up.load(Ordering::SeqCst), 0);
    stream.send_reset(Reason::CANCEL);
    drop(answer);
    let given_up = async {
        while stage.service.given_up.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, given_up).await.expect("it is given up");
    assert_eq!(get(&mut client, "/").await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn what_is_at_hand_is_answered_before_the_connection_ends() {
    let (stage, mut client) = Stage::usual().await;
    let answer = get(&mut client, "/later");
    stage.service.begun.notified().await;
    stage.stop.notify_one();
    // The client learns that nothing further is taken.
    let closed = async { while get_result(&mut client).await.is_ok() {} };
    timeout(LONG, closed).await.expect("it is told");
    stage.service.go_on.notify_one();
    assert_eq!(read(answer.await.unwrap().into_body()).await.unwrap(), b"later");
    drop(client);
    timeout(LONG, stage.served).await.expect("it ends").unwrap().unwrap();
}

async fn get_result(client: &mut SendRequest<Bytes>) -> Result<StatusCode, h2::Error> {
    let mut client = client.clone().ready().await?;
    Ok(client.send_request(ask(Method::GET, "/"), true)?.0.await?.status())
}

#[tokio::test]
async fn an_answer_that_breaks_off_has_no_end_and_keeps_what_came() {
    let (_stage, mut client) = Stage::usual().await;
    let mut body = get(&mut client, "/breaks").await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "part");
    let error = body.data().await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    assert_eq!(get(&mut client, "/").await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn trailers_come_behind_an_answer() {
    let (_stage, mut client) = Stage::usual().await;
    let mut body = get(&mut client, "/trailers").await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "body");
    assert!(body.data().await.is_none());
    assert_eq!(body.trailers().await.unwrap().unwrap()["x-sum"], "1");
}

/// RFC 9113, section 8.1: an upload that isn't wanted is ended, and not as if something were wrong.
#[tokio::test]
async fn who_uploads_in_vain_has_its_answer() {
    let (_stage, mut client) = Stage::usual().await;
    let (answer, mut upload) = client.send_request(ask(Method::POST, "/unread"), false).unwrap();
    upload.send_data(Bytes::from_static(b"something"), false).unwrap();
    assert_eq!(read(answer.await.unwrap().into_body()).await.unwrap(), b"unread");
    let ended = timeout(LONG, std::future::poll_fn(|cx| upload.poll_reset(cx))).await;
    assert_eq!(ended.expect("it is told").unwrap(), Reason::NO_ERROR);
}

#[tokio::test]
async fn many_requests_over_many_streams_are_each_answered() {
    let (stage, mut client) = Stage::usual().await;
    let mut statuses = HashMap::new();
    for _ in 0..20 {
        client = client.ready().await.unwrap();
        let answers: Vec<_> = (0..100).map(|_| get(&mut client, "/")).collect();
        for answer in join_all(answers).await {
            let answer = answer.unwrap();
            *statuses.entry(answer.status()).or_insert(0) += 1;
            assert_eq!(read(answer.into_body()).await.unwrap(), b"served");
        }
    }
    assert_eq!(statuses, HashMap::from([(StatusCode::OK, 2000)]));
    assert_eq!(stage.service.served.load(Ordering::SeqCst), 2000);
}

/// RFC 9110, section 10.1.1.
#[tokio::test]
async fn who_waits_to_be_told_is_told_to_send_its_body() {
    let (_stage, io) = Stage::new(Limits::default());
    let mut peer = Peer::greeted(io).await;
    // POST https /echo, `expect: 100-continue`.
    let mut block = vec![0x83, 0x87, 0x04, 5];
    block.extend(b"/echo");
    block.extend([0x0f, 0x14, 12]);
    block.extend(b"100-continue");
    peer.send(1, 4, 1, &block).await;
    // `:status: 100`, as a literal.
    assert_eq!(peer.next_of(1).await, (1, 4, b"\x08\x03100".to_vec()));
    peer.send(0, 1, 1, b"body").await;
    let (kind, flags, _) = peer.next_of(1).await;
    assert_eq!((kind, flags), (1, 4));
    assert_eq!(peer.next_of(1).await, (0, 1, b"body".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_left() {
    let (stage, io) = Stage::new(Limits::default());
    let mut peer = Peer::greeted(io).await;
    // Its word is asked for, and once it comes it is there.
    let answered = tokio::time::Instant::now();
    let (_, _, payload) = peer.next_of_kind(6).await;
    assert!(answered.elapsed() <= Limits::default().header_timeout + PING + PING);
    peer.send(6, 1, 0, &payload).await;
    let (_, _, again) = peer.next_of_kind(6).await;
    assert_ne!(payload, again);
    let outcome = stage.served.await.unwrap();
    assert!(matches!(outcome, Err(Cut::Silent)), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_greet_is_left() {
    let (stage, mut io) = Stage::new(Limits::default());
    io.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let outcome = stage.served.await.unwrap();
    assert!(matches!(outcome, Err(Cut::Late)), "{outcome:?}");
}

#[tokio::test]
async fn a_client_that_leaves_has_its_requests_given_up() {
    let (stage, mut client) = Stage::usual().await;
    let answer = get(&mut client, "/waits");
    stage.service.begun.notified().await;
    let given_up = Arc::clone(&stage.service.given_up);
    drop((answer, client));
    // Its connection goes with it.
    stage.served.abort();
    let _ = stage.served.await;
    assert_eq!(given_up.load(Ordering::SeqCst), 1);
}

/// Memory is bounded: what is uploaded and not read shuts the windows.
#[tokio::test]
async fn what_is_not_read_is_not_sent() {
    let (_stage, mut client) = Stage::usual().await;
    let mut room = 0;
    let mut uploads = Vec::new();
    for _ in 0..32 {
        let (answer, mut upload) = client.send_request(ask(Method::POST, "/later"), false).unwrap();
        upload.reserve_capacity(LARGE);
        uploads.push((answer, upload));
    }
    loop {
        let before = room;
        for (_, upload) in &mut uploads {
            let more = timeout(
                Duration::from_millis(50),
                std::future::poll_fn(|cx| upload.poll_capacity(cx)),
            );
            if let Ok(Some(Ok(more))) = more.await {
                room += more;
                upload.send_data(vec![0; more].into(), false).unwrap();
                upload.reserve_capacity(LARGE);
            }
        }
        if before == room {
            break;
        }
    }
    assert!((1 << 20..=4 << 20).contains(&room), "{room} bytes");
    assert!(uploads[0].0.by_ref_is_pending());
}

trait Pending {
    fn by_ref_is_pending(&mut self) -> bool;
}

impl Pending for client::ResponseFuture {
    fn by_ref_is_pending(&mut self) -> bool {
        self.now_or_never().is_none()
    }
}

/// A client, frame by frame.
struct Peer(DuplexStream);

impl Peer {
    async fn greeted(mut io: DuplexStream) -> Self {
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut peer = Self(io);
        peer.send(4, 0, 0, &[]).await;
        peer
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await.unwrap();
    }

    async fn next(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        (head[3], head[4], stream, payload)
    }

    /// The next frame of a stream.
    async fn next_of(&mut self, stream: u32) -> (u8, u8, Vec<u8>) {
        loop {
            let (kind, flags, of, payload) = self.next().await;
            if of == stream {
                return (kind, flags, payload);
            }
        }
    }

    /// The next of the connection's own frames of a kind that answers nothing.
    async fn next_of_kind(&mut self, wanted: u8) -> (u8, u8, Vec<u8>) {
        loop {
            let (kind, flags, _, payload) = self.next().await;
            if kind == wanted && flags == 0 {
                return (kind, flags, payload);
            }
        }
    }
}
