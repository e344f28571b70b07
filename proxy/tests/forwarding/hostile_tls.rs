//! TLS on both sides: servers that aren't whom they should be, and clients that aren't what they should be.

use std::{sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ClientConnection, HandshakeKind, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use understudy::{
    limits::Limits,
    metrics::{self, Limit},
};
use understudy_cases::{Area, seen};

use crate::{
    stage::{Stage, Terms, get, get1, text, whole},
    upgrades::{head, raw},
    wire::{Answered, PATIENCE, answer, play, upstream, write},
};

/// What is wrong with a server.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Ca,
    Name,
    Expired,
    NotYet,
    SelfSigned,
    NotForServers,
}

/// A server with something wrong, and the CA that the agent trusts in `upstream.crt` of the directory.
fn wrong_server(directory: &std::path::Path, wrong: Wrong) -> ServerConfig {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(directory.join("upstream.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let name = if wrong == Wrong::Name {
        "elsewhere.example"
    } else {
        "127.0.0.1"
    };
    let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    match wrong {
        Wrong::Expired => leaf.not_after = date_time_ymd(2020, 1, 1),
        Wrong::NotYet => leaf.not_before = date_time_ymd(3000, 1, 1),
        Wrong::NotForServers => leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth],
        _ => {}
    }
    let key = KeyPair::generate().unwrap();
    let leaf = match wrong {
        Wrong::SelfSigned => leaf.self_signed(&key).unwrap(),
        Wrong::Ca => {
            let other = KeyPair::generate().unwrap();
            leaf.signed_by(&key, &Issuer::new(ca, other)).unwrap()
        }
        _ => leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap(),
    };
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap()
}

/// Invariant 3: who isn't the pinned server by CA, name and date gets not a byte of a request.
#[tokio::test]
async fn a_server_that_is_not_the_pinned_one_gets_no_byte() {
    for (case, wrong) in [
        ("an upstream under another CA", Wrong::Ca),
        ("an upstream that vouches for itself", Wrong::SelfSigned),
        ("an upstream of another name", Wrong::Name),
        ("an upstream whose certificate has expired", Wrong::Expired),
        ("an upstream whose certificate isn't valid yet", Wrong::NotYet),
        ("an upstream with a certificate for clients", Wrong::NotForServers),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(wrong_server(directory.path(), wrong)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let met = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            match acceptor.accept(stream).await {
                Err(error) => match error.downcast::<rustls::Error>() {
                    Ok(rustls::Error::AlertReceived(alert)) => format!("alert {alert:?}, and no byte of a request"),
                    other => panic!("{other:?}"),
                },
                Ok(mut stream) => {
                    let mut received = Vec::new();
                    let ended = stream.read_to_end(&mut received).await;
                    format!("{} bytes ({ended:?})", received.len())
                }
            }
        });
        let stage = Stage::before(directory, address, Terms::default(), Arc::default()).await;
        let response = stage.http1().await.send_request(get1("/api")).await.unwrap();
        let answered = Answered::new(response.status().as_u16(), false, text(response).await.into_bytes());
        let said = String::from_utf8_lossy(&answered.body).into_owned();
        assert!(!said.contains("127.0.0.1") && !said.contains("certificate"), "{said}");
        let met = timeout(PATIENCE, met).await.expect("the server was met").unwrap();
        assert_eq!(answered.to_string(), "503 `Status` ServiceUnavailable", "{case}");
        assert!(met.ends_with("and no byte of a request"), "{case}: {met}");
        seen(Area::Tls, case, format!("{answered}; the upstream gets {met}"));
    }
}

/// Without server names to go by, every client is shown the one certificate.
#[tokio::test]
async fn a_foreign_server_name_is_the_clients_to_refuse() {
    let stage = Stage::new(Terms::default(), |_| async { whole("served") }).await;
    let foreign = ServerName::try_from("api.elsewhere.example").unwrap();
    let refused = TlsConnector::from(Arc::new(stage.client_config("http/1.1")))
        .connect(foreign, stage.tcp().await)
        .await
        .unwrap_err()
        .downcast::<rustls::Error>()
        .unwrap();
    let rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForNameContext { presented, .. }) =
        &refused
    else {
        panic!("{refused:?}")
    };
    assert!(
        presented.iter().any(|name| name.contains("kubernetes.default.svc")),
        "{presented:?}"
    );
    assert_eq!(stage.seen.count(), 0);
    let outcome = format!(
        "the API server's certificate is shown, which the client refuses; {}",
        upstream(stage.seen.count())
    );
    seen(Area::Tls, "a foreign SNI", outcome);
}

/// A request in early data could be replayed by whoever recorded it.
#[tokio::test]
async fn no_ticket_allows_early_data() {
    let stage = Stage::new(Terms::default(), |_| async { whole("served") }).await;
    let mut config = stage.client_config("http/1.1");
    config.enable_early_data = true;
    let config = Arc::new(config);
    let name = ServerName::try_from("kubernetes.default.svc").unwrap();
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let connector = TlsConnector::from(Arc::clone(&config));
        let mut client = connector.connect(name.clone(), stage.tcp().await).await.unwrap();
        write(&mut client, "GET /api HTTP/1.1\r\nhost: k\r\n\r\n").await;
        assert_eq!(answer(&mut client).await.code, 200);
        kinds.push(client.get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
    // With the ticket of the second; looking takes it.
    let offered = ClientConnection::new(Arc::clone(&config), name.clone())
        .unwrap()
        .early_data()
        .is_some();
    assert!(!offered);
    seen(
        Area::Tls,
        "0-RTT",
        "sessions are resumed, and their tickets allow no early data".to_owned(),
    );
}

#[tokio::test]
async fn a_client_that_leaves_without_a_close_notify_has_not_said_all() {
    let (stage, played) = raw(|mut upstream| async move {
        head(&mut upstream).await;
        let mut received = Vec::new();
        let ended = upstream.read_to_end(&mut received).await;
        assert!(
            received.len() < 100 && !received.ends_with(b"0\r\n\r\n"),
            "{received:?}"
        );
        drop(ended);
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(
        &mut client,
        "POST /api HTTP/1.1\r\nhost: k\r\ncontent-length: 100\r\n\r\nhello",
    )
    .await;
    let (mut tcp, _tls) = client.into_inner();
    tcp.shutdown().await.unwrap();
    timeout(PATIENCE, played).await.expect("the upload ends").unwrap();
    seen(
        Area::Tls,
        "a client that leaves in its upload without a close_notify",
        "the upload is broken off upstream, not ended".to_owned(),
    );
}

/// An answer that ends with its connection ends well only if that was said.
#[tokio::test]
async fn an_upstream_that_leaves_without_a_close_notify_has_not_answered_all() {
    let mut ends = Vec::new();
    for notify in [true, false] {
        let (stage, played) = raw(move |mut upstream| async move {
            head(&mut upstream).await;
            write(&mut upstream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\na part").await;
            if notify {
                upstream.shutdown().await.unwrap();
            } else {
                upstream.into_inner().0.shutdown().await.unwrap();
            }
        })
        .await;
        let mut client = stage.tls("http/1.1").await;
        write(&mut client, "GET /api HTTP/1.1\r\nhost: k\r\n\r\n").await;
        let mut received = Vec::new();
        loop {
            let read = timeout(PATIENCE, client.read_buf(&mut received))
                .await
                .expect("it ends");
            if received.ends_with(b"0\r\n\r\n") || !matches!(read, Ok(1..)) {
                break;
            }
        }
        let received = String::from_utf8(received).unwrap();
        assert!(
            received.starts_with("HTTP/1.1 200") && received.contains("a part"),
            "{received}"
        );
        ends.push(received.ends_with("0\r\n\r\n"));
        played.await.unwrap();
    }
    assert_eq!(ends, [true, false]);
    seen(
        Area::Tls,
        "an upstream that leaves in its answer without a close_notify",
        "200, and the client sees a truncation".to_owned(),
    );
}

#[tokio::test]
async fn a_handshake_that_is_none_is_given_up() {
    let limits = Limits {
        handshake_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    let terms = Terms {
        limits,
        ..Terms::default()
    };
    let stage = Stage::new(terms, |_| async { whole("served") }).await;
    for (case, bytes, hits) in [
        (
            "a handshake that isn't finished",
            b"\x16\x03\x01\x02\x00\x01".as_slice(),
            1,
        ),
        ("a connection that says nothing", b"", 2),
        ("garbage in a handshake", b"\x16\x03\x01\x00\x05hello", 2),
    ] {
        let mut client = stage.tcp().await;
        client.write_all(bytes).await.unwrap();
        let mut received = Vec::new();
        let ended = timeout(PATIENCE, client.read_to_end(&mut received))
            .await
            .expect("it ends");
        assert_eq!(stage.metrics.limit_hits(Limit::HandshakeTimeout), hits, "{case}");
        // An alert is a record of the type 21.
        let said = match (received.first(), ended) {
            (Some(21), _) => "a TLS alert",
            (None, Ok(_)) => "no answer",
            other => panic!("{other:?}"),
        };
        seen(
            Area::Tls,
            case,
            format!("{said}, connection closed; {}", upstream(stage.seen.count())),
        );
    }
    let mut neighbour = stage.neighbour().await;
    assert_eq!(neighbour.send_request(get("/api")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn plain_http_is_refused_unread() {
    let stage = Stage::new(Terms::default(), |_| async { whole("served") }).await;
    let mut client = stage.tcp().await;
    write(
        &mut client,
        "GET /api HTTP/1.1\r\nhost: k\r\nauthorization: Bearer pod-token\r\n\r\n",
    )
    .await;
    client.shutdown().await.unwrap();
    let answers = crate::wire::answers(&mut client).await;
    assert_eq!(answers[0].to_string(), "400 `Status` BadRequest");
    seen(
        Area::Tls,
        "HTTP without TLS",
        format!("{}, connection closed; {}", answers[0], upstream(stage.seen.count())),
    );
    // And a TLS client that says HTTP/1.0 is served as one.
    let outcome = play(&stage, "GET /api HTTP/1.0\r\n\r\n").await;
    assert_eq!(outcome.to_string(), "200, connection closed; one request upstream");
}

/// As the gate does, and any check of a port.
#[tokio::test]
async fn a_client_that_only_looks_whether_somebody_listens_was_refused_nothing() {
    let stage = Stage::new(Terms::default(), |_| async { whole("served") }).await;
    drop(stage.tcp().await);
    write(&mut stage.tcp().await, "GET /api HTTP/1.1\r\n\r\n").await;
    let failed = |cause: &str| {
        let counter = format!("tls_handshake_failures_total{{cause=\"{cause}\"}} 1\n");
        metrics::text(&stage.metrics.registry()).unwrap().contains(&counter)
    };
    let both = async {
        while !(failed("silent") && failed("plain_http")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, both).await.expect("both are counted");
    let refused = stage.metrics.lately().of(&stage.pod.wanted.name);
    let reasons: Vec<_> = refused.iter().map(|refused| refused.reason.as_str()).collect();
    assert_eq!(reasons, ["plain_http"]);
}
