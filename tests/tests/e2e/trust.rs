//! Why a workload accepts the agent's certificate, in a cluster: one that the cluster's signer signed, which pods trust as
//! they are, or one of the agents' own CA, which reaches them in a `ConfigMap`. The rights are those of `deploy`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rstest::rstest;
use serde_json::Value;
use understudy_tests::node::{
    AGENT_NAMESPACE, Agent, AgentOptions, ApiServer, Family, Node, Output, Pod, PodSpec, ServerOptions, Session,
    TRUST_SECRET, Trust, eventually,
    network::{API_SERVER, SERVICE_V4},
};

use crate::world::{becomes, curl_at, curl_raw, whoami};

const PODS: &str = "/api/v1/namespaces/prod/pods";
/// What programs call the API server, beside its addresses.
const NAMES: [&str; 4] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];
/// curl's exit code for a certificate that it doesn't trust.
const DISTRUSTED: i32 = 60;
/// How long what the signer signs lasts, where a test waits for its renewal.
const LIFE: Duration = Duration::from_secs(20);

/// A cluster with the session support/alice, acting as the viewer. The fields fall in this order.
struct Scene {
    api: ApiServer,
    node: Node,
    trust: Trust,
}

impl Scene {
    async fn new(trust: Trust) -> Result<Self> {
        Self::with(trust, ServerOptions::default()).await
    }

    async fn with(trust: Trust, options: ServerOptions) -> Result<Self> {
        let node = Node::new()?;
        let api = ApiServer::start_with(&node, &options.rights_of(trust)).await?;
        api.define_sessions().await?;
        let session = Session::named("support", "alice").acting_as(&node.accounts().viewer);
        api.write_session(&session).await?;
        Ok(Self { api, node, trust })
    }

    fn agent(&self) -> AgentOptions {
        AgentOptions::cluster().trust(self.trust)
    }

    async fn start_agent(&self) -> Result<Agent> {
        Agent::start(&self.node, self.agent()).await
    }

    /// A pod in the session, whose ca.crt is what kubelet would mount there.
    async fn pod(&self, name: &str, family: Family) -> Result<Pod> {
        let spec = PodSpec::named(name)
            .namespace("support")
            .session("alice")
            .family(family);
        let spec = self.api.create_pod(spec).await?;
        // kubelet doesn't start a pod before what it mounts is there.
        let bundle = match self.trust {
            Trust::OwnCa => Some(self.bundle("support").await?),
            Trust::Files | Trust::ClusterSigned => None,
        };
        let pod = self.node.pod(spec)?;
        if let Some(bundle) = bundle {
            pod.mount_ca(&bundle)?;
        }
        Ok(pod)
    }

    /// As [`Scene::pod`], once it acts as the viewer.
    async fn acting_pod(&self, name: &str, family: Family) -> Result<Pod> {
        let pod = self.pod(name, family).await?;
        self.until_it_acts(&pod).await?;
        Ok(pod)
    }

    async fn until_it_acts(&self, pod: &Pod) -> Result<()> {
        becomes(pod, &self.viewer()).await
    }

    fn viewer(&self) -> String {
        self.node.accounts().viewer.username()
    }

    fn powerless(&self) -> String {
        self.node.accounts().powerless.username()
    }

    /// What is published in a namespace, once it is.
    async fn bundle(&self, namespace: &str) -> Result<String> {
        eventually("the CA is published in the pod's namespace", async || {
            let object = self.api.read("configmaps", namespace, "understudy-ca").await?;
            Ok(object.and_then(|object| object["data"]["ca.crt"].as_str().map(str::to_owned)))
        })
        .await
    }

    /// The Secret with the agents' CA.
    async fn secret(&self) -> Result<Option<Value>> {
        self.api.read("secrets", AGENT_NAMESPACE, TRUST_SECRET).await
    }

    /// curl and kubectl reach the API server by whatever the pod may call it, and act in the session there.
    async fn assert_connects(&self, pod: &Pod) -> Result<()> {
        let addresses = API_SERVER.iter().map(ToString::to_string);
        for host in NAMES.into_iter().map(str::to_owned).chain(addresses) {
            let output = curl_at(pod, &host, PODS, &[]).await?.success()?;
            assert!(output.stderr.contains(" 200"), "{host}: {output:?}");
        }
        for (host, port) in API_SERVER
            .map(|address| (address.ip().to_string(), address.port()))
            .into_iter()
            .chain([("kubernetes.default.svc".to_owned(), SERVICE_V4.port())])
        {
            let asking = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"];
            let command = pod.kubectl_command(asking)?;
            let user = command
                .env("KUBERNETES_SERVICE_HOST", &host)
                .env("KUBERNETES_SERVICE_PORT", &port.to_string())
                .stdout()
                .await?;
            assert_eq!(user, self.viewer(), "{host}");
        }
        Ok(())
    }
}

/// The certificate that the pod is shown, as curl tells it: "Name:value", line by line.
struct Shown(Output);

impl Shown {
    async fn to(pod: &Pod) -> Result<Self> {
        let output = curl_raw(pod, PODS, &["--output", "/dev/null", "--write-out", "%{certs}"]).await?;
        Ok(Self(output.success()?))
    }

    fn field(&self, name: &str) -> Result<&str> {
        let mut lines = self.0.stdout.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.with_context(|| format!("curl tells no {name}: {:?}", self.0))
    }
}

/// The fifth thing that must be shown.
#[tokio::test]
async fn a_pod_as_it_is_connects_under_a_certificate_of_the_clusters_signer() -> Result<()> {
    let scene = Scene::new(Trust::ClusterSigned).await?;
    let _agent = scene.start_agent().await?;
    for (name, family) in [("v4", Family::V4), ("v6", Family::V6)] {
        let pod = scene.acting_pod(name, family).await?;
        assert_eq!(pod.ca()?, scene.node.cluster_ca().certificate(), "it is untouched");
        scene.assert_connects(&pod).await?;
        let shown = Shown::to(&pod).await?;
        let subject = shown.field("Subject")?;
        assert!(subject.contains("system:nodes"), "{subject}");
        assert!(subject.contains("system:node:box"), "{subject}");
    }
    eventually("the request is cleared away", async || {
        let left = scene.api.admin(["get", "csr", "-o", "name"])?.stdout().await?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .await
}

/// The certificate changes twice, and nothing else does.
#[tokio::test]
async fn a_certificate_is_renewed_without_a_restart_and_no_connection_fails() -> Result<()> {
    let options = ServerOptions::default().certificate_life(LIFE);
    let scene = Scene::with(Trust::ClusterSigned, options).await?;
    let began = Instant::now();
    let agent = scene.start_agent().await?;
    let pod = scene.acting_pod("shell", Family::V4).await?;
    let pid = agent.pid()?;
    let words = ["get", "configmaps", "-n", "prod", "--watch", "-o", "name"];
    let mut watch = pod.kubectl_command(words)?.spawn()?;
    watch.stdout_until(|text| text.contains("configmap/settings")).await?;

    let mut serials: Vec<String> = Vec::new();
    while serials.len() < 3 {
        // An error here is a connection that failed.
        let shown = Shown::to(&pod).await?;
        let serial = shown.field("Serial Number")?;
        if serials.last().is_none_or(|last| last != serial) {
            serials.push(serial.to_owned());
        }
        assert!(began.elapsed() < LIFE * 3, "not renewed in time: {serials:?}");
        let readiness = agent.readiness().await?;
        assert!(!readiness.contains("503"), "{readiness}");
    }
    // Two renewals at two thirds are more than a whole life: the first certificate has expired.
    assert!(began.elapsed() > LIFE, "{:?}", began.elapsed());
    assert_eq!(agent.pid()?, pid);
    assert_eq!(whoami(&pod).await?, scene.viewer());
    // What was open before goes on.
    let later = ["create", "configmap", "later", "-n", "prod"];
    scene.api.admin(later)?.stdout().await?;
    watch.stdout_until(|text| text.contains("configmap/later")).await?;
    Ok(())
}

#[tokio::test]
async fn without_the_right_to_approve_the_agent_says_what_to_type_and_serves_once_it_is_typed() -> Result<()> {
    let options = ServerOptions::default().without_approval();
    let scene = Scene::with(Trust::ClusterSigned, options).await?;
    let pod = scene.pod("shell", Family::V4).await?;
    let agent = Agent::launch(&scene.node, scene.agent())?;
    let command = eventually("it says what it waits for", async || {
        let said = agent.readiness().await?;
        let command = said.split('`').find(|text| text.starts_with("kubectl "));
        Ok(command.map(str::to_owned))
    })
    .await?;
    assert!(agent.log().contains(&command), "its log says so too");
    assert!(agent.readiness().await?.contains("503"), "it isn't ready");
    // Nothing is turned to it before it can serve.
    assert_eq!(whoami(&pod).await?, scene.powerless());

    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    assert_eq!(words.get(..2), Some(["certificate", "approve"].as_slice()), "{command}");
    scene.api.admin(words)?.stdout().await?;
    let _agent = agent.ready().await?;
    scene.until_it_acts(&pod).await?;
    scene.assert_connects(&pod).await
}

/// Without line breaks, which each program sets as it likes.
fn flat(pem: &str) -> String {
    pem.split_whitespace().collect()
}

#[tokio::test]
async fn the_own_ca_reaches_pods_by_their_namespaces_config_map() -> Result<()> {
    let scene = Scene::new(Trust::OwnCa).await?;
    assert_eq!(scene.secret().await?, None);
    let agent = scene.start_agent().await?;
    let secret = scene.secret().await?.context("the CA is kept")?;
    assert_eq!(secret["type"], "kubernetes.io/tls");
    let certificate = STANDARD.decode(secret["data"]["tls.crt"].as_str().context("a certificate")?)?;
    let certificate = String::from_utf8(certificate)?;
    let published = scene.api.read("configmaps", "support", "understudy-ca").await?;
    assert_eq!(published, None, "a namespace without pods needs none");

    let spec = PodSpec::named("first").namespace("support").session("alice");
    let spec = scene.api.create_pod(spec).await?;
    let appeared = Instant::now();
    let bundle = scene.bundle("support").await?;
    // Some of it is kubectl's own start.
    assert!(appeared.elapsed() < Duration::from_secs(2), "{:?}", appeared.elapsed());
    let cluster = scene.node.cluster_ca().certificate();
    assert!(flat(&bundle).contains(&flat(&cluster)), "{bundle}");
    assert!(flat(&bundle).contains(&flat(&certificate)), "{bundle}");
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2, "{bundle}");
    let elsewhere = scene.api.read("configmaps", "default", "understudy-ca").await?;
    assert_eq!(elsewhere, None, "no namespace gets it without reason");

    // This one has the cluster's alone, as if no policy had swapped its volume.
    let distrusting = scene.node.pod(spec)?;
    eventually("its own client refuses", async || {
        let output = curl_raw(&distrusting, PODS, &[]).await?;
        Ok((output.code == Some(DISTRUSTED)).then_some(()))
    })
    .await?;
    let mark = scene.api.mark().await?;
    let output = distrusting.kubectl("get pods -n prod").await?;
    assert!(!output.succeeded() && output.stderr.contains("x509"), "{output:?}");
    let seen = scene.api.seen_since(mark).await?;
    let its = |user: &str| user == scene.powerless() || user == scene.viewer();
    assert!(!seen.iter().any(|request| its(&request.user)), "{seen:?}");
    let failures = agent.metrics().await?;
    let failures = failures.sum("understudy_tls_handshake_failures_total", &[("cause", "distrusted")]);
    assert!(failures >= 2.0, "{failures}");

    // It was only its ca.crt.
    distrusting.mount_ca(&bundle)?;
    scene.until_it_acts(&distrusting).await?;
    for (name, family) in [("v4", Family::V4), ("v6", Family::V6)] {
        let pod = scene.acting_pod(name, family).await?;
        scene.assert_connects(&pod).await?;
    }
    Ok(())
}

/// Each agent of a cluster serves under the CA that the first has made.
#[tokio::test]
async fn agents_share_the_ca_that_the_first_has_made() -> Result<()> {
    let scene = Scene::new(Trust::OwnCa).await?;
    let agent = scene.start_agent().await?;
    let secret = scene.secret().await?.context("the CA is kept")?;
    let pod = scene.acting_pod("shell", Family::V4).await?;
    let first = Shown::to(&pod).await?.field("Serial Number")?.to_owned();

    let agent = agent.restart().await?;
    scene.until_it_acts(&pod).await?;
    let second = Shown::to(&pod).await?.field("Serial Number")?.to_owned();
    assert_ne!(first, second, "its certificates live in memory");
    assert_eq!(scene.secret().await?, Some(secret.clone()));

    // One that takes over while the other runs.
    let next = Agent::start(&scene.node, scene.agent().beside(1)).await?;
    drop(agent);
    scene.assert_connects(&pod).await?;
    let third = Shown::to(&pod).await?.field("Serial Number")?.to_owned();
    assert_ne!(second, third);
    assert_eq!(scene.secret().await?, Some(secret));
    drop(next);
    Ok(())
}

/// What `deploy` grants is enough: nothing that the agent asks for in its own right is refused.
#[rstest]
#[case::files(Trust::Files)]
#[case::cluster_signed(Trust::ClusterSigned)]
#[case::own_ca(Trust::OwnCa)]
#[tokio::test]
async fn the_agent_asks_for_nothing_that_its_deployment_does_not_grant(#[case] trust: Trust) -> Result<()> {
    let scene = Scene::new(trust).await?;
    let mark = scene.api.mark().await?;
    let _agent = scene.start_agent().await?;
    let pod = scene.acting_pod("shell", Family::V4).await?;
    eventually("the session's status tells of the pod", async || {
        let session = scene.api.read("sessions.understudy.dev", "support", "alice").await?;
        Ok(session.filter(|session| session["status"]["pods"] == 1).map(drop))
    })
    .await?;
    eventually("an Event tells of it", async || {
        let events = ["get", "events.v1.events.k8s.io", "-n", "support", "-o", "name"];
        let events = scene.api.admin(events)?.stdout().await?;
        Ok((!events.trim().is_empty()).then_some(()))
    })
    .await?;
    scene.api.delete_pod(pod.spec()).await?;
    eventually("the session's status tells that it is gone", async || {
        let session = scene.api.read("sessions.understudy.dev", "support", "alice").await?;
        Ok(session.filter(|session| session["status"]["pods"] == 0).map(drop))
    })
    .await?;

    let agent = scene.node.accounts().agent.username();
    let seen = scene.api.seen_since(mark).await?;
    let own: Vec<_> = seen.iter().filter(|request| request.user == agent).collect();
    assert!(own.len() > 5, "{own:?}");
    let refused: Vec<_> = own.iter().filter(|request| request.code == Some(403)).collect();
    assert!(refused.is_empty(), "{refused:?}");
    Ok(())
}
