//! The Session resource's definition, as `understudy crd` prints it. A real API server judges it, and by it the table
//! of specs that the agent's own tests judge by the schema's rules and by the agent.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use understudy_tests::node::{ApiServer, Node, binaries, eventually};

#[derive(Deserialize)]
struct Case {
    name: String,
    spec: Value,
    api: Option<String>,
}

fn table() -> Result<Vec<Case>> {
    Ok(serde_saphyr::from_str(include_str!(
        "../../../proxy/testdata/session-specs.yaml"
    ))?)
}

fn session(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "understudy.dev/v1alpha1",
        "kind": "Session",
        "metadata": {"namespace": "prod", "name": name},
        "spec": spec,
    })
}

#[tokio::test]
async fn the_definition_is_one_and_an_api_server_holds_sessions_to_it() -> Result<()> {
    let node = Node::new()?;
    let definition = node.command(binaries::understudy()?)?.arg("crd").stdout().await?;
    let printed: Value = serde_saphyr::from_str(&definition)?;
    assert_eq!(printed["kind"], "CustomResourceDefinition");
    assert_eq!(printed["metadata"]["name"], "sessions.understudy.dev");
    let api = ApiServer::start(&node).await?;
    if !api.is_real() {
        // The test API server has no CEL; the agent's unit tests evaluate the rules.
        return Ok(());
    }
    api.admin(["create", "-f", "-"])?.stdin(definition).stdout().await?;
    api.admin([
        "wait",
        "--for=condition=Established",
        "crd/sessions.understudy.dev",
        "--timeout=30s",
    ])?
    .stdout()
    .await?;

    let table = table()?;
    let mut documents = String::new();
    for case in &table {
        writeln!(documents, "---\n{}", session(&case.name, &case.spec))?;
    }
    let judged = eventually("the API server knows Sessions", async || {
        let judged = api
            .admin(["create", "--dry-run=server", "-f", "-"])?
            .stdin(documents.clone())
            .output()
            .await?;
        Ok((!judged.stderr.contains("no matches for kind")).then_some(judged))
    })
    .await?;
    for case in &table {
        let accepted = format!("session.understudy.dev/{} created (server dry run)", case.name);
        let said = judged
            .stderr
            .split("Session.understudy.dev \"")
            .find(|part| part.starts_with(&format!("{}\"", case.name)));
        match &case.api {
            None => assert!(
                judged.stdout.contains(&accepted),
                "{}: {said:?}\n{}",
                case.name,
                judged.stderr
            ),
            Some(api) => {
                assert!(!judged.stdout.contains(&accepted), "{} is accepted", case.name);
                let said = said.with_context(|| format!("{} is refused by name: {}", case.name, judged.stderr))?;
                assert!(said.contains(api.as_str()), "{}: {said}", case.name);
            }
        }
    }

    let first = table.first().context("a table")?;
    let document = session("alice", &first.spec).to_string();
    api.admin(["create", "-f", "-"])?.stdin(document).stdout().await?;
    let status = json!({"status": {
        "phase": "Active",
        "actsAs": "system:serviceaccount:prod:viewer",
        "expiresAt": "2999-01-01T00:00:00Z",
        "pods": 2,
        "nodes": [{"node": "node-1", "pods": 2, "connections": 1}],
    }});
    let patch = [
        "patch",
        "session",
        "alice",
        "-n",
        "prod",
        "--subresource=status",
        "--type=merge",
        "-p",
    ];
    api.admin(patch)?.arg(status.to_string()).stdout().await?;
    let shown = api.admin(["get", "sessions", "-n", "prod"])?.stdout().await?;
    let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        ["NAME", "METHOD", "ACTS", "AS", "EXPIRES", "PHASE", "PODS", "AGE"],
        "{shown}"
    );
    let row = &rows[1];
    assert_eq!(
        row[..3],
        ["alice", "gateway-kubernetes-auth", "system:serviceaccount:prod:viewer"],
        "{shown}"
    );
    assert_eq!(row[3..6], ["2999-01-01T00:00:00Z", "Active", "2"], "{shown}");
    Ok(())
}
