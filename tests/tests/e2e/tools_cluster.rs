//! What operators ask with, in a cluster: kubectl itself and its credentials, the objects, the agent behind its token and
//! rights as `deploy` grants them. The box has no kubelet to carry a forwarded port, so that kubectl's `port-forward` alone
//! is played: it says the agent's own port on the node, where the plugin runs, and then again and again that it carries a
//! connection, which kubectl's dies of where nobody reads it. With the test API server, which can carry one, kubectl's own
//! is asked as well.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use understudy_tests::{
    apiserver::CARRIED_TO,
    node::{
        AGENT_NAMESPACE, Agent, AgentOptions, ApiServer, Command, Node, Output, Patience, PodSpec, Running, Session,
        Terminal, TestServerOptions, binaries, eventually,
    },
};

use crate::{
    cluster::{Cluster, start_watch},
    world::{becomes, curl},
};

const ACCOUNT: &str = include_str!("../../../deploy/components/operators/serviceaccount.yaml");
const RIGHTS: &str = include_str!("../../../deploy/components/operators/rbac.yaml");
const AGENT_POD: &str = "understudy-box";
/// Where the control plane reaches the node's relay to the agent.
const CARRIED: &str = "172.30.0.1:19903";
const PODS: &str = "/api/v1/namespaces/prod/pods";

/// A cluster whose agent answers operators.
struct Desk {
    cluster: Cluster,
    path: String,
}

impl Desk {
    async fn new() -> Result<Self> {
        let desk = Self::without_rights().await?;
        desk.cluster.api.grant_roles(RIGHTS).await?;
        Ok(desk)
    }

    async fn without_rights() -> Result<Self> {
        let options = AgentOptions::cluster().arg("--operator-address=127.0.0.1:9903");
        let cluster = Cluster::with(options).await?;
        let directory = cluster.node.directory().join("plugin");
        fs::create_dir_all(&directory)?;
        let kubectl = binaries::kubectl()?;
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = port-forward ]; then\n  trap 'touch {}; exit 1' PIPE\n  \
             echo 'Forwarding from 127.0.0.1:9903 -> 9903'\n  \
             for turn in $(seq 600); do sleep 0.1; echo 'Handling connection for 9903'; done\n  exit\nfi\n\
             exec {} \"$@\"\n",
            directory.join("unread").display(),
            kubectl.display()
        );
        fs::write(directory.join("kubectl"), script)?;
        fs::set_permissions(directory.join("kubectl"), fs::Permissions::from_mode(0o755))?;
        let path = format!("{}:{}", directory.display(), std::env::var("PATH")?);
        let desk = Self { cluster, path };
        desk.installed(&json!({})).await?;
        Ok(desk)
    }

    /// With the test API server, which carries forwarded ports to the agent: nothing is played.
    async fn with_port_forward() -> Result<(Self, Running)> {
        let node = Node::new()?;
        let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
        let options = AgentOptions::cluster().arg("--operator-address=127.0.0.1:9903");
        let cluster = Cluster::around(node, api, options).await?;
        // The node's end of the way, as a kubelet's: it reaches what listens on loopback there.
        let relay = cluster.node.command(binaries::probe()?)?.arg("relay");
        let relay = relay.args(["--listen", CARRIED, "--target", "127.0.0.1:9903"]);
        let mut relay = relay.spawn()?;
        relay.stdout_until(|text| text.contains("relaying")).await?;
        let kubectl = binaries::kubectl()?;
        let beside = kubectl.parent().context("kubectl's directory")?.display();
        let path = format!("{beside}:{}", std::env::var("PATH")?);
        let desk = Self { cluster, path };
        desk.installed(&json!({CARRIED_TO: CARRIED})).await?;
        desk.cluster.api.grant_roles(RIGHTS).await?;
        Ok((desk, relay))
    }

    /// The operators' account and the agent's pod, as `deploy` makes them.
    async fn installed(&self, annotations: &Value) -> Result<()> {
        let api = &self.cluster.api;
        api.namespace(AGENT_NAMESPACE).await?;
        // In the scene's names.
        let account = ACCOUNT.replace("understudy-system", AGENT_NAMESPACE);
        api.apply_text(&account).await?;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": AGENT_NAMESPACE, "name": AGENT_POD, "annotations": annotations, "labels": {
                "app.kubernetes.io/name": "understudy", "app.kubernetes.io/component": "agent",
            }},
            "spec": {"nodeName": "box", "containers": [{"name": "agent", "image": "understudy"}]},
        });
        api.create(&pod).await?;
        self.agent_is(true, None).await
    }

    /// Whether the plugin left what kubectl's port-forward says unread.
    fn is_unread(&self) -> bool {
        self.cluster.node.directory().join("plugin/unread").exists()
    }

    /// What the kubelet says of the agent's pod.
    async fn agent_is(&self, ready: bool, waiting: Option<&str>) -> Result<()> {
        let state = waiting.map_or_else(|| json!({"running": {}}), |why| json!({"waiting": {"reason": why}}));
        let status = json!({"status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            "containerStatuses": [{
                "name": "agent", "image": "understudy", "imageID": "", "ready": ready, "restartCount": 0, "state": state,
            }],
        }});
        let api = &self.cluster.api;
        api.patch("pods", AGENT_NAMESPACE, AGENT_POD, Some("status"), &status)
            .await
            .map(drop)
    }

    fn plugin(&self, words: &[&str]) -> Result<Command> {
        let kubeconfig = self.cluster.api.kubeconfig()?;
        Ok(Agent::program(&self.cluster.node)?
            .env("PATH", &self.path)
            .args(words)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--agents-namespace", AGENT_NAMESPACE]))
    }

    async fn why(&self, pod: &str) -> Result<(Value, Output)> {
        let output = self
            .plugin(&["why", "-n", "support", pod, "-o", "json"])?
            .output()
            .await?;
        let answer = serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output:?}"))?;
        Ok((answer, output))
    }

    /// Waits until this is the first thing that is wrong with a pod.
    async fn first(&self, pod: &str, cause: &str, code: i32) -> Result<()> {
        let mut last = None;
        let wanted = format!("{cause} is found");
        let found = eventually(&wanted, async || {
            let (answer, output) = self.why(pod).await?;
            let steps = answer["steps"].as_array().context("steps")?;
            let first = steps.iter().find(|step| step["outcome"] == "fail");
            let is_it = first.is_some_and(|step| step["cause"] == cause && step["remedy"].is_string());
            let found = (is_it && output.code == Some(code)).then_some(());
            last = Some(output);
            Ok(found)
        });
        let found = found.await;
        found.with_context(|| format!("{last:?}"))
    }
}

#[tokio::test]
async fn the_plugin_shows_who_is_on_and_finds_a_pod_well() -> Result<()> {
    let desk = Desk::without_rights().await?;
    let pod = desk.cluster.pod_in_session().await?;
    // Who may do nothing with agents is told nothing.
    desk.first("shell", "agent-silent", 5).await?;
    let (answer, _) = desk.why("shell").await?;
    assert!(
        answer.to_string().contains("may not get agents.understudy.dev"),
        "{answer}"
    );
    assert!(!answer.to_string().contains("enrolment"), "{answer}");
    let api = &desk.cluster.api;
    api.grant_roles(RIGHTS).await?;
    eventually("the agent answers", async || {
        let (_, output) = desk.why("shell").await?;
        Ok((output.code == Some(0)).then_some(()))
    })
    .await?;

    curl(&pod, PODS, &[]).await?;
    let row = eventually("the session is shown with its pod", async || {
        let table = desk.plugin(&["sessions", "-A", "--no-headers"])?.stdout().await?;
        // Its status follows its pods.
        Ok((table.contains("1/1") && table.contains("Active")).then_some(table))
    })
    .await?;
    assert!(
        row.contains("support") && row.contains("alice") && row.contains("Active"),
        "{row}"
    );
    assert!(row.contains(&desk.cluster.viewer()), "{row}");
    let json = desk.plugin(&["sessions", "-A", "-o", "json"])?.stdout().await?;
    let listing: Value = serde_json::from_str(&json)?;
    let session = &listing["items"][0];
    assert_eq!(
        session["pods"][0]["name"], "support/shell",
        "the agent was asked: {json}"
    );
    assert!(
        session["requests"].as_u64().is_some_and(|requests| requests >= 1),
        "{json}"
    );
    assert_eq!(session["nodes"], json!(["box"]), "{json}");

    let text = desk.plugin(&["why", "support/shell"])?.stdout().await?;
    assert!(
        text.contains("[ok]   own rights"),
        "the agent asks what the account may do: {text}"
    );
    assert!(
        text.ends_with("support/shell: intercepted, and it may act in its session\n"),
        "{text}"
    );

    // A token for anything else isn't taken.
    let token = api
        .admin([
            "create",
            "token",
            "understudy-operator",
            "-n",
            AGENT_NAMESPACE,
            "--audience=other.agents.understudy.dev",
        ])?
        .stdout()
        .await?;
    for bearer in [
        format!("Bearer {}", token.trim()),
        format!("Bearer {}", desk.cluster.node.accounts().admin_token),
    ] {
        let asked = desk
            .cluster
            .node
            .command("curl")?
            .args([
                "--silent",
                "--max-time",
                "20",
                "--write-out",
                "%{http_code}",
                "--header",
            ])
            .arg(format!("Authorization: {bearer}"))
            .arg("http://127.0.0.1:9903/v1/sessions")
            .stdout()
            .await?;
        assert!(asked.ends_with("401") && !asked.contains("alice"), "{asked}");
    }
    Ok(())
}

#[tokio::test]
async fn kubectls_own_port_forward_brings_the_plugin_to_the_agents() -> Result<()> {
    let (desk, _relay) = Desk::with_port_forward().await?;
    let pod = desk.cluster.pod_in_session().await?;
    let json = desk.plugin(&["sessions", "-A", "-o", "json"])?.stdout().await?;
    let listing: Value = serde_json::from_str(&json)?;
    assert_eq!(listing["items"][0]["pods"][0]["name"], "support/shell", "{json}");
    let (answer, output) = desk.why("shell").await?;
    assert_eq!(output.code, Some(0), "{answer}");

    // Live, over a port that stays.
    let mut tail = desk
        .plugin(&["tail", "--session", "support/alice", "-o", "json"])?
        .spawn()?;
    let told = eventually("an event comes over it", async || {
        curl(&pod, PODS, &[]).await?;
        Ok(tail.stdout().contains(PODS).then(|| tail.stdout()))
    });
    assert!(told.await?.contains("support/alice"));
    assert!(!tail.has_ended()?);
    tail.kill().await?;
    Ok(())
}

#[tokio::test]
async fn why_tells_in_a_cluster_what_is_wrong() -> Result<()> {
    let desk = Desk::new().await?;
    let (cluster, api) = (&desk.cluster, &desk.cluster.api);
    let support = |name: &str| PodSpec::named(name).namespace("support");
    desk.first("ghost", "pod-not-found", 3).await?;
    let _plain = cluster.pod(support("plain")).await?;
    desk.first("plain", "no-label", 3).await?;
    let _odd = cluster.pod(support("odd").session("Not_A.Session")).await?;
    desk.first("odd", "label-not-a-name", 4).await?;
    let _lost = cluster.pod(support("lost").session("nobody")).await?;
    desk.first("lost", "session-not-found", 4).await?;
    // Somebody whom the agent wasn't let act as.
    let stranger = Session::named("support", "bob").acting_as(&cluster.node.accounts().powerless);
    api.write_session(&stranger).await?;
    let _denied = cluster.pod(support("denied").session("bob")).await?;
    desk.first("denied", "may-not-impersonate", 4).await?;

    let _pod = cluster.pod_in_session().await?;
    desk.agent_is(false, None).await?;
    desk.first("shell", "agent-not-ready", 3).await?;
    desk.agent_is(false, Some("CrashLoopBackOff")).await?;
    desk.first("shell", "agent-not-running", 3).await?;
    api.delete("pods", AGENT_NAMESPACE, AGENT_POD).await?;
    desk.first("shell", "no-agent", 3).await?;

    let pending = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "support", "name": "pending", "labels": {"understudy.dev/session": "alice"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    api.create(&pending).await?;
    desk.first("pending", "not-scheduled", 3).await?;
    let status = json!({"status": {"phase": "Succeeded"}});
    api.patch("pods", "support", "pending", Some("status"), &status).await?;
    desk.first("pending", "pod-over", 3).await
}

#[tokio::test]
async fn a_session_is_revoked_and_let_go_on() -> Result<()> {
    let desk = Desk::new().await?;
    let api = &desk.cluster.api;
    let pod = desk.cluster.pod_in_session().await?;
    let unasked = desk.plugin(&["revoke", "-n", "support", "alice"])?.output().await?;
    assert!(!unasked.succeeded() && unasked.stderr.contains("--yes"), "{unasked:?}");
    eventually("the agent says that it is active", async || {
        let status = desk.cluster.status().await?;
        Ok((status["nodes"][0]["phase"] == "Active").then_some(()))
    })
    .await?;
    let watch = start_watch(&pod).await?;
    let revoked = desk
        .plugin(&["revoke", "-n", "support", "alice", "--yes"])?
        .output()
        .await?;
    assert_eq!(revoked.success()?.stdout, "support/alice revoked\n");
    watch.wait(std::time::Duration::from_secs(5)).await?;
    curl(&pod, PODS, &[]).await?.assert_status(403, "Forbidden");
    desk.first("shell", "session-expired", 4).await?;

    let extended = desk
        .plugin(&["extend", "-n", "support", "alice", "1h", "--yes"])?
        .output()
        .await?;
    assert!(extended.success()?.stdout.starts_with("support/alice ends at 20"));
    becomes(&pod, &desk.cluster.viewer()).await?;
    let shorter = desk
        .plugin(&["extend", "-n", "support", "alice", "5m", "--yes"])?
        .output()
        .await?;
    assert!(
        !shorter.succeeded() && shorter.stderr.contains("ends later than that already"),
        "{shorter:?}"
    );
    let object = api
        .read("sessions.understudy.dev", "support", "alice")
        .await?
        .context("there")?;
    assert_eq!(
        object["spec"]["impersonate"]["serviceAccountName"], "viewer",
        "nothing else is changed"
    );
    let missing = desk
        .plugin(&["revoke", "-n", "support", "nobody", "--yes"])?
        .output()
        .await?;
    assert!(
        !missing.succeeded() && missing.stderr.contains("no Session support/nobody"),
        "{missing:?}"
    );
    Ok(())
}

/// Of the rights in `deploy`, what lets the operators' account ask: the agent itself may still say who is who.
fn rights_of_agents_account() -> Result<String> {
    let documents = RIGHTS.split("\n---\n");
    let of_account: Vec<&str> = documents
        .filter(|text| text.contains("  name: understudy-agents\n"))
        .collect();
    anyhow::ensure!(of_account.len() == 2, "a role and its binding");
    Ok(of_account.join("\n---\n"))
}

#[tokio::test]
async fn the_plugin_looks_on_at_agents_while_it_may() -> Result<()> {
    let desk = Desk::new().await?;
    let api = &desk.cluster.api;
    let pod = desk.cluster.pod_in_session().await?;
    eventually("the Session says where it is", async || {
        let status = desk.cluster.status().await?;
        Ok((status["nodes"][0]["node"] == "box").then_some(()))
    })
    .await?;
    let tail = desk.plugin(&["tail", "-n", "support", "--verb", "list"])?.spawn()?;
    let elsewhere = desk.plugin(&["tail", "-n", "prod"])?.spawn()?;
    eventually("the agent is heard", async || {
        curl(&pod, PODS, &[]).await?;
        Ok(tail
            .stdout()
            .contains(" box support/alice support/shell  list pods prod  200 ")
            .then_some(()))
    })
    .await
    .with_context(|| tail.stderr())?;
    assert_eq!(elsewhere.stdout(), "", "no session is there");

    let terminal = Terminal::open(&desk.cluster.node, 100, 24).await?;
    terminal.run(&desk.plugin(&["top", "--every", "1"])?).await?;
    terminal
        .until("the session", |screen| {
            screen.contains("alice") && screen.contains("1/1 agents")
        })
        .await?;

    // The account's right goes, and with it what is under way: within the half minute that agents take to look.
    api.withdraw_roles(&rights_of_agents_account()?).await?;
    let patience = Patience(std::time::Duration::from_mins(1));
    patience
        .until("top says that it may not", async || {
            let screen = terminal.screen().await?;
            Ok((screen.contains("may not get") && screen.contains("0/1 agents")).then_some(()))
        })
        .await
        .with_context(|| tail.stderr())?;
    patience
        .until("tail says that it may not", async || {
            Ok(tail
                .stderr()
                .contains("may not get agents.understudy.dev")
                .then_some(()))
        })
        .await?;
    assert!(!desk.is_unread(), "kubectl would have died");
    let heard = tail.stdout();
    curl(&pod, PODS, &[]).await?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(tail.stdout(), heard, "nothing is told any more");
    Ok(())
}
