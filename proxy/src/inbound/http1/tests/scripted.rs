//! Single connections, served as a test says.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body::Frame;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::*;
use crate::upgrade::Takeover;

const PATIENCE: Duration = Duration::from_mins(1);

/// A service that is told what to answer with, and tells what it was asked.
struct Scripted<F>(F);

impl<F, R> Service for Scripted<F>
where
    F: Fn(Request<ClientBody>) -> R + Sync,
    R: Future<Output = Response<Any>> + Send,
{
    type Body = Any;

    fn serve(&self, request: Request<ClientBody>) -> impl Future<Output = Response<Any>> + Send {
        (self.0)(request)
    }

    fn refuse(&self, _: &Request<()>, refusal: Refusal) -> Response<Any> {
        let mut answer = ours(Full::new(Bytes::new()));
        *answer.status_mut() = refusal.code();
        answer
    }
}

/// A connection that is served.
type Serving = tokio::task::JoinHandle<Result<(), Cut>>;

/// Serves a client in a task of its own.
fn start<F, R>(limits: Limits, serve: F) -> (DuplexStream, Serving)
where
    F: Fn(Request<ClientBody>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Any>> + Send + 'static,
{
    start_until(std::future::pending(), limits, serve)
}

/// Serves a client in a task of its own, which stops when it is told to.
fn start_until<F, R>(
    stop: impl Future<Output = ()> + Send + 'static,
    limits: Limits,
    serve: F,
) -> (DuplexStream, Serving)
where
    F: Fn(Request<ClientBody>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Any>> + Send + 'static,
{
    let (client, io) = duplex(64 * 1024);
    let served = tokio::spawn(async move {
        let service = Scripted(serve);
        let stopping = AtomicBool::new(false);
        let mut connection = std::pin::pin!(crate::inbound::http1::serve(io, &limits, &service, &stopping));
        tokio::select! {
            served = connection.as_mut() => served,
            () = stop => {
                stopping.store(true, Ordering::Relaxed);
                connection.await
            }
        }
    });
    (client, served)
}

async fn send(client: &mut DuplexStream, text: &str) {
    client.write_all(text.as_bytes()).await.unwrap();
}

/// Reads until what came ends so.
async fn read_until(client: &mut DuplexStream, end: &str) -> String {
    let mut read = Vec::new();
    let all = async {
        while !read.ends_with(end.as_bytes()) {
            read.push(client.read_u8().await.expect("more comes"));
        }
    };
    timeout(PATIENCE, all).await.expect("it comes");
    String::from_utf8(read).unwrap()
}

/// Feeds a body: pieces, and how it ends.
type Feeder = mpsc::UnboundedSender<Result<&'static str, &'static str>>;

/// A body that a test feeds.
struct Fed(mpsc::UnboundedReceiver<Result<&'static str, &'static str>>);

impl Body for Fed {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(|piece| piece.map(|text| Frame::data(text.into()))))
    }
}

fn fed() -> (Feeder, Any) {
    let (feed, receiver) = mpsc::unbounded_channel();
    (feed, Fed(receiver).boxed_unsync())
}

/// Answers the first request with a body that is fed.
fn start_fed(declared: Option<&'static str>) -> (DuplexStream, Feeder, Serving) {
    let (feed, body) = fed();
    let body = Mutex::new(Some(body));
    let (client, served) = start(Limits::default(), move |_| {
        let mut answer = Response::new(body.lock().unwrap().take().unwrap());
        if let Some(length) = declared {
            answer
                .headers_mut()
                .insert("content-length", HeaderValue::from_static(length));
        }
        async move { answer }
    });
    (client, feed, served)
}

const GET: &str = "GET /a HTTP/1.1\r\nhost: k\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_head_that_takes_too_long_is_refused_and_an_idle_connection_ends() {
    let limits = || Limits {
        header_timeout: Duration::from_secs(5),
        ..Limits::default()
    };
    let begun = Instant::now();
    let (mut client, _served) = start(limits(), |_| async { ours(Full::new(Bytes::new())) });
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(begun.elapsed().as_secs(), 5);

    let (mut client, _served) = start(limits(), |_| async { ours(Full::new(Bytes::new())) });
    tokio::time::sleep(Duration::from_secs(4)).await;
    // The time for the head begins with its first byte, and the time for the next with the answer.
    send(&mut client, "GET /slow HT").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    send(&mut client, "TP/1.1\r\nhost: k\r\n\r\n").await;
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    tokio::time::sleep(Duration::from_secs(4)).await;
    let begun = Instant::now();
    send(&mut client, "GET /slow HT").await;
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 408"));
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn each_piece_is_written_at_once_and_the_last_chunk_with_the_end() {
    let (mut client, feed, _served) = start_fed(None);
    send(&mut client, GET).await;
    assert!(
        read_until(&mut client, "\r\n\r\n")
            .await
            .contains("transfer-encoding: chunked\r\n")
    );
    for event in ["first", "second event"] {
        feed.send(Ok(event)).unwrap();
        let expected = format!("{:x}\r\n{event}\r\n", event.len());
        assert_eq!(read_until(&mut client, &expected).await, expected);
    }
    feed.send(Ok("")).unwrap();
    drop(feed);
    assert_eq!(read_until(&mut client, "0\r\n\r\n").await, "0\r\n\r\n");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_seen_to() {
    for (declared, pieces) in [
        (None, vec![Ok("part"), Err("broken")]),
        (Some("9"), vec![Ok("part"), Err("broken")]),
        (Some("9"), vec![Ok("part")]),
        (Some("5"), vec![Ok("part"), Ok("more than it says")]),
    ] {
        let (mut client, feed, served) = start_fed(declared);
        send(&mut client, GET).await;
        for piece in pieces {
            feed.send(piece).unwrap();
        }
        drop(feed);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("part") && !answer.contains("0\r\n\r\n"), "{answer}");
        let cut = served.await.unwrap().unwrap_err();
        assert!(matches!(cut, Cut::Answer(_)), "{declared:?} {cut}");
    }
}

#[tokio::test]
async fn an_answer_without_a_known_length_ends_with_the_connection_for_http_1_0() {
    let (mut client, feed, served) = start_fed(None);
    send(&mut client, "GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
    feed.send(Ok("all of it")).unwrap();
    drop(feed);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.0 200 OK\r\n") && !head.contains("keep-alive"),
        "{head}"
    );
    assert_eq!(body, "all of it");
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_ends_what_it_asked_for() {
    // While it is served,
    let (dropped, mut told) = mpsc::channel::<()>(1);
    let (mut client, served) = start(Limits::default(), move |_| {
        let dropped = dropped.clone();
        async move {
            std::future::pending::<()>().await;
            drop(dropped);
            unreachable!()
        }
    });
    send(&mut client, GET).await;
    tokio::task::yield_now().await;
    drop(client);
    assert!(matches!(
        timeout(PATIENCE, served).await.unwrap().unwrap(),
        Err(Cut::Left)
    ));
    assert!(told.recv().await.is_none());

    // and while its answer is silent.
    let (mut client, feed, served) = start_fed(None);
    send(&mut client, GET).await;
    read_until(&mut client, "\r\n\r\n").await;
    drop(client);
    assert!(matches!(
        timeout(PATIENCE, served).await.unwrap().unwrap(),
        Err(Cut::Left)
    ));
    assert!(feed.is_closed());
}

#[tokio::test]
async fn who_expects_is_told_when_the_body_is_wanted_and_not_before() {
    let ask = "PUT /a HTTP/1.1\r\nhost: k\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n";
    let (wants, wanted) = tokio::sync::oneshot::channel::<()>();
    let wanted = Mutex::new(Some(wanted));
    let (mut client, _served) = start(Limits::default(), move |request| {
        let wanted = wanted.lock().unwrap().take();
        async move {
            if let Some(wanted) = wanted {
                wanted.await.unwrap();
                let (_, _, body) = see(request).await;
                return ours(Full::new(body.unwrap()));
            }
            ours(Full::new("unasked".into()))
        }
    });
    send(&mut client, ask).await;
    let early = timeout(Duration::from_millis(50), client.read_u8()).await;
    assert!(early.is_err(), "nobody has asked for the body yet");
    wants.send(()).unwrap();
    assert_eq!(
        read_until(&mut client, "\r\n\r\n").await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    send(&mut client, "abc").await;
    assert!(read_until(&mut client, "\r\n\r\nabc").await.starts_with("HTTP/1.1 200"));

    // One that is answered without its body isn't told, and may send it or not: the connection ends.
    send(&mut client, ask).await;
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("unasked"), "{rest}");
}

#[tokio::test]
async fn a_body_that_nobody_wanted_is_no_request() {
    let (mut client, _served) = start(Limits::default(), |_| async { ours(Full::new(Bytes::new())) });
    // All of it is there: it is passed over.
    send(
        &mut client,
        &format!(
            "PUT /a HTTP/1.1\r\nhost: k\r\ncontent-length: {}\r\n\r\n{GET}",
            GET.len()
        ),
    )
    .await;
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    // It is still to come: the connection ends, and nothing that comes on it is a request.
    send(
        &mut client,
        "PUT /a HTTP/1.1\r\nhost: k\r\ncontent-length: 1000\r\n\r\n",
    )
    .await;
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    let _ = client.write_all(GET.as_bytes()).await;
    let mut rest = String::new();
    let read = timeout(PATIENCE, client.read_to_string(&mut rest));
    read.await.expect("it ends").unwrap();
    assert_eq!(rest, "");
}

#[tokio::test]
async fn an_upgraded_connection_goes_on_where_the_request_ended() {
    let taken: Arc<Mutex<Option<Takeover>>> = Arc::default();
    let kept = Arc::clone(&taken);
    let (mut client, served) = start(Limits::default(), move |mut request: Request<ClientBody>| {
        *kept.lock().unwrap() = request.body_mut().takeover();
        let mut answer = ours(Full::new(Bytes::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer.headers_mut().insert("upgrade", HeaderValue::from_static("echo"));
        async move { answer }
    });
    send(
        &mut client,
        "GET /a HTTP/1.1\r\nhost: k\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\nglued",
    )
    .await;
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 101 ") && !head.contains("content-length"),
        "{head}"
    );
    served.await.unwrap().unwrap();
    let takeover = taken.lock().unwrap().take().unwrap();
    let mut stream = takeover.await.unwrap();
    send(&mut client, " and more").await;
    let mut read = [0; 14];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"glued and more");
    stream.write_all(b"back").await.unwrap();
    assert_eq!(read_until(&mut client, "back").await, "back");
}

#[tokio::test]
async fn a_connection_that_stops_ends_the_answer_at_hand_first() {
    let (feed, body) = fed();
    let body = Mutex::new(Some(body));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async {
        let _ = stopped.await;
    };
    let (mut client, serving) = start_until(stopped, Limits::default(), move |_| {
        let answer = Response::new(body.lock().unwrap().take().unwrap());
        async move { answer }
    });
    send(&mut client, GET).await;
    read_until(&mut client, "\r\n\r\n").await;
    stop.send(()).unwrap();
    feed.send(Ok("still")).unwrap();
    read_until(&mut client, "still\r\n").await;
    drop(feed);
    send(&mut client, GET).await;
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "0\r\n\r\n", "the answer ends, and no other comes");
    serving.await.unwrap().unwrap();
}
