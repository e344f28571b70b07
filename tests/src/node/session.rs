//! Session files: written for the agent as an operator would, replaced in one step so that it never reads half of one.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{LightPod, Pod, ServiceAccount};

/// A session, as its file says it.
#[derive(Debug, Clone)]
pub struct Session {
    namespace: String,
    name: String,
    spec: Value,
    pods: Vec<Value>,
}

impl Session {
    /// A session that says nothing yet about who acts.
    #[must_use]
    pub fn named(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            spec: json!({}),
            pods: Vec::new(),
        }
    }

    /// `gateway-kubernetes-auth`: the agent impersonates `account`.
    #[must_use]
    pub fn acting_as(self, account: &ServiceAccount) -> Self {
        self.field("authMethod", json!("gateway-kubernetes-auth")).field(
            "impersonate",
            json!({"namespace": account.namespace, "serviceAccountName": account.name}),
        )
    }

    /// `service-account-token`: the session's own token goes upstream.
    #[must_use]
    pub fn with_token_of(self, account: &ServiceAccount) -> Self {
        self.field("authMethod", json!("service-account-token"))
            .field("token", json!(account.token))
    }

    /// When it ends.
    #[must_use]
    pub fn until(self, end: Timestamp) -> Self {
        self.field("expiresAt", json!(end.to_string()))
    }

    /// Sets a field of `spec`, whatever it means.
    #[must_use]
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.spec[name] = value;
        self
    }

    /// Tags a pod with it.
    #[must_use]
    pub fn for_pod(mut self, pod: &Pod) -> Self {
        self.pods
            .push(json!({"name": pod.name(), "cgroup": pod.cgroup_in_sessions(), "uid": pod.uid().to_string()}));
        self
    }

    /// Tags a light pod with it.
    #[must_use]
    pub fn for_light_pod(mut self, pod: &LightPod) -> Self {
        self.pods
            .push(json!({"name": pod.spec().name, "cgroup": pod.cgroup_in_sessions()}));
        self
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name there.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The resource, which names no pods: they name it.
    #[must_use]
    pub fn to_object(&self) -> Value {
        json!({
            "apiVersion": "understudy.dev/v1alpha1",
            "kind": "Session",
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": self.spec,
        })
    }

    /// `namespace/name`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The document.
    ///
    /// # Errors
    /// A value that YAML cannot say.
    pub fn to_yaml(&self) -> Result<String> {
        let document = json!({
            "apiVersion": "understudy.dev/v1alpha1",
            "kind": "Session",
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": self.spec,
            "pods": self.pods,
        });
        serde_saphyr::to_string(&document).context("writing a session as YAML")
    }
}

/// The directory of session files.
#[derive(Debug, Clone)]
pub struct SessionsDir {
    path: PathBuf,
}

impl SessionsDir {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the session's file, or replaces it.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn write(&self, session: &Session) -> Result<()> {
        self.write_text(&file_name(session), &session.to_yaml()?)
    }

    /// Writes any text as the file `name`.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        replace(&self.path.join(name), text)
    }

    /// Takes the session's file away.
    ///
    /// # Errors
    /// It can't be removed; that it isn't there is no error.
    pub fn remove(&self, session: &Session) -> Result<()> {
        match fs::remove_file(self.path.join(file_name(session))) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("removing a session file"),
            _ => Ok(()),
        }
    }
}

fn file_name(session: &Session) -> String {
    format!("{}.{}.yaml", session.namespace, session.name)
}

/// Replaces the file `path` in one step.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let directory = path.parent().context("a file lies in a directory")?;
    let mut next = tempfile::Builder::new().prefix(".next-").tempfile_in(directory)?;
    std::io::Write::write_all(&mut next, text.as_bytes())?;
    next.persist(path)
        .with_context(|| format!("replacing {}", path.display()))?;
    Ok(())
}
