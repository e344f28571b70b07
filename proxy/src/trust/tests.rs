//! Certificates and roots, judged by handshakes over a pipe in memory.

mod fake;
mod shared;
mod signed;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use jiff::SignedDuration;
use prometheus_client::metrics::counter::Counter;
use rstest::rstest;
use rustls::{
    CipherSuite, ClientConfig, HandshakeKind, ProtocolVersion, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{advance, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    TrustError,
    own_ca::{CERTIFICATE, KEY, ServedNames, serve_own_ca},
    pair::serve_pair,
    roots::{UpstreamRoots, client_config, load_roots},
    serving::{ServingCert, server_config},
};
use crate::clock::Clock;

const SOON: Duration = Duration::from_secs(30);
/// Longer than the slowest look at a file: a clock that is stopped jumps there when the file's event comes late.
const A_LOOK: Duration = Duration::from_mins(2);
const ANY: &[&[u8]] = &[b"h2", b"http/1.1"];

fn clock() -> Clock {
    Clock::in_step_with_timers("2026-06-01T12:00:00Z".parse().unwrap())
}

fn names(addresses: &[&str]) -> ServedNames {
    ServedNames {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ..ServedNames::default()
    }
}

/// A directory with a CA and its certificate in service. The clock is the real one, as rustls judges by it.
struct OwnCa {
    directory: TempDir,
    names: watch::Sender<ServedNames>,
    failures: Counter,
    certificate: ServingCert,
}

impl OwnCa {
    async fn new(clock: Clock) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (names, receiver) = watch::channel(names(&["10.96.0.1", "fd00::1"]));
        let failures = Counter::default();
        let certificate = serve_own_ca(directory.path(), receiver, clock, failures.clone())
            .await
            .unwrap();
        Self {
            directory,
            names,
            failures,
            certificate,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    async fn client(&self) -> ClientConfig {
        client_config(load_roots(&self.path(CERTIFICATE)).await.unwrap(), ANY).unwrap()
    }
}

#[derive(Debug)]
struct Agreed {
    version: ProtocolVersion,
    alpn: Option<Vec<u8>>,
    resumed: bool,
    suite: CipherSuite,
}

/// A handshake and a byte each way, so that tickets arrive.
async fn shake(server: &std::sync::Arc<ServerConfig>, client: &ClientConfig, name: &str) -> std::io::Result<Agreed> {
    let (near, far) = tokio::io::duplex(16 << 10);
    let acceptor = TlsAcceptor::from(server.clone());
    let serve = tokio::spawn(async move {
        let mut stream = acceptor.accept(far).await?;
        stream.write_all(b"x").await?;
        stream.shutdown().await
    });
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(std::sync::Arc::new(client.clone()))
        .connect(name, near)
        .await?;
    stream.read_to_end(&mut Vec::new()).await?;
    serve.await.unwrap()?;
    let connection = stream.get_ref().1;
    Ok(Agreed {
        version: connection.protocol_version().unwrap(),
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        suite: connection.negotiated_cipher_suite().unwrap().suite(),
    })
}

async fn counted(failures: &Counter) {
    let counted = async {
        while failures.get() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(A_LOOK, counted).await.expect("the failure is counted");
}

#[rstest]
#[case("kubernetes", true)]
#[case("kubernetes.default", true)]
#[case("kubernetes.default.svc", true)]
#[case("kubernetes.default.svc.cluster.local", true)]
#[case("10.96.0.1", true)]
#[case("fd00::1", true)]
#[case("10.96.0.2", false)]
#[case("example.com", false)]
#[tokio::test]
async fn the_own_cas_certificate_names_the_api_server(#[case] name: &str, #[case] accepted: bool) {
    let ca = OwnCa::new(Clock::system()).await;
    let server = server_config(ca.certificate.clone()).unwrap();
    assert_eq!(shake(&server, &ca.client().await, name).await.is_ok(), accepted);
}

#[tokio::test]
async fn both_versions_are_spoken_and_resumed() {
    let ca = OwnCa::new(Clock::system()).await;
    let server = server_config(ca.certificate.clone()).unwrap();
    let roots = load_roots(&ca.path(CERTIFICATE)).await.unwrap();
    for versions in [[&rustls::version::TLS12], [&rustls::version::TLS13]] {
        let mut client = ClientConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&versions)
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        for resumed in [false, true] {
            let agreed = shake(&server, &client, "10.96.0.1").await.unwrap();
            assert_eq!(
                (agreed.version, agreed.alpn.as_deref(), agreed.resumed),
                (versions[0].version, Some(&b"http/1.1"[..]), resumed)
            );
        }
    }
}

/// Whatever a client would rather have; OpenSSL and rustls begin with AES-256.
#[rstest]
#[case(&rustls::version::TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)]
#[case(&rustls::version::TLS13, CipherSuite::TLS13_AES_128_GCM_SHA256)]
#[tokio::test]
async fn the_cheapest_sound_cipher_suite_is_taken(
    #[case] version: &'static rustls::SupportedProtocolVersion,
    #[case] expected: CipherSuite,
) {
    let ca = OwnCa::new(Clock::system()).await;
    let server = server_config(ca.certificate.clone()).unwrap();
    let roots = load_roots(&ca.path(CERTIFICATE)).await.unwrap();
    let client = ClientConfig::builder_with_provider(std::sync::Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert_eq!(shake(&server, &client, "10.96.0.1").await.unwrap().suite, expected);
}

#[test]
fn what_we_offer_begins_with_it_too() {
    let offered = super::provider().cipher_suites.clone();
    assert_eq!(offered[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
    // Another order, and nothing left out.
    assert_eq!(offered.len(), aws_lc_rs::default_provider().cipher_suites.len());
}

#[tokio::test]
async fn http2_comes_first_and_no_alpn_is_served() {
    let ca = OwnCa::new(Clock::system()).await;
    let server = server_config(ca.certificate.clone()).unwrap();
    let mut client = ca.client().await;
    assert_eq!(shake(&server, &client, "10.96.0.1").await.unwrap().alpn.unwrap(), b"h2");
    client.alpn_protocols.clear();
    assert_eq!(shake(&server, &client, "10.96.0.1").await.unwrap().alpn, None);
}

#[tokio::test]
async fn a_client_without_our_ca_refuses() {
    let (ours, other) = (OwnCa::new(Clock::system()).await, OwnCa::new(Clock::system()).await);
    let server = server_config(ours.certificate.clone()).unwrap();
    shake(&server, &other.client().await, "10.96.0.1").await.unwrap_err();
}

#[tokio::test]
async fn agents_that_start_at_once_agree_on_one_ca() {
    let directory = tempfile::tempdir().unwrap();
    let (_keep, receiver) = watch::channel(names(&["10.96.0.1"]));
    let start = || {
        serve_own_ca(
            directory.path().join("new"),
            receiver.clone(),
            Clock::system(),
            Counter::default(),
        )
    };
    let started = futures_util::future::try_join_all((0..8).map(|_| start()))
        .await
        .unwrap();
    let roots = load_roots(&directory.path().join("new").join(CERTIFICATE))
        .await
        .unwrap();
    let client = client_config(roots, ANY).unwrap();
    for certificate in started {
        shake(&server_config(certificate).unwrap(), &client, "10.96.0.1")
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_ca_is_kept_and_its_key_is_the_agents_alone() {
    let ca = OwnCa::new(Clock::system()).await;
    let mode = |name| fs::metadata(ca.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(KEY), mode(CERTIFICATE)), (0o600, 0o644));
    let before = fs::read(ca.path(CERTIFICATE)).unwrap();
    let (_keep, receiver) = watch::channel(ServedNames::default());
    serve_own_ca(ca.directory.path(), receiver, Clock::system(), Counter::default())
        .await
        .unwrap();
    assert_eq!(fs::read(ca.path(CERTIFICATE)).unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn the_leaf_is_renewed_before_it_ends() {
    let mut ca = OwnCa::new(clock()).await;
    let first = ca.certificate.expiry();
    advance(Duration::from_hours(24 * 4)).await;
    timeout(Duration::from_hours(2), ca.certificate.changed())
        .await
        .expect("a new certificate");
    assert!(ca.certificate.expiry() > first);
    assert_eq!(ca.failures.get(), 0);
}

#[tokio::test]
async fn new_addresses_bring_a_new_leaf() {
    let mut ca = OwnCa::new(Clock::system()).await;
    let server = server_config(ca.certificate.clone()).unwrap();
    ca.names.send_replace(names(&["::ffff:10.96.0.2"]));
    timeout(SOON, ca.certificate.changed())
        .await
        .expect("a new certificate");
    shake(&server, &ca.client().await, "10.96.0.2").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_ca_is_renewed_under_its_key_and_old_consumers_still_trust_it() {
    let ca = OwnCa::new(clock()).await;
    let before = fs::read(ca.path(CERTIFICATE)).unwrap();
    let later = clock().now() + SignedDuration::from_hours(24 * (3650 - 300));
    let (_keep, receiver) = watch::channel(names(&["10.96.0.1"]));
    let renewed = serve_own_ca(
        ca.directory.path(),
        receiver,
        Clock::in_step_with_timers(later),
        Counter::default(),
    )
    .await;
    let leaf = renewed.unwrap().certified_key();
    let after = fs::read(ca.path(CERTIFICATE)).unwrap();
    assert_ne!(before, after);
    for pem in [before, after] {
        let (_, issuer) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let issuer = issuer.parse_x509().unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf.cert[0]).unwrap();
        leaf.verify_signature(Some(issuer.public_key())).unwrap();
        assert_eq!(leaf.issuer(), issuer.subject());
    }
}

#[rstest]
#[case::no_key(KEY, None, "is missing beside")]
#[case::not_a_key(KEY, Some("nonsense"), "holds no private key")]
#[case::not_a_certificate(CERTIFICATE, Some("nonsense"), "holds no certificate")]
#[tokio::test]
async fn a_broken_ca_is_named_at_the_start_and_survived_later(
    #[case] name: &str,
    #[case] contents: Option<&str>,
    #[case] says: &str,
) {
    let ca = OwnCa::new(Clock::system()).await;
    let server = server_config(ca.certificate.clone()).unwrap();
    let client = ca.client().await;
    match contents {
        Some(contents) => fs::write(ca.path(name), contents).unwrap(),
        None => fs::remove_file(ca.path(name)).unwrap(),
    }
    let (_keep, receiver) = watch::channel(ServedNames::default());
    let started = serve_own_ca(ca.directory.path(), receiver, Clock::system(), Counter::default()).await;
    let error = started.unwrap_err().to_string();
    assert!(
        error.contains(says) && error.contains(ca.path(name).to_str().unwrap()),
        "{error}"
    );
    counted(&ca.failures).await;
    shake(&server, &client, "10.96.0.1").await.unwrap();
}

/// A pair issued outside, and the PEM of what vouches for it.
fn pair(names: &[&str], not_after_year: i32) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(not_after_year, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

struct Pair {
    directory: TempDir,
    failures: Counter,
}

impl Pair {
    fn new((certificate, key): &(String, String)) -> Self {
        let pair = Self {
            directory: tempfile::tempdir().unwrap(),
            failures: Counter::default(),
        };
        fs::write(pair.path("tls.crt"), certificate).unwrap();
        fs::write(pair.path("tls.key"), key).unwrap();
        pair
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    async fn serve(&self) -> Result<ServingCert, TrustError> {
        serve_pair(
            self.path("tls.crt"),
            self.path("tls.key"),
            Clock::system(),
            self.failures.clone(),
        )
        .await
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[tokio::test]
async fn a_renewed_pair_is_taken_and_half_a_pair_is_not() {
    let (old, new) = (pair(&["a"], 2090), pair(&["b"], 2091));
    let files = Pair::new(&old);
    let mut certificate = files.serve().await.unwrap();

    fs::write(files.path("tls.crt"), &new.0).unwrap();
    counted(&files.failures).await;
    assert_eq!(certificate.certified_key().cert[0], der(&old.0));

    fs::write(files.path("tls.key"), &new.1).unwrap();
    timeout(SOON, certificate.changed()).await.expect("the new pair");
    assert_eq!(certificate.certified_key().cert[0], der(&new.0));
    assert_eq!(certificate.expiry().to_string(), "2091-01-01T00:00:00Z");
}

#[rstest]
#[case::empty_certificate((String::new(), pair(&["a"], 2090).1), "tls.crt", "holds no certificate")]
#[case::garbage(("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(), pair(&["a"], 2090).1), "tls.crt", "cannot be parsed")]
#[case::no_key((pair(&["a"], 2090).0, String::new()), "tls.key", "holds no private key")]
#[case::bad_key((pair(&["a"], 2090).0, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned()), "tls.key", "cannot be used")]
#[case::mismatch((pair(&["a"], 2090).0, pair(&["a"], 2090).1), "tls.key", "does not belong")]
#[case::expired(pair(&["a"], 2021), "tls.crt", "expired at 2021-01-01")]
#[tokio::test]
async fn says_what_is_wrong_with_a_pair(#[case] pair: (String, String), #[case] file: &str, #[case] says: &str) {
    let files = Pair::new(&pair);
    let error = files.serve().await.unwrap_err().to_string();
    assert!(
        error.contains(says) && error.contains(files.path(file).to_str().unwrap()),
        "{error}"
    );
}

#[rstest]
#[case::missing(None, "does not exist")]
#[case::empty(Some(""), "holds no certificate")]
#[case::no_pem(Some("nonsense"), "holds no certificate")]
#[case::not_x509(
    Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    "cannot be parsed"
)]
#[tokio::test]
async fn says_what_is_wrong_with_a_ca_file(#[case] contents: Option<&str>, #[case] says: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.crt");
    if let Some(contents) = contents {
        fs::write(&path, contents).unwrap();
    }
    let error = UpstreamRoots::follow(&path, Counter::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(says) && error.contains(path.to_str().unwrap()),
        "{error}"
    );
}

#[tokio::test]
async fn a_new_ca_file_holds_from_the_next_dial_and_a_bad_one_does_not() {
    let (old, new) = (OwnCa::new(Clock::system()).await, OwnCa::new(Clock::system()).await);
    let (old_server, new_server) = (
        server_config(old.certificate.clone()).unwrap(),
        server_config(new.certificate.clone()).unwrap(),
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.crt");
    let put = |from: &Path| fs::copy(from, &path).unwrap();
    put(&old.path(CERTIFICATE));
    let failures = Counter::default();
    let mut roots = UpstreamRoots::follow(&path, failures.clone()).await.unwrap();
    shake(&old_server, &roots.client_config(ANY), "10.96.0.1")
        .await
        .unwrap();
    shake(&new_server, &roots.client_config(ANY), "10.96.0.1")
        .await
        .unwrap_err();
    // The one ticket went with the attempt.
    shake(&old_server, &roots.client_config(ANY), "10.96.0.1")
        .await
        .unwrap();

    fs::write(&path, "").unwrap();
    counted(&failures).await;
    assert!(
        shake(&old_server, &roots.client_config(ANY), "10.96.0.1")
            .await
            .unwrap()
            .resumed
    );

    put(&new.path(CERTIFICATE));
    timeout(SOON, roots.changed()).await.expect("new roots");
    shake(&new_server, &roots.client_config(ANY), "10.96.0.1")
        .await
        .unwrap();
    // Not even by resuming what the old roots allowed.
    shake(&old_server, &roots.client_config(ANY), "10.96.0.1")
        .await
        .unwrap_err();
}
