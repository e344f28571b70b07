//! The own CA in a Secret, and the `ConfigMap` that gives it to workloads, against an API server in memory.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use http::Method;
use jiff::SignedDuration;
use prometheus_client::metrics::counter::Counter;
use rstest::rstest;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{A_LOOK, ANY, SOON, clock, counted, fake::FakeCluster, names, shake};
use crate::{
    admin::Readiness,
    clock::Clock,
    trust::{
        ServedNames, TrustError,
        authority::Authority,
        bundle::Publisher,
        own_ca::{CaCertificates, CaSecret, serve_own_ca_secret},
        roots::{client_config, load_roots},
        serving::{ServingCert, server_config},
    },
};

const SECRETS: &str = "/api/v1/namespaces/understudy-system/secrets";
const SECRET: &str = "/api/v1/namespaces/understudy-system/secrets/understudy-ca";

struct Agent {
    cluster: FakeCluster,
    clock: Clock,
    names: watch::Sender<ServedNames>,
    failures: Counter,
    readiness: Readiness,
}

impl Agent {
    fn new(cluster: &FakeCluster, clock: Clock) -> Self {
        Self {
            cluster: cluster.clone(),
            clock,
            names: watch::Sender::new(names(&["10.96.0.1"])),
            failures: Counter::default(),
            readiness: Readiness::default(),
        }
    }

    async fn serve(&self) -> Result<(ServingCert, CaCertificates), TrustError> {
        let secret = CaSecret {
            namespace: "understudy-system".to_owned(),
            name: "understudy-ca".to_owned(),
        };
        let condition = self.readiness.condition("certificate");
        let served = serve_own_ca_secret(
            self.cluster.client(),
            secret,
            self.names.subscribe(),
            self.clock.clone(),
            self.failures.clone(),
            &condition,
        )
        .await;
        std::mem::forget(condition);
        served
    }
}

fn entry(cluster: &FakeCluster, key: &str) -> String {
    let secret = cluster.object(SECRET).expect("the Secret is there");
    let bytes: k8s_openapi::ByteString = serde_json::from_value(secret["data"][key].clone()).unwrap();
    String::from_utf8(bytes.0).unwrap()
}

fn secret(certificate: &str, key: &str) -> Value {
    let bytes = |text: &str| k8s_openapi::ByteString(text.as_bytes().to_vec());
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "data": { "tls.crt": bytes(certificate), "tls.key": bytes(key) },
    })
}

fn another_ca(clock: &Clock) -> (String, Value) {
    let made = Authority::make(clock.now()).unwrap();
    let object = secret(&made.certificate, &made.key);
    (made.certificate, object)
}

fn signed_by(certificate: &ServingCert, ca: &str) -> bool {
    let ca = CertificateDer::from_pem_slice(ca.as_bytes()).unwrap();
    let (_, ca) = x509_parser::parse_x509_certificate(&ca).unwrap();
    let key = certificate.certified_key();
    let (_, leaf) = x509_parser::parse_x509_certificate(&key.cert[0]).unwrap();
    leaf.issuer() == ca.subject() && leaf.verify_signature(Some(ca.public_key())).is_ok()
}

#[tokio::test]
async fn agents_that_race_for_the_secret_end_with_one_ca() {
    let cluster = FakeCluster::new(Clock::system());
    let agents: Vec<_> = (0..8).map(|_| Agent::new(&cluster, Clock::system())).collect();
    let served = try_join_all(agents.iter().map(Agent::serve)).await.unwrap();
    assert!(cluster.asked(&Method::POST, SECRETS) > 1, "they raced");
    assert!(
        agents.iter().all(|agent| agent.failures.get() == 0),
        "to come second is no failure"
    );
    let ca = entry(&cluster, "tls.crt");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.crt");
    std::fs::write(&path, &ca).unwrap();
    let client = client_config(load_roots(&path).await.unwrap(), ANY).unwrap();
    for (certificate, _) in served {
        shake(&server_config(certificate).unwrap(), &client, "10.96.0.1")
            .await
            .unwrap();
    }
    let object = cluster.object(SECRET).unwrap();
    assert_eq!(object["type"], "kubernetes.io/tls");
    assert_eq!(
        object["metadata"]["labels"]["app.kubernetes.io/managed-by"],
        "understudy"
    );
}

#[tokio::test(start_paused = true)]
async fn agents_that_race_to_renew_it_end_with_one_certificate_under_its_key() {
    let cluster = FakeCluster::new(clock());
    Agent::new(&cluster, clock()).serve().await.unwrap();
    let (before, key) = (entry(&cluster, "tls.crt"), entry(&cluster, "tls.key"));
    let later = Clock::in_step_with_timers(clock().now() + SignedDuration::from_hours(24 * (3650 - 300)));
    let agents: Vec<_> = (0..4).map(|_| Agent::new(&cluster, later.clone())).collect();
    let served = try_join_all(agents.iter().map(Agent::serve)).await.unwrap();
    assert!(cluster.asked(&Method::PUT, SECRETS) > 1, "they raced");
    assert!(
        agents.iter().all(|agent| agent.failures.get() == 0),
        "to come second is no failure"
    );
    let after = entry(&cluster, "tls.crt");
    assert_ne!(before, after);
    assert_eq!(key, entry(&cluster, "tls.key"));
    assert_eq!(
        cluster.object(SECRET).unwrap()["metadata"]["resourceVersion"],
        "2",
        "one write was taken"
    );
    for (certificate, certificates) in &served {
        assert!(signed_by(certificate, &before) && signed_by(certificate, &after));
        let published = CertificateDer::from_pem_slice(after.as_bytes()).unwrap();
        assert_eq!(certificates.0.borrow().first(), Some(&published));
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_puts_in_its_place_is_taken_up() {
    let cluster = FakeCluster::new(clock());
    let agent = Agent::new(&cluster, clock());
    let (mut certificate, mut certificates) = agent.serve().await.unwrap();
    let (theirs, object) = another_ca(&agent.clock);
    cluster.put(SECRET, object);
    timeout(SOON, certificate.changed()).await.expect("a new certificate");
    assert!(signed_by(&certificate, &theirs));
    timeout(SOON, certificates.0.changed()).await.unwrap().unwrap();
    assert_eq!(agent.failures.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_vanished_is_complained_of_and_not_made_anew() {
    let cluster = FakeCluster::new(clock());
    let agent = Agent::new(&cluster, clock());
    let (mut certificate, _certificates) = agent.serve().await.unwrap();
    let first = certificate.certified_key();
    let kept = cluster.object(SECRET).unwrap();
    cluster.remove(SECRET);
    timeout(SOON, counted(&agent.failures)).await.unwrap();
    assert_eq!(cluster.object(SECRET), None);
    assert!(Arc::ptr_eq(&certificate.certified_key(), &first));

    // Names still bring certificates, under the CA at hand.
    agent.names.send_replace(names(&["10.96.0.1", "192.0.2.7"]));
    timeout(SOON, certificate.changed()).await.unwrap();
    assert_eq!(cluster.asked(&Method::POST, SECRETS), 1);

    // Restored, it is as it was; replaced, it is taken up.
    cluster.put(SECRET, kept);
    timeout(SOON, certificate.changed()).await.unwrap_err();
    let (theirs, object) = another_ca(&agent.clock);
    cluster.put(SECRET, object);
    timeout(SOON, certificate.changed()).await.unwrap();
    assert!(signed_by(&certificate, &theirs));
}

#[tokio::test(start_paused = true)]
async fn a_broken_secret_is_named_at_the_start_and_survived_later() {
    let cluster = FakeCluster::new(clock());
    let running = Agent::new(&cluster, clock());
    let (certificate, _certificates) = running.serve().await.unwrap();
    let first = certificate.certified_key();
    let broken = secret(&entry(&cluster, "tls.crt"), "nonsense");
    cluster.put(SECRET, broken.clone());
    timeout(SOON, counted(&running.failures)).await.unwrap();
    assert!(Arc::ptr_eq(&certificate.certified_key(), &first));

    let error = Agent::new(&cluster, clock()).serve().await.err().unwrap().to_string();
    assert!(
        error.contains("Secret understudy-system/understudy-ca (tls.key)"),
        "{error}"
    );
    assert!(!error.contains("nonsense"), "{error}");
    assert_eq!(cluster.object(SECRET).unwrap()["data"], broken["data"]);
}

#[tokio::test(start_paused = true)]
async fn at_the_start_it_waits_for_what_may_pass() {
    let cluster = FakeCluster::new(clock());
    let agent = Agent::new(&cluster, clock());
    cluster.fail(Method::POST, SECRETS, 403);
    let start = agent.serve();
    futures_util::pin_mut!(start);
    timeout(Duration::from_mins(10), &mut start).await.unwrap_err();
    let report = agent.readiness.report().to_string();
    assert!(
        report.contains("may not create Secret understudy-system/understudy-ca"),
        "{report}"
    );
    cluster.mend();
    timeout(Duration::from_mins(4), start).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_that_cannot_be_read_at_once_is_read_later() {
    let cluster = FakeCluster::new(clock());
    let agent = Agent::new(&cluster, clock());
    let (mut certificate, _certificates) = agent.serve().await.unwrap();
    cluster.fail(Method::GET, SECRET, 503);
    let (theirs, object) = another_ca(&agent.clock);
    cluster.put(SECRET, object);
    timeout(SOON, counted(&agent.failures)).await.unwrap();
    cluster.mend();
    timeout(Duration::from_mins(4), certificate.changed()).await.unwrap();
    assert!(signed_by(&certificate, &theirs));
}

/// What keeps the `ConfigMaps`, with a CA to publish.
struct Bundles {
    cluster: FakeCluster,
    directory: TempDir,
    own: watch::Sender<Arc<[CertificateDer<'static>]>>,
    namespaces: watch::Sender<BTreeSet<String>>,
    failures: Counter,
}

impl Bundles {
    fn new() -> Self {
        let cluster = FakeCluster::new(clock());
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.crt"), cluster.ca()).unwrap();
        Self {
            cluster,
            directory,
            own: watch::Sender::new(own_ca()),
            namespaces: watch::Sender::new(set(&["a"])),
            failures: Counter::default(),
        }
    }

    fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    async fn start(&self) {
        let own = CaCertificates(self.own.subscribe());
        let publisher = Publisher::start(self.cluster.client(), self.ca_file(), own, self.failures.clone())
            .await
            .unwrap();
        tokio::spawn(publisher.run(self.namespaces.subscribe()));
    }

    fn published(&self, namespace: &str) -> Option<String> {
        let object = self.cluster.object(&path(namespace))?;
        Some(object["data"]["ca.crt"].as_str().unwrap().to_owned())
    }

    /// What it should be.
    fn right(&self) -> Vec<CertificateDer<'static>> {
        let cluster = std::fs::read(self.ca_file()).unwrap();
        let mut right: Vec<_> = CertificateDer::pem_slice_iter(&cluster).map(Result::unwrap).collect();
        right.extend(self.own.borrow().iter().cloned());
        right
    }

    fn is_right(&self, namespace: &str) -> bool {
        self.published(namespace).is_some_and(|published| {
            let published: Vec<_> = CertificateDer::pem_slice_iter(published.as_bytes())
                .map(Result::unwrap)
                .collect();
            published == self.right()
        })
    }

    /// How long it takes until the namespace has the right one.
    async fn given(&self, namespace: &str) -> Duration {
        let began = Instant::now();
        let given = self.cluster.until(|_| self.is_right(namespace));
        timeout(Duration::from_hours(1), given).await.expect("it is given");
        began.elapsed()
    }
}

fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps/understudy-ca")
}

fn set(namespaces: &[&str]) -> BTreeSet<String> {
    namespaces.iter().map(|name| (*name).to_owned()).collect()
}

fn own_ca() -> Arc<[CertificateDer<'static>]> {
    let made = Authority::make(clock().now()).unwrap();
    Arc::new([CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap()])
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_given_the_ca_within_a_second() {
    let bundles = Bundles::new();
    bundles.start().await;
    assert!(bundles.given("a").await < Duration::from_secs(1));
    bundles.namespaces.send_replace(set(&["a", "b"]));
    assert!(bundles.given("b").await < Duration::from_secs(1));
    let object = bundles.cluster.object(&path("b")).unwrap();
    assert_eq!(
        object["metadata"]["labels"]["app.kubernetes.io/managed-by"],
        "understudy"
    );
    assert_eq!(bundles.failures.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_right_is_not_written_again() {
    let bundles = Bundles::new();
    bundles.start().await;
    bundles.given("a").await;
    bundles.start().await;
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(bundles.cluster.asked(&Method::PATCH, "/configmaps/"), 1);
    let looks = bundles.cluster.asked(&Method::GET, "/configmaps/");
    assert!((8..30).contains(&looks), "{looks} looks in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_new_ca_of_either_kind_is_published() {
    let bundles = Bundles::new();
    bundles.start().await;
    bundles.given("a").await;
    bundles.own.send_replace(own_ca());
    assert!(bundles.given("a").await < Duration::from_secs(5));
    std::fs::write(bundles.ca_file(), FakeCluster::new(clock()).ca()).unwrap();
    assert!(bundles.given("a").await < A_LOOK);
    let good = bundles.published("a");
    std::fs::write(bundles.ca_file(), "").unwrap();
    counted(&bundles.failures).await;
    assert_eq!(bundles.published("a"), good, "the last good one stays");
}

#[rstest]
#[case::changed(|bundles: &Bundles| bundles.cluster.put(&path("a"), json!({ "metadata": {}, "data": { "ca.crt": "x", "theirs": "y" } })))]
#[case::removed(|bundles: &Bundles| bundles.cluster.remove(&path("a")))]
#[tokio::test(start_paused = true)]
async fn what_somebody_did_to_it_is_put_right(#[case] meddle: fn(&Bundles)) {
    let bundles = Bundles::new();
    bundles.start().await;
    bundles.given("a").await;
    meddle(&bundles);
    assert!(bundles.given("a").await <= Duration::from_mins(15));
}

#[tokio::test(start_paused = true)]
async fn one_namespace_that_refuses_does_not_hold_up_the_others() {
    let bundles = Bundles::new();
    bundles.cluster.fail(Method::PATCH, "/namespaces/bad/", 403);
    bundles.namespaces.send_replace(set(&["bad", "good"]));
    bundles.start().await;
    assert!(bundles.given("good").await < Duration::from_secs(1));
    counted(&bundles.failures).await;
    tokio::time::sleep(Duration::from_mins(20)).await;
    let attempts = bundles.cluster.asked(&Method::PATCH, "/namespaces/bad/");
    assert!((10..60).contains(&attempts), "{attempts} attempts");
    bundles.cluster.mend();
    assert!(bundles.given("bad").await < Duration::from_mins(4));
}

#[tokio::test(start_paused = true)]
async fn a_key_beside_the_certificates_is_not_published() {
    let bundles = Bundles::new();
    let made = Authority::make(clock().now()).unwrap();
    std::fs::write(bundles.ca_file(), format!("{}{}", *made.key, made.certificate)).unwrap();
    bundles.start().await;
    bundles.given("a").await;
    let published = bundles.published("a").unwrap();
    assert!(
        !published.contains("PRIVATE KEY") && published.contains(made.certificate.trim()),
        "{published}"
    );
}
