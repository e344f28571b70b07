//! The audit log as an operator sets it up: what its options say, seen in what an agent that was started with them writes.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use understudy_tests::node::{AgentOptions, TestServerOptions, eventually};

use crate::world::{World, ask_many, curl};

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: RequestResponse
  resources: [{group: "", resources: [configmaps]}]
- level: None
  nonResourceURLs: ["/version"]
- level: Metadata
"#;
const CONFIG_MAPS: &str = "/api/v1/namespaces/prod/configmaps";

/// The audit events in a file, among whatever else is there.
fn events(text: &str) -> Vec<Value> {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["kind"] == "Event").collect()
}

/// The event of the request of this URI, when it has ended.
async fn ended(world: &World, uri: &str) -> Result<Value> {
    eventually(&format!("the event of {uri}"), async || {
        let is_it = |event: &Value| event["requestURI"] == uri && event["stage"] == "ResponseComplete";
        Ok(events(&world.agent.log()).into_iter().find(is_it))
    })
    .await
}

/// Creates a config map by way of the session.
async fn create(world: &World, uri: &str, data: &Value) -> Result<u16> {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "made-"}, "data": data});
    let arguments = [
        "--header",
        "Content-Type: application/json",
        "--data",
        &object.to_string(),
    ];
    Ok(curl(&world.pod, uri, &arguments).await?.code)
}

/// The default sink is standard output; in the box it goes where the agent's own log goes.
#[tokio::test]
async fn standard_output_has_what_the_policy_and_the_masks_leave() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let policy = directory.path().join("policy.yaml");
    fs::write(&policy, POLICY)?;
    let options = AgentOptions::default()
        .log_level("info")
        .audit_log("-".into())
        .args(["--audit-policy", &policy.display().to_string()])
        .args(["--audit-mask", "configmaps:data.password", "--audit-max-body", "2048"]);
    let world = World::with(&TestServerOptions::default(), options).await?;

    let masked = format!("{CONFIG_MAPS}?fieldManager=masked");
    let data = json!({"password": "hunter2", "colour": "green"});
    assert_eq!(create(&world, &masked, &data).await?, 201);
    let event = ended(&world, &masked).await?;
    assert_eq!(event["level"], "RequestResponse");
    for body in ["requestObject", "responseObject"] {
        assert_eq!(
            event[body]["data"],
            json!({"password": "***", "colour": "green"}),
            "{event}"
        );
    }
    assert_eq!(event["impersonatedUser"]["username"], world.viewer().as_str());

    let large = format!("{CONFIG_MAPS}?fieldManager=large");
    assert_eq!(
        create(&world, &large, &json!({"filling": "x".repeat(3000)})).await?,
        201
    );
    let event = ended(&world, &large).await?;
    assert_eq!(event["requestObject"], Value::Null, "{event}");
    assert_eq!(
        event["annotations"]["understudy.dev/request-object"], "larger than --audit-max-body",
        "{event}"
    );

    // What is behind it in the log says that nothing else comes for it.
    assert_eq!(curl(&world.pod, "/version", &[]).await?.code, 200);
    let after = "/api/v1/namespaces/prod/pods?limit=1";
    assert_eq!(curl(&world.pod, after, &[]).await?.code, 200);
    assert_eq!(ended(&world, after).await?["level"], "Metadata");
    let log = world.agent.log();
    assert!(
        !events(&log).iter().any(|event| event["requestURI"] == "/version"),
        "{log}"
    );
    assert!(!log.contains("hunter2"));
    let omitted = world
        .agent
        .metrics()
        .await?
        .sum("understudy_audit_events_omitted_total", &[]);
    assert!((0.5..1.5).contains(&omitted), "{omitted}");
    Ok(())
}

/// The log and those that were rotated away, the oldest first.
fn files(log: &Path) -> Result<Vec<PathBuf>> {
    let directory = log.parent().context("a directory")?;
    let entries: Result<Vec<PathBuf>> = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect();
    let mut files = entries?;
    // "audit-…" is before "audit.".
    files.sort();
    Ok(files)
}

#[tokio::test]
async fn a_file_is_rotated_at_its_size_and_opened_anew_by_sighup() -> Result<()> {
    const REQUESTS: usize = 3000;
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("audit.log");
    let options = AgentOptions::default()
        .log_level("info")
        .audit_log(log.clone())
        .args(["--audit-log-maxsize", "1"]);
    let world = World::with(&TestServerOptions::default(), options).await?;
    assert_eq!(ask_many(&world.pod, REQUESTS).await?.get("200"), Some(&REQUESTS));
    let written = async || -> Result<Vec<Vec<Value>>> {
        let texts = files(&log)?.into_iter().map(fs::read_to_string);
        texts.map(|text| Ok(events(&text?))).collect()
    };
    let parts = eventually("all events", async || {
        let parts = written().await?;
        Ok((parts.iter().map(Vec::len).sum::<usize>() >= REQUESTS).then_some(parts))
    })
    .await?;
    // Each over 512 bytes, so that there are more than one MiB of them.
    assert!(parts.len() >= 2, "{:?}", files(&log)?);
    let uris: BTreeSet<String> = parts
        .concat()
        .iter()
        .map(|event| event["requestURI"].to_string())
        .collect();
    assert_eq!(
        (uris.len(), parts.concat().len()),
        (REQUESTS, REQUESTS),
        "each of them once"
    );
    for old in files(&log)?.iter().filter(|file| **file != log) {
        let size = fs::metadata(old)?.len();
        assert!((1 << 20..2 << 20).contains(&size), "{}: {size} bytes", old.display());
    }

    // As logrotate does it, beside.
    let renamed = directory.path().join("audit.log.1");
    fs::rename(&log, &renamed)?;
    kill(world.agent.pid()?, Signal::SIGHUP)?;
    curl(&world.pod, "/version?n=last", &[]).await?;
    eventually("the event is in a file by the old name", async || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        Ok(text.contains("/version?n=last").then_some(()))
    })
    .await?;
    assert!(!fs::read_to_string(&renamed)?.contains("n=last"));
    Ok(())
}
