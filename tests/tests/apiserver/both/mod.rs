//! What the test program and a real kube-apiserver answer alike. In a box, whose server is the real one where
//! `KUBEBUILDER_ASSETS` names its directory: whatever is asserted here holds of both.

mod apply;
mod certificates;
mod credentials;
mod custom;
mod lists;
mod objects;
mod outage;
mod pods;
mod watches;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use understudy_tests::node::{ApiServer, Node, ServerOptions, binaries, network::ENDPOINT_V4};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const SESSIONS: &str = "/apis/understudy.dev/v1alpha1/namespaces/default/sessions";

/// A server in a box. The fields fall in this order.
struct Box {
    api: ApiServer,
    node: Node,
}

/// One answer.
#[derive(Debug)]
struct Answer {
    code: u16,
    body: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The object of an answer that is a success.
    #[track_caller]
    fn object(&self) -> Value {
        assert!((200..300).contains(&self.code), "{self:?}");
        self.json()
    }

    /// Refused so, with these words.
    #[track_caller]
    fn refused(&self, code: u16, reason: &str, message: &str) {
        let status = self.json();
        let found = (
            self.code,
            status["reason"].as_str().unwrap_or_default(),
            status["message"].as_str().unwrap_or_default(),
        );
        assert_eq!(found, (code, reason, message));
    }

    /// The events of a watch that has ended.
    fn events(&self) -> Vec<Value> {
        self.body
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Box {
    async fn new() -> Result<Self> {
        Self::with(&ServerOptions::default()).await
    }

    async fn with(options: &ServerOptions) -> Result<Self> {
        let node = Node::new()?;
        let api = ApiServer::start_with(&node, options).await?;
        Ok(Self { api, node })
    }

    /// With a definition of sessions: small, of the agent's own only the names.
    async fn with_sessions() -> Result<Self> {
        let it = Self::new().await?;
        it.api.define(&definition().to_string()).await?;
        Ok(it)
    }

    async fn ask(&self, method: &str, path: &str, content_type: &str, body: Option<&Value>) -> Result<Answer> {
        let token = self.node.accounts().admin_token.clone();
        self.ask_as(&token, method, path, content_type, body).await
    }

    async fn ask_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Answer> {
        let token = ["--header".to_owned(), format!("Authorization: Bearer {token}")];
        self.ask_with(&token, method, path, content_type, body).await
    }

    /// Shows what these arguments of curl say, and nothing else.
    async fn ask_with(
        &self,
        credentials: &[String],
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Answer> {
        let curl = binaries::on_path("curl").context("curl is not on PATH: apt-get install curl")?;
        let mut command = self
            .node
            .control_plane_command(curl)?
            .args(["--silent", "--show-error", "--max-time", "20", "--request", method])
            .args(["--write-out", "\n%{http_code}"])
            .arg("--cacert")
            .arg(self.node.cluster_ca_file())
            .args(credentials)
            .args(["--header", &format!("Content-Type: {content_type}")]);
        if let Some(body) = body {
            command = command.args(["--data-binary", "@-"]).stdin(body.to_string());
        }
        let output = command.arg(format!("https://{ENDPOINT_V4}{path}")).stdout().await?;
        let (body, code) = output.rsplit_once('\n').context("curl prints the code last")?;
        Ok(Answer {
            code: code.parse()?,
            body: body.to_owned(),
        })
    }

    async fn get(&self, path: &str) -> Result<Answer> {
        self.ask("GET", path, JSON, None).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.ask("POST", path, JSON, Some(body)).await
    }

    async fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        self.ask("PUT", path, JSON, Some(body)).await
    }

    async fn merge(&self, path: &str, body: &Value) -> Result<Answer> {
        self.ask("PATCH", path, MERGE, Some(body)).await
    }

    async fn apply(&self, path: &str, body: &Value) -> Result<Answer> {
        self.ask("PATCH", path, APPLY, Some(body)).await
    }

    async fn delete(&self, path: &str) -> Result<Answer> {
        self.ask("DELETE", path, JSON, None).await
    }
}

/// A session of this name and content.
fn session(name: &str, rest: &Value) -> Value {
    let mut session = json!({
        "apiVersion": "understudy.dev/v1alpha1", "kind": "Session", "metadata": {"name": name},
    });
    for (field, value) in rest.as_object().into_iter().flatten() {
        if field == "metadata" {
            for (field, value) in value.as_object().into_iter().flatten() {
                session["metadata"][field] = value.clone();
            }
        } else {
            session[field] = value.clone();
        }
    }
    session
}

fn definition() -> Value {
    let map_by = |key: &str, fields: Value| {
        json!({
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key],
            "items": {"type": "object", "required": [key], "properties": fields},
        })
    };
    let text = json!({"type": "string"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "sessions.understudy.dev"},
        "spec": {
            "group": "understudy.dev", "scope": "Namespaced",
            "names": {"plural": "sessions", "singular": "session", "kind": "Session"},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    {"name": "Method", "type": "string", "jsonPath": ".spec.authMethod"},
                    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                ],
                "schema": {"openAPIV3Schema": {
                    "type": "object", "required": ["spec"],
                    "properties": {
                        "spec": {
                            "type": "object", "required": ["authMethod"],
                            "properties": {
                                "authMethod": {"type": "string", "enum": ["a", "b"]},
                                "idleTimeout": {"type": "string", "default": "1h"},
                            },
                        },
                        "status": {
                            "type": "object",
                            "properties": {
                                "nodes": map_by("node", json!({"node": text, "pods": {"type": "integer"}, "last": text})),
                                "conditions": map_by("type", json!({"type": text, "status": text})),
                            },
                        },
                    },
                }},
            }],
        },
    })
}
