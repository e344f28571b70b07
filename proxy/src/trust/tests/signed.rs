//! `cluster-signed` against an API server in memory.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::Method;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{ANY, SOON, clock, fake::FakeCluster, fake::REQUESTS, names, shake};
use crate::{
    admin::Readiness,
    clock::Clock,
    trust::{
        ServedNames, TrustError,
        cluster_signed::{ClusterSigned, KUBELET_SERVING, serve_cluster_signed},
        roots::{client_config, load_roots},
        serving::{ServingCert, server_config},
    },
};

const WEEK: Duration = Duration::from_hours(24 * 7);

struct Node {
    cluster: FakeCluster,
    clock: Clock,
    directory: TempDir,
    names: watch::Sender<ServedNames>,
    failures: Counter,
    readiness: Readiness,
}

impl Node {
    fn new(clock: Clock) -> Self {
        let cluster = FakeCluster::new(clock.clone());
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.crt"), cluster.ca()).unwrap();
        Self {
            cluster,
            clock,
            directory,
            names: watch::Sender::new(names(&["10.96.0.1", "fd00::1"])),
            failures: Counter::default(),
            readiness: Readiness::default(),
        }
    }

    fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    fn start(&self) -> JoinHandle<Result<ServingCert, TrustError>> {
        let settings = ClusterSigned {
            node_name: "n1".to_owned(),
            signer: KUBELET_SERVING.to_owned(),
            ca_file: self.ca_file(),
        };
        tokio::spawn(serve_cluster_signed(
            self.cluster.client(),
            settings,
            self.names.subscribe(),
            self.clock.clone(),
            self.failures.clone(),
            self.readiness.condition("certificate"),
        ))
    }

    /// Until its request is removed as well.
    async fn serve(&self) -> ServingCert {
        let certificate = timeout(SOON, self.start()).await.unwrap().unwrap().unwrap();
        timeout(SOON, self.cluster.until(|cluster| cluster.requests().is_empty()))
            .await
            .expect("its request is removed");
        certificate
    }

    async fn served(&self, certificate: &ServingCert, name: &str) -> bool {
        let client = client_config(load_roots(&self.ca_file()).await.unwrap(), ANY).unwrap();
        let server = server_config(certificate.clone()).unwrap();
        shake(&server, &client, name).await.is_ok()
    }

    fn report(&self) -> String {
        self.readiness.report().to_string()
    }

    async fn waits(&self) -> String {
        timeout(SOON, self.cluster.until(|cluster| !cluster.requests().is_empty()))
            .await
            .expect("a certificate is asked for");
        self.cluster.requests().remove(0)
    }
}

fn seconds_until(at: Timestamp, clock: &Clock) -> f64 {
    at.duration_since(clock.now()).as_secs_f64()
}

#[tokio::test]
async fn a_client_with_the_clusters_ca_alone_accepts_it() {
    let node = Node::new(Clock::system());
    let certificate = node.serve().await;
    for name in ["kubernetes.default.svc", "10.96.0.1", "fd00::1"] {
        assert!(node.served(&certificate, name).await, "{name}");
    }
    assert!(!node.served(&certificate, "10.96.0.2").await);
    assert!(node.readiness.is_ready());
    assert_eq!(node.failures.get(), 0);
    assert_eq!(node.cluster.asked(&Method::DELETE, REQUESTS), 1);
}

#[tokio::test]
async fn the_request_is_what_the_signer_asks_for() {
    let node = Node::new(Clock::system());
    node.cluster.set_signs(false);
    let _starting = node.start();
    let path = format!("{REQUESTS}/{}", node.waits().await);
    let approved = |cluster: &FakeCluster| cluster.object(&path).unwrap()["status"]["conditions"].is_array();
    timeout(SOON, node.cluster.until(approved))
        .await
        .expect("it is approved");
    let request = node.cluster.object(&path).unwrap();
    assert!(path.contains("/understudy-n1-"), "{path}");
    assert_eq!(request["spec"]["signerName"], KUBELET_SERVING);
    assert_eq!(request["spec"]["usages"], json!(["digital signature", "server auth"]));
    assert_eq!(request["spec"]["expirationSeconds"], 604_800);
    assert_eq!(
        request["metadata"]["labels"]["app.kubernetes.io/managed-by"],
        "understudy"
    );
    assert_eq!(request["status"]["conditions"][0]["type"], "Approved");
}

#[tokio::test(start_paused = true)]
async fn without_the_right_to_approve_it_says_what_to_type_and_waits() {
    let node = Node::new(clock());
    node.cluster.fail(Method::PUT, "/approval", 403);
    let mut starting = node.start();
    let request = node.waits().await;
    timeout(Duration::from_hours(1), &mut starting)
        .await
        .expect_err("nothing is served yet");
    let report = node.report();
    assert!(
        report.contains(&format!("kubectl certificate approve {request}")),
        "{report}"
    );
    assert_eq!(
        node.cluster.requests(),
        std::slice::from_ref(&request),
        "it isn't asked for twice"
    );

    node.cluster.decide(&request, "Approved");
    timeout(SOON, starting).await.unwrap().unwrap().unwrap();
    assert!(node.readiness.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_denied_request_is_told_and_another_is_made() {
    let node = Node::new(clock());
    node.cluster.fail(Method::PUT, "/approval", 403);
    let starting = node.start();
    let denied = node.waits().await;
    node.cluster.decide(&denied, "Denied");
    node.cluster
        .until(|cluster| cluster.requests().iter().any(|name| *name != denied))
        .await;
    assert_eq!(node.failures.get(), 1);
    let report = node.report();
    assert!(
        report.contains(&format!("{denied} was denied (said so)")) || report.contains("waiting"),
        "{report}"
    );
    node.cluster
        .until(|cluster| !cluster.requests().contains(&denied))
        .await;

    let next = node.waits().await;
    node.cluster.decide(&next, "Approved");
    timeout(SOON, starting).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_is_renewed_at_two_thirds_of_its_life_and_the_old_one_serves_meanwhile() {
    let node = Node::new(clock());
    let mut certificate = node.serve().await;
    let first = certificate.certified_key();
    assert!((seconds_until(certificate.expiry(), &node.clock) - WEEK.as_secs_f64()).abs() < 60.0);
    node.cluster.set_signs(false);
    let began = Instant::now();
    node.cluster.until(|cluster| !cluster.requests().is_empty()).await;
    let part = began.elapsed().as_secs_f64() / WEEK.as_secs_f64();
    assert!((0.59..0.71).contains(&part), "{part}");

    timeout(Duration::from_mins(10), certificate.changed())
        .await
        .expect_err("nothing is signed yet");
    assert!(Arc::ptr_eq(&certificate.certified_key(), &first));
    assert!(node.readiness.is_ready(), "{}", node.report());

    node.cluster.set_signs(true);
    timeout(SOON, certificate.changed()).await.unwrap();
    assert_eq!(node.failures.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_short_life_is_renewed_in_time() {
    let node = Node::new(clock());
    node.cluster.set_lifetime(Duration::from_mins(10));
    let mut certificate = node.serve().await;
    for _ in 0..3 {
        timeout(Duration::from_mins(8), certificate.changed()).await.unwrap();
        assert!(certificate.expiry() > node.clock.now());
    }
}

#[tokio::test]
async fn new_names_bring_a_new_certificate_and_the_old_one_serves_meanwhile() {
    let node = Node::new(Clock::system());
    let mut certificate = node.serve().await;
    node.cluster.set_signs(false);
    node.names.send_replace(names(&["10.96.0.1", "fd00::1", "192.0.2.7"]));
    node.waits().await;
    assert!(node.served(&certificate, "10.96.0.1").await);
    assert!(!node.served(&certificate, "192.0.2.7").await);

    node.cluster.set_signs(true);
    timeout(SOON, certificate.changed()).await.unwrap();
    assert!(node.served(&certificate, "192.0.2.7").await);
}

#[tokio::test(start_paused = true)]
async fn names_that_go_and_come_back_bring_no_request() {
    let node = Node::new(clock());
    let mut certificate = node.serve().await;
    for wanted in [&["10.96.0.1"][..], &["10.96.0.1", "fd00::1"]] {
        node.names.send_replace(names(wanted));
        timeout(Duration::from_mins(5), certificate.changed())
            .await
            .unwrap_err();
    }
    assert_eq!(node.cluster.asked(&Method::POST, REQUESTS), 1);
}

#[tokio::test(start_paused = true)]
async fn names_that_come_while_it_waits_are_asked_for_too() {
    let node = Node::new(clock());
    node.cluster.set_signs(false);
    let starting = node.start();
    let first = node.waits().await;
    node.names.send_replace(names(&["10.96.0.1", "192.0.2.7"]));
    node.cluster
        .until(|cluster| cluster.requests().len() == 1 && cluster.requests()[0] != first)
        .await;
    node.cluster.set_signs(true);
    timeout(SOON, starting).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_api_server_leaves_the_certificate_and_is_asked_again() {
    let node = Node::new(clock());
    let mut certificate = node.serve().await;
    let first = certificate.certified_key();
    node.cluster.fail(Method::POST, REQUESTS, 503);
    timeout(WEEK.mul_f64(0.9), certificate.changed()).await.unwrap_err();
    assert!(Arc::ptr_eq(&certificate.certified_key(), &first));
    assert!(node.readiness.is_ready(), "it is good for a tenth of its life yet");
    let attempts = node.cluster.asked(&Method::POST, REQUESTS);
    assert!((100..2000).contains(&attempts), "{attempts} attempts in two days");
    tokio::time::sleep(WEEK.mul_f64(0.11)).await;
    assert!(!node.readiness.is_ready(), "it has expired");

    node.cluster.mend();
    timeout(Duration::from_mins(20), certificate.changed()).await.unwrap();
    assert!(node.readiness.is_ready());
}

#[tokio::test]
async fn a_signer_that_workloads_do_not_trust_is_complained_of() {
    let node = Node::new(Clock::system());
    std::fs::write(node.ca_file(), FakeCluster::new(Clock::system()).ca()).unwrap();
    let certificate = node.serve().await;
    assert_eq!(node.failures.get(), 1);
    assert!(!node.served(&certificate, "10.96.0.1").await);
}

#[tokio::test]
async fn an_agent_that_stops_waiting_withdraws_its_request() {
    let node = Node::new(Clock::system());
    node.cluster.set_signs(false);
    let starting = node.start();
    node.waits().await;
    starting.abort();
    timeout(SOON, node.cluster.until(|cluster| cluster.requests().is_empty()))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_approved_request_that_nobody_signs_is_told() {
    let node = Node::new(clock());
    node.cluster.set_signs(false);
    let mut starting = node.start();
    timeout(Duration::from_mins(5), &mut starting).await.unwrap_err();
    let report = node.report();
    assert!(report.contains("hasn't signed it"), "{report}");
}

#[tokio::test]
async fn an_agent_without_a_nodes_name_is_told_so() {
    let node = Node::new(Clock::system());
    let settings = ClusterSigned {
        node_name: String::new(),
        signer: KUBELET_SERVING.to_owned(),
        ca_file: node.ca_file(),
    };
    let started = serve_cluster_signed(
        node.cluster.client(),
        settings,
        node.names.subscribe(),
        Clock::system(),
        Counter::default(),
        node.readiness.condition("certificate"),
    );
    let error = started.await.unwrap_err().to_string();
    assert!(error.contains("--node-name"), "{error}");
}
