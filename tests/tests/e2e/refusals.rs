//! What the agent refuses, and how it says so.

use std::time::Duration;

use anyhow::Result;
use rstest::rstest;
use serde_json::{Value, json};
use understudy_tests::node::{Agent, AgentOptions, Node, Session, binaries, eventually};

use crate::world::{Answer, CA, World, curl};

const PODS: &str = "/api/v1/namespaces/prod/pods";

/// Invariant 2.
#[rstest]
#[case("Impersonate-User: admin")]
#[case("impersonate-group: system:masters")]
#[case("Impersonate-Uid: 1")]
#[case("Impersonate-Extra-Scopes: all")]
#[case("Impersonate-: x")]
#[tokio::test]
async fn a_client_that_impersonates_is_refused_and_nothing_is_sent(#[case] header: &str) -> Result<()> {
    let world = World::new().await?;
    let mark = world.api.mark().await?;
    for protocol in ["--http1.1", "--http2"] {
        curl(&world.pod, PODS, &["--header", header, protocol])
            .await?
            .assert_status(403, "Forbidden");
    }
    assert_eq!(world.api.seen_since(mark).await?.len(), 0);
    Ok(())
}

/// Told to act as somebody, kubectl looks for a server in its kubeconfig alone, and says so where there is none; with a server
/// named it comes to the agent.
#[tokio::test]
async fn kubectl_as_somebody_else_is_refused_and_told_why() -> Result<()> {
    let world = World::new().await?;
    let mark = world.api.mark().await?;
    for (flags, expected) in [
        ("", "localhost:8080 was refused"),
        (
            &*format!("--server=https://kubernetes.default.svc --certificate-authority={CA} --token=none"),
            "understudy: a pod in a session cannot impersonate; remove the Impersonate-* headers (kubectl: --as",
        ),
    ] {
        let asked = world
            .pod
            .kubectl(&format!("get --raw /api/v1/namespaces/prod/pods --as admin {flags}"))
            .await?;
        assert!(
            asked.code != Some(0) && asked.stderr.contains(expected),
            "{flags}: {asked:?}"
        );
    }
    assert_eq!(world.api.seen_since(mark).await?.len(), 0);
    Ok(())
}

/// Sessions that name nobody who could act, with the field that the log must name.
#[rstest]
#[case::unknown_method(json!({"authMethod": "telepathy"}), "authMethod")]
#[case::no_namespace(json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"namespace": "", "serviceAccountName": "viewer"}}), "namespace")]
#[case::no_account(json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"namespace": "prod", "serviceAccountName": ""}}), "serviceAccountName")]
#[case::nobody(json!({"authMethod": "gateway-kubernetes-auth"}), "impersonate")]
#[case::no_token(json!({"authMethod": "service-account-token", "token": ""}), "token")]
#[tokio::test]
async fn a_session_that_cannot_act_is_refused_by_name_and_nothing_is_sent(
    #[case] spec: Value,
    #[case] field: &str,
) -> Result<()> {
    let world = World::new().await?;
    let mut session = Session::named("support", "faulty").for_pod(&world.untagged);
    for (name, value) in spec.as_object().expect("an object") {
        session = session.field(name, value.clone());
    }
    world.node.sessions().write(&session)?;
    eventually("the log names the field", async || {
        let log = world.agent.log();
        Ok(log
            .lines()
            .any(|line| line.contains("faulty") && line.contains(field))
            .then_some(()))
    })
    .await?;
    let answer = eventually("the pod is refused", async || refusal(&world).await).await?;
    assert!([403, 500].contains(&answer.code), "{answer:?}");
    answer.assert_status(
        answer.code,
        if answer.code == 403 {
            "Forbidden"
        } else {
            "InternalError"
        },
    );

    let mark = world.api.mark().await?;
    let again = curl(&world.untagged, PODS, &[]).await?;
    assert_eq!(again.body, answer.body, "the text is static");
    for leak in [world.node.directory().to_str().expect("UTF-8"), "telepathy", "os error"] {
        assert!(!again.body.contains(leak), "{again:?}");
    }
    // On an upgrade as well: a whole answer, and then the end.
    let upgrade = [
        "--http1.1",
        "--header",
        "Connection: keep-alive, Upgrade",
        "--header",
        "Upgrade: SPDY/3.1",
    ];
    let answer = curl(
        &world.untagged,
        "/api/v1/namespaces/prod/pods/web-0/exec?command=true",
        &upgrade,
    )
    .await?;
    answer.assert_status(
        again.code,
        if again.code == 403 {
            "Forbidden"
        } else {
            "InternalError"
        },
    );
    assert_eq!(world.api.seen_since(mark).await?.len(), 0);
    Ok(())
}

/// The agent's refusal of the pod that was untagged until now; none while the API server still answers it as itself.
async fn refusal(world: &World) -> Result<Option<Answer>> {
    let mark = world.api.mark().await?;
    let answer = curl(&world.untagged, PODS, &[]).await?;
    Ok(world.api.seen_since(mark).await?.is_empty().then_some(answer))
}

#[rstest]
#[case("KUBERNETES_SERVICE_HOST")]
#[case("KUBERNETES_SERVICE_PORT_HTTPS")]
#[tokio::test]
async fn a_missing_variable_stops_the_agent_by_name(#[case] variable: &str) -> Result<()> {
    let node = Node::new()?;
    let mut agent = Agent::launch(&node, AgentOptions::default().without_env(variable))?;
    assert!(!agent.ended(Duration::from_secs(30)).await?.success());
    assert!(agent.log().contains(variable), "{}", agent.log());
    Ok(())
}

#[rstest]
#[case::missing(None)]
#[case::empty(Some(""))]
#[case::no_certificate(Some("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))]
#[tokio::test]
async fn a_ca_file_without_a_ca_stops_the_agent_by_name(#[case] content: Option<&str>) -> Result<()> {
    let node = Node::new()?;
    let file = node.directory().join("other-ca.crt");
    if let Some(content) = content {
        std::fs::write(&file, content)?;
    }
    let mut agent = Agent::launch(&node, AgentOptions::default().ca_file(&file))?;
    assert!(!agent.ended(Duration::from_secs(30)).await?.success());
    assert!(agent.log().contains("other-ca.crt"), "{}", agent.log());
    Ok(())
}

#[tokio::test]
async fn plain_http_is_answered_400() -> Result<()> {
    let world = World::new().await?;
    let mark = world.api.mark().await?;
    let curl = binaries::on_path("curl").expect("curl");
    let arguments = [
        "--silent",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        "http://kubernetes.default.svc:443/api",
    ];
    assert_eq!(world.pod.command(curl).args(arguments).stdout().await?, "400");
    assert_eq!(world.api.seen_since(mark).await?.len(), 0);
    Ok(())
}
