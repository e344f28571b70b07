//! The agent with the cluster as its source: Sessions as resources, pods that name them, the API server's own addresses.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rstest::rstest;
use serde_json::{Value, json};
use understudy_tests::node::{
    Agent, AgentOptions, ApiServer, Node, Pod, PodSpec, Running, SESSION_LABEL, Session, eventually,
};

use crate::world::{WITHIN_A_SECOND, curl, curl_raw, whoami};

const SESSIONS: &str = "sessions.understudy.dev";
const PODS: &str = "/api/v1/namespaces/prod/pods";

/// The fields fall in this order.
struct Cluster {
    agent: Agent,
    api: ApiServer,
    node: Node,
    /// support/alice, acting as the viewer.
    session: Session,
}

impl Cluster {
    /// With the session, and no pod yet.
    async fn new() -> Result<Self> {
        let node = Node::new()?;
        let api = ApiServer::start(&node).await?;
        api.define_sessions().await?;
        let session = Session::named("support", "alice").acting_as(&node.accounts().viewer);
        api.write_session(&session).await?;
        let agent = Agent::start(&node, AgentOptions::cluster()).await?;
        Ok(Self {
            agent,
            api,
            node,
            session,
        })
    }

    fn viewer(&self) -> String {
        self.node.accounts().viewer.username()
    }

    fn powerless(&self) -> String {
        self.node.accounts().powerless.username()
    }

    /// A pod's object, and then its sandbox.
    async fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let spec = self.api.create_pod(spec).await?;
        self.node.pod(spec)
    }

    /// A pod in the session, acting in it.
    async fn pod_in_session(&self) -> Result<Pod> {
        let pod = self.pod(shell().session("alice")).await?;
        self.until(&pod, &self.viewer()).await?;
        Ok(pod)
    }

    async fn until(&self, pod: &Pod, user: &str) -> Result<()> {
        eventually("the pod acts as it should", async || {
            let output = pod
                .kubectl("auth whoami -o jsonpath={.status.userInfo.username}")
                .await?;
            Ok((output.succeeded() && output.stdout == user).then_some(()))
        })
        .await
    }

    async fn status(&self) -> Result<Value> {
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

async fn start_watch(pod: &Pod) -> Result<Running> {
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
    cluster.until(&pod, &cluster.viewer()).await
}

#[tokio::test]
async fn a_label_is_given_and_taken_while_the_pod_runs() -> Result<()> {
    let cluster = Cluster::new().await?;
    let pod = cluster.pod(shell()).await?;
    assert_eq!(whoami(&pod).await?, cluster.powerless());
    for _ in 0..2 {
        cluster.api.label_pod(pod.spec(), SESSION_LABEL, Some("alice")).await?;
        cluster.until(&pod, &cluster.viewer()).await?;
        let watch = start_watch(&pod).await?;
        cluster.api.label_pod(pod.spec(), SESSION_LABEL, None).await?;
        watch.wait(WITHIN_A_SECOND).await?;
        cluster.until(&pod, &cluster.powerless()).await?;
    }
    Ok(())
}

/// The seventh thing that must be shown, in less than its minute.
#[tokio::test]
async fn sessions_are_in_force_while_the_api_server_is_away() -> Result<()> {
    let mut cluster = Cluster::new().await?;
    let pod = cluster.pod_in_session().await?;
    let pid = cluster.agent.pid()?;
    cluster.api.kill9().await?;
    let away = Instant::now();
    while away.elapsed() < Duration::from_secs(5) {
        // Ours, not the kernel's refusal and not the API server's: the pod is turned to the agent, which can't go on.
        let answer = curl(&pod, PODS, &[]).await?;
        assert!((500..600).contains(&answer.code), "{answer:?}");
        assert_eq!(answer.json()?["kind"], "Status", "{answer:?}");
    }
    cluster.api.start_again().await?;
    eventually("the pod acts again", async || {
        let output = curl_raw(&pod, PODS, &[]).await?;
        Ok((output.succeeded() && output.stderr.contains(" 200")).then_some(()))
    })
    .await?;
    assert_eq!(whoami(&pod).await?, cluster.viewer());
    assert_eq!(cluster.agent.pid()?, pid);
    assert!(
        !cluster.agent.log().contains("a session ends"),
        "no session ended on the way"
    );
    // What has changed since is heard, at the latest when the backoff is over.
    let deleted = Instant::now();
    cluster.api.delete_session(&cluster.session).await?;
    loop {
        if curl(&pod, PODS, &[]).await?.code == 403 {
            return Ok(());
        }
        assert!(
            deleted.elapsed() < Duration::from_mins(1),
            "the deletion is never heard of"
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// An agent that starts while the API server can't be reached waits, and says so.
#[tokio::test]
async fn an_agent_waits_for_the_api_server() -> Result<()> {
    let mut cluster = Cluster::new().await?;
    let pod = cluster.pod_in_session().await?;
    cluster.agent.kill9().await?;
    cluster.api.kill9().await?;
    let again = Agent::launch(&cluster.node, AgentOptions::cluster())?;
    eventually("it says what it waits for", async || {
        Ok(again.log().contains("waiting for this node's pods").then_some(()))
    })
    .await?;
    let refused = curl_raw(&pod, PODS, &[]).await?;
    assert!(!refused.succeeded(), "the pod stays refused meanwhile: {refused:?}");
    cluster.api.start_again().await?;
    // The backoff may have come far by now.
    let began = Instant::now();
    while !curl_raw(&pod, PODS, &[]).await?.stderr.contains(" 200") {
        assert!(began.elapsed() < Duration::from_mins(1), "it never goes on");
        tokio::time::sleep(Duration::from_millis(250)).await;
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
