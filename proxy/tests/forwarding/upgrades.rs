//! Upgrades: bytes in both directions, half-closed one by one, and no confusion when they are refused.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use rstest::rstest;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::stage::{Stage, Terms, upstream_tls, whole};

pub(crate) const ASK: &str = "GET /api/v1/namespaces/default/pods/p/exec?command=cat HTTP/1.1\r\nhost: k\r\n\
    authorization: Bearer pod-token\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-protocol: base64url.bearer.authorization.k8s.io.cG9k, v5.channel.k8s.io\r\n\r\n";

/// Reads a head, byte by byte so that nothing behind it is taken.
pub(crate) async fn head(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(
            timeout(Duration::from_secs(20), io.read_u8())
                .await
                .expect("a head")
                .unwrap(),
        );
    }
    String::from_utf8(head).unwrap()
}

/// An upstream that speaks for itself, one connection.
pub(crate) async fn raw<F, R>(script: F) -> (Stage, tokio::task::JoinHandle<()>)
where
    F: FnOnce(tokio_rustls::server::TlsStream<tokio::net::TcpStream>) -> R + Send + 'static,
    R: Future<Output = ()> + Send,
{
    raw_under(Terms::default(), script).await
}

/// The same, on other terms.
pub(crate) async fn raw_under<F, R>(terms: Terms, script: F) -> (Stage, tokio::task::JoinHandle<()>)
where
    F: FnOnce(tokio_rustls::server::TlsStream<tokio::net::TcpStream>) -> R + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let directory = tempfile::tempdir().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(upstream_tls(directory.path(), &["http/1.1"])));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let played = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        script(acceptor.accept(stream).await.unwrap()).await;
    });
    (Stage::before(directory, address, terms, Arc::default()).await, played)
}

pub(crate) async fn write(io: &mut (impl AsyncWrite + Unpin), bytes: impl AsRef<[u8]>) {
    io.write_all(bytes.as_ref()).await.unwrap();
    io.flush().await.unwrap();
}

#[tokio::test]
async fn bytes_glued_to_either_head_arrive_once_and_each_side_closes_alone() {
    let (stage, played) = raw(|mut upstream| async move {
        let asked = head(&mut upstream).await;
        let lower = asked.to_lowercase();
        assert!(lower.contains("authorization: bearer agent-token"), "{asked}");
        assert!(
            lower.contains("sec-websocket-protocol: v5.channel.k8s.io\r\n"),
            "{asked}"
        );
        assert!(!lower.contains("pod-token") && !lower.contains("cg9k"), "{asked}");
        write(
            &mut upstream,
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nglued down",
        )
        .await;
        let mut up = [0; 7];
        upstream.read_exact(&mut up).await.unwrap();
        assert_eq!(&up, b"glued u");
        // The client closes its side; ours stays open for the rest.
        let mut rest = Vec::new();
        upstream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"p");
        write(&mut upstream, " after").await;
        upstream.shutdown().await.unwrap();
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, format!("{ASK}glued up")).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101"));
    let mut down = [0; 10];
    client.read_exact(&mut down).await.unwrap();
    assert_eq!(&down, b"glued down");
    client.shutdown().await.unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, " after");
    played.await.unwrap();
}

#[tokio::test]
async fn spdy_is_carried_too() {
    let (stage, played) = raw(|mut upstream| async move {
        let asked = head(&mut upstream).await;
        assert!(asked.starts_with("POST ") && asked.to_lowercase().contains("upgrade: spdy/3.1"), "{asked}");
        write(&mut upstream, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n").await;
        let mut echo = [0; 4];
        upstream.read_exact(&mut echo).await.unwrap();
        write(&mut upstream, echo).await;
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, "POST /exec HTTP/1.1\r\nhost: k\r\ncontent-length: 0\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\nx-stream-protocol-version: v4.channel.k8s.io\r\n\r\n").await;
    let answer = head(&mut client).await;
    assert!(
        answer.contains("x-stream-protocol-version: v4.channel.k8s.io"),
        "{answer}"
    );
    write(&mut client, "ping").await;
    let mut echo = [0; 4];
    client.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    played.await.unwrap();
}

/// CVE-2018-1002105: the request behind a refused upgrade is a request like any other.
#[tokio::test]
async fn a_refused_upgrade_is_answered_whole_and_what_follows_is_guarded() {
    let stage = Stage::new(Terms::default(), |_| async {
        let mut answer = whole("no exec here");
        *answer.status_mut() = StatusCode::FORBIDDEN;
        answer
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    let next = "GET /api HTTP/1.1\r\nhost: k\r\nimpersonate-user: root\r\nconnection: close\r\n\r\n";
    write(&mut client, format!("{ASK}{next}")).await;
    let mut answers = String::new();
    let read = timeout(Duration::from_secs(20), client.read_to_string(&mut answers));
    read.await
        .expect("both answered")
        .expect("and closed with a close_notify");
    assert!(
        answers.starts_with("HTTP/1.1 403") && answers.contains("no exec here"),
        "{answers}"
    );
    assert_eq!(
        stage.seen.count(),
        1,
        "the second was refused by us, if it was served at all: {answers}"
    );
    assert_eq!(answers.matches("HTTP/1.1 403").count(), 2, "{answers}");
    assert!(
        stage
            .seen
            .heads
            .lock()
            .unwrap()
            .iter()
            .all(|head| head.headers["impersonate-user"] != "root")
    );
}

#[tokio::test]
async fn without_a_credential_an_upgrade_is_answered_whole() {
    let spec = serde_json::json!({"tokenFile": "/nonexistent/token"});
    let stage = Stage::new(
        Terms {
            spec,
            ..Terms::default()
        },
        |_| async { whole("") },
    )
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, ASK).await;
    let answer = head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    let length: usize = answer
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap()
        .parse()
        .unwrap();
    let mut body = vec![0; length];
    client.read_exact(&mut body).await.unwrap();
    let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status["code"], 500);
    assert!(!status.to_string().contains("nonexistent"), "{status}");
    assert_eq!(stage.seen.count(), 0);
}

#[rstest]
#[case::h2c("connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA")]
#[case::unheard_of("connection: upgrade\r\nupgrade: echo")]
#[case::choice("connection: upgrade\r\nupgrade: websocket, SPDY/3.1")]
#[tokio::test]
async fn unknown_protocols_are_refused(#[case] fields: &str) {
    let stage = Stage::new(Terms::default(), |_| async { whole("") }).await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, format!("GET / HTTP/1.1\r\nhost: k\r\n{fields}\r\n\r\n")).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 400"));
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(20), client.read_to_end(&mut rest));
    read.await.expect("closed").expect("with a close_notify");
    assert_eq!(stage.seen.count(), 0);
}

#[tokio::test]
async fn an_offer_to_upgrade_is_a_plain_request() {
    let stage = Stage::new(Terms::default(), |_| async { whole("plain") }).await;
    let mut client = stage.tls("http/1.1").await;
    let offer = "GET /api HTTP/1.1\r\nhost: k\r\nupgrade: websocket\r\nconnection: close\r\n\r\n";
    write(&mut client, offer).await;
    let mut answer = String::new();
    let read = timeout(Duration::from_secs(20), client.read_to_string(&mut answer));
    read.await.expect("answered").expect("and closed with a close_notify");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("plain"),
        "{answer}"
    );
    assert!(!stage.seen.only().headers.contains_key("upgrade"));
}

#[tokio::test]
async fn a_peer_that_leaves_without_a_close_notify_loses_nothing_it_sent() {
    let (stage, played) = raw(|mut upstream| async move {
        head(&mut upstream).await;
        write(
            &mut upstream,
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await;
        write(&mut upstream, vec![b'x'; 1 << 20]).await;
        // The TCP connection alone is closed.
        upstream.into_inner().0.shutdown().await.unwrap();
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, ASK).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101"));
    let mut received = Vec::new();
    let read = timeout(Duration::from_secs(20), client.read_to_end(&mut received));
    read.await.expect("it ends").unwrap();
    assert_eq!(received.len(), 1 << 20);
    played.await.unwrap();
}

#[tokio::test]
async fn an_upgraded_stream_ends_with_its_session() {
    let (stage, _played) = raw(|mut upstream| async move {
        head(&mut upstream).await;
        write(
            &mut upstream,
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await;
        let _ = upstream.read(&mut [0; 1]).await;
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, ASK).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101"));
    stage.declare(None).await;
    let ended = timeout(Duration::from_secs(20), client.read(&mut [0; 1]))
        .await
        .expect("it ends");
    assert!(matches!(ended, Ok(0) | Err(_)));
}
