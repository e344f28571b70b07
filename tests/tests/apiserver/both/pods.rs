//! Pods of the cluster, played: the object first, its cgroup and sandbox later, one or a thousand.

use std::{fs, time::Instant};

use anyhow::Result;
use rstest::rstest;
use serde_json::json;
use understudy_tests::node::{Layout, Node, PodSpec, Qos};

use super::Box;

#[rstest]
#[case(Layout::Cgroupfs, Qos::Burstable)]
#[case(Layout::Systemd, Qos::Guaranteed)]
#[tokio::test]
async fn the_object_comes_first_and_the_cgroup_later(#[case] layout: Layout, #[case] qos: Qos) -> Result<()> {
    let it = Box::new().await?;
    let spec = PodSpec::named("shell").session("alice").layout(layout).qos(qos);
    let spec = it.api.create_pod(spec).await?;
    let uid = spec.given_uid().unwrap();
    let object = it.api.read("pods", "default", "shell").await?.unwrap();
    assert_eq!(object["metadata"]["uid"], uid.to_string());
    assert_eq!(object["metadata"]["labels"]["understudy.dev/session"], "alice");
    assert_eq!(object["spec"]["nodeName"], "box");
    assert_eq!(
        (&object["status"]["phase"], &object["status"]["qosClass"]),
        (&json!("Pending"), &json!(qos.class()))
    );

    let cgroup = it.node.cgroup_root().join(layout.pod(uid, qos));
    let prepared = it.node.prepare_pod(spec.clone())?;
    assert!(!cgroup.exists());
    let pod = prepared.appear()?;
    assert!(cgroup.is_dir(), "{}", cgroup.display());
    let whoami = pod.command("cat").arg("/proc/self/cgroup").stdout().await?;
    let line = whoami.lines().find(|line| line.starts_with("0::")).unwrap();
    assert!(
        line.contains(&format!("{}/", pod.cgroup_in_sessions().display())),
        "{line}"
    );
    let before = line.to_owned();
    pod.restart_container()?;
    let after = pod.command("cat").arg("/proc/self/cgroup").stdout().await?;
    assert!(!after.contains(&before), "a new container has a cgroup of its own");

    it.api.set_pod_status(&spec, &json!({"phase": "Running"})).await?;
    it.api.label_pod(&spec, "understudy.dev/session", None).await?;
    let object = it.api.read("pods", "default", "shell").await?.unwrap();
    assert_eq!(object["status"]["phase"], "Running");
    assert!(object["metadata"]["labels"]["understudy.dev/session"].is_null());

    // A kubelet has its time to end a pod, unless it is told that there is none.
    let path = "/api/v1/namespaces/default/pods/shell";
    let ending = it.delete(path).await?.object();
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(ending["metadata"]["deletionTimestamp"].is_string());
    it.get(path).await?.object();
    it.api.delete_pod(&spec).await?;
    it.get(path).await?.refused(404, "NotFound", "pods \"shell\" not found");
    Ok(())
}

#[tokio::test]
async fn objects_of_many_pods_are_made_quickly() -> Result<()> {
    let it = Box::new().await?;
    let begun = Instant::now();
    let pods: Vec<_> = (0..250)
        .map(|index| PodSpec::named(&format!("pod-{index}")).session("alice"))
        .collect();
    let pods = it.api.create_pods(pods).await?;
    println!("250 pods' objects: {:?}", begun.elapsed());
    let list = it
        .get("/api/v1/pods?fieldSelector=spec.nodeName%3Dbox&labelSelector=understudy.dev%2Fsession")
        .await?;
    let items = list.object()["items"].as_array().cloned().unwrap();
    assert_eq!(items.len(), 250);
    for pod in &pods {
        let uid = pod.given_uid().unwrap().to_string();
        let object = items
            .iter()
            .find(|item| item["metadata"]["name"] == pod.name())
            .unwrap();
        assert_eq!(object["metadata"]["uid"], uid);
    }
    Ok(())
}

#[tokio::test]
async fn a_thousand_light_pods_are_there_within_seconds() -> Result<()> {
    const PODS: usize = 1000;
    let node = Node::new()?;
    let begun = Instant::now();
    let mut pods = node.light_pods((0..PODS).map(|index| PodSpec::named(&format!("light-{index}"))))?;
    let prepared = begun.elapsed();
    let root = node.cgroup_root().to_owned();
    assert!(!root.join("kubepods").exists());
    let before = pods.appear()?;
    println!(
        "{PODS} light pods: prepared in {prepared:?}, appeared in {:?}",
        before.elapsed()
    );

    let mut namespaces = std::collections::HashSet::new();
    for pod in pods.pods() {
        let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", pod.pid()))?;
        let path = pod.cgroup_in_sessions().display().to_string();
        assert!(cgroup.contains(&path), "{cgroup} is not in {path}");
        namespaces.insert(fs::read_link(format!("/proc/{}/ns/net", pod.pid()))?);
    }
    assert_eq!(namespaces.len(), PODS, "each has a network of its own");
    assert!(!namespaces.contains(&fs::read_link("/proc/self/ns/net")?));
    let last = pods.pods().last().unwrap();
    let links = pods
        .command(last, "ip")
        .args(["-brief", "address", "show", "lo"])
        .stdout()
        .await?;
    assert!(links.contains("127.0.0.1/8"), "{links}");
    let begun = Instant::now();
    drop(pods);
    println!("taken down in {:?}", begun.elapsed());
    let left = fs::read_dir(root.join("kubepods/burstable"))?.filter(|entry| {
        entry
            .as_ref()
            .is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    });
    assert_eq!(left.count(), 0);
    Ok(())
}
