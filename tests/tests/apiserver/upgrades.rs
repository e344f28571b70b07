//! Upgrades as a client without kubectl's kindness sees them.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rstest::rstest;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
use understudy_tests::apiserver::{FAREWELL, Fault, FaultAction};

use crate::{
    ADMIN, Fixture,
    client::{Version, tls},
};

const UPGRADE: &str = "POST /understudy/upgrade HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer admin-token\r\n\
    Connection: keep-alive, Upgrade\r\nUpgrade: anything/1\r\n\r\n";

#[rstest]
#[case::v4("v4.channel.k8s.io", false)]
#[case::v5("v5.channel.k8s.io", true)]
#[tokio::test]
async fn exec_over_websocket(#[case] protocol: &'static str, #[case] half_close: bool) {
    let fixture = Fixture::start().await;
    let address = fixture.server.addresses()[1];
    let stream = tls(&fixture, address, Version::Http1).await;
    let command = if half_close {
        "command=wc&command=-c"
    } else {
        "command=sh&command=-c&command=echo+4"
    };
    let mut request =
        format!("wss://localhost/api/v1/namespaces/default/pods/web-0/exec?{command}&stdin=true&stdout=true")
            .into_client_request()
            .unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {ADMIN}").parse().unwrap());
    headers.insert("sec-websocket-protocol", protocol.parse().unwrap());
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    if half_close {
        socket
            .send(Message::Binary(Bytes::from_static(b"\0four")))
            .await
            .unwrap();
        socket
            .send(Message::Binary(Bytes::from_static(&[255, 0])))
            .await
            .unwrap();
    }
    let mut received = Vec::new();
    while let Some(Ok(Message::Binary(data))) = socket.next().await {
        received.push((data[0], data.slice(1..)));
    }
    assert_eq!(received[0], (1, Bytes::from_static(b"4\n")));
    let (channel, status) = &received[1];
    let status: Value = serde_json::from_slice(status).unwrap();
    assert_eq!((*channel, &status["status"]), (3, &Value::from("Success")));
}

#[tokio::test]
async fn a_raw_upgrade_is_half_closed() {
    let fixture = Fixture::start().await;
    let mut stream = tls(&fixture, fixture.server.addresses()[0], Version::Http1).await;
    // Bytes right behind the request belong to the upgraded stream.
    let first = format!("{UPGRADE}early ");
    stream.write_all(first.as_bytes()).await.unwrap();
    stream.write_all(b"late ").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, tail) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(tail, format!("early late {}", str::from_utf8(FAREWELL).unwrap()));
}

#[tokio::test]
async fn bytes_are_glued_to_the_101() {
    let fixture = Fixture::start().await;
    let fault = Fault::always(FaultAction::GlueAfter101 {
        bytes: "glued".to_owned(),
    });
    fixture.control.inject(&fault.on_upgrade().times(1)).await.unwrap();
    let mut stream = tls(&fixture, fixture.server.addresses()[0], Version::Http1).await;
    stream.write_all(UPGRADE.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 4096];
    // One record: one read.
    let read = stream.read(&mut buffer).await.unwrap();
    let answer = str::from_utf8(&buffer[..read]).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 101") && answer.ends_with("\r\n\r\nglued"),
        "{answer}"
    );
    stream.write_all(b"more").await.unwrap();
    let read = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..read], b"more");
}

#[rstest]
#[case::no_pod(
    "/api/v1/namespaces/default/pods/none/exec?command=ls&stdout=true",
    "v5.channel.k8s.io",
    404
)]
#[case::no_command("/api/v1/namespaces/default/pods/web-0/exec?stdout=true", "v5.channel.k8s.io", 400)]
#[case::no_protocol(
    "/api/v1/namespaces/default/pods/web-0/exec?command=ls&stdout=true",
    "v9.channel.k8s.io",
    400
)]
#[tokio::test]
async fn a_refused_upgrade_is_a_whole_answer(#[case] path: &str, #[case] protocol: &str, #[case] code: u16) {
    let fixture = Fixture::start().await;
    let mut stream = tls(&fixture, fixture.server.addresses()[0], Version::Http1).await;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN}\r\nConnection: Upgrade, close\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["code"], code);
}
