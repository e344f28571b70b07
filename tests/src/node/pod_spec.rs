//! What a pod is asked to be: on the node, and as an object of the cluster.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Family, Layout, Qos};

/// The label by which a pod names its session.
pub const SESSION_LABEL: &str = "understudy.dev/session";
/// The name of the box's node.
pub const NODE_NAME: &str = "box";

/// What a pod is asked to be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) node: String,
    pub(crate) uid: Option<Uuid>,
    pub(crate) qos: Qos,
    pub(crate) layout: Layout,
    pub(crate) family: Family,
    pub(crate) host_network: bool,
    pub(crate) token: Option<String>,
    pub(crate) account: Option<String>,
}

impl PodSpec {
    /// A pod of that name in the namespace `default`, with a network of its own, IPv4 first, under the powerless
    /// account.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            labels: BTreeMap::new(),
            node: NODE_NAME.to_owned(),
            uid: None,
            qos: Qos::default(),
            layout: Layout::default(),
            family: Family::V4,
            host_network: false,
            token: None,
            account: None,
        }
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// A label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Names a session of its namespace.
    #[must_use]
    pub fn session(self, name: &str) -> Self {
        self.label(SESSION_LABEL, name)
    }

    /// Runs on the node of that name, which is the box's own where it isn't said.
    #[must_use]
    pub fn on_node(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        self
    }

    /// The UID that it has, as the API server gave it; without one it gets one by itself.
    #[must_use]
    pub fn uid(mut self, uid: Uuid) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Its quality of service.
    #[must_use]
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// Who lays out its cgroups.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Which ClusterIP its environment and hosts file speak of.
    #[must_use]
    pub fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Shares the node's network namespace, as `hostNetwork: true` does.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// Holds this token in place of the powerless account's.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Runs under that service account of its namespace, as its object says; a token of its own comes by
    /// [`PodSpec::token`].
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        self.account = Some(account.to_owned());
        self
    }

    /// The UID that the API server gave it, or that was said.
    #[must_use]
    pub fn given_uid(&self) -> Option<Uuid> {
        self.uid
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object, as it is sent to the API server.
    #[must_use]
    pub fn to_object(&self) -> Value {
        let resources = match self.qos {
            Qos::Guaranteed => json!({"limits": {"cpu": "10m", "memory": "16Mi"}}),
            Qos::Burstable => json!({"requests": {"cpu": "10m"}}),
            Qos::BestEffort => json!({}),
        };
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": self.namespace, "name": self.name, "labels": self.labels},
            "spec": {
                "nodeName": self.node,
                "hostNetwork": self.host_network,
                "containers": [{"name": "main", "image": "registry.example/pod:1", "resources": resources}],
            },
        });
        if let Some(account) = &self.account {
            object["spec"]["serviceAccountName"] = json!(account);
        }
        object
    }
}
