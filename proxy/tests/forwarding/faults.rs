//! What breaks by itself: the upstream, the token, the CA. The client is told, never deceived, and nobody else notices.

use std::{
    future::pending,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rstest::rstest;
use serde_json::json;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use understudy_cases::{Area, seen};

use crate::{
    limits::told,
    pooling::events_of,
    stage::{Stage, Terms, get, get1, text, upstream_tls, whole},
};

const SOON: Duration = Duration::from_secs(30);
const HALF: &[u8] = b"{\"kind\":\"PodList\",\"items\":[{\"metadata\":";

/// A server that does with each connection as it is told, and the agent before it.
pub(crate) async fn before<F, R>(alpn: &[&'static str], serve: F) -> Stage
where
    F: Fn(TlsStream<TcpStream>) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let directory = tempfile::tempdir().unwrap();
    let tls = TlsAcceptor::from(Arc::new(upstream_tls(directory.path(), alpn)));
    let (listener, address) = listen().await;
    let serve = Arc::new(serve);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, serve) = (tls.clone(), Arc::clone(&serve));
            tokio::spawn(async move {
                if let Ok(stream) = tls.accept(stream).await {
                    serve(stream).await;
                }
            });
        }
    });
    Stage::before(directory, address, Terms::default(), Arc::default()).await
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Ends a connection with a TCP reset.
fn reset(stream: &TlsStream<TcpStream>) {
    SockRef::from(stream.get_ref().0)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

async fn ask(stage: &Stage, http2: bool) -> Response<Incoming> {
    let answer = async {
        if http2 {
            stage.http2().await.send_request(get("/api")).await
        } else {
            stage.http1().await.send_request(get1("/api")).await
        }
    };
    timeout(SOON, answer).await.expect("answered").unwrap()
}

/// What a client has of an answer that breaks off.
async fn truncated(response: Response<Incoming>) -> String {
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let mut read = Vec::new();
    let error = loop {
        match timeout(SOON, body.frame()).await.expect("it ends") {
            Some(Ok(frame)) => read.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(error)) => break error,
            None => panic!("a clean end after {} bytes", read.len()),
        }
    };
    assert_eq!(read, HALF, "what came before arrives");
    if error.is_incomplete_message() {
        "the connection closes before the body's end".to_owned()
    } else {
        "the stream or the body breaks with an error".to_owned()
    }
}

#[derive(Debug, Clone, Copy)]
enum Length {
    Known,
    Chunked,
    UntilClose,
}

impl Length {
    fn head(self) -> Vec<u8> {
        let (field, before) = match self {
            Self::Known => ("content-length: 4096\r\n".to_owned(), String::new()),
            Self::Chunked => (
                "transfer-encoding: chunked\r\n".to_owned(),
                format!("{:x}\r\n", HALF.len()),
            ),
            Self::UntilClose => (String::new(), String::new()),
        };
        let mut head = format!("HTTP/1.1 200 OK\r\n{field}\r\n{before}").into_bytes();
        head.extend_from_slice(HALF);
        if matches!(self, Self::Chunked) {
            head.extend_from_slice(b"\r\n");
        }
        head
    }

    fn name(self) -> &'static str {
        match self {
            Self::Known => "HTTP/1.1 with Content-Length",
            Self::Chunked => "HTTP/1.1, chunked",
            Self::UntilClose => "HTTP/1.1 until the connection closes, without close_notify",
        }
    }
}

/// Reads one request's head.
pub(crate) async fn head(stream: &mut TlsStream<TcpStream>) {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

#[rstest]
#[tokio::test]
async fn a_server_that_dies_mid_list_is_a_truncation(
    #[values(Length::Known, Length::Chunked, Length::UntilClose)] length: Length,
    #[values(false, true)] http2: bool,
) {
    let stage = before(&["http/1.1"], move |mut stream| async move {
        head(&mut stream).await;
        stream.write_all(&length.head()).await.unwrap();
        stream.flush().await.unwrap();
        // Gone without a word of TLS.
        drop(stream);
    })
    .await;
    let what = truncated(ask(&stage, http2).await).await;
    let client = if http2 { "HTTP/2" } else { "HTTP/1.1" };
    seen(
        Area::Faults,
        format!("Upstream dies mid-LIST: {}, to a client over {client}", length.name()),
        what,
    );
}

/// Even a clean close isn't the end of a body whose length says otherwise.
#[rstest]
#[case(Length::Known)]
#[case(Length::Chunked)]
#[tokio::test]
async fn a_server_that_closes_mid_list_is_a_truncation(#[case] length: Length) {
    let stage = before(&["http/1.1"], move |mut stream| async move {
        head(&mut stream).await;
        stream.write_all(&length.head()).await.unwrap();
        stream.shutdown().await.unwrap();
    })
    .await;
    let what = truncated(ask(&stage, true).await).await;
    seen(
        Area::Faults,
        format!("Upstream closes mid-LIST, with close_notify: {}", length.name()),
        what,
    );
}

/// How a server ends over HTTP/2.
#[derive(Debug, Clone, Copy)]
enum End {
    Dies,
    Resets,
    ResetsTheStream,
}

#[rstest]
#[tokio::test]
async fn a_server_that_breaks_off_over_http2_is_a_truncation(
    #[values(End::Dies, End::Resets, End::ResetsTheStream)] end: End,
    #[values(false, true)] http2: bool,
) {
    let stage = before(&["h2"], move |stream| async move {
        let socket = SockRef::from(stream.get_ref().0).try_clone().unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_, mut answer) = connection.accept().await.unwrap().unwrap();
        let mut body = answer.send_response(Response::new(()), false).unwrap();
        body.send_data(Bytes::from_static(HALF), false).unwrap();
        // What was sent has to leave before the end does.
        let driving = tokio::time::timeout(
            Duration::from_millis(200),
            std::future::poll_fn(|cx| connection.poll_closed(cx)),
        );
        let _ = driving.await;
        match end {
            End::Dies => socket.shutdown(std::net::Shutdown::Both).unwrap(),
            End::Resets => {
                socket.set_linger(Some(Duration::ZERO)).unwrap();
                drop((socket, body, connection));
                return;
            }
            End::ResetsTheStream => body.send_reset(h2::Reason::INTERNAL_ERROR),
        }
        let _ = timeout(
            Duration::from_secs(5),
            std::future::poll_fn(|cx| connection.poll_closed(cx)),
        )
        .await;
    })
    .await;
    let what = truncated(ask(&stage, http2).await).await;
    let client = if http2 { "HTTP/2" } else { "HTTP/1.1" };
    let end = match end {
        End::Dies => "dies",
        End::Resets => "resets the connection",
        End::ResetsTheStream => "resets the stream",
    };
    seen(
        Area::Faults,
        format!("Upstream {end} mid-LIST over HTTP/2, to a client over {client}"),
        what,
    );
}

#[rstest]
#[case("h2")]
#[case("http/1.1")]
#[tokio::test]
async fn a_server_that_resets_before_it_answers_is_said_to_have_failed(#[case] alpn: &'static str) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let stage = before(&[alpn], move |mut stream| {
        let requests = Arc::clone(&counted);
        async move {
            if alpn == "h2" {
                let socket = SockRef::from(stream.get_ref().0).try_clone().unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let _request = connection.accept().await;
                requests.fetch_add(1, Ordering::SeqCst);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            } else {
                head(&mut stream).await;
                requests.fetch_add(1, Ordering::SeqCst);
                reset(&stream);
            }
        }
    })
    .await;
    let (head, body) = get("/api/v1/namespaces/prod/configmaps").into_parts();
    let mut write = Request::from_parts(head, body);
    *write.method_mut() = http::Method::POST;
    let answer = timeout(SOON, stage.http2().await.send_request(write)).await;
    let what = told(answer.expect("answered").unwrap()).await;
    assert_eq!(what, "502 `Status` InternalError");
    assert_eq!(requests.load(Ordering::SeqCst), 1, "it isn't sent twice");
    let name = if alpn == "h2" { "HTTP/2" } else { "HTTP/1.1" };
    seen(
        Area::Faults,
        format!("Upstream resets the connection before it answers, over {name}"),
        format!("{what}; the write was sent once"),
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_in_tls_is_unreachable() {
    let directory = tempfile::tempdir().unwrap();
    let _ = upstream_tls(directory.path(), &["h2"]);
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let stage = Stage::before(directory, address, Terms::default(), Arc::default()).await;
    let what = told(ask(&stage, true).await).await;
    assert_eq!(what, "503 `Status` ServiceUnavailable");
    seen(
        Area::Faults,
        "Upstream accepts the connection and stalls before TLS",
        what,
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_in_http2_is_unreachable() {
    let stage = before(&["h2"], |stream| async move {
        let _held = stream;
        pending::<()>().await;
    })
    .await;
    let what = told(ask(&stage, true).await).await;
    assert_eq!(what, "503 `Status` ServiceUnavailable");
    seen(Area::Faults, "Upstream stalls after TLS, before its SETTINGS", what);
}

#[tokio::test]
async fn a_request_that_the_server_stalls_holds_up_no_other() {
    let open = Arc::new(AtomicBool::new(false));
    let told_open = Arc::clone(&open);
    let stage = Stage::new(Terms::default(), move |request| {
        struct Open(Arc<AtomicBool>);
        impl Drop for Open {
            fn drop(&mut self) {
                self.0.store(false, Ordering::SeqCst);
            }
        }
        let open = Arc::clone(&told_open);
        async move {
            if request.uri().path() == "/stalls" {
                open.store(true, Ordering::SeqCst);
                let _open = Open(open);
                pending::<()>().await;
            }
            whole("quick")
        }
    })
    .await;
    let mut client = stage.http2().await;
    let stalled = tokio::spawn(client.clone().send_request(get("/stalls")));
    let mut answered = 0;
    for _ in 0..20 {
        let response = timeout(SOON, client.send_request(get("/quick"))).await;
        assert_eq!(text(response.expect("answered").unwrap()).await, "quick");
        answered += 1;
    }
    assert!(!stalled.is_finished() && open.load(Ordering::SeqCst));
    // Its client gives up: the server is told.
    stalled.abort();
    let told = async {
        while open.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, told).await.expect("the request upstream is reset");
    assert_eq!(answered, 20);
    seen(
        Area::Faults,
        "Upstream stalls a request",
        "it waits as its client does; all others on the same connection are answered; reset upstream when its client leaves",
    );
}

/// Asks for as long as `go_on` says, and returns how many were answered, by status.
async fn under_load(stage: &Stage, go_on: Arc<AtomicBool>) -> std::collections::BTreeMap<u16, usize> {
    let mut answers = std::collections::BTreeMap::new();
    let mut client = stage.http2().await;
    while go_on.load(Ordering::SeqCst) {
        let response = timeout(SOON, client.send_request(get("/api"))).await;
        let code = response.expect("answered").unwrap().status().as_u16();
        *answers.entry(code).or_default() += 1;
    }
    answers
}

fn replace(file: &std::path::Path, contents: &[u8]) {
    let next = file.with_extension("next");
    std::fs::write(&next, contents).unwrap();
    std::fs::rename(&next, file).unwrap();
}

async fn with_token_file(token: &str) -> (Stage, PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, token).unwrap();
    let terms = Terms {
        spec: json!({"authMethod": "service-account-token", "tokenFile": file}),
        ..Terms::default()
    };
    (Stage::new(terms, |_| async { whole("x") }).await, file, directory)
}

fn tokens_sent(stage: &Stage) -> Vec<String> {
    let heads = stage.seen.heads.lock().unwrap();
    let mut tokens: Vec<String> = heads
        .iter()
        .map(|head| head.headers["authorization"].to_str().unwrap().to_owned())
        .collect();
    tokens.dedup();
    tokens
}

#[tokio::test]
async fn a_token_rotated_under_load_fails_no_request() {
    let (stage, file, _directory) = with_token_file("first").await;
    let go_on = Arc::new(AtomicBool::new(true));
    let rotate = async {
        for token in ["second", "third"] {
            replace(&file, token.as_bytes());
            let expected = format!("Bearer {token}");
            let taken_up = async {
                while tokens_sent(&stage).last() != Some(&expected) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(SOON, taken_up).await.expect("the new token is taken up");
        }
        go_on.store(false, Ordering::SeqCst);
    };
    let (answers, ()) = tokio::join!(under_load(&stage, Arc::clone(&go_on)), rotate);
    assert_eq!(answers.keys().collect::<Vec<_>>(), [&200]);
    assert_eq!(tokens_sent(&stage), ["Bearer first", "Bearer second", "Bearer third"]);
    seen(
        Area::Faults,
        "Token rotated under load",
        "every request answered 200; each token gives way to the next, once",
    );
}

#[tokio::test]
async fn a_token_that_cannot_be_read_is_used_until_it_expires() {
    let expiry = jiff::Timestamp::now().as_second() + 3;
    let claims = base64_url(&format!("{{\"exp\":{expiry}}}"));
    let (stage, file, _directory) = with_token_file(&format!("e30.{claims}.sig")).await;
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let good = ask(&stage, true).await.status();
    assert_eq!(good, StatusCode::OK);
    let expired = async {
        loop {
            let answer = ask(&stage, true).await;
            if answer.status() != StatusCode::OK {
                return told(answer).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let what = timeout(SOON, expired).await.expect("it expires");
    assert!(jiff::Timestamp::now().as_second() >= expiry);
    assert_eq!(what, "500 `Status` InternalError");
    let before = stage.seen.count();
    assert_eq!(ask(&stage, false).await.status(), 500);
    assert_eq!(stage.seen.count(), before, "nothing is sent without one");
    std::fs::remove_dir(&file).unwrap();
    replace(&file, b"renewed");
    let again = async {
        while ask(&stage, true).await.status() != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, again).await.expect("it is taken up when it can be read");
    seen(
        Area::Faults,
        "Token file unreadable",
        format!("{} with the last good one until it expires", good.as_u16()),
    );
    seen(
        Area::Faults,
        "Token expired",
        format!("{what}, nothing upstream; 200 once there is another"),
    );
}

fn base64_url(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
}

#[tokio::test]
async fn a_ca_rotated_under_load_fails_no_request_and_a_wrong_one_sends_none() {
    let stage = Stage::new(Terms::default(), |_| async { whole("x") }).await;
    let own = std::fs::read(stage.upstream_ca()).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let _ = upstream_tls(elsewhere.path(), &["h2"]);
    let other = std::fs::read(elsewhere.path().join("upstream.crt")).unwrap();
    let go_on = Arc::new(AtomicBool::new(true));
    let rotate = async {
        for (number, bundle) in [[own.clone(), other.clone()], [other.clone(), own.clone()]]
            .iter()
            .enumerate()
        {
            replace(&stage.upstream_ca(), &bundle.concat());
            let taken_up = async {
                while stage.seen.connections.load(Ordering::SeqCst) < number + 2 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(SOON, taken_up).await.expect("the new CA is taken up");
        }
        go_on.store(false, Ordering::SeqCst);
    };
    let (answers, ()) = tokio::join!(under_load(&stage, Arc::clone(&go_on)), rotate);
    assert_eq!(answers.keys().collect::<Vec<_>>(), [&200]);
    replace(&stage.upstream_ca(), &other);
    let refused = async {
        loop {
            let answer = ask(&stage, true).await;
            if answer.status() != StatusCode::OK {
                return told(answer).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let what = timeout(SOON, refused).await.expect("the other CA is taken up");
    assert_eq!(what, "503 `Status` ServiceUnavailable");
    let before = stage.seen.count();
    assert_eq!(ask(&stage, false).await.status(), 503);
    assert_eq!(stage.seen.count(), before);
    seen(
        Area::Faults,
        "CA rotated under load",
        format!(
            "every request answered 200, on new connections; under a CA that didn't sign the server {what}, nothing upstream"
        ),
    );
}

#[tokio::test]
async fn a_goaway_mid_watch_ends_no_watch() {
    let (events, receiver) = watch::channel("");
    let stage = Stage::new(Terms::default(), move |request| {
        let receiver = receiver.clone();
        async move {
            if request.uri().path() == "/watch" {
                events_of(receiver)
            } else {
                whole("x")
            }
        }
    })
    .await;
    let mut client = stage.http2().await;
    let mut watching = client.send_request(get("/watch")).await.unwrap().into_body();
    stage.seen.go_away.notify_waiters();
    let next = async {
        loop {
            let answered = client.send_request(get("/api")).await.unwrap().status();
            if answered != StatusCode::OK || stage.seen.connections.load(Ordering::SeqCst) > 1 {
                return answered;
            }
        }
    };
    let next = timeout(SOON, next).await.expect("the GOAWAY is heeded");
    events.send_replace("event");
    let frame = timeout(SOON, watching.frame()).await.expect("the watch goes on");
    assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "event");
    let connections = stage.seen.connections.load(Ordering::SeqCst);
    assert_eq!((next.as_u16(), connections), (200, 2));
    seen(
        Area::Faults,
        "Upstream sends GOAWAY mid-watch",
        "the watch goes on; the next request goes on another connection, 200",
    );
}

#[tokio::test]
async fn a_server_that_allows_one_stream_holds_up_nobody() {
    let (events, receiver) = watch::channel("");
    let terms = Terms {
        streams: 1,
        ..Terms::default()
    };
    let stage = Stage::new(terms, move |_| {
        let receiver = receiver.clone();
        async move { events_of(receiver) }
    })
    .await;
    let client = stage.http2().await;
    let mut bodies = Vec::new();
    for _ in 0..5 {
        let response = timeout(SOON, client.clone().send_request(get("/watch"))).await;
        bodies.push(response.expect("begins").unwrap().into_body());
    }
    events.send_replace("event");
    for body in &mut bodies {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "event");
    }
    let connections = stage.seen.connections.load(Ordering::SeqCst);
    assert_eq!(connections, 5);
    seen(
        Area::Faults,
        "Upstream allows one stream for each connection",
        "five watches over one client connection: all open, on five connections upstream",
    );
}

/// Invariant 7: a reader that never reads holds what its windows allow, and slows itself alone.
#[rstest]
#[case(true)]
#[case(false)]
#[tokio::test]
async fn a_reader_that_never_reads_stops_its_own_answer_alone(#[case] http2: bool) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let stage = Stage::new(Terms::default(), move |request| {
        let sent = Arc::clone(&counted);
        async move {
            if request.uri().path() != "/endless" {
                return whole("quick");
            }
            let chunks = futures_util::stream::unfold(sent, |sent| async move {
                sent.fetch_add(64 << 10, Ordering::SeqCst);
                Some((Ok(http_body::Frame::data(Bytes::from(vec![b'x'; 64 << 10]))), sent))
            });
            Response::new(BodyExt::boxed(http_body_util::StreamBody::new(chunks)))
        }
    })
    .await;
    let unread = if http2 {
        stage.http2().await.send_request(get("/endless")).await.unwrap()
    } else {
        stage.http1().await.send_request(get1("/endless")).await.unwrap()
    };
    let mut last = usize::MAX;
    let stops = async {
        while last != sent.load(Ordering::SeqCst) {
            last = sent.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    timeout(SOON, stops).await.expect("the answer stops coming");
    let mut client = stage.http2().await;
    for _ in 0..20 {
        let response = timeout(SOON, client.send_request(get("/quick"))).await;
        assert_eq!(text(response.expect("answered").unwrap()).await, "quick");
    }
    assert!(last < 32 << 20, "{last} bytes were taken of the upstream");
    drop(unread);
    let client = if http2 { "HTTP/2" } else { "HTTP/1.1" };
    seen(
        Area::Faults,
        format!("A client over {client} that never reads an endless answer"),
        "the upstream is read no further than buffers and windows allow; all other requests are answered",
    );
}
