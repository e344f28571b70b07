//! The agent with the cluster as its source: Sessions as resources, pods that name them, the API server's own addresses.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rstest::rstest;
use serde_json::{Value, json};
use understudy_tests::node::{
    Agent, AgentOptions, ApiServer, Node, Pod, PodSpec, Running, SESSION_LABEL, Session, TestServerOptions, eventually,
};

use crate::{
    hold::listening_ports,
    world::{WITHIN_A_SECOND, becomes, curl, curl_raw, no_answer, whoami},
};

const SESSIONS: &str = "sessions.understudy.dev";
const PODS: &str = "/api/v1/namespaces/prod/pods";

/// The fields fall in this order.
pub(crate) struct Cluster {
    pub(crate) agent: Agent,
    pub(crate) api: ApiServer,
    pub(crate) node: Node,
    /// support/alice, acting as the viewer.
    pub(crate) session: Session,
}

impl Cluster {
    /// With the session, and no pod yet.
    pub(crate) async fn new() -> Result<Self> {
        Self::with(AgentOptions::cluster()).await
    }

    pub(crate) async fn with(agent: AgentOptions) -> Result<Self> {
        let node = Node::new()?;
        let api = ApiServer::start(&node).await?;
        Self::around(node, api, agent).await
    }

    pub(crate) async fn around(node: Node, api: ApiServer, agent: AgentOptions) -> Result<Self> {
        api.define_sessions().await?;
        let session = Session::named("support", "alice").acting_as(&node.accounts().viewer);
        api.write_session(&session).await?;
        let agent = Agent::start(&node, agent).await?;
        Ok(Self {
            agent,
            api,
            node,
            session,
        })
    }

    pub(crate) fn viewer(&self) -> String {
        self.node.accounts().viewer.username()
    }

    pub(crate) fn powerless(&self) -> String {
        self.node.accounts().powerless.username()
    }

    /// A pod's object, and then its sandbox.
    pub(crate) async fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let spec = self.api.create_pod(spec).await?;
        self.node.pod(spec)
    }

    /// A pod in the session, acting in it.
    pub(crate) async fn pod_in_session(&self) -> Result<Pod> {
        let pod = self.pod(shell().session("alice")).await?;
        becomes(&pod, &self.viewer()).await?;
        Ok(pod)
    }

    pub(crate) async fn status(&self) -> Result<Value> {
        let object = self.api.read(SESSIONS, "support", "alice").await?;
        Ok(object.context("the session is there")?["status"].clone())
    }

    /// The reasons of the Events about an object.
    async fn events(&self, name: &str) -> Result<Vec<String>> {
        let about = format!("jsonpath={{.items[?(@.regarding.name==\"{name}\")].reason}}");
        let reasons = ["get", "events.v1.events.k8s.io", "-n", "support", "-o", &about];
        let text = self.api.admin(reasons)?.stdout().await?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }
}

fn shell() -> PodSpec {
    PodSpec::named("shell").namespace("support")
}

/// The first thing that must be shown.
#[tokio::test]
async fn a_pod_that_names_a_session_acts_in_it_and_its_status_says_so() -> Result<()> {
    let cluster = Cluster::new().await?;
    let pod = cluster.pod_in_session().await?;
    assert_eq!(whoami(&pod).await?, cluster.viewer());
    let status = eventually("the session's status tells of the pod", async || {
        let status = cluster.status().await?;
        Ok((status["pods"] == 1).then_some(status))
    })
    .await?;
    assert_eq!(status["phase"], "Active", "{status}");
    assert_eq!(status["actsAs"], cluster.viewer(), "{status}");
    assert_eq!(status["nodes"][0]["node"], "box", "{status}");
    let conditions = status["conditions"].as_array().context("conditions")?;
    let met = |type_: &str| {
        conditions
            .iter()
            .find(|one| one["type"] == type_)
            .map(|one| one["status"].clone())
    };
    assert_eq!(met("Accepted"), Some(json!("True")), "{status}");
    assert_eq!(met("Ready"), Some(json!("True")), "{status}");
    assert_eq!(met("Expired"), Some(json!("False")), "{status}");
    eventually("an Event tells of it", async || {
        let events = cluster.events("shell").await?;
        Ok(events.contains(&"Enrolled".to_owned()).then_some(()))
    })
    .await?;

    // Without change there is nothing to write.
    let version = async || -> Result<Value> {
        let object = cluster.api.read(SESSIONS, "support", "alice").await?;
        Ok(object.context("the session is there")?["metadata"]["resourceVersion"].clone())
    };
    let before = version().await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(version().await?, before, "status is written on change only");

    cluster.api.delete_pod(pod.spec()).await?;
    eventually("the node's entry goes with its last pod", async || {
        let status = cluster.status().await?;
        let nodes = status["nodes"].as_array().map_or(0, Vec::len);
        Ok((nodes == 0 && status["pods"] == 0).then_some(()))
    })
    .await
}

/// The second thing that must be shown.
#[rstest]
#[case::none("support", "nobody")]
#[case::of_another_namespace("default", "alice")]
#[case::no_name("support", "Not_A.Session")]
#[tokio::test]
async fn a_label_without_a_session_is_intercepted_and_refused(
    #[case] namespace: &str,
    #[case] label: &str,
) -> Result<()> {
    let cluster = Cluster::new().await?;
    let spec = PodSpec::named("shell").namespace(namespace).session(label);
    let pod = cluster.pod(spec).await?;
    // Before it is enrolled its connections fail, or go out as a pod that may do nothing: the first answer of ours counts.
    let answer = eventually("it is refused", async || {
        let answer = curl(&pod, PODS, &[]).await.ok();
        Ok(answer.filter(|answer| answer.body.to_lowercase().contains("session")))
    })
    .await?;
    answer.assert_status(403, "Forbidden");
    let mark = cluster.api.mark().await?;
    curl(&pod, PODS, &[]).await?.assert_status(403, "Forbidden");
    let powerless = cluster.powerless();
    let viewer = cluster.viewer();
    let seen = cluster.api.seen_since(mark).await?;
    assert!(
        !seen
            .iter()
            .any(|request| request.user == powerless || request.user == viewer),
        "{seen:?}"
    );
    if namespace == "support" {
        eventually("an Event says why", async || {
            let events = cluster.events("shell").await?;
            Ok(events.contains(&"SessionNotFound".to_owned()).then_some(()))
        })
        .await?;
    }
    Ok(())
}

pub(crate) async fn start_watch(pod: &Pod) -> Result<Running> {
    let words = ["get", "configmaps", "-n", "prod", "--watch", "-o", "name"];
    let mut watch = pod.kubectl_command(words)?.spawn()?;
    watch.stdout_until(|text| text.contains("configmap/settings")).await?;
    Ok(watch)
}

/// Invariant 5.
#[tokio::test]
async fn a_sessions_deletion_ends_a_watch_within_a_second() -> Result<()> {
    let cluster = Cluster::new().await?;
    let pod = cluster.pod_in_session().await?;
    let watch = start_watch(&pod).await?;
    cluster.api.delete_session(&cluster.session).await?;
    watch.wait(WITHIN_A_SECOND).await?;
    curl(&pod, PODS, &[]).await?.assert_status(403, "Forbidden");
    // Made again, it is another, and in force at once.
    cluster.api.write_session(&cluster.session).await?;
    becomes(&pod, &cluster.viewer()).await
}

/// Invariant 5. The pod that it runs in is played by the test API server: a real one would ask its kubelet.
#[tokio::test]
async fn a_sessions_deletion_ends_an_exec_within_a_second() -> Result<()> {
    let node = Node::new()?;
    let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
    let cluster = Cluster::around(node, api, AgentOptions::cluster()).await?;
    let pod = cluster.pod_in_session().await?;
    let words = ["exec", "-i", "-n", "prod", "web-0", "--", "cat"];
    let mut exec = pod.kubectl_command(words)?.spawn()?;
    exec.write(b"alive\n").await?;
    exec.stdout_until(|text| text.contains("alive")).await?;
    cluster.api.delete_session(&cluster.session).await?;
    exec.wait(WITHIN_A_SECOND).await?;
    Ok(())
}

#[tokio::test]
async fn a_label_is_given_and_taken_while_the_pod_runs() -> Result<()> {
    let cluster = Cluster::new().await?;
    let pod = cluster.pod(shell()).await?;
    assert_eq!(whoami(&pod).await?, cluster.powerless());
    for _ in 0..2 {
        cluster.api.label_pod(pod.spec(), SESSION_LABEL, Some("alice")).await?;
        becomes(&pod, &cluster.viewer()).await?;
        let watch = start_watch(&pod).await?;
        cluster.api.label_pod(pod.spec(), SESSION_LABEL, None).await?;
        watch.wait(WITHIN_A_SECOND).await?;
        becomes(&pod, &cluster.powerless()).await?;
    }
    Ok(())
}

/// Any address will do: what is dialled there comes to the agent.
#[tokio::test]
async fn a_new_endpoint_is_intercepted_within_a_second() -> Result<()> {
    let cluster = Cluster::new().await?;
    let pod = cluster.pod_in_session().await?;
    let elsewhere = "198.51.100.7";
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": "kubernetes-new", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [elsewhere], "conditions": {"ready": false}}],
        "ports": [{"name": "https", "port": 443, "protocol": "TCP"}],
    });
    cluster.api.create(&slice).await?;
    let appeared = Instant::now();
    let there = format!("kubernetes.default.svc:443:{elsewhere}");
    eventually("it is intercepted", async || {
        let output = curl_raw(&pod, PODS, &["--resolve", &there, "--connect-timeout", "0.2"]).await?;
        Ok((output.succeeded() && output.stderr.contains(" 200")).then_some(()))
    })
    .await?;
    // Some of it is curl's own start, and the API server's answer.
    assert!(appeared.elapsed() < Duration::from_secs(2), "{:?}", appeared.elapsed());
    // The others are intercepted as before.
    assert_eq!(whoami(&pod).await?, cluster.viewer());
    Ok(())
}

/// The sixth thing that must be shown; invariant 6. That nothing is left in the kernel, by its own numbers, is
/// `proxy/tests/uninstall.rs`.
#[tokio::test]
async fn after_uninstall_running_pods_are_what_they_were() -> Result<()> {
    let mut cluster = Cluster::new().await?;
    let pod = cluster.pod_in_session().await?;
    let host = PodSpec::named("host").namespace("support").session("alice");
    let host = cluster.pod(host.host_network()).await?;
    becomes(&host, &cluster.viewer()).await?;
    assert!(!listening_ports(&pod).await?.is_empty());
    assert!(cluster.node.pin_dir().exists() && cluster.node.run_dir().exists());
    let cgroups = cgroups(cluster.node.cgroup_root())?;

    cluster.agent.terminate()?;
    let status = cluster.agent.ended(Duration::from_secs(40)).await?;
    assert!(status.success(), "{status}");
    // The agent's end alone leaves the pods refused.
    assert!(no_answer(&curl_raw(&pod, PODS, &[]).await?));
    Agent::uninstall(&cluster.node)?.stdout().await?;

    assert!(!cluster.node.pin_dir().exists() && !cluster.node.run_dir().exists());
    for pod in [&pod, &host] {
        assert_eq!(listening_ports(pod).await?, [0_u16; 0], "{}", pod.name());
        assert_eq!(whoami(pod).await?, cluster.powerless(), "{}", pod.name());
    }
    assert_eq!(self::cgroups(cluster.node.cgroup_root())?, cgroups);
    // A second time there is nothing to do, and that is no error.
    Agent::uninstall(&cluster.node)?.stdout().await.map(drop)
}

/// Every cgroup at and below a path.
fn cgroups(path: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut all = BTreeSet::from([path.to_owned()]);
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            all.extend(cgroups(&entry.path())?);
        }
    }
    Ok(all)
}

/// Invariant 1: its object is gone, its processes aren't.
#[tokio::test]
async fn a_pod_deleted_by_force_reaches_nothing_while_its_processes_live() -> Result<()> {
    let cluster = Cluster::new().await?;
    let pod = cluster.pod_in_session().await?;
    let mark = cluster.api.mark().await?;
    let delete = ["delete", "pod", "shell", "-n", "support", "--force", "--grace-period=0"];
    cluster.api.admin(delete)?.stdout().await?;
    eventually("it is refused", async || {
        let output = curl_raw(&pod, PODS, &[]).await?;
        Ok(output.stderr.contains(" 403").then_some(()))
    })
    .await?;
    // Longer than a cgroup has to be missing, and than the question takes whether the label was taken off.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(12) {
        curl(&pod, PODS, &[]).await?.assert_status(403, "Forbidden");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let powerless = cluster.powerless();
    let seen = cluster.api.seen_since(mark).await?;
    assert!(!seen.iter().any(|request| request.user == powerless), "{seen:?}");
    Ok(())
}
