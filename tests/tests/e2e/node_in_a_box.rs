//! The box itself: what the other tests take for granted about it.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use understudy_tests::node::{
    ApiServer, Family, Node, PodSpec, Running, binaries,
    network::{API_SERVER, SERVICE_V4, SERVICE_V6, mapped},
};

use crate::world::dial;

/// Something that accepts wherever the API server would.
async fn stand_in(node: &Node) -> Result<Running> {
    let listen = API_SERVER
        .iter()
        .flat_map(|address| ["--listen".to_owned(), address.to_string()]);
    let relay = node
        .control_plane_command(binaries::probe()?)?
        .arg("relay")
        .args(listen)
        .args(["--target", "[::1]:9"]);
    let mut relay = relay.spawn()?;
    relay.stdout_until(|text| text.contains("relaying")).await?;
    Ok(relay)
}

#[tokio::test]
async fn a_pod_reaches_every_address_of_the_api_server_and_nothing_else() -> Result<()> {
    let node = Node::new()?;
    let _stand_in = stand_in(&node).await?;
    let own_network = node.pod(PodSpec::named("own-network"))?;
    let host_network = node.pod(PodSpec::named("host-network").host_network())?;
    for pod in [&own_network, &host_network] {
        let wanted = API_SERVER.iter().copied().chain([mapped(SERVICE_V4)]);
        for seen in dial(pod, wanted.map(|address| address.to_string())).await? {
            assert_eq!(seen["peer"], seen["dialled"], "{} {seen}", pod.name());
        }
        // Documentation addresses: nobody's, and without a route there is no way to them anyway.
        for seen in dial(pod, ["192.0.2.1:443", "[2001:db8::1]:443"].map(str::to_owned)).await? {
            assert_eq!(seen["peer"], Value::Null, "{} {seen}", pod.name());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_sees_what_kubelet_would_have_given_it() -> Result<()> {
    let node = Node::new()?;
    for (family, service) in [(Family::V4, SERVICE_V4), (Family::V6, SERVICE_V6)] {
        let pod = node.pod(PodSpec::named("shell").family(family))?;
        let shell = |script: &str| pod.command("sh").args(["-c", script]).stdout();
        let account = "/var/run/secrets/kubernetes.io/serviceaccount";
        assert_eq!(shell(&format!("cat {account}/token")).await?, pod.token());
        assert_eq!(shell(&format!("cat {account}/namespace")).await?, "default");
        assert_eq!(
            shell(&format!("cat {account}/ca.crt")).await?,
            node.cluster_ca().certificate()
        );
        assert_eq!(
            shell("echo $KUBERNETES_SERVICE_HOST").await?.trim(),
            service.ip().to_string()
        );
        assert_eq!(shell("echo ${KUBECONFIG-none}").await?.trim(), "none");
        assert_eq!(shell("ls -A ~").await?, "");
        assert!(
            shell("cat /etc/hosts")
                .await?
                .contains(&format!("{} kubernetes.default.svc", service.ip()))
        );
        let cgroup = shell("cat /proc/self/cgroup").await?;
        assert!(cgroup.contains(pod.cgroup_in_sessions().to_str().unwrap()), "{cgroup}");
    }
    Ok(())
}

#[tokio::test]
async fn a_box_leaves_nothing_behind() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod(PodSpec::named("shell"))?;
    let sleeping = pod.command("sh").args(["-c", "sleep 600 & sleep 600"]).spawn()?;
    let pid = sleeping.pid().expect("it runs");
    let (cgroup, directory) = (node.cgroup_root().to_owned(), node.directory().to_owned());
    let name = cgroup.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(Path::new("/run/netns").join(format!("{name}-node")).exists());
    drop((node, pod, sleeping));

    assert!(!cgroup.exists());
    assert!(!directory.exists());
    let namespaces = std::fs::read_dir("/run/netns")?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<Vec<_>>>()?;
    assert!(
        !namespaces
            .iter()
            .any(|left| left.to_string_lossy().starts_with(&format!("{name}-"))),
        "{namespaces:?}"
    );
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    Ok(())
}

#[tokio::test]
async fn a_pods_own_account_reaches_the_api_server_as_itself_and_may_do_nothing() -> Result<()> {
    let node = Node::new()?;
    let api = ApiServer::start(&node).await?;
    let pod = node.pod(PodSpec::named("shell"))?;
    let mark = api.mark().await?;
    let whoami = pod
        .kubectl("auth whoami -o jsonpath={.status.userInfo.username}")
        .await?
        .success()?;
    assert_eq!(whoami.stdout, node.accounts().powerless.username());
    let pods = pod.kubectl("get pods -n prod").await?;
    assert!(pods.stderr.contains("Forbidden"), "{pods:?}");
    let seen = api.seen_since(mark).await?;
    assert!(!seen.is_empty());
    for request in seen {
        assert_eq!(
            (request.user, request.impersonator),
            (node.accounts().powerless.username(), None)
        );
    }
    Ok(())
}
