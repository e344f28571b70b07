//! The admission policies of deploy/, as a real kube-apiserver carries them out: what is stored of pods with a session.
//! The test program has no admission, so these are asked for: `KUBEBUILDER_ASSETS=... cargo xtask test policies --
//! --ignored`.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use understudy_tests::node::{ApiServer, Node, ServerOptions};

const NAMESPACE: &str = "policies";
const GATE: &str = "understudy-gate";
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// A server with deploy/overlays/own-ca applied, and a namespace that admits restricted pods alone.
async fn server(node: &Node) -> Result<ApiServer> {
    let api = ApiServer::start_with(node, &ServerOptions::default().service_account_admission()).await?;
    ensure!(
        api.is_real(),
        "the test API server has no admission: set KUBEBUILDER_ASSETS to a directory with etcd and kube-apiserver"
    );
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    create(&api, &namespace).await?;
    create(&api, &account).await?;
    let overlay = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/overlays/own-ca");
    api.admin(["apply", "-k", overlay])?.stdout().await?;
    // The policies are in force once the server's own watch has brought them.
    let probe = pod("probe", &json!({}));
    for _ in 0..100 {
        if has_gate(&create_dry(&api, &probe).await?) {
            return Ok(api);
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    bail!("the policies aren't in force ten seconds after they were applied")
}

async fn create(api: &ApiServer, object: &Value) -> Result<Value> {
    let arguments = ["create", "-n", NAMESPACE, "-o", "json", "-f", "-"];
    let stored = api.admin(arguments)?.stdin(object.to_string()).stdout().await?;
    Ok(serde_json::from_str(&stored)?)
}

/// What would be stored.
async fn create_dry(api: &ApiServer, object: &Value) -> Result<Value> {
    let arguments = ["create", "--dry-run=server", "-n", NAMESPACE, "-o", "json", "-f", "-"];
    let stored = api.admin(arguments)?.stdin(object.to_string()).stdout().await?;
    Ok(serde_json::from_str(&stored)?)
}

/// A restricted pod with a session, and more in its spec.
fn pod(name: &str, spec: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"understudy.dev/session": "s"}},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container("main")],
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][field] = value.clone();
    }
    pod
}

fn container(name: &str) -> Value {
    let confined = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    json!({"name": name, "image": "x", "securityContext": confined})
}

fn init_containers(pod: &Value) -> Vec<&str> {
    let containers = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    containers.filter_map(|container| container["name"].as_str()).collect()
}

fn annotations(pod: &Value) -> Value {
    pod["metadata"]["annotations"].clone()
}

fn has_gate(pod: &Value) -> bool {
    init_containers(pod).contains(&GATE)
}

/// The `ConfigMaps` in projected volumes, volume by volume.
fn config_maps(pod: &Value) -> Vec<Vec<&str>> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes
        .filter_map(|volume| volume["projected"]["sources"].as_array())
        .map(|sources| {
            let maps = sources.iter().filter_map(|source| source["configMap"]["name"].as_str());
            // Some distributions' servers add one of their own.
            maps.filter(|name| !name.starts_with("openshift")).collect()
        })
        .collect()
}

#[tokio::test]
#[ignore = "asks a real kube-apiserver: set KUBEBUILDER_ASSETS, and run it with --ignored"]
async fn pods_with_a_session_get_the_gate_and_the_ca() -> Result<()> {
    let node = Node::new()?;
    let api = server(&node).await?;

    let plain = create(&api, &pod("plain", &json!({}))).await?;
    assert_eq!(init_containers(&plain), [GATE]);
    assert_eq!(config_maps(&plain), [["understudy-ca"]]);
    let gate = &plain["spec"]["initContainers"][0];
    assert_eq!(gate["command"], json!(["/understudy", "gate"]));
    assert_eq!(gate["image"], "understudy:0.1.0");
    assert_eq!(annotations(&plain), json!({DEFAULT_CONTAINER: "main"}));

    let mut without = pod("without", &json!({}));
    without["metadata"]["labels"] = json!({});
    let without = create(&api, &without).await?;
    assert_eq!(init_containers(&without), Vec::<&str>::new());
    assert_eq!(config_maps(&without), [["kube-root-ca.crt"]]);
    assert_eq!(annotations(&without), Value::Null);

    let no_volumes = pod("no-volumes", &json!({"automountServiceAccountToken": false}));
    let no_volumes = create(&api, &no_volumes).await?;
    assert_eq!(init_containers(&no_volumes), [GATE]);
    assert_eq!(config_maps(&no_volumes), Vec::<Vec<&str>>::new());
    Ok(())
}

#[tokio::test]
#[ignore = "asks a real kube-apiserver: set KUBEBUILDER_ASSETS, and run it with --ignored"]
async fn what_a_pod_has_already_stays_as_it_is() -> Result<()> {
    let node = Node::new()?;
    let api = server(&node).await?;

    let root = |path| json!({"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": path}]}});
    let sources = json!([{"secret": {"name": "q"}}, root("a"), {"configMap": {"name": "other"}}, root("b")]);
    let spec = json!({
        "initContainers": [container("first"), container("second")],
        "volumes": [{"name": "empty", "emptyDir": {}}, {"name": "two", "projected": {"sources": sources}}],
    });
    let full = create(&api, &pod("full", &spec)).await?;
    assert_eq!(init_containers(&full), [GATE, "first", "second"]);
    assert_eq!(
        config_maps(&full),
        [vec!["understudy-ca", "other", "understudy-ca"], vec!["understudy-ca"]]
    );

    let gated = pod(
        "gated",
        &json!({"initContainers": [container("first"), container(GATE)]}),
    );
    assert_eq!(init_containers(&create(&api, &gated).await?), ["first", GATE]);
    Ok(())
}

#[tokio::test]
#[ignore = "asks a real kube-apiserver: set KUBEBUILDER_ASSETS, and run it with --ignored"]
async fn kubectl_is_told_the_container_where_it_would_not_have_said_which_it_took() -> Result<()> {
    let node = Node::new()?;
    let api = server(&node).await?;

    let mut noted = pod("noted", &json!({}));
    noted["metadata"]["annotations"] = json!({"a": "b"});
    let noted = create(&api, &noted).await?;
    assert_eq!(annotations(&noted), json!({"a": "b", DEFAULT_CONTAINER: "main"}));

    let mut chosen = pod("chosen", &json!({}));
    chosen["metadata"]["annotations"] = json!({DEFAULT_CONTAINER: "other"});
    let chosen = create(&api, &chosen).await?;
    assert_eq!(annotations(&chosen), json!({DEFAULT_CONTAINER: "other"}));

    let two = pod("two", &json!({"containers": [container("main"), container("side")]}));
    assert_eq!(annotations(&create(&api, &two).await?), Value::Null);
    Ok(())
}
