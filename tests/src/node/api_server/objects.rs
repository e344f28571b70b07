//! The cluster's objects in a test's hands: made, read, changed and deleted by the administrator's kubectl, beside the
//! API server and past the agent.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use super::ApiServer;
use crate::{
    apiserver::TokenKey,
    node::{PodSpec, Session, binaries, eventually},
};

/// How many objects one kubectl is given: it sends them one after the other, and no faster than its own limit.
const BATCH: usize = 125;

impl ApiServer {
    /// Creates an object, and returns it as stored.
    ///
    /// # Errors
    /// It is refused; the error holds the server's words.
    pub async fn create(&self, object: &Value) -> Result<Value> {
        self.send(&["create", "-f", "-"], object).await
    }

    /// Applies an object, server-side, whoever owned its fields before.
    ///
    /// # Errors
    /// It is refused; the error holds the server's words.
    pub async fn apply(&self, object: &Value) -> Result<Value> {
        self.send(&["apply", "--server-side", "--force-conflicts", "-f", "-"], object)
            .await
    }

    /// Applies a manifest of any number of documents.
    ///
    /// # Errors
    /// One is refused.
    pub async fn apply_text(&self, manifest: &str) -> Result<()> {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.admin(arguments)?.stdin(manifest).stdout().await.map(drop)
    }

    /// Reads an object; `None` where it isn't there. An empty namespace is for what has none.
    ///
    /// # Errors
    /// The server can't be asked.
    pub async fn read(&self, resource: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let arguments = ["get", resource, name, "--ignore-not-found", "--output=json"];
        let text = self.admin(arguments)?.args(of(namespace)).stdout().await?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&text)?))
    }

    /// Merges `patch` into an object, through a subresource where one is named.
    ///
    /// # Errors
    /// It isn't there, or the server refuses.
    pub async fn patch(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        patch: &Value,
    ) -> Result<Value> {
        let mut command = self
            .admin(["patch", resource, name, "--type=merge", "--output=json"])?
            .args(of(namespace))
            .arg(format!("--patch={patch}"));
        if let Some(subresource) = subresource {
            command = command.arg(format!("--subresource={subresource}"));
        }
        Ok(serde_json::from_str(&command.stdout().await?)?)
    }

    /// Deletes an object at once, without waiting for it to be gone. That it isn't there is no error.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn delete(&self, resource: &str, namespace: &str, name: &str) -> Result<()> {
        let arguments = [
            "delete",
            resource,
            name,
            "--ignore-not-found",
            "--wait=false",
            "--grace-period=0",
            "--force",
        ];
        let command = self.admin(arguments)?.args(of(namespace));
        command.stdout().await.map(drop)
    }

    /// Makes a namespace, where it isn't there yet.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.apply(&namespace).await.map(drop)
    }

    /// Defines the agent's own resources, as `understudy crd` prints them, and waits until they are served.
    ///
    /// # Errors
    /// The agent isn't built or has no definitions, or they are refused.
    pub async fn define_sessions(&self) -> Result<()> {
        let printed = self.node.command(binaries::understudy()?)?.arg("crd").stdout().await;
        let manifest = printed.context("asking the agent for its resource definitions")?;
        self.define(&manifest).await
    }

    /// Applies resource definitions, and waits until they are served.
    ///
    /// # Errors
    /// They are refused, or aren't served within 30 seconds.
    pub async fn define(&self, manifest: &str) -> Result<()> {
        self.apply_text(manifest).await?;
        let waiting = ["wait", "--for=condition=Established", "--timeout=30s", "-f", "-"];
        self.admin(waiting)?.stdin(manifest).stdout().await?;
        // Discovery follows a moment later, and with it what kubectl can be asked for.
        eventually("sessions are served", async || {
            let listed = self.admin(["get", "sessions.understudy.dev", "-A"])?.output().await?;
            Ok(listed.succeeded().then_some(()))
        })
        .await
    }

    /// Creates or changes a session's resource; its namespace is made where it isn't there.
    ///
    /// # Errors
    /// It is refused.
    pub async fn write_session(&self, session: &Session) -> Result<Value> {
        self.namespace(session.namespace()).await?;
        self.apply(&session.to_object()).await
    }

    /// Deletes a session's resource.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn delete_session(&self, session: &Session) -> Result<()> {
        self.delete("sessions.understudy.dev", session.namespace(), session.name())
            .await
    }

    /// Creates a pod's object. What is returned has the UID that the server gave it; [`crate::node::Node::pod`] makes
    /// its sandbox, then or later.
    ///
    /// # Errors
    /// It is refused.
    pub async fn create_pod(&self, pod: PodSpec) -> Result<PodSpec> {
        let object = self.create(&pod.to_object()).await?;
        let uid = uid_of(&object)?;
        Ok(pod.uid(uid))
    }

    /// Creates many pods' objects, quickly.
    ///
    /// # Errors
    /// One is refused.
    pub async fn create_pods(&self, pods: Vec<PodSpec>) -> Result<Vec<PodSpec>> {
        let batches = pods.chunks(BATCH).map(async |batch| {
            let command = self.admin(["create", "--output=json", "-f", "-"])?;
            let mut manifest = String::new();
            for pod in batch {
                // Without a mark before the first, kubectl takes it all for JSON.
                manifest.push_str("---\n");
                manifest.push_str(&pod.to_object().to_string());
                manifest.push('\n');
            }
            let printed = command.stdin(manifest).stdout().await?;
            let stored: Vec<Value> = serde_json::Deserializer::from_str(&printed)
                .into_iter()
                .collect::<Result<_, _>>()?;
            if stored.len() != batch.len() {
                bail!("{} of {} pods were created", stored.len(), batch.len());
            }
            let named = batch.iter().zip(&stored);
            named
                .map(|(pod, object)| Ok(pod.clone().uid(uid_of(object)?)))
                .collect::<Result<Vec<PodSpec>>>()
        });
        Ok(try_join_all(batches).await?.concat())
    }

    /// Says what kubelet would: merges into the pod's status.
    ///
    /// # Errors
    /// It isn't there.
    pub async fn set_pod_status(&self, pod: &PodSpec, status: &Value) -> Result<()> {
        let patch = json!({"status": status});
        self.patch("pods", &pod.namespace, &pod.name, Some("status"), &patch)
            .await
            .map(drop)
    }

    /// Gives a pod a label, or takes it away.
    ///
    /// # Errors
    /// It isn't there.
    pub async fn label_pod(&self, pod: &PodSpec, name: &str, value: Option<&str>) -> Result<()> {
        let patch = json!({"metadata": {"labels": {name: value}}});
        self.patch("pods", &pod.namespace, &pod.name, None, &patch)
            .await
            .map(drop)
    }

    /// Takes a pod's object away, as kubelet does once its containers have ended.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn delete_pod(&self, pod: &PodSpec) -> Result<()> {
        self.delete("pods", &pod.namespace, &pod.name).await
    }

    /// A service account's token for these audiences, or the API server itself where there are none, bound to the pod
    /// that is named, which must run under that account.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn account_token(
        &self,
        namespace: &str,
        account: &str,
        audiences: &[&str],
        pod: Option<&str>,
    ) -> Result<String> {
        let mut command = self.admin(["create", "token", account, "--namespace", namespace])?;
        for audience in audiences {
            command = command.args(["--audience", audience]);
        }
        if let Some(pod) = pod {
            command = command.args(["--bound-object-kind=Pod", "--bound-object-name", pod]);
        }
        Ok(command.stdout().await?.trim().to_owned())
    }

    /// A token of these claims, signed by the key that signs the service accounts' own.
    ///
    /// # Errors
    /// The key can't be used.
    pub fn sign_token(&self, claims: &Value) -> Result<String> {
        let key = TokenKey::open(&super::files(&self.node).join("sa.key"))?;
        Ok(key.sign(claims)?)
    }

    /// Where the CAs of client certificates are, in PEM: the cluster's own to begin with. The server takes it on when
    /// it changes.
    #[must_use]
    pub fn client_ca_file(&self) -> PathBuf {
        super::files(&self.node).join("client-ca.crt")
    }

    async fn send(&self, arguments: &[&str], object: &Value) -> Result<Value> {
        let command = self.admin(arguments)?.arg("--output=json").stdin(object.to_string());
        let text = command.stdout().await?;
        serde_json::from_str(&text).with_context(|| format!("kubectl printed no JSON: {text}"))
    }
}

fn of(namespace: &str) -> Vec<String> {
    if namespace.is_empty() {
        return Vec::new();
    }
    vec![format!("--namespace={namespace}")]
}

fn uid_of(object: &Value) -> Result<Uuid> {
    let uid = object["metadata"]["uid"].as_str();
    uid.and_then(|uid| uid.parse().ok())
        .context("the pod was stored without a UID")
}
