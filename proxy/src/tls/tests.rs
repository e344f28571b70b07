use std::{future::Future, time::Duration};

use rstest::rstest;
use rustls::HandshakeKind::{Full, Resumed};
use rustls::{SupportedProtocolVersion, version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::trust::provider;

const SOON: Duration = Duration::from_secs(20);

/// Terms for both sides, under one self-signed certificate.
fn both(versions: &[&'static SupportedProtocolVersion]) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["server".to_owned()]).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    (Arc::new(server), Arc::new(client))
}

async fn tcp() -> (TcpStream, TcpStream) {
    tcp_at("127.0.0.1:0").await
}

async fn tcp_at(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn name() -> ServerName<'static> {
    ServerName::try_from("server").unwrap()
}

type OtherClient = tokio_rustls::client::TlsStream<TcpStream>;

/// Ours as the server, rustls' buffered side as the client.
async fn serving(versions: &[&'static SupportedProtocolVersion]) -> (Accepted, OtherClient) {
    let (server, client) = both(versions);
    let (near, far) = tcp().await;
    let (ours, theirs) = tokio::join!(accept(far, &server), TlsConnector::from(client).connect(name(), near));
    (ours.unwrap(), theirs.unwrap())
}

/// Ours as the client.
async fn dialling(
    versions: &[&'static SupportedProtocolVersion],
) -> (Dialled, tokio_rustls::server::TlsStream<TcpStream>) {
    let (server, client) = both(versions);
    let (near, far) = tcp().await;
    let (ours, theirs) = tokio::join!(connect(near, client, name()), TlsAcceptor::from(server).accept(far));
    (ours.unwrap(), theirs.unwrap())
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.expect("it comes to an end")
}

/// Bytes that no others are like.
fn bytes(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(length as u64);
    (0..length).map(|_| random.u8(..)).collect()
}

/// Writes pieces of all sizes, and says goodbye.
async fn send(mut io: impl AsyncWrite + Unpin, all: Vec<u8>) {
    let mut random = fastrand::Rng::with_seed(7);
    let mut left = &all[..];
    while !left.is_empty() {
        let most = [1, 9, 300, RECORD, RECORD + 1, 3 * RECORD, 9 * RECORD][random.usize(..7)];
        let (first, rest) = left.split_at(random.usize(1..=most).min(left.len()));
        let (head, body) = first.split_at(first.len().min(9));
        let mut pieces = [IoSlice::new(head), IoSlice::new(body)];
        let mut pieces = &mut pieces[..];
        while !pieces.iter().all(|piece| piece.is_empty()) {
            let written = poll_fn(|cx| Pin::new(&mut io).poll_write_vectored(cx, pieces))
                .await
                .unwrap();
            IoSlice::advance_slices(&mut pieces, written);
        }
        if random.bool() {
            io.flush().await.unwrap();
        }
        left = rest;
    }
    io.shutdown().await.unwrap();
}

/// Reads pieces of all sizes until the end.
async fn receive(mut io: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(11);
    let mut all = Vec::new();
    let mut buffer = vec![0; 5 * RECORD];
    loop {
        let most = [1, 100, RECORD, 5 * RECORD][random.usize(..4)];
        match io.read(&mut buffer[..random.usize(1..=most)]).await.unwrap() {
            0 => return all,
            read => all.extend_from_slice(&buffer[..read]),
        }
    }
}

#[rstest]
#[case::tls12(&version::TLS12)]
#[case::tls13(&version::TLS13)]
#[tokio::test]
async fn all_arrives_in_order_both_ways_at_once(#[case] version: &'static SupportedProtocolVersion) {
    let (ours, theirs) = serving(&[version]).await;
    assert_eq!(ours.terms().protocol_version(), Some(version.version));
    assert!(ours.is_http2());
    soon(exchange(ours, theirs)).await;
    let (ours, theirs) = dialling(&[version]).await;
    soon(exchange(ours, theirs)).await;
}

async fn exchange<A, B>(ours: A, theirs: B)
where
    A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (up, down) = (bytes(3_000_001), bytes(2_000_003));
    let (our_read, our_write) = split(ours);
    let (their_read, their_write) = split(theirs);
    let ((), (), came_up, came_down) = tokio::join!(
        send(their_write, up.clone()),
        send(our_write, down.clone()),
        receive(our_read),
        receive(their_read),
    );
    assert!(came_up == up && came_down == down);
}

#[tokio::test]
async fn a_silent_connection_holds_no_buffer() {
    let (mut ours, mut theirs) = serving(&[&version::TLS13]).await;
    let large = bytes(700_000);
    let mut came = vec![0; large.len()];
    soon(async { tokio::join!(theirs.write_all(&large), ours.read_exact(&mut came)) })
        .await
        .1
        .unwrap();
    assert!(came == large);
    // And back, with the tickets that went along.
    soon(async {
        let back = async {
            ours.write_all(&large).await.unwrap();
            ours.flush().await.unwrap();
        };
        tokio::join!(back, theirs.read_exact(&mut came)).1.unwrap();
    })
    .await;
    let mut byte = [0];
    assert!(timeout(Duration::from_millis(50), ours.read(&mut byte)).await.is_err());
    for buffer in [&ours.incoming, &ours.plain, &ours.outgoing] {
        assert_eq!(buffer.capacity(), 0);
    }
}

/// Another packet for the last bytes of a call would cost as much as one for all of them.
#[rstest]
#[case::ipv4(&version::TLS13, "127.0.0.1:0")]
#[case::ipv6(&version::TLS13, "[::1]:0")]
#[case::tls12(&version::TLS12, "[::1]:0")]
#[tokio::test]
async fn what_is_sent_at_once_is_one_packet(#[case] version: &'static SupportedProtocolVersion, #[case] address: &str) {
    let (server, client) = both(&[version]);
    let (near, far) = tcp_at(address).await;
    let (ours, theirs) = tokio::join!(accept(far, &server), TlsConnector::from(client).connect(name(), near));
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
    // The tickets go with what is sent first, and a packet is no more than half of the window, which has to open.
    let large = bytes(1 << 20);
    let mut came = vec![0; large.len()];
    for _ in 0..16 {
        let (sent, received) = soon(async { tokio::join!(ours.write_all(&large), theirs.read_exact(&mut came)) }).await;
        sent.unwrap();
        received.unwrap();
    }
    let packet = socket2::SockRef::from(&ours.io).tcp_mss().unwrap() as usize;

    let taken = soon(ours.write(&large)).await.unwrap();
    assert!(ours.outgoing.is_empty(), "the kernel took all of it");
    let (raw, mut sent) = (theirs.get_mut().0, vec![0; 1 << 20]);
    let mut length = 0;
    while let Ok(read) = timeout(Duration::from_millis(200), raw.read(&mut sent)).await {
        length += read.unwrap();
    }
    assert!(
        taken < length && length <= packet,
        "{taken} bytes, {length} sent, {packet} in a packet"
    );
    assert!(length > packet - 512, "and it is nearly full: {length} of {packet}");
}

#[tokio::test]
async fn a_buffer_goes_from_one_connection_to_the_next() {
    let (mut one, mut its_peer) = serving(&[&version::TLS13]).await;
    let (mut other, mut others_peer) = serving(&[&version::TLS13]).await;
    let large = bytes(1 << 20);
    let mut came = vec![0; large.len()];
    soon(async {
        its_peer.write_all(b"x").await.unwrap();
        assert_eq!(one.read_u8().await.unwrap(), b'x');
        let spare = SPARE.take().expect("one has left its own");
        let (at, size) = (spare.as_ptr(), spare.capacity());
        SPARE.set(Some(spare));
        others_peer.write_all(b"y").await.unwrap();
        assert_eq!(other.read_u8().await.unwrap(), b'y');
        let spare = SPARE.take().expect("the other as well");
        assert_eq!((spare.as_ptr(), spare.capacity(), size), (at, size, READ_FIRST));

        // What was made larger isn't left to others: they could hold it with a record's first byte.
        let (sent, received) = tokio::join!(its_peer.write_all(&large), one.read_exact(&mut came));
        sent.unwrap();
        received.unwrap();
        assert!(SPARE.take().is_none_or(|spare| spare.capacity() == READ_FIRST));
        others_peer.get_mut().0.write_all(&[23]).await.unwrap();
        assert!(timeout(Duration::from_millis(50), other.read_u8()).await.is_err());
        assert_eq!((other.incoming.len(), other.incoming.capacity()), (1, READ_FIRST));
    })
    .await;
}

#[tokio::test]
async fn what_a_peer_does_not_read_is_bounded() {
    let (mut ours, _theirs) = serving(&[&version::TLS13]).await;
    let large = bytes(1 << 20);
    let mut written = 0;
    while let Ok(more) = timeout(Duration::from_millis(100), ours.write(&large)).await {
        written += more.unwrap();
        assert!(written < 1 << 28, "the kernel takes no more some time");
        assert!(ours.outgoing.len() <= SCRATCH && ours.outgoing.capacity() <= 2 * SCRATCH);
    }
    assert!(!ours.outgoing.is_empty());
}

#[tokio::test]
async fn what_is_not_read_here_is_bounded() {
    let (mut ours, mut theirs) = serving(&[&version::TLS13]).await;
    let large = bytes(1 << 20);
    let pouring = async {
        loop {
            theirs.write_all(&large).await.unwrap();
        }
    };
    let reading = async {
        let mut byte = [0];
        for _ in 0..2_000 {
            ours.read_exact(&mut byte).await.unwrap();
            ours.write_all(b"x").await.unwrap();
            assert!(ours.incoming.capacity() + ours.plain.capacity() <= 6 * READ_MOST);
        }
    };
    soon(async {
        tokio::select! {
            () = pouring => {}
            () = reading => {}
        }
    })
    .await;
}

#[rstest]
#[case::said(true)]
#[case::cut(false)]
#[tokio::test]
async fn an_end_that_nobody_vouches_for_is_told(#[case] said: bool) {
    let (mut ours, mut theirs) = serving(&[&version::TLS13]).await;
    theirs.write_all(b"all").await.unwrap();
    theirs.flush().await.unwrap();
    if said {
        theirs.shutdown().await.unwrap();
    } else {
        theirs.get_mut().0.shutdown().await.unwrap();
    }
    let mut all = Vec::new();
    let outcome = soon(ours.read_to_end(&mut all)).await.map_err(|error| error.kind());
    assert_eq!(all, b"all");
    assert_eq!(outcome, if said { Ok(3) } else { Err(io::ErrorKind::UnexpectedEof) });
    // The other direction is another matter.
    ours.write_all(b"still").await.unwrap();
    ours.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(theirs.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"still");
    assert_eq!(ours.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn keys_change_on_the_way() {
    let (mut ours, mut theirs) = serving(&[&version::TLS13]).await;
    for round in 0..5u8 {
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        theirs.write_all(&[round]).await.unwrap();
        theirs.flush().await.unwrap();
        let mut byte = [0];
        soon(ours.read_exact(&mut byte)).await.unwrap();
        ours.write_all(&byte).await.unwrap();
        ours.flush().await.unwrap();
        soon(theirs.read_exact(&mut byte)).await.unwrap();
        assert_eq!(byte, [round]);
    }
}

#[tokio::test]
async fn a_broken_record_ends_it_with_an_alert() {
    let (mut ours, mut theirs) = serving(&[&version::TLS13]).await;
    theirs.write_all(b"good").await.unwrap();
    theirs.flush().await.unwrap();
    let broken = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
    theirs.get_mut().0.write_all(&broken).await.unwrap();
    let mut all = Vec::new();
    let error = soon(ours.read_to_end(&mut all)).await.unwrap_err();
    assert_eq!(all, b"good");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(matches!(error.downcast(), Ok(rustls::Error::DecryptError)));
    let again = soon(ours.read(&mut [0])).await.unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::InvalidData);
    assert!(ours.write(b"x").await.is_err());
    let told = soon(theirs.read(&mut [0])).await.unwrap_err();
    assert!(matches!(
        told.downcast(),
        Ok(rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac))
    ));
}

/// A handshake that comes byte by byte, and one whose messages come in many records.
#[rstest]
#[case::tls12(&version::TLS12)]
#[case::tls13(&version::TLS13)]
#[tokio::test]
async fn a_handshake_may_come_in_pieces(#[case] version: &'static SupportedProtocolVersion) {
    let (server, client) = both(&[version]);
    let (mut near, far) = tcp().await;
    near.set_nodelay(true).unwrap();
    let (inner, mut outer) = tokio::io::duplex(1 << 16);
    let mut small = ClientConfig::clone(&client);
    small.max_fragment_size = Some(64);
    let theirs = TlsConnector::from(Arc::new(small)).connect(name(), inner);
    let carry = async {
        let (mut byte, mut back) = ([0], vec![0; 1 << 16]);
        loop {
            tokio::select! {
                read = outer.read(&mut byte) => match read {
                    Ok(1) => near.write_all(&byte).await.unwrap(),
                    _ => return,
                },
                read = near.read(&mut back) => match read {
                    Ok(read @ 1..) => outer.write_all(&back[..read]).await.unwrap(),
                    _ => return,
                },
            }
        }
    };
    let shaken = async {
        let (ours, theirs) = tokio::join!(accept(far, &server), theirs);
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        assert_eq!(ours.terms().protocol_version(), Some(version.version));
        theirs.write_all(b"hello").await.unwrap();
        theirs.flush().await.unwrap();
        let mut word = [0; 5];
        ours.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"hello");
    };
    soon(Box::pin(async {
        tokio::select! {
            () = carry => panic!("the connection ended"),
            () = shaken => {}
        }
    }))
    .await;
}

#[tokio::test]
async fn sessions_are_resumed_on_both_sides() {
    let (server, client) = both(&[&version::TLS13]);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let (near, far) = tcp().await;
        let (ours, theirs) = tokio::join!(accept(far, &server), connect(near, Arc::clone(&client), name()));
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        // The tickets come with what is written first.
        ours.write_all(b"x").await.unwrap();
        soon(theirs.read_exact(&mut [0])).await.unwrap();
        kinds.push((ours.terms().handshake_kind(), theirs.terms().handshake_kind()));
    }
    assert_eq!(kinds, [(Some(Full), Some(Full)), (Some(Resumed), Some(Resumed))]);
}

#[rstest]
#[case::tls12(&version::TLS12)]
#[case::tls13(&version::TLS13)]
#[tokio::test]
async fn a_request_may_come_with_the_end_of_the_handshake(#[case] version: &'static SupportedProtocolVersion) {
    let (server, client) = both(&[version]);
    let (near, far) = tcp().await;
    let asks = async {
        let mut theirs = TlsConnector::from(client).connect(name(), near).await.unwrap();
        theirs.write_all(b"question").await.unwrap();
        theirs.flush().await.unwrap();
        let mut answer = [0; 6];
        theirs.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
    };
    let answers = async {
        let mut ours = accept(far, &server).await.unwrap();
        ours.write_all(b"answer").await.unwrap();
        let mut question = [0; 8];
        ours.read_exact(&mut question).await.unwrap();
        assert_eq!(&question, b"question");
    };
    soon(Box::pin(async { tokio::join!(answers, asks) })).await;
}

#[tokio::test]
async fn a_stranger_is_refused_by_name() {
    let (server, _) = both(&[&version::TLS13]);
    let (_, client) = both(&[&version::TLS13]);
    let (near, far) = tcp().await;
    let (ours, theirs) = soon(async { tokio::join!(accept(far, &server), connect(near, client, name())) }).await;
    assert!(matches!(
        theirs.unwrap_err().downcast(),
        Ok(rustls::Error::InvalidCertificate(_))
    ));
    assert!(matches!(
        ours.unwrap_err().downcast(),
        Ok(rustls::Error::AlertReceived(_))
    ));
}
