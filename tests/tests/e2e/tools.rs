//! What operators ask with, against an agent: who is on, and why a pod is or isn't intercepted. Each broken set-up is made,
//! and its cause has to be the first thing that `why` names.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use rstest::rstest;
use serde_json::{Value, json};
use understudy_tests::node::{Agent, AgentOptions, ApiServer, Node, PodSpec, Session, binaries, eventually};

use crate::world::{World, curl, curl_raw};

const PODS: &str = "/api/v1/namespaces/prod/pods";

/// What `why` comes to: its exit code, its verdict, and the causes of what is wrong, in their order.
#[derive(Debug)]
struct Why {
    code: Option<i32>,
    verdict: String,
    failed: Vec<String>,
    warned: Vec<String>,
    text: String,
}

impl Why {
    async fn ask(node: &Node, pod: &str) -> Result<Self> {
        let output = Agent::operator(node, "why")?.args([pod, "-o", "json"]).output().await?;
        let answer: Value = serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output:?}"))?;
        let of = |outcome: &str| -> Vec<String> {
            let steps = answer["steps"].as_array().into_iter().flatten();
            steps
                .filter(|step| step["outcome"] == outcome)
                .map(|step| step["cause"].as_str().unwrap_or_default().to_owned())
                .collect()
        };
        Ok(Self {
            code: output.code,
            verdict: answer["verdict"].as_str().unwrap_or_default().to_owned(),
            failed: of("fail"),
            warned: of("warn"),
            text: output.stdout,
        })
    }

    /// The first thing that is wrong is this, and the exit code says of which kind it is.
    #[track_caller]
    fn assert_first(&self, cause: &str, code: i32) {
        assert_eq!(self.failed.first().map(String::as_str), Some(cause), "{}", self.text);
        assert_eq!(self.code, Some(code), "{}", self.text);
    }
}

#[tokio::test]
async fn who_is_on_is_shown_and_a_pod_that_is_well_is_found_well() -> Result<()> {
    let world = World::new().await?;
    curl(&world.pod, PODS, &[]).await?;
    let words = ["-o", "json"];
    let json = Agent::operator(&world.node, "sessions")?.args(words).stdout().await?;
    let listing: Value = serde_json::from_str(&json)?;
    let session = &listing["items"][0];
    assert_eq!(session["namespace"], "support", "{json}");
    assert_eq!(session["phase"], "Active", "{json}");
    assert_eq!(session["actsAs"], world.viewer(), "{json}");
    assert_eq!(session["requests"], 1, "{json}");
    assert_eq!(session["pods"][0]["name"], "shell", "{json}");
    assert_eq!(session["pods"][0]["state"], "enrolled", "{json}");
    for secret in world.node.accounts().secrets() {
        assert!(!json.contains(secret), "a secret is told");
    }
    let table = Agent::operator(&world.node, "sessions")?.stdout().await?;
    assert!(table.starts_with("NAMESPACE") && table.contains("alice"), "{table}");
    assert!(!table.contains('\u{1b}'), "no colour without a terminal: {table}");

    let why = Why::ask(&world.node, "shell").await?;
    assert_eq!(
        (why.code, why.verdict.as_str(), why.failed.len()),
        (Some(0), "well", 0),
        "{}",
        why.text
    );
    let text = Agent::operator(&world.node, "why")?.arg("shell").stdout().await?;
    assert!(text.contains("[ok]   enrolment: done"), "{text}");
    assert!(
        text.ends_with("shell: intercepted, and it may act in its session\n"),
        "{text}"
    );

    // What the pod's clients bring about is told, and isn't taken for a fault.
    curl(&world.pod, PODS, &["--header", "Impersonate-User: admin"]).await?;
    let why = Why::ask(&world.node, "shell").await?;
    assert_eq!(
        (why.code, why.warned.as_slice()),
        (Some(0), ["refused".to_owned()].as_slice())
    );
    assert!(why.text.contains("impersonation"), "{}", why.text);
    Ok(())
}

#[tokio::test]
async fn why_tells_what_is_wrong_with_a_pod() -> Result<()> {
    let mut world = World::new().await?;
    Why::ask(&world.node, "nobody")
        .await?
        .assert_first("unknown-to-agent", 3);

    // Of one that the session names, and that isn't there.
    let spec = json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"namespace": "prod", "serviceAccountName": "viewer"}});
    let document = json!({
        "apiVersion": "understudy.dev/v1alpha1", "kind": "Session",
        "metadata": {"namespace": "support", "name": "ghost"},
        "spec": spec, "pods": [{"name": "ghost", "cgroup": "pod-that-is-not-there"}],
    });
    world.node.sessions().write_text("ghost.yaml", &document.to_string())?;
    first(&world.node, "ghost", "no-cgroup", 3).await?;

    let session = world.session.clone();
    let over = session.clone().until("2026-01-01T00:00:00Z".parse()?);
    world.node.sessions().write(&over)?;
    first(&world.node, "shell", "session-expired", 4).await?;
    world
        .node
        .sessions()
        .write(&session.clone().field("authMethod", json!("telepathy")))?;
    first(&world.node, "shell", "session-refused", 4).await?;
    let nowhere = Session::named("support", "alice")
        .field("authMethod", json!("service-account-token"))
        .field("tokenFile", json!("/nowhere/token"))
        .for_pod(&world.pod);
    world.node.sessions().write(&nowhere)?;
    first(&world.node, "shell", "no-credential", 4).await?;
    world
        .node
        .sessions()
        .write(&session.clone().field("idleTimeout", json!("1s")))?;
    first(&world.node, "shell", "session-idle", 4).await?;
    world.node.sessions().write(&session)?;
    eventually("it is well again", async || {
        let why = Why::ask(&world.node, "shell").await?;
        Ok((why.code == Some(0)).then_some(()))
    })
    .await?;

    world.api.kill9().await?;
    let answer = curl(&world.pod, PODS, &[]).await?;
    assert_eq!(answer.code, 503, "{answer:?}");
    first(&world.node, "shell", "refused", 4).await?;

    world.agent.kill9().await?;
    let why = Why::ask(&world.node, "shell").await?;
    why.assert_first("agent-silent", 5);
    assert!(why.text.contains("--socket"), "{}", why.text);
    Ok(())
}

/// Waits until this is the first thing that is wrong.
async fn first(node: &Node, pod: &str, cause: &str, code: i32) -> Result<()> {
    let wanted = format!("{cause} is found");
    let found = eventually(&wanted, async || {
        let why = Why::ask(node, pod).await?;
        Ok((why.failed.first().map(String::as_str) == Some(cause)).then_some(why))
    });
    match found.await {
        Ok(why) => why.assert_first(cause, code),
        Err(error) => return Err(error.context(Why::ask(node, pod).await?.text)),
    }
    Ok(())
}

#[rstest]
#[case::distrusted("https", "distrusted")]
#[case::plain("http", "plain-http")]
#[tokio::test]
async fn why_tells_what_a_pods_clients_do_not_take(#[case] scheme: &str, #[case] cause: &str) -> Result<()> {
    let world = World::with_own_ca().await?;
    if scheme == "http" {
        let curl = world
            .pod
            .command("curl")
            .args(["--silent", "--max-time", "10", "http://10.96.0.1:443/"]);
        drop(curl.output().await?);
    } else {
        // Its CA isn't published: what the pod trusts is the cluster's alone.
        let output = curl_raw(&world.pod, PODS, &[]).await?;
        assert!(!output.succeeded(), "{output:?}");
    }
    first(&world.node, "shell", cause, 4).await
}

#[tokio::test]
async fn why_tells_what_the_kernel_refused() -> Result<()> {
    let world = World::new().await?;
    let why = Why::ask(&world.node, "shell").await?;
    assert_eq!((why.code, why.warned.len()), (Some(0), 0), "{}", why.text);
    let dial = world
        .pod
        .command_on_host_network(binaries::probe()?)
        .args(["dial", "10.96.0.1:443"]);
    assert!(dial.stdout().await?.contains("errno"));
    let why = Why::ask(&world.node, "shell").await?;
    assert_eq!(
        (why.code, why.warned.as_slice()),
        (Some(0), ["refused-by-kernel".to_owned()].as_slice()),
        "{}",
        why.text
    );
    assert!(
        why.text.contains("foreign_namespace") && why.text.contains("dial from the pod's own"),
        "{}",
        why.text
    );
    Ok(())
}

#[tokio::test]
async fn the_socket_is_the_nodes_own_and_goes_with_the_agent() -> Result<()> {
    let node = Node::new()?;
    let _api = ApiServer::start(&node).await?;
    let _pod = node.pod(PodSpec::named("shell"))?;
    let mut agent = Agent::start(&node, AgentOptions::default()).await?;
    let socket = node.run_dir().join("operator.sock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket)?.permissions());
    assert_eq!(mode & 0o777, 0o600);
    agent.terminate()?;
    agent.ended(Duration::from_secs(30)).await?;
    assert!(!socket.exists());
    // What a killed one leaves goes with the rest of it.
    let mut agent = Agent::start(&node, AgentOptions::default()).await?;
    agent.kill9().await?;
    assert!(socket.exists());
    Agent::uninstall(&node)?.output().await?.success()?;
    assert!(!node.run_dir().exists());
    Ok(())
}
