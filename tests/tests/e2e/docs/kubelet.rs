//! What a cluster does about objects beside keeping them, as far as pages wait for it, played: the controller of the
//! `DaemonSet`s, the scheduler and the kubelet. The agent that a `DaemonSet` asks for is a real one, with the rights and the
//! token of the service account that the manifests make; a pod that carries a session is a real sandbox on the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use understudy_tests::node::{Agent, AgentOptions, ApiServer, Node, Pod, PodSpec, Qos, SESSION_LABEL, binaries};

/// Where the pages install the agent.
const NAMESPACE: &str = "understudy-system";
/// The pod of the one node's agent.
pub(super) const AGENT_POD: &str = "understudy-7k2xq";
const WATCHED: &str = "daemonsets,pods,clusterroles,clusterrolebindings,roles,rolebindings";

/// The fields fall in this order.
pub(super) struct Kubelet {
    agent: Option<Agent>,
    /// By namespace and name.
    pods: BTreeMap<String, Pod>,
    api: ApiServer,
    node: Node,
    /// What the server's rules said to begin with.
    rules: Value,
    options: AgentOptions,
}

impl Kubelet {
    pub(super) fn new(node: Node, api: ApiServer, options: AgentOptions) -> Result<Self> {
        Ok(Self {
            agent: None,
            pods: BTreeMap::new(),
            rules: api.rules()?,
            api,
            node,
            options,
        })
    }

    pub(super) fn api(&self) -> &ApiServer {
        &self.api
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// The pod that carries the pages' session.
    pub(super) fn shell(&self) -> Option<&Pod> {
        self.pods.get("support/shell")
    }

    /// Does what is to be done now.
    pub(super) async fn look(&mut self) -> Result<()> {
        let text = self.api.admin(["get", WATCHED, "-A", "-o", "json"])?.stdout().await?;
        let list: Value = serde_json::from_str(&text)?;
        let items = list["items"].as_array().context("items")?;
        let of_kind = |kind: &'static str| items.iter().filter(move |item| item["kind"] == kind);
        let rights: Vec<Value> = items
            .iter()
            .filter(|item| item["rules"].is_array() || item["roleRef"].is_object())
            .cloned()
            .collect();
        self.api.enforce(&rights, &self.rules)?;
        let sets: Vec<&Value> = of_kind("DaemonSet").collect();
        self.keep_agent(&sets).await?;
        for set in sets {
            self.report(set).await?;
        }
        let pods: Vec<&Value> = of_kind("Pod").collect();
        self.keep_pods(&pods).await
    }

    /// An agent runs where its `DaemonSet` is there, and is taken off where that to uninstall it is.
    async fn keep_agent(&mut self, sets: &[&Value]) -> Result<()> {
        let is_there = |name: &str| sets.iter().any(|set| set["metadata"]["name"] == name);
        if is_there("understudy") && self.agent.is_none() {
            let token = self.api.account_token(NAMESPACE, "understudy", &[], None).await?;
            let options = self
                .options
                .clone()
                .token(&token)
                .env("POD_NAMESPACE", NAMESPACE)
                .env("POD_NAME", AGENT_POD);
            self.agent = Some(Agent::start(&self.node, options).await?);
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": NAMESPACE, "name": AGENT_POD, "labels": {
                    "app.kubernetes.io/name": "understudy", "app.kubernetes.io/component": "agent",
                }},
                "spec": {"nodeName": "box", "containers": [{"name": "agent", "image": "understudy:0.1.0"}]},
            });
            self.api.create(&pod).await?;
            self.runs(NAMESPACE, AGENT_POD, "agent").await?;
        } else if !is_there("understudy")
            && let Some(mut agent) = self.agent.take()
        {
            agent.terminate()?;
            agent.ended(Duration::from_secs(30)).await?;
            self.api.delete("pods", NAMESPACE, AGENT_POD).await?;
        }
        if is_there("understudy-uninstall") && self.agent.is_none() && self.node.run_dir().exists() {
            Agent::uninstall(&self.node)?.output().await?.success()?;
        }
        Ok(())
    }

    /// All of a `DaemonSet` is up to date and ready: it has one node.
    async fn report(&self, set: &Value) -> Result<()> {
        let mut status = json!({"observedGeneration": set["metadata"]["generation"], "numberMisscheduled": 0});
        for count in [
            "currentNumberScheduled",
            "desiredNumberScheduled",
            "numberReady",
            "numberAvailable",
            "updatedNumberScheduled",
        ] {
            status[count] = json!(1);
        }
        if set["status"] == status {
            return Ok(());
        }
        let of = |field: &str| set["metadata"][field].as_str().unwrap_or_default();
        let patch = json!({"status": status});
        let (namespace, name) = (of("namespace"), of("name"));
        self.api
            .patch("daemonsets.apps", namespace, name, Some("status"), &patch)
            .await
            .map(drop)
    }

    /// Pods with a session get a node and run; those whose object is gone don't.
    async fn keep_pods(&mut self, objects: &[&Value]) -> Result<()> {
        let mut named = BTreeSet::new();
        for object in objects {
            let metadata = &object["metadata"];
            let of = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
            let Some(session) = metadata["labels"][SESSION_LABEL].as_str() else {
                continue;
            };
            let (namespace, name) = (of("namespace"), of("name"));
            let key = format!("{namespace}/{name}");
            if metadata["deletionTimestamp"].is_string() {
                self.pods.remove(&key);
                self.api.delete("pods", &namespace, &name).await?;
                continue;
            }
            if !self.pods.contains_key(&key) {
                let node = json!({"spec": {"nodeName": "box"}});
                self.api.patch("pods", &namespace, &name, None, &node).await?;
                let spec = PodSpec::named(&name)
                    .namespace(&namespace)
                    .session(session)
                    .uid(of("uid").parse()?);
                let qos = match object["status"]["qosClass"].as_str() {
                    Some("Guaranteed") => Qos::Guaranteed,
                    Some("Burstable") => Qos::Burstable,
                    _ => Qos::BestEffort,
                };
                let pod = self.node.pod(spec.qos(qos))?;
                // As the init container that the admission policy adds: what follows it is intercepted.
                pod.command(binaries::understudy()?).arg("gate").stdout().await?;
                let container = object["spec"]["containers"][0]["name"].as_str().unwrap_or_default();
                self.runs(&namespace, &name, container).await?;
                self.pods.insert(key.clone(), pod);
            }
            named.insert(key);
        }
        self.pods.retain(|key, _| named.contains(key));
        Ok(())
    }

    /// What a kubelet says of a pod that runs and is ready.
    async fn runs(&self, namespace: &str, name: &str, container: &str) -> Result<()> {
        let status = json!({"status": {
            "phase": "Running",
            "podIP": "10.244.0.10",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": container, "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}},
            }],
        }});
        self.api
            .patch("pods", namespace, name, Some("status"), &status)
            .await
            .map(drop)
    }

    /// What the agent's container has written.
    pub(super) fn logs(&self) -> String {
        let files = self.agent.iter().flat_map(Agent::files);
        files.map(|file| fs::read_to_string(file).unwrap_or_default()).collect()
    }
}
