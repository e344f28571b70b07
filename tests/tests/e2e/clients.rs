//! The clients that people use, unmodified, in a pod with a session.

use std::time::Duration;

use anyhow::Result;
use rstest::rstest;
use understudy_tests::node::{AgentOptions, ApiServer, Family, Node, PodSpec, binaries, eventually};

use crate::world::{World, curl, whoami};

#[rstest]
#[case::ipv4(Family::V4)]
#[case::ipv6(Family::V6)]
#[tokio::test]
async fn kubectl_acts_as_the_sessions_account(#[case] family: Family) -> Result<()> {
    let node = Node::new()?;
    let api = ApiServer::start(&node).await?;
    let options = AgentOptions::default().service(family.service());
    let world = World::around(node, api, PodSpec::named("shell").family(family), options).await?;
    let mark = world.api.mark().await?;
    assert_eq!(whoami(&world.pod).await?, world.viewer());
    let pods = world.pod.kubectl("get pods -n prod -o name").await?.success()?;
    assert_eq!(pods.stdout, "pod/web-0\npod/web-1\n");
    let secrets = world.pod.kubectl("get secrets -n prod").await?;
    assert!(
        secrets.stderr.contains("Forbidden"),
        "the session lends the account's rights and no more: {secrets:?}"
    );
    let agent = world.node.accounts().agent.username();
    for seen in world.api.seen_since(mark).await? {
        assert_eq!(
            (seen.user.as_str(), seen.impersonator.as_ref()),
            (world.viewer().as_str(), Some(&agent)),
            "{seen:?}"
        );
        assert!(!seen.holds(world.pod.token()), "{seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_trusts_the_agents_own_ca_once_it_is_published() -> Result<()> {
    let world = World::with_own_ca().await?;
    let before = world.pod.kubectl("auth whoami").await?;
    assert!(
        before.stderr.contains("certificate signed by unknown authority"),
        "{before:?}"
    );
    world.agent.publish_ca([&world.pod])?;
    assert_eq!(whoami(&world.pod).await?, world.viewer());
    Ok(())
}

#[tokio::test]
async fn kubectl_applies() -> Result<()> {
    let world = World::new().await?;
    let manifest = |colour: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{namespace: prod, name: applied}}\ndata: {{colour: {colour}}}\n"
        )
    };
    for colour in ["red", "blue"] {
        let apply = world.pod.kubectl_command(["apply", "-f", "-"])?.stdin(manifest(colour));
        apply.stdout().await?;
        let read = world
            .pod
            .kubectl("get configmap applied -n prod -o jsonpath={.data.colour}")
            .await?
            .success()?;
        assert_eq!(read.stdout, colour);
    }
    Ok(())
}

#[tokio::test]
async fn kubectl_watches_each_event_as_it_happens() -> Result<()> {
    let world = World::new().await?;
    let words = ["get", "configmaps", "-n", "prod", "--watch", "-o", "name"];
    let mut watch = world.pod.kubectl_command(words)?.spawn()?;
    watch.stdout_until(|text| text.contains("configmap/settings")).await?;
    for name in ["first", "second"] {
        world
            .api
            .admin(["create", "configmap", name, "-n", "prod"])?
            .stdout()
            .await?;
        watch
            .stdout_until(|text| text.contains(&format!("configmap/{name}")))
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn kubectl_follows_logs() -> Result<()> {
    let world = World::with_test_server().await?;
    let mut logs = world
        .pod
        .kubectl_command(["logs", "-f", "web-0", "-n", "prod"])?
        .spawn()?;
    // Three lines are there; the fourth is written while it follows.
    logs.stdout_until(|text| text.contains("line 4")).await?;
    assert!(!logs.has_ended()?);
    Ok(())
}

#[rstest]
#[case::websocket("true")]
#[case::spdy("false")]
#[tokio::test]
async fn kubectl_execs(#[case] websocket: &str) -> Result<()> {
    let world = World::with_test_server().await?;
    let mark = world.api.mark().await?;
    let exec = |words: &[&str]| {
        let all = ["exec", "-i", "-n", "prod", "web-0", "--"]
            .into_iter()
            .chain(words.iter().copied());
        Ok::<_, anyhow::Error>(
            world
                .pod
                .kubectl_command(all)?
                .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket),
        )
    };
    // Its standard input ends, and it ends by that: a half-close, all the way through.
    let large = "0123456789abcdef".repeat(64 * 1024);
    assert_eq!(exec(&["cat"])?.stdin(large.clone()).stdout().await?, large);
    let failing = exec(&["sh", "-c", "echo out; echo err >&2; exit 7"])?.output().await?;
    assert_eq!((failing.code, failing.stdout.as_str()), (Some(7), "out\n"));
    assert!(failing.stderr.contains("err"), "{failing:?}");
    let seen = world.api.seen_since(mark).await?;
    let upgrades: Vec<_> = seen.iter().filter(|seen| seen.path().ends_with("/exec")).collect();
    assert!(!upgrades.is_empty());
    for seen in upgrades {
        assert_eq!(seen.user, world.viewer(), "{seen:?}");
        assert!(!seen.holds(world.pod.token()), "{seen:?}");
    }
    Ok(())
}

#[rstest]
#[case::websocket("true")]
#[case::spdy("false")]
#[tokio::test]
async fn kubectl_forwards_ports(#[case] websocket: &str) -> Result<()> {
    let world = World::with_test_server().await?;
    let words = ["port-forward", "-n", "prod", "pod/web-0", "8080:80"];
    let mut forward = world
        .pod
        .kubectl_command(words)?
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket)
        .spawn()?;
    forward
        .stdout_until(|text| text.contains("Forwarding from 127.0.0.1:8080"))
        .await?;
    // Every port of the scene's pods sends back what it gets.
    let script = "exec 3<>/dev/tcp/127.0.0.1/8080; echo through the tunnel >&3; read -r line <&3; echo \"$line\"";
    let shell = binaries::on_path("bash").unwrap_or_else(|| "/bin/bash".into());
    let answer = world
        .pod
        .command(shell)
        .args(["-c", script])
        .limit(Duration::from_secs(20))
        .stdout()
        .await?;
    assert_eq!(answer, "through the tunnel\n");
    Ok(())
}

#[tokio::test]
async fn pythons_kubernetes_client_acts_as_the_sessions_account() -> Result<()> {
    const SCRIPT: &str = "\
from kubernetes import client, config, watch
config.load_incluster_config()
review = client.AuthenticationV1Api().create_self_subject_review({'apiVersion': 'authentication.k8s.io/v1', 'kind': 'SelfSubjectReview'})
print(review.status.user_info.username)
core = client.CoreV1Api()
print(','.join(pod.metadata.name for pod in core.list_namespaced_pod('prod').items))
for event in watch.Watch().stream(core.list_namespaced_config_map, 'prod', timeout_seconds=30):
    if event['object'].metadata.name == 'settings':
        print(event['type'])
        break
";
    let world = World::new().await?;
    let printed = world
        .pod
        .command(binaries::python()?)
        .args(["-c", SCRIPT])
        .stdout()
        .await?;
    assert_eq!(
        printed.lines().collect::<Vec<_>>(),
        [world.viewer().as_str(), "web-0,web-1", "ADDED"]
    );
    Ok(())
}

#[rstest]
#[case("--http1.1")]
#[case("--http2")]
#[tokio::test]
async fn curl_acts_as_the_sessions_account(#[case] protocol: &str) -> Result<()> {
    let world = World::new().await?;
    let answer = curl(&world.pod, "/api/v1/namespaces/prod/configmaps/settings", &[protocol]).await?;
    assert_eq!(answer.code, 200, "{answer:?}");
    assert_eq!(answer.json()?["data"]["colour"], "green");
    Ok(())
}

#[tokio::test]
async fn every_request_is_in_the_audit_log() -> Result<()> {
    let world = World::new().await?;
    curl(&world.pod, "/api/v1/namespaces/prod/pods?limit=1", &[]).await?;
    let event = eventually("the audit event is written", async || {
        Ok(world
            .agent
            .audit()?
            .into_iter()
            .find(|event| event.uri.starts_with("/api/v1/namespaces/prod/pods")))
    })
    .await?;
    assert_eq!(event.session(), Some("support/alice"));
    assert_eq!(event.pod(), Some("shell"));
    assert_eq!((event.verb.as_str(), event.code()), ("list", Some(200)));
    assert_eq!(event.said("http-method"), Some("GET"));
    assert_eq!(event.refused(), None);
    let viewer = event.impersonated_user.as_ref().map(|user| user.username.as_str());
    assert_eq!(viewer, Some(world.viewer().as_str()), "{event:?}");
    Ok(())
}
