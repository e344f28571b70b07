//! Sessions as they come, change and end under a running agent.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use rstest::rstest;
use serde_json::json;
use understudy_tests::node::{Running, Session, eventually};

use crate::world::{WITHIN_A_SECOND, World, becomes, curl, whoami};

const PODS: &str = "/api/v1/namespaces/prod/pods";

/// What goes on in a pod while its session ends.
#[derive(Debug, Clone, Copy)]
enum Live {
    Watch,
    Exec,
}

impl Live {
    /// Starts it, and returns once data has come through.
    async fn start(self, world: &World) -> Result<Running> {
        match self {
            Self::Watch => {
                let words = ["get", "configmaps", "-n", "prod", "--watch", "-o", "name"];
                let mut watch = world.pod.kubectl_command(words)?.spawn()?;
                watch.stdout_until(|text| text.contains("configmap/settings")).await?;
                Ok(watch)
            }
            Self::Exec => {
                let mut exec = world
                    .pod
                    .kubectl_command(["exec", "-i", "-n", "prod", "web-0", "--", "cat"])?
                    .spawn()?;
                exec.write(b"alive\n").await?;
                exec.stdout_until(|text| text.contains("alive")).await?;
                Ok(exec)
            }
        }
    }
}

/// Invariant 5.
#[rstest]
#[case(Live::Watch)]
#[case(Live::Exec)]
#[tokio::test]
async fn a_sessions_removal_ends_what_is_open_within_a_second(#[case] live: Live) -> Result<()> {
    let world = World::with_test_server().await?;
    let running = live.start(&world).await?;
    world.node.sessions().remove(&world.session)?;
    running.wait(WITHIN_A_SECOND).await?;
    Ok(())
}

/// Invariant 5.
#[rstest]
#[case(Live::Watch)]
#[case(Live::Exec)]
#[tokio::test]
async fn a_sessions_expiry_ends_what_is_open_within_a_second(#[case] live: Live) -> Result<()> {
    let world = World::with_test_server().await?;
    let mut running = live.start(&world).await?;
    let end = Timestamp::now().checked_add(SignedDuration::from_secs(3))?;
    world.node.sessions().write(&world.session.clone().until(end))?;
    let until_then = Duration::try_from(end.duration_since(Timestamp::now())).context("three seconds from now")?;
    assert!(
        tokio::time::timeout(until_then, ended(&mut running)).await.is_err(),
        "not before it is over"
    );
    running.wait(WITHIN_A_SECOND).await?;
    curl(&world.pod, PODS, &[]).await?.assert_status(403, "Forbidden");
    Ok(())
}

async fn ended(running: &mut Running) -> Result<()> {
    eventually("it ends", async || Ok(running.has_ended()?.then_some(()))).await
}

/// Invariant 5: one session's end is nobody else's.
#[tokio::test]
async fn a_sessions_end_leaves_the_others_streams_alone() -> Result<()> {
    let world = World::with_test_server().await?;
    let viewer = &world.node.accounts().viewer;
    let other = Session::named("support", "bob")
        .acting_as(viewer)
        .for_pod(&world.untagged);
    world.node.sessions().write(&other)?;
    becomes(&world.untagged, &viewer.username()).await?;
    let mut watch = Live::Watch.start(&world).await?;
    world.node.sessions().remove(&other)?;
    becomes(&world.untagged, &world.powerless()).await?;
    world
        .api
        .admin(["create", "configmap", "later", "-n", "prod"])?
        .stdout()
        .await?;
    watch.stdout_until(|text| text.contains("configmap/later")).await?;
    Ok(())
}

#[tokio::test]
async fn a_session_over_is_refused_and_nothing_is_sent() -> Result<()> {
    let world = World::new().await?;
    world
        .node
        .sessions()
        .write(&world.session.clone().until(Timestamp::UNIX_EPOCH))?;
    let answer = eventually("the session is over", async || {
        // The very request that meets the end is cut short, which curl calls an error.
        let answer = curl(&world.pod, PODS, &[]).await.ok();
        Ok(answer.filter(|answer| answer.code != 200))
    })
    .await?;
    answer.assert_status(403, "Forbidden");
    let mark = world.api.mark().await?;
    let pods = world.pod.kubectl("get pods -n prod").await?;
    assert!(pods.stderr.contains("Forbidden"), "{pods:?}");
    assert_eq!(world.api.seen_since(mark).await?.len(), 0);
    eventually("the refusal is in the audit log", async || {
        Ok(world.agent.audit()?.into_iter().find(|event| event.refused().is_some()))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_is_tagged_and_moved_without_a_restart() -> Result<()> {
    let world = World::new().await?;
    let late = Session::named("support", "late").for_pod(&world.untagged);
    for (session, expected) in [
        (late.clone().acting_as(&world.node.accounts().viewer), world.viewer()),
        (
            late.with_token_of(&world.node.accounts().agent),
            world.node.accounts().agent.username(),
        ),
    ] {
        world.node.sessions().write(&session)?;
        becomes(&world.untagged, &expected).await?;
    }
    Ok(())
}

#[rstest]
#[case::said(Some("service-account-token"))]
#[case::empty(Some(""))]
#[case::absent(None)]
#[tokio::test]
async fn a_session_with_a_token_sends_that_token(#[case] method: Option<&str>) -> Result<()> {
    let world = World::with_test_server().await?;
    let viewer = &world.node.accounts().viewer;
    let mut session = Session::named("support", "token")
        .field("token", json!(viewer.token))
        .for_pod(&world.untagged);
    if let Some(method) = method {
        session = session.field("authMethod", json!(method));
    }
    world.node.sessions().write(&session)?;
    becomes(&world.untagged, &viewer.username()).await?;
    let mark = world.api.mark().await?;
    curl(&world.untagged, PODS, &[]).await?;
    for seen in world.api.seen_since(mark).await? {
        assert_eq!(seen.bearer(), Some(viewer.token.as_str()), "{seen:?}");
        assert_eq!(seen.impersonator, None, "{seen:?}");
    }
    Ok(())
}

/// A file that can't be used is reported on itself; the others stand.
#[tokio::test]
async fn a_bad_file_leaves_the_others_standing() -> Result<()> {
    let world = World::new().await?;
    world.node.sessions().write_text("broken.yaml", "kind: [\n")?;
    eventually("the bad file is reported", async || {
        Ok(world.agent.log().contains("broken.yaml").then_some(()))
    })
    .await?;
    assert_eq!(whoami(&world.pod).await?, world.viewer());
    Ok(())
}

#[tokio::test]
async fn a_rotated_token_is_used_from_then_on() -> Result<()> {
    let world = World::with_test_server().await?;
    let next = &world.node.accounts().agent_next_token;
    curl(&world.pod, PODS, &[]).await?;
    world.agent.rotate_token(next)?;
    let sent_next = async || {
        let mark = world.api.mark().await?;
        let answer = curl(&world.pod, PODS, &[]).await?;
        assert_eq!(answer.code, 200, "{answer:?}");
        let seen = world.api.seen_since(mark).await?;
        Ok(seen.iter().all(|seen| seen.bearer() == Some(next)).then_some(()))
    };
    eventually("the next token is sent", sent_next).await?;
    assert_eq!(sent_next().await?, Some(()), "and it stays");
    Ok(())
}

/// Invariant 2, with what the design's table says for `gateway-kubernetes-auth`.
#[tokio::test]
async fn a_request_carries_the_sessions_identity_and_no_other() -> Result<()> {
    let world = World::with_test_server().await?;
    let mark = world.api.mark().await?;
    let hostile = [
        "X-Remote-User: root",
        "X-Remote-Group: system:masters",
        "X-Remote-Extra-Scopes: all",
        "X-Forwarded-For: 198.51.100.7",
        "Forwarded: for=198.51.100.7",
        "Audit-ID: 00000000-0000-0000-0000-000000000000",
        "Connection: keep-alive, authorization, impersonate-user, impersonate-group",
        "X-Kept: yes",
    ];
    let arguments: Vec<&str> = hostile
        .iter()
        .flat_map(|header| ["--header", *header])
        .chain(["--http1.1"])
        .collect();
    assert_eq!(curl(&world.pod, PODS, &arguments).await?.code, 200);
    let seen = world.api.seen_since(mark).await?;
    let [request] = seen.as_slice() else {
        panic!("one request: {seen:?}")
    };
    let headers = request.headers.as_ref().context("the test server tells")?;
    let values = |name: &str| {
        headers
            .iter()
            .filter(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        values("authorization"),
        [format!("Bearer {}", world.node.accounts().agent.token)]
    );
    assert_eq!(values("impersonate-user"), [world.viewer()]);
    let mut groups = values("impersonate-group");
    groups.sort_unstable();
    assert_eq!(
        groups,
        [
            "system:authenticated",
            "system:serviceaccounts",
            "system:serviceaccounts:prod"
        ]
    );
    assert!(
        !request.holds("00000000-0000-0000-0000-000000000000"),
        "an audit id, if any, is ours: {request:?}"
    );
    assert_eq!(values("x-kept"), ["yes"]);
    for name in [
        "x-remote-user",
        "x-remote-group",
        "x-remote-extra-scopes",
        "forwarded",
        "x-forwarded-for",
    ] {
        assert_eq!(values(name), [""; 0], "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn connections_upstream_are_reused() -> Result<()> {
    let world = World::with_test_server().await?;
    let mark = world.api.mark().await?;
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(curl(&world.pod, PODS, &[]).await?.code, 200);
    }
    let mut connections: Vec<_> = world
        .api
        .seen_since(mark)
        .await?
        .iter()
        .map(|seen| seen.connection)
        .collect();
    connections.sort_unstable();
    connections.dedup();
    assert!(
        connections.len() <= 2,
        "20 requests in {:?} came on {} connections",
        start.elapsed(),
        connections.len()
    );
    Ok(())
}
