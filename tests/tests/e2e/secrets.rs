//! Invariant 3: secrets go where they must, and nowhere else.

use std::fs;

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use understudy_tests::node::{
    AgentOptions, ApiServer, Node, PodSpec, Session, TestServerOptions, Trust, binaries, eventually,
};

use crate::world::{World, becomes, curl, curl_raw};

/// At trace level, after traffic of every kind, the good and the bad.
#[tokio::test]
async fn no_secret_is_in_any_log() -> Result<()> {
    let node = Node::new()?;
    let api = ApiServer::start(&node).await?;
    let options = AgentOptions::default().trust(Trust::OwnCa).log_level("trace");
    let mut world = World::around(node, api, PodSpec::named("shell"), options).await?;
    let accounts = world.node.accounts().clone();
    let token_session = Session::named("support", "token")
        .with_token_of(&accounts.viewer)
        .for_pod(&world.untagged);
    world.node.sessions().write(&token_session)?;
    world.agent.publish_ca([&world.pod, &world.untagged])?;
    becomes(&world.untagged, &world.viewer()).await?;
    let pods = "/api/v1/namespaces/prod/pods";
    for pod in [&world.pod, &world.untagged] {
        for arguments in [
            &["--http1.1"][..],
            &["--http2"],
            &["--header", "Impersonate-User: admin"],
        ] {
            curl(pod, pods, arguments).await?;
        }
        pod.kubectl("exec -n prod web-0 -- true").await?;
        let bearer = format!(
            "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.{}",
            STANDARD.encode(pod.token())
        );
        curl_raw(pod, pods, &["--http1.1", "--header", &bearer]).await?;
    }
    // A bad file that holds a secret, and a token that the API server refuses.
    let broken = format!(
        "apiVersion: understudy.dev/v1alpha1\nkind: Session\nspec: {{token: {}, oops\n",
        accounts.viewer.token
    );
    world.node.sessions().write_text("broken.yaml", &broken)?;
    eventually("the bad file is reported", async || {
        Ok(world.agent.log().contains("broken.yaml").then_some(()))
    })
    .await?;
    let misplaced = format!("authMethod: {{token: {}}}", accounts.viewer.token);
    world.node.sessions().write_text("misplaced.yaml", &misplaced)?;
    eventually("the bad file is reported", async || {
        Ok(world.agent.log().contains("misplaced.yaml").then_some(()))
    })
    .await?;
    world.agent.rotate_token(&accounts.agent_next_token)?;
    curl(&world.pod, pods, &[]).await?;
    world.agent.kill9().await?;

    let files = world.node.directory().join("agent");
    for name in ["log", "audit.jsonl"] {
        let text = fs::read_to_string(files.join(name))?;
        assert!(!text.is_empty(), "{name} was written");
        for secret in accounts.secrets() {
            assert!(
                !text.contains(secret),
                "{name} has {secret}: {}",
                line_with(&text, secret)
            );
            let encoded = STANDARD.encode(secret);
            assert!(
                !text.contains(encoded.trim_end_matches('=')),
                "{name} has {secret} in base64"
            );
            // As the bytes of a buffer that was printed as a list of numbers.
            let numbers = secret
                .bytes()
                .map(|byte| byte.to_string())
                .collect::<Vec<_>>()
                .join(", ");
            assert!(!text.contains(&numbers), "{name} has the bytes of {secret}");
        }
        assert!(!text.contains("PRIVATE KEY"), "{}", line_with(&text, "PRIVATE KEY"));
    }
    Ok(())
}

fn line_with<'a>(text: &'a str, word: &str) -> &'a str {
    text.lines().find(|line| line.contains(word)).unwrap_or_default()
}

/// The API server's certificate is verified, or nothing is sent.
#[tokio::test]
async fn the_agents_token_goes_to_no_server_that_the_ca_does_not_vouch_for() -> Result<()> {
    let node = Node::new()?;
    let api = ApiServer::start_test_program(&node, &TestServerOptions::default()).await?;
    // The agent is told of another CA than the one that signed the API server's certificate.
    let other = understudy_tests::node::CertificateAuthority::new("another")?;
    let file = node.directory().join("another-ca.crt");
    fs::write(&file, other.certificate())?;
    let world = World::around(
        node,
        api,
        PodSpec::named("shell"),
        AgentOptions::default().ca_file(&file),
    )
    .await?;
    let mark = world.api.mark().await?;
    let answer = curl(&world.pod, "/api/v1/namespaces/prod/pods", &[]).await?;
    assert!(answer.code >= 500, "{answer:?}");
    answer.assert_status(answer.code, answer.json()?["reason"].as_str().unwrap_or_default());
    assert_eq!(world.api.seen_since(mark).await?.len(), 0);
    Ok(())
}

/// The probe is what the other tests rest on: it must refuse a certificate that the pod's ca.crt doesn't vouch for.
#[tokio::test]
async fn clients_in_the_tests_verify_the_agents_certificate() -> Result<()> {
    // Nobody has told the pod of it.
    let world = World::with_own_ca().await?;
    let output = world
        .pod
        .command(binaries::probe()?)
        .args(["read", "/version"])
        .output()
        .await?;
    assert!(
        !output.succeeded() && output.stderr.contains("UnknownIssuer"),
        "{output:?}"
    );
    let output = curl_raw(&world.pod, "/version", &[]).await?;
    assert_eq!(
        output.code,
        Some(60),
        "curl's code for a certificate that it can't verify: {output:?}"
    );
    Ok(())
}

/// Invariant 3: a crash writes no memory, and so no token, to a file.
#[tokio::test]
async fn the_agent_leaves_no_core() -> Result<()> {
    let world = World::with_test_server().await?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", world.agent.pid()?))?;
    let core: Vec<&str> = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .context("the limit on core files is listed")?
        .split_whitespace()
        .collect();
    assert_eq!(core, ["0", "0", "bytes"], "soft and hard");
    Ok(())
}
